"""What a configuration or a file says besides shapes: heads of their own, decoders, activations that are fixed."""

import pytest

from bert4x.backend import gelu_erf, get_activation
from bert4x.models import CheckpointError, build_transformer_model
from bert4x.models.weights import weight_items
from tests.models.tiny import CONFIG, IDS, SEGMENTS, build


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
