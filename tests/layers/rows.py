"""The contract table: one row or more for each public layer. A new layer gets its row here.

The name of a row is the layer's class, and what distinguishes the row from the others of that class.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from bert4x.layers import Causal, Packed, Window
from tests.reference import chains, recurrent
from tests.reference import layers as reference

SIZES = {"B": 2, "T": 5, "S": 4}
MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)  # of inputs of length T; the last T - S of S are cut


@dataclasses.dataclass
class Input:
    """An input tensor: letters of SIZES or numbers as shape; ids if `below` is given, else floats or booleans."""

    shape: tuple
    below: int | None = None
    boolean: bool = False
    masked: bool = False

    @property
    def dtype(self):
        return "bool" if self.boolean else "int32" if self.below else "float32"

    def array(self, random, sizes):
        shape = [sizes.get(size, size) for size in self.shape]
        if self.boolean:
            return random.random(shape) < 0.7
        if self.below:
            return random.integers(0, self.below, shape).astype("int32")
        return random.standard_normal(shape).astype("float32")


@dataclasses.dataclass
class Row:
    """The contract of one layer in one use.

    options: arguments of its constructor.       inputs: one is passed alone, several as a list.
    output: shape of the output, or a list of them (caches flattened).
    reference: function(weights, masks of the inputs or True, *arrays) -> expected outputs.
    call: keyword arguments of its call.
    mask: what becomes of the mask of the first masked input: passes, drops, or makes (a mask out of ids).
    ignores: numbers of the inputs whose masked positions have no influence on any output.
    dtype: dtype of the output where that is not the policy's compute dtype; a tuple, None for that, of several.
    """

    options: dict
    inputs: list
    output: tuple | list
    reference: Callable
    call: dict = dataclasses.field(default_factory=dict)
    mask: str = "passes"
    dtype: str | tuple | None = None
    ignores: tuple = ()

    @property
    def outputs(self):
        return self.output if isinstance(self.output, list) else [self.output]


X = Input(("B", "T", 8), masked=True)
Y = Input(("B", "S", 6), masked=True)
IDS = Input(("B", "T"), below=7)
QKV = [X, Y, Y]
HEADS = {"heads": 2, "head_size": 4}


def _keys(mask):
    return mask if mask is True else mask[:, None, None]


def _attend(*, count=2, **fixed):
    """Reference of an attention row whose further inputs are in `fixed` as functions of (*arrays)."""

    def function(w, masks, q, k, v, *more):
        named = {name: f(*more) if callable(f) else f for name, f in fixed.items()}
        allowed = np.logical_and(_keys(masks[2]), named.pop("allowed", True))
        return reference.attention(w, q, k, v, count=count, allowed=allowed, **named)[0]

    return function


def _attend_all(w, masks, q, k, v):
    """Output, keys, values, scores."""
    o, scores = reference.attention(w, q, k, v, count=2, allowed=_keys(masks[2]))
    split = [dense.reshape(*dense.shape[:2], 2, -1) for dense in (
        reference.dense(k, w, "key/"), reference.dense(v, w, "value/"))]
    return [o, *split, scores]


def _norm(**fixed):
    def function(w, masks, x, c=None):
        gamma, beta = w.get("gamma", 1.0), w.get("beta", 0.0)
        if c is not None:
            more_gamma, more_beta = reference.conditions(w, c)
            gamma, beta = gamma + more_gamma, beta + more_beta
        return reference.layer_norm(x, gamma, beta, **fixed)

    return function


def _affine(w, masks, x, c):
    gamma, beta = reference.conditions(w, c, np.tanh)
    return x * (2.0 + gamma) + (w["beta"] + beta)


def _position_rows(w, masks, x, ids):
    return x * (1 + w["embeddings"][ids])


ATTENTION = {
    "MultiHeadAttention": Row(HEADS, QKV, ("B", "T", 8), _attend()),
    "MultiHeadAttention sizes": Row(
        {"heads": 3, "head_size": 2, "key_size": 4, "out_dim": 5, "use_bias": False}, QKV, ("B", "T", 5),
        _attend(count=3),
    ),
    "MultiHeadAttention scores and cache": Row(
        {**HEADS, "return_attention_scores": True, "return_cache": True},
        QKV,
        [("B", "T", 8), ("B", "S", 2, 4), ("B", "S", 2, 4), ("B", 2, "T", "S")],
        _attend_all,
    ),
    "MultiHeadAttention boolean bias [B, T, S]": Row(
        HEADS, [*QKV, Input(("B", "T", "S"), boolean=True)], ("B", "T", 8), _attend(allowed=lambda m: m[:, None]),
        call={"a_bias": True},
    ),
    "MultiHeadAttention two biases": Row(
        HEADS,
        [*QKV, Input(("T", "S"), boolean=True), Input(("B", 2, "T", "S"))],
        ("B", "T", 8),
        _attend(allowed=lambda m, a: m, added=lambda m, a: a),
        call={"a_bias": 2},
    ),
    "MultiHeadAttention typical_relative": Row(
        HEADS, [*QKV, Input(("T", "S", 4))], ("B", "T", 8), _attend(relative=lambda r: r),
        call={"p_bias": "typical_relative"},
    ),
    "MultiHeadAttention t5_relative": Row(
        {**HEADS, "attention_scale": False}, [*QKV, Input(("T", "S", 2))], ("B", "T", 8),
        _attend(t5=lambda t: t, scale=False), call={"p_bias": "t5_relative"},
    ),
    "MultiHeadAttention softmax_plus": Row(
        {**HEADS, "normalization": "softmax_plus"}, QKV, ("B", "T", 8), _attend(method="softmax_plus")
    ),
    "MultiHeadAttention squared_relu": Row(
        {**HEADS, "normalization": "squared_relu"}, QKV, ("B", "T", 8), _attend(method="squared_relu")
    ),
    "MultiHeadAttention remat": Row({**HEADS, "remat": True}, QKV, ("B", "T", 8), _attend()),
    "MultiHeadAttention fused": Row(
        {**HEADS, "fused": True}, [*QKV, Input(("B", "T", "S"), boolean=True)], ("B", "T", 8),
        _attend(allowed=lambda m: m[:, None]), call={"a_bias": True},
    ),
}

def _talk(w, masks, q, k, v, *more):
    mixes = w["logit_mix/matrix"], w["weight_mix/matrix"]
    return reference.attention(
        w, q, k, v, count=2, allowed=_keys(masks[2]), added=sum(more), mixes=mixes
    )[0]


def _synthesize(*modes, count=2):
    """Reference of a Synthesizer with these modes."""

    def function(w, masks, q, k, v):
        shares = reference.softmax(w["mixture"]) if len(modes) > 1 else [1.0]
        parts = [reference.synthetic_scores(w, q, k, mode, count) for mode in modes]
        scores = sum(share * part for share, part in zip(shares, parts, strict=True))
        return reference.attention(w, q, k, v, count=count, allowed=_keys(masks[2]), synthetic=scores)[0]

    return function


def _gate(**fixed):
    """Reference of a gated attention unit; its mask is that of the keys."""

    def function(w, masks, x, *others):
        mask = masks[2] if others else masks[0]
        allowed = mask if mask is True else mask[:, None]
        return reference.gated_unit(w, x, others, units=6, allowed=allowed, **fixed)

    return function


def _gate_with_biases(w, masks, x, allowed, added):
    allowed = masks[0][:, None] & allowed
    return reference.gated_unit(w, x, units=6, allowed=allowed, added=added)


SELF = [X, X, X]
LENGTHS = {**HEADS, "max_length": 8}
GATED = {"units": 6, "key_size": 4}

VARIANTS = {
    "TalkingHeadsAttention": Row(HEADS, QKV, ("B", "T", 8), _talk, ignores=(1, 2)),
    "TalkingHeadsAttention more heads, biases": Row(
        {**HEADS, "softmax_heads": 3, "mix_initializer": "glorot_uniform"},
        [*QKV, Input(("B", 3, "T", "S"))], ("B", "T", 8), _talk, call={"a_bias": 1}, ignores=(1, 2),
    ),
    "SynthesizerAttention": Row(LENGTHS, SELF, ("B", "T", 8), _synthesize("dense"), ignores=(2,)),
    "SynthesizerAttention factorized_dense": Row(
        {**LENGTHS, "mode": "factorized_dense", "factors": [3, 4]}, SELF, ("B", "T", 8),
        _synthesize("factorized_dense"), ignores=(2,),
    ),
    "SynthesizerAttention random": Row(
        {**LENGTHS, "mode": "random"}, SELF, ("B", "T", 8), _synthesize("random"), ignores=(2,)
    ),
    "SynthesizerAttention fixed_random": Row(
        {**LENGTHS, "mode": "fixed_random"}, SELF, ("B", "T", 8), _synthesize("fixed_random"), ignores=(2,)
    ),
    "SynthesizerAttention factorized_random": Row(
        {**LENGTHS, "mode": "factorized_random", "rank": 2}, SELF, ("B", "T", 8), _synthesize("factorized_random"),
        ignores=(2,),
    ),
    "SynthesizerAttention mixture": Row(
        {**LENGTHS, "mode": ["dot", "random", "dense"], "hidden_units": 3}, SELF, ("B", "T", 8),
        _synthesize("dot", "random", "dense"), ignores=(1, 2),
    ),
    "GatedAttentionUnit two biases": Row(  # the float one makes some scores positive
        GATED, [X, Input(("B", "T", "T"), boolean=True), Input(("T", "T"))], ("B", "T", 8), _gate_with_biases,
        call={"a_bias": 2},
    ),
    "GatedAttentionUnit softmax_plus": Row(
        {**GATED, "normalization": "softmax_plus"}, [X], ("B", "T", 8), _gate(method="softmax_plus")
    ),
    "GatedAttentionUnit cross": Row(
        {**GATED, "self_attention": False, "use_bias": False}, QKV, ("B", "T", 8), _gate(), ignores=(1, 2)
    ),
}


def _sparse(pattern):
    """Reference of sparse attention: pattern is a function of the distances i - j."""

    def function(w, masks, x):
        places = np.arange(x.shape[1])
        allowed = pattern(places[:, None] - places) & _keys(masks[0])
        o = reference.attention(w, x, x, x, count=2, allowed=allowed)[0]
        return o if masks[0] is True else o * masks[0][:, :, None]

    return function


SPARSE = {
    "AtrousSelfAttention": Row(
        {**HEADS, "rate": 2}, [X], ("B", "T", 8), _sparse(lambda d: d % 2 == 0), ignores=(0,)
    ),
    "AtrousSelfAttention causal, sizes": Row(
        {**HEADS, "rate": 3, "key_size": 3, "out_dim": 5, "use_bias": False, "causal": True}, [X], ("B", "T", 5),
        _sparse(lambda d: (d % 3 == 0) & (d >= 0)), ignores=(0,),
    ),
    "LocalSelfAttention": Row(
        {**HEADS, "neighbors": 2}, [X], ("B", "T", 8), _sparse(lambda d: abs(d) <= 2), ignores=(0,)
    ),
    "LocalSelfAttention with keys and values": Row(
        {**HEADS, "neighbors": 2, "return_cache": True}, [X], [("B", "T", 8), ("B", "T", 2, 4), ("B", "T", 2, 4)],
        lambda w, m, x: [_sparse(lambda d: abs(d) <= 2)(w, m, x), *(
            reference.dense(x, w, part).reshape(*x.shape[:2], 2, 4) for part in ("key/", "value/"))],
    ),
    "LocalSelfAttention apart, causal": Row(
        {**HEADS, "neighbors": 1, "rate": 2, "causal": True}, [X], ("B", "T", 8),
        _sparse(lambda d: (d == 0) | (d == 2)), ignores=(0,),
    ),
    "SparseSelfAttention": Row(
        {**HEADS, "rate": 3}, [X], ("B", "T", 8), _sparse(lambda d: (abs(d) < 3) | (d % 3 == 0)), ignores=(0,)
    ),
    "SparseSelfAttention causal": Row(
        {**HEADS, "rate": 2, "causal": True}, [X], ("B", "T", 8),
        _sparse(lambda d: ((d < 2) | (d % 2 == 0)) & (d >= 0)), ignores=(0,),
    ),
    "SparseSelfAttention remat": Row(
        {**HEADS, "rate": 3, "remat": True}, [X], ("B", "T", 8), _sparse(lambda d: (abs(d) < 3) | (d % 3 == 0)),
        ignores=(0,),
    ),
}

POSITIONS = {
    "PositionEmbedding": Row(
        {"input_dim": 9, "output_dim": 8}, [X], ("B", "T", 8), lambda w, m, x: x + w["embeddings"][: x.shape[1]]
    ),
    "PositionEmbedding mul, custom ids": Row(
        {"input_dim": 9, "output_dim": 8, "merge_mode": "mul", "custom_position_ids": True},
        [X, Input(("B", "T"), below=9)], ("B", "T", 8), _position_rows,
    ),
    "PositionEmbedding hierarchical": Row(
        {"input_dim": 3, "output_dim": 8, "hierarchical": True}, [X], ("B", "T", 8),
        lambda w, m, x: x + reference.hierarchical(w["embeddings"], x.shape[1], 0.4),
    ),
    "PositionEmbedding concat": Row(
        {"input_dim": 9, "output_dim": 3, "merge_mode": "concat"}, [X], ("B", "T", 11),
        lambda w, m, x: np.concatenate([x, np.repeat(w["embeddings"][None, : x.shape[1]], len(x), 0)], -1),
    ),
    "SinusoidalPositionEmbedding": Row(
        {"output_dim": 8}, [X], ("B", "T", 8), lambda w, m, x: x + reference.sinusoidal(range(x.shape[1]), 8)
    ),
    "SinusoidalPositionEmbedding zero": Row(
        {"output_dim": 6, "merge_mode": "zero"}, [X], (1, "T", 6),
        lambda w, m, x: reference.sinusoidal(range(x.shape[1]), 6)[None], dtype="float32",
    ),
    "SinusoidalPositionEmbedding zero, custom ids": Row(
        {"output_dim": 6, "merge_mode": "zero", "custom_position_ids": True}, [X, Input(("B", "T"), below=99)],
        ("B", "T", 6), lambda w, m, x, ids: reference.sinusoidal(ids, 6), dtype="float32",
    ),
    "RelativePositionEmbedding": Row(
        {"input_dim": 5, "output_dim": 4}, [X, Y], ("T", "S", 4),
        lambda w, m, q, k: w["embeddings"][reference.clipped_offsets(q.shape[1], k.shape[1], 2)], mask="drops",
    ),
    "RelativePositionEmbeddingT5": Row(
        {"input_dim": 8, "output_dim": 2, "max_distance": 6}, [X, Y], ("T", "S", 2),
        lambda w, m, q, k: np.array(
            [[w["embeddings"][reference.t5_bucket(j - i, 8, 6)] for j in range(k.shape[1])] for i in range(q.shape[1])]
        ),
        mask="drops",
    ),
}


def _packed_or_far(w, masks, numbers):
    distance = np.subtract.outer(np.arange(numbers.shape[1]), np.arange(numbers.shape[1]))
    return (numbers[:, :, None] == numbers[:, None, :]) | (abs(distance) >= 3)


REST = {
    "Add": Row({}, [Input(("B", "T", 8)), X], ("B", "T", 8), lambda w, m, a, b: a + b),
    "CausalMask": Row(
        {}, [X], (1, "T", "T"), lambda w, m, x: np.tri(x.shape[1], dtype=bool)[None], mask="drops", dtype="bool"
    ),
    "CausalMask of ids": Row(
        {}, [IDS], (1, "T", "T"), lambda w, m, x: np.tri(x.shape[1], dtype=bool)[None], mask="drops", dtype="bool"
    ),
    "UniLMMask": Row(
        {}, [Input(("B", "T"), below=2)], ("B", "T", "T"), lambda w, m, s: reference.unilm(s), mask="drops",
        dtype="bool",
    ),
    "AttentionMask": Row(
        {"rule": Causal() & Window(3)}, [X], (1, "T", "T"),
        lambda w, m, x: (np.tri(x.shape[1], dtype=bool) & ~np.tri(x.shape[1], k=-3, dtype=bool))[None], mask="drops",
        dtype="bool",
    ),
    "AttentionMask of numbers": Row(
        {"rule": Packed() | ~Window(3)}, [Input(("B", "T"), below=3)], ("B", "T", "T"), _packed_or_far, mask="drops",
        dtype="bool",
    ),
    "CausalMask with a window": Row(
        {"window": 2}, [X], (1, "T", "T"), lambda w, m, x: (np.eye(x.shape[1]) + np.eye(x.shape[1], k=-1) > 0)[None],
        mask="drops", dtype="bool",
    ),
    "CombinedMask": Row(
        {}, [Input((1, "T", "T"), boolean=True), Input(("B", "T"), below=2), Input(("B", "T", "T"), below=2)],
        ("B", "T", "T"), lambda w, m, a, b, c: a & (b[:, None] == 1) & (c == 1), mask="drops", dtype="bool",
    ),
    "Embedding": Row(
        {"input_dim": 7, "output_dim": 4, "mask_zero": True}, [IDS], ("B", "T", 4),
        lambda w, m, ids: w["embeddings"][ids], mask="makes",
    ),
    "Embedding without padding id": Row(
        {"input_dim": 7, "output_dim": 4}, [IDS], ("B", "T", 4), lambda w, m, ids: w["embeddings"][ids], mask="drops"
    ),
    "Embedding dense": Row(
        {"input_dim": 7, "output_dim": 8, "mask_zero": True}, [X], ("B", "T", 7),
        lambda w, m, x: x @ w["embeddings"].T, call={"mode": "dense"},
    ),
    "FeedForward": Row(
        {"units": 12, "activation": "gelu_erf"}, [X], ("B", "T", 8),
        lambda w, m, x: reference.feed_forward(w, x, [reference.gelu]),
    ),
    "FeedForward gated": Row(
        {"units": 12, "activation": ["gelu_tanh", "linear"], "use_bias": False}, [X], ("B", "T", 8),
        lambda w, m, x: reference.feed_forward(w, x, [reference.gelu_tanh, reference.linear]),
    ),
    "FeedForward remat": Row(
        {"units": 12, "activation": "relu", "remat": True}, [X], ("B", "T", 8),
        lambda w, m, x: reference.feed_forward(w, x, [reference.relu]),
    ),
    "FirstToken": Row({}, [X], ("B", 8), lambda w, m, x: x[:, 0], mask="drops"),
    "GlobalAveragePooling1D": Row(
        {}, [X], ("B", 8), lambda w, m, x: reference.mean_pooled(x, m[0]), mask="drops", ignores=(0,)
    ),
    "GlobalMaxPooling1D": Row(
        {}, [X], ("B", 8), lambda w, m, x: reference.max_pooled(x, m[0]), mask="drops", ignores=(0,)
    ),
    "LayerNormalization": Row({}, [X], ("B", "T", 8), _norm()),
    "LayerNormalization RMS": Row(
        {"zero_mean": False, "offset": False, "epsilon": 1e-6}, [X], ("B", "T", 8), _norm(zero_mean=False, epsilon=1e-6)
    ),
    "LayerNormalization conditional": Row(
        {"conditional": True}, [X, Input(("B", 3))], ("B", "T", 8), _norm()
    ),
    "LayerNormalization conditional per position": Row(
        {"conditional": True, "hidden_units": 5}, [X, Input(("B", "T", 3))], ("B", "T", 8), _norm()
    ),
    "ScaleOffset": Row({}, [X], ("B", "T", 8), lambda w, m, x: x * w["gamma"] + w["beta"]),
    "ScaleOffset constant, conditional": Row(
        {"scale": 2, "conditional": True, "hidden_units": 5, "hidden_activation": "tanh"}, [X, Input(("B", 3))],
        ("B", "T", 8), _affine,
    ),
}

TRAINING = {
    "ExpectedEmbedding": Row(
        {}, [Input(("B", "T", 3), masked=True), Input(("B", "T", 3, 8))], ("B", "T", 8),
        lambda w, m, s, e: np.einsum("btk,btkd->btd", np.exp(s) / np.exp(s).sum(-1, keepdims=True), e),
    ),
    "ExpectedEmbedding of one table": Row(
        {}, [Input(("B", "T", 3), masked=True), Input((1, 1, 3, 8))], ("B", "T", 8),
        lambda w, m, s, e: np.exp(s) / np.exp(s).sum(-1, keepdims=True) @ e[0, 0],
    ),
    "PreviousOutputs": Row(
        {}, [X, Input(("B", "T", 8))], ("B", "T", 8), lambda w, m, e, h: np.concatenate([e[:, :1], h[:, :-1]], 1)
    ),
    "PreviousOutputs of some places": Row(
        {}, [X, Input(("B", "T", 8)), Input(("B", "T"), below=2)], ("B", "T", 8),
        lambda w, m, e, h, c: np.where(c[..., None] == 1, np.concatenate([e[:, :1], h[:, :-1]], 1), e),
    ),
    "RandomReplacement": Row({}, [IDS], ("B", "T"), lambda w, m, ids: ids, mask="drops", dtype="int32"),
    "SequenceCrossEntropy": Row(
        {"from_logits": True}, [IDS, X], ("B", "T", 8), lambda w, m, ids, scores: scores, dtype="float32"
    ),
}

LOGITS = Input(("B", "T", 3))
STRUCTURE = {
    "ConditionalRandomField": Row({"lr_multiplier": 3}, [LOGITS], ("B", "T", 3), lambda w, m, x: x),
    "ConditionalRandomField viterbi": Row(
        {}, [LOGITS], ("B", "T"), chains.viterbi, call={"mode": "viterbi"}, dtype="int32"
    ),
    "MaximumEntropyMarkovModel": Row({"lr_multiplier": 3}, [LOGITS], ("B", "T", 3), lambda w, m, x: x),
    "MaximumEntropyMarkovModel low rank": Row(
        {"hidden_dim": 2}, [LOGITS], ("B", "T"),
        lambda w, m, x: chains.viterbi({"trans": w["left"] @ w["right"].T}, m, x),
        call={"mode": "viterbi"}, dtype="int32",
    ),
    "GlobalPointer": Row(
        {"heads": 2, "head_size": 4, "tril_mask": False}, [Input(("B", "T", 8))], ("B", 2, "T", "T"),
        lambda w, m, x: reference.global_pointer(w, x, 2),
    ),
    "GlobalPointer without positions": Row(
        {"heads": 3, "head_size": 3, "tril_mask": False, "RoPE": False, "use_bias": False}, [Input(("B", "T", 8))],
        ("B", 3, "T", "T"), lambda w, m, x: reference.global_pointer(w, x, 3, rotary=False),
    ),
    "EfficientGlobalPointer": Row(
        {"heads": 2, "head_size": 4, "tril_mask": False}, [Input(("B", "T", 8))], ("B", 2, "T", "T"),
        lambda w, m, x: reference.efficient_global_pointer(w, x),
    ),
}

RECURRENT = {
    "AttentionPooling1D": Row(
        {"hidden_dim": 5}, [X], ("B", 8), lambda w, m, x: recurrent.attention_pooled(w, x, m[0]), mask="drops",
        ignores=(0,),
    ),
    "CharacterWordEmbedding": Row(
        {"input_dim": 7, "output_dim": 4}, [IDS, Input(("B", "T", 6))], ("B", "T", 4),
        lambda w, m, ids, v: w["characters/embeddings"][ids] + v @ w["projection/kernel"], mask="makes",
    ),
    "DilatedGatedConv1D": Row(
        {"rate": 2}, [X], ("B", "T", 8), lambda w, m, x: recurrent.gated_convolution(w, x, m[0], rate=2), ignores=(0,)
    ),
    "DilatedGatedConv1D projected": Row(
        {"out_dim": 6, "drop_gate": 0.1}, [X], ("B", "T", 6), lambda w, m, x: recurrent.gated_convolution(w, x, m[0]),
        ignores=(0,),
    ),
    "DilatedGatedConv1D without residual": Row(
        {"out_dim": 6, "kernel_size": 5, "residual": False}, [X], ("B", "T", 6),
        lambda w, m, x: recurrent.gated_convolution(w, x, m[0], residual=False), ignores=(0,),
    ),
    "ONLSTM": Row(
        {"units": 6, "levels": 3, "return_sequences": True, "dropconnect": 0.2}, [X], ("B", "T", 6),
        lambda w, m, x: recurrent.on_lstm(w, x, m[0], levels=3)[0], ignores=(0,),
    ),
    "ONLSTM last": Row(
        {"units": 6, "levels": 2, "input_gate": "one_minus_cumax"}, [X], ("B", 6),
        lambda w, m, x: recurrent.on_lstm(w, x, m[0], levels=2, exclusive=True)[0][:, -1], mask="drops", ignores=(0,),
    ),
    "ONLSTM distances": Row(
        {"units": 6, "levels": 3, "return_sequences": True, "return_distances": True}, [X],
        [("B", "T", 6), ("B", "T"), ("B", "T")], lambda w, m, x: recurrent.on_lstm(w, x, m[0], levels=3), ignores=(0,),
        dtype=(None, "float32", "float32"),
    ),
    "VectorQuantizer": Row(
        {"num_codes": 5, "dim": 8}, [X], ("B", "T", 8),
        lambda w, m, x: w["codebook"][recurrent.nearest(w["codebook"], x)],
    ),
    "VectorQuantizer means, indices": Row(
        {"num_codes": 5, "dim": 8, "ema": True, "restart_below": 0.1, "return_indices": True}, [X],
        [("B", "T", 8), ("B", "T")],
        lambda w, m, x: [w["codebook"][recurrent.nearest(w["codebook"], x)], recurrent.nearest(w["codebook"], x)],
        dtype=(None, "int32"),
    ),
    "VectorQuantizer encode": Row(
        {"num_codes": 5, "dim": 8, "restart_below": 0.1}, [X], ("B", "T"), call={"mode": "encode"}, dtype="int32",
        reference=lambda w, m, x: recurrent.nearest(w["codebook"] + w["shift"], x),
    ),
    "VectorQuantizer decode": Row(
        {"num_codes": 7, "dim": 3}, [IDS], ("B", "T", 3), lambda w, m, ids: w["codebook"][ids], mask="drops",
        call={"mode": "decode"},
    ),
}

for _row in ATTENTION.values():
    _row.ignores = (1, 2)

ROWS = {**ATTENTION, **SPARSE, **VARIANTS, **POSITIONS, **REST, **TRAINING, **STRUCTURE, **RECURRENT}
