"""Peak memory of one training step of BERT-base, with and without remat, with Adam and AdaFactor.

Each measurement runs in a process of its own. Memory is the peak resident size above that of a process that only
imported the framework and trained a tiny model; weights and gradients are in it.

    python scripts/benchmark/memory.py --batch-size 8 --length 256
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent))

import bert
import keras
import numpy as np

from bert4x import optimizers
from bert4x.models import build_transformer_model

CASES = [("Adam", False), ("Adam", True), ("AdaFactor", False), ("AdaFactor", True)]
MIB = 2**20


def classifier(config, optimizer, remat):
    """A model and its two inputs' names; logits of two classes from the first token."""
    bert_model = build_transformer_model(config, remat=remat)
    logits = keras.layers.Dense(2)(bert_model.output[:, 0])
    model = keras.Model(bert_model.inputs, logits)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(getattr(optimizers, optimizer)(1e-5), loss)
    return model


def step(model, config, size, length):
    """Seconds of the second training step; the first one compiles."""
    ids = np.random.default_rng(0).integers(1, config["vocab_size"], (size, length)).astype("int32")
    batch = [ids, np.zeros_like(ids)], np.arange(size) % 2
    model.train_on_batch(*batch)
    start = time.perf_counter()
    model.train_on_batch(*batch)
    return time.perf_counter() - start


def measure(optimizer, remat, size, length):
    """Run one measurement in this process; print peak MiB, MiB of optimizer state and of weights, and seconds."""
    tiny = {**bert.BASE, "vocab_size": 100, "hidden_size": 24, "num_hidden_layers": 1, "intermediate_size": 24}
    step(classifier(tiny, optimizer, remat), tiny, 2, 8)
    framework = _peak()
    model = classifier(bert.BASE, optimizer, remat)
    seconds = step(model, bert.BASE, size, length)
    print(_peak() - framework, _mib(model.optimizer.variables), _mib(model.weights), seconds)


def _peak():
    """Peak resident MiB of this process; getrusage would count the parent's pages before exec."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def _mib(variables):
    return sum(int(np.prod(v.shape)) * 4 for v in variables) / MIB


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size, length = arguments.batch_size, arguments.length
    if arguments.measure:
        return measure(arguments.measure[0], arguments.measure[1] == "True", size, length)
    print(f"BERT-base, one training step of {size} x {length} tokens, float32, {keras.backend.backend()}")
    for optimizer, remat in CASES:
        command = [sys.executable, __file__, "--measure", optimizer, str(remat)]
        command += ["--batch-size", str(size), "--length", str(length)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        peak, state, weights, seconds = (float(number) for number in output.split()[-4:])
        print(
            f"{optimizer:9s} {'remat' if remat else '     '}  peak {peak:5.0f} MiB; weights {weights:.0f} MiB, "
            f"optimizer state {state:.1f} MiB; {seconds:.1f} s a step",
            flush=True,
        )


if __name__ == "__main__":
    main()
