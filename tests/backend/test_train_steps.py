"""`value_and_grad` and `overridden` inside `model.fit`: FGM, gradient penalty, two weights by hand."""

import keras
import numpy as np
import pytest
from keras import ops

from bert4x.backend.runtime import backend, overridden, to_numpy, value_and_grad

EPSILON, RATE = 0.5, 0.1
TOKENS, LABELS = np.array([[1, 2, 1], [4, 0, 3]], "int32"), np.array([0, 1], "int32")
TABLE = np.float32([[0.1 * ((3 * i + 2 * j) % 7 - 3) for j in range(3)] for i in range(5)])
W = np.float32([[0.4, -0.3], [0.2, 0.5], [-0.6, 0.1]])
B = np.float32([0.05, -0.05])

FGM_LOSS = 0.748086718401
FGM_W = [0.395989798921, -0.295989798921, 0.207950369257, 0.492049630743, -0.599552708013, 0.0995527080127]
FGM_TABLE = [
    [-0.306431249283, -0.0972984722204, 0.106452861645],
    [0.0115347662962, 0.195125335721, -0.311619848369],
    [0.305767383148, -0.202437332139, -0.00580992418458],
    [-0.106431249283, 0.10270152778, 0.306452861645],
    [0.193568750717, -0.29729847222, -0.0935471383549],
]
PENALTY_LOSS = 0.641798707939
PENALTY_GRAD_W = [[g, -g] for g in (-0.0231443523551, -0.0472909836084, 0.053906180778)]
PENALTY_GRAD_TABLE = [
    [0.0599794653356, -0.0254045357033, -0.0597586190273],
    [-0.103246056469, 0.0440425197659, 0.100948074504],
    [-0.0516230282343, 0.022021259883, 0.0504740372521],
    [0.0599794653356, -0.0254045357033, -0.0597586190273],
    [0.0599794653356, -0.0254045357033, -0.0597586190273],
]
MODES = {
    "tensorflow": [{"run_eagerly": True}, {"jit_compile": False}, {"jit_compile": True}],
    "jax": [{"jit_compile": True}, {"run_eagerly": True}],
    "torch": [{}],
}


class Adversarial(keras.Model):
    """A functional model that trains on a loss made from the loss as a function of its token table."""

    def loss_at(self, value, batch):
        table = self.get_layer("Embedding-Token").embeddings
        x, y, sample_weight = batch
        with overridden([(table, value)], self):
            return super().compute_loss(x, y, self(x, training=True), sample_weight, training=True)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        if not training:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        table = self.get_layer("Embedding-Token").embeddings
        return self.adversarial_loss(table, lambda value: self.loss_at(value, (x, y, sample_weight)))


class FGM(Adversarial):
    def adversarial_loss(self, table, loss_at):
        _, gradient = value_and_grad(loss_at, table, differentiable=False)
        norm = ops.sqrt(ops.sum(gradient**2))
        return loss_at(table.value + EPSILON * gradient / (norm + 1e-8))


class Penalty(Adversarial):
    def adversarial_loss(self, table, loss_at):
        value, gradient = value_and_grad(loss_at, table)
        return value + 0.5 * EPSILON * ops.sum(gradient**2)


def build(kind, *, dropout=0.0, penalty=0.0, **mode):
    tokens = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(5, 3, name="Embedding-Token")(tokens)
    x = keras.layers.GlobalAveragePooling1D()(x)
    if dropout:
        x = keras.layers.Dropout(dropout, seed=7)(x)
    if penalty:
        x = keras.layers.ActivityRegularization(l2=penalty)(x)
    x = keras.layers.Dense(2, name="Output")(keras.layers.Activation("tanh")(x))
    model = kind(tokens, x)
    model.get_layer("Embedding-Token").set_weights([TABLE])
    model.get_layer("Output").set_weights([W, B])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(RATE), loss, **mode)
    return model


def weights(model):
    table, output = model.get_layer("Embedding-Token"), model.get_layer("Output")
    return to_numpy(table.embeddings), to_numpy(output.kernel)


def fit(model, epochs=1):
    history = model.fit(TOKENS, LABELS, batch_size=2, epochs=epochs, shuffle=False, verbose=0)
    return history.history["loss"]


@pytest.fixture(params=MODES[backend()], ids=str)
def mode(request):
    return request.param


def test_fgm_step(mode, tolerance):
    model = build(FGM, **mode)
    (loss,) = fit(model)
    table, kernel = weights(model)
    np.testing.assert_allclose(loss, FGM_LOSS, atol=tolerance)
    np.testing.assert_allclose(kernel, np.reshape(FGM_W, (3, 2)), atol=tolerance)
    np.testing.assert_allclose(table, FGM_TABLE, atol=tolerance)
    assert fit(model, epochs=3)[-1] < loss


def test_gradient_penalty_step(mode, tolerance):
    model = build(Penalty, **mode)
    (loss,) = fit(model)
    table, kernel = weights(model)
    np.testing.assert_allclose(loss, PENALTY_LOSS, atol=tolerance)
    np.testing.assert_allclose(kernel, W - RATE * np.array(PENALTY_GRAD_W), atol=tolerance)
    np.testing.assert_allclose(table, TABLE - RATE * np.array(PENALTY_GRAD_TABLE), atol=tolerance)


def test_evaluation_is_not_perturbed(mode, tolerance):
    model = build(FGM, **mode)
    np.testing.assert_allclose(model.evaluate(TOKENS, LABELS, verbose=0), 0.629717192124, atol=tolerance)


def test_passes_of_one_step_draw_their_own_masks(mode):
    """Keras' pass, the gradient's pass and the adversarial pass: three draws in a step."""
    model = build(FGM, dropout=0.5, **mode)
    seed = next(v for v in model.variables if "seed" in v.path)
    before = to_numpy(seed)
    fit(model, epochs=2)
    np.testing.assert_array_equal(to_numpy(seed), before + [0, 6])


def test_losses_added_by_layers_belong_to_the_perturbed_pass(mode, tolerance):
    """The layer's l2 |mean E[tokens]|^2 is part of the loss, taken at the replaced table."""
    plain, added = build(Shifted, **mode), build(Shifted, penalty=2.0, **mode)
    vectors = (TABLE + 1)[TOKENS].mean(axis=1)
    expected = 2.0 * (vectors**2).sum() / 2  # Keras divides an activity loss by the batch size
    np.testing.assert_allclose(fit(added)[0] - fit(plain)[0], expected, rtol=1e-5)


class Shifted(Adversarial):
    """Trains at E + 1."""

    def adversarial_loss(self, table, loss_at):
        return loss_at(table.value + 1.0)


class Scale(keras.layers.Layer):
    """a x + b with two scalar weights."""

    def build(self, shape):
        self.a = self.add_weight(shape=(), initializer="ones", name="a")
        self.b = self.add_weight(shape=(), initializer="ones", name="b")

    def call(self, x):
        return self.a * x + self.b


class TwoParameters(keras.Model):
    """loss = (a x + b)^2 + (d/da of it)^2, by hand below."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        scale = self.layers[-1]

        def squared(a):
            with overridden([(scale.a, a)], scale):
                return ops.sum(scale(x) ** 2)

        value, slope = value_and_grad(squared, scale.a)
        return value + slope**2


def test_two_parameters_by_hand(mode):
    x = keras.Input(())
    model = TwoParameters(x, Scale()(x))
    model.compile(keras.optimizers.SGD(0.001), **mode)
    model.fit(np.float32([3.0]), verbose=0)
    # u = a x + b = 4, slope = 2 u x; loss = u^2 + 4 u^2 x^2; d/da = 2 u x (1 + 4 x^2), d/db = 2 u (1 + 4 x^2)
    np.testing.assert_allclose(to_numpy(model.layers[-1].a), 1 - 0.001 * 2 * 4 * 3 * 37, rtol=1e-5)
    np.testing.assert_allclose(to_numpy(model.layers[-1].b), 1 - 0.001 * 2 * 4 * 37, rtol=1e-5)


def test_second_derivative_of_a_layer_norm_written_out():
    """Penalty through (x - mean) / sqrt(mean((x - mean)^2) + eps): Keras' own layer is wrong on TensorFlow."""
    mix = np.float32([[0.3, -0.5, 0.2, 0.7], [-0.4, 0.6, 0.1, -0.2], [0.5, 0.2, -0.3, 0.4]])
    out = np.float32([[0.4, -0.3], [0.2, 0.5], [-0.6, 0.1], [0.3, 0.8]])

    def loss(table):
        z = ops.matmul(ops.mean(ops.take(table, TOKENS, axis=0), axis=1), mix)
        d = z - ops.mean(z, axis=-1, keepdims=True)
        z = d * ops.rsqrt(ops.mean(d**2, axis=-1, keepdims=True) + 1e-3)
        logits = ops.matmul(z, out)
        return ops.mean(ops.sparse_categorical_crossentropy(LABELS, logits, from_logits=True))

    def penalised(table):
        value, gradient = value_and_grad(loss, table)
        return value + 0.5 * ops.sum(gradient**2)

    value, gradient = value_and_grad(penalised, ops.convert_to_tensor(TABLE))
    expected = [[1.13672197269, 0.380448415667, -1.71405549428], [13.0744820106, -13.0977830294, 6.70742309077]]
    np.testing.assert_allclose(to_numpy(value), 2.89294504549, rtol=1e-5)
    np.testing.assert_allclose(to_numpy(gradient)[:2], expected, rtol=2e-4)
