"""A language model of characters over long text: attention in blocks beside attention to all that precedes.

Data:    --data PATH: plain text, JSON lines with "sentence" or "text", or a folder of such files, which may be zipped.
         Without it: ../shared/data/corpus beside the repository (2.3 million characters), else the descriptions in
         datasets/iflytek_sample.jsonl. The last 2% of the text are the test.
Command: python examples/task_long_text_sparse_attention.py            (1,000 steps, times for lengths up to 4,096)
         python examples/task_long_text_sparse_attention.py --smoke    (150 steps, length 2,048)
         ... --variants standard local sparse atrous                   (others, one model each)
Score:   nats per character of the test after --smoke (seed 0): sparse attention 6.813, dense 6.852, frequencies alone
         7.170. The full run is not measured yet.
Time:    --smoke 4 minutes on 2 cores; a training step with one window of 2,048 took 0.46 s sparse, 0.96 s dense.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from bert4x.backend import keras
from bert4x.models import build_transformer_model
from bert4x.optimizers import Adam, extend_with_piecewise_linear_lr
from bert4x.snippets import open, set_seed
from bert4x.tokenizers import character_vocab, load_vocab, save_vocab

# ---- 1. Settings ----------------------------------------------------------------------------------------------------

HERE = Path(__file__).resolve().parent
SHARED, SAMPLE = HERE.parents[1] / "shared" / "data" / "corpus", HERE / "datasets" / "iflytek_sample.jsonl"
PASS_RATIO = 1.03  # cross-entropy of sparse attention to that of dense, at most, in --smoke on the shared data

parser = argparse.ArgumentParser(description="Train language models with dense and with sparse attention.")
parser.add_argument("--config", help="configuration of a RoFormer; default: the one in --checkpoint")
parser.add_argument("--checkpoint", help="pretrained RoFormer: a directory, or a file with --config and --vocab")
parser.add_argument("--vocab", help="vocabulary file; default: the one in --checkpoint, else made from the data")
parser.add_argument("--data", help="file or folder; see the head of this script")
parser.add_argument("--variants", nargs="+", default=["sparse", "standard"], help="attention_variant of each model")
parser.add_argument("--rate", type=int, default=32, help="rate of sparse and atrous, neighbours of local (%(default)s)")
parser.add_argument("--steps", type=int, default=1000, help="optimizer steps (%(default)s)")
parser.add_argument("--batch-size", type=int, default=4, help="windows of text per step (%(default)s)")
parser.add_argument("--max-length", type=int, default=512, help="characters in a window (%(default)s)")
parser.add_argument("--lengths", type=int, nargs="*", default=[512, 1024, 2048, 4096], help="of which steps are timed")
parser.add_argument("--learning-rate", type=float, help="default: 2e-5 with --checkpoint, else 2e-3")
parser.add_argument("--seed", type=int, default=0, help="seed of weights and of the windows' places (%(default)s)")
parser.add_argument("--limit", type=int, help="use only this many characters")
parser.add_argument("--output", default="checkpoints/long_text", help="folder for what is written (%(default)s)")
parser.add_argument("--smoke", action="store_true", help="150 steps; fails if sparse attention is more than 3%% worse")
args = parser.parse_args()

started = time.perf_counter()
if args.smoke:
    args.steps, args.lengths = 150, [2048]
data, output = Path(args.data or (SHARED if SHARED.is_dir() else SAMPLE)), Path(args.output)
learning_rate = args.learning_rate or (2e-5 if args.checkpoint else 2e-3)
output.mkdir(parents=True, exist_ok=True)

# ---- 2. Data --------------------------------------------------------------------------------------------------------


def read_text(path):
    """All text of a file, or of the files in a folder."""
    if path.is_dir():
        return "\n".join(read_text(file) for file in sorted(path.iterdir()) if file.is_file() and ".txt" in file.name)
    with open(path) as file:
        if ".json" not in path.name:
            return file.read()
        rows = [json.loads(line) for line in file if line.strip()]
    return "\n".join(row.get("sentence") or row["text"] for row in rows)


def windows(ids, count, length, random=None):
    """([count, length], the character after each): pieces at random places, or evenly spread."""
    places = np.linspace(0, len(ids) - length - 1, count).astype(int)
    places = places if random is None else random.integers(0, len(ids) - length, count)
    rows = ids[places[:, None] + np.arange(length + 1)]
    return rows[:, :-1], rows[:, 1:]


text = read_text(data).lower()[: args.limit]
cut = len(text) * 98 // 100
if args.vocab or args.checkpoint:
    vocab = load_vocab(args.vocab or Path(args.checkpoint) / "vocab.txt")
else:
    vocab = character_vocab([text[:cut]])
    save_vocab(output / "vocab.txt", vocab)
ids = np.array([vocab.get(character, vocab["[UNK]"]) for character in text], "int32")
train, test = ids[:cut], ids[cut:]
x_test, y_test = windows(test, max(1, len(test) // (2 * args.max_length)), args.max_length)
print(f"{cut:,} characters to train, {len(test):,} to test, {len(vocab):,} different ones")

# ---- 3. Model -------------------------------------------------------------------------------------------------------


def build_model(variant):
    """A RoFormer that predicts the next character; its rotary positions have no longest length."""
    config, size = args.config or args.checkpoint, {}
    if not config:
        size = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512}
        size |= {"vocab_size": len(vocab), "hidden_act": "gelu", "segment_vocab_size": 0}
    options = {"application": "lm"}  # all that precedes
    if variant != "standard":
        settings = {"neighbors" if variant == "local" else "rate": args.rate, "causal": True}
        options = {"attention_variant": variant, "attention_settings": settings}
    return build_transformer_model(config, args.checkpoint, "roformer", with_mlm="linear", **size, **options)


def compiled(variant, steps):
    """The model with loss and optimizer; warm-up, then linearly down."""
    set_seed(args.seed)
    model = build_model(variant)
    schedule = {max(1, steps // 10): 1, max(2, steps): 0.1}
    optimizer = extend_with_piecewise_linear_lr(Adam)(learning_rate, lr_schedule=schedule, global_clipnorm=1.0)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


# ---- 4. Training ----------------------------------------------------------------------------------------------------


def train_model(variant):
    """A trained model; all variants see the same windows in the same order."""
    model = compiled(variant, args.steps)
    x, y = windows(train, args.steps * args.batch_size, args.max_length, np.random.default_rng(args.seed))
    model.fit(x, y, batch_size=args.batch_size, shuffle=False)
    model.save_weights(output / f"{variant}.weights.h5")
    return model


def peak():
    """Highest memory of this process so far, in MiB; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def step_seconds(variant, length):
    """Seconds of a training step with one window of this length: the fastest of three, after one that compiles."""
    model, seconds = compiled(variant, 4), []
    x, y = windows(train, 1, min(length, len(train) - 1), np.random.default_rng(args.seed))
    for _ in range(4):
        start = time.perf_counter()
        model.train_on_batch(x, y)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


models = {variant: train_model(variant) for variant in args.variants}

# ---- 5. Evaluation --------------------------------------------------------------------------------------------------


def cross_entropies(model):
    """Nats per character of the test: of all positions, and of the last quarter, which has the longest context."""
    losses = []
    for x, y in zip(x_test, y_test, strict=True):
        scores = keras.ops.convert_to_numpy(model.predict_on_batch(x[None])[0]).astype("float64")
        shifted = scores - scores.max(-1, keepdims=True)
        losses.append(np.log(np.exp(shifted).sum(-1)) - shifted[np.arange(len(y)), y])
    return np.mean(losses), np.mean([row[-(len(row) // 4) :] for row in losses])


def unigram():
    """Cross-entropy of the characters' frequencies alone."""
    counts = 1 + np.bincount(train, minlength=len(vocab))
    return -np.log(counts / counts.sum())[y_test].mean()


result = {"baseline": unigram()}
print(f"Nats per character of the test: all positions, the last quarter; frequencies alone {result['baseline']:.3f}")
for variant, model in models.items():
    result[variant], result[f"{variant}_last_quarter"] = cross_entropies(model)
    print(f"  {variant:10}{result[variant]:.3f} {result[f'{variant}_last_quarter']:.3f}")
print("Seconds of a training step with one window, and how far the memory of this process has risen by then")
for variant in args.variants:  # memory can only rise: what needs least comes first
    for length in args.lengths:
        before = peak()
        result[f"{variant}_{length}"] = step_seconds(variant, length)
        rise = "" if before is None else f"  + {peak() - before:.0f} MiB"
        print(f"  {variant:10}{length:6} {result[f'{variant}_{length}']:.3f} s{rise}", flush=True)
result |= {"metric": result[args.variants[0]], "ceiling": 0.0}
print(json.dumps({"task": "long_text", **result, "seconds": round(time.perf_counter() - started, 1)}))
if args.smoke and data == SHARED and result["sparse"] > min(PASS_RATIO * result["standard"], result["baseline"] - 0.3):
    sys.exit(f"Sparse attention must be within {PASS_RATIO} times dense attention and 0.3 below the frequencies.")
