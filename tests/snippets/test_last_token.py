"""LastToken against `model.predict` on tiny models, and AutoRegressiveDecoder on top of it."""

import numpy as np
import pytest

from bert4x.backend import keras
from bert4x.models import T5, build_transformer_model, enable_lora
from bert4x.snippets import AutoRegressiveDecoder, LastToken

SIZE = {
    "vocab_size": 20,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "hidden_act": "gelu",
    "initializer_range": 0.5,
}


@pytest.fixture(scope="module")
def unilm():
    return build_transformer_model(**SIZE, max_position=21, application="unilm", with_mlm=True)


@pytest.fixture(scope="module")
def gpt2():
    return build_transformer_model(model="gpt2", **SIZE, max_position=64)


def test_outputs_are_those_of_the_last_token(unilm, tolerance):
    last = LastToken(unilm)
    for rows, length in [(1, 1), (3, 5), (2, 16), (5, 17), (1, 21)]:  # 21 ends the position table inside a bucket
        ids = np.random.default_rng(length).integers(1, 20, [rows, length])
        segments = (np.arange(length) >= length // 2)[None].repeat(rows, axis=0).astype("int64")
        found = last.predict([ids, segments])
        assert isinstance(found, np.ndarray) and found.shape == (rows, 20)
        expected = unilm.predict([ids, segments], verbose=0)[:, -1]
        np.testing.assert_allclose(found, expected, atol=tolerance)
        by_name = dict(zip([x.name for x in unilm.inputs], (ids, segments), strict=True))
        np.testing.assert_array_equal(last.predict(by_name), found)


def test_models_for_which_id_0_is_no_padding(gpt2, tolerance):
    for length in (1, 7, 16, 30):
        ids = np.random.default_rng(length).integers(0, 3, [2, length])
        expected = gpt2.predict(ids, verbose=0)[:, -1]
        np.testing.assert_allclose(LastToken(gpt2).predict(ids), expected, atol=tolerance)
        np.testing.assert_allclose(LastToken(gpt2).predict([ids]), expected, atol=tolerance)


def test_encoder_and_decoder_have_their_own_lengths(tolerance):
    sizes = {key: value for key, value in SIZE.items() if key != "hidden_act"}
    builder = T5(**sizes, attention_head_size=8, hidden_act="relu")
    model = builder.build()
    source, target = np.array([[3, 4, 5, 0, 0], [6, 7, 8, 9, 1]]), np.array([[0, 3, 4], [0, 5, 6]])
    expected = model.predict([source, target], verbose=0)[:, -1]
    np.testing.assert_allclose(LastToken(model).predict([source, target]), expected, atol=tolerance)
    # The decoder alone takes states of the encoder, which are not padded.
    states = builder.encoder.model.predict(source[1:], verbose=0)
    found = LastToken(builder.decoder.model).predict([states, target[1:]])
    np.testing.assert_allclose(found, expected[1:], atol=tolerance)


def test_an_input_without_time_is_not_padded(tolerance):
    ids, label = keras.Input([None], dtype="int32"), keras.Input([1], dtype="int32")
    x = keras.layers.Embedding(9, 4)(ids) + keras.layers.Embedding(2, 4)(label)
    model = keras.Model([ids, label], keras.layers.Dense(9)(x))
    inputs = [np.array([[1, 2, 3]] * 3), np.array([[0], [1], [1]])]
    expected = model.predict(inputs, verbose=0)[:, -1]
    np.testing.assert_allclose(LastToken(model).predict(inputs), expected, atol=tolerance)


def test_few_shapes_are_compiled():
    calls = []

    @keras.saving.register_keras_serializable("test_last_token")
    class Spy(keras.layers.Layer):
        def call(self, x):
            calls.append(tuple(x.shape))
            return x

        def compute_output_spec(self, x):
            return keras.KerasTensor(x.shape, x.dtype)

    ids = keras.Input([None], dtype="int32")
    model = keras.Model(ids, Spy()(keras.layers.Embedding(9, 4)(ids)))
    last = LastToken(model)
    calls.clear()
    for rows in (1, 3, 4, 3):
        for length in range(1, 16):
            last.predict(np.ones((rows, length), dtype="int32"))
    assert len(set(calls)) <= 4, calls  # rows 1 and 4, length 16; TensorFlow adds free ones


def test_changed_weights_are_seen(tolerance):
    ids = np.array([[1, 2, 3]])
    model = build_transformer_model(model="gpt2", **SIZE, max_position=64)
    decoder = AutoRegressiveDecoder(None, 0, 3)
    before = decoder.last_token(model).predict(ids)
    model.set_weights([1.5 * weight for weight in model.get_weights()])
    after = decoder.last_token(model).predict(ids)
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(after, model.predict(ids, verbose=0)[:, -1], atol=tolerance)
    enable_lora(model, 2)
    for layer in model.layers:
        for weight in layer.weights:
            if "lora" in weight.path:
                weight.assign(np.random.default_rng(0).normal(size=weight.shape))
    assert np.abs(decoder.last_token(model).predict(ids) - after).max() > 1e-3


def test_models_that_it_cannot_take(unilm):
    fixed = keras.Input([5], dtype="int32")
    for model in (
        keras.Model(fixed, keras.layers.Embedding(9, 4)(fixed)),
        keras.Model(unilm.inputs, unilm.output[:, 0]),
        keras.Model(unilm.inputs, [unilm.output, unilm.output]),
        keras.layers.Dense(3),
    ):
        with pytest.raises(ValueError, match="last_token takes a functional model"):
            LastToken(model)
    with pytest.raises(ValueError, match="at least one token"):
        LastToken(unilm).predict([np.zeros((1, 0)), np.zeros((1, 0))])


class Title(AutoRegressiveDecoder):
    """UniLM generation as users of bert4keras write it."""

    def __init__(self, model, *args, **options):
        super().__init__(*args, **options)
        self.model = model

    @AutoRegressiveDecoder.wraps(default_rtype="probas")
    def predict(self, inputs, output_ids, states):
        token_ids, segment_ids = inputs
        token_ids = np.concatenate([token_ids, output_ids], 1)
        segment_ids = np.concatenate([segment_ids, np.ones_like(output_ids)], 1)
        return self.last_token(self.model).predict([token_ids, segment_ids])


def test_greedy_search_is_the_argmax_of_the_model(unilm):
    source = [2, 7, 8, 9, 3]
    found = Title(unilm, None, 3, maxlen=10, minlen=10).beam_search([source, [0] * 5], 1).tolist()
    for place, token in enumerate(found):
        ids, segments = source + found[:place], [0] * 5 + [1] * place
        p = unilm.predict([np.array([ids]), np.array([segments])], verbose=0)[0, -1]
        p[3] = p[3] if place == 9 else 0
        assert token == p.argmax()
    samples = Title(unilm, None, 3, maxlen=10).random_sample([source, [0] * 5], 3, topp=0.9, seed=0)
    assert len(samples) == 3 and all(0 < len(ids) <= 10 for ids in samples)
