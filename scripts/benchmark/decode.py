"""Generation side by side, in alternating runs: tokens per second of `Generator` and of what a user would pick instead.

    python scripts/benchmark/decode.py greedy     # GPT2-base, prompt 32, 128 new tokens, batch 1 and 8: transformers
    python scripts/benchmark/decode.py beam       # the same with a beam of 4
    python scripts/benchmark/decode.py unilm      # BERT-base as UniLM: passes over the whole sequence
    BERT4KERAS_PYTHON=... python scripts/benchmark/decode.py ancestor     # bert4keras, in a process of its own

KERAS_BACKEND chooses the backend. At batch 1 the weights are read once per token: the share of the limit that the
memory sets is printed too.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from bert4x.models import build_transformer_model
from bert4x.snippets import AutoRegressiveDecoder, Beam, Generator

PROMPT, NEW = 32, 128
GPT2 = {
    "vocab_size": 50257,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position": 1024,
    "hidden_act": "gelu_tanh",
}
BERT = {
    "vocab_size": 21128,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "max_position": 512,
}
# Of bert4keras: passes over the whole sequence, one sample at a time. Prints the seconds of one generation.
ANCESTOR = """
import os, sys, time
os.environ["TF_KERAS"] = os.environ["TF_USE_LEGACY_KERAS"] = "1"
import json, numpy as np
from bert4keras.models import build_transformer_model
from bert4keras.snippets import AutoRegressiveDecoder
config, prompt, new, topk = json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
with open(sys.argv[5], "w") as file:
    json.dump(config, file)
model = build_transformer_model(sys.argv[5], None, "gpt2")
class Decoder(AutoRegressiveDecoder):
    @AutoRegressiveDecoder.wraps(default_rtype="probas")
    def predict(self, inputs, output_ids, states):
        return self.last_token(model).predict(np.concatenate([inputs[0], output_ids], 1), verbose=0)
ids = np.random.default_rng(0).integers(1, config["vocab_size"], prompt)
decoder = Decoder(start_id=None, end_id=-1, maxlen=4)
decoder.beam_search([ids], topk)
decoder.maxlen = new
start = time.perf_counter()
decoder.beam_search([ids], topk)
print(time.perf_counter() - start)
"""


def prompts(vocab_size, batch):
    """A batch of random prompts of PROMPT tokens."""
    return np.random.default_rng(0).integers(1, vocab_size, (batch, PROMPT)).tolist()


def transformers_run(batch, beams):
    """A function that generates with transformers' GPT2 of the same size; None where it is not installed."""
    try:
        import torch
        import transformers
    except ImportError:
        print("transformers: not installed, skipped")
        return None
    torch.set_num_threads(os.cpu_count())
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
    ids = torch.tensor(prompts(GPT2["vocab_size"], batch))
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "num_beams": beams}

    def run():
        with torch.inference_mode():
            model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options)

    return run


def compare(runs, tokens, repeats):
    """Alternate the runs and print tokens per second and ratios to bert4x; returns our median of seconds."""
    seconds = {name: [] for name in runs}
    for run in runs.values():
        run()  # compile
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    for name, times in seconds.items():
        ratios = [t / ours for t, ours in zip(times, seconds["bert4x"], strict=True)]
        speed, ratio = tokens / statistics.median(times), statistics.median(ratios)
        spread = f"{min(ratios):.2f} .. {max(ratios):.2f}"
        print(f"  {name:14s} {speed:7.1f} tokens/s  bert4x is {ratio:.2f} x as fast ({spread})", flush=True)
    return statistics.median(seconds["bert4x"])


def copy_bandwidth():
    """Bytes per second that a copy reads and writes, on all cores: the best of several, by torch or else NumPy."""
    source = np.ones(2**27, "float32")
    try:
        import torch

        source = torch.from_numpy(source)
        target = source.clone()
        copy = lambda: target.copy_(source)  # noqa: E731
    except ImportError:
        target = source.copy()
        copy = lambda: np.copyto(target, source)  # noqa: E731
    times = []
    for _ in range(7):
        start = time.perf_counter()
        copy()
        times.append(time.perf_counter() - start)
    return 2 * 4 * 2**27 / min(times)


def gpt2(batch, beams, repeats):
    """Greedy or beam generation against transformers."""
    model = build_transformer_model(None, None, "gpt2", "lm", **GPT2, final_activation="linear")
    generator, texts = Generator(model), prompts(GPT2["vocab_size"], batch)
    strategy = Beam(beams) if beams > 1 else None
    runs = {"bert4x": lambda: generator.generate(texts, NEW, strategy=strategy)}
    theirs = transformers_run(batch, beams)
    if theirs is not None:
        runs["transformers"] = theirs
    print(f"GPT2-base, batch {batch}, beam of {beams}, prompt {PROMPT}, {NEW} new tokens")
    seconds = compare(runs, batch * NEW, repeats)
    if batch == beams == 1:
        # The position table is not read as a whole, the token table is: it is the output layer.
        weights = 4 * (model.count_params() - GPT2["max_position"] * GPT2["hidden_size"])
        bandwidth = copy_bandwidth()
        share, gib = weights * NEW / seconds / bandwidth, bandwidth / 2**30
        print(f"  {weights / 2**20:.0f} MiB of weights per token, copy {gib:.1f} GiB/s: {share:.0%} of the limit")


class WholeSequence(AutoRegressiveDecoder):
    """The decoder that users know, over a UniLM; `by` is last_token or cached_step."""

    model = by = None

    @AutoRegressiveDecoder.wraps(default_rtype="logits")
    def predict(self, inputs, output_ids, states):
        token_ids = np.concatenate([inputs[0], output_ids], axis=1)
        segment_ids = np.concatenate([inputs[1], np.ones_like(output_ids)], axis=1)
        return getattr(self, self.by)(self.model).predict([token_ids, segment_ids])


def unilm(repeats):
    """BERT-base as a UniLM, greedy: the generator, and the decoder with and without cache."""
    model = build_transformer_model(None, None, "bert", "unilm", **BERT, with_mlm="linear")
    generator, texts = Generator(model), prompts(BERT["vocab_size"], 1)
    runs = {"bert4x": lambda: generator.generate(texts, NEW)}
    for by in ("cached_step", "last_token"):
        decoder = WholeSequence(start_id=None, end_id=-1, maxlen=NEW)
        decoder.model, decoder.by = model, by
        runs[by] = lambda decoder=decoder: decoder.beam_search([texts[0], [0] * PROMPT], 1)
    print(f"BERT-base as UniLM, batch 1, source {PROMPT}, {NEW} new tokens")
    compare(runs, NEW, repeats)


def ancestor(repeats):
    """GPT2-base by bert4keras 0.11.5, greedy and with a beam of 4, in turns with ours."""
    import json
    import tempfile

    python = os.environ.get("BERT4KERAS_PYTHON")
    if not python:
        sys.exit("BERT4KERAS_PYTHON must name a Python with bert4keras==0.11.5 and tf-keras")
    model = build_transformer_model(None, None, "gpt2", "lm", **GPT2, final_activation="linear")
    generator, texts = Generator(model), prompts(GPT2["vocab_size"], 1)
    config = {**GPT2, "intermediate_size": 3072, "max_position_embeddings": 1024, "hidden_act": "gelu"}
    for beams in (1, 4):
        strategy, ratios = Beam(beams) if beams > 1 else None, []
        generator.generate(texts, NEW, strategy=strategy)
        for _ in range(repeats):
            start = time.perf_counter()
            generator.generate(texts, NEW, strategy=strategy)
            ours = time.perf_counter() - start
            with tempfile.TemporaryDirectory() as folder:
                given = [json.dumps(config), str(PROMPT), str(NEW), str(beams), os.path.join(folder, "config.json")]
                result = subprocess.run([python, "-c", ANCESTOR, *given], capture_output=True, text=True, check=True)
            theirs = float(result.stdout.split()[-1])
            ratios.append(theirs / ours)
            print(f"  beam of {beams}: bert4keras {NEW / theirs:.1f} tokens/s, bert4x {NEW / ours:.1f}")
        print(f"  beam of {beams}: bert4x is {statistics.median(ratios):.1f} x as fast")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", nargs="?", choices=["greedy", "beam", "unilm", "ancestor"], default="greedy")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    print(f"backend {keras.backend.backend()}, {os.cpu_count()} cores")
    if arguments.mode == "greedy":
        for batch in (1, 8):
            gpt2(batch, 1, arguments.repeats)
    elif arguments.mode == "beam":
        gpt2(1, 4, arguments.repeats)
    else:
        {"unilm": unilm, "ancestor": ancestor}[arguments.mode](arguments.repeats)


if __name__ == "__main__":
    main()
