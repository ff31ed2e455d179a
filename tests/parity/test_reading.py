"""Models saved by transformers, loaded by us: every hidden state and every head."""

import numpy as np
import pytest

from bert4x.models import CheckpointError, build_transformer_model
from tests.parity.theirs import (
    MODELS,
    NARROW,
    assert_close,
    call,
    make_batch,
    make_theirs,
    options_for,
    run_ours,
    run_theirs,
)

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module", params=MODELS)
def saved(request, tmp_path_factory):
    """(row, directory that transformers wrote, what transformers computes)."""
    directory = tmp_path_factory.mktemp(request.param)
    model = make_theirs(request.param)
    model.save_pretrained(directory)
    return request.param, directory, run_theirs(model, *make_batch())


@pytest.fixture(scope="module")
def builder(saved):
    """Our builder of the saved model with every head and all hidden states."""
    row, directory, _ = saved
    options = options_for(MODELS[row][2])
    return build_transformer_model(directory, return_keras_model=False, output_hidden_states=True, **options)


def test_outputs(saved, tolerance):
    row, directory, theirs = saved
    heads = MODELS[row][2]
    assert set(heads) <= set(theirs)
    batch = make_batch()
    assert_close(run_ours(directory, heads, batch), theirs, batch[2], tolerance)


def test_every_parameter_is_read(builder):
    assert builder.load_report.unused == builder.load_report.initialized == []


def test_google_naming(saved, builder, tmp_path):
    """The same weights as a TensorFlow checkpoint under a configuration with Google's keys: not a bit differs."""
    builder.save_weights_as_checkpoint(tmp_path / "bert_model.ckpt")
    model = build_transformer_model(
        google_config(builder),
        tmp_path / "bert_model.ckpt",
        model=builder.model_type,
        output_hidden_states=True,
        **options_for(MODELS[saved[0]][2]),
    )
    batch = make_batch()
    for ours, wanted in zip(call(model, batch), call(builder.model, batch), strict=True):
        np.testing.assert_array_equal(ours, wanted)


def google_config(builder):
    """What a JSON of the original releases would hold; the activation is given by its explicit name."""
    names = {"dropout_rate": "hidden_dropout_prob", "max_position": "max_position_embeddings"}
    keys = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
            "embedding_size", "layer_norm_eps", "dropout_rate", "max_position", "num_hidden_groups", "inner_group_num",
            "embedding_mapping")  # fmt: skip
    return {names.get(key, key): getattr(builder, key) for key in keys if hasattr(builder, key)}


def test_padding_does_not_matter(builder, tolerance):
    """Rows computed alone and without padding equal those of the batch."""
    ids, segments, valid = make_batch()
    together = call(builder.model, (ids, segments))[-1]
    for i, length in enumerate(valid.sum(-1)):
        alone = call(builder.model, (ids[i : i + 1, :length], segments[i : i + 1, :length]))[-1]
        np.testing.assert_allclose(together[i : i + 1, :length], alone, rtol=0, atol=tolerance)


@pytest.mark.parametrize("row", ["albert", "albert-groups-inner"])
def test_albert_unshared_starts_as_albert(row, tmp_path, tolerance):
    theirs = make_theirs(row)
    theirs.save_pretrained(tmp_path)
    batch = make_batch()
    ours = run_ours(tmp_path, MODELS[row][2], batch, model="albert_unshared")
    assert_close(ours, run_theirs(theirs, *batch), batch[2], tolerance)


def test_the_comparison_can_fail(tmp_path, tolerance):
    """Weights that are wrong in one place are seen: a transposed square kernel, one bias, the padding row."""
    theirs = make_theirs("bert")
    theirs.save_pretrained(tmp_path)
    batch = make_batch()
    wanted = run_theirs(theirs, *batch)
    for name in ("encoder.layer.2.attention.self.key.weight", "encoder.layer.0.output.dense.bias"):
        parameter = theirs.bert.get_parameter(name)
        original = parameter.data
        parameter.data = original.T.contiguous() if original.ndim == 2 else original.flip(0)
        theirs.save_pretrained(tmp_path)
        with pytest.raises(AssertionError, match="hidden state [13]"):
            assert_close(run_ours(tmp_path, (), batch), wanted, batch[2], tolerance)
        parameter.data = original


def test_rotated_values_are_refused(tmp_path):
    """RoFormer with rotary_value is another arithmetic, which no weight would tell."""
    theirs = make_theirs("roformer")
    theirs.config.rotary_value = True
    theirs.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="rotary_value"):
        build_transformer_model(tmp_path)


def test_rows_cover_what_differs():
    """E != H and E == H for every family with factorised embeddings, and both directions of ALBERT's sharing."""
    families = {row.split("-")[0] for row in MODELS}
    assert families == {"bert", "albert", "electra", "roformer"}
    for family in ("albert", "electra", "roformer"):
        widths = {MODELS[row][1]["embedding_size"] for row in MODELS if row.startswith(family)}
        assert len(widths) == 2 and NARROW["embedding_size"] in widths
