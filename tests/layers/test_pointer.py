"""Global pointers: what the contract table and the golden numbers leave open: masks, half precision, losses."""

import numpy as np
import pytest
from keras import ops

from bert4x.backend import multilabel_categorical_crossentropy, runtime
from bert4x.layers import EfficientGlobalPointer, GlobalPointer
from tests.layers.helpers import WithMask, mask_of, to_arrays

X = np.random.default_rng(0).standard_normal((3, 5, 8)).astype("float32")
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]], bool)
KINDS = [GlobalPointer, EfficientGlobalPointer]


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_masked_spans_are_absent_for_the_loss(kind, policy):
    """Also with large scores in half precision, also where nothing is left: no infinity, no NaN."""
    layer = kind(2, 64, dtype=policy)
    layer(X)

    def loss(x):
        scores = layer(x, mask=ops.convert_to_tensor(MASK))
        flat = ops.reshape(scores, (6, 25))
        return ops.sum(multilabel_categorical_crossentropy(ops.zeros((6, 25)), flat))

    scores = layer(WithMask()([30 * X, MASK]))
    assert mask_of(scores) is None
    scores = to_arrays(scores)[0]
    assert np.isfinite(scores).all()
    allowed = MASK[:, None, :, None] & MASK[:, None, None, :] & np.triu(np.ones((5, 5), bool))
    np.testing.assert_array_equal(scores > -1e4, np.broadcast_to(allowed, scores.shape))
    value, gradient = to_arrays(runtime.value_and_grad(loss, X))
    assert np.isfinite(value) and np.isfinite(gradient).all()
    assert (gradient[~MASK] == 0).all() and (gradient[MASK] != 0).any()


@pytest.mark.parametrize("kind", KINDS)
def test_padding_has_no_influence(kind, tolerance):
    layer = kind(2, 4)
    long = to_arrays(layer(WithMask()([X[:2], MASK[:2]])))[0]
    short = to_arrays(layer(X[1:2, :3]))[0]
    np.testing.assert_allclose(long[1:2, :, :3, :3], short, atol=tolerance)


def test_odd_width_with_positions_is_an_error():
    with pytest.raises(ValueError, match="head_size must be even"):
        GlobalPointer(2, 5)
