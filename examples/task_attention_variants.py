"""Variants of self-attention on one task, the sentiment of Chinese reviews: a table of score, parameters and time.

The same classifier, data, batches and steps; only the attention differs: other widths of queries and keys, talking
heads, Synthesizers (scores from single tokens, or from tables that know positions alone) and their mixtures.

Data:    --data FOLDER (*train.*, *test.*) or FILE; lines are `text<TAB>label`, 1 for positive.
         Without it: reviews in ../shared/data/sentiment beside the repository, else datasets/sentiment_sample.tsv.
Command: python examples/task_attention_variants.py --seeds 3     (2 layers of width 128, from scratch, 400 steps each)
         python examples/task_attention_variants.py --smoke       (1 layer of width 64, shorter texts, 200 steps)
         python examples/task_attention_variants.py --checkpoint FOLDER_OF_A_CHINESE_BERT --steps 1000
Score:   accuracy on the 2,111 reviews of the test, --smoke with all variants, seed 0; always the same answer: 0.502.
         Then the parameters of the attention layer, and the CPU milliseconds of a training step on a busy machine.
             standard          0.799 16,640 40      key size 8        0.800 12,480 39
             key size 64       0.799 41,600 68      talking heads     0.803 16,672 73
             talking heads, 8  0.802 16,704 83      dense             0.776 33,280 77
             factorized dense  0.675 11,440 59      random            0.772 12,416 54
             fixed random      0.772  8,320 48      factorized random 0.777 10,368 61
             random + dot      0.805 20,738 65      dense + random    0.774 37,378 81
         One seed: differences below 0.02 mean nothing. The run of 2 layers and 400 steps was not measured.
Time:    20 minutes for all 12 with --smoke --only ..., on 2 cores that other jobs shared; --smoke takes 7 of them.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from bert4x.backend import keras
from bert4x.layers import FirstToken
from bert4x.models import build_transformer_model
from bert4x.snippets import DataGenerator, open, sequence_padding, set_seed
from bert4x.tokenizers import Tokenizer, character_vocab

# ---- 1. Settings ----------------------------------------------------------------------------------------------------

HERE = Path(__file__).resolve().parent
SHARED, SAMPLE = HERE.parents[1] / "shared" / "data" / "sentiment", HERE / "datasets" / "sentiment_sample.tsv"
MARGIN = 0.15  # accuracy above the majority that each must reach on the shared data with --smoke

parser = argparse.ArgumentParser(description="Compare variants of self-attention.")
parser.add_argument("--config", help="configuration; default: the one in --checkpoint")
parser.add_argument("--checkpoint", help="pretrained model: a directory, or a file with --config and --vocab")
parser.add_argument("--vocab", help="vocabulary file; default: the one in --checkpoint, else made from the data")
parser.add_argument("--data", help="folder or file of reviews, see the head of this script")
parser.add_argument("--only", nargs="+", help="names of variants; default: all, with --smoke 7 of them")
parser.add_argument("--steps", type=int, help="optimizer steps with each; 400, with --smoke 200")
parser.add_argument("--batch-size", type=int, default=32, help="reviews per optimizer step (%(default)s)")
parser.add_argument("--max-length", type=int, help="longest input, in tokens; 64, with --smoke 32")
parser.add_argument("--learning-rate", type=float, help="default: 2e-5 with --checkpoint, else 1e-3")
parser.add_argument("--seed", type=int, default=0, help="first seed of weights, dropout and data order (%(default)s)")
parser.add_argument("--seeds", type=int, default=1, help="number of seeds (%(default)s)")
parser.add_argument("--limit", type=int, help="use only this many reviews of each split")
parser.add_argument("--output", default="checkpoints/attention", help="folder for the table (%(default)s)")
parser.add_argument("--smoke", action="store_true", help="short; fails where a variant does not learn")
args = parser.parse_args()

started = time.perf_counter()
data = Path(args.data or (SHARED if SHARED.is_dir() else SAMPLE))
steps, length = args.steps or (200 if args.smoke else 400), args.max_length or (32 if args.smoke else 64)
rate = args.learning_rate or (2e-5 if args.checkpoint else 1e-3)
output = Path(args.output)
output.mkdir(parents=True, exist_ok=True)


def synthesizer(*modes, **settings):
    """Options of a model with this Synthesizer; the texts have at most `length` tokens."""
    mode = modes[0] if len(modes) == 1 else list(modes)
    settings = {"mode": mode, "max_length": length, **settings}
    return {"attention_variant": "synthesizer", "attention_settings": settings}


VARIANTS = {
    "standard": {},
    "key size 8": {"attention_key_size": 8},
    "key size 64": {"attention_key_size": 64},
    "talking heads": {"attention_variant": "talking_heads"},
    "talking heads, 8 in softmax": {"attention_variant": "talking_heads", "attention_settings": {"softmax_heads": 8}},
    "dense": synthesizer("dense"),
    "factorized dense": synthesizer("factorized_dense"),
    "random": synthesizer("random"),
    "fixed random": synthesizer("fixed_random"),
    "factorized random": synthesizer("factorized_random"),
    "random + dot": synthesizer("random", "dot"),
    "dense + random": synthesizer("dense", "random"),
}
SHORT = ["standard", "key size 8", "talking heads", "dense", "random", "fixed random", "random + dot"]
chosen = args.only or (SHORT if args.smoke else list(VARIANTS))
if not set(chosen) <= set(VARIANTS):
    parser.error(f"--only takes some of {list(VARIANTS)}; got {args.only}")

# ---- 2. Data --------------------------------------------------------------------------------------------------------


def read_records(path):
    """[(text, label)] of a file with lines `text<TAB>label`, which may be zipped."""
    with open(path) as file:
        return [(text, int(label)) for text, label in (line.rsplit("\t", 1) for line in file if line.strip())]


if data.is_dir():
    train, test = (read_records(next(data.glob(f"*{name}.*")))[: args.limit] for name in ("train", "test"))
else:  # a single file is cut 8 : 2
    records = read_records(data)[: args.limit]
    train, test = records[: len(records) * 8 // 10], records[len(records) * 8 // 10 :]
print(f"Reviews in {data.name}: {len(train):,} to train, {len(test):,} to test")
if args.vocab or args.checkpoint:
    tokenizer = Tokenizer(args.vocab or args.checkpoint, do_lower_case=True if args.vocab else None)
else:  # characters; `pre_tokenize=list` makes every character a word
    vocab = character_vocab(text for text, _ in train)
    tokenizer = Tokenizer(vocab, do_lower_case=True, pre_tokenize=list)


def collate(records):
    """Records -> ([token ids, segment ids], labels), padded to one length, because each length is compiled anew."""
    rows = [tokenizer.encode(text, maxlen=length) for text, _ in records]
    token_ids, segment_ids = (sequence_padding(ids, length) for ids in zip(*rows, strict=True))
    return [token_ids, segment_ids], np.array([label for _, label in records])


inputs, labels = collate(test)

# ---- 3. Model -------------------------------------------------------------------------------------------------------


def build_model(options, seed):
    """A classifier with this attention. What a checkpoint does not hold starts at random, or as plain attention."""
    keras.backend.clear_session()
    set_seed(seed)
    if args.config or args.checkpoint:
        if options.get("attention_key_size"):
            options = {**options, "autoresize_weights": True}
        bert = build_transformer_model(args.config or args.checkpoint, args.checkpoint, **options)
    else:
        width, layers = (64, 1) if args.smoke else (128, 2)
        size = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 4}
        size |= {"intermediate_size": 4 * width, "max_position": 256, "hidden_act": "gelu"}
        rates = {"dropout_rate": 0.1, "attention_dropout_rate": 0.1}
        bert = build_transformer_model(vocab_size=len(vocab), **size, **rates, **options)
    head = keras.layers.Dense(2, "softmax", kernel_initializer=bert.builder.initializer)
    return keras.Model(bert.inputs, head(FirstToken()(bert.output)))  # the first token is [CLS]


# ---- 4. Training ----------------------------------------------------------------------------------------------------


class StepTimes(keras.callbacks.Callback):
    """CPU seconds of each step, which other programs hardly disturb. For a GPU use perf_counter instead."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def on_train_batch_begin(self, batch, logs=None):
        self.since = time.process_time()

    def on_train_batch_end(self, batch, logs=None):
        self.seconds.append(time.process_time() - self.since)


def run(options, seed):
    """Train one variant: accuracy on the test, trainable parameters of its attention, CPU milliseconds of a step."""
    model, times = build_model(options, seed), StepTimes()
    schedule = keras.optimizers.schedules.PolynomialDecay(rate, steps, 0.1 * rate)
    optimizer = keras.optimizers.Adam(schedule, global_clipnorm=1.0)
    model.compile(optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    batches = DataGenerator(train, args.batch_size, collate=collate, seed=seed, drop_remainder=True).forfit()
    model.fit(batches, steps_per_epoch=steps, callbacks=[times], verbose=0)
    accuracy = float(model.evaluate(inputs, labels, batch_size=256, verbose=0)[1])
    layers = [layer for layer in model.layers if layer.name.endswith("MultiHeadSelfAttention")]
    parameters = sum(int(np.prod(v.shape)) for layer in layers for v in layer.trainable_variables)
    return accuracy, parameters, 1000 * float(np.median(times.seconds))


results = {}
for name, options in VARIANTS.items():
    if name in chosen:
        runs = [run(options, args.seed + i) for i in range(args.seeds)]
        accuracies, parameters, milliseconds = zip(*runs, strict=True)
        median = float(np.median(milliseconds))
        results[name] = {"accuracies": accuracies, "parameters": parameters[0], "step_ms": median}
        print(f"  {name:28}accuracy {np.mean(accuracies):.3f}   step {median:.0f} ms", flush=True)

# ---- 5. Evaluation --------------------------------------------------------------------------------------------------

majority = float(max(np.mean(labels), 1 - np.mean(labels)))
rows = ["| attention | accuracy | spread | parameters | CPU ms per step |", "| --- | --- | --- | --- | --- |"]
for name, found in results.items():
    mean, spread = np.mean(found["accuracies"]), np.ptp(found["accuracies"])
    rows.append(f"| {name} | {mean:.3f} | {spread:.3f} | {found['parameters']:,} | {found['step_ms']:.0f} |")
(output / "table.md").write_text("\n".join(rows) + "\n", encoding="utf-8")
print("\n".join(rows) + f"\nAlways the same answer: {majority:.3f}. The table is in {output / 'table.md'}.")
means = {name: float(np.mean(found["accuracies"])) for name, found in results.items()}
result = {"metric": min(means.values()), "baseline": majority, "ceiling": 1.0, "accuracies": means}
print(json.dumps({"task": "attention", **result, "seconds": round(time.perf_counter() - started, 1)}))
if args.smoke and data == SHARED and result["metric"] < majority + MARGIN:
    sys.exit(f"Every accuracy must be at least {majority + MARGIN:.3f}.")
