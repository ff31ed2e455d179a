"""Directories that we write, loaded by transformers: every output, and no key missing or left over."""

import json

import numpy as np
import pytest

from bert4x.models import build_transformer_model, save_pretrained
from bert4x.tokenizers import Tokenizer
from tests.models.reference_weights import randomize
from tests.parity.theirs import (
    HEADS,
    NARROW,
    SIZES,
    assert_close,
    make_batch,
    named_outputs,
    options_for,
    run_theirs,
)

pytestmark = pytest.mark.parity

# transformers' class -> (our family, configuration beside SIZES, our heads)
MODELS = {
    "BertModel": ("bert", {}, ["pooled"]),
    "BertForMaskedLM": ("bert", {}, ["mlm"]),
    "BertForPreTraining": ("bert", {}, ["nsp", "mlm"]),
    "AlbertModel": ("albert", NARROW, ["pooled"]),
    "AlbertForPreTraining": ("albert", {**NARROW, "num_hidden_groups": 3, "inner_group_num": 2}, ["nsp", "mlm"]),
    "ElectraModel": ("electra", NARROW, []),
    "ElectraForPreTraining": ("electra", NARROW, ["discriminator"]),
    "ElectraForMaskedLM": ("electra", NARROW, ["mlm"]),
    "RoFormerModel": ("roformer", NARROW, []),
    "RoFormerForMaskedLM": ("roformer", {}, ["mlm"]),
}
# The same hidden states where the file has the encoder only, as AutoModel's classes for a bare encoder read it.
ENCODERS = {"bert": "BertModel", "albert": "AlbertModel", "electra": "ElectraModel", "roformer": "RoFormerModel"}


def make_ours(family, changes, heads):
    config = {**SIZES, "hidden_act": "gelu", **changes}
    model = build_transformer_model(config, model=family, output_hidden_states=True, **options_for(heads))
    return randomize(model)


def load_theirs(name, directory):
    """Their model, and the names it missed and did not use; RoFormer's fixed table of sines is never in a file."""
    import transformers

    model, info = getattr(transformers, name).from_pretrained(directory, output_loading_info=True)
    assert not info["mismatched_keys"]
    missing = {key for key in info["missing_keys"] if not key.endswith("encoder.embed_positions.weight")}
    return model.eval(), missing, set(info["unexpected_keys"])


@pytest.mark.parametrize("name", MODELS)
def test_outputs(name, tmp_path, tolerance):
    family, changes, heads = MODELS[name]
    model = make_ours(family, changes, heads)
    save_pretrained(model, None, tmp_path)
    theirs, missing, unexpected = load_theirs(name, tmp_path)
    assert not missing and not unexpected
    batch = make_batch()
    wanted = run_theirs(theirs, *batch)
    assert set(heads) <= set(wanted)
    assert_close(named_outputs(model, heads, batch), wanted, batch[2], tolerance)


@pytest.mark.parametrize("family", ENCODERS)
def test_auto_model(family, tmp_path, tolerance):
    """AutoModel finds the class; a model without heads lacks at most the pooler there."""
    model = make_ours(family, {} if family == "bert" else NARROW, [])
    save_pretrained(model, None, tmp_path)
    theirs, missing, unexpected = load_theirs("AutoModel", tmp_path)
    assert type(theirs).__name__ == ENCODERS[family]
    assert not unexpected and all("pooler" in key for key in missing)
    batch = make_batch()
    assert_close(named_outputs(model, [], batch), run_theirs(theirs, *batch), batch[2], tolerance)


@pytest.mark.parametrize("groups", [{}, {"num_hidden_groups": 3, "inner_group_num": 2}])
def test_albert_unshared_is_an_albert_of_many_groups(groups, tmp_path, tolerance):
    """Written with one group per block; one block's weights are changed first, as training would."""
    shared = make_ours("albert", {**NARROW, **groups}, ["pooled"])
    shared.builder.save_weights_as_checkpoint(tmp_path / "shared.safetensors")
    config = {**SIZES, **NARROW, **groups, "hidden_act": "gelu"}
    options = {"model": "albert_unshared", "with_pool": True, "output_hidden_states": True}
    model = build_transformer_model(config, tmp_path / "shared.safetensors", **options)
    batch, outputs = make_batch(), []
    for step in ("as loaded", "changed"):
        if step == "changed":
            randomize_layer(model, "Transformer-1-FeedForward")
        save_pretrained(model, None, tmp_path / step)
        theirs, missing, unexpected = load_theirs("AlbertModel", tmp_path / step)
        assert not missing and not unexpected
        outputs.append(named_outputs(model, ["pooled"], batch))
        assert_close(outputs[-1], run_theirs(theirs, *batch), batch[2], tolerance)
    first, second = ([h[batch[2]] for h in output["hidden"]] for output in outputs)
    assert np.array_equal(first[1], second[1]) and not np.allclose(first[2], second[2], atol=0.1)


def randomize_layer(model, name):
    random = np.random.default_rng(3)
    for variable in model.get_layer(name).weights:
        variable.assign(random.normal(size=variable.shape) / 4)


@pytest.mark.parametrize("activation", ["gelu_erf", "gelu_tanh", "gelu", "relu", "swish", "silu"])
def test_activation_keeps_its_meaning(activation, tmp_path, tolerance):
    model = make_ours("bert", {"hidden_act": activation}, ["mlm"])
    save_pretrained(model, None, tmp_path)
    theirs, _, _ = load_theirs("BertForMaskedLM", tmp_path)
    batch = make_batch()
    assert_close(named_outputs(model, ["mlm"], batch), run_theirs(theirs, *batch), batch[2], tolerance)


def test_options_that_change_the_arithmetic(tmp_path, tolerance):
    """Sizes cut down by keep_tokens, another epsilon, three segments: the file says them all."""
    changes = {"layer_norm_eps": 1e-3, "type_vocab_size": 3, "max_position_embeddings": 30}
    kept = [0, 7, 5, 60, *range(20, 40)]
    model = make_ours("bert", changes, ["nsp", "mlm"])
    weights = tmp_path / "all.safetensors"
    model.builder.save_weights_as_checkpoint(weights)
    config = {**SIZES, **changes, "hidden_act": "gelu"}
    options = {"output_hidden_states": True, "max_position": 16, "keep_tokens": kept}
    config.pop("max_position_embeddings")
    model = build_transformer_model(config, weights, **options_for(["nsp", "mlm"]), **options)
    save_pretrained(model, None, tmp_path / "cut")
    theirs, missing, unexpected = load_theirs("BertForPreTraining", tmp_path / "cut")
    assert not missing and not unexpected and theirs.config.vocab_size == len(kept)
    ids, segments, valid = make_batch(vocab_size=len(kept))
    batch = ids, segments * 2, valid
    assert_close(named_outputs(model, ["nsp", "mlm"], batch), run_theirs(theirs, *batch), valid, tolerance)


def test_tokenizer_beside_the_model(tmp_path):
    """transformers reads the vocabulary and the settings that stand beside our weights: equal ids."""
    import transformers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##aff", "##able", "cafe", "我", "爱", "!"]
    words += [f"[unused{i}]" for i in range(len(words), SIZES["vocab_size"])]
    tokenizer = Tokenizer({word: i for i, word in enumerate(words)}, do_lower_case=True)
    save_pretrained(make_ours("bert", {}, ["pooled"]), tokenizer, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("unaffable Café!", "我爱 cafe", "UNAFFABLE 京"):
        ours, segments = tokenizer.encode(text)
        encoded = theirs(text)
        assert (encoded["input_ids"], encoded["token_type_ids"]) == (ours, segments)
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["vocab_size"] == len(theirs)


def test_rows_cover_every_head():
    assert {head for _, _, heads in MODELS.values() for head in heads} == set(HEADS)
