"""Sentiment of Chinese reviews: positive or negative?

Data:    --data FOLDER (*train.*, *valid.* or *dev.*, *test.*) or FILE; lines are `text<TAB>label`, 1 for positive.
         Without it: 21,105 reviews of books, hotels and more in ../shared/data/sentiment beside the repository, else
         222 short ones that were written for this repository, datasets/sentiment_sample.tsv.
Command: python examples/task_sentiment.py             (the tiny BERT in pretrained/bert_tiny_zh)
         python examples/task_sentiment.py --smoke     (the same, short)
         python examples/task_sentiment.py --checkpoint FOLDER_OF_A_CHINESE_BERT   (config, weights, vocab.txt)
         python examples/task_sentiment.py --resume    (after an interruption, with the other flags as before)
Score:   accuracy on the 2,111 reviews of the test; in brackets the 1,393 of them that occur in no other split.
             always the same answer                0.502
             the tiny BERT, --smoke                0.872 (0.867)    seed 0
             naive Bayes                           0.906 (0.873)    at length 64; 0.895 (0.864) at length 128
         A tiny model is no better than naive Bayes. That takes a full-sized one.
Time:    --smoke 275 s, 268 s of CPU, on 2 busy cores.
"""

import argparse
import collections
import json
import math
import sys
import time
from pathlib import Path

import numpy as np

from bert4x.backend import keras, piecewise_linear
from bert4x.layers import FirstToken
from bert4x.models import build_transformer_model
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
from bert4x.tokenizers import Tokenizer

# ---- 1. Settings ----------------------------------------------------------------------------------------------------

HERE = Path(__file__).resolve().parent
TINY = HERE / "pretrained" / "bert_tiny_zh"  # 3 layers of width 192
SHARED, SAMPLE = HERE.parents[1] / "shared" / "data" / "sentiment", HERE / "datasets" / "sentiment_sample.tsv"
LABELS = ["negative", "positive"]
PASS_LINE = 0.75  # accuracy that --smoke must reach on the shared data

parser = argparse.ArgumentParser(description="Classify Chinese reviews as positive or negative.")
parser.add_argument("--config", help="configuration; default: the one in --checkpoint")
parser.add_argument("--checkpoint", default=TINY, help="directory, or a file with --config and --vocab (%(default)s)")
parser.add_argument("--vocab", help="vocabulary file; default: the one in --checkpoint")
parser.add_argument("--data", help="folder or file of reviews, see the head of this script")
parser.add_argument("--epochs", type=int, default=4, help="passes over the training data (%(default)s)")
parser.add_argument("--batch-size", type=int, default=32, help="reviews per optimizer step (%(default)s)")
parser.add_argument("--max-length", type=int, default=128, help="longest input, in tokens (%(default)s)")
parser.add_argument("--learning-rate", type=float, help="default: 1e-3 for the tiny model, 2e-5 for others")
parser.add_argument("--seed", type=int, default=0, help="seed of weights, dropout and data order (%(default)s)")
parser.add_argument("--limit", type=int, help="use only this many reviews of each split")
parser.add_argument("--output", default="checkpoints/sentiment", help="folder for what is written (%(default)s)")
parser.add_argument("--resume", action="store_true", help="go on with the interrupted run in --output")
parser.add_argument("--smoke", action="store_true", help="400 steps at length 64; fails below a score")
args = parser.parse_args()

started = time.perf_counter()
set_seed(args.seed)
if args.smoke:
    args.epochs, args.max_length = 2, 64
data = Path(args.data or (SHARED if SHARED.is_dir() else SAMPLE))
learning_rate = args.learning_rate or (1e-3 if args.checkpoint == TINY else 2e-5)
output = Path(args.output)
output.mkdir(parents=True, exist_ok=True)

# ---- 2. Data --------------------------------------------------------------------------------------------------------


def read_records(path):
    """[(text, label)] of a file with lines `text<TAB>label`, which may be zipped."""
    with open(path) as file:
        return [(text, int(label)) for text, label in (line.rsplit("\t", 1) for line in file if line.strip())]


def read_splits(path):
    """Records for training, validation and test; a single file is cut 6 : 2 : 2."""
    if path.is_dir():
        return [read_records(file) for file in find_splits(path)]
    records = read_records(path)
    first, second = len(records) * 6 // 10, len(records) * 8 // 10
    return [records[:first], records[first:second], records[second:]]


train, valid, test = (records[: args.limit] for records in read_splits(data))
print(f"Reviews in {data.name}: {len(train):,} to train, {len(valid):,} to validate, {len(test):,} to test")

tokenizer = Tokenizer(args.vocab or args.checkpoint, do_lower_case=True if args.vocab else None)


def collate(records):
    """Records -> ([token ids, segment ids], labels), padded to one length, because each length is compiled anew."""
    rows = [tokenizer.encode(text, maxlen=args.max_length) for text, _ in records]
    token_ids, segment_ids = (sequence_padding(ids, args.max_length) for ids in zip(*rows, strict=True))
    return [token_ids, segment_ids], np.array([label for _, label in records])


generator = DataGenerator(train, args.batch_size, collate=collate, seed=args.seed)
# A small set is passed over several times between two validations.
steps = 200 if args.smoke else max(len(generator), 100)

# ---- 3. Model -------------------------------------------------------------------------------------------------------

bert = build_transformer_model(args.config or args.checkpoint, args.checkpoint)
head = keras.layers.Dense(len(LABELS), "softmax", kernel_initializer=bert.builder.initializer)
model = keras.Model(bert.inputs, head(FirstToken()(bert.output)))  # the first token is [CLS]
print(f"Model: {bert.builder.num_hidden_layers} layers, {model.count_params():,} weights, {keras.backend.backend()}")


class WarmUpAndDecay(keras.optimizers.schedules.LearningRateSchedule):
    """From 0 to `peak` over the first tenth of the steps, then down to a tenth of it; both linearly."""

    def __init__(self, peak, steps):
        self.peak, self.points = peak, {math.ceil(steps / 10): 1, steps: 0.1}

    def __call__(self, step):
        return self.peak * piecewise_linear(step, self.points)


# The norm of all gradients together is clipped, so that a freak batch cannot undo what was learned.
optimizer = keras.optimizers.Adam(WarmUpAndDecay(learning_rate, steps * args.epochs), global_clipnorm=1.0)
model.compile(optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])

inputs, labels = collate(test)
print(f"Accuracy on the test before training: {model.evaluate(inputs, labels, batch_size=128, verbose=0)[1]:.3f}")

# ---- 4. Training ----------------------------------------------------------------------------------------------------

best = BestWeights(output / "best.weights.h5", "val_accuracy", restore=True)
resume = Resume(output / "run.npz", generator, tracked=[best], fresh=not args.resume)
if resume.epoch:
    print(f"Going on after epoch {resume.epoch}; best validation accuracy so far: {best.best:.3f}")
callbacks = [LearningRateLogger(), best, resume]
model.fit(
    generator.forfit(), steps_per_epoch=steps, epochs=args.epochs, validation_data=collate(valid), callbacks=callbacks
)

# ---- 5. Evaluation --------------------------------------------------------------------------------------------------


def naive_bayes():
    """Whether naive Bayes on the characters and pairs in a text, add-one smoothing, is right: what to beat."""
    cut = {text: text[: args.max_length] for text, _ in train + test}
    grams = {text: {*start, *zip(start, start[1:], strict=False)} for text, start in cut.items()}
    words = [[gram for text, label in train if label == k for gram in grams[text]] for k in (0, 1)]
    counts, vocabulary = [collections.Counter(part) for part in words], {*words[0], *words[1]}
    sizes = [len(part) + len(vocabulary) for part in words]
    odds = {g: math.log((counts[1][g] + 1) / sizes[1]) - math.log((counts[0][g] + 1) / sizes[0]) for g in vocabulary}
    return np.array([(sum(odds.get(gram, 0) for gram in grams[text]) > 0) == label for text, label in test])


def write_submission(records, probabilities, path):
    """One line of JSON per record, as competitions want it."""
    with open(path, "w") as file:
        for number, row in enumerate(probabilities):
            line = {"id": str(number), "label": LABELS[row.argmax()], "text": records[number][0]}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


probabilities = model.predict(inputs, batch_size=128, verbose=0)
write_submission(test, probabilities, output / "test_predictions.jsonl")
right, bayes = probabilities.argmax(-1) == labels, naive_bayes()
seen = {text for text, _ in train + valid}
new = np.array([text not in seen for text, _ in test])
majority = float(max(np.mean(labels), 1 - np.mean(labels)))

for (text, label), row in zip(test[:4], probabilities, strict=False):
    print(f"  {LABELS[row.argmax()]} {row.max():.2f} (right: {LABELS[label]})  {text[:50]}")
print(f"Accuracy on the {len(test):,} reviews of the test (on the {new.sum():,} of them that are in no other split):")
for name, hits in (("this model", right), ("naive Bayes", bayes)):
    print(f"  {name:24}{hits.mean():.3f} ({hits[new].mean():.3f})")
print(f"  {'always the same answer':24}{majority:.3f}\nWeights and predictions are in {output}.")
result = {"metric": float(right.mean()), "baseline": majority, "naive_bayes": float(bayes.mean()), "ceiling": 1.0}
print(json.dumps({"task": "sentiment", **result, "seconds": round(time.perf_counter() - started, 1)}))
if args.smoke and data == SHARED and right.mean() < PASS_LINE:
    sys.exit(f"The accuracy must be at least {PASS_LINE}.")
