"""Tensor helpers against NumPy: shapes, masks, the masked softmax, gathering, pooling."""

import numpy as np
import pytest
from keras import ops

from bert4x import backend as b
from bert4x.backend.runtime import to_numpy, value_and_grad

X = np.arange(24, dtype="float32").reshape(2, 3, 4)


def probe(shape, a, shift, scale):
    """Arrays of spec/checks_layers.json: element i is scale sin(a (i + 1) + shift)."""
    return (scale * np.sin(a * np.arange(1, np.prod(shape) + 1) + shift)).reshape(shape).astype("float32")


SCORES = probe((2, 3, 4), 1.8864, 1.873, 2.0)
ALLOWED = np.array(
    [[[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]], [[0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 1]]], dtype=bool
)
WEIGHTS = [
    [[0.037831954, 0.036651713, 0.803517883, 0.121998451], [0.043790063, 0, 0.956209937, 0], [0, 0, 0, 0]],
    [[0, 1, 0, 0], [0.955455362, 0.044544638, 0, 0], [0, 0, 0, 1]],
]


@pytest.mark.parametrize(
    ("axes", "ndim", "shape"),
    [([0, -1], 3, (2, 1, 5)), ([0, 1], 4, (2, 5, 1, 1)), ([0, 2], None, (2, 1, 5)), ([1, 2], 4, (1, 2, 5, 1))],
)
def test_align(axes, ndim, shape):
    x = ops.ones((2, 5))
    assert tuple(b.align(x, axes, ndim).shape) == shape
    with pytest.raises(ValueError, match="one target axis per axis"):
        b.align(x, [0], 3)


def test_reshape_replaces_single_axes():
    x = ops.convert_to_tensor(X)
    np.testing.assert_array_equal(to_numpy(b.reshape(x, (6, 4))), X.reshape(6, 4))
    np.testing.assert_array_equal(to_numpy(b.reshape(x, (2, 2), 2)), X.reshape(2, 3, 2, 2))
    np.testing.assert_array_equal(to_numpy(b.reshape(x, (1, 2), 0, (2, 2), -1)), X.reshape(1, 2, 3, 2, 2))
    with pytest.raises(ValueError, match="pairs of shape and axis"):
        b.reshape(x, (2, 2), 0, (1,))


def test_flatten_joins_a_range_of_axes():
    x = ops.convert_to_tensor(X)
    for bounds, shape in [((), (24,)), ((1,), (2, 12)), ((None, 2), (6, 4)), ((-2,), (2, 12)), ((1, 2), (2, 3, 4))]:
        np.testing.assert_array_equal(to_numpy(b.flatten(x, *bounds)), X.reshape(shape))


def test_sequence_masking():
    x = ops.convert_to_tensor(X)
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    expected = np.where(mask[:, :, None] > 0, X, 0)
    np.testing.assert_array_equal(to_numpy(b.sequence_masking(x, mask)), expected)
    far = to_numpy(b.sequence_masking(x, ops.convert_to_tensor(mask > 0), "-inf"))
    np.testing.assert_array_equal(far, np.where(mask[:, :, None] > 0, X, np.float32(-1e9)))
    assert to_numpy(b.sequence_masking(x, mask, "inf")).max() == 1e9
    assert b.sequence_masking(x, None) is x


def test_sequence_masking_on_other_axes_with_biases():
    x = ops.zeros((2, 5, 3, 3))
    mask = np.array([[1, 1, 0], [1, 1, 1]], dtype=bool)
    causal = np.tril(np.ones((1, 3, 3), bool))
    bias = ops.ones((2, 3, 3))
    masked, allowed = b.sequence_masking(
        x, mask, -5, axis=-1, bias=[ops.convert_to_tensor(causal), bias], return_mask=True
    )
    expected = np.broadcast_to((mask[:, None, :] & causal)[:, None], (2, 5, 3, 3))
    np.testing.assert_array_equal(to_numpy(masked), np.where(expected, 1, -5))
    np.testing.assert_array_equal(np.broadcast_to(to_numpy(allowed), expected.shape), expected)
    both = to_numpy(b.sequence_masking(ops.ones((2, 3, 3)), mask, 0, axis=[1, 2]))
    np.testing.assert_array_equal(both, mask[:, :, None] & mask[:, None, :])


def test_sequence_masking_stays_finite_in_float16():
    masked = to_numpy(b.sequence_masking(ops.zeros((1, 2), dtype="float16"), np.array([[1, 0]]), "-inf"))
    assert masked[0, 0] == 0 and np.isfinite(masked).all() and masked[0, 1] <= -1e4


def test_masked_logit():
    assert b.masked_logit("float32") == b.masked_logit("bfloat16") == -1e9
    assert b.masked_logit("float16") == -3e4


def test_combine_masks():
    assert b.combine_masks() is None and b.combine_masks(None, None) is None
    got = b.combine_masks(None, ops.convert_to_tensor([True, True]), ops.convert_to_tensor([True, False]))
    assert to_numpy(got).tolist() == [True, False]


def test_masked_softmax(tolerance):
    scores, allowed = ops.convert_to_tensor(SCORES), ops.convert_to_tensor(ALLOWED)
    for got in (b.attention_normalize(scores, allowed), b.attention_normalize(scores, bias=allowed)):
        np.testing.assert_allclose(to_numpy(got), WEIGHTS, atol=tolerance)
        assert (to_numpy(got)[~ALLOWED] == 0).all()


def test_masked_softmax_gradient_of_an_empty_row_is_zero():
    _, gradient = value_and_grad(
        lambda s: ops.sum(b.attention_normalize(s, ops.convert_to_tensor(ALLOWED)) ** 2), ops.convert_to_tensor(SCORES)
    )
    gradient = to_numpy(gradient)
    assert np.isfinite(gradient).all() and (gradient[~ALLOWED] == 0).all() and gradient[0, 0].any()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_masked_softmax_in_half_precision(dtype, tolerances):
    got = b.attention_normalize(ops.convert_to_tensor(SCORES, dtype=dtype), ops.convert_to_tensor(ALLOWED))
    got = np.float32(to_numpy(got))
    np.testing.assert_allclose(got, WEIGHTS, atol=tolerances[dtype])
    assert (got[~ALLOWED] == 0).all()


def test_float_bias_is_added(tolerance):
    bias = ops.convert_to_tensor(SCORES)
    got = b.attention_normalize(ops.zeros((2, 3, 4)), bias=bias)
    np.testing.assert_allclose(to_numpy(got), np.exp(SCORES) / np.exp(SCORES).sum(-1, keepdims=True), atol=tolerance)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_softmax_plus(tolerance):
    scores = probe((1, 2, 40), 1.3, 0.2, 3.0)
    allowed = np.zeros((1, 2, 40), bool)
    allowed[0, 0, :30] = allowed[0, 1, :5] = True
    mask = ops.convert_to_tensor(allowed)
    got = to_numpy(b.attention_normalize(ops.convert_to_tensor(scores), mask, method="softmax_plus"))
    for row, length in ((0, 30), (1, 5)):
        expected = softmax(scores[0, row, :length] * np.log(max(length, 16)) / np.log(512))
        np.testing.assert_allclose(got[0, row, :length], expected, atol=tolerance)
        assert not got[0, row, length:].any()
    unmasked = to_numpy(b.attention_normalize(ops.convert_to_tensor(scores), method="softmax_plus"))
    np.testing.assert_allclose(unmasked, softmax(scores * np.log(40) / np.log(512)), atol=tolerance)


def test_squared_relu(tolerance):
    scores, allowed = ops.convert_to_tensor(SCORES), ops.convert_to_tensor(ALLOWED)
    count = np.maximum(ALLOWED.sum(-1, keepdims=True), 1)
    expected = np.where(ALLOWED, np.maximum(SCORES, 0) ** 2 / count, 0)
    got = b.attention_normalize(scores, allowed, method="squared_relu")
    np.testing.assert_allclose(to_numpy(got), expected, atol=tolerance)
    with pytest.raises(ValueError, match="softmax, softmax_plus or squared_relu; got 'cosine'"):
        b.attention_normalize(scores, method="cosine")


def test_batch_gather():
    x = ops.convert_to_tensor(X)
    np.testing.assert_array_equal(to_numpy(b.batch_gather(x, ops.convert_to_tensor([2, 0]))), X[[0, 1], [2, 0]])
    got = b.batch_gather(x, ops.convert_to_tensor([[2, 0], [1, 1]]))
    np.testing.assert_array_equal(to_numpy(got), X[[[0], [1]], [[2, 0], [1, 1]]])
    got = b.batch_gather(x[..., 0], ops.convert_to_tensor([[2], [1]]))
    np.testing.assert_array_equal(to_numpy(got), [[X[0, 2, 0]], [X[1, 1, 0]]])


def test_pool1d():
    x = ops.convert_to_tensor(X)
    np.testing.assert_array_equal(to_numpy(b.pool1d(x, 2)), np.maximum(X[:, :-1], X[:, 1:]))
    np.testing.assert_array_equal(to_numpy(b.pool1d(x, 3, pool_mode="avg")), X.mean(1, keepdims=True))
    assert tuple(b.pool1d(x, 2, 2, "same").shape) == (2, 2, 4)


def test_divisible_temporal_padding():
    for n, length in [(1, 3), (2, 4), (3, 3), (4, 4), (5, 5)]:
        got = to_numpy(b.divisible_temporal_padding(ops.convert_to_tensor(X), n))
        assert got.shape == (2, length, 4)
        np.testing.assert_array_equal(got[:, :3], X)
        assert not got[:, 3:].any()


def test_root_mean_square(tolerance):
    got = to_numpy(b.root_mean_square(ops.convert_to_tensor(X), axis=-1, keepdims=True))
    np.testing.assert_allclose(got, np.sqrt((X**2).mean(-1, keepdims=True)), rtol=tolerance)
