"""Which events does a sentence report? Any number of 65 types, with the multi-label cross-entropy (ZLPR).

Data:    --data PATH: a folder with train.*, test.* and perhaps dev.*, or the common beginning of such files, or one
         file, which is cut 8 : 2. JSON lines {"text": "...", "labels": ["...", ...]}. Without dev.* a tenth
         of train.* is set aside. Without --data: ../shared/data/multilabel/duee_types.* beside the repository (8,968 to
         train, 1,498 to test), else 240 sentences made up for this repository, datasets/multilabel_sample.jsonl.
Command: python examples/task_multilabel_classification.py            (the tiny BERT in pretrained/bert_tiny_zh)
         python examples/task_multilabel_classification.py --smoke    (the same, short)
         python examples/task_multilabel_classification.py --checkpoint FOLDER_OF_A_CHINESE_BERT
         ... --losses zlpr sum mean    (also binary cross-entropy, summed and averaged over the classes)
Score:   micro- and macro-F1 on the test, --smoke, seed 0; the same with the threshold that is best for validation
             ZLPR                               0.814 0.661    0.816 0.696
             binary cross-entropy, summed       0.540 0.131    0.630 0.255
             (micro) the commonest label 0.135; the last part of the label's name is in the text 0.614
Time:    --smoke 915 s, 617 s of CPU, on 2 busy cores.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from bert4x.backend import keras, multilabel_categorical_crossentropy, ops
from bert4x.layers import GlobalAveragePooling1D
from bert4x.models import build_transformer_model
from bert4x.optimizers import Adam, extend_with_piecewise_linear_lr
from bert4x.snippets import (
    BestWeights,
    DataGenerator,
    LearningRateLogger,
    Resume,
    find_splits,
    open,
    sequence_padding,
    set_seed,
)
from bert4x.snippets.metrics import score
from bert4x.tokenizers import Tokenizer

# ---- 1. Settings ----------------------------------------------------------------------------------------------------

HERE = Path(__file__).resolve().parent
TINY = HERE / "pretrained" / "bert_tiny_zh"  # 3 layers of width 192
SHARED = HERE.parents[1] / "shared" / "data" / "multilabel" / "duee_types"  # the files begin with it
SAMPLE = HERE / "datasets" / "multilabel_sample.jsonl"
THRESHOLDS = sorted(np.arange(-4, 2.1, 0.25), key=abs)  # of equally good ones the nearest to 0 is taken
PASS_LINE = 0.65  # micro-F1 that --smoke must reach on the shared data

parser = argparse.ArgumentParser(description="Find all classes of a sentence.")
parser.add_argument("--config", help="configuration; default: the one in --checkpoint")
parser.add_argument("--checkpoint", default=TINY, help="directory, or a file with --config and --vocab (%(default)s)")
parser.add_argument("--vocab", help="vocabulary file; default: the one in --checkpoint")
parser.add_argument("--data", help="folder, beginning of file names, or file; see the head of this script")
parser.add_argument("--losses", nargs="+", choices=("zlpr", "sum", "mean"), default=["zlpr"], help="one model each")
parser.add_argument("--epochs", type=int, default=8, help="passes over the training data (%(default)s)")
parser.add_argument("--batch-size", type=int, default=32, help="sentences per optimizer step (%(default)s)")
parser.add_argument("--max-length", type=int, default=82, help="longest input, in tokens (%(default)s)")
parser.add_argument("--learning-rate", type=float, help="default: 1e-3 for the tiny model, 2e-5 for others")
parser.add_argument("--seed", type=int, default=0, help="seed of weights, dropout and data order (%(default)s)")
parser.add_argument("--limit", type=int, help="use only this many sentences of each split")
parser.add_argument("--output", default="checkpoints/multilabel", help="folder for what is written (%(default)s)")
parser.add_argument("--resume", action="store_true", help="go on with the interrupted run in --output")
parser.add_argument("--smoke", action="store_true", help="400 steps with zlpr and with sum; fails below a score")
args = parser.parse_args()

started = time.perf_counter()
if args.smoke:
    args.epochs, args.losses = 2, ["zlpr", "sum"]
data = Path(args.data or (SHARED if SHARED.parent.is_dir() else SAMPLE))
learning_rate, output = args.learning_rate or (1e-3 if args.checkpoint == TINY else 2e-5), Path(args.output)
output.mkdir(parents=True, exist_ok=True)

# ---- 2. Data --------------------------------------------------------------------------------------------------------


def read_records(path):
    """[(text, set of labels)] of a file, which may be zipped."""
    with open(path) as file:
        return [(row["text"], set(row["labels"])) for row in map(json.loads, filter(str.strip, file))]


def read_splits(path):
    """Records for training, validation and test."""
    if path.is_file():
        records = read_records(path)
        train, dev, test = records[: len(records) * 8 // 10], [], records[len(records) * 8 // 10 :]
    else:
        train, dev, test = (read_records(file) if file else [] for file in find_splits(path))
    if not dev:
        np.random.default_rng(0).shuffle(train)
        train, dev = train[: len(train) * 9 // 10], train[len(train) * 9 // 10 :]
    return train, dev, test


train, dev, test = (records[: args.limit] for records in read_splits(data))
labels = sorted(set.union(*(found for _, found in train)))
print(f"{len(labels)} classes; {len(train):,} sentences to train, {len(dev):,} to validate, {len(test):,} to test")

tokenizer = Tokenizer(args.vocab or args.checkpoint, do_lower_case=True if args.vocab else None)


def collate(records):
    """Records -> ([token ids, segment ids], 1 where a label applies), padded to one length: each is compiled anew."""
    rows = [tokenizer.encode(text, maxlen=args.max_length) for text, _ in records]
    token_ids, segment_ids = (sequence_padding(ids, args.max_length) for ids in zip(*rows, strict=True))
    return [token_ids, segment_ids], np.array([[label in found for label in labels] for _, found in records], "float32")


# ---- 3. Model -------------------------------------------------------------------------------------------------------


def build_model():
    """A BERT, the mean of its last states, a score for each class."""
    bert = build_transformer_model(args.config or args.checkpoint, args.checkpoint)
    head = keras.layers.Dense(len(labels), kernel_initializer=bert.builder.initializer)  # no sigmoid, no softmax
    return keras.Model(bert.inputs, head(GlobalAveragePooling1D()(bert.output)))


def crossentropy_sum(y_true, y_pred):
    """One yes-or-no question per class, their losses added up."""
    return ops.sum(ops.softplus(y_pred) - y_true * y_pred, axis=-1)


FUNCTIONS = {"zlpr": multilabel_categorical_crossentropy, "sum": crossentropy_sum}
# Averaged, as Keras does it: of many classes the few that apply hardly count, and none is learned.
FUNCTIONS["mean"] = lambda y_true, y_pred: crossentropy_sum(y_true, y_pred) / len(labels)

# ---- 4. Training ----------------------------------------------------------------------------------------------------


def f1(targets, scores, threshold=0.0):
    """(micro, macro): F1 of all answers together, and the mean of the classes that occur."""
    right, answers, gold = ((x > 0).sum(0) for x in (targets * (scores > threshold), scores > threshold, targets))
    macro = np.mean([score(*row).f1 for row in zip(right, answers, gold, strict=True) if row[2]])
    return score(right.sum(), answers.sum(), gold.sum()).f1, float(macro)


def train_model(loss):
    """A model trained with this loss, as it was after the best epoch."""
    set_seed(args.seed)
    model = build_model()
    generator = DataGenerator(train, args.batch_size, collate=collate, seed=args.seed)
    steps = 200 if args.smoke else max(len(generator), 50)  # a small set is passed over several times
    schedule = {steps * args.epochs // 10: 1, steps * args.epochs: 0.1}  # linear warm-up, then linearly down
    optimizer = extend_with_piecewise_linear_lr(Adam)(learning_rate, lr_schedule=schedule, global_clipnorm=1.0)
    model.compile(optimizer, loss=FUNCTIONS[loss])
    best = BestWeights(output / f"{loss}.weights.h5", lambda m: f1(gold["dev"], predict(m, dev))[0], restore=True)
    resume = Resume(output / f"{loss}.npz", generator, tracked=[best], keep=True, fresh=not args.resume)
    callbacks = [LearningRateLogger(), best, resume]
    model.fit(generator.forfit(), steps_per_epoch=steps, epochs=args.epochs, callbacks=callbacks)
    return model


def predict(model, records):
    """The scores of all classes."""
    return model.predict(collate(records)[0], batch_size=128, verbose=0)


gold = {"dev": collate(dev)[1], "test": collate(test)[1]}
models = {loss: train_model(loss) for loss in args.losses}

# ---- 5. Evaluation --------------------------------------------------------------------------------------------------


def write_submission(records, answers, path):
    """One line of JSON per record, with the labels found."""
    with open(path, "w") as file:
        for (text, _), row in zip(records, answers, strict=True):
            found = [labels[i] for i in np.flatnonzero(row)]
            file.write(json.dumps({"text": text, "labels": found}, ensure_ascii=False) + "\n")


result = {}
print("Micro- and macro-F1 on the test; the same with the threshold that is best on the validation data:")
for loss, model in models.items():
    scores, dev_scores = predict(model, test), predict(model, dev)
    tuned = max(THRESHOLDS, key=lambda threshold: f1(gold["dev"], dev_scores, threshold)[0])
    (micro, macro), best = f1(gold["test"], scores), f1(gold["test"], scores, tuned)
    result[loss], result[f"{loss}_tuned"] = micro, best[0]
    print(f"  {loss:28}{micro:.3f} {macro:.3f}    {best[0]:.3f} {best[1]:.3f} at {tuned:+.2f}")
    write_submission(test, scores > 0, output / f"{loss}_predictions.jsonl")
baseline = f1(gold["test"], np.tile(gold["dev"].sum(0).argmax() == np.arange(len(labels)), (len(test), 1)))[0]
name = f1(gold["test"], np.array([[label.split("-")[-1] in text for label in labels] for text, _ in test]))[0]
print(f"  {'always the commonest label':28}{baseline:.3f}\n  {'the label is in the text':28}{name:.3f}")
result |= {"metric": result[args.losses[0]], "baseline": baseline, "label_name": name, "ceiling": 1.0}
print(json.dumps({"task": "multilabel", **result, "seconds": round(time.perf_counter() - started, 1)}))
if args.smoke and data == SHARED and result["zlpr"] < max(PASS_LINE, result["sum"] - 0.02):
    sys.exit(f"The micro-F1 of zlpr must be at least {PASS_LINE} and at most 0.02 below that of sum.")
