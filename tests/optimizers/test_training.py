"""Extended optimizers in `fit`: compiled, in bfloat16, saved and restored, averaged, by rows."""

import os
import subprocess
import sys

import numpy as np
import pytest

from bert4x import optimizers as o
from bert4x.backend import keras, ops, runtime
from bert4x.layers import Embedding
from bert4x.snippets import LearningRateLogger, Resume
from tests.conftest import ROOT
from tests.optimizers.problems import EMBEDDINGS, START, all_gradients, assert_near
from tests.optimizers.rows import EXTENSIONS, make, make_class, wanted

EVERYTHING = {**START, **EMBEDDINGS}


class Prescribed(keras.layers.Layer):
    """Weights whose gradients are the inputs:  loss = sum of w * G."""

    def build(self, shapes):
        for path, start in EVERYTHING.items():
            name = path.replace("/", "_")
            self.add_weight(name=name, shape=start.shape, initializer="zeros")

    def call(self, inputs):
        parts = [ops.sum(g * ops.convert_to_tensor(w)) for g, w in zip(inputs, self.weights, strict=True)]
        return ops.reshape(sum(parts), (1, 1))


def bfloat16(t):
    """The gradients, rounded to what bfloat16 holds."""
    return {
        path: np.array(ops.convert_to_numpy(ops.cast(ops.cast(g, "bfloat16"), "float32")))
        for path, g in all_gradients(t).items()
    }


def mean_of_outputs(target, output):
    return ops.mean(output)


def fit_prescribed(optimizer, calls=10, dtype="float32", jit_compile=False):
    """Weights by path after one epoch with prescribed gradients."""
    inputs = [keras.Input(batch_shape=(1, *start.shape)) for start in EVERYTHING.values()]
    layer = Prescribed(dtype=dtype, name="all")
    model = keras.Model(inputs, layer(inputs))
    for weight, start in zip(layer.weights, EVERYTHING.values(), strict=True):
        weight.assign(start)
    model.compile(optimizer, mean_of_outputs, jit_compile=jit_compile)
    gradients = [bfloat16(t) for t in range(1, calls + 1)]
    data = [np.stack([g[path] for g in gradients]) for path in EVERYTHING]
    model.fit(data, np.zeros((calls, 1)), batch_size=1, shuffle=False, verbose=0)
    return {path: ops.convert_to_numpy(w) for path, w in zip(EVERYTHING, layer.weights, strict=True)}


@pytest.mark.filterwarnings("ignore:Layer adaptation on AdaFactor")
@pytest.mark.parametrize("base, dtype, jit_compile", [
    ("Adam", "mixed_bfloat16", False), ("Adam", "float32", True), ("AdaX", "float32", False),
    ("AdaFactor", "float32", True), ("Lion", "float32", False), ("keras.SGD", "float32", True),
])
def test_compiled_with_all_extensions(base, dtype, jit_compile):
    if jit_compile and keras.backend.backend() == "torch":
        pytest.skip("torch has no XLA")
    names = list(EXTENSIONS)
    got = fit_prescribed(make(base, names), dtype=dtype, jit_compile=jit_compile)
    weights, _ = wanted(base, names, EVERYTHING, [bfloat16(t) for t in range(1, 11)])
    assert_near(got, weights, 2e-6)


def classifier(optimizer=None):
    """A small model with an embedding, and its data."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential([
        keras.Input((3,), dtype="int32"), keras.layers.Embedding(11, 4, name="Embedding-Token"),
        keras.layers.Flatten(), keras.layers.Dense(2, activation="softmax", name="head"),
    ])
    if optimizer is not None:
        model.compile(optimizer, "sparse_categorical_crossentropy")
    random = np.random.default_rng(0)
    return model, random.integers(0, 9, (16, 3)).astype("int32"), random.integers(0, 2, 16)


CONTINUE = """
import sys, numpy as np, keras, bert4x.optimizers
model = keras.saving.load_model(sys.argv[1])
data = np.load(sys.argv[2])
model.fit(data["x"], data["y"], batch_size=4, epochs=2, shuffle=False, verbose=0)
np.savez(sys.argv[3], *[keras.ops.convert_to_numpy(w) for w in model.weights])
"""


def test_a_saved_run_goes_on_exactly_in_a_new_process(tmp_path):
    names = list(EXTENSIONS)
    options = {"include_in_lazy_optimization": ["Embedding"], "paramwise_lr_schedule": {"Embedding": 0.5}}
    model, x, y = classifier(make("Adam", names, **options, grad_accum_steps=3))
    # Five updates and a third of one; Lookahead, average and accumulator are all in the middle of something.
    model.fit(x, y, batch_size=4, epochs=4, shuffle=False, verbose=0)
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "data.npz", x=x, y=y)
    files = [str(tmp_path / name) for name in ("model.keras", "data.npz", "weights.npz")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", CONTINUE, *files], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    model.fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0)
    with np.load(files[2]) as stored:
        for weight, name in zip(model.weights, stored.files, strict=True):
            np.testing.assert_array_equal(ops.convert_to_numpy(weight), stored[name])


def test_averaged_weights_in_evaluation_leave_training_alone():
    cls = o.extend_with_exponential_moving_average(o.Adam)
    (model, x, y), (other, *_) = classifier(cls(0.05, ema_momentum=0.5)), classifier(cls(0.05, ema_momentum=0.5))
    seen = []
    callbacks = [o.EvaluateWithEMA(), keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(ops.convert_to_numpy(model.layers[-1].kernel)))]
    model.fit(x, y, validation_data=(x, y), epochs=3, shuffle=False, verbose=0, callbacks=callbacks)
    other.fit(x, y, epochs=3, shuffle=False, verbose=0)
    for one, two in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(one), ops.convert_to_numpy(two))
    with o.ema_weights(other):
        np.testing.assert_array_equal(seen[-1], ops.convert_to_numpy(other.layers[-1].kernel))
    assert not np.array_equal(seen[-1], ops.convert_to_numpy(other.layers[-1].kernel))


def test_an_epoch_without_an_update_keeps_its_weights():
    """Eight micro-batches make an update, an epoch has four."""
    cls = o.extend_with_gradient_accumulation(o.extend_with_exponential_moving_average(o.Adam))
    model, x, y = classifier(cls(0.05, grad_accum_steps=8))
    callbacks = [o.EvaluateWithEMA()]
    losses = model.fit(
        x, y, batch_size=4, validation_data=(x, y), epochs=3, shuffle=False, verbose=0, callbacks=callbacks
    ).history["val_loss"]
    assert losses[0] != losses[1] == losses[2] and int(model.optimizer.iterations) == 1


def test_a_run_with_averages_is_resumed_from_its_own_weights(tmp_path):
    cls = o.extend_with_exponential_moving_average(o.Adam)
    seen = []

    def train(epochs):
        model, x, y = classifier(cls(0.05, ema_momentum=0.5))
        callbacks = [o.EvaluateWithEMA(), Resume(tmp_path / "run.npz", keep=True), keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: seen.append(ops.convert_to_numpy(model.layers[-1].kernel)))]
        model.fit(x, y, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks)
        return [ops.convert_to_numpy(weight) for weight in model.weights]

    whole = train(3)
    (tmp_path / "run.npz").unlink()
    train(2)
    for one, two in zip(train(3), whole, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)
    np.testing.assert_allclose(seen[5], seen[2], atol=1e-6)  # callbacks behind it find the average as before
    assert np.abs(seen[2] - whole[-2]).max() > 1e-3


def test_averages_look_through_loss_scaling():
    inner = o.extend_with_exponential_moving_average(o.Adam)(0.05)
    model, x, y = classifier(keras.optimizers.LossScaleOptimizer(inner))
    model.fit(x, y, verbose=0)
    with o.ema_weights(model):
        pass
    other, *_ = classifier(o.Adam())
    with pytest.raises(ValueError, match="must keep an average"), o.ema_weights(other):
        pass


@pytest.mark.parametrize("base", ["Adam", "Lion", "keras.SGD"])
def test_rows_alone_give_the_same_as_whole_gradients(base, monkeypatch):
    """The ids repeat within a batch. Clipping, here without effect, needs whole gradients."""
    results, written, row_slices = [], [], runtime.row_slices
    monkeypatch.setattr(runtime, "row_slices", lambda values, rows: written.append(rows) or row_slices(values, rows))
    for clipping in ({}, {"clipvalue": 1e9}):
        optimizer = make_class(base, ["lazy_optimization", "weight_decay"])(
            0.05, include_in_lazy_optimization=["Embedding"], freeze_moments=True, **clipping
        )
        model, x, y = classifier(optimizer)
        model.fit(x, y, batch_size=2, epochs=2, shuffle=False, verbose=0)
        results.append([np.array(ops.convert_to_numpy(w)) for w in model.weights])
        sparse = not base.startswith("keras") and not clipping  # takes effect where there are slices: on TensorFlow
        assert optimizer._sparse_indices() == ({0} if sparse else ())
    assert bool(written) == (keras.backend.backend() == "tensorflow" and not base.startswith("keras"))
    start = ops.convert_to_numpy(classifier()[0].weights[0])
    for one, two in zip(*results, strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(results[0][0][9:], start[9:])  # ids that never occur
    assert (results[0][0][:9] != start[:9]).all()


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the others have no slices")
def test_looking_up_rows_reads_no_whole_table():
    """A table of which an optimizer writes rows is copied whenever it is read as a whole."""
    import tensorflow as tf

    layer = Embedding(11, 4)
    layer.build((None, 3))
    graph = tf.function(layer).get_concrete_function(tf.zeros((2, 3), "int32")).graph
    kinds = [operation.type for operation in graph.get_operations()]
    assert "ResourceGather" in kinds and "ReadVariableOp" not in kinds


def test_slices_with_repeated_rows_are_summed():
    """TensorFlow alone has slices; elsewhere the dense gradient passes unchanged."""
    dense = ops.ones((3, 2))
    rows, same = runtime.gradient_rows(dense)
    assert rows is None and same is dense and runtime.dense_gradient(dense, dense) is dense
    if keras.backend.backend() != "tensorflow":
        return
    slices = runtime.row_slices(ops.convert_to_tensor([[1.0], [2.0], [4.0]]), ops.convert_to_tensor([2, 0, 2]))
    np.testing.assert_array_equal(runtime.dense_gradient(slices, ops.zeros((4, 1))), [[2], [0], [5], [0]])
    rows, sums = runtime.gradient_rows(slices)
    assert dict(zip(np.array(rows).tolist(), np.array(sums)[:, 0].tolist(), strict=True)) == {0: 2.0, 2: 5.0}


def test_kernels_behind_inputs_of_any_length():
    """TensorFlow infers no shape for their gradients there, and AdaFactor goes by the shape."""
    inputs = keras.Input((None, 3))
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    model.compile(o.AdaFactor(0.1), mean_of_outputs, jit_compile=False)
    before = model.layers[1].get_weights()[0]
    model.fit(np.ones((2, 4, 3)), np.zeros((2, 4, 2)), verbose=0)
    # The gradient is the same everywhere, so that it is 1 after scaling, times the root mean square of the weights.
    after = before - 0.1 * np.sqrt((before**2).mean())
    assert np.allclose(model.layers[1].get_weights()[0], after, atol=1e-6)


@pytest.mark.parametrize("wrap", [lambda optimizer: optimizer, keras.optimizers.LossScaleOptimizer])
def test_the_logs_show_the_effective_rate(wrap):
    optimizer = o.extend_with_piecewise_linear_lr(o.Adam)(0.5, lr_schedule={4: 1, 8: 0.5})
    model, x, y = classifier(wrap(optimizer))
    history = model.fit(x, y, batch_size=4, epochs=2, verbose=0, callbacks=[LearningRateLogger(key="rate")]).history
    assert history["rate"] == [0.375, 0.3125]  # of the fourth and the eighth update


def state_elements(optimizer, shapes):
    """Numbers that an optimizer keeps for weights of these shapes, without making them."""
    return sum(int(np.prod(s)) for shape in shapes for s in optimizer.slot_shapes(shape).values())


def test_state_of_adafactor_on_bert_base():
    block = [(768, 768)] * 4 + [(768,)] * 4 + [(768, 3072), (3072,), (3072, 768), (768,)] + [(768,)] * 4
    shapes = [(30522, 768), (2, 768), (512, 768), (768,), (768,)] + 12 * block
    weights = sum(int(np.prod(shape)) for shape in shapes)
    adam, adafactor = (state_elements(cls(), shapes) for cls in (o.Adam, o.AdaFactor))
    assert (weights, adam, adafactor) == (108_891_648, 217_783_296, 321_338)


def test_layer_wise_decay():
    layers = ("Embedding-Token", "Transformer-0-FeedForward", "Transformer-1-FeedForward", "head")
    x = keras.Input((2,))
    hidden = x
    for name in layers:
        hidden = keras.layers.Dense(2, name=name)(hidden)
    model = keras.Model(x, hidden)
    schedule = o.layer_wise_lr_decay(model, 0.5)
    assert schedule == {"Transformer-0-": 0.25, "Transformer-1-": 0.5, "Embedding-": 0.125}
    optimizer = make_class("Adam", ["parameter_wise_lr"])(0.01, paramwise_lr_schedule=schedule)
    optimizer.build(model.trainable_variables)
    assert optimizer._parts[0].multipliers == [0.125, 0.125, 0.25, 0.25, 0.5, 0.5, 1.0, 1.0]
    with pytest.raises(ValueError, match="is in none"):
        o.layer_wise_lr_decay(classifier()[0])
