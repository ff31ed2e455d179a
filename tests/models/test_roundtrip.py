"""What is written is read back bit by bit: every family, both namings, every head."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from bert4x.models import build_transformer_model, open_checkpoint, save_pretrained
from tests.models.reference_weights import arrays, randomize, to_numpy

SIZES = {
    "vocab_size": 23,
    "hidden_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 9,
    "hidden_act": "gelu",
}
NARROW = {"embedding_size": 8}
HEADS = {"with_nsp": True, "with_mlm": True}

# row -> (family, changes of the configuration, options that build every head)
FAMILIES = {
    "bert": ("bert", {}, HEADS),
    "bert-narrow": ("bert", NARROW, HEADS),
    "bert-head-sizes": ("bert", {"attention_head_size": 5, "attention_key_size": 6}, HEADS),
    "bert-no-segments": ("bert", {"type_vocab_size": 0}, HEADS),
    "albert": ("albert", NARROW, HEADS),
    "albert-same-width": ("albert", {}, HEADS),
    "albert-groups": ("albert", {**NARROW, "num_hidden_groups": 2, "inner_group_num": 2}, HEADS),
    "albert_unshared": ("albert_unshared", NARROW, HEADS),
    "albert_unshared-groups": ("albert_unshared", {**NARROW, "num_hidden_groups": 2, "inner_group_num": 2}, HEADS),
    "nezha": ("nezha", {}, HEADS),
    "electra-discriminator": ("electra", NARROW, {"with_discriminator": True}),
    "electra-generator": ("electra", NARROW, {"with_mlm": True}),
    "roformer": ("roformer", {}, HEADS),
    "roformer-narrow": ("roformer", NARROW, HEADS),
    "roformer_v2": ("roformer_v2", {}, {"with_mlm": True}),
    "roformer_v2-narrow": ("roformer_v2", NARROW, {"with_mlm": True}),
}


def make(row, checkpoint=None):
    """The model of a row, with random weights or those of a checkpoint."""
    family, changes, options = FAMILIES[row]
    model = build_transformer_model({**SIZES, **changes}, checkpoint, model=family, **options)
    return randomize(model) if checkpoint is None else model


def assert_equal(ours, theirs):
    """Two dicts of arrays: same names, shapes, types and bits."""
    assert set(ours) == set(theirs)
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name, strict=True)


def assert_complete(report):
    """Everything in the file was used, and everything in the model was filled."""
    assert report.missing == report.mismatched == report.unused == report.initialized == []


def run(model):
    """Outputs on a padded batch, as arrays."""
    ids = np.array([[3, 7, 1, 22, 5], [9, 2, 4, 0, 0]])
    outputs = model([ids, ids % 2] if len(model.inputs) == 2 else ids)
    return [to_numpy(output) for output in (outputs if isinstance(outputs, list) else [outputs])]


def assert_same_outputs(ours, theirs):
    """Two models compute the same bits."""
    for our, their in zip(run(ours), run(theirs), strict=True):
        np.testing.assert_array_equal(our, their)


@pytest.mark.parametrize("row", FAMILIES)
def test_directory_and_tensorflow_checkpoint(row, tmp_path):
    """HuggingFace naming in a directory, which names everything but the heads, and Google's; and one to the other."""
    family, _, heads = FAMILIES[row]
    model = make(row)
    save_pretrained(model, None, tmp_path)
    named = {"model": family} if family == "albert_unshared" else {}  # it is saved as an ALBERT of many groups
    from_directory = build_transformer_model(tmp_path, **named, **heads)
    model.builder.save_weights_as_checkpoint(tmp_path / "bert_model.ckpt")
    from_tensorflow = make(row, tmp_path / "bert_model.ckpt")
    for again in (from_directory, from_tensorflow):
        assert_equal(arrays(again), arrays(model))
        assert_complete(again.builder.load_report)
    assert_same_outputs(from_directory, model)
    from_tensorflow.builder.save_weights_as_checkpoint(tmp_path / "again.safetensors")
    assert_equal(load_file(tmp_path / "again.safetensors"), load_file(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("row", ["albert", "albert-groups"])
@pytest.mark.parametrize("file", ["model.safetensors", "bert_model.ckpt"])
def test_albert_unshared_starts_from_the_shared_blocks(row, file, tmp_path):
    """Outputs equal ALBERT's; every block has weights of its own."""
    model = make(row)
    model.builder.save_weights_as_checkpoint(tmp_path / file)
    unshared = make(row.replace("albert", "albert_unshared"), tmp_path / file)
    assert_same_outputs(unshared, model)
    assert unshared.count_params() > model.count_params()
    assert_complete(unshared.builder.load_report)


def test_albert_unshared_refuses_a_file_that_lacks_a_block(tmp_path):
    """A file of unshared blocks without one of them is an error, not a mixture with a shared block."""
    make("albert_unshared").builder.save_weights_as_checkpoint(tmp_path / "model.safetensors")
    weights = load_file(tmp_path / "model.safetensors")
    cut = {name: array for name, array in weights.items() if "groups.2." not in name}
    assert len(cut) < len(weights)
    with pytest.raises(ValueError, match="does not fit"):
        make("albert_unshared", cut)


def test_float16_file(tmp_path):
    """dtype= rounds the numbers in the file, once."""
    model = make("bert")
    model.builder.save_weights_as_checkpoint(tmp_path / "model.safetensors", dtype="float16")
    model.builder.save_weights_as_checkpoint(tmp_path / "bert_model.ckpt", dtype="float16")
    wanted = {name: array.astype("float16").astype("float32") for name, array in arrays(model).items()}
    for file in ("model.safetensors", "bert_model.ckpt"):
        with open_checkpoint(tmp_path / file) as checkpoint:
            assert {checkpoint.dtype(name) for name in checkpoint.names} == {"float16"}
        assert_equal(arrays(make("bert", tmp_path / file)), wanted)


def test_config_is_json_of_known_words(tmp_path):
    save_pretrained(make("bert"), None, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert {config[key] for key in ("model_type", "hidden_act")} == {"bert", "gelu"}
    assert {key: config[key] for key in SIZES if key != "hidden_act"} == {
        key: value for key, value in SIZES.items() if key != "hidden_act"
    }
