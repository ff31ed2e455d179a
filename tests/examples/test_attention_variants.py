"""The comparison of attention variants end to end."""

import re

import pytest

from tests.conftest import ROOT
from tests.examples.conftest import result, run

SCRIPT = "task_attention_variants"
SAMPLE = ROOT / "examples" / "datasets" / "sentiment_sample.tsv"
SHORT = ["--data", SAMPLE, "--max-length", 20, "--batch-size", 16, "--steps", 60]


@pytest.mark.example
def test_learns_from_the_sample(tmp_path):
    names = ["talking heads", "random"]
    scores = result(run(SCRIPT, *SHORT, "--only", *names, "--output", tmp_path))
    assert set(scores["accuracies"]) == set(names)
    assert scores["metric"] == min(scores["accuracies"].values()) > scores["baseline"] + 0.1
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    sizes = [int(row.split("|")[4].replace(",", "")) for row in table.splitlines()[2:]]
    projection = 128 * 128 + 128
    assert sizes == [2 * (4 * projection + 2 * 4 * 4), 2 * (2 * projection + 4 * 20 * 20)]


@pytest.mark.slow
def test_pretrained_weights_go_into_every_variant(huggingface_folder, tmp_path):
    short = [*SHORT[:-2], "--steps", 2, "--limit", 20]
    output = run(SCRIPT, *short, "--checkpoint", huggingface_folder, "--output", tmp_path)
    assert len(result(output)["accuracies"]) == 12


@pytest.mark.slow
def test_smoke_run_passes_on_real_reviews(shared_data, tmp_path):
    output = run(SCRIPT, "--smoke", "--output", tmp_path)
    assert len(re.findall(r"ms$", output, re.M)) == 7
    assert result(output)["metric"] > result(output)["baseline"] + 0.15
