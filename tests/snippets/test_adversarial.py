"""Adversarial training in one line: numbers of the specification, a model by hand, and everything fit can do."""

import json

import keras
import numpy as np
import pytest
from keras import ops

from bert4x.backend.runtime import backend, to_numpy
from bert4x.optimizers import Adam, extend_with_gradient_accumulation
from bert4x.snippets import adversarial
from bert4x.snippets.adversarial import (
    adversarial_training,
    free_lb,
    gradient_penalty,
    plain_training,
    projected_gradient_descent,
    virtual_adversarial_training,
)
from bert4x.snippets.perturbation import VirtualAdversary

RATE = 0.1
TOKENS, LABELS = np.array([[1, 2, 1], [4, 0, 3]], "int32"), np.array([0, 1], "int32")
TABLE = np.float32([[0.1 * ((3 * i + 2 * j) % 7 - 3) for j in range(3)] for i in range(5)])
W = np.float32([[0.4, -0.3], [0.2, 0.5], [-0.6, 0.1]])
B = np.float32([0.05, -0.05])
MODES = {
    "tensorflow": [{"run_eagerly": True}, {"jit_compile": False}, {"jit_compile": True}],
    "jax": [{"jit_compile": True}, {"run_eagerly": True}],
    "torch": [{}],
}

# [loss.fgm_gp_eps0.5] and [loss.vat_*] of the specification.
PLAIN_LOSS, FGM_LOSS, PENALTY_LOSS = 0.629717192124, 0.748086718401, 0.641798707939
FGM_W = [[0.395989798921, -0.295989798921], [0.207950369257, 0.492049630743], [-0.599552708013, 0.0995527080127]]
FGM_TABLE = [
    [-0.306431249283, -0.0972984722204, 0.106452861645],
    [0.0115347662962, 0.195125335721, -0.311619848369],
    [0.305767383148, -0.202437332139, -0.00580992418458],
    [-0.106431249283, 0.10270152778, 0.306452861645],
    [0.193568750717, -0.29729847222, -0.0935471383549],
]
PENALTY_GRAD_W = [[g, -g] for g in (-0.0231443523551, -0.0472909836084, 0.053906180778)]
PENALTY_GRAD_TABLE = [
    [0.0599794653356, -0.0254045357033, -0.0597586190273],
    [-0.103246056469, 0.0440425197659, 0.100948074504],
    [-0.0516230282343, 0.022021259883, 0.0504740372521],
    [0.0599794653356, -0.0254045357033, -0.0597586190273],
    [0.0599794653356, -0.0254045357033, -0.0597586190273],
]
VAT = [  # epsilon, xi, KL, the gradient for W
    (0.5, 1.0, 0.00734942450277, [0.0142438041698, -0.000312808054407, -0.0186986899721]),
    (1.0, 10.0, 0.0138549642616, [0.0136905083422, 0.000624883025513, -0.0415962926972]),
]


@pytest.fixture(params=MODES[backend()], ids=str)
def mode(request):
    return request.param


def network(*, dropout=0.0):
    tokens = keras.Input((None,), dtype="int32", name="Input-Token")
    x = keras.layers.Embedding(5, 3, name="Embedding-Token")(tokens)
    x = keras.layers.GlobalAveragePooling1D()(x)
    if dropout:
        x = keras.layers.Dropout(dropout, seed=7)(x)
    x = keras.layers.Dense(2, name="Output")(keras.layers.Activation("tanh")(x))
    return with_weights(keras.Model(tokens, x))


def with_weights(model):
    model.get_layer("Embedding-Token").set_weights([TABLE])
    model.get_layer("Output").set_weights([W, B])
    return model


def compiled(model, optimizer=None, **options):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.SGD(RATE), loss, **options)
    return model


def weights(model):
    table, output = model.get_layer("Embedding-Token"), model.get_layer("Output")
    return to_numpy(table.embeddings), to_numpy(output.kernel)


def fit(model, x=TOKENS, y=LABELS, **options):
    return model.fit(x, y, **{"batch_size": 2, "shuffle": False, "verbose": 0, **options}).history


def test_fgm_step(mode, tolerance):
    model = compiled(network(), **mode)
    (loss,) = fit(adversarial_training(model, "Embedding-Token", epsilon=0.5))["loss"]
    table, kernel = weights(model)
    np.testing.assert_allclose(loss, FGM_LOSS, atol=2e-6)
    np.testing.assert_allclose(kernel, FGM_W, atol=2e-6)
    np.testing.assert_allclose(table, FGM_TABLE, atol=2e-6)
    with_weights(model)
    np.testing.assert_allclose(model.evaluate(TOKENS, LABELS, verbose=0), PLAIN_LOSS, atol=tolerance)


def test_gradient_penalty_step(mode):
    model = gradient_penalty(compiled(network(), **mode), "Embedding-Token", weight=0.5)
    (loss,) = fit(model)["loss"]
    table, kernel = weights(model)
    np.testing.assert_allclose(loss, PENALTY_LOSS, atol=2e-6)
    np.testing.assert_allclose(kernel, W - RATE * np.array(PENALTY_GRAD_W), atol=2e-6)
    np.testing.assert_allclose(table, TABLE - RATE * np.array(PENALTY_GRAD_TABLE), atol=2e-6)


class FixedStart(VirtualAdversary):
    """Starts at sin(1 + i + 2j) as the numbers of the specification do."""

    def start(self, passes):
        return ops.convert_to_tensor(np.float32(np.sin(1 + np.arange(5)[:, None] + 2 * np.arange(3))))


@pytest.mark.parametrize(("epsilon", "xi", "distance", "gradient"), VAT)
def test_vat_step(mode, monkeypatch, epsilon, xi, distance, gradient):
    monkeypatch.setattr(adversarial, "VirtualAdversary", FixedStart)
    model = network()
    model.compile(keras.optimizers.SGD(RATE), **mode)  # without a loss, so that Keras asks for no labels
    virtual_adversarial_training(model, epsilon=epsilon, xi=xi, from_logits=True)
    (loss,) = fit(model, y=None)["loss"]
    np.testing.assert_allclose(loss, distance, atol=2e-6)
    np.testing.assert_allclose(weights(model)[1], W - RATE * np.array([[g, -g] for g in gradient]), atol=2e-6)
    model = virtual_adversarial_training(compiled(network(), **mode), epsilon=epsilon, xi=xi)
    (loss,) = fit(model)["loss"]
    np.testing.assert_allclose(loss, PLAIN_LOSS + distance, atol=2e-6)
