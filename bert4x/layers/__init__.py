"""Layers. Importing this package registers them, so that `keras.saving.load_model` finds them."""

from bert4x.layers.attention import MultiHeadAttention
from bert4x.layers.base import Layer
from bert4x.layers.crf import ConditionalRandomField
from bert4x.layers.dgcnn import AttentionPooling1D, CharacterWordEmbedding, DilatedGatedConv1D
from bert4x.layers.embedding import Add, Concatenate1D, Embedding
from bert4x.layers.exposure import ExpectedEmbedding, HighestScores, PreviousOutputs, RandomReplacement
from bert4x.layers.feedforward import FeedForward
from bert4x.layers.gated import GatedAttentionUnit
from bert4x.layers.initializers import DepthScaledNormal, TruncatedNormal
from bert4x.layers.loss import Loss, SequenceCrossEntropy
from bert4x.layers.masks import AttentionMask, CausalMask, CombinedMask, UniLMMask
from bert4x.layers.memm import MaximumEntropyMarkovModel
from bert4x.layers.norms import LayerNormalization, ScaleOffset
from bert4x.layers.onlstm import ONLSTM
from bert4x.layers.pointer import EfficientGlobalPointer, GlobalPointer
from bert4x.layers.pooling import FirstToken, GlobalAveragePooling1D, GlobalMaxPooling1D
from bert4x.layers.positions import (
    PositionEmbedding,
    RelativePositionEmbedding,
    RelativePositionEmbeddingT5,
    Sinusoidal,
    SinusoidalPositionEmbedding,
    SlotPositions,
)
from bert4x.layers.rules import Causal, Packed, Padding, Prefix, Rule, Strided, Window
from bert4x.layers.sparse import AtrousSelfAttention, LocalSelfAttention, SparseSelfAttention
from bert4x.layers.synthesizer import SynthesizerAttention
from bert4x.layers.talking_heads import TalkingHeadsAttention
from bert4x.layers.vq import VectorQuantizer

__all__ = [
    "Add",
    "AtrousSelfAttention",
    "AttentionMask",
    "AttentionPooling1D",
    "Causal",
    "CausalMask",
    "CharacterWordEmbedding",
    "CombinedMask",
    "Concatenate1D",
    "ConditionalRandomField",
    "DepthScaledNormal",
    "EfficientGlobalPointer",
    "DilatedGatedConv1D",
    "Embedding",
    "ExpectedEmbedding",
    "FeedForward",
    "FirstToken",
    "GatedAttentionUnit",
    "GlobalAveragePooling1D",
    "GlobalMaxPooling1D",
    "GlobalPointer",
    "HighestScores",
    "Layer",
    "LayerNormalization",
    "LocalSelfAttention",
    "Loss",
    "MaximumEntropyMarkovModel",
    "MultiHeadAttention",
    "ONLSTM",
    "Packed",
    "Padding",
    "PositionEmbedding",
    "Prefix",
    "PreviousOutputs",
    "RandomReplacement",
    "RelativePositionEmbedding",
    "RelativePositionEmbeddingT5",
    "Rule",
    "ScaleOffset",
    "SequenceCrossEntropy",
    "Sinusoidal",
    "SinusoidalPositionEmbedding",
    "SlotPositions",
    "SparseSelfAttention",
    "Strided",
    "SynthesizerAttention",
    "TalkingHeadsAttention",
    "TruncatedNormal",
    "UniLMMask",
    "VectorQuantizer",
    "Window",
]
