"""What kind of app is described? A BERT is compressed by swapping its blocks for fewer ones (BERT-of-Theseus).

1. The large model is trained. 2. It is frozen and its blocks are cut into as many modules as the small model has
blocks. For each batch, each module is replaced with probability 1/2 by its block of the small model, which so learns to
work among the others. 3. The small model, with embeddings and head of the large one, is trained. (arXiv:2002.02925)

Data:    as for task_iflytek_adversarial_training.py: --data PATH to CLUE's IFLYTEK, else the part of it that is in
         ../shared/data/classification beside the repository, else datasets/iflytek_sample.jsonl.
Command: python examples/task_iflytek_bert_of_theseus.py           (with pretrained/bert_tiny_zh: 3 blocks to 1)
         python examples/task_iflytek_bert_of_theseus.py --smoke   (the same, short)
         python examples/task_iflytek_bert_of_theseus.py --checkpoint FOLDER_OF_A_CHINESE_BERT   (12 blocks to 6)
Score:   accuracy of --smoke, seed 0, on the 850 texts of the validation: 3 blocks 0.255, the first alone
         0.034, after replacing 0.176, one block at the end 0.252; commonest class 0.082, naive Bayes 0.374.
Time:    --smoke 396 s, 249 s of CPU, on 2 busy cores.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from bert4x.backend import keras, ops
from bert4x.layers import FirstToken, Layer
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
from bert4x.tokenizers import Tokenizer

# ---- 1. Settings ----------------------------------------------------------------------------------------------------

HERE = Path(__file__).resolve().parent
TINY = HERE / "pretrained" / "bert_tiny_zh"  # 3 layers of width 192
SHARED = HERE.parents[1] / "shared" / "data" / "classification" / "iflytek"  # so the files begin
SAMPLE = HERE / "datasets" / "iflytek_sample.jsonl"
PASS_LINE = 0.17  # accuracy that --smoke must reach on the shared data

parser = argparse.ArgumentParser(description="Classify app descriptions with a compressed model.")
parser.add_argument("--config", help="configuration; default: the one in --checkpoint")
parser.add_argument("--checkpoint", default=TINY, help="directory, or a file with --config and --vocab (%(default)s)")
parser.add_argument("--vocab", help="vocabulary file; default: the one in --checkpoint")
parser.add_argument("--data", help="folder or beginning of file names, see the head of this script")
parser.add_argument("--epochs", type=int, default=8, help="passes over the data in each of 3 stages (%(default)s)")
parser.add_argument("--batch-size", type=int, default=32, help="texts per optimizer step (%(default)s)")
parser.add_argument("--max-length", type=int, default=128, help="longest input, in tokens (%(default)s)")
parser.add_argument("--learning-rate", type=float, help="default: 1e-3 for the tiny model, 2e-5 for others")
parser.add_argument("--layers", type=int, help="blocks of the small model; default: half of those of the large one")
parser.add_argument("--seed", type=int, default=0, help="seed of weights, dropout and data order (%(default)s)")
parser.add_argument("--limit", type=int, help="use only this many texts of each split")
parser.add_argument("--output", default="checkpoints/iflytek_theseus", help="folder for what is written (%(default)s)")
parser.add_argument("--resume", action="store_true", help="go on with the interrupted run in --output")
parser.add_argument("--smoke", action="store_true", help="3 times 200 steps at length 64; fails below a score")
args = parser.parse_args()

started = time.perf_counter()
set_seed(args.seed)
if args.smoke:
    args.epochs, args.max_length = 2, 64
data = Path(args.data or (SHARED if SHARED.parent.is_dir() else SAMPLE))
learning_rate, output = args.learning_rate or (1e-3 if args.checkpoint == TINY else 2e-5), Path(args.output)
output.mkdir(parents=True, exist_ok=True)

# ---- 2. Data --------------------------------------------------------------------------------------------------------


def read_records(path):
    """[(text, label)] of a file, which may be zipped; the label is None where there is none."""
    with open(path) as file:
        rows = map(json.loads, filter(str.strip, file))
        return [(row.get("sentence") or row["text"], row.get("label")) for row in rows]


def read_splits(path):
    """Records for training, validation and submission; the last are those of validation if there is no test file."""
    if path.is_file():
        records = read_records(path)
        return [records[: len(records) * 8 // 10], *[records[len(records) * 8 // 10 :]] * 2]
    train, dev, test = find_splits(path)
    return [read_records(file) for file in (train, dev, test or dev)]


train, dev, test = (records[: args.limit] for records in read_splits(data))
labels = sorted({label for _, label in train + dev})
print(f"Texts in {data.name}: {len(train):,} to train, {len(dev):,} to validate; {len(labels)} classes")

tokenizer = Tokenizer(args.vocab or args.checkpoint, do_lower_case=True if args.vocab else None)


def collate(records):
    """Records -> ([token ids, segment ids], labels), padded to one length, because each length is compiled anew."""
    rows = [tokenizer.encode(text, maxlen=args.max_length) for text, _ in records]
    token_ids, segment_ids = (sequence_padding(ids, args.max_length) for ids in zip(*rows, strict=True))
    return [token_ids, segment_ids], np.array([labels.index(label or labels[0]) for _, label in records])


validation = collate(dev)
steps = 100 if args.smoke else max(-(-len(train) // args.batch_size), 50)  # a small set is passed over several times

# ---- 3. Model -------------------------------------------------------------------------------------------------------

config = args.config or args.checkpoint
large = build_transformer_model(config, args.checkpoint, output_hidden_states=True).builder
blocks = args.layers or large.num_hidden_layers // 2
if large.num_hidden_layers % blocks:
    parser.error(f"--layers must divide the {large.num_hidden_layers} blocks of the large model; got {blocks}")
embedding = {name: layer for name, layer in large.layers.items() if name.startswith("Embedding-")}  # for both models
own = {"num_hidden_layers": blocks, "prefix": "Small-", "layers": embedding, "output_hidden_states": True}
small = build_transformer_model(config, False, **own).builder


def modules(builder):
    """The blocks of a model as `blocks` models of their own, each from hidden states to hidden states."""
    states = builder.outputs[1 :: builder.num_hidden_layers // blocks]  # behind the embeddings and each module
    return [keras.Model(*pair) for pair in zip(states, states[1:], strict=False)]


class Switch(Layer):
    """[old, new] -> one of them: in training the one or the other, drawn for each batch; else always `new`."""

    def __init__(self, seed):
        super().__init__()
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, inputs, training=None):
        return ops.where(keras.random.uniform((), seed=self.seed_generator) >= 0.5, *inputs) if training else inputs[1]


head = keras.layers.Dense(len(labels), "softmax", kernel_initializer=large.initializer)
pool = FirstToken()
predecessor = keras.Model(large.inputs, head(pool(large.outputs[0])))
mixed = alone = large.outputs[1]  # behind the embeddings
for index, (old, new) in enumerate(zip(modules(large), modules(small), strict=True)):
    old.supports_masking = new.supports_masking = True  # else Keras warns, and hands the mask on all the same
    mixed = Switch(args.seed + index)([old(mixed), new(mixed)])
    alone = new(alone)
theseus, successor = (keras.Model(large.inputs, head(pool(x))) for x in (mixed, alone))
sizes = f"{predecessor.count_params():,} -> {successor.count_params():,}"
print(f"{large.num_hidden_layers} blocks -> {blocks} blocks, weights {sizes}")

# ---- 4. Training ----------------------------------------------------------------------------------------------------


def train_stage(model, name):
    """Train what is not frozen, keep the best epoch, and return its accuracy."""
    schedule = {steps * args.epochs // 10: 1, steps * args.epochs: 0.1}  # linear warm-up, then linearly down
    optimizer = extend_with_piecewise_linear_lr(Adam)(learning_rate, lr_schedule=schedule, global_clipnorm=1.0)
    model.compile(optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    generator = DataGenerator(train, args.batch_size, collate=collate, seed=args.seed)
    best = BestWeights(output / f"{name}.weights.h5", "val_accuracy", restore=True)
    resume = Resume(output / f"{name}.npz", generator, tracked=[best], keep=True, fresh=not args.resume)
    budget = {"steps_per_epoch": steps, "epochs": args.epochs, "callbacks": [LearningRateLogger(), best, resume]}
    model.fit(generator.forfit(), validation_data=validation, **budget)
    return best.best


scores = {"large model": train_stage(predecessor, "large")}
for name, layer in small.layers.items():  # the small model begins as the first blocks of the large one
    layer.set_weights(large.layers[name].get_weights())
found = successor.predict(validation[0], batch_size=128, verbose=0).argmax(-1)
scores["its first blocks alone"] = float(np.mean(found == validation[1]))
large.model.trainable = head.trainable = False  # the embeddings too, which both models share
scores["small, after replacing"] = train_stage(theseus, "replacing")
successor.trainable = True
scores["small model"] = train_stage(successor, "small")

# ---- 5. Evaluation --------------------------------------------------------------------------------------------------


def write_submission(predictions, path):
    """One line of JSON per record, as CLUE wants it."""
    with open(path, "w") as file:
        file.writelines(json.dumps({"id": str(i), "label": label}) + "\n" for i, label in enumerate(predictions))


majority = float(np.mean(validation[1] == np.bincount(collate(train)[1]).argmax()))
found = successor.predict(collate(test)[0], batch_size=128, verbose=0).argmax(-1)
write_submission([labels[i] for i in found], output / "predictions.jsonl")
result = {"metric": scores["small model"], "baseline": majority, "ceiling": 1.0, **scores}
print(json.dumps({"task": "theseus", **result, "seconds": round(time.perf_counter() - started, 1)}))
if args.smoke and data == SHARED and result["metric"] < PASS_LINE:
    sys.exit(f"The accuracy must be at least {PASS_LINE}.")
