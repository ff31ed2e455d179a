"""Families that transformers lacks, against bert4keras 0.11.5 in a process of its own.

It runs where BERT4KERAS_PYTHON names a Python that has it: pip install bert4keras==0.11.5 tf-keras tensorflow
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from bert4x.models import build_transformer_model
from tests.models.reference_weights import randomize
from tests.parity.theirs import call, make_batch

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 44,
    "max_position": 24,
    "segment_vocab_size": 2,
}
# bert4keras knows 'gelu' alone and means the erf form by it.
THEIR_ACTIVATIONS = {"gelu_erf": "gelu"}

# row -> (family, options beside SIZES, family that writes the checkpoint)
ROWS = {
    "nezha": ("nezha", {"hidden_act": "gelu_erf"}, "nezha"),
    "nezha-lm": ("nezha", {"hidden_act": "gelu_erf", "application": "lm"}, "nezha"),
    "roformer_v2": ("roformer_v2", {"hidden_act": "relu"}, "roformer_v2"),
    "roformer_v2-unilm": ("roformer_v2", {"hidden_act": "relu", "application": "unilm"}, "roformer_v2"),
    "albert_unshared": ("albert_unshared", {"hidden_act": "gelu_erf", "embedding_size": 20}, "albert"),
}


@pytest.fixture(scope="module")
def python():
    path = os.environ.get("BERT4KERAS_PYTHON")
    if not path:
        pytest.skip("BERT4KERAS_PYTHON names no Python with bert4keras==0.11.5 and tf-keras")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a checkpoint lies for each row, written by us with random values."""
    folder = tmp_path_factory.mktemp("bert4keras")
    for row, (_, options, writer) in ROWS.items():
        encoder = {name: value for name, value in options.items() if name != "application"}
        model = randomize(build_transformer_model(None, model=writer, with_mlm=True, **SIZES, **encoder))
        model.builder.save_weights_as_checkpoint(folder / f"{row}.ckpt")
    return folder


@pytest.fixture(scope="module")
def theirs(python, folder):
    """What bert4keras computes for all rows, in one process: {'row last' or 'row mlm': array}."""
    ids, segments, _ = make_batch()
    np.savez(folder / "inputs.npz", ids=ids, segments=segments)
    models = {row: {**their_options(*ROWS[row][:2]), "checkpoint_path": str(folder / f"{row}.ckpt")} for row in ROWS}
    job = {"models": models, "inputs": str(folder / "inputs.npz"), "outputs": str(folder / "outputs.npz")}
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    program = Path(__file__).with_name("bert4keras_oracle.py")
    environment = {name: value for name, value in os.environ.items() if name not in ("KERAS_BACKEND", "PYTHONPATH")}
    done = subprocess.run([python, program, folder / "job.json"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(folder / "outputs.npz") as arrays:
        return dict(arrays)


def their_options(family, options):
    activation = THEIR_ACTIVATIONS.get(options["hidden_act"], options["hidden_act"])
    return {**SIZES, **options, "hidden_act": activation, "model": family, "with_mlm": "linear"}


@pytest.mark.parametrize("row", ROWS)
def test_outputs(row, theirs, folder, tolerance):
    """Last hidden states and MLM logits where tokens are."""
    family, options, _ = ROWS[row]
    model = build_transformer_model(
        None,
        folder / f"{row}.ckpt",
        model=family,
        with_mlm="linear",
        output_hidden_states=True,
        **SIZES,
        **options,
    )
    batch = make_batch()
    mlm, *hidden = call(model, batch)
    for ours, their in ((hidden[-1], theirs[f"{row} last"]), (mlm, theirs[f"{row} mlm"])):
        assert ours.shape == their.shape
        ours, their = ours[batch[2]], their[batch[2]]
        assert np.abs(ours - their).max() <= tolerance * max(1.0, np.abs(their).max())
