"""Tiny models of every generative family with random weights, and a batch for them."""

import keras
import numpy as np

from bert4x.models import build_transformer_model
from bert4x.models.weights import weight_items
from tests.models.reference_weights import randomize, to_numpy

SIZES = {
    "vocab_size": 17,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 20,
    "dropout_rate": 0.1,
}
TABLE = {**SIZES, "max_position": 9, "hidden_act": "gelu"}
PLAIN = {**SIZES, "attention_head_size": 5, "hidden_act": "relu"}
GATED = {**SIZES, "attention_head_size": 5, "hidden_act": ["gelu", "linear"]}
LLAMA = {**SIZES, "hidden_size": 16, "hidden_act": "silu", "num_key_value_heads": 2}

# row -> (model, configuration)
ROWS = {
    "gpt": ("gpt", TABLE),
    "gpt-segments": ("gpt", {**TABLE, "segment_vocab_size": 3}),
    "gpt-shared-segments": ("gpt", {**TABLE, "shared_segment_embeddings": True}),
    "gpt2": ("gpt2", TABLE),
    "gpt2_ml": ("gpt2_ml", TABLE),
    "cpm": ("cpm", TABLE),
    "t5.1.0": ("t5.1.0", PLAIN),
    "t5.1.1": ("t5.1.1", GATED),
    "mt5.1.1": ("mt5.1.1", {**GATED, "num_decoder_layers": 3}),
    "llama": ("llama", LLAMA),
    "llama-tied": ("llama", {**LLAMA, "tie_word_embeddings": True, "attention_head_size": 6, "rope_theta": 1e6}),
    "llama-scaled": ("llama", {**LLAMA, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    "llama-qkv-biases": ("llama", {**LLAMA, "use_qkv_bias": True, "sliding_window": 3}),
    "llama-all-biases": ("llama", {**LLAMA, "use_qkv_bias": True, "use_out_bias": True, "num_key_value_heads": None}),
    "llama-window": ("llama", {**LLAMA, "sliding_window": 2, "num_key_value_heads": 1}),
}
DECODERS = [row for row in ROWS if "t5" not in row]
T5 = [row for row in ROWS if "t5" in row]

IDS = np.array([[3, 7, 1, 12, 5], [9, 2, 4, 0, 0]], "int32")
REAL = IDS != 0
SEGMENTS = np.array([[1, 1, 2, 2, 2], [1, 2, 2, 0, 0]], "int32")
TARGETS = np.array([[0, 4, 8, 2], [0, 1, 11, 6]], "int32")
LOGITS = {"t5": {"with_lm": "linear"}, "other": {"final_activation": "linear"}}


def build(row, checkpoint=None, **options):
    """The builder of a row, with random weights or those of a checkpoint; logits unless told otherwise."""
    model, config = ROWS[row]
    options = {**LOGITS["t5" if "t5" in model else "other"], **options}
    config = {key: value for key, value in config.items() if key not in options}
    builder = build_transformer_model(config, checkpoint, model, return_keras_model=False, **options)
    if checkpoint is None:
        randomize(builder.model)
    return builder


def inputs(model, ids=IDS, targets=TARGETS, segments=SEGMENTS):
    """What a model of ours takes, out of source ids, target ids and segments."""
    named = {"Encoder-Input-Token": ids, "Decoder-Input-Token": targets, "Input-Token": ids, "Input-Segment": segments}
    taken = [keras.ops.convert_to_tensor(named[tensor.name]) for tensor in model.inputs]
    return taken[0] if len(taken) == 1 else taken


def run(builder, **changes):
    """The first output of a builder's model on the batch, as an array."""
    model = getattr(builder, "model", builder)
    outputs = model(inputs(model, **changes))
    return to_numpy(outputs[0] if isinstance(outputs, (list, tuple)) else outputs)


def google_weights(builder):
    """The weights of a builder as {Google name: array}."""
    return {name: read() for name, _, _, read in weight_items(builder, "google")}
