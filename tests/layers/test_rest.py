"""What the contract table cannot say: norms, positions, tables and feed-forward at their edges."""

import keras
import numpy as np
import pytest
from keras import ops

from bert4x import layers
from bert4x.backend import apply_rotary_position_embeddings, runtime, sinusoidal_embeddings
from tests.layers.helpers import assert_close, gradients, mask_of, randomize, to_arrays
from tests.reference import layers as reference


def normal(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


# ---- norms


def test_norm_of_a_constant_vector_is_zero():
    x = np.full((1, 2, 4), 3.0, "float32")
    for dtype in ("float32", "mixed_float16", "mixed_bfloat16"):
        assert (to_arrays(layers.LayerNormalization(dtype=dtype)(x))[0] == 0).all()
    assert np.isfinite(to_arrays(layers.LayerNormalization(zero_mean=False)(0 * x))[0]).all()


def test_norm_epsilon_defaults_to_that_of_bert():
    assert layers.LayerNormalization().epsilon == layers.LayerNormalization(epsilon=None).epsilon == 1e-12


def test_norm_survives_large_values_in_float16():
    """Squares of 300 overflow float16, unless the statistics are taken in float32."""
    x = 300 * normal(1, 3, 8)
    got = to_arrays(layers.LayerNormalization(dtype="mixed_float16")(x))[0]
    assert_close(got, reference.layer_norm(x.astype("float16").astype("float64")), 5e-3)


def test_norm_weights_are_beta_then_gamma_then_the_conditions():
    layer = layers.LayerNormalization(conditional=True, hidden_units=3, name="norm")
    layer([normal(2, 5, 8), normal(2, 4)])
    assert [v.path for v in layer.weights] == [
        "norm/beta", "norm/gamma", "norm/hidden_dense/kernel", "norm/beta_dense/kernel", "norm/gamma_dense/kernel"
    ]


def test_a_fresh_condition_changes_nothing():
    x, c = normal(2, 5, 8), normal(2, 4)
    for options in ({}, {"hidden_units": 3, "hidden_activation": "tanh"}):
        layer = layers.LayerNormalization(conditional=True, **options)
        assert_close(layer([x, c]), layers.LayerNormalization()(x), 0)
        learnt = gradients(layer, lambda layer=layer: ops.sum(layer([x, c]) ** 3))
        assert np.abs(learnt["gamma_dense/kernel"]).max() > 0  # zero, but not stuck there


def test_second_derivative_of_the_norm():
    """Of f(x) = sum(norm(x)^3), along v: compared with a difference of first derivatives. Keras' own layer fails."""
    layer = layers.LayerNormalization(epsilon=1e-3)
    x, v = (ops.convert_to_tensor(normal(1, 1, 6, seed=seed)) for seed in (1, 2))
    layer(x)
    randomize(layer)

    def slope(x):
        _, gradient = runtime.value_and_grad(lambda x: ops.sum(layer(x) ** 3), x)
        return ops.sum(gradient * v)

    _, second = runtime.value_and_grad(slope, x)
    step = 1e-2
    firsts = []
    for sign in (-1, 1):
        _, gradient = runtime.value_and_grad(lambda x: ops.sum(layer(x) ** 3), x + sign * step * v)
        firsts.append(to_arrays(gradient)[0])
    want = (firsts[1] - firsts[0]) / (2 * step)
    assert np.abs(want).max() > 1
    assert_close(second, want, 0.01 * np.abs(want).max())


def test_scale_offset_with_numbers_has_no_weights(tolerance):
    layer, x = layers.ScaleOffset(scale=3, offset=-1), normal(2, 5, 8)
    assert_close(layer(x), 3 * x - 1, tolerance)
    assert layer.weights == []
    nothing = layers.ScaleOffset(scale=False, offset=False)
    assert_close(nothing(x), x, 0)


# ---- positions


def test_learned_positions_refuse_what_their_table_does_not_cover():
    layer = layers.PositionEmbedding(4, 8)
    with pytest.raises(ValueError, match="covers 4 positions; got a sequence of 5"):
        layer(normal(1, 5, 8))
    with pytest.raises(ValueError, match="covers 4 positions"):
        layers.PositionEmbedding(4, 8)(keras.Input((5, 8)))
    layers.PositionEmbedding(3, 8, hierarchical=True)(normal(1, 9, 8))
    with pytest.raises(ValueError, match="covers 9 positions"):
        layers.PositionEmbedding(3, 8, hierarchical=True)(normal(1, 10, 8))


@pytest.mark.parametrize("alpha", [0.5, 1.0, -0.1])
def test_hierarchical_alpha(alpha):
    with pytest.raises(ValueError, match="hierarchical must be"):
        layers.PositionEmbedding(4, 8, hierarchical=alpha)


def test_hierarchical_positions_keep_the_table(tolerance):
    x = np.zeros((1, 4, 8), "float32")
    plain, stretched = layers.PositionEmbedding(4, 8), layers.PositionEmbedding(4, 8, hierarchical=0.3)
    plain(x), stretched(x)
    table = normal(4, 8)
    plain.set_weights([table]), stretched.set_weights([table])
    assert_close(stretched(x), plain(x), tolerance)
    ids = np.array([[0, 3, 7, 15]], "int32")
    custom = layers.PositionEmbedding(4, 8, hierarchical=0.3, custom_position_ids=True)
    custom([x, ids])
    custom.set_weights([table])
    assert_close(custom([x, ids])[0], reference.hierarchical(table, 16, 0.3)[ids[0]], tolerance)


def test_merge_mode_is_checked():
    with pytest.raises(ValueError, match="merge_mode must be one of add, mul, zero, concat; got 'sum'"):
        layers.SinusoidalPositionEmbedding(8, merge_mode="sum")


def test_sinusoidal_initializer(tolerance):
    table = layers.Sinusoidal()((9, 6), "float32")
    assert_close(table, reference.sinusoidal(range(9), 6), tolerance)
    assert isinstance(keras.initializers.get(keras.initializers.serialize(layers.Sinusoidal())), layers.Sinusoidal)


def test_t5_table_uses_its_initializer():
    """bert4keras accepted embeddings_initializer here and did not use it."""
    layer = layers.RelativePositionEmbeddingT5(8, 2, embeddings_initializer="ones")
    assert (to_arrays(layer([normal(1, 3, 4)] * 2))[0] == 1).all()


def test_rotary_products_depend_on_the_distance_only(tolerance):
    x, y = (ops.convert_to_tensor(normal(1, 1, 6, seed=seed)) for seed in (1, 2))
    products = []
    for p, q in ((3, 1), (12, 10), (2, 0)):
        tables = [sinusoidal_embeddings(np.array([[position]]), 6) for position in (p, q)]
        a, b = (apply_rotary_position_embeddings(table, t) for table, t in zip(tables, (x, y), strict=True))
        products.append(to_arrays(ops.sum(a * b))[0])
    assert_close(products, [products[0]] * 3, tolerance)


# ---- tables, masks, feed-forward


def test_position_zero_is_never_padding():
    ids = np.array([[0, 0, 3], [0, 0, 0]], "int32")
    output = layers.Embedding(5, 4, mask_zero=True)(ids)
    np.testing.assert_equal(mask_of(output), [[True, False, True], [True, False, False]])


def test_float_ids_are_masked_too():
    """keras.Input is float32 unless told otherwise, as in scripts for Keras 2."""
    output = layers.Embedding(5, 4, mask_zero=True)(np.array([[2.0, 0.0, 3.0]], "float32"))
    np.testing.assert_equal(mask_of(output), [[True, False, True]])


def test_the_tied_product_has_no_mask_of_its_own():
    layer = layers.Embedding(5, 4, mask_zero=True)
    assert mask_of(layer(normal(2, 4), mode="dense")) is None
    assert len(layer.weights) == 1
    with pytest.raises(ValueError, match="'embedding' or 'dense'"):
        layer(normal(2, 4), mode="lookup")


def test_check_ids():
    layer = layers.Embedding(5, 4, check_ids=True)
    layer(np.array([[0, 4]], "int32"))
    for bad in (-1, 5):
        with pytest.raises(Exception, match=r"\[0, 5\)"):
            to_arrays(layer(np.array([[0, bad]], "int32")))


def test_feed_forward_weight_order():
    layer = layers.FeedForward(6, ["relu", "linear"], name="ffn")
    layer(normal(1, 2, 4))
    assert [v.path.removeprefix("ffn/") for v in layer.weights] == [
        "inner_0/kernel", "inner_0/bias", "inner_1/kernel", "inner_1/bias", "out/kernel", "out/bias"
    ]


def test_feed_forward_remat_gradients_equal_plain(tolerances):
    x, found = normal(2, 5, 4), []
    for remat in (False, True):
        layer = layers.FeedForward(6, ["gelu_tanh", "linear"], remat=remat)
        layer(x)
        randomize(layer)
        found.append(gradients(layer, lambda layer=layer: ops.sum(layer(x) ** 2)))
    assert found[0].keys() == found[1].keys()
    assert_close(list(found[1].values()), list(found[0].values()), tolerances["gradient"])


def test_layers_are_found_by_keras_after_import_only():
    """Every public class is registered under our package name; the two base classes are never saved themselves."""
    for name in layers.__all__:
        kind = getattr(layers, name)
        if name not in ("Layer", "Rule"):
            assert keras.saving.get_registered_name(kind) == f"bert4x>{name}"
