"""ON-LSTM, DGCNN and their company: what the contract table does not say."""

import keras
import numpy as np
import pytest
from keras import ops

from bert4x.backend import focal_loss, runtime
from bert4x.layers import ONLSTM, AttentionPooling1D, CharacterWordEmbedding, DilatedGatedConv1D
from bert4x.snippets import CharacterWords
from tests.layers.helpers import WithMask, quick_compilation, randomize, to_arrays

X = np.random.default_rng(3).standard_normal((2, 5, 4)).astype("float32")
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool)


def masked(x=X, mask=MASK):
    return WithMask()([x, mask])


def test_worked_step():
    """The step of the specification whose z is given: no weights, all of it in the bias."""
    z = [0, 1, 2, 0, 0, 0, 1, -1, 1, 0, 0, 1, 0, 0, 0, 0, 1, -1, 0.5, 2]
    wanted = {
        "reverse_cumsum": ([0.343164, -0.185784, 0.497165, 0.499431], [0.840979, -0.390241, 2.931367, 3.735432]),
        "one_minus_cumax": ([0.162456, 0.201509, 0.497527, 0.499665], [0.33713, 0.427248, 3, 4]),
    }
    for gate, (want_h, want_c) in wanted.items():
        layer = ONLSTM(4, 2, input_gate=gate)
        layer.build((None, None, 1))
        layer.set_weights([np.zeros((1, 20)), np.zeros((4, 20)), np.array(z)])
        x, h, c = (np.array([row], "float32") for row in ([0], [0, 0, 0, 0], [1, 2, 3, 4]))
        h, c = to_arrays(layer.step(x, h, c))
        np.testing.assert_allclose(h[0], want_h, atol=1e-6)
        np.testing.assert_allclose(c[0], want_c, atol=1e-6)


def test_with_one_level_it_is_an_lstm(tolerance):
    ours, keras_lstm = ONLSTM(6, 1, return_sequences=True), keras.layers.LSTM(6, return_sequences=True)
    ours(X)
    keras_lstm(X)
    randomize(ours)
    without_masters = [w[..., 2:] for w in ours.get_weights()]
    orders = [np.split(w, 4, -1) for w in without_masters]  # forget, input, output, candidate; Keras: i, f, c, o
    keras_lstm.set_weights([np.concatenate([i, f, g, o], -1) for f, i, o, g in orders])
    np.testing.assert_allclose(*(to_arrays(layer(masked()))[0] for layer in (ours, keras_lstm)), atol=tolerance)


def test_master_gates_are_monotone():
    logits = np.random.default_rng(0).standard_normal((50, 16)).astype("float32")
    forget, remember = to_arrays(ONLSTM(8, 8).master_gates(logits))
    assert (np.diff(forget) >= 0).all() and (np.diff(remember) <= 0).all()
    np.testing.assert_allclose([forget[:, -1], remember[:, 0]], 1, atol=1e-6)


def test_dropconnect_draws_one_mask_per_call():
    """A unit whose only input is dropped gives 0 at each step of a call, and another draw comes with the next call."""
    layer = ONLSTM(4, 2, return_sequences=True, return_distances=True, dropconnect=0.5)
    x = np.ones((1, 6, 1), "float32")
    layer(x)
    layer.recurrent_kernel.assign(np.zeros((4, 20)))
    forget = []
    for _ in range(8):
        _, distance, _ = to_arrays(layer(x, training=True))
        np.testing.assert_allclose(distance, distance[0, 0], atol=1e-6)  # the same at all steps
        forget.append(round(float(distance[0, 0]), 5))
    assert len(set(forget)) > 1
    plain = [to_arrays(layer(x))[1] for _ in range(2)]
    np.testing.assert_array_equal(*plain)


def language_model():
    ids = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(9, 8, mask_zero=True)(ids)
    distances = []
    for _ in range(2):
        x, distance, _ = ONLSTM(8, 4, return_sequences=True, return_distances=True, dropconnect=0.2)(x)
        distances.append(distance)
    return keras.Model(ids, keras.layers.Dense(9)(x)), keras.Model(ids, distances)


@pytest.mark.parametrize("compiled", [quick_compilation(), pytest.param("auto", marks=pytest.mark.slow)])
def test_trains_and_shows_the_distances_of_each_layer(compiled):
    ids = np.tile([[2, 3, 4, 5, 6, 0], [6, 5, 4, 3, 0, 0]], (8, 1)).astype("int32")
    model, seen = language_model()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.02), loss, jit_compile=compiled)
    before = to_arrays(seen(ids))
    history = model.fit(ids, np.roll(ids, -1, 1), epochs=12, batch_size=8, verbose=0).history["loss"]
    assert history[-1] < 0.8 * history[0]
    after = to_arrays(seen(ids))
    for old, new in zip(before, after, strict=True):
        assert new.shape == ids.shape and (new[ids == 0] == 0).all() and (new[ids != 0] > 0).all()
        assert np.abs(old - new).max() > 1e-3  # the second model shares the weights


@pytest.mark.parametrize(
    ("options", "message"),
    [({"levels": 3}, "multiple of levels"), ({"input_gate": "other"}, "input_gate must be"),
     ({"dropconnect": 1.0}, "dropconnect must be")],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ONLSTM(**{"units": 8, "levels": 4, **options})


def test_example_of_the_gated_convolution():
    """Taps 1, 10, 100 on 1, 2, 3, 4, gate 0: half of the input plus half of what the taps see."""
    x = np.array([[[1], [2], [3], [4]]], "float32")
    cut = np.array([[1, 1, 1, 0]], bool)
    wanted = [
        (1, None, [105.5, 161.5, 217.5, 23.5]), (2, None, [155.5, 211, 17, 23]), (1, cut, [105.5, 161.5, 17.5, 0]),
    ]
    for rate, mask, want in wanted:
        layer = DilatedGatedConv1D(rate=rate)
        layer(x)
        kernel = np.zeros((3, 1, 2))
        kernel[:, 0, 0] = 1, 10, 100
        layer.set_weights([kernel, np.zeros(2)])
        got = to_arrays(layer(x if mask is None else masked(x, mask)))[0]
        np.testing.assert_allclose(got[0, :, 0], want, rtol=1e-6)


def test_receptive_field_of_the_reader():
    """Rates 1, 2, 4, 8, 16, 1 see 32 positions to either side and no further."""
    blocks = [DilatedGatedConv1D(rate=rate) for rate in (1, 2, 4, 8, 16, 1)]

    def middle(x):
        for block in blocks:
            x = block(x)
        return ops.sum(x[:, 40])

    _, gradient = runtime.value_and_grad(middle, np.random.default_rng(0).standard_normal((1, 81, 2)).astype("float32"))
    reached = np.flatnonzero(to_arrays(gradient)[0][0].any(-1))
    assert (reached.min(), reached.max()) == (8, 72)


def test_gate_is_dropped_in_front_of_the_sigmoid():
    """A dropped gate is 1/2, never 0: with value 0 each output is x/2 or what the scaled gate leaves."""
    x, layer = np.ones((1, 40, 1), "float32"), DilatedGatedConv1D(drop_gate=0.5)
    layer(x)
    layer.set_weights([np.zeros((3, 1, 2)), np.array([0, 2.0])])
    got = to_arrays(layer(x, training=True))[0]
    halves, scaled = np.isclose(got, 0.5), np.isclose(got, 1 - 1 / (1 + np.exp(-4.0)))
    assert (halves | scaled).all() and halves.any() and scaled.any()


def test_reader_out_of_these_layers_ignores_padding(tolerance):
    words = CharacterWords({"a": 2, "b": 3, "c": 4}, {"ab": [1.0, 0.5, 0.2], "c": [0.1, 0.3, 2.0]})
    inputs = [keras.Input((None,), dtype="int32"), keras.Input((None, 3))]
    x = CharacterWordEmbedding(5, 8)(inputs)
    for rate in (1, 2):
        x = DilatedGatedConv1D(rate=rate, drop_gate=0.1)(x)
    model = keras.Model(inputs, [x, AttentionPooling1D()(x)])
    short, long = (to_arrays(model(list(words.encode_batch([["ab", "c"]], length)))) for length in (3, 9))
    np.testing.assert_allclose(short[1], long[1], atol=tolerance)
    np.testing.assert_allclose(short[0], long[0][:, :3], atol=tolerance)


def test_focal_loss_is_finite_at_both_ends():
    y, p = np.array([1, 0, 1, 0], "float32"), np.array([0, 1, 1, 0], "float32")
    value, gradient = runtime.value_and_grad(lambda x: ops.sum(focal_loss(y, x)), p)
    assert 18 < to_arrays(value)[0] < 19 and np.isfinite(to_arrays(gradient)[0]).all()
    half = ops.convert_to_tensor(np.full(4, 0.5, "float32"))
    assert to_arrays(focal_loss(y, half, alpha=0.5, gamma=0))[0] == pytest.approx(np.log(2) / 2)
