"""The ON-LSTM language model and the VQ-VAE end to end."""

import json
import re

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.examples.conftest import result, run

VERSE = ROOT / "examples" / "datasets" / "verse_sample.txt"
SMALL = json.dumps({"embedding": 16, "units": 16, "levels": 4, "layers": 1})


def test_verse_sample_has_the_lengths_of_verse():
    lines = VERSE.read_text(encoding="utf-8").split()
    assert len(lines) == len(set(lines)) == 240 and {len(line) for line in lines} == {5, 7}


@pytest.mark.example
def test_on_lstm_learns_the_sample_and_prints_trees_of_its_lines(tmp_path):
    (tmp_path / "small.json").write_text(SMALL, encoding="utf-8")
    flags = ["--data", VERSE, "--config", tmp_path / "small.json", "--epochs", 1, "--learning-rate", 0.01]
    output = run("task_language_model_on_lstm", *flags, "--output", tmp_path)
    scores = result(output)
    assert scores["metric"] < 0.5 and scores["on_lstm"] < scores["unigram"]
    trees = re.findall(r"^  (\(.+\))$", output, re.M)
    lines = set(VERSE.read_text(encoding="utf-8").split())
    assert len(trees) == 12 and all(re.sub(r"[( )]", "", tree) in lines for tree in trees)
    assert "layer 1 awaits  7" in output and 0 <= scores["break"] <= 1
    assert (tmp_path / "on_lstm.weights.h5").is_file() and (tmp_path / "vocab.txt").is_file()


@pytest.mark.slow
def test_on_lstm_beside_an_lstm_from_given_weights(tmp_path):
    (tmp_path / "small.json").write_text(SMALL, encoding="utf-8")
    flags = ["--data", VERSE, "--config", tmp_path / "small.json", "--epochs", 1, "--output", tmp_path]
    both = result(run("task_language_model_on_lstm", *flags, "--cells", "on_lstm", "lstm"))
    assert both["lstm"] < both["unigram"]
    saved = ["--checkpoint", tmp_path / "on_lstm.weights.h5", "--vocab", tmp_path / "vocab.txt"]
    assert result(run("task_language_model_on_lstm", *flags, *saved))["on_lstm"] < both["on_lstm"]


@pytest.mark.slow
def test_on_lstm_smoke_run_passes_on_real_verse(shared_data, tmp_path):
    scores = result(run("task_language_model_on_lstm", "--smoke", "--output", tmp_path))
    assert scores["metric"] <= 0.83 and scores["break"] >= 0.38 and scores["unigram"] == pytest.approx(1020, abs=20)


@pytest.mark.example
@pytest.mark.parametrize("flags", [["--ema"], pytest.param(["--no-restart"], marks=pytest.mark.slow)])
def test_vq_vae_draws_small_images_again(flags, tmp_path):
    pictures = np.zeros((90, 8, 8))
    for number, picture in enumerate(pictures):
        picture[number % 7, 1:7] = 9
        picture[1:7, number // 7 % 7] = 9
    np.savez(tmp_path / "images.npz", images=pictures)
    (tmp_path / "small.json").write_text(json.dumps({"width": 16, "dim": 8, "codes": 16}), encoding="utf-8")
    flags = [*flags, "--data", tmp_path / "images.npz", "--config", tmp_path / "small.json", "--output", tmp_path]
    scores = result(run("task_image_vq_vae", *flags, "--epochs", 30, "--batch-size", 10, "--learning-rate", 0.01))
    assert scores["data"] == "images.npz" and scores["metric"] > 0.3 and scores["perplexity"] > 2
    assert (tmp_path / "reconstruction.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.slow
def test_vq_vae_smoke_run_passes(tmp_path):
    scores = result(run("task_image_vq_vae", "--smoke", "--output", tmp_path))
    assert scores["metric"] >= 0.70 and scores["perplexity"] >= 8
    assert scores["metric"] > scores["pca_4"]
