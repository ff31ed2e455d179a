"""Vector quantisation: gradients, losses, running means, restarts, masks, training on each backend."""

import keras
import numpy as np
import pytest
from keras import ops

from bert4x.backend import runtime
from bert4x.layers import VectorQuantizer
from tests.layers.helpers import WithMask, gradients, quick_compilation, to_arrays

Z = np.random.default_rng(2).standard_normal((6, 4, 3)).astype("float32")
MASK = np.array([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]], bool)


def made(num_codes=5, **options):
    layer = VectorQuantizer(num_codes, 3, **options)
    layer.build()
    layer.set_codes(np.random.default_rng(1).standard_normal((num_codes, 3)))
    return layer


def test_reconstruction_reaches_the_encoder_and_not_the_codebook():
    layer = made(commitment_weight=0.0, codebook_weight=0.0)
    target = ops.convert_to_tensor(np.random.default_rng(5).standard_normal(Z.shape).astype("float32"))
    _, gradient = runtime.value_and_grad(lambda z: ops.sum(ops.square(layer(z) - target)), Z)
    want = 2 * (to_arrays(layer(Z))[0] - to_arrays(target)[0])
    np.testing.assert_allclose(to_arrays(gradient)[0], want, atol=1e-5)
    assert (gradients(layer, lambda: ops.sum(ops.square(layer(Z) - target)))["codebook"] == 0).all()


def test_losses_have_their_weights():
    one = made(codebook_weight=2.0, commitment_weight=0.5)
    quantized = to_arrays(one(Z))[0]
    np.testing.assert_allclose(to_arrays(one.losses[0])[0], 2.5 * np.mean((quantized - Z) ** 2), rtol=1e-5)


def test_what_is_masked_counts_for_nothing():
    """Loss, running means and perplexity are those of the unmasked vectors alone."""
    masked, alone = made(ema=True), made(ema=True)
    masked(WithMask()([Z, MASK]), training=True)
    alone(Z[MASK], training=True)
    np.testing.assert_allclose(*(to_arrays(layer.losses[0])[0] for layer in (masked, alone)), rtol=1e-5)
    for a, b in zip(masked.get_weights(), alone.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert masked.code_counts.numpy().sum() == MASK.sum()
    nothing = made(ema=True, restart_below=0.5)
    nothing(WithMask()([Z, np.zeros_like(MASK)]), training=True)
    assert to_arrays(nothing.losses[0])[0] == 0 and all(np.isfinite(w).all() for w in nothing.get_weights())


def test_encode_and_decode():
    layer = made(return_indices=True)
    quantized, indices = to_arrays(layer(Z))
    np.testing.assert_array_equal(to_arrays(layer.encode(Z))[0], indices)
    np.testing.assert_allclose(to_arrays(layer.decode(indices))[0], quantized, atol=1e-6)
    assert indices.dtype == "int32" and indices.shape == Z.shape[:-1]
    codes = keras.Input((4,), dtype="int32")
    decoder = keras.Model(codes, layer.decode(codes))
    np.testing.assert_allclose(decoder.predict(indices, verbose=0), quantized, atol=1e-6)


def test_perplexity_counts_the_codes_in_use():
    layer = made(4)
    layer.codebook.assign(np.eye(4, 3) * 10)
    layer(np.eye(4, 3, dtype="float32")[[0, 1, 0, 1]] * 10)
    metric = layer.metrics[-1]
    assert metric.name == "perplexity" and float(metric.result()) == pytest.approx(2)
    layer(np.zeros((4, 3), "float32"))
    assert float(metric.result()) == pytest.approx(np.exp(0.5 * np.log(4) + 0.5 * np.log(2)))
    metric.reset_state()
    assert float(metric.result()) == 1


@pytest.mark.parametrize("ema", [False, True])
def test_dead_codes_start_again_from_vectors_of_the_batch(ema):
    layer = made(6, ema=ema, decay=0.5, restart_below=0.3)
    layer.codebook.assign([[0, 0, 0], *[[50.0 + i, 9, 9] for i in range(5)]])
    z = np.random.default_rng(0).standard_normal((4, 5, 3)).astype("float32")
    mask = np.array([[1, 1, 1, 0, 0]] * 4, bool)
    for _ in range(3):
        layer(WithMask()([z, mask]), training=True)
    codes = to_arrays(layer.codes())[0]
    used = z[mask]
    for row in codes[1:]:
        assert np.abs(used - row).sum(-1).min() < (1e-5 if not ema else 5)
    assert np.abs(codes).max() < 10
    assert len(np.unique(np.round(codes[1:], 4), axis=0)) == 5  # none is drawn twice
    before = layer.get_weights()
    layer(z)  # nothing moves at inference, apart from the counts of the metric
    for old, new in zip(before[:-1], layer.get_weights()[:-1], strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    ("options", "compiled"),
    [
        *[(options, quick_compilation()) for options in (
            {}, {"ema": True, "decay": 0.9}, {"restart_below": 0.2, "decay": 0.8}
        )],
        pytest.param({"restart_below": 0.2}, "auto", marks=pytest.mark.slow),
    ],
)
def test_training_finds_clusters(options, compiled, tmp_path):
    """Compiled training of an autoencoder on four clusters: state moves, the error falls, perplexity is shown."""
    random = np.random.default_rng(0)
    centres = np.array([[2, 0, 0], [0, 2, 0], [0, 0, 2], [-2, -2, 0]])
    x = (centres[random.integers(0, 4, (256, 2))] + 0.05 * random.standard_normal((256, 2, 3))).astype("float32")
    inputs = keras.Input((None, 3))
    layer = VectorQuantizer(8, 3, name="vq", **options)
    model = keras.Model(inputs, layer(keras.layers.Dense(3, kernel_initializer="identity")(inputs)))
    if not layer.restart_below:  # without restarts it may well collapse to one code
        layer.set_codes(x[:4].reshape(8, 3))
    model.compile(keras.optimizers.Adam(0.02), "mse", jit_compile=compiled)
    history = model.fit(x, x, batch_size=32, epochs=8, verbose=0, validation_data=(x, x)).history
    assert np.mean((model.predict(x, verbose=0) - x) ** 2) < 0.4 * x.var(axis=(0, 1)).mean()
    assert 1 < history["perplexity"][-1] <= 8 and 1 < history["val_perplexity"][-1] <= 8
    model.save(tmp_path / "vq.keras")
    again = keras.saving.load_model(tmp_path / "vq.keras")
    np.testing.assert_allclose(again.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)


def test_wrong_widths_and_modes_are_named():
    with pytest.raises(ValueError, match="width of the codes, 3"):
        made()(np.zeros((2, 4), "float32"))
    with pytest.raises(ValueError, match="mode of a VectorQuantizer"):
        made()(Z, mode="other")
