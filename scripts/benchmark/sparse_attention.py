"""One layer of self-attention, forward and backward: sparse in blocks against dense; time, peak memory, equality.

Each measurement runs in a process of its own, dense and sparse in turn. A run is compiled as `fit` compiles it (XLA;
torch: eager, where dense attention is a fused kernel) and gives the gradients of all weights and of the input. Memory
is the peak resident size above that of the process before the layer is built, when the framework is loaded and a small
layer has been through the same.

    python scripts/benchmark/sparse_attention.py                     # length 8,192, window 128, 4 heads of 64
    python scripts/benchmark/sparse_attention.py --plot sparse.png   # 512 to 16,384, dense up to --dense-limit
"""

import argparse
import itertools
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import ops

from bert4x.backend import runtime
from bert4x.layers import LocalSelfAttention, MultiHeadAttention, SparseSelfAttention

HEADS, HEAD_SIZE = 4, 64
KINDS = {
    "dense": lambda window: MultiHeadAttention(HEADS, HEAD_SIZE),
    "local": lambda window: LocalSelfAttention(HEADS, HEAD_SIZE, window),
    "causal": lambda window: LocalSelfAttention(HEADS, HEAD_SIZE, window, causal=True),
    "sparse": lambda window: SparseSelfAttention(HEADS, HEAD_SIZE, window),
}
LENGTHS = [512, 1024, 2048, 4096, 8192, 16384]


def compiled(layer, length, allowed=None):
    """A function without arguments: output, and gradients of the weights and the input."""
    x, cotangent = np.random.default_rng(0).standard_normal((2, 1, length, HEADS * HEAD_SIZE)).astype("float32")
    dense = type(layer) is MultiHeadAttention
    if not layer.built:
        layer.build([x.shape] * 3 if dense else x.shape)
    variables = layer.trainable_variables

    def loss(values, x, cotangent, *allowed):
        inputs = [x, x, x, *allowed] if dense else x
        with runtime.overridden(list(zip(variables, values, strict=True)), layer):
            output = layer(inputs, **({"a_bias": True} if allowed else {}))
        return ops.sum(output * cotangent), output

    def step(x, cotangent, *allowed):
        point = [variable.value for variable in variables], x
        (_, output), gradients = runtime.value_and_grad(
            lambda point: loss(*point, cotangent, *allowed), point, differentiable=False, has_aux=True
        )
        return output, gradients

    run = runtime.jit(step, model=layer, xla=True)  # as `fit` compiles it
    tensors = [ops.convert_to_tensor(a) for a in (x, cotangent, *([] if allowed is None else [allowed]))]
    return lambda: run(*tensors)


def measure(kind, length, window, repeats):
    """Print the peak MiB and the median seconds of one kind of layer in this process."""
    _arrays(compiled(KINDS[kind](8), 64)())
    before = _resident("VmRSS")
    run, seconds = compiled(KINDS[kind](window), length), []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        _arrays(run())
        seconds.append(time.perf_counter() - start)
    print(_resident("VmHWM") - before, statistics.median(seconds[1:]))


def equality(length, window):
    """Largest difference to dense attention under the mask: of outputs, and of gradients relative to the largest.

    Without the bias of the keys: it shifts all scores of a query alike, its gradient is 0 but for rounding.
    """
    pairs = {}
    for kind in ("local", "causal", "sparse"):
        layer = KINDS[kind](window)
        got = _arrays(compiled(layer, length)())
        dense = MultiHeadAttention(HEADS, HEAD_SIZE)
        dense.build([(1, length, HEADS * HEAD_SIZE)] * 3)
        dense.set_weights(layer.get_weights())
        want = _arrays(compiled(dense, length, pattern(kind, length, window))())
        differences = [np.abs(a - b).max() / max(1, np.abs(b).max()) for a, b in zip(got, want, strict=True)]
        counted = [not variable.path.endswith("key/bias") for variable in layer.trainable_variables] + [True]
        pairs[kind] = differences[0], max(itertools.compress(differences[1:], counted))
    return pairs


def pattern(kind, length, window):
    """The boolean mask [T, T] that a kind of layer stands for."""
    places = np.arange(length)
    distance = places[:, None] - places[None, :]
    if kind == "sparse":
        return (np.abs(distance) < window) | (distance % window == 0)
    return (np.abs(distance) <= window) & ((distance >= 0) | (kind == "local"))


def _arrays(tensors):
    return [runtime.to_numpy(t) for t in keras.tree.flatten(tensors)]


def _resident(name):
    """MiB of this process: VmRSS now, VmHWM at most so far."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) / 1024


def rounds(kinds, lengths, arguments):
    """{(kind, length): (median peak MiB, median seconds)}, from processes that alternate."""
    found = {}
    for length in lengths:
        for _ in range(arguments.rounds):
            for kind in kinds:
                if kind == "dense" and length > arguments.dense_limit:
                    continue
                found.setdefault((kind, length), []).append(_in_a_process(kind, length, arguments))
        for kind in kinds:
            if (kind, length) in found:
                found[kind, length] = [statistics.median(row) for row in zip(*found[kind, length], strict=True)]
                peak, seconds = found[kind, length]
                print(f"length {length:6d}  {kind:7s} peak {peak:7.1f} MiB  {seconds:7.3f} s", flush=True)
    return found


def _in_a_process(kind, length, arguments):
    command = [sys.executable, __file__, "--measure", kind, "--length", str(length)]
    command += ["--window", str(arguments.window), "--repeats", str(arguments.repeats)]
    # glibc would keep freed blocks of some MiB for itself, which are then counted as the layer's.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "0"}
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return [float(number) for number in output.split()[-2:]]


def plot(found, kinds, path, window):
    """Time and memory over length, both axes logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    for kind in kinds:
        lengths = [length for name, length in found if name == kind]
        for number, axis in enumerate(axes):
            values = [found[kind, length][1 - number] for length in lengths]
            axis.loglog(lengths, values, marker="o", base=2, label=kind)
    for axis, title in zip(axes, ("seconds, forward and backward", "peak memory, MiB"), strict=True):
        axis.set(xlabel="length", title=title)
        axis.legend()
    figure.suptitle(f"{HEADS} heads of {HEAD_SIZE}, window {window}, {keras.backend.backend()}, {os.cpu_count()} cores")
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--window", type=int, default=128, help="neighbours on each side; rate of 'sparse'")
    parser.add_argument("--rounds", type=int, default=3, help="processes for each kind (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="runs in a process after the first (%(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=["dense", "local", "sparse"])
    parser.add_argument("--plot", metavar="PNG", help="lengths 512 to 16,384 in place of --length, and a picture")
    parser.add_argument("--dense-limit", type=int, default=8192, help="longest dense run (%(default)s)")
    parser.add_argument("--no-equality", action="store_true", help="without the comparison with masked dense attention")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    length, window = arguments.length, arguments.window
    if arguments.measure:
        return measure(arguments.measure, length, window, arguments.repeats)
    print(f"backend {keras.backend.backend()}, {os.cpu_count()} cores, {HEADS} heads of {HEAD_SIZE}, window {window}")
    found = rounds(arguments.kinds, LENGTHS if arguments.plot else [length], arguments)
    for (kind, length), (peak, seconds) in found.items():
        if kind != "dense" and ("dense", length) in found:
            dense = found["dense", length]
            print(f"length {length:6d}  dense / {kind}: time {dense[1] / seconds:.1f}, memory {dense[0] / peak:.1f}")
    if arguments.plot:
        plot(found, arguments.kinds, arguments.plot, window)
    elif not arguments.no_equality:
        for kind, (outputs, gradients) in equality(length, window).items():
            print(f"{kind} - masked dense: outputs {outputs:.1e}, gradients {gradients:.1e} of the largest")


if __name__ == "__main__":
    main()
