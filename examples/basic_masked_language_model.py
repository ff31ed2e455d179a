"""Filling in blanks: the five characters that a masked language model finds most probable for each [MASK].

Model:   --checkpoint FOLDER of a Chinese BERT (Google's or HuggingFace's files, with the head of the masked language
         model), or --config FILE --checkpoint FILE --vocab FILE. Without arguments a small RoFormer is trained here on
         reviews, so that something real comes out: it knows the phrases of reviews, and nothing of the world.
Data:    for that training ../shared/data/sentiment beside the repository, else datasets/sentiment_sample.tsv (222
         reviews written for this repository); --data FILE takes any text.
Command: python examples/basic_masked_language_model.py --checkpoint FOLDER --text "中国的首都是北[MASK]。"
         python examples/basic_masked_language_model.py
Score:   the small model fills 22% of the blanks in held-out sentences rightly; the commonest character alone 5%.
Time:    a few seconds with --checkpoint; the training takes 80 s of processor time (two cores share it).
"""

import argparse
import collections
import time
from pathlib import Path

import numpy as np

from bert4x.backend import keras
from bert4x.models import build_transformer_model
from bert4x.snippets import DataGenerator, open, sequence_padding, set_seed, text_segmentate, to_array
from bert4x.tokenizers import Tokenizer

# ---- 1. Settings ----------------------------------------------------------------------------------------------------

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared" / "data" / "sentiment" / "sentiment.train.tsv.gz"
SAMPLE = HERE / "datasets" / "sentiment_sample.tsv"

parser = argparse.ArgumentParser(description="Fill in the [MASK]s of a text.")
parser.add_argument("--config", help="configuration; default: the one in --checkpoint")
parser.add_argument("--checkpoint", help="model with an MLM head, directory or checkpoint; default: train a small one")
parser.add_argument("--vocab", help="vocabulary file; default: the one in --checkpoint")
parser.add_argument("--text", action="append", help="text with one or more [MASK]; may be given several times")
parser.add_argument("--data", help="text to train the small model on; default: see the head of this script")
parser.add_argument("--epochs", type=int, default=4, help="training: epochs of --steps steps (%(default)s)")
parser.add_argument("--steps", type=int, default=300, help="training: optimizer steps in an epoch (%(default)s)")
parser.add_argument("--batch-size", type=int, default=64, help="training: sentences per step (%(default)s)")
parser.add_argument("--max-length", type=int, default=24, help="training: longest sentence, in tokens (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="seed of weights, blanks and data order (%(default)s)")
parser.add_argument("--limit", type=int, help="training: use only this many lines of the data")
args = parser.parse_args()

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
KNOWN = ["中国的首都是北[MASK]。", "科学技术是第一[MASK]产力。"]  # for a pretrained model
REVIEWS = ["服务态[MASK]很好，下次还会来。", "性价[MASK]很高，[MASK]荐购买。", "房间很[MASK]净，我很满[MASK]。"]
texts = args.text or (KNOWN if args.checkpoint else REVIEWS)
started = time.perf_counter()
set_seed(args.seed)

# ---- 2. Data --------------------------------------------------------------------------------------------------------


def read_sentences(path):
    """Sentences of at most max-length tokens; of a line with tabs only the first field counts."""
    with open(path) as file:
        lines = [line.split("\t")[0] for line in file][: args.limit]
    pieces = (piece for line in lines for piece in text_segmentate(line, args.max_length - 2, "。！？，, "))
    return [piece for piece in pieces if len(piece) > 3]


def make_vocab(sentences):
    """Token -> id: the special tokens and the 1000 commonest characters."""
    counts = collections.Counter("".join("".join(sentences).lower().split()))
    characters = [character for character, _ in counts.most_common(1000)]
    return {token: i for i, token in enumerate([*SPECIAL, *characters])}


def collate(sentences):
    """A batch with about 15% of the characters blanked: inputs, the characters themselves, weight 1 at the blanks."""
    rows = [tokenizer.encode(sentence, maxlen=args.max_length)[0] for sentence in sentences]
    ids = sequence_padding(rows, args.max_length)
    blank = (ids >= len(SPECIAL)) & (draw.random(ids.shape) < 0.15)
    return [np.where(blank, vocab["[MASK]"], ids), np.zeros_like(ids)], ids, blank.astype("float32")


if args.checkpoint:
    tokenizer = Tokenizer(args.vocab or args.checkpoint, True if args.vocab else None, special_tokens=True)
else:
    path = Path(args.data or (SHARED if SHARED.is_file() else SAMPLE))
    sentences = read_sentences(path)
    vocab = make_vocab(sentences)
    # Every character is a word, and [MASK] in a text is one token.
    tokenizer = Tokenizer(vocab, do_lower_case=True, pre_tokenize=list, special_tokens=True)
    draw = np.random.default_rng(args.seed)

# ---- 3. Model -------------------------------------------------------------------------------------------------------

if args.checkpoint:
    model = build_transformer_model(args.config or args.checkpoint, args.checkpoint, with_mlm=True)
else:
    # Made to learn within a minute: rotary positions tell at once who stands beside whom, and large initial weights
    # (0.02 is usual) spare the model the thousand steps in which it would only learn how common each character is.
    size = {"hidden_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 512}
    options = {"vocab_size": len(vocab), "hidden_act": "gelu", "initializer_range": 0.15}
    model = build_transformer_model(model="roformer", with_mlm=True, **size, **options)

# ---- 4. Training: only of the small model ---------------------------------------------------------------------------

if not args.checkpoint:
    steps = args.steps * args.epochs
    print(f"No --checkpoint: training a small model on {len(sentences):,} sentences of {path.name}, {steps} steps.")
    held_out, rest = sentences[: len(sentences) // 10], sentences[len(sentences) // 10 :]
    rate = keras.optimizers.schedules.CosineDecay(0.0, steps, 0.05, warmup_target=5e-3, warmup_steps=steps // 10)
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", weighted_metrics=["accuracy"])
    generator = DataGenerator(rest, args.batch_size, collate=collate, seed=args.seed)
    model.fit(generator.forfit(), steps_per_epoch=args.steps, epochs=args.epochs)

# ---- 5. Evaluation --------------------------------------------------------------------------------------------------

if not args.checkpoint:
    inputs, ids, blank = collate(held_out[:1000])
    guesses, right = model.predict(inputs, verbose=0).argmax(-1)[blank > 0], ids[blank > 0]
    common = collections.Counter(right.tolist()).most_common(1)[0][1] / len(right)
    print(f"Blanks of {len(held_out[:1000])} held-out sentences filled rightly: {np.mean(guesses == right):.3f}; "
          f"with the commonest character: {common:.3f} ({time.perf_counter() - started:.0f} s)")

for text in texts:
    token_ids, segment_ids = tokenizer.encode(text)
    probabilities = model.predict([to_array([token_ids]), to_array([segment_ids])], verbose=0)[0]
    blanks = [place for place, i in enumerate(token_ids) if i == tokenizer.token_to_id("[MASK]")]
    print(f"\n{text}")
    for place in blanks:
        best = (-probabilities[place]).argsort()[:5]
        print("  [MASK]:", "  ".join(f"{tokenizer.id_to_token(i)} {probabilities[place][i]:.3f}" for i in best))
        token_ids[place] = int(best[0])
    print(f"  {tokenizer.decode(token_ids)}")
