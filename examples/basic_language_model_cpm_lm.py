"""Few-shot prompts for CPM-LM: a task shown by some solved lines, and the model completes the last one.

No training: k lines "input->answer", then the query without its answer, without a newline before or after. The model
writes until the newline (id 3), 16 tokens at most. Every character counts: a space before the answer is a token too.

Model:   CPM-LM, 2.6 billion parameters, of https://github.com/TsinghuaAI/CPM-1-Generate: two shards
         80000/mp_rank_0X_model_states.pt, which scripts/convert_checkpoints/cpm_lm.py --to huggingface makes a folder
         with configuration and weights, and bpe_3w_new/chinese_vocab.model. The words are cut by jieba:
         `pip install "bert4x[cpm]"`. --dtype bfloat16 halves the memory.
Data:    three tasks below, made up; or --data FILE, a JSON list of {"prompt": ..., "answer": ...}.
Command: python examples/basic_language_model_cpm_lm.py --checkpoint FOLDER --vocab chinese_vocab.model
Score:   share of answers that are right to the letter, printed at the end.
Time:    every token is one step over a cache. Not measured: no published checkpoint is at hand here.
"""

import argparse
import json
import time

import numpy as np

from bert4x.models import build_transformer_model
from bert4x.snippets import AutoRegressiveDecoder, open
from bert4x.tokenizers import CPMTokenizer

# ---- 1. Settings ----------------------------------------------------------------------------------------------------

parser = argparse.ArgumentParser(description="Solve tasks with CPM-LM from a few examples.")
parser.add_argument("--config", help="configuration; default: the one in --checkpoint")
parser.add_argument("--checkpoint", help="converted CPM-LM, folder or checkpoint (needed)")
parser.add_argument("--vocab", help="chinese_vocab.model; default: the .model file in --checkpoint")
parser.add_argument("--data", help='JSON list of {"prompt", "answer"}; default: the tasks below')
parser.add_argument("--beam", type=int, default=1, help="size of the beam; 1: greedy search (%(default)s)")
parser.add_argument("--max-length", type=int, default=16, help="longest answer, in tokens (%(default)s)")
parser.add_argument("--dtype", default="float32", help="numbers of the model: float32, bfloat16 (%(default)s)")
parser.add_argument("--limit", type=int, help="use only this many prompts")
args = parser.parse_args()
if not args.checkpoint:
    parser.error(
        "this example needs a checkpoint of CPM-LM: get both 80000/mp_rank_0X_model_states.pt and chinese_vocab.model "
        "from https://github.com/TsinghuaAI/CPM-1-Generate, convert the shards with "
        "scripts/convert_checkpoints/cpm_lm.py, and name the result with --checkpoint and the vocabulary with --vocab."
    )

ANTONYMS = "大->小\n冷->热\n长->短\n快->慢\n上升->下降\n"
SUMS = "1加1等于2\n3加4等于7\n5加2等于7\n2加6等于8\n"
TRIPLES = (
    "鲁迅写了小说狂人日记->鲁迅,作品,狂人日记\n"
    "长城位于北京->长城,位置,北京\n"
    "姚明出生在上海->姚明,出生地,上海\n"
    "李白是唐朝的诗人->李白,朝代,唐朝\n"
    "苹果公司的总部在加州->苹果公司,总部,加州\n"
    "张艺谋导演了电影英雄->张艺谋,作品,英雄\n"
)
TASKS = [
    {"prompt": ANTONYMS + "高->", "answer": "低"},
    {"prompt": ANTONYMS + "黑->", "answer": "白"},
    {"prompt": SUMS + "4加5等于", "answer": "9"},
    {"prompt": SUMS + "3加3等于", "answer": "6"},
    {"prompt": TRIPLES + "黄河流入渤海->", "answer": "黄河,流入,渤海"},
    {"prompt": TRIPLES + "杜甫是唐朝的诗人->", "answer": "杜甫,朝代,唐朝"},
]

# ---- 2. Data --------------------------------------------------------------------------------------------------------

if args.data:
    with open(args.data) as file:
        TASKS = json.load(file)
tasks = TASKS[: args.limit]
tokenizer = CPMTokenizer(args.vocab or args.checkpoint)
NEWLINE_ID = tokenizer.encode("\n")[0][-1]  # 3

# ---- 3. Model -------------------------------------------------------------------------------------------------------

model = build_transformer_model(args.config or args.checkpoint, args.checkpoint, model="cpm", dtype=args.dtype)


class Completion(AutoRegressiveDecoder):
    """Says what may follow the prompt and what was answered so far."""

    @AutoRegressiveDecoder.wraps(default_rtype="logits")
    def predict(self, inputs, output_ids, states):
        token_ids = np.concatenate([inputs[0], output_ids], axis=1)
        return self.cached_step(model).predict(token_ids)


# ---- 4. Training: none, the examples in the prompt take its place ---------------------------------------------------

# ---- 5. Evaluation --------------------------------------------------------------------------------------------------

completion = Completion(start_id=None, end_id=NEWLINE_ID, maxlen=args.max_length)
right, started = 0, time.perf_counter()
for task in tasks:
    token_ids, _ = tokenizer.encode(task["prompt"])
    output_ids = completion.beam_search([token_ids], args.beam)
    answer = tokenizer.decode(output_ids).strip("\n")
    right += answer == task["answer"]
    mark = "right" if answer == task["answer"] else f"wrong, not {task['answer']}"
    print(f"{task['prompt'].rsplit(chr(10), 1)[-1]}{answer}    ({mark})")
print(f"\nRight to the letter: {right} of {len(tasks)} ({time.perf_counter() - started:.0f} s)")
