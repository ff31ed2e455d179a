"""A step of masked language modelling beside a plain loop of transformers on torch, and the input pipeline alone.

    python scripts/benchmark/pretraining.py              # 4 layers of width 192, 7,000 tokens, batch 32 x 128
    python scripts/benchmark/pretraining.py --width 256 --rows 64

Both run the same model: BERT with its head, float32, AdamW, the norm of the gradients clipped at 1, 15 % of the tokens
predicted, no dropout. Each makes the steps that a training run makes: a batch from the pipeline, the step, its loss
read at the end of a round. The loop is the one that people write, `model(ids, labels=labels).loss`, where the head goes
over all tokens; ours walks the last block and the head for the predicted ones only, with the same loss. `--same-head`
gives transformers that head. Each runs in a process of its own, since torch lost up to a quarter of its speed beside
TensorFlow in one; the other waits.
"""

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if __name__ == "__main__":
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as in `train.py`; the processes inherit it
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pretrain"))

import keras
import network
import numpy as np
import records
import train

from bert4x.tokenizers import Tokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def pipeline(arguments, folder):
    """(batches of random records read from a shard, objective): what `train.py` feeds to `fit`."""
    rng = np.random.default_rng(0)
    size = arguments.length - 3
    ids = rng.integers(len(SPECIAL), arguments.vocab, (4096, size), dtype="int32")
    kinds = rng.choice([0, records.WORD, records.SENTENCE], (4096, size), p=[0.4, 0.55, 0.05]).astype("int32")
    path = Path(folder) / "train-00000-of-00001.tfrecord"
    records.write_shard(path, [records.pack_record(*pair) for pair in zip(ids, kinds, strict=True)])
    vocab = {token: i for i, token in enumerate([*SPECIAL, *(f"t{i}" for i in range(arguments.vocab - len(SPECIAL)))])}
    objective = train.make_objective("mlm", arguments.length, Tokenizer(vocab), 0.15)
    return train.Rows(records.Shards([path]), arguments.rows, objective), objective


def endless(rows):
    """The batches of the passes, one after another, as plain arrays."""
    while True:
        yield from rows


def ours(config, objective, batches):
    """A function that makes `steps` steps and gives the last loss."""
    model, _ = network.build(config, objective)
    train.compile_model(model, train.make_optimizer("adamw", 1e-4, {0: 1.0}, 0.01, 1))

    def run(steps):
        history = model.fit(batches, steps_per_epoch=steps, epochs=1, verbose=0)
        return history.history["loss"][-1]

    return run


def theirs(config, batches, same_head):
    """The same with transformers on torch; None where it is not installed."""
    try:
        import torch
        import transformers
    except ImportError:
        print("transformers: not installed, skipped")
        return None
    torch.set_num_threads(os.cpu_count())
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = transformers.BertForMaskedLM(transformers.BertConfig(**config, **rates)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)

    def loss_of(ids, places, targets, weights):
        inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
        index, counts = (torch.arange(len(ids))[:, None], places), weights > 0
        if same_head:
            logits = model.cls(model.bert(**inputs).last_hidden_state[index])
            return torch.nn.functional.cross_entropy(logits[counts], targets[counts])
        labels = torch.full_like(ids, -100)  # no label; a place that does not count may be that of one that does
        labels[index[0].expand_as(places)[counts], places[counts]] = targets[counts]
        return model(**inputs, labels=labels).loss

    def run(steps):
        for _ in range(steps):
            (ids, _, places), (targets,), (weights,) = next(batches)
            ids, places, targets = (torch.tensor(x).long() for x in (ids, places, targets))
            optimizer.zero_grad()
            loss = loss_of(ids, places, targets, torch.tensor(weights))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        return float(loss.detach())

    return run


def seconds_of(function, *arguments):
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def work(name, arguments, connection):
    """Makes as many steps as it is told, and answers with their seconds; the first answer is whether it can."""
    config = {
        "vocab_size": arguments.vocab, "hidden_size": arguments.width, "num_hidden_layers": arguments.layers,
        "num_attention_heads": 4, "intermediate_size": 4 * arguments.width, "hidden_act": "gelu",
        "max_position_embeddings": 2 * arguments.length, "type_vocab_size": 2,
    }
    with tempfile.TemporaryDirectory() as folder:
        rows, objective = pipeline(arguments, folder)
        if name == "bert4x":
            run = ours(config, objective, rows.forfit())
        else:
            run = theirs(config, endless(rows), arguments.same_head)
        connection.send(run is not None)
        while run is not None and (steps := connection.recv()):
            connection.send(seconds_of(run, steps))


def start(name, arguments):
    """A function of a number of steps that gives their seconds, made in another process; None if it cannot."""
    context = multiprocessing.get_context("spawn")
    connection, other = context.Pipe()
    context.Process(target=work, args=(name, arguments, other), daemon=True).start()
    other.close()  # so that a process that fails ends the wait for it

    def run(steps):
        connection.send(steps)
        return connection.recv()

    return run if connection.recv() else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"width": 192, "layers": 4, "vocab": 7000, "rows": 32, "length": 128, "steps": 10, "repeats": 7}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--same-head", action="store_true", help="transformers' head on the predicted tokens only")
    arguments = parser.parse_args()
    print(f"backend {keras.backend.backend()}, {os.cpu_count()} cores")
    runs = {name: start(name, arguments) for name in ("bert4x", "transformers")}
    compare({name: run for name, run in runs.items() if run}, arguments)


def compare(runs, arguments):
    """Alternate the runs; print tokens per second, their ratio, and the pipeline beside what the model takes."""
    for run in runs.values():
        run(3)  # compile and warm up
    times = {name: [] for name in runs}
    for _ in range(arguments.repeats):
        for name, run in runs.items():
            times[name].append(run(arguments.steps))
    tokens = arguments.steps * arguments.rows * arguments.length
    for name, seconds in times.items():
        ratio = statistics.median(t / o for t, o in zip(seconds, times["bert4x"], strict=True))
        spread = f"{tokens / max(seconds):,.0f} .. {tokens / min(seconds):,.0f}"
        print(f"{name:13s} {tokens / statistics.median(seconds):8,.0f} tokens/s ({spread}), {ratio:.2f} x the time")
    seconds = seconds_of_batches(arguments)
    ratio = statistics.median(times["bert4x"]) / seconds
    print(f"pipeline      {tokens / seconds:8,.0f} tokens/s, {ratio:.0f} x what bert4x takes")


def seconds_of_batches(arguments):
    """What the pipeline alone takes for the batches of one round."""
    with tempfile.TemporaryDirectory() as folder:
        batches = endless(pipeline(arguments, folder)[0])
        rounds = [
            seconds_of(lambda: [next(batches) for _ in range(20 * arguments.steps)]) / 20
            for _ in range(arguments.repeats)
        ]
    return statistics.median(rounds)


if __name__ == "__main__":
    main()
