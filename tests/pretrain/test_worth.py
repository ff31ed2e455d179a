"""The comparison with training from scratch: its five tasks, their scores, and a run of it."""

import gzip
import json

import numpy as np
import pytest
import worth

from bert4x.models import build_transformer_model, save_pretrained
from bert4x.tokenizers import Tokenizer
from tests.pretrain.test_train import BERT


def one_hot(targets, count, length):
    """Predictions that are sure of the targets, padded to a length."""
    if isinstance(targets[0], list):
        targets = [row + [0] * (length - len(row)) for row in targets]
    return np.eye(count)[np.array(targets)]


@pytest.mark.parametrize("task", worth.TASKS)
def test_right_answers_score_one(task, shared_data):
    reader, length, *_ = worth.TASKS[task]
    parts = reader(shared_data)
    tokenizer = Tokenizer(str(shared_data / "vocabs" / "bert_chinese_vocab.txt"), do_lower_case=True)
    assert [len(part) > floor for part, floor in zip(parts, (90, 30, 400), strict=True)] == [True] * 3
    kind = (worth.Classes if isinstance(parts[0][0][1], str) else worth.Ranges)(parts[0])
    records = parts[2][:200]
    inputs, targets, spans = worth.encoded(tokenizer, records, kind, length)
    assert inputs[0].shape == (len(records), length)
    count = len(kind.names) if isinstance(kind, worth.Classes) else 2 * len(kind.types) + 1
    right = one_hot(targets if targets.ndim == 1 else targets.tolist(), count, length)
    # A range that goes beyond the end of an input, or ends inside of a token, cannot be found.
    assert kind.score(records, spans, right) == 1 if targets.ndim == 1 else 0.8 < kind.score(records, spans, right) <= 1
    assert kind.score(records, spans, np.roll(right, 1, axis=-1)) < 0.5


@pytest.mark.slow
def test_compares_both_starts(tmp_path, vocab_file, monkeypatch, capsys):
    """On made-up reviews; the pretrained model is a random one."""
    words = {"好": "Positive", "很": "Negative"}
    rows = [{"sentence": f"{word * 3}{i}", "label": label} for i in range(80) for word, label in words.items()]
    (tmp_path / "fewclue").mkdir()
    for part in ("train_few_all", "test_public"):
        with gzip.open(tmp_path / "fewclue" / f"eprstmt.{part}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    tokenizer = Tokenizer(str(vocab_file), do_lower_case=True)
    model = build_transformer_model({**BERT, "model_type": "bert", "vocab_size": tokenizer._vocab_size})
    save_pretrained(model, tokenizer, tmp_path / "model")
    (name,) = (name for name, row in worth.TASKS.items() if row[0] is worth.few_shot)
    monkeypatch.setitem(worth.TASKS, name, (worth.few_shot, 8, 3, "accuracy"))
    flags = ["--tasks", name, "--seeds", "0", "--rates", "0.01"]
    worth.main([str(tmp_path / "model"), str(tmp_path), *flags])
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(f"| {name}"))
    assert row == f"| {name} | accuracy | 1.000 (1.000-1.000) | 1.000 (1.000-1.000) | 0.01 and 0.01 |"
