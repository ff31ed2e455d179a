"""Chinese text continued by GPT2-ML: several endings for a beginning, each token drawn by nucleus sampling.

Model:   GPT2-ML, 1.5 billion parameters, of https://github.com/imcaspar/gpt2-ml: configs/mega.json, model.ckpt-100000
         (.index, .data...) and the vocabulary vocab.txt of the same release (8,021 tokens, or the 21,128 of the Chinese
         BERT). In one folder, with the configuration renamed to config.json, --checkpoint FOLDER is enough.
Command: python examples/basic_language_model_gpt2_ml.py --config mega.json --checkpoint model.ckpt-100000
             --vocab vocab.txt [--text 今天天气不错] [--samples 3]
Score:   none; reading is the test.
Time:    every token is one step over a cache. Not measured: no published checkpoint is at hand here.
"""

import argparse
import time

import numpy as np

from bert4x.models import build_transformer_model
from bert4x.snippets import AutoRegressiveDecoder, set_seed
from bert4x.tokenizers import Tokenizer

# ---- 1. Settings ----------------------------------------------------------------------------------------------------

parser = argparse.ArgumentParser(description="Continue Chinese texts with GPT2-ML.")
parser.add_argument("--config", help="configuration; default: the one in --checkpoint")
parser.add_argument("--checkpoint", help="GPT2-ML, checkpoint or folder (needed)")
parser.add_argument("--vocab", help="vocabulary file; default: the one in --checkpoint")
parser.add_argument("--text", action="append", help="beginning of a text; may be given several times")
parser.add_argument("--samples", type=int, default=3, help="endings for each beginning (%(default)s)")
parser.add_argument("--sentences", type=int, default=2, help="an ending stops at the n-th full stop (%(default)s)")
parser.add_argument("--max-length", type=int, default=128, help="longest ending, in tokens (%(default)s)")
parser.add_argument("--topp", type=float, default=0.95, help="draw among the likeliest of this mass (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="seed of the draws (%(default)s)")
args = parser.parse_args()
if not args.checkpoint:
    parser.error(
        "this example needs a checkpoint of GPT2-ML: get configs/mega.json, model.ckpt-100000 and vocab.txt from "
        "https://github.com/imcaspar/gpt2-ml and name them with --config, --checkpoint and --vocab."
    )

texts = args.text or ["今天天气不错", "双十一"]
set_seed(args.seed)

# ---- 2. Data: the beginnings above, and the vocabulary --------------------------------------------------------------

# The model was trained on running text: no [CLS] before it and no [SEP] behind it.
tokenizer = Tokenizer(args.vocab or args.checkpoint, do_lower_case=True, token_start=None, token_end=None)
never = [i for token, i in tokenizer._token_dict.items() if token.startswith("[") and token.endswith("]")]
full_stop = tokenizer.token_to_id("。")  # 545 or 511, by vocabulary

# ---- 3. Model -------------------------------------------------------------------------------------------------------

model = build_transformer_model(args.config or args.checkpoint, args.checkpoint, model="gpt2_ml")


class Continuation(AutoRegressiveDecoder):
    """Says what may follow the beginning and what was written so far."""

    @AutoRegressiveDecoder.wraps(default_rtype="logits")
    def predict(self, inputs, output_ids, states):
        token_ids = np.concatenate([inputs[0], output_ids], axis=1)
        return self.cached_step(model).predict(token_ids)


# ---- 4. Training: none, the model is used as it is ------------------------------------------------------------------

# ---- 5. Evaluation --------------------------------------------------------------------------------------------------

writer = Continuation(start_id=None, end_id=full_stop, maxlen=args.max_length, banned_ids=never)
room = model.builder.max_position - args.max_length  # the table of positions ends: a long beginning loses its start
for text in texts:
    started = time.perf_counter()
    token_ids, _ = tokenizer.encode(text, maxlen=room, truncate_from="left")
    samples = writer.random_sample([token_ids], args.samples, topp=args.topp, min_ends=args.sentences)
    print(f"\n{text}")
    for output_ids in samples:
        print(f"  ... {tokenizer.decode(output_ids)}")
    print(f"  ({sum(map(len, samples))} tokens in {time.perf_counter() - started:.1f} s)")
