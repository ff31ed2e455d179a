"""Primitives: derivatives, replaced variables, compiled inference, checked ids, random state."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

from bert4x.backend import runtime
from bert4x.backend.runtime import check_ids, jit, overridden, to_numpy, value_and_grad
from bert4x.backend.scopes import first_output


def small_model():
    """Embedding, dropout with its own seed, dense."""
    return keras.Sequential(
        [
            keras.layers.Input((None,), dtype="int32"),
            keras.layers.Embedding(5, 3),
            keras.layers.Dropout(0.5, seed=1),
            keras.layers.Dense(2),
        ]
    )


def seed_state(model):
    return next(v for v in model.variables if "seed" in v.path)


def test_value_and_grad_of_two_parameters():
    value, (da, db) = value_and_grad(lambda p: ops.sum(p[0] ** 2 * p[1]), (ops.ones(2) * 3, ops.ones(2) * 5))
    np.testing.assert_allclose(to_numpy(value), 90)
    np.testing.assert_allclose(to_numpy(da), [30, 30])
    np.testing.assert_allclose(to_numpy(db), [9, 9])


def test_value_and_grad_takes_a_variable_and_gives_zeros_for_what_is_unused():
    x = keras.Variable([1.0, 2.0])
    both = {"used": x, "unused": ops.ones(3)}
    _, gradient = value_and_grad(lambda p: ops.sum(ops.exp(p["used"])), both)
    np.testing.assert_allclose(to_numpy(gradient["used"]), np.exp([1, 2]), rtol=1e-6)
    np.testing.assert_array_equal(to_numpy(gradient["unused"]), np.zeros(3))
    _, gradient = value_and_grad(lambda x: ops.convert_to_tensor(4.0), x)
    np.testing.assert_array_equal(to_numpy(gradient), np.zeros(2))


def test_value_and_grad_nests_to_any_order():
    def cube(x):
        return ops.sum(x**3)

    def squared_slope(x):
        return ops.sum(value_and_grad(cube, x)[1] ** 2)  # 9 x^4

    value, gradient = value_and_grad(squared_slope, ops.convert_to_tensor([1.0, 2.0]))
    np.testing.assert_allclose(to_numpy(value), 153)
    np.testing.assert_allclose(to_numpy(gradient), [36, 288])
    _, third = value_and_grad(
        lambda x: ops.sum(value_and_grad(squared_slope, x)[1]), ops.convert_to_tensor([1.0, 2.0])
    )
    np.testing.assert_allclose(to_numpy(third), [108, 432])  # 108 x^2


def test_value_and_grad_without_derivatives_is_constant():
    def total(x):
        value, gradient = value_and_grad(lambda x: ops.sum(x**2), x, differentiable=False)
        return value + ops.sum(gradient) + ops.sum(x)

    _, gradient = value_and_grad(total, ops.convert_to_tensor([1.0, 2.0]))
    np.testing.assert_array_equal(to_numpy(gradient), [1, 1])


def test_gradient_of_a_gather_is_dense_and_sums_repeated_rows():
    ids = ops.convert_to_tensor([1, 3, 1], dtype="int32")

    def penalty(table):
        rows = ops.take(table, ids, axis=0)
        return ops.sum(rows**2)

    table = ops.reshape(ops.arange(8, dtype="float32"), (4, 2))
    _, gradient = value_and_grad(penalty, table)
    np.testing.assert_allclose(to_numpy(gradient), [[0, 0], [8, 12], [0, 0], [12, 14]])
    _, second = value_and_grad(lambda t: ops.sum(value_and_grad(penalty, t)[1] ** 2), table)
    np.testing.assert_allclose(to_numpy(second), [[0, 0], [64, 96], [0, 0], [48, 56]])  # 2 g dg/dt


def test_overridden_replaces_only_in_the_block(tolerance):
    model = small_model()
    ids = ops.convert_to_tensor([[1, 2, 1]], dtype="int32")
    kernel, bias = model.layers[-1].kernel, model.layers[-1].bias
    before, old = to_numpy(model(ids)), to_numpy(kernel)
    with overridden([(kernel, ops.zeros((3, 2))), (bias, ops.ones(2))], model):
        inside = to_numpy(model(ids))
    np.testing.assert_array_equal(inside, np.ones((1, 3, 2)))
    np.testing.assert_array_equal(to_numpy(kernel), old)
    np.testing.assert_allclose(to_numpy(model(ids)), before, atol=tolerance)


def test_overridden_gradient_reaches_the_tensor(tolerance):
    model = small_model()
    ids = ops.convert_to_tensor([[1, 2, 1]], dtype="int32")
    table, kernel = model.layers[0].embeddings, model.layers[-1].kernel

    def total(value):
        with overridden([(table, value)], model):
            return ops.sum(model(ids))

    _, gradient = value_and_grad(total, table)
    row = to_numpy(kernel).sum(axis=1)
    np.testing.assert_allclose(to_numpy(gradient), np.outer([0, 2, 1, 0, 0], row), atol=tolerance)


def test_overridden_hands_seeds_back():
    model = small_model()
    ids, state = ops.convert_to_tensor([[1, 2, 1, 3, 4, 0, 2, 2]], dtype="int32"), seed_state(model)
    ones = ops.ones((5, 3))
    start, outputs = to_numpy(state), []
    for _ in range(3):
        with overridden([(model.layers[0].embeddings, ones)], model):
            outputs.append(to_numpy(model.layers[1](model.layers[0](ids), training=True)))
    np.testing.assert_array_equal(to_numpy(state), start + [0, 3])
    assert not np.array_equal(outputs[0], outputs[1]) and not np.array_equal(outputs[1], outputs[2])
    state.assign(start)
    np.testing.assert_array_equal(to_numpy(model.layers[1](ops.ones((1, 8, 3)), training=True)), outputs[0])


def test_overridden_hands_seeds_back_through_nested_gradients():
    model = small_model()
    ids, state = ops.convert_to_tensor([[1, 2, 1]], dtype="int32"), seed_state(model)
    start = to_numpy(state)

    def loss(value):
        with overridden([(model.layers[0].embeddings, value)], model):
            return ops.sum(model(ids, training=True) ** 2)

    value_and_grad(lambda v: ops.sum(value_and_grad(loss, v)[1] ** 2) + loss(v), model.layers[0].embeddings)
    np.testing.assert_array_equal(to_numpy(state), start + [0, 2])


def test_overridden_hands_back_averages_and_metrics(tolerance):
    class Counted(keras.Model):
        def __init__(self):
            super().__init__()
            self.norm = keras.layers.BatchNormalization(momentum=0.5)
            self.mean = keras.metrics.Mean()

        def call(self, x, training=None):
            self.mean.update_state(x)
            return self.norm(x, training=training)

    model, x = Counted(), ops.convert_to_tensor([[2.0], [4.0]])
    model(x, training=False)
    model.mean.reset_state()

    def loss(value):
        with overridden([(model.norm.gamma, value)], model):
            return ops.sum(model(x * value, training=True))

    value_and_grad(loss, model.norm.gamma)
    np.testing.assert_allclose(to_numpy(model.norm.moving_mean), [1.5], atol=tolerance)
    np.testing.assert_allclose(to_numpy(model.mean.result()), 3, atol=tolerance)


def test_overridden_keeps_the_losses_of_the_outer_pass():
    model = keras.Sequential([keras.layers.Input((1,)), keras.layers.ActivityRegularization(l1=1.0)])
    model(ops.ones((1, 1)))
    with overridden([], model):
        model(ops.ones((1, 1)) * 3)
        inside = [float(to_numpy(loss)) for loss in model.losses]
    assert inside == [3.0]
    assert [float(to_numpy(loss)) for loss in model.losses] == [1.0]


def test_overridden_rejects_foreign_variables_and_wrong_shapes():
    model, other = small_model(), keras.Variable([1.0], name="other")
    with pytest.raises(ValueError, match="variables of the model.*other"):
        with overridden([(other, ops.ones(1))], model):
            pass
    with pytest.raises(ValueError, match="shape"):
        with overridden([(model.layers[-1].bias, ops.ones(3))], model):
            pass


def test_overridden_keeps_full_precision_under_autocast():
    """A float32 layer inside a half-precision one must get the float32 value of its weight."""

    class Outer(keras.layers.Layer):
        def __init__(self):
            super().__init__(dtype="mixed_bfloat16")
            self.inner = keras.layers.Dense(1, use_bias=False, dtype="float32")

        def build(self, shape):
            self.inner.build(shape)

        def call(self, x):
            with overridden([], self.inner):
                return self.inner(x)

    layer = Outer()
    layer.build((None, 1))
    layer.inner.kernel.assign([[1.001]])
    np.testing.assert_array_equal(to_numpy(layer(ops.ones((1, 1)))), np.float32([[1.001]]))


def test_jit_of_a_model_sees_new_weights(tolerance):
    model = small_model()
    forward = jit(model)
    for shape in [(1, 3), (2, 3), (2, 7)]:
        ids = np.ones(shape, "int32")
        np.testing.assert_allclose(to_numpy(forward(ids)), to_numpy(model(ids)), atol=tolerance)
    before = to_numpy(forward(ids))
    model.layers[-1].bias.assign([1.0, 2.0])
    difference = to_numpy(forward(ids)) - before
    np.testing.assert_allclose(difference, np.broadcast_to([1.0, 2.0], (2, 7, 2)), atol=tolerance)


def test_jit_takes_several_inputs_and_returns_structures(tolerance):
    a, b = keras.Input((2,)), keras.Input((2,))
    model = keras.Model([a, b], [a + 2 * b, a * b])
    x, y = np.float32([[1, 2]]), np.float32([[3, 4]])
    for total, product in (jit(model)(x, y), jit(model)([x, y]), jit(model, xla=True)(x, y)):
        np.testing.assert_allclose(to_numpy(total), [[7, 10]], atol=tolerance)
        np.testing.assert_allclose(to_numpy(product), [[3, 8]], atol=tolerance)
    result = jit(lambda x, scale, none: {"y": x * scale, "none": none})(x, 3.0, None)
    np.testing.assert_allclose(to_numpy(result["y"]), [[3, 6]], atol=tolerance)
    assert result["none"] is None


def test_jit_of_a_function_reads_the_weights_of_its_model():
    model = small_model()
    forward = jit(lambda ids: ops.argmax(model(ids, training=False), axis=-1), model=model)
    model.layers[-1].bias.assign([100.0, 0.0])
    assert to_numpy(forward(np.ones((1, 2), "int32"))).tolist() == [[0, 0]]
    model.layers[-1].bias.assign([0.0, 100.0])
    assert to_numpy(forward(np.ones((1, 2), "int32"))).tolist() == [[1, 1]]


def test_check_ids_passes_good_ids_and_names_bad_ones():
    good = ops.convert_to_tensor([[0, 4]], dtype="int32")
    np.testing.assert_array_equal(to_numpy(check_ids(good, 5, "token ids")), [[0, 4]])
    empty = ops.zeros((0, 3), dtype="int32")
    assert check_ids(empty, 5, "token ids").shape == (0, 3)
    for bad in ([[0, 5]], [[-1, 2]]):
        with pytest.raises(ValueError, match=r"token ids must be in \[0, 5\); got"):
            check_ids(ops.convert_to_tensor(bad, dtype="int32"), 5, "token ids")


@keras.saving.register_keras_serializable(package="test")
class Checked(keras.layers.Layer):
    """Embedding with checked ids."""

    def build(self, shape):
        self.table = self.add_weight(shape=(5, 2), name="table")

    def call(self, ids):
        return ops.take(self.table, check_ids(ids, 5, "token ids"), axis=0)


def test_check_ids_in_a_graph_a_compiled_function_and_fit():
    ids = keras.Input((None,), dtype="int32")
    model = keras.Model(ids, Checked(dtype="float32")(ids))
    bad = np.array([[1, 5]], "int32")
    forward = jit(model)
    assert forward(np.array([[1, 4]])).shape == (1, 2, 2)
    with pytest.raises(Exception, match=r"token ids must be in \[0, 5\)"):
        to_numpy(forward(bad))
    model.compile("sgd", "mse", jit_compile=False)
    model.fit(np.array([[1, 4]]), np.zeros((1, 2, 2)), verbose=0)
    with pytest.raises(Exception, match=r"token ids must be in \[0, 5\)"):
        model.fit(bad, np.zeros((1, 2, 2)), verbose=0)


def test_random_state_repeats_draws():
    x = ops.ones((4, 50))
    layer = keras.layers.Dropout(0.5)  # unseeded: on torch it draws from torch's own generator
    layer.build((4, 50))
    state, seeds = runtime.random_state(), [to_numpy(v) for v in layer.variables]
    first, second = to_numpy(layer(x, training=True)), to_numpy(layer(x, training=True))
    assert not np.array_equal(first, second)
    runtime.set_random_state(state)
    for variable, value in zip(layer.variables, seeds, strict=True):
        variable.assign(value)
    np.testing.assert_array_equal(to_numpy(layer(x, training=True)), first)
    assert all(isinstance(array, np.ndarray) for array in state.values())
    assert bool(state) == (runtime.backend() == "torch")


def test_backend_names():
    assert runtime.backend() == keras.backend.backend()
    assert runtime.gpu_count() >= 0
    assert runtime.fused_attention_available() == (runtime.backend() == "torch" or runtime.gpu_count() > 0)


def test_no_other_backend_is_imported():
    """Importing us adds no backend to what Keras itself imports."""
    code = (
        "import sys, keras; names = {'tensorflow', 'jax', 'torch'}; before = names & set(sys.modules);"
        "import bert4x.backend.runtime, bert4x.backend.legacy;"
        "added = names & set(sys.modules) - before; sys.exit(f'imported {added}' if added else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_standard_normal_depends_on_seed_and_step():
    draws = [to_numpy(runtime.standard_normal((50, 40), seed, step)) for seed, step in ((0, 0), (0, 0), (1, 0), (0, 1))]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2]) and not np.array_equal(draws[0], draws[3])
    assert abs(draws[0].mean()) < 0.1 and abs(draws[0].std() - 1) < 0.1


def test_value_and_grad_hands_further_results_through():
    (value, doubled), gradient = value_and_grad(lambda x: (ops.sum(x**2), 2 * x), ops.ones(3), has_aux=True)
    np.testing.assert_allclose([to_numpy(value), *to_numpy(doubled), *to_numpy(gradient)], [3] + [2] * 6)


def test_a_compiled_function_may_differentiate():
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")
    layer.build((None, 3))
    slope = jit(lambda x: value_and_grad(lambda x: ops.sum(layer(x) ** 2), x)[1], model=layer)
    np.testing.assert_allclose(to_numpy(slope(np.ones((1, 3), "float32"))), [[6, 6, 6]], rtol=1e-6)


def test_first_output_changes_one_call_and_only_in_the_block():
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")
    x = ops.ones((1, 2))
    with first_output(layer, lambda output: output + 5):
        assert [float(to_numpy(layer(x))[0, 0]) for _ in range(2)] == [7, 2]
    assert type(layer) is keras.layers.Dense and float(to_numpy(layer(x))[0, 0]) == 2
