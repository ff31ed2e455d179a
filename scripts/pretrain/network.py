"""The models that are pretrained: a bert4x builder with the heads that an objective asks for."""

import numpy as np

from bert4x.backend import batch_gather, keras, ops
from bert4x.layers import MultiHeadAttention, TalkingHeadsAttention
from bert4x.models import BERT, FAMILIES, build_transformer_model
from bert4x.models.applications import LanguageModel
from bert4x.models.blocks import Pass
from bert4x.models.config import MODEL_TYPES

SHARPNESS = 1.5  # of the local heads: weights of 0.7 or so on the neighbour


class TokensAt(keras.layers.Layer):
    """The hidden states [B, P, D] at the places [B, P] of [B, T, D]."""

    def call(self, inputs):
        return batch_gather(*inputs)

    def compute_mask(self, inputs, previous_mask):
        return None  # which of the places count is told by the weights of the loss

    def compute_output_shape(self, input_shape):
        states, places = input_shape
        return (*places, states[-1])


def build(config, objective, *, checkpoint=None, dropout_rate=0.0, local_heads=False):
    """(model for `fit`, builder) of an objective.

    The model takes and returns what the objective's batches hold: logits named `tokens`, and with sentence order
    probabilities named `order`.

    Args:
        config: configuration, as a dict; its model_type says which family.
        objective: an `objectives.Objective`.
        checkpoint: weights to start from; None: random ones.
        dropout_rate: of the hidden states and the attention.
        local_heads: start as `set_local_heads` says.
    """
    if checkpoint and local_heads:
        raise ValueError("local_heads would overwrite the first layer of the checkpoint; give one of the two.")
    rates = {"dropout_rate": dropout_rate, "attention_dropout_rate": dropout_rate}
    options = {"application": objective.application, "return_keras_model": False, **rates, **_head(config, objective)}
    builder = build_transformer_model(config, checkpoint_path=checkpoint or False, **options)
    if local_heads:
        if "Embedding-Position" not in builder.layers or builder.embedding_size != builder.hidden_size:
            raise ValueError("local_heads need a learned position table as wide as the model; this one has none.")
        set_local_heads(builder)
    make = _masked_model if objective.application == "encoder" else _causal_model
    return make(builder, objective), builder


def _head(config, objective):
    """Options for heads that return logits."""
    name = config.get("model_type", "bert")
    family = FAMILIES.get(MODEL_TYPES.get(name, name), BERT)  # what is unknown is refused where the model is built
    if issubclass(family, LanguageModel):
        if objective.application == "encoder":
            raise ValueError(f"masked words need a relative of BERT; got model_type {name!r}. Use --objective gpt.")
        return {"final_activation": "linear"}
    order = getattr(objective, "sentence_order", False)
    return {"with_mlm": "linear", "with_nsp": order, "output_hidden_states": objective.application == "encoder"}


def _masked_model(builder, objective):
    places = keras.Input((objective.predictions,), dtype="int32", name="places")
    # The builder's layers are used again, so that they are trained though the builder's own outputs are not used.
    if objective.sentence_order:
        states = _states_at(builder, ops.pad(places, ((0, 0), (1, 0))))  # [CLS] before the places
        order = [_named(builder.layers["NSP-Proba"](builder.pool(states)), "order")]
        states = states[:, 1:]
    else:
        states, order = _states_at(builder, places), []
    tokens = _named(builder.mlm(states, Pass()), "tokens")
    return keras.Model([*builder.inputs, places], [tokens, *order])


def _states_at(builder, places):
    """The last hidden states at these places, [B, P, D].

    What only they need is computed for P rows: the head, and in the last block all but the keys and values. Outputs,
    loss and gradients are those of all T rows. The whole last block is walked where its attention may count positions.
    """
    *_, before, last = builder.outputs  # the builder's outputs end with its hidden states
    if _needs_all_queries(builder):
        return TokensAt()([last, places])
    return builder.block(TokensAt()([before, places]), builder.num_blocks - 1, Pass(seen=before))


def _needs_all_queries(builder):
    known = builder.attention_class in (MultiHeadAttention, TalkingHeadsAttention)  # others may count positions
    return not known or builder.attention_position or builder.residual_attention_scores


def _causal_model(builder, objective):
    inputs = list(builder.inputs)
    if len(inputs) == 1:  # GPT has no segments; the batches do
        inputs.append(keras.Input((None,), dtype="int32", name="unused-segments"))
    return keras.Model(inputs, [_named(builder.model.output, "tokens")])


def _named(x, name):
    """The tensor under a name, which losses and metrics then have in the logs."""
    return keras.layers.Activation("linear", dtype="float32", name=name)(x)


def set_local_heads(builder):
    """Start the first layer's heads at a neighbour each: the token before, the one after, two before, two after, ...

    In a causal model: the one before, two before, three before, ...

    Half of the position table are sines of all frequencies up to one in two tokens, the other half slower ones. The
    query of head h is the position turned by its offset, so that q_i k_j is a sum of cosines of j - i - offset, which
    peaks where that is 0. From there all weights are learned as ever. Random vectors take a small model thousands of
    steps, in which it predicts by frequency alone, until it can tell a neighbour.
    """
    width, heads = builder.embedding_size, builder.num_attention_heads
    pairs, used = width // 2, builder.attention_key_size // 2
    uniform = (np.arange(pairs // 2) + 0.5) * np.pi / (pairs // 2)
    rates = np.concatenate([uniform, 10000.0 ** -np.linspace(0.1, 1, pairs - pairs // 2)])
    angles = np.arange(builder.max_position)[:, None] * rates
    size = builder.initializer_range * 2**0.5  # as large as random vectors
    table = np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(builder.max_position, width) * size
    builder.layers["Embedding-Position"].embeddings.assign(table.astype("float32"))
    query, key = np.zeros((2, width, heads, used, 2), "float32")
    for head in range(heads):
        offset = -1 - head if builder.application == "lm" else (head // 2 + 1) * (1 if head % 2 else -1)
        for slot, pair in enumerate(np.linspace(head % 2, pairs // 2 - 1, used).astype(int)):
            sine, cosine = np.sin(offset * rates[pair]), np.cos(offset * rates[pair])
            key[2 * pair, head, slot, 0] = key[2 * pair + 1, head, slot, 1] = SHARPNESS
            # sin(a + b) and cos(a + b) from sin(a) and cos(a)
            query[2 * pair : 2 * pair + 2, head, slot] = SHARPNESS * np.array([[cosine, -sine], [sine, cosine]])
    attention = builder.layers[builder.part(0, "MultiHeadSelfAttention")]
    attention.query.kernel.assign(query.reshape(width, -1))
    attention.key.kernel.assign(key.reshape(width, -1))
