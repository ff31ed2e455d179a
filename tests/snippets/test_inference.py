"""`predict_batched`: equal to one record at a time, in order, in few shapes, with weights that change."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert4x.backend import keras, ops, runtime
from bert4x.snippets import predict_batched
from bert4x.snippets.inference import BUCKETS, bucket

SHAPES = []


class MeanPooling(keras.layers.Layer):
    """The mean of the states whose id is not 0."""

    def call(self, states, ids):
        mask = ops.cast(ids != 0, states.dtype)[:, :, None]
        return ops.sum(states * mask, 1) / ops.sum(mask, 1)


class Recorder(keras.layers.Layer):
    """Passes ids on and notes the shapes seen while a graph is made."""

    def call(self, ids):
        SHAPES.append(tuple(ids.shape))
        return ids


def encoder(inputs=2, width=16):
    """Token states, a pooled vector of width 16 and a [B, T, T] map; zeros are padding."""
    token = keras.Input((None,), dtype="int32", name="Input-Token")
    segment = keras.Input((None,), dtype="int32", name="Input-Segment")
    x = keras.layers.Embedding(50, width)(Recorder()(token))
    if inputs == 2:
        x = x + keras.layers.Embedding(2, width)(segment)
    pooled = MeanPooling()(x, token)
    pairs = keras.layers.Dot((2, 2))([x, x])
    return keras.Model([token, segment][:inputs], [x, pooled, pairs])


@pytest.fixture(scope="module")
def model():
    return encoder()


def columns(lengths):
    draw = np.random.default_rng(sum(lengths))
    ids = [draw.integers(1, 50, n).tolist() for n in lengths]
    return ids, [draw.integers(0, 2, n).tolist() for n in lengths]


def check(results, model, inputs, tolerance):
    for i, (ids, segments) in enumerate(zip(*inputs, strict=True)):
        expected = model([np.array([ids]), np.array([segments])])
        for result, one in zip(results, expected, strict=True):
            one = ops.convert_to_numpy(one)[0]
            assert result[i].shape == one.shape
            np.testing.assert_allclose(result[i], one, atol=tolerance)


@settings(max_examples=10)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), st.integers(1, 5))
def test_equals_one_record_at_a_time(model, tolerance, lengths, batch_size):
    inputs = columns(lengths)
    results = predict_batched(model, inputs, batch_size)
    assert isinstance(results[1], np.ndarray) and results[1].shape == (len(lengths), 16)
    assert isinstance(results[0], list)
    check(results, model, inputs, tolerance)


def test_forms_of_the_inputs(model, tolerance):
    # Length 16 equals the width: the pooled vector must not be cut.
    inputs = columns([16, 3, 9])
    named = dict(zip(["Input-Token", "Input-Segment"], inputs, strict=True))
    arrays = [[np.array(x) for x in column] for column in inputs]
    for form in (inputs, list(inputs), named, arrays):
        check(predict_batched(model, form), model, inputs, tolerance)
    single = encoder(1)
    states, _, _ = predict_batched(single, inputs[0])
    assert [len(x) for x in states] == [16, 3, 9]
    again, _, _ = predict_batched(single, [inputs[0]])
    np.testing.assert_array_equal(states[2], again[2])


def test_few_shapes_compiled_once():
    model = encoder()
    draw = np.random.default_rng(0)
    SHAPES.clear()
    for _ in range(3):
        for count in (1, 7, 33, 200):
            predict_batched(model, columns(draw.integers(1, 100, count).tolist()), 8)
    if keras.backend.backend() == "tensorflow":
        assert len(SHAPES) <= 3  # one graph for free shapes
        return
    if keras.backend.backend() == "jax":
        assert len(SHAPES) == len(set(SHAPES))
    assert {shape[1] for shape in SHAPES} <= {n for n in BUCKETS if n <= 128}
    assert {shape[0] for shape in SHAPES} <= {1, 2, 4, 8}


def test_new_weights_are_seen(tolerance):
    model = encoder()
    inputs = columns([3, 5])
    before = predict_batched(model, inputs)[1]
    model.set_weights([w + 1 for w in model.get_weights()])
    after = predict_batched(model, inputs)
    assert np.abs(after[1] - before).max() > 0.5
    check(after, model, inputs, tolerance)
    layer = next(layer for layer in model.layers if isinstance(layer, keras.layers.Embedding))
    layer.enable_lora(2)
    layer.lora_embeddings_a.assign(np.ones(layer.lora_embeddings_a.shape))
    layer.lora_embeddings_b.assign(np.ones(layer.lora_embeddings_b.shape))
    lora = predict_batched(model, inputs)
    assert np.abs(lora[1] - after[1]).max() > 0.5
    check(lora, model, inputs, tolerance)


def test_scalars_per_record_and_plain_callables(tolerance):
    token = keras.Input((None,), dtype="int32")
    label = keras.Input((), dtype="int32")
    x = keras.layers.Embedding(50, 4)(token) + ops.cast(label, "float32")[:, None, None]
    model = keras.Model([token, label], {"states": x})
    result = predict_batched(model, ([[1, 2], [3]], [10, 20]))
    expected = runtime.to_numpy(model([np.array([[3]]), np.array([20])])["states"])[0]
    np.testing.assert_allclose(result["states"][1], expected, atol=tolerance)

    class Subclassed(keras.Model):
        def call(self, ids):
            return ops.cast(ids, "float32")

    with pytest.raises(ValueError, match="sequence_axes"):
        predict_batched(Subclassed(), [[1, 2], [3]])
    results = predict_batched(Subclassed(), [[1, 2], [3]], sequence_axes=(1,))
    assert [x.tolist() for x in results] == [[1, 2], [3]]


def test_errors(model):
    with pytest.raises(ValueError, match="at least 1"):
        predict_batched(model, ([], []))
    with pytest.raises(ValueError, match="equally many"):
        predict_batched(model, ([[1]], [[0], [0]]))
    with pytest.raises(ValueError, match="equally long"):
        predict_batched(model, ([[1, 2]], [[0]]))
    with pytest.raises(ValueError, match="at most 4 tokens; got 5"):
        predict_batched(model, columns([5]), max_length=4)
    assert len(predict_batched(model, columns([5]), max_length=6)[0][0]) == 5


def test_lengths_go_to_few_buckets():
    """Long prompts of decoders without a position table included: each bucket is compiled anew."""
    sizes = {length: bucket(length) for length in range(1, BUCKETS[-1] + 1, 7)}
    assert all(length <= size for length, size in sizes.items()) and len(set(sizes.values())) == 28
    assert all(size <= 1.5 * length for length, size in sizes.items() if length > 16)
    assert BUCKETS[:5] == (16, 24, 32, 48, 64) and bucket(4097) == 6144
    assert bucket(9, (4, 8)) == 9
