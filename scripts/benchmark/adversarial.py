"""Training with adversaries beside plain training: one epoch of a small BERT each, in alternating runs.

    python scripts/benchmark/adversarial.py            # 4 layers, width 256, batch 16 x 64, 20 steps an epoch
    KERAS_BACKEND=jax python scripts/benchmark/adversarial.py --repeats 5
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from bert4x.models import build_transformer_model
from bert4x.snippets import (
    adversarial_training,
    free_lb,
    gradient_penalty,
    projected_gradient_descent,
    virtual_adversarial_training,
)

CONFIG = {
    "vocab_size": 21128,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
}
BATCH, LENGTH, CLASSES = 16, 64, 119
PROCEDURES = {
    "plain": lambda model: model,
    "FGM": lambda model: adversarial_training(model, epsilon=0.5),
    "FGM on outputs": lambda model: adversarial_training(model, epsilon=0.5, target="output"),
    "gradient penalty": gradient_penalty,
    "PGD, 3 steps": lambda model: projected_gradient_descent(model, epsilon=0.5),
    "FreeLB, 3 steps": lambda model: free_lb(model, epsilon=0.5),
    "VAT": lambda model: virtual_adversarial_training(model, epsilon=0.5, xi=1.0),
}


def classifier():
    """A small BERT with the classes of IFLYTEK, compiled."""
    body = build_transformer_model(CONFIG)
    model = keras.Model(body.input, keras.layers.Dense(CLASSES)(body.output[:, 0]))
    model.compile(keras.optimizers.Adam(1e-5), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def epoch(model, steps):
    """A function that trains one epoch."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1, CONFIG["vocab_size"], (BATCH * steps, LENGTH), dtype="int32")
    labels = rng.integers(0, CLASSES, len(ids))
    return lambda: model.fit([ids, np.zeros_like(ids)], labels, batch_size=BATCH, verbose=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20, help="steps in an epoch")
    parser.add_argument("--only", nargs="*", choices=list(PROCEDURES), help="these beside plain training")
    arguments = parser.parse_args()
    chosen = [name for name in PROCEDURES if name == "plain" or not arguments.only or name in arguments.only]
    runs = {name: epoch(PROCEDURES[name](classifier()), arguments.steps) for name in chosen}
    seconds = {name: [] for name in runs}
    print(f"backend {keras.backend.backend()}, {os.cpu_count()} cores, {arguments.steps} steps of {BATCH} x {LENGTH}")
    for run in runs.values():
        run()  # trace and warm up
    for _ in range(arguments.repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    for name, times in seconds.items():
        ratio = statistics.median(t / p for t, p in zip(times, seconds["plain"], strict=True))
        spread = f"{min(times):.2f} .. {max(times):.2f}"
        print(f"{name:17s} median {statistics.median(times):6.2f} s  ({spread})  {ratio:.2f} x plain")


if __name__ == "__main__":
    main()
