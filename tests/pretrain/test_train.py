"""Training: the heads, the same curve after a kill, the schedule, checkpoints that load, several devices."""

import csv
import json
import os
import subprocess
import sys

import export
import network
import numpy as np
import objectives
import pytest
import records
import train

from bert4x.backend import keras, runtime
from bert4x.models import build_transformer_model
from bert4x.tokenizers import Tokenizer
from tests.conftest import ROOT

BERT = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "hidden_act": "gelu",
    "max_position_embeddings": 32, "type_vocab_size": 2,
}
STEPS = {"steps_per_execution": 1 if runtime.backend() == "torch" else 2}  # Keras has no more on torch
GPT = {
    "model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "activation_function": "gelu_new",
}


@pytest.fixture(autouse=True)
def full_precision():
    """Runs in mixed precision leave no trace."""
    yield
    keras.mixed_precision.set_global_policy("float32")


@pytest.fixture
def arguments(shards, vocab_file, tmp_path):
    """Function of options -> arguments of a tiny run in tmp_path / name."""

    def make(name, config=BERT, **options):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(config), encoding="utf-8")
        given = {"steps": 6, "save_every": 2, "batch_size": 8, "warmup": 2, "verbose": 0, "validation_records": 8}
        given |= {"config": path, "vocab": vocab_file, "output": tmp_path / name} | options
        words = [f"--{key.replace('_', '-')}" + ("" if value is True else f"={value}") for key, value in given.items()]
        return train.make_parser().parse_args([str(shards), *words])

    return make


def rows_of(path):
    with open(path / "curves.csv", encoding="utf-8") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def losses(path):
    return [(row["step"], row["rate"], row["loss"], row["val_loss"]) for row in rows_of(path)]


class Kill(keras.callbacks.Callback):
    """Ends `fit` in the middle of step `count`, as a signal would."""

    def __init__(self, count):
        super().__init__()
        self.count = count

    def on_train_batch_end(self, batch, logs=None):
        self.count -= 1
        if not self.count:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "options",
    [
        {"num_hidden_layers": 2, "sentence_order": True},
        {"model_type": "albert", "num_hidden_layers": 2},
        {"model_type": "electra", "embedding_size": 8},
        {"attention_variant": "talking_heads"},
        {"model_type": "roformer"},  # its attention counts positions: all queries
        {"attention_variant": "local", "attention_settings": {"neighbors": 8}},  # in blocks: all queries
    ],
)
def test_logits_at_the_places_are_those_of_the_whole_model(options, shards, tokenizer, tolerance):
    options = {**options}
    objective = objectives.MaskedWords(24, tokenizer, sentence_order=options.pop("sentence_order", False))
    model, builder = network.build({**BERT, **options, "vocab_size": tokenizer._vocab_size}, objective)
    data = records.Shards(records.find_shards(shards, "train"))
    inputs, _, _ = objective.batch([data[i] for i in range(4)], np.random.default_rng(0))
    found = model(inputs)
    tokens, *order = found if objective.sentence_order else [found]
    *expected_order, full = builder.model(inputs[:2])[: 1 + len(order)]
    expected = np.take_along_axis(runtime.to_numpy(full), inputs[2][..., None], axis=1)
    np.testing.assert_allclose(runtime.to_numpy(tokens), expected, atol=tolerance)
    for one, other in zip(order, expected_order, strict=True):
        np.testing.assert_allclose(runtime.to_numpy(one), runtime.to_numpy(other), atol=tolerance)
    assert model.count_params() == builder.model.count_params()


def test_networks_that_cannot_be_are_refused(tokenizer):
    size = {"vocab_size": tokenizer._vocab_size}
    masked = objectives.MaskedWords(24, tokenizer)
    with pytest.raises(ValueError, match="need a relative of BERT"):
        network.build(GPT | size, masked)
    with pytest.raises(ValueError, match="none of ours"):
        network.build({**BERT, "model_type": "deberta", **size}, masked)
    with pytest.raises(ValueError, match="learned position table"):
        network.build({**BERT, "model_type": "roformer", **size}, masked, local_heads=True)


def test_huggingface_names_of_families_are_understood(tokenizer):
    config = GPT | {"model_type": "openai-gpt", "vocab_size": tokenizer._vocab_size}
    assert network.build(config, objectives.NextToken(24, tokenizer))[1].model_type == "openai-gpt"


def test_local_heads_start_at_the_neighbours():
    config = {**BERT, "hidden_size": 256, "num_attention_heads": 4, "max_position_embeddings": 64, "vocab_size": 500}
    builder = build_transformer_model(config, return_keras_model=False)
    network.set_local_heads(builder)
    table = runtime.to_numpy(builder.layers["Embedding-Position"].embeddings)
    assert abs(np.sqrt((table**2).mean()) - builder.initializer_range) < 1e-6
    ids = np.random.default_rng(0).integers(5, 500, (1, 60))
    states = keras.Model(builder.inputs, builder.layers["Embedding-Norm"].output)([ids, np.zeros_like(ids)])
    layer = builder.layers["Transformer-0-MultiHeadSelfAttention"]
    q, k = (runtime.to_numpy(dense(states)).reshape(60, 4, 64) for dense in (layer.query, layer.key))
    scores = np.einsum("thk,shk->hts", q, k)[:, 2:-2]
    for head, offset in enumerate((-1, 1, -2, 2)):
        assert (scores[head].argmax(axis=1) == np.arange(2, 58) + offset).mean() > 0.7


@pytest.mark.parametrize(
    ("objective", "config", "options"),
    [
        pytest.param("mlm", BERT, {}, marks=pytest.mark.slow),
        ("mlm+sop", BERT, {"optimizer": "lamb", "learning_rate": 0.02}),
        ("gpt", GPT, {"accumulation": 2}),
        pytest.param("unilm", BERT, {"mixed_precision": "bfloat16", **STEPS}, marks=pytest.mark.slow),
    ],
)
def test_objectives_learn_and_their_checkpoints_load(objective, config, options, arguments, tmp_path, tolerances):
    options = {"learning_rate": 0.01, "steps": 40, "save_every": 20, "decay": 30} | options
    history = train.train(arguments("run", config, objective=objective, **options)).history
    loss = [row["val_tokens_loss" if objective == "mlm+sop" else "val_loss"] for row in rows_of(tmp_path / "run")]
    assert loss[1] < loss[0] < 5 and history["rate"][1] < history["rate"][0]
    folder = tmp_path / "run" / "checkpoint"
    keras.mixed_precision.set_global_policy("float32")
    head = {} if objective == "gpt" else {"with_mlm": "linear", "with_nsp": "sop" in objective}
    tokenizer = Tokenizer(str(folder))
    ids, segments = tokenizer.encode("今天 天气 很 好")
    inputs = [np.array([ids])] if objective == "gpt" else [np.array([ids]), np.array([segments])]
    outputs = []
    for file in ("model.safetensors", "bert_model.ckpt"):
        model = build_transformer_model(str(folder), str(folder / file), **head)
        outputs.append(runtime.to_numpy(model(inputs[0] if objective == "gpt" else inputs)[-1]))
        assert not model.builder.load_report.missing
    np.testing.assert_array_equal(*outputs)
    facts = export.export(tmp_path / "run", tmp_path / "small", "| corpus | licence |")
    assert facts["step"] == 40 and facts["loss"] == loss[-1]
    small = build_transformer_model(str(tmp_path / "small"), **head)
    half = runtime.to_numpy(small(inputs[0] if objective == "gpt" else inputs)[-1])
    np.testing.assert_allclose(half, outputs[0], atol=tolerances["float16"])
    assert Tokenizer(str(tmp_path / "small")).encode("今天")[0] == tokenizer.encode("今天")[0]
    card = (tmp_path / "small" / "README.md").read_text(encoding="utf-8")
    assert f"--objective {objective}" in card and f"{facts['unigram']:.3f} nats" in card
    assert 1 < facts["unigram"] < np.log(120) and 0 < facts["commonest"] < 1


def test_a_run_starts_from_a_checkpoint(arguments, tmp_path, tolerance):
    train.train(arguments("first", learning_rate=0.01, save_every=6))
    checkpoint = tmp_path / "first" / "checkpoint" / "model.safetensors"
    train.train(arguments("second", learning_rate=1e-12, steps=2, checkpoint=checkpoint))
    before, after = (rows_of(tmp_path / name)[-1]["val_loss"] for name in ("first", "second"))
    assert after == pytest.approx(before, rel=10 * tolerance)
    facts = export.export(tmp_path / "second", tmp_path / "small")
    assert facts["step"] == 6 + 2 and facts["loss"] == after
    first, second = facts["command"].split("\n")
    assert f"--output {tmp_path / 'first'}" in first and f"--checkpoint {checkpoint}" in second


def test_options_that_contradict_each_other_are_refused(arguments, tmp_path):
    with pytest.raises(ValueError, match="local_heads would overwrite"):
        train.train(arguments("both", local_heads=True, checkpoint=tmp_path / "model.safetensors"))
    with pytest.raises(ValueError, match="--single-tokens belongs to mlm"):
        train.train(arguments("gpt", GPT, objective="gpt", single_tokens=0.5))


def test_a_killed_run_goes_on_to_the_same_curve(arguments, tmp_path, tolerance):
    options = {"dropout": 0.1, "steps": 8, "objective": "mlm+sop"}
    train.train(arguments("whole", **options))
    with pytest.raises(KeyboardInterrupt):
        train.train(arguments("killed", **options), [Kill(5)])  # in the third part, of which nothing is kept
    assert len(losses(tmp_path / "killed")) == 2
    train.train(arguments("killed", **options))
    np.testing.assert_allclose(losses(tmp_path / "killed"), losses(tmp_path / "whole"), rtol=tolerance)
    states = [dict(np.load(tmp_path / name / "state.npz")) for name in ("whole", "killed")]
    for name in states[0]:
        if name.startswith("variable/"):
            np.testing.assert_allclose(states[0][name], states[1][name], atol=tolerance)


def test_data_in_the_same_order_after_a_resume(shards, tokenizer):
    objective = objectives.MaskedWords(24, tokenizer)
    data = records.Shards(records.find_shards(shards, "train"))

    def stream():
        return train.Rows(data, 8, objective, seed=3)

    def take(generator, count):
        feed = generator._endless()
        return [next(feed) for _ in range(count)]

    first = stream()
    batches = take(first, 2 * len(first) + 3)
    second = stream()
    second.set_state(first.get_state(len(first) + 2))
    for a, b in zip(batches[len(first) + 2 :], take(second, len(first) + 1), strict=True):
        for x, y in zip(a[0] + a[1] + a[2], b[0] + b[1] + b[2], strict=True):
            np.testing.assert_array_equal(x, y)
    passes = [np.concatenate([x[0][0] for x in batches[i * len(first) : (i + 1) * len(first)]]) for i in (0, 1)]
    assert not np.array_equal(*passes)  # another order and other masks in the next pass


def test_finish_ends_the_run_from_where_it_is(arguments, tmp_path):
    facts = json.dumps({"tracked": [[{"step": 2}, {"step": 14}]]})
    np.savez(tmp_path / "state.npz", facts=np.array(facts))
    args = train.settled(arguments("run", steps=1000, finish=6), tmp_path)
    assert (args.steps, args.decay) == (20, 6)
    assert train.make_schedule(args.steps, 2, args.decay) == {0: 0.0, 2: 1.0, 14: 1.0, 20: 0.0}
    args = train.settled(arguments("run", steps=1000), tmp_path)  # killed and started again without --finish
    assert (args.steps, args.decay) == (20, 6)
    assert train.make_schedule(100, 10, 0) == {0: 0.0, 10: 1.0}
    assert train.make_schedule(100, 0, 20) == {0: 1.0, 80: 1.0, 100: 0.0}


PARALLEL = """
import os, sys
sys.path[:0] = [{root!r}, {scripts!r}]
from bert4x.backend import runtime
if runtime.backend() == "tensorflow":
    tf = runtime.tf
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
import train
train.train(train.make_parser().parse_args({words!r}))
"""


@pytest.mark.slow
def test_two_devices_give_the_curve_of_one(arguments, shards, tmp_path, tolerance):
    if runtime.backend() == "torch":
        with pytest.raises(ValueError, match="tensorflow or jax"):
            train.train(arguments("one", data_parallel=True))
        return
    args = arguments("one", steps=4)
    train.train(args)
    words = [str(shards), "--data-parallel", "--output", str(tmp_path / "two"), "--config", str(args.config)]
    for name in ("vocab", "steps", "save_every", "batch_size", "warmup", "validation_records"):
        words += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    program = PARALLEL.format(root=str(ROOT), scripts=str(ROOT / "scripts" / "pretrain"), words=words)
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    # the rows of each half are weighed by their own numbers of predictions
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-2)
