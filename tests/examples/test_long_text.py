"""The example of long text: sparse and dense attention on the sample, and the smoke run on real text."""

import pytest

from tests.conftest import ROOT
from tests.examples.conftest import result, run

SCRIPT = "task_long_text_sparse_attention"
SAMPLE = ROOT / "examples" / "datasets" / "iflytek_sample.jsonl"


@pytest.mark.example
def test_learns_from_the_sample(tmp_path):
    flags = ["--data", SAMPLE, "--steps", 20, "--max-length", 64, "--rate", 8, "--lengths", 100, "--output", tmp_path]
    scores = result(run(SCRIPT, *flags, "--variants", "sparse"))
    assert scores["metric"] == scores["sparse"] < scores["baseline"] - 0.5
    assert scores["sparse_100"] > 0
    assert {path.name for path in tmp_path.iterdir()} == {"sparse.weights.h5", "vocab.txt"}


@pytest.mark.slow
def test_every_variant_on_the_sample(tmp_path):
    flags = ["--data", SAMPLE, "--steps", 5, "--max-length", 40, "--rate", 4, "--lengths", "--output", tmp_path]
    variants = ["local", "atrous", "standard"]
    scores = result(run(SCRIPT, *flags, "--variants", *variants))
    assert all(scores[variant] < scores["baseline"] + 1 for variant in variants)


@pytest.mark.slow
def test_smoke_run_passes_on_real_text(shared_data, tmp_path):
    scores = result(run(SCRIPT, "--smoke", "--output", tmp_path))
    assert scores["sparse"] <= 1.03 * scores["standard"]
    assert scores["standard"] < scores["baseline"] - 0.3
