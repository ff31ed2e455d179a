"""The variants of the sentiment example: few labels with VAT, explanations, ALBERT shared and unshared."""

import re

import pytest

from tests.conftest import ROOT
from tests.examples.conftest import result, run

SAMPLE = ROOT / "examples" / "datasets" / "sentiment_sample.tsv"
SHORT = ["--data", SAMPLE, "--max-length", 20, "--batch-size", 16]
VAT, IG, ALBERT = (
    f"task_sentiment_{name}" for name in ("virtual_adversarial_training", "integrated_gradients", "albert")
)


@pytest.mark.example
def test_vat_learns_from_the_sample(tmp_path):
    output = run(VAT, *SHORT, "--labeled", 64, "--epochs", 2, "--steps", 30, "--output", tmp_path)
    assert "64 with label, 69 without, 45 to test" in output
    assert "perturbations of length 0.498" in output  # 0.3 times the mean length of a row of bert_tiny_zh
    scores = result(output)
    assert min(scores["metric"], scores["plain"]) > scores["baseline"] + 0.1
    assert scores["metric"] <= scores["ceiling"] == 1
    assert {"plain.weights.h5", "vat.weights.h5"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.slow
def test_the_unlabelled_half_takes_part(tmp_path):
    """Weight 0 leaves the labelled loss alone; a large one changes what is learned from the same batches."""
    short = [*SHORT, "--labeled", 64, "--epochs", 1, "--steps", 20]
    scores = [result(run(VAT, *short, "--weight", w, "--output", tmp_path)) for w in (0, 1e4)]
    assert scores[0]["plain"] == scores[1]["plain"]
    assert scores[0]["metric"] != scores[1]["metric"]


@pytest.mark.example
def test_explanations_name_what_decides(tmp_path):
    short = [*SHORT, "--epochs", 1, "--explained", 30, "--picture", "reviews.html"]
    output = run(IG, *short, "--output", tmp_path)
    scores = result(output)
    assert scores["accuracy"] > 0.7 and scores["error"] < 0.02
    assert scores["metric"] > scores["baseline"] > scores["smallest"]
    page = (tmp_path / "reviews.html").read_text(encoding="utf-8")
    assert page.count("<h4>") == 20 and "[PAD]" not in page and "right: negative" in page


@pytest.mark.slow
def test_explains_a_checkpoint(huggingface_folder, tmp_path):
    short = ["--epochs", 1, "--limit", 8, "--batch-size", 4, "--max-length", 16, "--points", 5, "--data", SAMPLE]
    output = run(IG, "--checkpoint", huggingface_folder, *short, "--output", tmp_path)
    assert "8 to train, 8 to validate, 8 to test" in output and not (tmp_path / "vocab.txt").exists()
    assert (tmp_path / "attributions.html").is_file()


@pytest.mark.example
def test_albert_shared_and_unshared(tmp_path):
    output = run(ALBERT, *SHORT, "--epochs", 1, "--output", tmp_path)
    scores = result(output)
    assert scores["difference"] <= 1e-6
    assert scores["metric"] == min(scores["shared"], scores["unshared"]) > scores["baseline"] + 0.1
    found = re.search(r"Weights: ([\d,]+) shared and ([\d,]+) unshared", output)
    sizes = [int(number.replace(",", "")) for number in found.groups()]
    block = 4 * (128 * 128 + 128) + 2 * 128 * 512 + 512 + 128 + 4 * 128
    assert sizes[1] - sizes[0] == 2 * block


@pytest.mark.slow
def test_albert_reads_a_checkpoint(tmp_path):
    short = [*SHORT, "--epochs", 1, "--limit", 8, "--batch-size", 4]
    run(ALBERT, *short, "--output", tmp_path)
    output = run(ALBERT, *short, "--checkpoint", tmp_path / "random", "--output", tmp_path / "second")
    assert result(output)["difference"] <= 1e-6 and not (tmp_path / "second" / "random").exists()


@pytest.mark.slow
@pytest.mark.parametrize("script", [VAT, IG, ALBERT])
def test_smoke_run_passes_on_real_reviews(script, shared_data, tmp_path):
    scores = result(run(script, "--smoke", "--output", tmp_path))
    assert scores["metric"] > scores["baseline"]
