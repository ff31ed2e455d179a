"""Named entities with a global pointer: a score for each span and type, so that entities may nest.

Data:    --data PATH: a folder with train.*, dev.* and test.*, or the common beginning of such files, or one file, which
         is cut 6 : 2 : 2. One `character tag` per line, an empty line after each sentence; tags O, B-PER, I-PER ...,
         or BMES. Without it: ../shared/data/ner/resume.* beside the repository (3,821 sentences from CVs to train, 477
         to test, 8 types), else 240 sentences made up for this repository, datasets/ner_sample.txt.
Command: python examples/task_ner_global_pointer.py            (the tiny BERT in pretrained/bert_tiny_zh)
         python examples/task_ner_global_pointer.py --smoke    (the same, short)
         python examples/task_ner_global_pointer.py --checkpoint FOLDER_OF_A_CHINESE_BERT
Score:   micro-F1 of entities on the test, --smoke, seed 0: 0.881; with --no-rotary 0.770; a gazetteer of the
         training data 0.520; the most that length 100 allows 0.965.
Time:    --smoke 359 s, 316 s of CPU, on 2 busy cores.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from bert4x.backend import keras, multilabel_categorical_crossentropy, ops
from bert4x.layers import EfficientGlobalPointer, GlobalPointer
from bert4x.models import build_transformer_model
from bert4x.optimizers import Adam, extend_with_piecewise_linear_lr
from bert4x.snippets import (
    BestWeights,
    DataGenerator,
    LearningRateLogger,
    Resume,
    find_splits,
    gazetteer,
    open,
    read_entities,
    sequence_padding,
    set_seed,
)
from bert4x.snippets.metrics import entity_score
from bert4x.tokenizers import Tokenizer

# ---- 1. Settings ----------------------------------------------------------------------------------------------------

HERE = Path(__file__).resolve().parent
TINY = HERE / "pretrained" / "bert_tiny_zh"  # 3 layers of width 192
SHARED = HERE.parents[1] / "shared" / "data" / "ner" / "resume"  # the files begin with it
SAMPLE = HERE / "datasets" / "ner_sample.txt"
PASS_LINE = 0.5  # F1 that --smoke must reach on the shared data

parser = argparse.ArgumentParser(description="Find the named entities of a sentence.")
parser.add_argument("--config", help="configuration; default: the one in --checkpoint")
parser.add_argument("--checkpoint", default=TINY, help="directory, or a file with --config and --vocab (%(default)s)")
parser.add_argument("--vocab", help="vocabulary file; default: the one in --checkpoint")
parser.add_argument("--data", help="folder, beginning of file names, or file; see the head of this script")
parser.add_argument("--epochs", type=int, default=10, help="passes over the training data (%(default)s)")
parser.add_argument("--batch-size", type=int, default=32, help="sentences per optimizer step (%(default)s)")
parser.add_argument("--max-length", type=int, default=128, help="longest input, in tokens (%(default)s)")
parser.add_argument("--learning-rate", type=float, help="default: 1e-3 for the tiny model, 2e-5 for others")
parser.add_argument("--no-rotary", action="store_true", help="without relative positions, to compare")
parser.add_argument("--efficient", action="store_true", help="one product for all types")
parser.add_argument("--seed", type=int, default=0, help="seed of weights, dropout and data order (%(default)s)")
parser.add_argument("--limit", type=int, help="use only this many sentences of each split")
parser.add_argument("--output", default="checkpoints/global_pointer", help="folder for what is written (%(default)s)")
parser.add_argument("--resume", action="store_true", help="go on with the interrupted run in --output")
parser.add_argument("--smoke", action="store_true", help="2 epochs at length 100; fails below a score")
args = parser.parse_args()

started = time.perf_counter()
set_seed(args.seed)
if args.smoke:
    args.epochs, args.max_length = 2, 100
data = Path(args.data or (SHARED if SHARED.parent.is_dir() else SAMPLE))
learning_rate = args.learning_rate or (1e-3 if args.checkpoint == TINY else 2e-5)
output = Path(args.output)
output.mkdir(parents=True, exist_ok=True)

# ---- 2. Data --------------------------------------------------------------------------------------------------------


def read_splits(path):
    """Records for training, validation and test."""
    if not path.is_file():
        return [read_entities(file) for file in find_splits(path)]
    records = read_entities(path)
    first, second = len(records) * 6 // 10, len(records) * 8 // 10
    return [records[:first], records[first:second], records[second:]]


train, dev, test = (records[: args.limit] for records in read_splits(data))
types = sorted({kind for _, entities in train for *_, kind in entities})
(output / "types.json").write_text(json.dumps(types), encoding="utf-8")
print(f"{len(types)} types; {len(train):,} sentences to train, {len(dev):,} to validate, {len(test):,} to test")

tokenizer = Tokenizer(args.vocab or args.checkpoint, do_lower_case=True if args.vocab else None)


def encode(record):
    """Token ids, segment ids, spans of tokens {(type, first, last)}, ranges of characters."""
    ids, segments, spans = tokenizer.encode(record[0], maxlen=args.max_length, offsets=True)
    starts, ends = ({span[side]: i for i, span in enumerate(spans) if span} for side in (0, 1))
    known = [(a, b, kind) for a, b, kind in record[1] if a in starts and b in ends and kind in types]
    return ids, segments, {(types.index(kind), starts[a], ends[b]) for a, b, kind in known}, spans


def entities_of(scores, spans):
    """The entities whose scores [types, T, T] are above 0; [CLS] and [SEP] are in none."""
    found = zip(*np.nonzero(scores[:, : len(spans), : len(spans)] > 0), strict=True)
    return [(spans[i][0], spans[j][1], types[k]) for k, i, j in found if spans[i] and spans[j]]


def inputs_of(records):
    """Token ids and segment ids, padded to one length, because each length is compiled anew."""
    rows = (encode(record)[:2] for record in records)
    return [sequence_padding(part, args.max_length) for part in zip(*rows, strict=True)]


def labels_of(records):
    """1 where a span [start, end] is an entity of a type: [B, types, T, T]."""
    labels = np.zeros((len(records), len(types), args.max_length, args.max_length), "float32")
    for row, record in zip(labels, records, strict=True):
        for place in encode(record)[2]:
            row[place] = 1
    return labels


# ---- 3. Model -------------------------------------------------------------------------------------------------------

bert = build_transformer_model(args.config or args.checkpoint, args.checkpoint)
pointer = EfficientGlobalPointer if args.efficient else GlobalPointer
pointer = pointer(len(types), 64, RoPE=not args.no_rotary, kernel_initializer="glorot_uniform")
model = keras.Model(bert.inputs, pointer(bert.output))


def span_crossentropy(y_true, y_pred):
    """The multi-label loss over all spans, one per record and type."""
    shape = (-1, y_pred.shape[1], args.max_length**2)
    return multilabel_categorical_crossentropy(ops.reshape(y_true, shape), ops.reshape(y_pred, shape))


# ---- 4. Training ----------------------------------------------------------------------------------------------------


def predict(model, records):
    """The entities of each record."""
    found = []
    for part in (records[i : i + 64] for i in range(0, len(records), 64)):  # all scores at once would be large
        for record, scores in zip(part, model.predict(inputs_of(part), batch_size=64, verbose=0), strict=True):
            found.append(entities_of(scores, encode(record)[3]))
    return found


collate = lambda records: (inputs_of(records), labels_of(records))  # noqa: E731
generator = DataGenerator(train, args.batch_size, collate=collate, seed=args.seed)
steps = max(len(generator), 50)  # a small set is passed over several times
schedule = {steps * args.epochs // 10: 1, steps * args.epochs: 0.1}  # linear warm-up, then linearly down
optimizer = extend_with_piecewise_linear_lr(Adam)(learning_rate, lr_schedule=schedule, global_clipnorm=1.0)
model.compile(optimizer, loss=span_crossentropy)
validate = lambda model: entity_score([entities for _, entities in dev], predict(model, dev)).f1  # noqa: E731
best = BestWeights(output / "best.weights.h5", validate, restore=True)
resume = Resume(output / "run.npz", generator, tracked=[best], fresh=not args.resume)
callbacks = [LearningRateLogger(), best, resume]
model.fit(generator.forfit(), steps_per_epoch=steps, epochs=args.epochs, callbacks=callbacks)

# ---- 5. Evaluation --------------------------------------------------------------------------------------------------


def write_submission(records, answers, path):
    """One line of JSON per record, with the entities found."""
    with open(path, "w") as file:
        for (text, _), entities in zip(records, answers, strict=True):
            rows = [{"start": a, "end": b, "type": kind, "text": text[a:b]} for a, b, kind in entities]
            file.write(json.dumps({"text": text, "entities": rows}, ensure_ascii=False) + "\n")


gold, found = [entities for _, entities in test], predict(model, test)
write_submission(test, found, output / "test_predictions.jsonl")
oracle = [entities_of(labels_of([record])[0], encode(record)[3]) for record in test]
result = {"metric": entity_score(gold, found).f1, "baseline": 0.0}
named = gazetteer(train, [text for text, _ in test])  # what to beat
result |= {"gazetteer": entity_score(gold, named).f1, "ceiling": entity_score(gold, oracle).recall}
print(f"Micro-F1 of entities (start, end and type right) in the {len(test):,} sentences of the test:")
for name in ("metric", "gazetteer", "ceiling"):
    print(f"  {name:12}{result[name]:.3f}")
print(json.dumps({"task": "global_pointer", **result, "seconds": round(time.perf_counter() - started, 1)}))
if args.smoke and data == SHARED and result["metric"] < PASS_LINE:
    sys.exit(f"The F1 must be at least {PASS_LINE}.")
