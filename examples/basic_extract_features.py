"""Hidden states of sentences: the vectors that a pretrained BERT gives to every token, in three lines.

    tokenizer = Tokenizer(vocab)
    model = build_transformer_model(config, checkpoint)
    token_ids, segment_ids = tokenizer.encode("...")     and then     model.predict([token_ids, segment_ids])

Model:   --checkpoint FOLDER (config, weights and vocabulary find themselves), or --config FILE --checkpoint FILE
         --vocab FILE of any release. Without them the tiny Chinese BERT in pretrained/bert_tiny_zh.
Command: python examples/basic_extract_features.py [--text "..."] [--text "..."]
Score:   hidden states equal those of transformers within 1e-5.
Time:    a few seconds.
"""

import argparse
from pathlib import Path

import numpy as np

from bert4x.models import build_transformer_model
from bert4x.snippets import predict_batched, to_array
from bert4x.tokenizers import Tokenizer

# ---- 1. Settings ----------------------------------------------------------------------------------------------------

TINY = Path(__file__).resolve().parent / "pretrained" / "bert_tiny_zh"  # 3 layers of width 192

parser = argparse.ArgumentParser(description="Print the vectors that a BERT gives to the tokens of sentences.")
parser.add_argument("--config", help="configuration; default: the one in --checkpoint")
parser.add_argument("--checkpoint", default=TINY, help="model directory or checkpoint (%(default)s)")
parser.add_argument("--vocab", help="vocabulary file; default: the one in --checkpoint")
parser.add_argument("--text", action="append", help="sentence; may be given several times")
parser.add_argument("--max-length", type=int, default=128, help="longest input, in tokens (%(default)s)")
args = parser.parse_args()

SENTENCES = ["他每天去银行存钱。", "这家银行的利息很低。", "我们明天步行去学校。"]
WORD = "行"  # of a bank in two of them, of walking in the third

# ---- 2. Data --------------------------------------------------------------------------------------------------------

sentences = args.text or SENTENCES

# ---- 3. Model -------------------------------------------------------------------------------------------------------

tokenizer = Tokenizer(args.vocab or args.checkpoint, do_lower_case=True if args.vocab else None)
model = build_transformer_model(args.config or args.checkpoint, args.checkpoint)

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

# A token's vector depends on its sentence: the 行 of a bank is not the 行 of a walk.
word_id = tokenizer.token_to_id(WORD)
if args.text is None and all(word_id in ids for ids in all_ids):
    vectors = np.stack([states[ids.index(word_id)] for states, ids in zip(all_states, all_ids, strict=True)])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    print(f"\nCosine between the vectors of {WORD} in these sentences:")
    for sentence, row in zip(sentences, vectors @ vectors.T, strict=True):
        print("  ", " ".join(f"{x:5.2f}" for x in row), "  ", sentence)
