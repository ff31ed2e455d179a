"""Adversarial training in one line: numbers of the specification, a model by hand, and everything fit can do."""

import keras
import numpy as np
import pytest
from keras import ops

from bert4x.backend.runtime import backend, to_numpy, value_and_grad
from bert4x.optimizers import extend_with_gradient_accumulation
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
SLOWER = [m for m in MODES[backend()] if "run_eagerly" not in m]

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


XLA_SLOW = [pytest.param(m, marks=pytest.mark.slow) if m == {"jit_compile": True} else m for m in SLOWER]


@pytest.fixture(params=XLA_SLOW if backend() == "tensorflow" else SLOWER, ids=str)
def mode_of_a_table(request):
    """The compiled modes again; XLA takes seconds and is in every test of two parameters."""
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


def test_fgm_step(mode_of_a_table, tolerance):
    model = compiled(network(), **mode_of_a_table)
    (loss,) = fit(adversarial_training(model, "Embedding-Token", epsilon=0.5))["loss"]
    table, kernel = weights(model)
    np.testing.assert_allclose(loss, FGM_LOSS, atol=2e-6)
    np.testing.assert_allclose(kernel, FGM_W, atol=2e-6)
    np.testing.assert_allclose(table, FGM_TABLE, atol=2e-6)
    with_weights(model)
    np.testing.assert_allclose(model.evaluate(TOKENS, LABELS, verbose=0), PLAIN_LOSS, atol=tolerance)


def test_gradient_penalty_step(mode_of_a_table):
    model = gradient_penalty(compiled(network(), **mode_of_a_table), "Embedding-Token", weight=0.5)
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
def test_vat_step(mode_of_a_table, monkeypatch, epsilon, xi, distance, gradient):
    monkeypatch.setattr(adversarial, "VirtualAdversary", FixedStart)
    model = network()
    model.compile(keras.optimizers.SGD(RATE), **mode_of_a_table)  # without a loss, so that Keras asks for no labels
    virtual_adversarial_training(model, epsilon=epsilon, xi=xi, from_logits=True)
    (loss,) = fit(model, y=None)["loss"]
    np.testing.assert_allclose(loss, distance, atol=2e-6)
    np.testing.assert_allclose(weights(model)[1], W - RATE * np.array([[g, -g] for g in gradient]), atol=2e-6)
    model = virtual_adversarial_training(compiled(network(), **mode_of_a_table), epsilon=epsilon, xi=xi)
    (loss,) = fit(model)["loss"]
    np.testing.assert_allclose(loss, PLAIN_LOSS + distance, atol=2e-6)


def scalar_model(**options):
    """y = e w, loss (y - 1)^2, with e = 0.5 the whole embedding table and w = 3."""
    ids = keras.Input((), dtype="int32")
    e = keras.layers.Embedding(1, 1, name="Embedding-Token")(ids)
    model = keras.Model(ids, keras.layers.Dense(1, use_bias=False, name="Output")(e))
    model.set_weights([np.float32([[0.5]]), np.float32([[3.0]])])
    model.compile(keras.optimizers.SGD(0.01), "mse", **options)
    return model


def slopes(e, w):
    """Loss, dL/de and dL/dw of the scalar model."""
    u = e * w - 1
    return u**2, 2 * u * w, 2 * u * e


def by_hand(kind, e=0.5, w=3.0):
    """Loss, dL/de and dL/dw of each procedure; in one dimension a direction is a sign."""
    clean, fgm = np.array(slopes(e, w)), np.array(slopes(e + 0.2, w))  # u = 0.5: uphill is up
    if kind == "mix":
        return clean + fgm
    if kind == "penalty":  # L + G^2 with G = 2 (e w - 1) w
        g = slopes(e, w)[1]
        return clean + [g**2, 2 * g * 2 * w**2, 2 * g * (4 * e * w - 2)]
    # PGD: two steps of 0.15 reach 0.3 and are shortened to 0.2.
    return fgm


PROCEDURES = {
    "fgm": lambda model: adversarial_training(model, epsilon=0.2),
    "mix": lambda model: adversarial_training(model, epsilon=0.2, mix=True),
    "pgd": lambda model: projected_gradient_descent(model, epsilon=0.2, step_size=0.15, steps=2),
    "penalty": lambda model: gradient_penalty(model, weight=2.0),
}


@pytest.mark.parametrize("kind", PROCEDURES)
def test_two_parameters_by_hand(mode, kind):
    model = PROCEDURES[kind](scalar_model(**mode))
    loss = model.train_on_batch(np.int32([0]), np.float32([[1.0]]))
    expected, de, dw = by_hand(kind)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(np.ravel(model.get_weights()), [0.5 - 0.01 * de, 3 - 0.01 * dw], rtol=1e-5)


def test_free_lb_by_hand():
    """Starts epsilon / 2 up or down, then goes up by the step size; the loss is the mean of both places."""
    model = free_lb(scalar_model(), epsilon=0.2, step_size=0.05, steps=2)
    loss = model.train_on_batch(np.int32([0]), np.float32([[1.0]]))
    ways = [np.mean([slopes(0.5 + d, 3.0), slopes(0.5 + d + 0.05, 3.0)], axis=0) for d in (0.1, -0.1)]
    expected, de, dw = min(ways, key=lambda way: abs(way[0] - loss))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(np.ravel(model.get_weights()), [0.5 - 0.01 * de, 3 - 0.01 * dw], rtol=1e-5)


@pytest.mark.parametrize("target", ["table", "output"])
@pytest.mark.parametrize("procedure", [adversarial_training, virtual_adversarial_training])
def test_length_by_that_of_the_rows(procedure, target):
    given, by_rows = network(), network()
    length = 0.3 * float(np.sqrt((TABLE**2).sum(axis=1)).mean())
    first = fit(procedure(compiled(given), epsilon=length, target=target))["loss"]
    again = fit(procedure(compiled(by_rows), epsilon=None, target=target))["loss"]
    np.testing.assert_allclose(again, first, atol=1e-6)
    np.testing.assert_allclose(weights(by_rows)[1], weights(given)[1], atol=1e-6)


def test_one_step_of_pgd_is_fgm():
    fgm, pgd = network(), network()
    fit(adversarial_training(compiled(fgm), epsilon=0.5))
    fit(projected_gradient_descent(compiled(pgd), epsilon=0.5, step_size=0.5, steps=1))
    np.testing.assert_allclose(weights(pgd)[1], weights(fgm)[1], atol=1e-7)


def test_before_compile_twice_after_fit_and_undone():
    model = network()
    plain = type(model)
    fit(compiled(adversarial_training(model, epsilon=9.0)))
    with_weights(model)
    adversarial_training(model, epsilon=0.5)  # replaces; the compiled step of the first is dropped
    np.testing.assert_allclose(fit(model)["loss"], FGM_LOSS, atol=2e-6)
    assert isinstance(model, plain) and type(model).__mro__.count(adversarial._Trained) == 1
    plain_training(with_weights(model))
    assert type(model) is plain and plain_training(model) is model
    np.testing.assert_allclose(fit(model)["loss"], PLAIN_LOSS, atol=2e-6)


@keras.saving.register_keras_serializable("bert4x_tests")
class Classifier(keras.Model):
    """A subclassed model with its own compute_loss: twice the compiled one."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.table = keras.layers.Embedding(5, 3, name="Embedding-Token")
        self.out = keras.layers.Dense(2, name="Output")

    def call(self, x):
        return self.out(ops.tanh(ops.mean(self.table(x), axis=1)))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return 2 * super().compute_loss(x, y, y_pred, sample_weight, training=training)


def sequential():
    return with_weights(
        keras.Sequential(
            [
                keras.Input((None,), dtype="int32"),
                keras.layers.Embedding(5, 3, name="Embedding-Token"),
                keras.layers.GlobalAveragePooling1D(),
                keras.layers.Activation("tanh"),
                keras.layers.Dense(2, name="Output"),
            ]
        )
    )


def subclassed():
    model = Classifier()
    model(TOKENS)
    return with_weights(model)


def nested():
    inner = network()
    tokens = keras.Input((None,), dtype="int32")
    return keras.Model(tokens, keras.layers.Activation("linear")(inner(tokens)))


@pytest.mark.parametrize(("make", "factor"), [(sequential, 1), (subclassed, 2), (nested, 1)])
def test_any_kind_of_model_is_trained_saved_and_loaded_plain(make, factor, tmp_path):
    model = make()
    plain = type(model)
    (loss,) = fit(adversarial_training(compiled(model), epsilon=0.5))["loss"]
    np.testing.assert_allclose(loss, factor * FGM_LOSS, atol=4e-6)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is plain
    np.testing.assert_array_equal(loaded.predict(TOKENS, verbose=0), model.predict(TOKENS, verbose=0))
    if plain is not Classifier:
        assert type(keras.models.clone_model(model)) is plain


def test_a_subclassed_model_that_is_built_in_its_first_step():
    model = compiled(Classifier())
    fit(adversarial_training(model, epsilon=0.5), epochs=2)
    assert model.built


def test_frozen_table_is_perturbed_but_not_trained():
    model = network()
    model.get_layer("Embedding-Token").trainable = False
    np.testing.assert_allclose(fit(adversarial_training(compiled(model), epsilon=0.5))["loss"], FGM_LOSS, atol=2e-6)
    np.testing.assert_array_equal(weights(model)[0], TABLE)
    np.testing.assert_allclose(weights(model)[1], FGM_W, atol=2e-6)


def test_rate_zero_leaves_every_bit_of_the_weights():
    model = compiled(network(), keras.optimizers.SGD(0.0))
    fit(adversarial_training(model), epochs=2)
    np.testing.assert_array_equal(weights(model)[0], TABLE)
    np.testing.assert_array_equal(weights(model)[1], W)


def test_metrics_are_those_of_the_perturbed_pass():
    model = compiled(network(), metrics=[keras.metrics.SparseCategoricalCrossentropy("seen", from_logits=True)])
    history = fit(adversarial_training(model, epsilon=0.5))
    np.testing.assert_allclose(history["seen"], history["loss"], atol=2e-6)


def test_sample_weights():
    """Weight 0 for the second row, 2 for the first: a batch of the first row alone."""
    model, alone = network(), network()
    fit(adversarial_training(compiled(model), epsilon=0.5), sample_weight=np.float32([2, 0]))
    fit(adversarial_training(compiled(alone), epsilon=0.5), TOKENS[:1], LABELS[:1])
    np.testing.assert_allclose(weights(model)[0], weights(alone)[0], atol=1e-6)


def test_accumulation_perturbs_each_micro_batch_on_its_own():
    accumulated = extend_with_gradient_accumulation(keras.optimizers.SGD)(RATE, grad_accum_steps=2)
    model = compiled(network(), accumulated)
    fit(adversarial_training(model, epsilon=0.5), batch_size=1)
    moves = []
    for row in (0, 1):
        alone = network()
        fit(adversarial_training(compiled(alone), epsilon=0.5), TOKENS[row : row + 1], LABELS[row : row + 1])
        moves.append(weights(alone)[0] - TABLE)
    np.testing.assert_allclose(weights(model)[0] - TABLE, np.mean(moves, axis=0), atol=1e-6)


@pytest.mark.parametrize("procedure", [adversarial_training, gradient_penalty])
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_and_loss_scaling(policy, procedure, tolerances):
    keras.config.set_dtype_policy(policy)
    try:
        model = compiled(network())
    finally:
        keras.config.set_dtype_policy("float32")
    plain = compiled(network())
    for each in (model, plain):
        fit(procedure(each))
    near = tolerances[policy.removeprefix("mixed_")]
    np.testing.assert_allclose(weights(model)[0], weights(plain)[0], atol=near / 5)
    assert weights(model)[0].dtype == "float32" and np.abs(weights(model)[0] - TABLE).max() > 1e-3


def test_dropout_draws_in_both_passes_unless_told_otherwise():
    for training, draws in ((True, 2), (False, 1)):
        model = compiled(network(dropout=0.5))
        seed = next(v for v in model.variables if "seed" in v.path)
        before = to_numpy(seed)
        fit(adversarial_training(model, training=training), epochs=3)
        np.testing.assert_array_equal(to_numpy(seed), before + [0, 3 * draws])


def test_losses_of_layers_and_regularizers_are_taken_where_the_model_is_moved():
    """With the l2 of the table as the only loss, G = 2 E / |2 E| and the loss is (|E| + epsilon)^2."""
    tokens = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(5, 3, name="Embedding-Token", embeddings_regularizer=keras.regularizers.L2(1.0))(tokens)
    model = keras.Model(tokens, keras.layers.Lambda(lambda x: 0 * x[:, 0, :2])(x))
    model.get_layer("Embedding-Token").set_weights([TABLE])
    constant = np.log(2)
    (loss,) = fit(adversarial_training(compiled(model), epsilon=0.5))["loss"]
    np.testing.assert_allclose(loss - constant, (np.sqrt((TABLE**2).sum()) + 0.5) ** 2, rtol=1e-5)


def test_target_output_moves_each_sample_by_its_own_gradient():
    def losses(x):
        logits = ops.add(ops.matmul(ops.tanh(ops.mean(x, axis=1)), ops.convert_to_tensor(W)), ops.convert_to_tensor(B))
        return ops.mean(ops.sparse_categorical_crossentropy(LABELS, logits, from_logits=True))

    vectors = ops.convert_to_tensor(TABLE[TOKENS])
    gradient = to_numpy(value_and_grad(losses, vectors)[1])
    moved = TABLE[TOKENS] + 0.3 * gradient / np.sqrt((gradient**2).sum((1, 2), keepdims=True))
    model = compiled(network())
    (loss,) = fit(adversarial_training(model, epsilon=0.3, target="output"))["loss"]
    np.testing.assert_allclose(loss, to_numpy(losses(ops.convert_to_tensor(moved))), atol=2e-6)
    assert np.abs(weights(model)[0] - TABLE).max() > 1e-3


def test_errors_say_what_to_do():
    model = network()
    with pytest.raises(ValueError, match=r"got 'Token'. The model has \['Embedding-Token'\]"):
        adversarial_training(model, "Token")
    with pytest.raises(ValueError, match="'Output' is a Dense"):
        adversarial_training(model, "Output")
    with pytest.raises(ValueError, match="target must be"):
        adversarial_training(model, target="input")
    with pytest.raises(ValueError, match="steps must be at least 1"):
        projected_gradient_descent(model, steps=0)
    with pytest.raises(ValueError, match="epsilon=None is for"):
        free_lb(model, epsilon=None)
    with pytest.raises(TypeError, match="needs a Keras model"):
        adversarial_training(model.get_layer("Output"))
    with pytest.raises(ValueError, match="OwnStep has its own"):
        adversarial_training(OwnStep(model.inputs, model.outputs))


class OwnStep(keras.Model):
    def train_step(self, *arguments):
        return super().train_step(*arguments)
