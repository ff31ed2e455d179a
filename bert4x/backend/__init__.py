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
from bert4x.backend.graph import search_layer, walk_layers
from bert4x.backend.losses import (
    multilabel_categorical_crossentropy,
    sparse_multilabel_categorical_crossentropy,
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
    "align",
    "apply_rotary_position_embeddings",
    "attention_normalize",
    "batch_gather",
    "combine_masks",
    "divisible_temporal_padding",
    "flatten",
    "gelu_erf",
    "gelu_tanh",
    "get_activation",
    "get_gelu",
    "is_boolean",
    "keras",
    "leaky_relu",
    "masked_logit",
    "multilabel_categorical_crossentropy",
    "ops",
    "piecewise_linear",
    "pool1d",
    "reshape",
    "root_mean_square",
    "search_layer",
    "sequence_masking",
    "set_gelu",
    "sinusoidal_embeddings",
    "sparse_multilabel_categorical_crossentropy",
    "swish",
    "walk_layers",
]


def __getattr__(name):
    # `K` is loaded on first use: only users' old scripts need it.
    if name == "K":
        from bert4x.backend import legacy

        return legacy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
