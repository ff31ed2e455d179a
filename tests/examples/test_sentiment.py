"""The sentiment example end to end: learning, fine-tuning, resuming, and the smoke run on real data."""

import json
import time

import pytest

from tests.conftest import ROOT
from tests.examples.conftest import result, run, start

SAMPLE = ROOT / "examples" / "datasets" / "sentiment_sample.tsv"
SHORT = ["--data", SAMPLE, "--max-length", 20, "--batch-size", 16, "--epochs", 3]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A short run on the bundled sample: (what it printed, its folder)."""
    folder = tmp_path_factory.mktemp("sentiment")
    return run("task_sentiment", *SHORT, "--output", folder), folder


def test_sample_is_balanced_and_without_repetitions():
    rows = [line.split("\t") for line in SAMPLE.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == len({text for text, _ in rows}) == 222
    assert [label for _, label in rows].count("1") == 111


def test_learns_from_the_sample(finished):
    output, folder = finished
    scores = result(output)
    assert scores["metric"] > scores["baseline"] + 0.15
    assert 0.5 <= scores["baseline"] < scores["naive_bayes"] <= scores["ceiling"] == 1
    assert "learning_rate: " in output and "best_score: " in output
    lines = [json.loads(line) for line in (folder / "test_predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["id"] for line in lines] == [str(i) for i in range(45)]
    texts = [line.split("\t") for line in SAMPLE.read_text(encoding="utf-8").splitlines()][-45:]
    labels = [["negative", "positive"][int(label)] for _, label in texts]
    right = sum(line["label"] == label for line, label in zip(lines, labels, strict=True))
    assert right / 45 == pytest.approx(scores["metric"])
    assert (folder / "best.weights.h5").is_file() and not (folder / "run.npz").exists()


@pytest.mark.example
def test_goes_on_after_an_interruption(finished, tmp_path):
    process = start("task_sentiment", *SHORT, "--output", tmp_path)
    deadline = time.monotonic() + 300
    while not (tmp_path / "run.npz").exists():
        assert process.poll() is None and time.monotonic() < deadline, "the run ended before it was interrupted"
        time.sleep(0.02)
    process.kill()
    process.communicate()
    output = run("task_sentiment", *SHORT, "--output", tmp_path, "--resume")
    assert "Going on after epoch" in output and "Epoch 1/3" not in output and "Epoch 3/3" in output
    assert result(output)["metric"] == result(finished[0])["metric"]
    predictions = [(folder / "test_predictions.jsonl").read_bytes() for folder in (tmp_path, finished[1])]
    assert predictions[0] == predictions[1]


def test_fine_tunes_a_checkpoint(huggingface_folder, tmp_path):
    short = ["--data", SAMPLE, "--epochs", 1, "--limit", 16, "--batch-size", 4, "--max-length", 20]
    output = run("task_sentiment", "--checkpoint", huggingface_folder, *short, "--output", tmp_path)
    assert "16 to train, 16 to validate, 16 to test" in output
    assert "2 layers" in output and not (tmp_path / "vocab.txt").exists()
    assert "learning_rate: 2.2000e-06" in output  # of the last of 100 steps: a tenth of 2e-5 is reached one later


@pytest.mark.slow
def test_smoke_run_passes_on_real_reviews(shared_data, tmp_path):
    scores = result(run("task_sentiment", "--smoke", "--output", tmp_path))
    assert scores["metric"] >= 0.75 and 0.5 <= scores["baseline"] < 0.51
    assert set(scores) >= {"metric", "baseline", "ceiling", "seconds"}


@pytest.mark.slow
def test_smoke_run_fails_when_nothing_is_learned(shared_data, tmp_path):
    run("task_sentiment", "--smoke", "--learning-rate", 1e-12, "--batch-size", 1, "--output", tmp_path, code=1)
