"""Chinese text continued by a GPT2: several endings of several beginnings, all in one batch.

Model:   a GPT2 with a BERT vocabulary, as most Chinese ones have. By default pretrained/gpt_tiny_zh, which
         scripts/pretrain made with --objective gpt: it has the tone of reviews and encyclopaedias, and not much sense.
         With --checkpoint a folder with config.json, weights and vocab.txt, such as uer/gpt2-chinese-cluecorpussmall
         of huggingface.co.
Command: python examples/basic_language_model_gpt2.py [--text 这家酒店] [--samples 3 --topp 0.9] [--checkpoint FOLDER]
Score:   the default model has a held-out perplexity of 133; reading is the test.
Time:    9 s.
"""

import argparse
import time
from pathlib import Path

from bert4x.models import build_transformer_model
from bert4x.snippets import BadWords, Beam, Generator, Sample, set_seed
from bert4x.tokenizers import Tokenizer

# ---- 1. Settings ----------------------------------------------------------------------------------------------------

TINY = Path(__file__).resolve().parent / "pretrained" / "gpt_tiny_zh"  # 3 layers of width 192

parser = argparse.ArgumentParser(description="Continue Chinese texts with a GPT2.")
parser.add_argument("--config", help="configuration; default: the one in --checkpoint")
parser.add_argument("--checkpoint", default=TINY, help="directory, or a file with --config and --vocab (%(default)s)")
parser.add_argument("--vocab", help="vocabulary file; default: the one in --checkpoint")
parser.add_argument("--text", action="append", help="beginning of a text; may be given several times")
parser.add_argument("--samples", type=int, default=3, help="endings of each beginning; 0: the best one (%(default)s)")
parser.add_argument("--topp", type=float, default=0.8, help="draw among the likeliest of this mass (%(default)s)")
parser.add_argument("--temperature", type=float, default=0.8, help="below 1 the likely gets likelier (%(default)s)")
parser.add_argument("--max-length", type=int, default=48, help="longest ending, in tokens (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="seed of the draws (%(default)s)")
args = parser.parse_args()

texts = args.text or ["这家酒店", "这本书", "中国"]
set_seed(args.seed)

# ---- 2. Data: the beginnings above, and the vocabulary --------------------------------------------------------------

# A text begins with [CLS] and, since it goes on, has no [SEP]; the model writes one where it ends.
tokenizer = Tokenizer(args.vocab or args.checkpoint, do_lower_case=True if args.vocab else None)
end_id = tokenizer.token_to_id("[SEP]")
never = [[i] for token, i in tokenizer._token_dict.items() if token[:1] + token[-1:] == "[]" and i != end_id]

# ---- 3. Model -------------------------------------------------------------------------------------------------------

model = build_transformer_model(args.config or args.checkpoint, args.checkpoint, model="gpt2")

# ---- 4. Training: none, the model is used as it is ------------------------------------------------------------------

# ---- 5. Evaluation --------------------------------------------------------------------------------------------------

writer = Generator(model, end_id, tokenizer=tokenizer)
room = model.builder.max_position - args.max_length  # the table of positions ends: a long beginning loses its start
prompts = [tokenizer.encode(text, maxlen=room + 1, truncate_from="left")[0][:-1] for text in texts]
strategy = Sample(args.temperature, top_p=args.topp) if args.samples else Beam(4)
started = time.perf_counter()
options = {"strategy": strategy, "n": max(args.samples, 1), "processors": [BadWords(never)]}
results = writer.generate(prompts, args.max_length, **options)
for text, outputs in zip(texts, results, strict=True):
    print(f"\n{text}")
    for output_ids in outputs if args.samples > 1 else [outputs]:
        print(f"  ... {tokenizer.decode([i for i in output_ids if i != end_id])}")
print(f"\n({time.perf_counter() - started:.1f} s, most of them to compile)")
