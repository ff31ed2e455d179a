"""Weights for tests: those of the specification's rule, and random ones for a model of ours."""

import json

import keras
import numpy as np

# Absolute tolerance that the file of checks gives for float32; its numbers were computed in float64.
CHECKS_TOLERANCE = 2e-5


def load_checks(path):
    """The cases of a checks file: {name: {model, config, weights, inputs, outputs}}."""
    return json.loads(path.read_text(encoding="utf-8"))["cases"]


def rule_weights(shapes):
    """The values of a case: dict name -> shape becomes dict name -> float32 array, a sine for each name."""
    weights = {}
    for k, name in enumerate(sorted(shapes)):
        a, b = 0.37 + ((k + 1) * 0.6180339887 % 1) * 2.1, (k * 0.291) % 3
        base = np.sin(a * (np.arange(np.prod(shapes[name])) + 1) + b).reshape(shapes[name])
        weights[name] = _scaled(name, base).astype("float32")
    return weights


def _scaled(name, base):
    last = name.split("/")[-1]
    if last in ("gamma", "scale"):
        return 1 + 0.2 * base
    if base.ndim == 1:
        return 0.2 * base
    if "embed" in last or last == "relative_attention_bias":
        return 0.5 * base
    if name == "cls/seq_relationship/output_weights":
        return base
    return base * 1.4 / np.sqrt(min(base.shape))


def randomize(model, seed=0):
    """Give every trained variable of a Keras model random values, biases, norms and the padding row included."""
    random = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        value = random.normal(size=variable.shape)
        value = 0.2 * value if len(variable.shape) == 1 else value / np.sqrt(min(variable.shape))
        variable.assign(1 + value if variable.path.endswith("gamma") else value)
    return model


def to_numpy(tensor):
    """A tensor of any backend as an array."""
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def arrays(model):
    """{path: array} of all variables of a Keras model."""
    return {variable.path: to_numpy(variable) for variable in model.variables}
