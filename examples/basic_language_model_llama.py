"""Text continued by a decoder of LLaMA's shape: LLaMA, Mistral, Qwen2 and many more, from their HuggingFace folders.

Model:   any of these families at huggingface.co, for example Qwen/Qwen2.5-0.5B: a folder with config.json,
         model.safetensors (or its parts and model.safetensors.index.json), tokenizer.json and tokenizer_config.json.
         The tokenizer needs `pip install "bert4x[bpe]"`.
Command: python examples/basic_language_model_llama.py --checkpoint FOLDER [--text "The capital of France is"]
             [--samples 3 --topp 0.9] [--dtype bfloat16]
Score:   logits equal those of transformers within 1e-5 on small random models (tests/parity).
Time:    not measured: no published checkpoint is at hand here. GPT2-base: scripts/benchmark/decode.py.
"""

import argparse
import time

from bert4x.models import build_transformer_model
from bert4x.snippets import BadWords, Beam, Generator, Sample, set_seed
from bert4x.tokenizers import BpeTokenizer

# ---- 1. Settings ----------------------------------------------------------------------------------------------------

parser = argparse.ArgumentParser(description="Continue texts with LLaMA, Mistral or Qwen2.")
parser.add_argument("--config", help="configuration; default: the one in --checkpoint")
parser.add_argument("--checkpoint", help="model folder or .safetensors file (needed)")
parser.add_argument("--vocab", help="tokenizer.json, or a folder with one; default: the one in --checkpoint")
parser.add_argument("--text", action="append", help="beginning of a text; may be given several times")
parser.add_argument("--beam", type=int, default=1, help="size of the beam; 1: greedy search (%(default)s)")
parser.add_argument("--samples", type=int, default=0, help="draw so many endings instead (%(default)s)")
parser.add_argument("--topp", type=float, default=0.9, help="draw among the likeliest of this mass (%(default)s)")
parser.add_argument("--temperature", type=float, default=1.0, help="below 1 the likely gets likelier (%(default)s)")
parser.add_argument("--max-length", type=int, default=32, help="longest ending, in tokens (%(default)s)")
parser.add_argument("--end", help="token that ends a text; default: eos_token of tokenizer_config.json")
parser.add_argument("--dtype", default="float32", help="numbers of the model: float32, bfloat16 (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="seed of the draws (%(default)s)")
args = parser.parse_args()
if not args.checkpoint:
    parser.error(
        "this example needs a checkpoint of LLaMA's shape: get the folder of a model such as Qwen/Qwen2.5-0.5B from "
        "huggingface.co (config.json, model.safetensors, tokenizer.json, tokenizer_config.json) and name it with "
        "--checkpoint."
    )

texts = args.text or ["The capital of France is", "1, 2, 3, 4,"]
set_seed(args.seed)

# ---- 2. Data: the beginnings above, and the tokenizer ---------------------------------------------------------------

tokenizer = BpeTokenizer(args.vocab or args.checkpoint)
end_token = args.end or tokenizer.end_of_text
end_id = None if end_token is None else tokenizer.token_to_id(end_token)  # None: only the length ends a text

# ---- 3. Model -------------------------------------------------------------------------------------------------------

model = build_transformer_model(args.config or args.checkpoint, args.checkpoint, model="llama", dtype=args.dtype)

# ---- 4. Training: none, the model is used as it is ------------------------------------------------------------------

# ---- 5. Evaluation --------------------------------------------------------------------------------------------------

# Tables are often larger than the vocabulary; the rows beyond it were never trained.
never = [[i] for i in range(tokenizer._vocab_size, model.builder.vocab_size)]
options = {"n": max(args.samples, 1), "processors": [BadWords(never)] if never else []}
options["strategy"] = Sample(args.temperature, top_p=args.topp) if args.samples else Beam(args.beam)
writer = Generator(model, end_id, tokenizer=tokenizer)
prompts = [tokenizer.encode(text)[0] for text in texts]
started = time.perf_counter()
# All texts in one batch; the keys and values of what was read and written stay in a cache.
results = writer.generate(prompts, args.max_length, **options)
for text, outputs in zip(texts, results, strict=True):
    print(f"\n{text}")
    for output_ids in outputs if args.samples > 1 else [outputs]:
        print(f"  ... {tokenizer.decode(output_ids)}")
print(f"\n({time.perf_counter() - started:.1f} s, most of them to compile)")
