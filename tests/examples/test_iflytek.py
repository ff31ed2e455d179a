"""The three examples on app descriptions: adversarial training, gradient penalty, BERT-of-Theseus."""

import json
import time

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.examples.conftest import result, run, start

SAMPLE = ROOT / "examples" / "datasets" / "iflytek_sample.jsonl"
SHORT = ["--data", SAMPLE, "--max-length", 36, "--batch-size", 16, "--epochs", 1]
REGULARISED = ["task_iflytek_adversarial_training", "task_iflytek_gradient_penalty"]
THESEUS = "task_iflytek_bert_of_theseus"


def rows(path):
    """The records of a file with one JSON object per line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_sample_is_balanced_and_without_repetitions():
    records = rows(SAMPLE)
    assert len(records) == len({row["sentence"] for row in records}) == 192
    assert set(np.unique([row["label"] for row in records], return_counts=True)[1]) == {32}
    assert len({(row["label"], row["label_des"]) for row in records}) == 6


@pytest.mark.example
@pytest.mark.parametrize("script", REGULARISED)
def test_learns_from_the_sample(script, tmp_path):
    scores = result(run(script, *SHORT, "--output", tmp_path))
    assert scores["metric"] > scores["baseline"] + 0.3 and scores["epsilon"] > 0
    assert scores["baseline"] < scores["naive_bayes"] <= scores["ceiling"] == 1
    answers, gold = rows(tmp_path / "predictions.jsonl"), rows(SAMPLE)[153:]
    assert [row["id"] for row in answers] == [str(i) for i in range(39)]
    right = [answer["label"] == row["label"] for answer, row in zip(answers, gold, strict=True)]
    assert np.mean(right) == pytest.approx(scores["metric"])


@pytest.mark.slow
def test_perturbation_changes_what_is_learned(tmp_path):
    short = [*SHORT, "--limit", 32, "--batch-size", 4]
    flags = ([], ["--epsilon", 0], ["--epsilon", 0])
    losses = [run(REGULARISED[0], *short, *more, "--output", tmp_path / str(i)) for i, more in enumerate(flags)]
    losses = [output.split(" loss: ")[-1].split(" ")[0] for output in losses]
    assert losses[0] != losses[1] == losses[2]


@pytest.mark.example
def test_small_model_takes_over_from_the_large_one(tmp_path):
    output = run(THESEUS, *SHORT, "--output", tmp_path)
    scores = result(output)
    assert "3 blocks" in output and "-> 1 blocks" in output
    assert scores["small model"] == scores["metric"] > scores["baseline"] + 0.3
    assert scores["small, after replacing"] > scores["baseline"] + 0.3
    assert len(rows(tmp_path / "predictions.jsonl")) == 39


@pytest.mark.slow
@pytest.mark.parametrize("script, stage", [(REGULARISED[0], "run"), (THESEUS, "replacing")])
def test_goes_on_after_a_kill(script, stage, tmp_path):
    """To the same answers as without it, also where a stage of several was done already."""
    folders = whole, killed = tmp_path / "whole", tmp_path / "killed"
    flags = [*SHORT, "--epochs", 2]
    scores = result(run(script, *flags, "--output", whole))
    process = start(script, *flags, "--output", killed)
    deadline = time.monotonic() + 300
    while not (killed / f"{stage}.npz").exists():
        assert process.poll() is None and time.monotonic() < deadline, "the run ended before it was interrupted"
        time.sleep(0.02)
    process.kill()
    process.communicate()
    resumed = result(run(script, *flags, "--output", killed, "--resume"))
    assert {**resumed, "seconds": 0} == {**scores, "seconds": 0}
    answers = [(folder / "predictions.jsonl").read_bytes() for folder in folders]
    assert answers[0] == answers[1]


@pytest.mark.slow
@pytest.mark.parametrize("script", [*REGULARISED, THESEUS])
def test_fine_tunes_a_checkpoint(script, huggingface_folder, tmp_path):
    """Data in CLUE's own form: a folder with train, dev and test, the last without labels."""
    records = rows(SAMPLE)[:24]
    parts = {"train": records[:16], "dev": records[16:20], "test": [{"id": i, "sentence": "天气"} for i in range(3)]}
    for name, part in parts.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in part]
        (tmp_path / f"{name}.json").write_text("".join(lines), encoding="utf-8")
    short = ["--data", tmp_path, "--epochs", 1, "--batch-size", 2, "--max-length", 12, "--output", tmp_path / "out"]
    output = run(script, "--checkpoint", huggingface_folder, *short)
    assert "16 to train, 4 to validate" in output
    labels = {row["label"] for row in parts["train"]}
    answers = rows(tmp_path / "out" / "predictions.jsonl")
    assert len(answers) == 3 and {row["label"] for row in answers} <= labels


@pytest.mark.slow
@pytest.mark.parametrize("script", [*REGULARISED, THESEUS])
def test_smoke_run_passes_on_real_descriptions(script, shared_data, tmp_path):
    scores = result(run(script, "--smoke", "--output", tmp_path))
    assert scores["metric"] >= (0.17 if script == THESEUS else 0.2) and scores["baseline"] < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("script", REGULARISED)
def test_smoke_run_passes_on_real_reviews(script, shared_data, tmp_path):
    scores = result(run(script, "--smoke", "--data", shared_data / "sentiment", "--output", tmp_path))
    assert scores["metric"] >= 0.75 and scores["naive_bayes"] > 0.85


@pytest.mark.slow
def test_smoke_run_fails_when_nothing_is_learned(shared_data, tmp_path):
    flags = ["--smoke", "--learning-rate", 1e-12, "--batch-size", 1, "--output", tmp_path]
    run(REGULARISED[0], *flags, code=1)
