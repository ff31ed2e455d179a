"""The algebra of mask rules, packed samples in a model, pictures, and masks that reach the layers of users."""

import keras
import numpy as np
import pytest
from keras import ops

from bert4x import layers
from bert4x.layers import Causal, Packed, Padding, Prefix, Strided, Window
from bert4x.models import build_transformer_model
from bert4x.snippets import mask_text, save_mask
from tests.layers.helpers import assert_close, mask_of, randomize, to_arrays

CONFIG = {
    "vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
    "hidden_act": "gelu",
}


def rows(text):
    """'101 010' as a boolean matrix."""
    return np.array([[character == "1" for character in row] for row in text.split()])


# ---- rules

RULES = {
    "causal": (Causal(), {}, "1000 1100 1110 1111"),
    "window": (Window(2), {}, "1100 1110 0111 0011"),
    "causal window": (Causal() & Window(2), {}, "1000 1100 0110 0011"),
    "strided": (Strided(3), {}, "1001 0100 0010 1001"),
    "either": (Strided(3) | Window(2), {}, "1101 1110 0111 1011"),
    "opposite": (~Causal(), {}, "0111 0011 0001 0000"),
    "prefix": (Prefix(), {"segment": [0, 0, 1, 1]}, "1100 1100 1110 1111"),
    "packed": (Packed(), {"sample": [1, 1, 2, 2]}, "1100 1100 0011 0011"),
    "packed, causal": (Packed() & Causal(), {"sample": [1, 1, 2, 2]}, "1000 1100 0010 0011"),
    "padding": (Padding(), {"keys": [5, 0, 2, 0]}, "1010 1010 1010 1010"),
    "several numbers": (
        Prefix() & Packed() & Padding(), {"segment": [0, 1, 0, 1], "sample": [1, 1, 2, 2], "keys": [1, 1, 1, 0]},
        "1000 1100 0010 0010",
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_matrix_of_a_rule(name):
    rule, given, want = RULES[name]
    matrix = rule.matrix(4, **{role: np.array(values) for role, values in given.items()})
    np.testing.assert_equal(matrix, rows(want))
    if given:
        batch = rule.matrix(4, **{role: np.array([values, values]) for role, values in given.items()})
        np.testing.assert_equal(batch, [rows(want)] * 2)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_a_value_that_is_saved(name):
    rule = RULES[name][0]
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(rule))
    assert again == rule and repr(again) == repr(rule)
    assert eval(repr(rule)) == rule
    assert layers.AttentionMask.from_config(layers.AttentionMask(rule).get_config()).rule == rule


def test_a_layer_takes_several_kinds_of_numbers_in_a_dict(tmp_path):
    numbers = {role: keras.Input((None,), dtype="int32", name=role) for role in ("segment", "sample", "keys")}
    rule, given, want = RULES["several numbers"]
    model = keras.Model(numbers, layers.AttentionMask(rule)(numbers))
    assert model.output.shape == (None, None, None)
    arrays = {role: np.array([values], "int32") for role, values in given.items()}
    np.testing.assert_equal(to_arrays(model(arrays))[0], [rows(want)])
    model.save(tmp_path / "mask.keras")
    np.testing.assert_equal(to_arrays(keras.saving.load_model(tmp_path / "mask.keras")(arrays))[0], [rows(want)])


@pytest.mark.parametrize("rule", [Prefix(), Packed(), Padding(), Causal() & Window(3)])
def test_rules_over_a_cache(rule):
    """Tokens in the slots from 2, after two of the cache and before two empty slots, with a row padded on the left."""
    keys, numbers = np.zeros((2, 6, 1, 1), "float32"), np.array([[1, 2], [1, 0]], "int32")
    mask = layers.AttentionMask(rule)
    got = to_arrays(mask(numbers, start=np.array(2, "int32"), padding=np.array([0, 1], "int32"), keys=keys))[0]
    new = rule.matrix(2, **dict.fromkeys(rule.roles, numbers))
    want = np.zeros((2, 2, 6), bool)
    want[:, :, :2] = True
    want[:, :, 2:4] = new
    if not rule.roles:
        want[:, 1, 0] = False  # outside of the window
    want[1, :, 0] = False  # padding
    np.testing.assert_equal(got, want)


def test_errors_of_rules():
    with pytest.raises(ValueError, match="size must be an integer of at least 1; got 0"):
        layers.CausalMask(window=0)
    with pytest.raises(ValueError, match="called sample; given are .'segment'"):
        (Prefix() & Packed()).matrix(2, segment=np.array([0, 1]))
    with pytest.raises(ValueError, match="called segment; given are .'sample'"):
        layers.AttentionMask(Packed() & Prefix())(np.array([[0, 1]]))


# ---- in models


def randomized(**options):
    model = build_transformer_model(CONFIG, **options)
    randomize(model)
    return model


@pytest.mark.parametrize("application", ["encoder", "lm"])
@pytest.mark.parametrize("mask", [True, Packed()], ids=["matrix", "rule"])
def test_packed_samples_equal_each_alone(application, mask, tolerance):
    """Two samples in one row under a block-diagonal mask, with positions that begin again, and padding after them."""
    options = {"application": application, "with_mlm": False}
    model = randomized(attention_mask=mask, custom_position_ids=True, **options)
    alone = build_transformer_model(CONFIG, **options)
    alone.set_weights(model.get_weights())
    one, two = np.array([[2, 5, 7, 3]]), np.array([[2, 9, 3]])
    tokens, samples = np.array([[2, 5, 7, 3, 2, 9, 3, 0]]), np.array([[1, 1, 1, 1, 2, 2, 2, 0]])
    positions = np.array([[0, 1, 2, 3, 0, 1, 2, 0]])
    given = Packed().matrix(8, sample=samples) if mask is True else samples
    packed = to_arrays(model([tokens, 0 * tokens, positions, given]))[0]
    for sample, part in ((one, packed[:, :4]), (two, packed[:, 4:7])):
        assert_close(part, alone([sample, 0 * sample]), tolerance)


def test_a_rule_as_the_mask_of_a_model(tmp_path, tolerance):
    model, reference = randomized(attention_mask=Window(2)), build_transformer_model(CONFIG, attention_mask=True)
    reference.set_weights(model.get_weights())
    assert len(model.inputs) == 2
    tokens = np.array([[2, 5, 7, 3, 0], [2, 9, 3, 4, 4]])
    matrix = np.array([Window(2).matrix(5)] * 2)
    want = reference([tokens, 0 * tokens, matrix])
    assert_close(model([tokens, 0 * tokens]), want, tolerance)
    model.save(tmp_path / "window.keras")
    assert_close(keras.saving.load_model(tmp_path / "window.keras")([tokens, 0 * tokens]), want, tolerance)
    prefix = build_transformer_model(CONFIG, attention_mask=Prefix())
    unilm = build_transformer_model(CONFIG, application="unilm", with_mlm=False)
    prefix.set_weights(model.get_weights()), unilm.set_weights(model.get_weights())
    segments = np.array([[0, 0, 1, 1, 0], [0, 1, 1, 1, 1]])
    assert_close(prefix([tokens, segments]), unilm([tokens, segments]), tolerance)
    with pytest.raises(ValueError, match="reads segment ids, and this model has no such input"):
        build_transformer_model(CONFIG, attention_mask=Prefix(), segment_vocab_size=0)


class Recording(keras.layers.Layer):
    """A user's layer: the mean over what the mask allows, which it must have been given."""

    def __init__(self):
        super().__init__()
        self.supports_masking = True

    def call(self, x, mask=None):
        if mask is None:
            raise ValueError("no mask arrived")
        weight = ops.cast(mask, x.dtype)[:, :, None]
        return ops.sum(x * weight, axis=1) / ops.sum(weight, axis=1)

    def compute_output_spec(self, x, mask=None):
        return keras.KerasTensor((x.shape[0], x.shape[-1]), dtype=x.dtype)


@pytest.mark.parametrize("options", [{}, {"attention_mask": Window(3)}, {"remat": True}], ids=str)
def test_the_padding_mask_reaches_a_layer_on_top_of_a_model(options, tolerance):
    bert = randomized(**options)
    on_top = Recording()(keras.layers.Dense(3)(keras.layers.Dropout(0.1)(bert.output)))
    model = keras.Model(bert.input, on_top)
    tokens = np.array([[2, 5, 3, 0, 0], [2, 9, 3, 4, 4]])
    short = model([tokens[:1, :3], 0 * tokens[:1, :3]])
    assert_close(model([tokens, 0 * tokens])[:1], short, tolerance)
    np.testing.assert_equal(mask_of(bert([tokens, 0 * tokens])), tokens != 0)


@pytest.mark.parametrize("kind", [layers.LocalSelfAttention, layers.SparseSelfAttention, layers.AtrousSelfAttention])
def test_sparse_attention_on_top_of_a_model_passes_the_mask_on(kind, tolerance):
    bert = randomized()
    layer = kind(2, 4, 2)
    model = keras.Model(bert.input, layers.GlobalMaxPooling1D()(layer(bert.output)))
    tokens = np.array([[2, 5, 3, 0, 0], [2, 9, 3, 4, 4]])
    assert_close(model([tokens, 0 * tokens])[:1], model([tokens[:1, :3], 0 * tokens[:1, :3]]), tolerance)


@pytest.mark.parametrize("pooling", [layers.GlobalAveragePooling1D, layers.GlobalMaxPooling1D])
@pytest.mark.parametrize("dtype", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_pooling_honours_the_mask(pooling, dtype, tolerances):
    """All values are below zero, so that a masked 0 would be the maximum; a row that is masked throughout gives 0."""
    x = -1 - np.arange(24, dtype="float32").reshape(3, 4, 2) / 8
    mask = np.array([[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]], bool)
    got = to_arrays(pooling(dtype=dtype)(x, mask=ops.convert_to_tensor(mask)))[0]
    reduce = np.mean if pooling is layers.GlobalAveragePooling1D else np.max
    want = np.array([reduce(x[0, :2], axis=0), reduce(x[1, 2:], axis=0), [0, 0]])
    assert_close(got, want, tolerances["bfloat16"] if dtype != "float32" else tolerances["float32"])
    assert (got[2] == 0).all()


# ---- pictures


def test_picture_as_text():
    assert mask_text((Causal() & Window(2)).matrix(3)).splitlines() == ["█ · ·", "█ █ ·", "· █ █"]
    assert mask_text(layers.CausalMask()(np.zeros((1, 2))), ["I", "am"]).splitlines() == [" I █ ·", "am █ █"]
    assert mask_text(np.array([[0, 2]])) == "· █"
    with pytest.raises(ValueError, match=r"one mask \[T, S\]; got the shape \(2, 3, 3\)"):
        mask_text(np.zeros((2, 3, 3)))
    with pytest.raises(ValueError, match="tokens must name the 2 queries of the mask; got 1"):
        mask_text(np.zeros((2, 2)), ["one"])


def test_picture_as_png(tmp_path):
    image = pytest.importorskip("matplotlib.image", reason="a picture needs matplotlib")
    for tokens in (None, ["a", "b", "c"]):
        save_mask(tmp_path / "mask.png", Causal().matrix(3), tokens, "causal")
        pixels = image.imread(tmp_path / "mask.png")
        assert pixels.shape[0] == pixels.shape[1] == 600 and pixels.min() < 0.3
