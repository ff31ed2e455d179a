"""What a pretrained checkpoint is worth: fine-tuned from it, and from scratch with the same configuration.

    python scripts/pretrain/worth.py examples/pretrained/bert_tiny_zh ../shared/data    # 5 tasks, 3 seeds

Both get the same data, head, epochs, schedule and seeds, and the best of --rates each, found with the first seed on
validation data. Classes and tags are predicted by a softmax; words and entities are scored as ranges of characters.
"""

import argparse
import gzip
import json
import os
import statistics
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import train

from bert4x.backend import keras
from bert4x.layers import FirstToken
from bert4x.models import build_transformer_model
from bert4x.optimizers import Adam, extend_with_piecewise_linear_lr
from bert4x.snippets import (
    entities_to_tags,
    read_entities,
    sequence_padding,
    set_seed,
    tags_to_entities,
)
from bert4x.snippets.metrics import entity_score
from bert4x.tokenizers import Tokenizer

BATCH = 32


def lines(path):
    """The lines of a packed file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [line.rstrip("\n") for line in file if line.strip()]


def sentiment(data):
    """(train, valid, test) of 1,000, 500 and 2,111 reviews with classes."""
    train, test = (
        [tuple(line.rsplit("\t", 1)) for line in lines(data / f"sentiment/sentiment.{part}.tsv.gz")]
        for part in ("train", "test")
    )
    return train[:1000], train[1000:1500], test


def few_shot(data):
    """All labelled reviews of the five small sets, of which 32 validate; 610 to test."""
    train, test = (
        [(row["sentence"], row["label"]) for row in map(json.loads, lines(data / f"fewclue/eprstmt.{part}.jsonl.gz"))]
        for part in ("train_few_all", "test_public")
    )
    train = list(dict.fromkeys(train))  # the sets overlap
    train = [train[i] for i in np.random.default_rng(0).permutation(len(train))]
    return train[32:], train[:32], test


def pairs(data):
    """Pairs of questions, with or without the same meaning."""
    train, test = (
        [((a, b), label) for a, b, label in (line.split("\t") for line in lines(data / f"similarity/lcqmc.{part}.gz"))]
        for part in ("dev.tsv", "test.tsv")
    )
    return train[:4000], train[4000:5000], test[:4000]


def entities(data):
    """Sentences of CVs with named entities."""
    train, valid, test = (read_entities(data / f"ner/resume.{part}.txt.gz") for part in ("train", "dev", "test"))
    return train[:2000], valid, test


def words(data):
    """Sentences of a newspaper; every word is a range of the type `word`."""
    train, test = (
        [_ranges(line.split()) for line in lines(data / f"cws/people_daily98.{part}.utf8.gz")]
        for part in ("train", "dev")
    )
    return train[:1500], train[1500:1800], test


def _ranges(parts, room=62):
    """(text, [(start, end, "word")]) of as many words as there is room for."""
    ends = np.cumsum([len(part) for part in parts])
    ends = ends[ends <= room].tolist()
    text = "".join(parts)[: max(ends, default=0)]
    return text, [(start, end, "word") for start, end in zip([0, *ends[:-1]], ends, strict=True)] if ends else []


# name: (reader, longest input, epochs, what is measured)
TASKS = {
    "sentiment, 1,000 reviews": (sentiment, 64, 4, "accuracy"),
    "few-shot sentiment, 99 reviews": (few_shot, 64, 20, "accuracy"),
    "sentence pairs, 4,000 of questions": (pairs, 40, 3, "accuracy"),
    "named entities, 2,000 sentences": (entities, 64, 4, "entity F1"),
    "word segmentation, 1,500 sentences": (words, 64, 4, "word F1"),
}


class Classes:
    """Texts or pairs -> one of the classes."""

    def __init__(self, records):
        self.names = sorted({label for _, label in records})

    def head(self, bert):
        """The tensor of class probabilities."""
        return keras.layers.Dense(len(self.names), "softmax")(FirstToken()(bert.output))

    def target(self, label, spans):
        """The number of a class."""
        return self.names.index(label)

    def score(self, records, spans, predictions):
        """Accuracy."""
        return np.mean([self.names[p.argmax()] == label for p, (_, label) in zip(predictions, records, strict=True)])


class Ranges:
    """Texts -> ranges of characters with types, by a tag per token."""

    def __init__(self, records):
        self.types = sorted({kind for _, found in records for *_, kind in found})

    def head(self, bert):
        """The tensor of tag probabilities."""
        return keras.layers.Dense(2 * len(self.types) + 1, "softmax")(bert.output)

    def target(self, found, spans):
        """A tag per token."""
        return entities_to_tags(found, spans, self.types)

    def score(self, records, spans, predictions):
        """F1 over all ranges."""
        found = [
            tags_to_entities(p[: len(row)].argmax(-1), row, self.types)
            for p, row in zip(predictions, spans, strict=True)
        ]
        return entity_score([gold for _, gold in records], found).f1


def encoded(tokenizer, records, kind, length):
    """([ids, segments], targets, spans) padded to one length."""
    rows = [
        tokenizer.encode(*text, maxlen=length) + ([],) if isinstance(text, tuple)
        else tokenizer.encode(text, maxlen=length, offsets=True)
        for text, _ in records
    ]
    inputs = [sequence_padding([row[i] for row in rows], length) for i in range(2)]
    targets = [kind.target(label, row[2]) for (_, label), row in zip(records, rows, strict=True)]
    targets = sequence_padding(targets, length) if isinstance(targets[0], list) else np.array(targets)
    return inputs, targets, [row[2] for row in rows]


def fine_tune(folder, start, task, data, seed, rate):
    """Train once; the scores on the validation and on the test part."""
    reader, length, epochs, _ = TASKS[task]
    parts = reader(data)
    kind = (Classes if isinstance(parts[0][0][1], str) else Ranges)(parts[0])
    tokenizer = Tokenizer(str(folder))
    set_seed(seed)
    checkpoint = {} if start == "pretrained" else {"checkpoint_path": False}
    bert = build_transformer_model(str(folder), dropout_rate=0.1, attention_dropout_rate=0.1, **checkpoint)
    model = keras.Model(bert.inputs, kind.head(bert))
    inputs, targets, _ = encoded(tokenizer, parts[0], kind, length)
    steps = -(-len(targets) // BATCH) * epochs
    schedule = {steps // 10: 1, steps: 0.05}
    optimizer = extend_with_piecewise_linear_lr(Adam)(rate, lr_schedule=schedule, global_clipnorm=1.0)
    # Tags of padding do not count: the mask of the tokens reaches the loss.
    model.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=train.xla())
    model.fit(inputs, targets, batch_size=BATCH, epochs=epochs, verbose=0)

    def score(records):
        inputs, _, spans = encoded(tokenizer, records, kind, length)
        return float(kind.score(records, spans, model.predict(inputs, batch_size=128, verbose=0)))

    return score(parts[1]), score(parts[2])


def compare(task, arguments):
    """{start: (rate, [score of each seed])} of a task."""
    found = {}
    for start in ("pretrained", "scratch"):
        def run(seed, rate, start=start):
            return fine_tune(arguments.checkpoint, start, task, arguments.data, seed, rate)

        first, *others = arguments.seeds
        scores = {rate: run(first, rate) for rate in arguments.rates}
        best = max(scores, key=lambda rate: scores[rate][0])  # on the validation part
        found[start] = best, [scores[best][1], *(run(seed, best)[1] for seed in others)]
    return found


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="folder of a BERT, with its vocabulary")
    parser.add_argument("data", type=Path, help="folder of the shared data")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-4, 1e-3], help="learning rates to choose from")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    arguments = parser.parse_args(argv)
    print("| task | measure | pretrained | from scratch | rates |\n| --- | --- | --- | --- | --- |", flush=True)
    for task in arguments.tasks:
        started = time.perf_counter()
        found = compare(task, arguments)
        cells = [
            f"{statistics.mean(scores):.3f} ({min(scores):.3f}-{max(scores):.3f})" for _, scores in found.values()
        ]
        rates = " and ".join(f"{rate:g}" for rate, _ in found.values())
        print(f"| {task} | {TASKS[task][3]} | {' | '.join(cells)} | {rates} |", flush=True)
        print(f"{time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
