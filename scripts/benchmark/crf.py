"""Loss and gradient of a CRF and of a MEMM, compiled, beside pytorch-crf and a CRF as it is usually written.

    python scripts/benchmark/crf.py                  # batch 32, 128 tokens, 30 labels; 4 processes in turn
    KERAS_BACKEND=jax python scripts/benchmark/crf.py --labels 200

`log space` is the recursion of textbooks and of bert4keras, differentiated by the backend. Each process runs one of
the programs, on one thread unless --threads says otherwise. A call makes --steps steps of gradient descent on scores
and transitions in one compiled program, as a loss is part of a training step: else the MEMM, 0.6 ms, would be measured
together with what it takes to call a program, which is as much. pytorch-crf needs `pip install pytorch-crf` and torch;
without it the others are compared. On TensorFlow both ways of compiling are shown: with XLA, as Keras' fit chooses
by itself, and as a plain graph.
"""

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import time

import numpy as np

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
OURS = ["CRF", "MEMM", "log space"]
RATE = 0.1  # of the descent; other scores take the same time, but equal steps could be computed once


def data(arguments):
    """Scores, transitions, labels, lengths between a third of the longest and the longest."""
    random = np.random.default_rng(0)
    size = arguments.batch, arguments.length
    scores = random.standard_normal((*size, arguments.labels)).astype("float32")
    trans = random.standard_normal((arguments.labels,) * 2).astype("float32")
    lengths = random.integers(arguments.length // 3, arguments.length + 1, arguments.batch)
    lengths[0] = arguments.length
    return scores, trans, random.integers(0, arguments.labels, size), np.arange(arguments.length) < lengths[:, None]


def pytorch_crf(scores, trans, labels, mask, arguments):
    """A function that makes the steps with the package pytorch-crf, and gives the first loss."""
    import torch
    from torchcrf import CRF

    torch.set_num_threads(arguments.threads)
    crf = CRF(arguments.labels, batch_first=True)
    with torch.no_grad():
        crf.transitions.copy_(torch.tensor(trans))
        crf.start_transitions.zero_()
        crf.end_transitions.zero_()
    labels, mask = torch.tensor(labels), torch.tensor(mask)

    optimizer = torch.optim.SGD([given := torch.tensor(scores, requires_grad=True), crf.transitions], lr=RATE)

    def run():
        losses = []
        for _ in range(arguments.steps):
            optimizer.zero_grad()
            loss = -crf(given, labels, mask, reduction="mean")
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return float(losses[0])

    return run


def log_space(layer, labels, scores):
    """The loss of a CRF as a loop over log-sum-exp, without a gradient of its own."""
    from keras import ops

    from bert4x.backend.chains import path_scores

    scores, mask = layer.scores_and_mask(scores)
    trans = layer.trans

    def step(before, given):
        here, real = given
        after = here + ops.logsumexp(before[:, :, None] + trans, axis=1)
        after = ops.where(real, after, before)
        return after, after

    steps = ops.transpose(scores, (1, 0, 2)), ops.transpose(mask)[..., None]
    last, _ = ops.scan(step, steps[0][0], tuple(part[1:] for part in steps))
    return ops.logsumexp(last, axis=-1) - path_scores(scores, trans, ops.cast(labels, "int32"), mask)


def ours(name, scores, trans, labels, mask, arguments):
    """A function that makes the steps with a layer, compiled, and gives the first loss."""
    import keras

    from bert4x.backend import runtime
    from bert4x.layers import ConditionalRandomField, MaximumEntropyMarkovModel

    layer = MaximumEntropyMarkovModel() if name == "MEMM" else ConditionalRandomField()
    layer.build((None, None, arguments.labels))
    layer.weights[0].assign(trans)
    padded = np.where(mask[..., None], scores, -1e9).astype("float32")

    def loss(x, labels):
        with runtime.overridden([(layer.weights[0], x[1])], layer):
            loss = log_space(layer, labels, x[0]) if name == "log space" else layer.sparse_loss(labels, x[0])
            return keras.ops.mean(loss)

    def descend(x, trans, labels):
        losses = []
        for _ in range(arguments.steps):
            value, gradients = runtime.value_and_grad(lambda y: loss(y, labels), [x, trans], differentiable=False)
            x, trans = x - RATE * gradients[0], trans - RATE * gradients[1]
            losses.append(value)
        return losses[0], x, trans

    function = runtime.jit(descend, model=layer, xla=arguments.xla)
    inputs = [keras.ops.convert_to_tensor(x) for x in (padded, trans, labels.astype("int32"))]

    def run():
        first, *updated = function(*inputs)
        for tensor in updated:
            runtime.to_numpy(tensor)  # JAX returns before it has computed
        return float(runtime.to_numpy(first))

    return run


def measure(arguments):
    """Print the first loss of one program and the median seconds of a step."""
    if "torch" in os.environ["KERAS_BACKEND"] and arguments.only != "pytorch-crf":
        import torch

        torch.set_num_threads(arguments.threads)
    given = data(arguments)
    run = pytorch_crf(*given, arguments) if arguments.only == "pytorch-crf" else ours(arguments.only, *given, arguments)
    value = run()
    run()
    seconds = []
    for _ in range(arguments.calls):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    print(value, statistics.median(seconds) / arguments.steps)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag, value in (("batch", 32), ("length", 128), ("labels", 30), ("threads", 1), ("steps", 8), ("calls", 15),
                        ("repeats", 3)):
        parser.add_argument(f"--{flag}", type=int, default=value)
    parser.add_argument("--only", help="run one program in this process")
    parser.add_argument("--xla", action="store_true", help="with --only, on TensorFlow")
    arguments = parser.parse_args()
    if arguments.only:
        measure(arguments)
        return
    backend = os.environ["KERAS_BACKEND"]
    programs = [(name, []) for name in OURS]
    if backend == "tensorflow":  # Keras' scan has no gradient under XLA, so the usual CRF cannot be compiled with it
        programs += [(name, ["--xla"]) for name in OURS[:2]]
    if all(importlib.util.find_spec(name) for name in ("torch", "torchcrf")):
        programs.append(("pytorch-crf", []))
    else:
        print("pytorch-crf is not installed (pip install torch pytorch-crf): compared without it")
    compare(programs, [f"--{n}={getattr(arguments, n)}" for n in (
        "batch", "length", "labels", "threads", "steps", "calls")], arguments.repeats)


def compare(programs, flags, repeats):
    """Run the programs in turn, each in a process of its own, and print medians beside those of the fastest CRF."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    results = {(name, *more): [] for name, more in programs}
    for _ in range(repeats):
        for name, more in programs:
            command = [sys.executable, __file__, "--only", name, *more, *flags]
            process = subprocess.run(command, env=environment, check=True, text=True, stdout=subprocess.PIPE)
            results[name, *more].append(list(map(float, process.stdout.split()[-2:])))
    base = max(key for key in results if key[0] == "CRF")
    for key, rows in results.items():
        ratio = statistics.median(row[1] / other[1] for row, other in zip(rows, results[base], strict=True))
        times = [1000 * row[1] for row in rows]
        label = key[0] + (", XLA" if key[1:] else "")
        print(f"{label:12s} loss {rows[0][0]:10.4f}  median {statistics.median(times):8.2f} ms "
              f"({min(times):.2f} .. {max(times):.2f})  {ratio:6.2f} x CRF")


if __name__ == "__main__":
    main()
