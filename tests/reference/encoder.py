"""The encoders of the BERT families in NumPy, from a checkpoint in Google naming: what options are compared with."""

import numpy as np

from tests.reference import layers

ACTIVATIONS = {"nezha": layers.gelu_tanh, "albert": layers.gelu_tanh, "albert_unshared": layers.gelu_tanh}


def part(w, prefix):
    """The variables below a prefix: {"kernel": ..., "bias": ...}."""
    return {name.removeprefix(f"{prefix}/"): value for name, value in w.items() if name.startswith(f"{prefix}/")}


def names(family, index):
    """Where the variables of block `index` stand: (query/key/value, output, norm, inner, outer, norm)."""
    if family == "albert":
        block = "bert/encoder/transformer/group_0/inner_group_0"
        ends = ("attention_1/self", "attention_1/output/dense", "LayerNorm", "ffn_1/intermediate/dense",
                "ffn_1/intermediate/output/dense", "LayerNorm_1")
    else:
        block = f"{'electra' if family == 'electra' else 'bert'}/encoder/layer_{index}"
        ends = ("attention/self", "attention/output/dense", "attention/output/LayerNorm", "intermediate/dense",
                "output/dense", "output/LayerNorm")
    return [f"{block}/{end}" for end in ends]


def norm(w, prefix, family, x):
    if family == "roformer_v2":
        return layers.layer_norm(x, epsilon=1e-7, zero_mean=False)
    return layers.layer_norm(x, w[f"{prefix}/gamma"], w[f"{prefix}/beta"])


def embeddings(w, family, ids, segments=None, *, positions=None, hierarchical=None, shared_segments=False):
    """Token + segment + position vectors, their norm, and the map to the model's width where the file has one."""
    body = "electra" if family == "electra" else "bert"
    table = w[f"{body}/embeddings/word_embeddings"]
    x = table[ids]
    if segments is not None:
        x = x + (table if shared_segments else w[f"{body}/embeddings/token_type_embeddings"])[segments]
    if f"{body}/embeddings/position_embeddings" in w:
        rows = w[f"{body}/embeddings/position_embeddings"]
        if hierarchical:
            rows = layers.hierarchical(rows, len(rows) ** 2, hierarchical)
        x = x + (rows[: ids.shape[1]] if positions is None else rows[positions])
    x = norm(w, f"{body}/embeddings/LayerNorm", family, x)
    mapping = "electra/embeddings_project" if family == "electra" else "bert/encoder/embedding_hidden_mapping_in"
    return layers.dense(x, part(w, mapping)) if f"{mapping}/kernel" in w else x


def attend(w, family, prefixes, x, *, count, allowed, added, positions):
    """One attention layer: (output, scores)."""
    attention, out = prefixes
    weights = {**part(w, attention), **{f"out/{name}": value for name, value in part(w, out).items()}}
    length, options = x.shape[1], {}
    if family.startswith("roformer"):
        options["rotary"] = np.arange(length) if positions is None else positions[:, None]
    if family == "nezha":
        width = w[f"{attention}/query/kernel"].shape[1] // count
        table = layers.sinusoidal(range(129), width)
        options["relative"] = table[layers.clipped_offsets(length, length, 64)]
    return layers.attention(weights, x, x, x, count=count, allowed=allowed, added=added, **options)


def hidden_states(
    w, family, ids, segments=None, *, depth, count, application="encoder", mask=None, residual=False, activation=None,
    **options,
):
    """[h_0, ..., h_depth].

    Args:
        w: {Google name: array}.
        mask: further boolean mask, broadcastable to [B, 1, T, T].
        residual: hand the scores on (RealFormer).
        options: of `embeddings`.
    """
    activation = activation or ACTIVATIONS.get(family, layers.gelu)
    real = ids != 0
    real[:, 0] = True
    allowed = real[:, None, None] & (True if mask is None else mask)
    if application == "lm":
        allowed = allowed & np.tri(ids.shape[1], dtype=bool)
    if application == "unilm":
        allowed = allowed & layers.unilm(segments)[:, None]
    states, scores = [embeddings(w, family, ids, segments, **options)], 0.0
    for index in range(depth):
        *attention, first_norm, inner, outer, second_norm = names(family, index)
        x = states[-1]
        y, found = attend(
            w, family, attention, x, count=count, allowed=allowed, added=scores, positions=options.get("positions")
        )
        scores = found if residual else 0.0
        x = norm(w, first_norm, family, x + y)
        y = layers.dense(activation(layers.dense(x, part(w, inner))), part(w, outer))
        states.append(norm(w, second_norm, family, x + y))
    return states


def mlm(w, family, x, activation=None):
    """Logits of the masked language model."""
    activation = activation or ACTIVATIONS.get(family, layers.gelu)
    if family == "roformer_v2":
        mapping = part(w, "bert/encoder/embedding_hidden_mapping_out")
        return (layers.dense(x, mapping) if mapping else x) @ w["bert/embeddings/word_embeddings"].T
    head, body = ("generator_predictions", "electra") if family == "electra" else ("cls/predictions", "bert")
    inner = head if family == "electra" else f"{head}/transform"
    x = norm(w, f"{inner}/LayerNorm", family, activation(layers.dense(x, part(w, f"{inner}/dense"))))
    return x @ w[f"{body}/embeddings/word_embeddings"].T + w[f"{head}/output_bias"]


def pooled(w, x, activation=np.tanh):
    return activation(layers.dense(x[:, 0], part(w, "bert/pooler/dense")))


def nsp(w, x):
    logits = pooled(w, x) @ w["cls/seq_relationship/output_weights"].T + w["cls/seq_relationship/output_bias"]
    return layers.softmax(logits)
