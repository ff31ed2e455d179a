"""Time and peak memory of building and loading BERT-base, against building the same bare Keras model.

Each measurement runs in a process of its own; the formats alternate. Memory is the peak resident size above that of a
process that only imported the framework and built a tiny model.

    python scripts/benchmark/load.py --repeats 5
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent))

import bert

from bert4x.models import build_transformer_model

TINY = {**bert.BASE, "vocab_size": 100, "hidden_size": 24, "num_hidden_layers": 1, "intermediate_size": 24}
LENGTH = 128


def measure(what, directory):
    """Run one measurement in this process and print seconds, peak resident MiB, MiB of weights."""
    build_transformer_model(TINY)
    bert.bare_keras(TINY, LENGTH)
    framework = _peak()
    start = time.perf_counter()
    if what == "bare Keras":
        model = bert.bare_keras(bert.BASE, LENGTH)
    else:
        model = build_transformer_model(bert.BASE, str(Path(directory) / what))
    seconds = time.perf_counter() - start
    weights = sum(_size(v) for v in model.weights)
    print(seconds, _peak() - framework, weights * 4 / 2**20)


def _peak():
    """Peak resident MiB of this process; getrusage would count the parent's pages before exec."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def _size(variable):
    size = 1
    for n in variable.shape:
        size *= n
    return size


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        return measure(*arguments.measure)
    with tempfile.TemporaryDirectory() as directory:
        builder = build_transformer_model(bert.BASE, return_keras_model=False)
        builder.save_weights_as_checkpoint(f"{directory}/model.safetensors")
        builder.save_weights_as_checkpoint(f"{directory}/bert_model.ckpt")
        compare(["bare Keras", "model.safetensors", "bert_model.ckpt"], directory, arguments.repeats)


def compare(kinds, directory, repeats):
    """Alternate the kinds and print medians, and ratios to the bare model and to the size of the weights."""
    results = {kind: [] for kind in kinds}
    for _ in range(repeats):
        for kind in kinds:
            command = [sys.executable, __file__, "--measure", kind, directory]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            results[kind].append([float(number) for number in output.split()[-3:]])
    bare = [row[0] for row in results[kinds[0]]]
    for kind, rows in results.items():
        seconds, peak, weights = zip(*rows, strict=True)
        ratio = statistics.median(s / b for s, b in zip(seconds, bare, strict=True))
        print(
            f"{kind:18s} {statistics.median(seconds):.2f} s ({min(seconds):.2f} .. {max(seconds):.2f}), "
            f"{ratio:.2f} x bare; peak {statistics.median(peak):.0f} MiB = "
            f"{statistics.median(peak) / weights[0]:.2f} x the weights"
        )


if __name__ == "__main__":
    main()
