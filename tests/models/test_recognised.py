"""What a configuration or a file says besides shapes: heads of their own, decoders, activations that are fixed."""

import numpy as np
import pytest

from bert4x.backend import gelu_erf, get_activation, keras
from bert4x.models import CheckpointError, build_transformer_model, load_weights
from bert4x.models.weights import weight_items
from tests.models.reference_weights import to_numpy
from tests.models.tiny import CONFIG, IDS, SEGMENTS, build, checkpoint_of


def test_an_output_head_of_its_own_is_refused():
    arrays = {name: read() for name, _, _, read in weight_items(build("bert", with_mlm=True), "huggingface")}
    table = arrays["bert.embeddings.word_embeddings.weight"]
    arrays["cls.predictions.decoder.weight"] = table
    build_transformer_model(CONFIG, arrays, with_mlm=True)  # a copy of the table is what it should be
    arrays["cls.predictions.decoder.weight"] = table + 1
    with pytest.raises(CheckpointError, match="differs from the token table"):
        build_transformer_model(CONFIG, arrays, with_mlm=True)
    build_transformer_model(CONFIG, arrays)  # without the head it is not needed


def test_is_decoder_is_not_overlooked():
    config = {**CONFIG, "is_decoder": True}
    with pytest.warns(UserWarning, match="application='lm'"):
        build_transformer_model(config)
    build_transformer_model(config, application="lm")


def test_the_generator_of_electra_has_a_gelu_head_whatever_hidden_act_says():
    model = build("electra", with_mlm=True, hidden_act="relu").model
    assert model.get_layer("MLM-Dense").activation is gelu_erf
    assert model.get_layer("Transformer-0-FeedForward").activations[0] is not gelu_erf


def test_one_token_needs_no_warning():
    output = build("bert").model([IDS[:, :1], SEGMENTS[:, :1]])
    assert output.shape == (2, 1, CONFIG["hidden_size"])


def test_an_unknown_activation_lists_ours():
    with pytest.raises(ValueError, match="gelu_tanh"):
        get_activation("gelu_fast")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": "16"}, "hidden_size must be an integer"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be an integer of at least 1"),
        ({"keep_tokens": []}, "at least one token"),
        ({"compound_tokens": [1, 2]}, "compound_tokens must be lists of ids"),
        ({"trainable": "("}, "no regular expression"),
        ({"lora_rank": 0}, "lora_rank must be"),
        ({"lora_rank": 2, "trainable": "Norm"}, "give one"),
    ],
)
def test_values_that_cannot_be_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        build_transformer_model({**CONFIG, **{k: v for k, v in options.items() if k in CONFIG}},
                                **{k: v for k, v in options.items() if k not in CONFIG})


def test_a_model_that_is_no_family():
    with pytest.raises(TypeError, match="subclass of Transformer"):
        build_transformer_model(CONFIG, model=dict)


def test_a_condition_must_be_an_input():
    with pytest.raises(ValueError, match="additional_input_layers"):
        build_transformer_model(CONFIG, layer_norm_cond=keras.Input((4,)))


@pytest.mark.parametrize("name", ["model.bin", "model.h5", "model.keras"])
def test_a_checkpoint_is_not_written_under_a_name_of_another_format(name, tmp_path):
    with pytest.raises(ValueError, match="safetensors"):
        build("bert").save_weights_as_checkpoint(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_load_weights_names_the_suffix_and_an_absent_file(tmp_path):
    model = build("bert").model
    with pytest.raises(ValueError, match=r"\.weights\.h5"):
        load_weights(model, tmp_path / "best_model.weights")
    with pytest.raises(FileNotFoundError, match="no weight file"):
        load_weights(model, tmp_path / "best_model.weights.h5")


def test_attention_caches():
    """States given for a layer stand before its keys and values; the padding mask still holds for the rest."""
    name, random = "Transformer-1-MultiHeadSelfAttention", np.random.default_rng(0)
    inputs = [keras.Input((None, 12)), keras.Input((None, 12))]
    cached = build("bert", attention_caches={name: inputs}, additional_input_layers=inputs)
    plain = build_transformer_model(CONFIG, checkpoint_of(cached), output_hidden_states=True)
    keys, values = (random.standard_normal((2, 3, 12)).astype("float32") for _ in range(2))
    x = to_numpy(plain([IDS, SEGMENTS])[2])
    attended = [np.concatenate([part, x], axis=1) for part in (keys, values)]
    allowed = np.concatenate([np.ones((2, 3), bool), IDS != 0], axis=1)
    inner = keras.Model(cached.model.inputs, cached.model.get_layer(name).output[0])
    o, _ = plain.get_layer(name)([x, *attended, allowed[:, None, :]], a_bias=True)
    np.testing.assert_allclose(to_numpy(inner([IDS, SEGMENTS, keys, values])), to_numpy(o), atol=1e-5)


def test_attention_caches_that_cannot_be():
    inputs = [keras.Input((None, 12)), keras.Input((None, 12))]
    caches = {"attention_caches": {"Transformer-0-MultiHeadSelfAttention": inputs}, "additional_input_layers": inputs}
    for family, application in (("nezha", "encoder"), ("bert", "lm")):
        with pytest.raises(ValueError, match="absolute positions"):
            build(family, application, **caches)
    with pytest.raises(ValueError, match="lacks: Transformer-9"):
        build("bert", **{**caches, "attention_caches": {"Transformer-9-MultiHeadSelfAttention": inputs}})
