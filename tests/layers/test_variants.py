"""Talking heads, Synthesizer and gated attention unit: what they equal, decoding by slots, limits, errors."""

import keras
import numpy as np
import pytest
from keras import ops

from bert4x.layers import (
    GatedAttentionUnit,
    MultiHeadAttention,
    SinusoidalPositionEmbedding,
    SynthesizerAttention,
    TalkingHeadsAttention,
)
from tests.layers.helpers import WithMask, assert_close, gradients, randomize, to_arrays, weights_of

B, T, H, K, L = 2, 6, 2, 4, 8
MODES = ["dense", "factorized_dense", "random", "fixed_random", "factorized_random", "dot"]
MODES.append(["dense", "random", "dot"])


def make(kind, *, fresh=False, **options):
    layer = kind(H, K, **options)
    layer.build([(None, None, 8)] * 3)
    if not fresh:
        randomize(layer)
    return layer


def synthesizer(mode, **options):
    return make(SynthesizerAttention, mode=mode, max_length=L, rank=3, **options)


def inputs(length=T, seed=1):
    return ops.convert_to_tensor(np.random.default_rng(seed).standard_normal((B, length, 8)).astype("float32"))


def causal(length=T):
    return ops.convert_to_tensor(np.tri(length, dtype=bool)[None])


# ---- talking heads


@pytest.mark.parametrize("heads", [2, 5])
def test_fresh_talking_heads_equal_plain_attention(heads):
    """Bit for bit, also with more heads in the softmax; and each number of the mixings is trained."""
    plain, x = make(MultiHeadAttention, fused=False), inputs()
    layer = make(TalkingHeadsAttention, fresh=True, softmax_heads=heads)
    layer.set_weights([*plain.get_weights(), *layer.get_weights()[8:]])
    call = {"a_bias": True}
    assert_close(layer([x, x, x, causal()], **call), plain([x, x, x, causal()], **call), 0)
    names = [v.path.split("/", 1)[1] for v in layer.weights]
    assert tuple(names[8:]) == layer.own_weights == ("logit_mix/matrix", "weight_mix/matrix")
    assert [tuple(v.shape) for v in layer.weights[8:]] == [(2, heads), (heads, 2)]
    randomize(layer)
    found = gradients(layer, lambda: ops.sum(layer([x, x, x, causal()], **call) ** 2))
    assert all((found[name] != 0).all() for name in layer.own_weights)


def test_masks_come_between_the_mixings():
    """What is masked has no influence on any head, whatever the signs in the mixings."""
    layer, x = make(TalkingHeadsAttention), to_arrays(inputs())[0]
    other = x.copy()
    other[:, 4:] = 100.0
    want, got = (to_arrays(layer([a, a, a, causal()], a_bias=True))[0] for a in (x, other))
    np.testing.assert_array_equal(got[:, :4], want[:, :4])


# ---- Synthesizer


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("padded", [False, True])
def test_synthesizer_decodes_by_position(mode, padded, tolerance):
    """Chunks in the slots of a cache, where rows begin at other slots, equal one call on rows from position 0."""
    layer, x = synthesizer(mode, return_cache=True), inputs()
    want = to_arrays(layer([x, x, x, causal()], a_bias=True)[0])[0]
    padding = np.array([0, 2] if padded else [0, 0], "int32")
    shifted = np.stack([np.roll(row, by, axis=0) for row, by in zip(to_arrays(x)[0], padding, strict=True)])
    room = 12  # more slots than the layer has positions
    cache = tuple(ops.zeros((B, room, *sizes)) for sizes in layer.cache_sizes)
    slots, start, parts = np.arange(room), 0, []
    for size in (3, 1, 1, 1):
        part = ops.convert_to_tensor(shifted[:, start : start + size])
        allowed = (slots <= slots[start : start + size, None])[None] & (slots >= padding[:, None])[:, None]
        given = {"padding": ops.convert_to_tensor(padding)} if padded else {}
        at = ops.convert_to_tensor(np.int32(start))
        got, cache = layer([part, part, part, allowed], a_bias=True, cache=cache, start=at, **given)
        parts.append(to_arrays(got)[0])
        start += size
    got = np.concatenate(parts, axis=1)
    assert_close(got[0], want[0], tolerance)
    assert_close(got[1, padding[1] :], want[1, : T - padding[1]], tolerance)


def test_mode_dot_is_plain_attention(tolerance):
    plain, x = make(MultiHeadAttention), inputs()
    layer = synthesizer("dot")
    layer.set_weights(plain.get_weights())
    assert_close(layer([x, x, x]), plain([x, x, x]), tolerance)


def test_modes_start_with_equal_shares_and_own_values():
    layer = synthesizer(["random", "fixed_random", "dense"], fresh=True)
    assert to_arrays(layer.mixture)[0].tolist() == [0, 0, 0]
    tables = to_arrays([layer.random_table, layer.fixed_table])
    assert len({float(a[h, 0, 0]) for a in tables for h in range(H)}) == 2 * H
    limit = np.sqrt(6 / (2 * L))  # Glorot's, of one head
    assert all(0.8 * limit < np.abs(a).max() <= limit for a in tables)
    assert {v.path.split("/")[-1] for v in layer.non_trainable_variables} >= {"fixed_table"}
    assert layer.own_weights == [
        "inner_kernel", "inner_bias", "outer_kernel", "outer_bias", "random_table", "fixed_table", "mixture"
    ]
    assert set(layer.own_weights) == {name for name in weights_of(layer) if "/" not in name}


def test_seeded_heads_differ():
    layer = synthesizer("random", fresh=True, synthetic_initializer=keras.initializers.GlorotUniform(seed=3))
    again = synthesizer("random", fresh=True, synthetic_initializer=keras.initializers.GlorotUniform(seed=3))
    table, same = to_arrays([layer.random_table, again.random_table])
    np.testing.assert_array_equal(table, same)
    assert np.abs(table[0] - table[1]).max() > 0.1


def test_parameters_without_biases():
    """layers.md 4: dense d e + e L, factorised d (a + b), random L^2, factorised random 2 L k; for each head."""
    wanted = {"dense": 8 * 8 + 8 * L, "factorized_dense": 8 * (2 + 4), "random": L * L, "factorized_random": 2 * L * 3}
    for mode, count in wanted.items():
        layer = synthesizer(mode, use_bias=False)
        assert sum(int(np.prod(getattr(layer, name).shape)) for name in layer.own_weights) == H * count


@pytest.mark.parametrize("mode", MODES[:5], ids=str)
@pytest.mark.filterwarnings("ignore:The structure of")
def test_more_tokens_than_max_length_are_an_error(mode):
    layer, x = synthesizer(mode), inputs(L + 1)
    with pytest.raises(ValueError, match="max_length=8 tokens; got 9 queries and 9 keys"):
        layer([x, x, x])
    shape = keras.Input((L + 1, 8))
    with pytest.raises(ValueError, match="max_length=8"):
        layer([shape, shape, shape])
    model = keras.Model(x := keras.Input((None, 8)), layer([x, x, x]))
    assert model.predict(np.ones((2, L, 8)), verbose=0).shape == (2, L, 8)
    with pytest.raises(Exception, match="(?i)max_length=8|incompatible|dimension|shape"):  # noqa: B017  each backend's
        model.predict(np.ones((2, L + 1, 8)), verbose=0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mode": "sparse"}, "mode must be one of dense"),
        ({"mode": []}, "mode must be one of"),
        ({"mode": ["dot", "dot"]}, "a list of different ones"),
        ({"mode": "random", "max_length": None}, "needs max_length"),
        ({"mode": "factorized_dense", "factors": [2, 3]}, r"at least max_length 8; got \[2, 3\]"),
        ({"mode": "random", "fused": True}, "SynthesizerAttention has no fused form"),
    ],
)
def test_settings_that_cannot_be(options, message):
    x = inputs()
    with pytest.raises(ValueError, match=message):
        SynthesizerAttention(H, K, **{"max_length": L, **options})([x, x, x])


def test_calls_that_cannot_be():
    x, table = inputs(), SinusoidalPositionEmbedding(K, merge_mode="zero")(inputs())
    with pytest.raises(ValueError, match="which mode='random' has not. Use a list with 'dot'"):
        synthesizer("random")([x, x, x, table], p_bias="rotary")
    assert synthesizer(["random", "dot"])([x, x, x, table], p_bias="rotary").shape == (B, T, 8)
    with pytest.raises(ValueError, match="self-attention; got 6 queries and 4 keys"):
        synthesizer("dense")([x, x[:, :4], x[:, :4]])
    with pytest.raises(ValueError, match="self-attention; got a complete cache"):
        synthesizer("dense")([x, x, x], cache=(ops.zeros((B, 4, 1, 1)), ops.zeros((B, 4, H, K))))


def test_random_scores_depend_on_no_token():
    """The gradient by the states flows through the values alone."""
    layer, x = synthesizer("random", return_attention_scores=True), inputs()
    scores = to_arrays(layer([x, x, x])[1])[0]
    np.testing.assert_array_equal(scores[0], scores[1])
    np.testing.assert_array_equal(scores, to_arrays(layer([-x, x, x])[1])[0])
    assert scores.shape == (B, H, T, T)


# ---- gated attention unit


@pytest.mark.parametrize("normalization", ["squared_relu", "softmax_plus", "softmax"])
@pytest.mark.parametrize("position", [None, "rotary"])
def test_gated_unit_does_not_see_padding(normalization, position, tolerance):
    """Masked keys that are appended change no earlier output."""
    layer = GatedAttentionUnit(6, K, normalization=normalization)
    table = SinusoidalPositionEmbedding(K, merge_mode="zero")
    outputs = []
    for length, extra in ((T, 0), (T + 3, 3)):
        x = np.concatenate([to_arrays(inputs())[0], 9 * np.ones((B, extra, 8), "float32")], axis=1)
        x = WithMask()([x, np.arange(length) < np.array([[T], [4]])])
        bias = ops.ones((length, length))  # so that relu leaves something
        positions = [table(x)] if position else []
        call = {"a_bias": True, "p_bias": position}
        if not layer.built:
            layer([x, bias, *positions], **call)
            randomize(layer)
        outputs.append(to_arrays(layer([x, bias, *positions], **call))[0])
    assert_close(outputs[1][0, :T], outputs[0][0], tolerance)
    assert_close(outputs[1][1, :4], outputs[0][1, :4], tolerance)
    assert np.abs(outputs[0][0] - outputs[0][0, :1]).max() > 1e-2


def test_gated_unit_drops_weights_in_training_only():
    layer, x = GatedAttentionUnit(6, K, normalization="softmax", attention_dropout=0.5), inputs()
    still, once = layer(x), layer(x, training=True)
    assert_close(layer(x), still, 0)
    assert np.abs(to_arrays(once)[0] - to_arrays(still)[0]).max() > 1e-3


def test_gated_unit_refuses_what_it_cannot_do():
    x = inputs()
    with pytest.raises(ValueError, match="'rotary' in the self form; got 'typical_relative'"):
        GatedAttentionUnit(6, K)([x, x], p_bias="typical_relative")
    with pytest.raises(ValueError, match="self_attention=False"):
        GatedAttentionUnit(6, K, self_attention=False)([x, x, x, x], p_bias="rotary")
    with pytest.raises(ValueError, match="expects 3 inputs .* got 1"):
        GatedAttentionUnit(6, K, self_attention=False)(x)
