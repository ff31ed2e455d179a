"""All optimizers and all their extensions on one small task, the sentiment of Chinese reviews: loss curves, a table.

All start from the same weights and see the same batches with the same dropout. The learning rates are the usual ones.
They are not tuned: this shows how the optimizers behave, not which is best.

Data:    --data FOLDER (*train.*, *test.*) or FILE; lines are `text<TAB>label`, 1 for positive.
         Without it: reviews in ../shared/data/sentiment beside the repository, else datasets/sentiment_sample.tsv.
Command: python examples/task_optimizers_comparison.py     (one layer of width 64, from scratch, 300 steps each)
         python examples/task_optimizers_comparison.py --only Adam lookahead --checkpoint FOLDER_OF_A_CHINESE_BERT
Score:   accuracy on the 2,111 reviews of the test, --smoke, seed 0; always the same answer: 0.502
             Adam 0.800 (of Keras 0.789), without correction 0.758, AdaFactor, AdaX and AdaXW 0.786, Lion 0.799;
             Adam with decay 0.800, and adaptation 0.799, piecewise linear rate 0.807, rate by layer 0.794, 2 batches
             a step 0.805, centralization 0.791, lookahead 0.804, lazy 0.772, average of weights 0.811
         One seed: differences below 0.02 mean nothing. SGD with momentum, at 0.05 and at 0.3, stayed at 0.498.
Time:    10 s of CPU each; all of them 17 minutes on 2 cores that a dozen other jobs shared.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from bert4x import optimizers
from bert4x.backend import keras
from bert4x.layers import FirstToken
from bert4x.models import build_transformer_model
from bert4x.snippets import DataGenerator, open, sequence_padding, set_seed
from bert4x.tokenizers import Tokenizer, character_vocab

# ---- 1. Settings ----------------------------------------------------------------------------------------------------

HERE = Path(__file__).resolve().parent
SHARED, SAMPLE = HERE.parents[1] / "shared" / "data" / "sentiment", HERE / "datasets" / "sentiment_sample.tsv"
MARGIN = 0.15  # accuracy above the majority that each must reach on the shared data with --smoke
CHUNK = 20  # steps in one point of a curve

parser = argparse.ArgumentParser(description="Compare the optimizers of bert4x and their extensions.")
parser.add_argument("--config", help="configuration; default: the one in --checkpoint")
parser.add_argument("--checkpoint", help="pretrained model: a directory, or a file with --config and --vocab")
parser.add_argument("--vocab", help="vocabulary file; default: the one in --checkpoint, else made from the data")
parser.add_argument("--data", help="folder or file of reviews, see the head of this script")
parser.add_argument("--only", nargs="+", help="names of optimizers; default: all")
parser.add_argument("--steps", type=int, default=300, help="steps with each (%(default)s)")
parser.add_argument("--batch-size", type=int, default=32, help="reviews per optimizer step (%(default)s)")
parser.add_argument("--max-length", type=int, default=32, help="longest input, in tokens (%(default)s)")
parser.add_argument("--learning-rate", type=float, help="Adam's; others have their multiples; 2e-5 with --checkpoint")
parser.add_argument("--seed", type=int, default=0, help="seed of weights, dropout and data order (%(default)s)")
parser.add_argument("--limit", type=int, help="use only this many reviews of each split")
parser.add_argument("--output", default="checkpoints/optimizers", help="folder for what is written (%(default)s)")
parser.add_argument("--smoke", action="store_true", help="fails where one of them does not learn")
args = parser.parse_args()

started = time.perf_counter()
data = Path(args.data or (SHARED if SHARED.is_dir() else SAMPLE))
rate = args.learning_rate or (2e-5 if args.checkpoint else 1e-3)
output = Path(args.output)
output.mkdir(parents=True, exist_ok=True)

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
    rows = [tokenizer.encode(text, maxlen=args.max_length) for text, _ in records]
    token_ids, segment_ids = (sequence_padding(ids, args.max_length) for ids in zip(*rows, strict=True))
    return [token_ids, segment_ids], np.array([label for _, label in records])


inputs, labels = collate(test)

# ---- 3. Model -------------------------------------------------------------------------------------------------------


def build_model():
    """A classifier, with the same initial weights and the same dropout each time."""
    keras.backend.clear_session()
    set_seed(args.seed)
    if args.config or args.checkpoint:
        bert = build_transformer_model(args.config or args.checkpoint, args.checkpoint)
    else:
        size = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 256}
        rates = {"dropout_rate": 0.1, "attention_dropout_rate": 0.1}
        bert = build_transformer_model(vocab_size=len(vocab), hidden_act="gelu", max_position=512, **size, **rates)
    head = keras.layers.Dense(2, "softmax", kernel_initializer=bert.builder.initializer)
    return keras.Model(bert.inputs, head(FirstToken()(bert.output)))  # the first token is [CLS]


def extended(*names, factor=1, **options):
    """A function of a model that makes Adam with these extensions."""
    kind = optimizers.Adam
    for name in names:
        kind = getattr(optimizers, f"extend_with_{name}")(kind)
    return lambda model: kind(factor * rate, **{k: v(model) if callable(v) else v for k, v in options.items()})


decay = {"weight_decay_rate": 0.01, "exclude_from_weight_decay": ["Norm", "bias"]}
lamb = {"exclude_from_layer_adaptation": ["Norm", "bias"], **decay}
GROUPS = {
    "Optimizers": {
        "Adam (Keras)": lambda model: keras.optimizers.Adam(rate),
        "Adam": lambda model: optimizers.Adam(rate),
        "Adam, no correction": lambda model: optimizers.Adam(rate, bias_correction=False),
        "AdaFactor": lambda model: optimizers.AdaFactor(10 * rate),
        "AdaX": lambda model: optimizers.AdaX(rate),
        "AdaXW": lambda model: optimizers.AdaXW(rate),
        "Lion": lambda model: optimizers.Lion(0.2 * rate),
    },
    "Extensions of Adam": {
        "weight decay (AdamW)": extended("weight_decay", **decay),
        "+ adaptation (LAMB)": extended("weight_decay", "layer_adaptation", factor=10, **lamb),
        "piecewise linear rate": extended("piecewise_linear_lr", lr_schedule={args.steps // 10: 1, args.steps: 0.1}),
        "rate by layer": extended("parameter_wise_lr", paramwise_lr_schedule=optimizers.layer_wise_lr_decay),
        "2 batches a step": extended("gradient_accumulation", grad_accum_steps=2),
        "centralization": extended("gradient_centralization"),
        "lookahead": extended("lookahead", steps_per_slow_update=5, slow_step_size=0.5),
        "lazy": extended("lazy_optimization", include_in_lazy_optimization=["Embedding-Token"]),
        "average of weights": extended("exponential_moving_average", ema_momentum=0.98),
    },
}
names = [name for group in GROUPS.values() for name in group]
if not set(args.only or names) <= set(names):
    parser.error(f"--only takes some of {names}; got {args.only}")

# ---- 4. Training ----------------------------------------------------------------------------------------------------


def run(make_optimizer):
    """Train with one optimizer: its curve, the accuracy on the test, and seconds, those of compiling included."""
    model, since = build_model(), time.perf_counter()
    optimizer = make_optimizer(model)
    model.compile(optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    batches = DataGenerator(train, args.batch_size, collate=collate, seed=args.seed, drop_remainder=True).forfit()
    # "Epochs" of a few steps, because the losses that `fit` returns are means over one.
    history = model.fit(batches, steps_per_epoch=CHUNK, epochs=max(args.steps // CHUNK, 1), verbose=0).history
    if hasattr(optimizer, "apply_ema_weights"):
        optimizer.apply_ema_weights()
    accuracy = model.evaluate(inputs, labels, batch_size=256, verbose=0)[1]
    return history["loss"], float(accuracy), time.perf_counter() - since


results = {}
for name, make_optimizer in (item for group in GROUPS.values() for item in group.items()):
    if not args.only or name in args.only:
        results[name] = curve, accuracy, seconds = run(make_optimizer)
        print(f"  {name:24}loss {np.mean(curve[-2:]):.3f}   accuracy {accuracy:.3f}   {seconds:5.1f} s", flush=True)

# ---- 5. Evaluation --------------------------------------------------------------------------------------------------


def draw(path):
    """Loss curves, smoothed, one panel for each group; plain Adam in black in both."""
    from matplotlib.figure import Figure  # here, because the rest does without it

    figure = Figure(figsize=(13, 5), layout="constrained")
    for panel, (title, group) in zip(figure.subplots(1, 2, sharey=True), GROUPS.items(), strict=True):
        for name in (name for name in results if name in group or name == "Adam"):
            curve, colour = results[name][0], "k" if name == "Adam" else None
            panel.plot(np.arange(1, len(curve) + 1) * CHUNK, curve, color=colour, label=name)
        panel.set(title=title, xlabel="step", ylabel=f"training loss, mean of {CHUNK} steps")
        if panel.lines:
            panel.legend()
    figure.savefig(path)


with open(output / "curves.json", "w") as file:
    json.dump({name: curve for name, (curve, _, _) in results.items()}, file)
try:
    draw(output / "curves.png")
except ImportError:
    print('There is no picture, because matplotlib is missing: pip install "bert4x[plot]"')
majority = float(max(np.mean(labels), 1 - np.mean(labels)))
accuracies = {name: found[1] for name, found in results.items()}
print(f"Always the same answer: {majority:.3f}. Loss curves are in {output}.")
result = {"metric": min(accuracies.values()), "baseline": majority, "ceiling": 1.0, "accuracies": accuracies}
print(json.dumps({"task": "optimizers", **result, "seconds": round(time.perf_counter() - started, 1)}))
if args.smoke and data == SHARED and result["metric"] < majority + MARGIN:
    sys.exit(f"Every accuracy must be at least {majority + MARGIN:.3f}.")
