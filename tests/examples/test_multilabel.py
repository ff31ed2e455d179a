"""The multi-label example end to end: its losses on the sample, a checkpoint, and the smoke run on real data."""

import json

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.examples.conftest import result, run

SCRIPT = "task_multilabel_classification"
SAMPLE = ROOT / "examples" / "datasets" / "multilabel_sample.jsonl"


def rows(path):
    """The records of a file with one JSON object per line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_sample_has_many_labels_and_no_repetitions():
    records = rows(SAMPLE)
    assert len(records) == len({row["text"] for row in records}) == 240
    assert len({label for row in records for label in row["labels"]}) == 9
    assert 2 < np.mean([len(row["labels"]) for row in records]) < 2.5


@pytest.mark.example
def test_learns_from_the_sample(tmp_path):
    flags = ["--data", SAMPLE, "--max-length", 36, "--batch-size", 16, "--epochs", 2, "--losses", "zlpr"]
    scores = result(run(SCRIPT, *flags, "--output", tmp_path))
    assert scores["metric"] == scores["zlpr"] > scores["baseline"] + 0.3
    assert scores["baseline"] < scores["label_name"] <= scores["ceiling"] == 1
    answers, gold = rows(tmp_path / "zlpr_predictions.jsonl"), rows(SAMPLE)[192:]
    assert [row["text"] for row in answers] == [row["text"] for row in gold]
    pairs = [(set(a["labels"]), set(b["labels"])) for a, b in zip(answers, gold, strict=True)]
    right, total = sum(len(a & b) for a, b in pairs), sum(len(a) + len(b) for a, b in pairs)
    assert 2 * right / total == pytest.approx(scores["zlpr"])


@pytest.mark.slow
def test_fine_tunes_a_checkpoint_with_every_loss(huggingface_folder, tmp_path):
    flags = ["--checkpoint", huggingface_folder, "--data", SAMPLE, "--limit", 8, "--batch-size", 2]
    flags += ["--epochs", 1, "--max-length", 12, "--losses", "sum", "mean", "--output", tmp_path]
    scores = result(run(SCRIPT, *flags))
    assert scores["metric"] == scores["sum"] and 0 <= scores["mean_tuned"] <= 1
    assert {path.name for path in tmp_path.glob("*.h5")} == {"sum.weights.h5", "mean.weights.h5"}


@pytest.mark.slow
def test_smoke_run_passes_on_real_sentences(shared_data, tmp_path):
    scores = result(run(SCRIPT, "--smoke", "--output", tmp_path))
    assert scores["zlpr"] >= max(0.65, scores["sum"] - 0.02)
    assert scores["baseline"] == pytest.approx(0.135, abs=0.001)
    assert scores["label_name"] == pytest.approx(0.614, abs=0.001)
