"""Sentiment of Chinese reviews by ALBERT, shared against unshared.

One block of weights serves all layers of an ALBERT. `model="albert_unshared"` reads the same checkpoint and gives each
layer a copy of its own, which then learn apart: larger, no slower, sometimes better. Both are trained on the same
batches. Before that they must say the same.

Data:    --data FOLDER (*train.*, *valid.* or *dev.*, *test.*) or FILE; lines are `text<TAB>label`, 1 for positive.
         Without it: 21,105 reviews in ../shared/data/sentiment beside the repository, else 222 short ones that were
         written for this repository, datasets/sentiment_sample.tsv.
Command: python examples/task_sentiment_albert.py --checkpoint FOLDER_OF_A_CHINESE_ALBERT   (config, weights, vocab.txt)
         python examples/task_sentiment_albert.py             (without: a random ALBERT of 3 layers is written and read)
         python examples/task_sentiment_albert.py --smoke     (the same, short)
Score:   accuracy on the 2,111 reviews of the test, and on the validation after each of 3 epochs of 100 steps.
         --smoke, from scratch, seed 0; always the same answer: 0.502. Before training, both say exactly the same.
             shared      0.832   0.760 0.785 0.829
             unshared    0.832   0.769 0.804 0.828     (ahead at first; one seed)
         With pretrained Chinese weights, shared and unshared (validation, in the article: kexue.fm archives 7187):
         0.946 and 0.947 with albert_small, 0.941 and 0.940 with albert_tiny.
Time:    --smoke 100 s of CPU; 6 to 18 minutes on 2 cores that a dozen other jobs shared.
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
from bert4x.models import build_transformer_model, save_pretrained
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
from bert4x.tokenizers import Tokenizer, character_vocab

# ---- 1. Settings ----------------------------------------------------------------------------------------------------

HERE = Path(__file__).resolve().parent
SHARED, SAMPLE = HERE.parents[1] / "shared" / "data" / "sentiment", HERE / "datasets" / "sentiment_sample.tsv"
PASS_LINE = 0.65  # accuracy that both must reach on the shared data with --smoke
LARGEST_DIFFERENCE = 1e-6  # of the probabilities before training
FAMILIES = {"shared": "albert", "unshared": "albert_unshared"}

parser = argparse.ArgumentParser(description="Classify Chinese reviews with ALBERT, shared and unshared.")
parser.add_argument("--config", help="configuration; default: the one in --checkpoint")
parser.add_argument("--checkpoint", help="pretrained ALBERT: a directory, or a file with --config and --vocab")
parser.add_argument("--vocab", help="vocabulary file; default: the one in --checkpoint, else made from the data")
parser.add_argument("--data", help="folder or file of reviews, see the head of this script")
parser.add_argument("--epochs", type=int, default=4, help="passes over the training data (%(default)s)")
parser.add_argument("--batch-size", type=int, default=32, help="reviews per optimizer step (%(default)s)")
parser.add_argument("--max-length", type=int, default=64, help="longest input, in tokens (%(default)s)")
parser.add_argument("--learning-rate", type=float, help="default: 1e-4 with --checkpoint, else 1e-3")
parser.add_argument("--seed", type=int, default=0, help="seed of weights, dropout and data order (%(default)s)")
parser.add_argument("--limit", type=int, help="use only this many reviews of each split")
parser.add_argument("--output", default="checkpoints/sentiment_albert", help="folder for what is written (%(default)s)")
parser.add_argument("--resume", action="store_true", help="go on with the interrupted run in --output")
parser.add_argument("--smoke", action="store_true", help="300 steps each; fails below a score")
args = parser.parse_args()

started = time.perf_counter()
set_seed(args.seed)
if args.smoke:
    args.epochs = 3
data = Path(args.data or (SHARED if SHARED.is_dir() else SAMPLE))
learning_rate = args.learning_rate or (1e-4 if args.checkpoint else 1e-3)
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

if args.vocab or args.checkpoint:
    tokenizer = Tokenizer(args.vocab or args.checkpoint, do_lower_case=True if args.vocab else None)
else:  # characters; `pre_tokenize=list` makes every character a word
    vocab = character_vocab(text for text, _ in train)
    tokenizer = Tokenizer(vocab, do_lower_case=True, pre_tokenize=list)


def collate(records):
    """Records -> ([token ids, segment ids], labels), padded to one length, because each length is compiled anew."""
    rows = [tokenizer.encode(text, maxlen=args.max_length) for text, _ in records]
    token_ids, segment_ids = (sequence_padding(ids, args.max_length) for ids in zip(*rows, strict=True))
    return [token_ids, segment_ids], np.array([label for _, label in records])


steps = 100 if args.smoke else max(math.ceil(len(train) / args.batch_size), 100)
validation, (inputs, labels) = collate(valid), collate(test)

# ---- 3. Model -------------------------------------------------------------------------------------------------------

if not args.checkpoint:  # a random one, in the form in which a pretrained one comes
    size = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 512}
    size |= {"vocab_size": len(vocab), "embedding_size": 64, "max_position": 512, "hidden_act": "gelu"}
    rates = {"dropout_rate": 0.1, "attention_dropout_rate": 0.1}
    args.checkpoint = output / "random"
    save_pretrained(build_transformer_model(model="albert", **size, **rates), tokenizer, args.checkpoint)


def build_model(family):
    """A compiled classifier on the checkpoint; the same weights of the head and the same dropout each time."""
    set_seed(args.seed)
    albert = build_transformer_model(args.config or args.checkpoint, args.checkpoint, model=family)
    head = keras.layers.Dense(2, "softmax", kernel_initializer=keras.initializers.TruncatedNormal(0, 0.02, args.seed))
    model = keras.Model(albert.inputs, head(FirstToken()(albert.output)))  # the first token is [CLS]
    schedule = {math.ceil(steps * args.epochs / 10): 1, steps * args.epochs: 0.1}  # up from 0, then down to a tenth
    optimizer = extend_with_piecewise_linear_lr(Adam)(learning_rate, lr_schedule=schedule, global_clipnorm=1.0)
    model.compile(optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


models = {name: build_model(family) for name, family in FAMILIES.items()}
first = [model.predict([part[:64] for part in inputs], verbose=0) for model in models.values()]
difference = float(np.abs(first[0] - first[1]).max())
sizes = " and ".join(f"{model.count_params():,} {name}" for name, model in models.items())
print(f"Weights: {sizes}. Their probabilities differ by at most {difference:.1e} before training.")

# ---- 4. Training ----------------------------------------------------------------------------------------------------

histories, seconds = {}, {}
for name, model in models.items():
    generator = DataGenerator(train, args.batch_size, collate=collate, seed=args.seed)
    best = BestWeights(output / f"{name}.weights.h5", "val_accuracy", restore=True)
    print(f"Training the {name} one")
    resume = Resume(output / f"{name}.npz", generator, tracked=[best], keep=True, fresh=not args.resume)
    budget = {"steps_per_epoch": steps, "epochs": args.epochs, "callbacks": [LearningRateLogger(), best, resume]}
    since = time.perf_counter()
    histories[name] = model.fit(generator.forfit(), validation_data=validation, **budget).history
    seconds[name] = time.perf_counter() - since

# ---- 5. Evaluation --------------------------------------------------------------------------------------------------

scores = {}
for name, model in models.items():
    scores[name] = float(np.mean(model.predict(inputs, batch_size=128, verbose=0).argmax(-1) == labels))
majority = float(max(np.mean(labels), 1 - np.mean(labels)))
print(f"Accuracy on the {len(test):,} reviews of the test; on the validation after each epoch; seconds of training:")
for name, score in scores.items():
    epochs = " ".join(f"{value:.3f}" for value in histories[name]["val_accuracy"])
    print(f"  {name:10}{score:.3f}   {epochs}   {seconds[name]:.0f}")
print(f"  {'always the same answer':24}{majority:.3f}")
result = {"metric": min(scores.values()), "baseline": majority, "ceiling": 1.0, **scores, "difference": difference}
print(json.dumps({"task": "sentiment_albert", **result, "seconds": round(time.perf_counter() - started, 1)}))
if difference > LARGEST_DIFFERENCE:
    sys.exit(f"Before training the two may differ by {LARGEST_DIFFERENCE}.")
if args.smoke and data == SHARED and result["metric"] < PASS_LINE:
    sys.exit(f"Both accuracies must be at least {PASS_LINE}.")
