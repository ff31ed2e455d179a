"""Layers. Importing this package registers them, so that `keras.saving.load_model` finds them."""

from bert4x.layers.attention import MultiHeadAttention
from bert4x.layers.base import Layer
from bert4x.layers.embedding import Add, Concatenate1D, Embedding
from bert4x.layers.feedforward import FeedForward
from bert4x.layers.initializers import DepthScaledNormal, TruncatedNormal
from bert4x.layers.masks import CausalMask, CombinedMask, UniLMMask
from bert4x.layers.norms import LayerNormalization, ScaleOffset
from bert4x.layers.pooling import FirstToken, GlobalAveragePooling1D, GlobalMaxPooling1D
from bert4x.layers.positions import (
    PositionEmbedding,
    RelativePositionEmbedding,
    RelativePositionEmbeddingT5,
    Sinusoidal,
    SinusoidalPositionEmbedding,
)

__all__ = [
    "Add",
    "CausalMask",
    "CombinedMask",
    "Concatenate1D",
    "DepthScaledNormal",
    "Embedding",
    "FeedForward",
    "FirstToken",
    "GlobalAveragePooling1D",
    "GlobalMaxPooling1D",
    "Layer",
    "LayerNormalization",
    "MultiHeadAttention",
    "PositionEmbedding",
    "RelativePositionEmbedding",
    "RelativePositionEmbeddingT5",
    "ScaleOffset",
    "Sinusoidal",
    "SinusoidalPositionEmbedding",
    "TruncatedNormal",
    "UniLMMask",
]
