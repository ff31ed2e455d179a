"""What the other packages build on: Keras itself, tensor helpers, and the few backend-specific primitives."""

import keras
from keras import ops

from bert4x.backend.functions import (
    apply_rotary_position_embeddings,
    gelu_erf,
    gelu_tanh,
    get_activation,
    get_gelu,
    leaky_relu,
    piecewise_linear,
    set_gelu,
    sinusoidal_embeddings,
    swish,
)
from bert4x.backend.graph import graph_nodes, rewired, search_layer, walk_layers
from bert4x.backend.losses import (
    RDropCrossentropy,
    focal_loss,
    multilabel_categorical_crossentropy,
    sequence_accuracy,
    sequence_crossentropy,
    sparse_multilabel_categorical_crossentropy,
    symmetric_divergence,
    token_crossentropy,
    weighted_mean,
)
from bert4x.backend.tensors import (
    align,
    attention_normalize,
    batch_gather,
    combine_masks,
    divisible_temporal_padding,
    flatten,
    is_boolean,
    masked_logit,
    pool1d,
    reshape,
    root_mean_square,
    sequence_masking,
)

__all__ = [
    "K",
    "RDropCrossentropy",
    "align",
    "apply_rotary_position_embeddings",
    "attention_normalize",
    "batch_gather",
    "combine_masks",
    "divisible_temporal_padding",
    "flatten",
    "focal_loss",
    "gelu_erf",
    "gelu_tanh",
    "get_activation",
    "get_gelu",
    "graph_nodes",
    "is_boolean",
    "keras",
    "leaky_relu",
    "masked_logit",
    "multilabel_categorical_crossentropy",
    "ops",
    "piecewise_linear",
    "pool1d",
    "reshape",
    "rewired",
    "root_mean_square",
    "search_layer",
    "sequence_accuracy",
    "sequence_crossentropy",
    "sequence_masking",
    "set_gelu",
    "sinusoidal_embeddings",
    "sparse_multilabel_categorical_crossentropy",
    "swish",
    "symmetric_divergence",
    "token_crossentropy",
    "walk_layers",
    "weighted_mean",
]


def __getattr__(name):
    # `K` is loaded on first use: only users' old scripts need it.
    if name == "K":
        from bert4x.backend import legacy

        return legacy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
