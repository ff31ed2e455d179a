"""Activations, sinusoidal and rotary positions, schedules: values of spec/layers.md and training.md."""

import numpy as np
import pytest
from keras import ops

from bert4x import backend as b
from bert4x.backend.runtime import to_numpy

POINTS = [-3, -1, -0.5, 0.5, 1, 2, 3]
ERF = [-0.00404969409489, -0.158655253931, -0.154268769363, 0.345731230637, 0.841344746069, 1.9544997361, 2.99595030591]
TANH = [-0.00363739208177, -0.158808009392, -0.154285990175, 0.345714009825, 0.841191990608, 1.95459769409, 2.996362608]


@pytest.fixture(autouse=True)
def family_gelu():
    """Leave the global switch as it was."""
    before = b.get_gelu()
    yield
    b.set_gelu(before)


def at_points(function):
    return to_numpy(function(ops.convert_to_tensor(POINTS, dtype="float32")))


def test_gelu(tolerance):
    np.testing.assert_allclose(at_points(b.gelu_erf), ERF, atol=tolerance)
    np.testing.assert_allclose(at_points(b.gelu_tanh), TANH, atol=tolerance)


def test_set_gelu_decides_the_bare_name_only(tolerance):
    b.set_gelu(None)
    assert b.get_gelu() is None and b.get_activation("gelu") is b.gelu_erf
    b.set_gelu("tanh")
    assert b.get_gelu() == "tanh" and b.get_activation("gelu") is b.gelu_tanh
    assert b.get_activation("gelu_erf") is b.gelu_erf
    for name in ("gelu_new", "gelu_pytorch_tanh", "gelu_tanh"):
        np.testing.assert_allclose(at_points(b.get_activation(name)), TANH, atol=tolerance)
    with pytest.raises(ValueError, match="'erf', 'tanh' or None; got 'quick'"):
        b.set_gelu("quick")


def test_other_activations(tolerance):
    x = np.array(POINTS)
    np.testing.assert_allclose(at_points(b.swish), x / (1 + np.exp(-x)), atol=tolerance)
    np.testing.assert_allclose(at_points(b.leaky_relu), np.where(x > 0, x, 0.2 * x), atol=tolerance)
    np.testing.assert_allclose(at_points(b.get_activation("relu")), np.maximum(x, 0), atol=tolerance)
    np.testing.assert_allclose(at_points(b.get_activation(None)), x, atol=tolerance)
    assert b.get_activation(b.swish) is b.swish


def test_sinusoidal_embeddings(tolerance):
    expected = [
        [0.0, 1.0, 0.0, 1.0, 0.0, 1.0],
        [0.841470985, 0.540302306, 0.046399223, 0.998922976, 0.002154433, 0.999997679],
        [0.656986599, 0.753902254, 0.319224651, 0.947679071, 0.015080471, 0.999886283],
    ]
    got = b.sinusoidal_embeddings(ops.convert_to_tensor([0, 1, 7]), 6)
    np.testing.assert_allclose(to_numpy(got), expected, atol=tolerance)
    assert tuple(b.sinusoidal_embeddings(ops.zeros((2, 3)), 4).shape) == (2, 3, 4)
    with pytest.raises(ValueError, match="dim must be even"):
        b.sinusoidal_embeddings(ops.zeros(3), 5)


def rotate(x, positions):
    """One vector after the other, as complex numbers: pair i times e^(i p theta_i)."""
    size = x.shape[-1]
    angle = positions[:, None] * 10000.0 ** (-2 * np.arange(size // 2) / size)
    turn = np.exp(1j * angle)
    turn = turn[:, None] if x.ndim == 4 else turn
    z = (x[..., 0::2] + 1j * x[..., 1::2]) * turn
    return np.stack([z.real, z.imag], axis=-1).reshape(x.shape)


def test_rotary_positions(tolerance):
    positions = np.array([0, 2, 5])
    table = b.sinusoidal_embeddings(ops.convert_to_tensor(positions[None]), 6)
    random = np.random.default_rng(0)
    x, heads = random.normal(size=(2, 3, 6)).astype("float32"), random.normal(size=(2, 3, 4, 6)).astype("float32")
    got = b.apply_rotary_position_embeddings(table, ops.convert_to_tensor(x), ops.convert_to_tensor(heads))
    np.testing.assert_allclose(to_numpy(got[0]), rotate(x, positions), atol=tolerance)
    np.testing.assert_allclose(to_numpy(got[1]), rotate(heads, positions), atol=tolerance)
    single = b.apply_rotary_position_embeddings(table, ops.convert_to_tensor(x))
    np.testing.assert_allclose(to_numpy(single), to_numpy(got[0]), atol=0)


def test_rotary_values_of_the_specification(tolerance):
    x = ops.convert_to_tensor([[[1.0, 0.0, 1.0, 0.0]] * 2])
    table = b.sinusoidal_embeddings(ops.convert_to_tensor([[1, 100]]), 4)
    expected = [[0.540302, 0.841471, 0.99995, 0.01], [0.862319, -0.506366, 0.540302, 0.841471]]
    np.testing.assert_allclose(to_numpy(b.apply_rotary_position_embeddings(table, x))[0], expected, atol=tolerance)


def test_rotary_products_depend_on_the_distance_only(tolerance):
    q, k = np.random.default_rng(1).normal(size=(2, 1, 1, 8)).astype("float32")

    def product(p, s):
        turned = [
            to_numpy(b.apply_rotary_position_embeddings(b.sinusoidal_embeddings(ops.convert_to_tensor([[at]]), 8), x))
            for at, x in ((p, ops.convert_to_tensor(q)), (s, ops.convert_to_tensor(k)))
        ]
        return (turned[0] * turned[1]).sum()

    np.testing.assert_allclose(product(3, 8), product(13, 18), atol=tolerance)
    assert abs(product(3, 8) - product(3, 9)) > 1e-2


@pytest.mark.parametrize(
    ("schedule", "from_zero", "values"),
    [
        ({10: 1, 20: 0.5}, True, {0: 0, 5: 0.5, 10: 1, 15: 0.75, 20: 0.5, 99: 0.5}),
        ({10: 1, 20: 0.5}, False, {0: 1, 5: 1, 15: 0.75}),
        ({0: 2, 10: 1}, True, {0: 2, 5: 1.5, 10: 1, 11: 1}),
        ({"20": 0, "10": 1}, True, {5: 0.5, 15: 0.5}),
        ({4: 1}, True, {0: 0, 1: 0.25, 4: 1, 5: 1}),
    ],
)
def test_piecewise_linear(schedule, from_zero, values):
    for step, expected in values.items():
        got = b.piecewise_linear(ops.convert_to_tensor(step, dtype="int32"), schedule, from_zero=from_zero)
        np.testing.assert_allclose(to_numpy(got), expected, rtol=1e-6)
