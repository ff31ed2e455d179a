"""Adversarial training of a small BERT, and of one that learns from unlabelled texts."""

import keras
import numpy as np
import pytest
from keras import ops

from bert4x.backend.runtime import backend, overridden, to_numpy, value_and_grad
from bert4x.models import build_transformer_model
from bert4x.snippets import (
    DataGenerator,
    SemiSupervised,
    adversarial_training,
    free_lb,
    gradient_penalty,
    virtual_adversarial_training,
)

CONFIG = {
    "vocab_size": 30,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "hidden_act": "gelu",
    "max_position_embeddings": 16,
    "type_vocab_size": 2,
    "initializer_range": 0.5,
}
IDS = np.array([[2, 7, 9, 7, 3, 0], [2, 11, 12, 13, 14, 3]], "int32")
INPUTS, LABELS = [IDS, np.zeros_like(IDS)], np.array([0, 1], "int32")


def classifier(**options):
    body = build_transformer_model(CONFIG, **options)
    model = keras.Model(body.input, keras.layers.Dense(2)(body.output[:, 0]))
    model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def table_of(model):
    return model.get_layer("Embedding-Token").embeddings


def test_gradient_of_the_penalty_through_a_whole_block():
    """Against differences of the penalised loss along two directions; torch's fused attention would fail here."""
    model = classifier()
    gradients = []

    def loss_at(table):
        with overridden([(table_of(model), table)], model):
            return model.compute_loss(INPUTS, LABELS, model(INPUTS, training=True))

    def penalised(table):
        value, gradient = value_and_grad(loss_at, table)
        gradients.append(gradient)
        return value + 0.5 * ops.sum(gradient**2)

    table = to_numpy(table_of(model))
    gradient = to_numpy(value_and_grad(penalised, ops.convert_to_tensor(table), differentiable=False)[1])
    rng = np.random.default_rng(0)
    for direction in (gradient / np.linalg.norm(gradient), rng.normal(size=table.shape).astype("float32") / 16):
        step = 2e-2
        up, down = (
            float(to_numpy(ops.stop_gradient(penalised(ops.convert_to_tensor(table + s * direction)))))
            for s in (step, -step)
        )
        np.testing.assert_allclose((gradient * direction).sum(), (up - down) / (2 * step), rtol=2e-2, atol=2e-3)
    before = table
    gradient_penalty(model).train_on_batch(INPUTS, LABELS)
    np.testing.assert_allclose(to_numpy(table_of(model)), before - 0.1 * gradient, atol=1e-4)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("target", ["table", "output"])
def test_bert_learns_under_attack(target, remat):
    model = adversarial_training(classifier(remat=remat), epsilon=0.3, target=target)
    losses = [model.train_on_batch(INPUTS, LABELS) for _ in range(15)]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.slow
def test_free_lb_of_bert():
    model = free_lb(classifier(), epsilon=0.3)
    losses = [model.train_on_batch(INPUTS, LABELS) for _ in range(12)]
    assert losses[-1] < 0.9 * losses[0]


def test_lora_trains_around_a_frozen_table():
    model = adversarial_training(classifier(lora_rank=2), epsilon=0.3)
    before = to_numpy(table_of(model))
    assert np.isfinite(model.train_on_batch(INPUTS, LABELS))
    np.testing.assert_array_equal(to_numpy(table_of(model)), before)


def collate(records):
    texts, labels = zip(*records, strict=True)
    length = max(map(len, texts))
    ids = np.array([text + [0] * (length - len(text)) for text in texts], "int32")
    return [ids, np.zeros_like(ids)], np.array(labels, "int32")


def test_batches_of_both_kinds():
    labeled = DataGenerator([([2, 5, 3], 1), ([2, 6, 7, 3], 1)], 2, collate=collate)
    unlabeled = DataGenerator([([2, 8, 9, 9, 3], 9)] * 6, 3, collate=collate)
    batches = SemiSupervised(labeled, unlabeled)
    assert len(batches) == 2 == len(list(batches))
    (ids, segments), y, weights = next(iter(batches))
    np.testing.assert_array_equal(ids[:, 0], 2)
    assert ids.shape == segments.shape == (5, 5)
    np.testing.assert_array_equal(ids[0], [2, 5, 3, 0, 0])
    np.testing.assert_array_equal(y, [1, 1, 0, 0, 0])
    np.testing.assert_allclose(weights, [2.5, 2.5, 0, 0, 0])


def test_vat_learns_from_both_kinds():
    labeled = DataGenerator([([2, 5, 3], 0), ([2, 6, 7, 3], 1)], 2, collate=collate)
    unlabeled = DataGenerator([([2, i, i + 1, 3], 9) for i in range(4, 20)], 4, collate=collate)
    model = virtual_adversarial_training(classifier(), epsilon=0.3, xi=1.0)
    model.compile(model.optimizer, model.loss, weighted_metrics=["accuracy"])
    batches = SemiSupervised(labeled, unlabeled)
    history = model.fit(batches.forfit(), steps_per_epoch=10, epochs=3, verbose=0).history
    assert history["loss"][-1] < 0.7 * history["loss"][0]


@pytest.mark.slow
def test_noise_of_vat_is_that_of_its_seed_and_step():
    runs = []
    for seed in (0, 0, 1):
        keras.utils.set_random_seed(3)
        model = virtual_adversarial_training(classifier(), epsilon=0.3, xi=1.0, seed=seed)
        model.optimizer.learning_rate = 0.0
        runs.append([model.train_on_batch(INPUTS, LABELS) for _ in range(2)])
    assert runs[0] == runs[1] and runs[0][0] != runs[2][0]
    assert runs[0][0] != runs[0][1]  # the next step draws anew


@pytest.mark.slow
@pytest.mark.skipif(backend() == "torch", reason="torch runs one step at a time")
def test_several_steps_in_one_execution():
    one, many = classifier(), classifier()
    many.set_weights(one.get_weights())
    many.compile(many.optimizer, many.loss, steps_per_execution=2)
    for model in (one, many):
        adversarial_training(model, epsilon=0.3)
        model.fit(INPUTS, LABELS, batch_size=1, shuffle=False, verbose=0)
    np.testing.assert_allclose(to_numpy(table_of(many)), to_numpy(table_of(one)), atol=1e-6)
