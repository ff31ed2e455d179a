"""Chinese text continued by NEZHA-GEN, Huawei's GPT: a BERT with a causal mask and without segments.

The released model has the shape of BERT, so the family is `bert`; application="lm" lets each token see only what
precedes it, and segment_vocab_size=0 leaves out the segments.

Model:   NEZHA-Gen of https://github.com/huawei-noah/Pretrained-Language-Model (folder NEZHA-Gen-TensorFlow):
         bert_config.json, model.ckpt (.index, .data...) and vocab.txt, the 21,128 tokens of the Chinese BERT. In one
         folder, --checkpoint FOLDER is enough.
Command: python examples/basic_language_model_nezha_gen_gpt.py --config bert_config.json --checkpoint model.ckpt
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

parser = argparse.ArgumentParser(description="Continue Chinese texts with NEZHA-GEN.")
parser.add_argument("--config", help="configuration; default: the one in --checkpoint")
parser.add_argument("--checkpoint", help="NEZHA-GEN, checkpoint or folder (needed)")
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
        "this example needs a checkpoint of NEZHA-GEN: get bert_config.json, model.ckpt and vocab.txt from NEZHA-Gen-"
        "TensorFlow in https://github.com/huawei-noah/Pretrained-Language-Model and name them with --config, "
        "--checkpoint and --vocab."
    )

texts = args.text or ["今天天气不错", "双十一"]
set_seed(args.seed)

# ---- 2. Data: the beginnings above, and the vocabulary --------------------------------------------------------------

# A text begins with [CLS] and, since it goes on, has no [SEP].
tokenizer = Tokenizer(args.vocab or args.checkpoint, do_lower_case=True, token_end=None)
never = [i for token, i in tokenizer._token_dict.items() if token.startswith("[") and token.endswith("]")]

# ---- 3. Model -------------------------------------------------------------------------------------------------------

model = build_transformer_model(
    args.config or args.checkpoint, args.checkpoint, model="bert", application="lm", segment_vocab_size=0
)


class Continuation(AutoRegressiveDecoder):
    """Says what may follow the beginning and what was written so far."""

    @AutoRegressiveDecoder.wraps(default_rtype="logits")
    def predict(self, inputs, output_ids, states):
        token_ids = np.concatenate([inputs[0], output_ids], axis=1)
        return self.cached_step(model).predict(token_ids)


# ---- 4. Training: none, the model is used as it is ------------------------------------------------------------------

# ---- 5. Evaluation --------------------------------------------------------------------------------------------------

full_stop = tokenizer.token_to_id("。")
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
