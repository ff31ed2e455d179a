"""The forms in which the same weights come: prefixes, old names, shards, torch files, tied copies, small floats."""

import json
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bert4x.models import build_transformer_model
from tests.models.checkpoint_files import save_tensorflow
from tests.parity.theirs import (
    MODELS,
    assert_close,
    call,
    make_batch,
    make_theirs,
    options_for,
    run_ours,
    run_theirs,
)

pytestmark = pytest.mark.parity

ROWS = ["bert", "albert", "electra-discriminator", "electra-generator", "roformer"]


@pytest.fixture(scope="module", params=ROWS)
def saved(request, tmp_path_factory):
    """(row, their model, directory that transformers wrote, what our model of it computes)."""
    directory = tmp_path_factory.mktemp(request.param)
    model = make_theirs(request.param)
    model.save_pretrained(directory)
    return request.param, model, directory, ours(request.param, directory)


def ours(row, directory):
    """All outputs of our model of a directory."""
    model = build_transformer_model(directory, output_hidden_states=True, **options_for(MODELS[row][2]))
    return call(model, make_batch())


def assert_same(outputs, wanted):
    for output, want in zip(outputs, wanted, strict=True):
        np.testing.assert_array_equal(output, want)


def copy(directory, folder, weights):
    """A directory with the same configuration and other weights."""
    shutil.copy(directory / "config.json", folder)
    save_file(weights, folder / "model.safetensors")
    return folder


def test_without_the_family_s_prefix(saved, tmp_path):
    row, model, directory, wanted = saved
    weights = load_file(directory / "model.safetensors")
    prefix = model.base_model_prefix + "."
    bare = {name.removeprefix(prefix): array for name, array in weights.items()}
    assert set(bare) != set(weights)
    assert_same(ours(row, copy(directory, tmp_path, bare)), wanted)


def test_encoder_only(saved, tmp_path):
    """What transformers writes for a model without heads."""
    _, model, directory, wanted = saved
    model.base_model.save_pretrained(tmp_path)
    batch = make_batch()
    hidden = run_ours(tmp_path, (), batch)["hidden"]
    assert_same(hidden, wanted[-len(hidden) :])


def test_gamma_and_beta(saved, tmp_path):
    row, _, directory, wanted = saved
    weights = load_file(directory / "model.safetensors")
    old = {_old_name(name): array for name, array in weights.items()}
    assert any(name.endswith("LayerNorm.gamma") for name in old)
    assert_same(ours(row, copy(directory, tmp_path, old)), wanted)


def _old_name(name):
    name = re.sub(r"(LayerNorm|layer_norm)\.weight$", r"\1.gamma", name)
    return re.sub(r"(LayerNorm|layer_norm)\.bias$", r"\1.beta", name)


def test_sharded_safetensors(saved, tmp_path):
    row, model, _, wanted = saved
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert not (tmp_path / "model.safetensors").exists()
    assert_same(ours(row, tmp_path), wanted)


def test_torch_file(saved, tmp_path):
    """A state dict as older releases saved it: tied copies and buffers included."""
    import torch

    row, model, directory, wanted = saved
    shutil.copy(directory / "config.json", tmp_path)
    state = model.state_dict()
    state[f"{model.base_model_prefix}.embeddings.position_ids"] = torch.arange(24)[None]
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert_same(ours(row, tmp_path), wanted)


def test_sharded_torch_files(saved, tmp_path):
    import torch

    row, model, directory, wanted = saved
    shutil.copy(directory / "config.json", tmp_path)
    state, weight_map = model.state_dict(), {}
    for i in range(3):
        names = list(state)[i::3]
        torch.save({name: state[name] for name in names}, tmp_path / f"pytorch_model-{i}.bin")
        weight_map |= dict.fromkeys(names, f"pytorch_model-{i}.bin")
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (tmp_path / "pytorch_model.bin.index.json").write_text(index, encoding="utf-8")
    assert_same(ours(row, tmp_path), wanted)


# row -> (name of a tied parameter, name of its copy in the decoder)
TIED = {
    "bert": [
        ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
        ("cls.predictions.bias", "cls.predictions.decoder.bias"),
    ],
    "albert": [
        ("albert.embeddings.word_embeddings.weight", "predictions.decoder.weight"),
        ("predictions.bias", "predictions.decoder.bias"),
    ],
    "roformer": [
        ("roformer.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
        ("cls.predictions.bias", "cls.predictions.decoder.bias"),
    ],
    "electra-generator": [("electra.embeddings.word_embeddings.weight", "generator_lm_head.weight")],
}


@pytest.mark.parametrize("saved", TIED, indirect=True)
def test_only_the_decoder_s_copies(saved, tmp_path):
    """Files that hold a tied parameter only under the name of its copy."""
    row, _, directory, wanted = saved
    weights = load_file(directory / "model.safetensors")
    for name, twin in TIED[row]:
        weights[twin] = weights.pop(name)
    assert_same(ours(row, copy(directory, tmp_path, weights)), wanted)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_small_floats(saved, dtype, tmp_path, tolerance):
    """Files of 16 bits: equal to transformers computing with the rounded numbers in float32."""
    import torch

    row, _, _, _ = saved
    model, rounded = make_theirs(row).to(getattr(torch, dtype)), make_theirs(row)
    model.save_pretrained(tmp_path)
    for (name, small), parameter in zip(model.named_parameters(), rounded.parameters(), strict=True):
        if "embed_positions" not in name:  # a fixed table, which nothing should round
            parameter.data = small.data.float()
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["dtype"] == dtype
    batch = make_batch()
    theirs = run_theirs(rounded, *batch)
    assert_close(run_ours(tmp_path, MODELS[row][2], batch), theirs, batch[2], tolerance)


def test_tensorflow_checkpoint_written_by_hand(tmp_path, tolerance):
    """BERT in Google's names, transposed and written here, not by our writer; optimizer slots beside it."""
    tf = pytest.importorskip("tensorflow")
    model = make_theirs("bert")
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    weights = {theirs: state[name].T if turned else state[name] for theirs, name, turned in bert_names(3)}
    slots = {"global_step": np.int64(7), "bert/pooler/dense/kernel/adam_m": np.zeros((32, 32), "float32")}
    save_tensorflow(tf, tmp_path / "bert_model.ckpt", weights | slots)
    config = model.config.to_dict()
    keys = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
            "max_position_embeddings", "type_vocab_size", "hidden_dropout_prob")  # fmt: skip
    (tmp_path / "bert_config.json").write_text(json.dumps({key: config[key] for key in keys}), encoding="utf-8")
    batch = make_batch()
    options = {"checkpoint_path": tmp_path / "bert_model.ckpt"}
    ours = run_ours(tmp_path / "bert_config.json", MODELS["bert"][2], batch, **options)
    assert_close(ours, run_theirs(model, *batch), batch[2], tolerance)


def bert_names(layers):
    """(Google's name, transformers' name, transposed?) of every parameter of BERT with its pretraining heads."""
    tables = [(f"embeddings/{kind}_embeddings", f"embeddings.{kind}_embeddings.weight")
              for kind in ("word", "position", "token_type")]
    norms, denses = [("embeddings/LayerNorm", "embeddings.LayerNorm")], [("pooler/dense", "pooler.dense")]
    for i in range(layers):
        ours, theirs = f"encoder/layer_{i}", f"encoder.layer.{i}"
        denses += [
            (f"{ours}/attention/self/query", f"{theirs}.attention.self.query"),
            (f"{ours}/attention/self/key", f"{theirs}.attention.self.key"),
            (f"{ours}/attention/self/value", f"{theirs}.attention.self.value"),
            (f"{ours}/attention/output/dense", f"{theirs}.attention.output.dense"),
            (f"{ours}/intermediate/dense", f"{theirs}.intermediate.dense"),
            (f"{ours}/output/dense", f"{theirs}.output.dense"),
        ]
        norms += [(f"{ours}/attention/output/LayerNorm", f"{theirs}.attention.output.LayerNorm"),
                  (f"{ours}/output/LayerNorm", f"{theirs}.output.LayerNorm")]
    rows = [(f"bert/{ours}", f"bert.{theirs}", False) for ours, theirs in tables]
    norms = [(f"bert/{ours}", f"bert.{theirs}") for ours, theirs in norms]
    denses = [(f"bert/{ours}", f"bert.{theirs}") for ours, theirs in denses]
    norms += [("cls/predictions/transform/LayerNorm", "cls.predictions.transform.LayerNorm")]
    denses += [("cls/predictions/transform/dense", "cls.predictions.transform.dense")]
    for ours, theirs in norms:
        rows += [(f"{ours}/gamma", f"{theirs}.weight", False), (f"{ours}/beta", f"{theirs}.bias", False)]
    for ours, theirs in denses:
        rows += [(f"{ours}/kernel", f"{theirs}.weight", True), (f"{ours}/bias", f"{theirs}.bias", False)]
    return rows + [
        ("cls/predictions/output_bias", "cls.predictions.bias", False),
        ("cls/seq_relationship/output_weights", "cls.seq_relationship.weight", False),
        ("cls/seq_relationship/output_bias", "cls.seq_relationship.bias", False),
    ]
