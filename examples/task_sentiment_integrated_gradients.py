"""Which characters make a review good or bad? Integrated gradients (IG) of a classifier of Chinese reviews.

IG gives every token a share of F(review) - F(empty review), F the probability of the class that the model predicts.
After training, reviews of the test are explained and the explanations checked: do the shares sum to the difference,
and does the probability fall when the tokens with the largest shares are deleted?

Data:    --data FOLDER (*train.*, *valid.* or *dev.*, *test.*) or FILE; lines are `text<TAB>label`, 1 for positive.
         Without it: reviews in ../shared/data/sentiment beside the repository, else datasets/sentiment_sample.tsv.
Command: python examples/task_sentiment_integrated_gradients.py             (the tiny BERT in pretrained/bert_tiny_zh)
         python examples/task_sentiment_integrated_gradients.py --smoke     (the same, short)
         python examples/task_sentiment_integrated_gradients.py --checkpoint FOLDER_OF_A_CHINESE_BERT
Score:   on 200 reviews of the test, when 3 of a review's tokens are deleted: fall of the predicted class's probability,
         which is 0.890 on average. The tiny BERT, --smoke (400 steps, test accuracy 0.870), seed 0:
             the 3 with the largest shares     0.220
             3 random ones                     0.029
             the 3 with the smallest          -0.041     (the probability rises)
         The shares miss their sum by 0.009% with 100 points. The surer a model, the more points.
Time:    --smoke 467 s, 446 s of CPU, on 2 busy cores.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np

from bert4x.backend import keras
from bert4x.layers import FirstToken
from bert4x.models import build_transformer_model
from bert4x.optimizers import Adam, extend_with_piecewise_linear_lr
from bert4x.snippets import (
    BestWeights,
    DataGenerator,
    LearningRateLogger,
    Resume,
    find_splits,
    integrated_gradients,
    open,
    save_attributions,
    sequence_padding,
    set_seed,
)
from bert4x.tokenizers import Tokenizer

# ---- 1. Settings ----------------------------------------------------------------------------------------------------

HERE = Path(__file__).resolve().parent
TINY = HERE / "pretrained" / "bert_tiny_zh"  # 3 layers of width 192
SHARED, SAMPLE = HERE.parents[1] / "shared" / "data" / "sentiment", HERE / "datasets" / "sentiment_sample.tsv"
LABELS = ["negative", "positive"]
PASS_LINE, LARGEST_ERROR = 0.75, 0.02  # accuracy, and how far the shares may be from their sum, for --smoke

parser = argparse.ArgumentParser(description="Explain a classifier of reviews by integrated gradients.")
parser.add_argument("--config", help="configuration; default: the one in --checkpoint")
parser.add_argument("--checkpoint", default=TINY, help="directory, or a file with --config and --vocab (%(default)s)")
parser.add_argument("--vocab", help="vocabulary file; default: the one in --checkpoint")
parser.add_argument("--data", help="folder or file of reviews, see the head of this script")
parser.add_argument("--epochs", type=int, default=4, help="passes over the training data (%(default)s)")
parser.add_argument("--batch-size", type=int, default=32, help="reviews per optimizer step (%(default)s)")
parser.add_argument("--max-length", type=int, default=64, help="longest input, in tokens (%(default)s)")
parser.add_argument("--learning-rate", type=float, help="default: 1e-3 for the tiny model, 2e-5 for others")
parser.add_argument("--explained", type=int, default=200, help="reviews to explain (%(default)s)")
parser.add_argument("--points", type=int, default=100, help="points between nothing and the review (%(default)s)")
parser.add_argument("--picture", default="attributions.html", help=".html, or .png with bert4x[plot] (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="seed of weights, dropout and data order (%(default)s)")
parser.add_argument("--limit", type=int, help="use only this many reviews of each split")
parser.add_argument("--output", default="checkpoints/sentiment_ig", help="folder for what is written (%(default)s)")
parser.add_argument("--resume", action="store_true", help="go on with the interrupted run in --output")
parser.add_argument("--smoke", action="store_true", help="400 steps; fails below a score")
args = parser.parse_args()

started = time.perf_counter()
set_seed(args.seed)
args.epochs = 2 if args.smoke else args.epochs
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


def encode(records):
    """The token ids of each review."""
    return [tokenizer.encode(text, maxlen=args.max_length)[0] for text, _ in records]


def padded(rows):
    """Rows of token ids -> [token ids, segment ids], of one length, because each length is compiled anew."""
    token_ids = sequence_padding(rows, args.max_length)
    return [token_ids, np.zeros_like(token_ids)]


def collate(records):
    """Records -> ([token ids, segment ids], labels)."""
    return padded(encode(records)), np.array([label for _, label in records])


generator = DataGenerator(train, args.batch_size, collate=collate, seed=args.seed)
steps = 200 if args.smoke else max(len(generator), 100)  # between two validations

# ---- 3. Model -------------------------------------------------------------------------------------------------------

bert = build_transformer_model(args.config or args.checkpoint, args.checkpoint)
head = keras.layers.Dense(len(LABELS), "softmax", kernel_initializer=bert.builder.initializer)
model = keras.Model(bert.inputs, head(FirstToken()(bert.output)))  # the first token is [CLS]
schedule = {math.ceil(steps * args.epochs / 10): 1, steps * args.epochs: 0.1}  # up from 0, then down to a tenth
optimizer = extend_with_piecewise_linear_lr(Adam)(learning_rate, lr_schedule=schedule, global_clipnorm=1.0)
model.compile(optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])

# ---- 4. Training ----------------------------------------------------------------------------------------------------

best = BestWeights(output / "best.weights.h5", "val_accuracy", restore=True)
resume = Resume(output / "run.npz", generator, tracked=[best], fresh=not args.resume)
budget = {"steps_per_epoch": steps, "epochs": args.epochs, "callbacks": [LearningRateLogger(), best, resume]}
model.fit(generator.forfit(), validation_data=collate(valid), **budget)

# ---- 5. Evaluation --------------------------------------------------------------------------------------------------


def explain(rows):
    """The share of each token of each row, the errors of the sums, F(review) and F(empty review)."""
    size = args.batch_size  # the rows of one call are in memory together
    chunks = [rows[i : i + size] for i in range(0, len(rows), size)]
    parts = [integrated_gradients(model, padded(chunk), steps=args.points) for chunk in chunks]
    return [np.concatenate(values) for values in zip(*parts, strict=True)]


def probability_without(rows, places, classes):
    """Mean probability of the classes when the tokens at these places are deleted from the rows."""
    shorter = [np.delete(row, chosen) for row, chosen in zip(rows, places, strict=True)]
    found = model.predict(padded(shorter), batch_size=128, verbose=0)
    return float(found[np.arange(len(rows)), classes].mean())


scores = model.predict(collate(test)[0], batch_size=128, verbose=0)
accuracy = float(np.mean(scores.argmax(-1) == [label for _, label in test]))
explained = test[: args.explained]
rows, classes = encode(explained), scores[: args.explained].argmax(-1)
shares, errors, values, empty = explain(rows)
error = float(np.abs(errors).sum() / np.abs(values - empty).sum())
# Places from the largest share to the smallest, [CLS] and [SEP] left out.
order = [1 + np.argsort(-row[1 : len(ids) - 1]) for row, ids in zip(shares, rows, strict=True)]
random = np.random.default_rng(args.seed)
chosen = {
    "those with the largest shares": [places[:3] for places in order],
    "random ones": [random.permutation(places)[:3] for places in order],
    "those with the smallest": [places[-3:] for places in order],
}
drops = [float(values.mean()) - probability_without(rows, places, classes) for places in chosen.values()]
titles = [f"{LABELS[k]} {p:.2f} (right: {LABELS[r[1]]})" for k, p, r in zip(classes, values, explained, strict=True)]
tokens = [tokenizer.ids_to_tokens(ids) for ids in rows]
save_attributions(output / args.picture, tokens[:20], shares[:20], titles=titles[:20])

for title, places, words in zip(titles[:4], order, tokens, strict=False):
    print(f"  {title}: {' '.join(words[place] for place in places[:5])}  of  {''.join(words[1:-1])[:40]}")
print(f"Accuracy on the {len(test):,} reviews of the test: {accuracy:.3f}")
print(f"The shares of a review miss their sum by {error:.3%}, with {args.points} points.")
print(f"Fall of the probability, {values.mean():.3f} on average, when 3 tokens are deleted:")
for name, drop in zip(chosen, drops, strict=True):
    print(f"  {name:32}{drop:+.3f}")
print(f"A picture of the first reviews is in {output / args.picture}.")
result = {"metric": drops[0], "baseline": drops[1], "smallest": drops[2], "error": error, "accuracy": accuracy}
print(json.dumps({"task": "sentiment_ig", **result, "seconds": round(time.perf_counter() - started, 1)}))
if args.smoke and data == SHARED and not (accuracy >= PASS_LINE and error < LARGEST_ERROR and drops[0] > drops[1]):
    sys.exit(f"Needs accuracy >= {PASS_LINE}, error < {LARGEST_ERROR}, and a larger fall than by random deletion.")
