"""Mixed precision around our optimizers, with clipping and averages: near float32, scaled losses, overflow."""

import numpy as np
import pytest

from bert4x import optimizers as o
from bert4x.backend import keras, ops, runtime
from bert4x.layers import SequenceCrossEntropy
from bert4x.models import build_transformer_model
from tests.optimizers.rows import make_class

CONFIG = {
    "vocab_size": 23, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position": 8, "hidden_act": "gelu",
}
NAMES = [
    "weight_decay", "layer_adaptation", "piecewise_linear_lr", "gradient_accumulation", "exponential_moving_average",
]
OPTIONS = {
    "exclude_from_weight_decay": ["Norm", "bias"], "exclude_from_layer_adaptation": ["Norm", "bias"],
    "lr_schedule": {4: 1, 8: 0.5}, "grad_accum_steps": 2, "ema_momentum": 0.5, "global_clipnorm": 1.0,
}


def language_model(policy, optimizer):
    """A small language model that adds its own loss, and ids for it."""
    keras.utils.set_random_seed(0)
    model = build_transformer_model(CONFIG, application="lm", with_mlm="linear", dtype=policy)
    scores = SequenceCrossEntropy(from_logits=True, dtype=policy)([model.inputs[0], model.outputs[0]])
    training = keras.Model(model.inputs, scores)
    training.compile(optimizer)
    ids = np.random.default_rng(1).integers(1, 23, (8, 8)).astype("int32")
    return training, [ids, np.zeros_like(ids)]


def arrays(variables):
    return [np.array(runtime.to_numpy(v)) for v in variables]


def flat(model):
    return np.concatenate([weight.ravel() for weight in arrays(model.trainable_variables)])


def trained(policy, base):
    """Weights before; weights, averages and losses after six updates of two micro-batches."""
    optimizer = make_class(base, NAMES)(0.1, **OPTIONS)
    if policy == "mixed_float16":  # Keras does so itself only where this is the global policy
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=2.0**10)
    model, data = language_model(policy, optimizer)
    start = flat(model)
    losses = model.fit(data, batch_size=4, epochs=6, shuffle=False, verbose=0).history["loss"]
    weights = flat(model)
    with o.ema_weights(model):
        averages = flat(model)
    return start, weights, averages, np.array(losses)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Layer adaptation on AdaFactor")
@pytest.mark.parametrize("base", ["Adam", "AdaFactor"])
def test_half_precision_is_near_float32(base):
    """As a whole: single gradients near zero may change their sign, of which Adam makes a whole step."""
    start, *wanted, losses = trained("float32", base)
    assert losses[-1] < losses[0] - 0.03
    for policy, near in (("mixed_bfloat16", 0.3), ("mixed_float16", 0.1)):
        _, *got, half_losses = trained(policy, base)
        np.testing.assert_allclose(half_losses, losses, rtol=0.01)
        for one, two in zip(got, wanted, strict=True):
            assert one.dtype == np.float32
            assert np.linalg.norm(one - two) < near * np.linalg.norm(two - start)


def update(optimizer, gradient, weight):
    """One update; loss scaling works on JAX only without side effects, as `fit` uses it."""
    gradients = [ops.convert_to_tensor(gradient)]
    if runtime.backend() != "jax":
        optimizer.apply(gradients)
        return
    state = [v.value for v in optimizer.variables]
    (new_weight,), state = optimizer.stateless_apply(state, gradients, [weight.value])
    for variable, value in zip([weight, *optimizer.variables], [new_weight, *state], strict=True):
        variable.assign(value)


def test_a_step_that_overflows_changes_nothing():
    """Neither weights nor moments nor the number of updates; the loss scale is halved."""
    inner = make_class("Adam", ["weight_decay", "exponential_moving_average"])(0.1)
    optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=2.0**10)
    weight = keras.Variable(np.ones((2, 2), "float32"), name="kernel")
    optimizer.build([weight])
    update(optimizer, [[1024.0, 2048.0], [3072.0, 4096.0]], weight)
    before = arrays([weight, *inner.variables])
    assert int(inner.iterations) == 1 and (before[0] != 1).all()
    for bad in (np.inf, np.nan):
        update(optimizer, [[1.0, 2.0], [bad, 4.0]], weight)
        for one, two in zip(arrays([weight, *inner.variables]), before, strict=True):
            np.testing.assert_array_equal(one, two)
    assert float(optimizer.dynamic_scale) == 2.0**8
