"""The models that are pretrained: a bert4x builder with the heads that an objective asks for."""

from bert4x.backend import batch_gather, keras, ops, sinusoidal_embeddings
from bert4x.models import build_transformer_model
from bert4x.models.blocks import Pass


class TokensAt(keras.layers.Layer):
    """The hidden states [B, P, D] at the places [B, P] of [B, T, D].

    The projection to the vocabulary then has only P rows, and the loss on them is the same.
    """

    def call(self, inputs):
        return batch_gather(*inputs)

    def compute_mask(self, inputs, previous_mask):
        return None  # which of the places count is told by the weights of the loss

    def compute_output_shape(self, input_shape):
        states, places = input_shape
        return (*places, states[-1])


def build(config, objective, *, dropout_rate=0.0, sinusoidal=False):
    """(model for `fit`, builder) of an objective.

    The model takes and returns what the objective's batches hold: logits named `tokens`, and with sentence order
    probabilities named `order`.

    Args:
        config: configuration, as a dict; its model_type says which family.
        objective: an `objectives.Objective`.
        dropout_rate: of the hidden states and the attention.
        sinusoidal: start the position table with sines, so that neighbours can be told at once; a small model needs
            many steps to learn that from random vectors.
    """
    rates = {"dropout_rate": dropout_rate, "attention_dropout_rate": dropout_rate}
    options = {"application": objective.application, "return_keras_model": False, **rates, **_head(config, objective)}
    builder = build_transformer_model(config, checkpoint_path=False, **options)
    if sinusoidal:
        set_sinusoidal_positions(builder)
    make = _masked_model if objective.application == "encoder" else _causal_model
    return make(builder, objective), builder


def _head(config, objective):
    """Options for heads that return logits."""
    if config.get("model_type", "bert") != "bert":
        return {"final_activation": "linear"}
    return {"with_mlm": "linear", "with_nsp": getattr(objective, "sentence_order", False)}


def _masked_model(builder, objective):
    places = keras.Input((objective.predictions,), dtype="int32", name="places")
    states = builder.layers["MLM-Dense"].input
    # `mlm` uses the builder's layers again, so that they are trained though the builder's own output is not used.
    outputs = [_named(builder.mlm(TokensAt()([states, places]), Pass()), "tokens")]
    if objective.sentence_order:
        outputs.append(_named(builder.layers["NSP-Proba"].output, "order"))
    return keras.Model([*builder.inputs, places], outputs)


def _causal_model(builder, objective):
    inputs = list(builder.inputs)
    if len(inputs) == 1:  # GPT has no segments; the batches do
        inputs.append(keras.Input((None,), dtype="int32", name="unused-segments"))
    return keras.Model(inputs, [_named(builder.model.output, "tokens")])


def _named(x, name):
    """The tensor under a name, which losses and metrics then have in the logs."""
    return keras.layers.Activation("linear", dtype="float32", name=name)(x)


def set_sinusoidal_positions(builder):
    """Fill the position table with sines of the size that random vectors would have."""
    layer = builder.layers["Embedding-Position"]
    table = sinusoidal_embeddings(ops.arange(builder.max_position, dtype="float32"), builder.embedding_size)
    layer.embeddings.assign(table * (builder.initializer_range * 2**0.5))
