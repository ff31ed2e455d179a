"""The examples of structured prediction: their samples, what they reach on them, the oracle round trip."""

import json

import pytest

from bert4x.snippets import read_entities
from bert4x.snippets.metrics import entity_score, segmentation_score
from tests.conftest import ROOT
from tests.examples.conftest import result, run

DATASETS = ROOT / "examples" / "datasets"
ENTITIES, WORDS = DATASETS / "ner_sample.txt", DATASETS / "cws_sample.utf8"
FLAGS = {
    "task_sequence_labeling_ner_crf": ["--epochs", 2],
    "task_sequence_labeling_ner_memm": ["--epochs", 2, "--hidden-dim", 3],
    "task_ner_global_pointer": ["--epochs", 4, "--batch-size", 16],
}


def test_samples():
    records = read_entities(ENTITIES)
    assert len(records) == len({text for text, _ in records}) == 240
    assert {kind for _, entities in records for *_, kind in entities} == {"LOC", "ORG", "PER"}
    lines = WORDS.read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(set(lines)) == 240 and all("  " in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("script", FLAGS)
def test_entities_of_the_sample(script, tmp_path):
    scores = result(run(script, "--data", ENTITIES, "--max-length", 32, *FLAGS[script], "--output", tmp_path))
    assert scores["metric"] > 0.8 and scores["baseline"] == 0
    assert scores["ceiling"] == 1  # gold, as the model is trained on it, and decoded
    lines = (tmp_path / "test_predictions.jsonl").read_text(encoding="utf-8").splitlines()
    answers, gold = list(map(json.loads, lines)), read_entities(ENTITIES)[192:]
    assert [row["text"] for row in answers] == [text for text, _ in gold]
    found = [[(e["start"], e["end"], e["type"]) for e in row["entities"]] for row in answers]
    assert entity_score([entities for _, entities in gold], found).f1 == pytest.approx(scores["metric"])


@pytest.mark.slow
def test_what_is_cut_off_lowers_the_ceiling(tmp_path):
    flags = ["--data", ENTITIES, "--max-length", 12, "--limit", 20, "--epochs", 1, "--output", tmp_path]
    assert 0 < result(run("task_sequence_labeling_ner_crf", *flags))["ceiling"] < 1


@pytest.mark.slow
def test_words_of_the_sample(tmp_path):
    flags = ["--data", WORDS, "--max-length", 32, "--epochs", 2, "--output", tmp_path]
    scores = result(run("task_sequence_labeling_cws_crf", *flags))
    assert scores["ceiling"] == 1 and scores["metric"] > 0.85 > scores["baseline"]
    answers = (tmp_path / "test_predictions.utf8").read_text(encoding="utf-8").splitlines()
    gold = WORDS.read_text(encoding="utf-8").splitlines()[192:]
    assert segmentation_score(gold, answers).f1 == pytest.approx(scores["metric"])


@pytest.mark.slow
def test_sentences_that_are_cut_into_pieces(tmp_path):
    flags = ["--data", WORDS, "--max-length", 10, "--limit", 20, "--epochs", 1, "--output", tmp_path]
    assert 0.7 < result(run("task_sequence_labeling_cws_crf", *flags))["ceiling"] < 1
    answers = (tmp_path / "test_predictions.utf8").read_text(encoding="utf-8").splitlines()
    gold = WORDS.read_text(encoding="utf-8").splitlines()[192 : 192 + 20]
    assert ["".join(line.split()) for line in answers] == ["".join(line.split()) for line in gold]


@pytest.mark.slow
@pytest.mark.parametrize("script", FLAGS)
def test_fine_tunes_a_checkpoint(script, huggingface_folder, tmp_path):
    flags = ["--checkpoint", huggingface_folder, "--data", ENTITIES, "--limit", 8, "--batch-size", 2]
    scores = result(run(script, *flags, "--epochs", 1, "--max-length", 32, "--output", tmp_path))
    assert 0 <= scores["metric"] <= 1 == scores["ceiling"]


@pytest.mark.slow
@pytest.mark.parametrize("script", [*FLAGS, "task_sequence_labeling_cws_crf"])
def test_smoke_runs_pass_on_real_sentences(script, shared_data, tmp_path):
    scores = result(run(script, "--smoke", "--output", tmp_path))
    assert scores["baseline"] < 0.5 <= scores["metric"]
