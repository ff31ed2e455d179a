"""Multi-head attention: decoding in chunks with a cache, fused and recomputed forms, weight order, errors."""

import keras
import numpy as np
import pytest
from keras import ops

from bert4x.layers import MultiHeadAttention, RelativePositionEmbeddingT5, SinusoidalPositionEmbedding
from tests.layers.helpers import WithMask, assert_close, gradients, randomize, to_arrays

B, T, H, K = 2, 6, 2, 4


def make(**options):
    """A layer with random weights, for inputs [B, T, 8]."""
    layer = MultiHeadAttention(H, K, **options)
    layer.build([(None, None, 8)] * 3)
    randomize(layer)
    return layer


def inputs(seed=1, length=T):
    return ops.convert_to_tensor(np.random.default_rng(seed).standard_normal((B, length, 8)).astype("float32"))


def causal(length=T):
    return ops.convert_to_tensor(np.tri(length, dtype=bool)[None])


def empty_cache(layer, slots=T):
    sizes = layer.key_size, layer.head_size
    return tuple(ops.zeros((B, slots, layer.heads, size)) for size in sizes)


@pytest.mark.parametrize("chunks", [[1] * T, [2, 3, 1], [T]], ids=str)
def test_chunks_with_a_cache_equal_one_call(chunks, tolerance):
    layer, x = make(return_cache=True, key_size=3), inputs()
    o, (k, v) = layer([x, x, x, causal()], a_bias=True)
    cache, start, parts = empty_cache(layer), 0, []
    for size in chunks:
        part = x[:, start : start + size]
        # Slots that are still empty are not allowed either: causal rows of these tokens.
        bias = causal()[:, start : start + size]
        got, cache = layer([part, part, part, bias], a_bias=True, cache=cache, start=start)
        parts.append(got)
        start += size
    assert_close(ops.concatenate(parts, axis=1), o, tolerance)
    assert_close(cache, (k, v), tolerance)


def test_cache_with_rotary_positions_in_a_compiled_step(tolerance):
    """`start` may be a tensor; keys are stored rotated."""
    layer, x = make(return_cache=True), inputs()
    table = SinusoidalPositionEmbedding(K, merge_mode="zero")(x)
    want, _ = layer([x, x, x, causal(), table], a_bias=True, p_bias="rotary")
    cache = empty_cache(layer)
    for i in range(T):
        part, row = x[:, i : i + 1], table[:, i : i + 1]
        start = ops.convert_to_tensor(np.int32(i))
        bias = causal()[:, i : i + 1]
        got, cache = layer([part, part, part, bias, row], a_bias=True, p_bias="rotary", cache=cache, start=start)
        assert_close(got, want[:, i : i + 1], tolerance)


@pytest.mark.parametrize("bias", ["none", "boolean", "float", "both", "t5"])
@pytest.mark.parametrize("masked", [False, True])
def test_fused_equals_explicit(bias, masked, tolerance):
    random = np.random.default_rng(3)
    boolean = random.random((B, T, T)) < 0.6
    boolean[0, 2] = False  # a query that may see nothing
    number = random.standard_normal((B, H, T, T)).astype("float32")
    x = inputs()
    table = RelativePositionEmbeddingT5(8, H)([x, x])
    extras = {"none": [], "boolean": [boolean], "float": [number], "both": [boolean, number], "t5": [table]}[bias]
    call = {"p_bias": "t5_relative"} if bias == "t5" else {"a_bias": len(extras)}
    if masked:
        x = WithMask()([x, np.arange(T) < np.array([[4], [0]])])  # the second sample is all padding
    outputs = [make(fused=fused)([x, x, x, *extras], **call) for fused in (False, True)]
    assert_close(*outputs, tolerance)


def test_fused_gradients_equal_explicit(tolerances):
    x = WithMask()([inputs(), np.arange(T) < np.array([[4], [0]])])
    boolean = np.random.default_rng(3).random((B, T, T)) < 0.6
    boolean[0, 2] = False
    found = []
    for fused in (False, True):
        layer = make(fused=fused)
        found.append(gradients(layer, lambda layer=layer: ops.sum(layer([x, x, x, boolean], a_bias=True) ** 2)))
    assert all(np.abs(a).max() > 0 for name, a in found[0].items() if name != "key/bias")
    assert_close(list(found[1].values()), list(found[0].values()), tolerances["gradient"] * 10)


@pytest.mark.parametrize(
    "options",
    [{"normalization": "squared_relu"}, {"return_attention_scores": True}, {"attention_dropout": 0.1}],
    ids=str,
)
def test_fused_refuses_what_it_cannot_do(options):
    x = inputs()
    with pytest.raises(ValueError, match="fused=None"):
        make(fused=True, **options)([x, x, x], training=True)


def test_remat_gradients_equal_plain(tolerances):
    x = WithMask()([inputs(), np.arange(T) < np.array([[4], [0]])])
    bias = np.random.default_rng(3).standard_normal((B, H, T, T)).astype("float32")
    call = {"a_bias": 2}
    found = []
    for remat in (False, True):
        layer = make(remat=remat)
        found.append(gradients(layer, lambda layer=layer: ops.sum(layer([x, x, x, causal(), bias], **call) ** 2)))
    assert found[0].keys() == found[1].keys()
    assert_close(list(found[1].values()), list(found[0].values()), tolerances["gradient"])


def test_weight_order():
    """q, k, v, o; kernel before bias: what `set_weights` of old scripts relies on."""
    layer = make(key_size=3, out_dim=5)
    names = [v.path.split("/", 1)[1] for v in layer.weights]
    assert names == [f"{part}/{role}" for part in ("query", "key", "value", "out") for role in ("kernel", "bias")]
    assert [tuple(v.shape) for v in layer.weights[::2]] == [(8, 6), (8, 6), (8, 8), (8, 5)]
    assert len(make(use_bias=False).weights) == 4


def test_kernels_start_different():
    """One initialiser object gives the same values at each call; each kernel needs its own."""
    layer = MultiHeadAttention(H, K, kernel_initializer=keras.initializers.TruncatedNormal(stddev=0.02))
    layer.build([(None, None, 8)] * 3)
    kernels = to_arrays([layer.query.kernel, layer.key.kernel, layer.value.kernel, layer.out.kernel])
    for i, first in enumerate(kernels):
        assert first.std() > 0
        assert all(np.abs(first - other).max() > 1e-3 for other in kernels[i + 1 :])


def test_dropout_acts_on_the_weights_in_training_only():
    layer, x = make(attention_dropout=0.5), inputs()
    still, once, twice = layer([x, x, x]), layer([x, x, x], training=True), layer([x, x, x], training=True)
    assert_close(still, make()([x, x, x]), 0)
    assert np.abs(to_arrays(once)[0] - to_arrays(still)[0]).max() > 0.01
    assert np.abs(to_arrays(once)[0] - to_arrays(twice)[0]).max() > 0.01


def test_scores_are_returned_after_scaling_and_before_masks(tolerance):
    layer, x = make(return_attention_scores=True, key_size=3), inputs()
    plain = layer([x, x, x])[1]
    assert_close(layer([x, x, x, causal()], a_bias=True)[1], plain, tolerance)
    added = ops.ones((B, H, T, T))
    assert_close(layer([x, x, x, added], a_bias=True)[1], plain + 1.0, tolerance)


@pytest.mark.parametrize(
    "extras, call, message",
    [
        ([], {"p_bias": "absolute"}, "p_bias must be one of"),
        ([], {"start": 0}, "start without cache"),
        ([], {"a_bias": True}, "expects 4 inputs .* got 3"),
        ([1], {}, "expects 3 inputs .* got 4"),
    ],
)
def test_errors(extras, call, message):
    x = inputs()
    with pytest.raises(ValueError, match=message):
        make()([x, x, x, *[causal()] * len(extras)], **call)
