"""Tiny models of every BERT family with random weights, their checkpoints, and a batch to run them on."""

import numpy as np

from bert4x.models import FAMILIES as CLASSES
from bert4x.models import build_transformer_model
from bert4x.models.weights import weight_items
from tests.models.reference_weights import randomize, to_numpy
from tests.reference import encoder

FAMILIES = ("bert", "albert", "albert_unshared", "nezha", "electra", "roformer", "roformer_v2")
PAIRS = [(family, application) for family in FAMILIES for application in ("encoder", "lm", "unilm")]
PAIRS = [pair for pair in PAIRS if pair[0] != "electra" or pair[1] == "encoder"]

CONFIG = {
    "vocab_size": 13,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position": 8,
    "hidden_act": "gelu",
}
LENGTH = 5
IDS = np.array([[3, 7, 1, 12, 5], [9, 2, 4, 0, 0]], "int32")
SEGMENTS = np.array([[0, 0, 1, 1, 1], [0, 1, 1, 0, 0]], "int32")
REAL = IDS != 0


def build(family, application="encoder", checkpoint=None, **options):
    """A builder with random weights, or those of a checkpoint; None removes a key of CONFIG."""
    builder = build_transformer_model(
        {**CONFIG, **_from_files(options)}, checkpoint, family, application, return_keras_model=False, **options
    )
    if checkpoint is None:
        randomize(builder.model)
    return builder


def _from_files(options):
    return {name: options.pop(name) for name in list(options) if name in CONFIG}


def checkpoint_of(builder):
    """The weights of a builder as {Google name: float32 array}."""
    return {name: read() for name, _, _, read in weight_items(builder, "google")}


def double(checkpoint):
    """The same in float64, for the reference."""
    return {name: array.astype("float64") for name, array in checkpoint.items()}


def run(model, *inputs):
    """Outputs as a list of arrays; the inputs are IDS and SEGMENTS as far as the model has them, then those given."""
    model = getattr(model, "model", model)
    arrays = [a for a, names in ((IDS, "Input-Token"), (SEGMENTS, "Input-Segment")) if _has(model, names)]
    arrays += inputs
    outputs = model(arrays if len(arrays) > 1 else arrays[0])
    return [to_numpy(output) for output in (outputs if isinstance(outputs, (list, tuple)) else [outputs])]


def _has(model, name):
    return any(tensor.name.endswith(name) for tensor in model.inputs)


def expected(builder, **options):
    """Hidden states that the NumPy reference computes from a builder's weights."""
    segments = SEGMENTS if builder.segment_vocab_size else None
    family = next(name for name in FAMILIES[::-1] if isinstance(builder, CLASSES[name]))  # parents stand first
    given = {
        "depth": builder.num_hidden_layers,
        "count": builder.num_attention_heads,
        "application": builder.application,
        "residual": builder.residual_attention_scores,
    }
    return encoder.hidden_states(double(checkpoint_of(builder)), family, IDS, segments, **given, **options)


