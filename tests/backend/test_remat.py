"""`rematerialized`: gradients, dropout masks and seeds equal the plain layer's, also inside `model.fit`."""

import keras
import numpy as np
import pytest
from keras import ops

from bert4x.backend.runtime import backend, overridden, rematerialized, to_numpy, value_and_grad

FIT = {
    "tensorflow": [{"run_eagerly": True}, {"jit_compile": False}, {"jit_compile": True}],
    "jax": [{"jit_compile": True}],
    "torch": [{}],
}


class Block(keras.layers.Layer):
    """scale * dropout(Dense(dropout(Dense(x)))), masked; the dropout's `training` is left to Keras on purpose."""

    def __init__(self, remat, dropout=0.5, **options):
        super().__init__(**options)
        self.supports_masking = True
        self.remat = remat
        self.inner = keras.layers.Dense(8, activation="tanh", dtype=self.dtype_policy)
        self.dropout = keras.layers.Dropout(dropout, seed=11, dtype=self.dtype_policy)
        self.outer = keras.layers.Dense(4, dtype=self.dtype_policy)
        self.calls = 0

    def build(self, shape):
        self.scale = self.add_weight(shape=(4,), initializer="ones", name="scale")
        self.inner.build(shape)
        self.outer.build((*shape[:-1], 8))

    def call(self, x, mask=None):
        def compute(x):
            self.calls += 1
            hidden = self.dropout(self.inner(x))
            if mask is not None:
                hidden = ops.where(ops.expand_dims(mask, -1), hidden, ops.zeros_like(hidden))
            return self.scale * self.dropout(self.outer(hidden))

        return rematerialized(self, compute, x) if self.remat else compute(x)


def pair(**options):
    """A plain and a rematerialised layer with the same weights."""
    layers = [Block(remat, **options) for remat in (False, True)]
    for layer in layers:
        layer.build((None, 3, 4))
    values = np.random.default_rng(0)
    for plain, remat in zip(layers[0].weights, layers[1].weights, strict=True):
        value = values.normal(size=plain.shape) * 0.5
        plain.assign(value)
        remat.assign(value)
    return layers


def gradients(layer, x, **options):
    """Gradients for x and all weights of sum(layer(x)^2)."""

    def loss(arguments):
        x, weights = arguments
        with overridden(list(zip(layer.trainable_variables, weights, strict=True)), layer):
            return ops.sum(ops.cast(layer(x, training=True, **options), "float32") ** 2)

    value, (dx, dw) = value_and_grad(loss, (x, [v.value for v in layer.trainable_variables]))
    return [to_numpy(g) for g in (value, dx, *dw)]


def test_gradients_and_seeds_equal_the_plain_ones(tolerances):
    plain, remat = pair()
    x = ops.convert_to_tensor(np.random.default_rng(1).normal(size=(2, 3, 4)), dtype="float32")
    mask = ops.convert_to_tensor([[True, True, False], [True, True, True]])
    seeds = [next(v for v in layer.variables if "seed" in v.path) for layer in (plain, remat)]
    start = to_numpy(seeds[1])
    for _ in range(2):  # the second time from other seeds
        expected, got = gradients(plain, x, mask=mask), gradients(remat, x, mask=mask)
        for a, b in zip(expected, got, strict=True):
            np.testing.assert_allclose(b, a, atol=tolerances["gradient"], rtol=1e-5)
        assert np.abs(expected[-1]).max() > 0.1
    np.testing.assert_array_equal(to_numpy(seeds[1]), start + [0, 4])
    np.testing.assert_array_equal(to_numpy(seeds[0]), to_numpy(seeds[1]))


def test_mixed_precision_computes_the_same_both_times(tolerances):
    plain, remat = pair(dtype="mixed_bfloat16")
    x = ops.ones((2, 3, 4), dtype="bfloat16")
    for a, b in zip(gradients(plain, x), gradients(remat, x), strict=True):
        np.testing.assert_allclose(np.float32(b), np.float32(a), atol=tolerances["bfloat16"], rtol=0.02)


def test_the_forward_pass_runs_again():
    _, layer = pair()
    gradients(layer, ops.ones((2, 3, 4)))
    if backend() == "jax":  # traced once, and marked for recomputation
        import jax

        program = jax.make_jaxpr(lambda x: layer(x, training=False))(np.ones((2, 3, 4), "float32"))
        assert "remat" in str(program)
    else:
        assert layer.calls == 2


def test_inference_gives_the_plain_output(tolerance):
    plain, remat = pair()
    x = ops.ones((2, 3, 4))
    expected = to_numpy(plain(x, training=False))
    np.testing.assert_allclose(to_numpy(remat(x, training=False)), expected, atol=tolerance)


def build(layers, **mode):
    x = keras.Input((None, 4))
    y = keras.layers.Masking()(x)
    for layer in layers:
        y = layer(y)
    model = keras.Model(x, keras.layers.Dense(1, kernel_initializer="ones")(y))
    model.compile(keras.optimizers.SGD(0.01), "mse", **mode)
    return model


@pytest.mark.parametrize("mode", FIT[backend()], ids=str)
def test_fit_gives_the_plain_weights(mode, tolerances):
    data = np.random.default_rng(2).normal(size=(6, 3, 4)).astype("float32")
    data[0, 1:] = 0  # masked
    plain, remat = zip(pair(), pair(), strict=True)
    models = [build(layers, **mode) for layers in (plain, remat)]
    start = to_numpy(models[1].trainable_variables[0])
    losses = [
        model.fit(data, np.ones((6, 3, 1)), batch_size=2, epochs=2, shuffle=False, verbose=0).history["loss"]
        for model in models
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    for a, b in zip(models[0].trainable_variables, models[1].trainable_variables, strict=True):
        np.testing.assert_allclose(to_numpy(b), to_numpy(a), atol=tolerances["gradient"])
    assert np.abs(to_numpy(models[1].trainable_variables[0]) - start).max() > 1e-3
    seeds = [[to_numpy(v) for v in model.variables if "seed" in v.path] for model in models]
    np.testing.assert_array_equal(seeds[1], seeds[0])


def test_training_is_that_of_the_forward_pass(tolerances):
    """A later layer called with training=False must not switch the dropout off in the backward pass."""

    class Outer(keras.layers.Layer):
        def __init__(self, block):
            super().__init__()
            self.block, self.frozen = block, keras.layers.Dropout(0.5)

        def call(self, x):
            return self.frozen(self.block(x), training=False)

    results = []
    for block in pair():
        inputs = keras.Input((3, 4))
        model = keras.Model(inputs, Outer(block)(inputs))

        def loss(x, model=model):
            return ops.sum(model(x, training=True) ** 2)

        results.append(to_numpy(value_and_grad(loss, ops.ones((2, 3, 4)))[1]))
    np.testing.assert_allclose(results[1], results[0], rtol=1e-5, atol=tolerances["gradient"])


def test_several_tensors_in_and_structures_out(tolerance):
    layer = keras.layers.Dense(2)
    layer.build((None, 3))

    def compute(a, b):
        return {"sum": layer(a + b), "pair": (layer(a), b)}

    def loss(x):
        out = rematerialized(layer, compute, x, 2 * x)
        return ops.sum(out["sum"]) + ops.sum(out["pair"][0]) + ops.sum(out["pair"][1])

    _, gradient = value_and_grad(loss, ops.ones((1, 3)))
    expected = 4 * to_numpy(layer.kernel).sum(axis=1) + 2  # 3 from the sum, 1 from the pair, 2 from b
    np.testing.assert_allclose(to_numpy(gradient), [expected], atol=tolerance)


def test_second_derivatives_where_offered(tolerances):
    if backend() == "tensorflow":
        pytest.skip("tf.recompute_grad has no second derivative")
    plain, remat = pair()
    results = []
    for layer in (plain, remat):

        def slope(x, layer=layer):
            return ops.sum(value_and_grad(lambda x: ops.sum(layer(x, training=True) ** 2), x)[1] ** 2)

        results.append(to_numpy(value_and_grad(slope, ops.ones((2, 3, 4)))[1]))
    np.testing.assert_allclose(results[1], results[0], rtol=1e-4, atol=tolerances["gradient"])


def test_assigning_a_weight_inside_is_an_error():
    layer = keras.layers.BatchNormalization()
    layer.build((None, 3))
    with pytest.raises(ValueError, match="must not assign weights; got .*moving"):
        rematerialized(layer, lambda x: layer(x, training=True), ops.ones((2, 3)))
