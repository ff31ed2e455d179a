"""BERT side by side: bert4x, a bare Keras graph of the same arithmetic, and transformers on torch, in alternating runs.

    python scripts/benchmark/bert.py forward          # BERT-base, batch 8 x 128
    python scripts/benchmark/bert.py train            # 4 layers, batch 16 x 128, one Adam step
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import ops

from bert4x.backend import runtime
from bert4x.models import build_transformer_model

BASE = {
    "vocab_size": 21128,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
}


class BareAttention(keras.layers.Layer):
    """Self-attention as one would write it by hand, without any of our options."""

    def __init__(self, heads, width):
        super().__init__()
        self.heads, self.width = heads, width
        self.query, self.key, self.value, self.out = (keras.layers.Dense(width) for _ in range(4))

    def build(self, shape):
        for dense in (self.query, self.key, self.value, self.out):
            dense.build(shape)

    def call(self, x, key_mask):
        batch, length = ops.shape(x)[:2]
        shape = (batch, length, self.heads, self.width // self.heads)
        q, k, v = (ops.reshape(dense(x), shape) for dense in (self.query, self.key, self.value))
        scores = ops.einsum("bthk,bshk->bhts", q, k) * (self.width // self.heads) ** -0.5
        scores = scores + (1 - ops.cast(key_mask, x.dtype))[:, None, None, :] * -1e9
        o = ops.einsum("bhts,bshk->bthk", ops.softmax(scores), v)
        return self.out(ops.reshape(o, (batch, length, self.width)))


def bare_keras(config, length):
    """The arithmetic of BERT in plain Keras layers."""
    token, segment = (keras.Input((None,), dtype="int32") for _ in range(2))
    width = config["hidden_size"]
    position = keras.layers.Embedding(config["max_position_embeddings"], width)
    x = keras.layers.Embedding(config["vocab_size"], width)(token)
    x = x + keras.layers.Embedding(2, width)(segment) + position(ops.arange(length)[None])
    x = keras.layers.LayerNormalization(epsilon=1e-12)(x)
    mask = ops.not_equal(token, 0)
    for _ in range(config["num_hidden_layers"]):
        y = BareAttention(config["num_attention_heads"], width)(x, mask)
        x = keras.layers.LayerNormalization(epsilon=1e-12)(x + y)
        y = keras.layers.Dense(config["intermediate_size"], activation="gelu")(x)
        x = keras.layers.LayerNormalization(epsilon=1e-12)(x + keras.layers.Dense(width)(y))
    return keras.Model([token, segment], x)


def transformers_model(config):
    """The same model of transformers on torch; None where it is not installed."""
    try:
        import torch
        import transformers
    except ImportError:
        print("transformers: not installed, skipped")
        return None
    torch.set_num_threads(os.cpu_count())
    options = {**config, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return transformers.BertModel(transformers.BertConfig(**options), add_pooling_layer=False)


def batches(config, size, length):
    """Token ids with some padding, segment ids, labels."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1, config["vocab_size"], (size, length), dtype="int32")
    ids[::4, length * 3 // 4 :] = 0
    return ids, np.zeros_like(ids), rng.integers(0, 2, size)


def forward_runs(config, size, length):
    """{name: function that runs one forward pass to its end}."""
    ids, segments, _ = batches(config, size, length)
    runs = {}
    for name, model in {"bert4x": build_transformer_model(config), "bare Keras": bare_keras(config, length)}.items():
        call = runtime.jit(model)
        runs[name] = lambda call=call: runtime.to_numpy(call([ids, segments]))
    theirs = transformers_model(config)
    if theirs is not None:
        runs["transformers"] = _torch_forward(theirs.eval(), ids, segments)
    return runs


def _torch_forward(model, ids, segments):
    import torch

    inputs = {
        "input_ids": torch.tensor(ids).long(),
        "token_type_ids": torch.tensor(segments).long(),
        "attention_mask": torch.tensor(ids != 0).long(),
    }

    def run():
        with torch.inference_mode():
            return model(**inputs).last_hidden_state.numpy()

    return run


def train_runs(config, size, length):
    """{name: function that makes one training step}."""
    ids, segments, labels = batches(config, size, length)
    runs = {}
    for name, body in {"bert4x": build_transformer_model(config), "bare Keras": bare_keras(config, length)}.items():
        model = keras.Model(body.input, keras.layers.Dense(2)(body.output[:, 0]))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(1e-5), loss)
        runs[name] = lambda model=model: model.train_on_batch([ids, segments], labels)
    theirs = transformers_model(config)
    if theirs is not None:
        runs["transformers"] = _torch_train(theirs.train(), ids, segments, labels)
    return runs


def _torch_train(model, ids, segments, labels):
    import torch

    head = torch.nn.Linear(model.config.hidden_size, 2)
    optimizer = torch.optim.Adam([*model.parameters(), *head.parameters()], lr=1e-5)
    ids, segments, labels = (torch.tensor(x).long() for x in (ids, segments, labels))

    def run():
        optimizer.zero_grad()
        hidden = model(input_ids=ids, token_type_ids=segments, attention_mask=(ids != 0).long()).last_hidden_state
        torch.nn.functional.cross_entropy(head(hidden[:, 0]), labels).backward()
        optimizer.step()

    return run


def compare(runs, repeats):
    """Alternate the runs and print medians, spreads and ratios to bert4x."""
    seconds = {name: [] for name in runs}
    for run in runs.values():
        run(), run()  # trace and warm up
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    ours = seconds["bert4x"]
    for name, times in seconds.items():
        ratio = statistics.median(t / o for t, o in zip(times, ours, strict=True))
        spread = f"{min(times):.3f} .. {max(times):.3f}"
        print(f"{name:14s} median {statistics.median(times):.3f} s  ({spread})  {ratio:.2f} x the time of bert4x")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", nargs="?", choices=["forward", "train"], help="default: both")
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    print(f"backend {keras.backend.backend()}, {os.cpu_count()} cores")
    if arguments.mode != "train":
        print("forward, BERT-base, 8 x 128")
        compare(forward_runs(BASE, 8, 128), arguments.repeats)
    if arguments.mode != "forward":
        print("training step, 4 layers, 16 x 128")
        compare(train_runs({**BASE, "num_hidden_layers": 4}, 16, 128), arguments.repeats)


if __name__ == "__main__":
    main()
