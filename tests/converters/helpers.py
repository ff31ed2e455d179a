"""Tiny sources in real formats, running a converter on them, and what the library computes from the results."""

import importlib
import json

import numpy as np

from bert4x.models import build_transformer_model, open_checkpoint
from bert4x.models.checkpoint import write_safetensors, write_tensorflow
from tests.models.reference_weights import load_checks, rule_weights, to_numpy

LOGITS = {"with_mlm": "linear"}
# Options under which a family shows all of its weights.
OPTIONS = {"bert": LOGITS, "albert": LOGITS, "roformer": LOGITS, "roformer_v2": LOGITS, "nezha": LOGITS}
OPTIONS["electra"] = {"with_discriminator": "linear"}


def convert(program, source, output, *arguments):
    """Run a converter with --check in this process."""
    main = importlib.import_module(f"scripts.convert_checkpoints.{program}").main
    main([str(source), str(output), "--check", *arguments])


def spec_cases(shared_data):
    """{case: its model, config, weights as arrays} of the specification, whose names are those of the releases."""
    cases = load_checks(shared_data.parent / "spec" / "checks_models.json")
    return {name: {**case, "weights": rule_weights(case["weights"])} for name, case in cases.items()}


def items(weights):
    """What the checkpoint writers take."""
    return [(name, array.shape, array.dtype.name, lambda array=array: array) for name, array in weights.items()]


def write_google(folder, config, weights):
    """A directory as Google releases it: configuration and TensorFlow checkpoint."""
    folder.mkdir(parents=True)
    write_json(folder / "bert_config.json", config)
    write_tensorflow(folder / "bert_model.ckpt", items(weights))
    return folder


def write_huggingface(folder, config, weights):
    """A directory in HuggingFace's form: config.json and safetensors."""
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config)
    write_safetensors(folder / "model.safetensors", items(weights))
    return folder


def write_json(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")


def held(path):
    """{name: array} of a checkpoint."""
    with open_checkpoint(path) as checkpoint:
        return {name: checkpoint.read(name) for name in checkpoint.names}


def outputs(source, model=None, checkpoint=None, **options):
    """What the library computes from a directory, or from a configuration and a checkpoint."""
    source = str(source) if not isinstance(source, dict) else source
    model = build_transformer_model(source, checkpoint, model, **options)
    random = np.random.default_rng(0)
    arrays = []
    for tensor in model.inputs:
        high = 2 if tensor.name.endswith("Input-Segment") else 13
        arrays.append(random.integers(0 if high == 2 else 1, high, (2, 6)).astype("int32"))
    return to_numpy(model(arrays if len(arrays) > 1 else arrays[0]))


def assert_same_outputs(ours, wanted, tolerance):
    assert ours.shape == wanted.shape
    assert np.ptp(wanted) > 1e-3  # a constant would prove nothing
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=tolerance)


def assert_same_weights(path, weights):
    """The checkpoint holds exactly these arrays."""
    found = held(path)
    assert set(found) == set(weights)
    for name, array in weights.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name, strict=True)
