"""Generative families: the numbers of the specification, and files in every layout."""

import json

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bert4x.models import CheckpointError, build_transformer_model, open_checkpoint, save_pretrained
from bert4x.models.tensor_file import SafetensorsCheckpoint
from tests.models.checkpoint_files import save_tensorflow
from tests.models.generative import DECODERS, IDS, REAL, ROWS, TARGETS, build, google_weights, run
from tests.models.reference_weights import CHECKS_TOLERANCE, load_checks, rule_weights, to_numpy

LOGITS = {"final_activation": "linear"}
SHARED = {**LOGITS, "segment_vocab_size": 13, "shared_segment_embeddings": True}
# (case, output in the file) -> (suffix of the model's name, options, inputs beside the encoder's, name of the layer)
OUTPUTS = {
    **{(name, "logits"): ("", LOGITS, (), None) for name in ("gpt", "gpt2", "gpt2_ml")},
    ("gpt", "logits_shared_segments"): ("", SHARED, ("token_segments",), None),
    ("gpt", "last"): ("", LOGITS, (), "Transformer-1-FeedForward-Norm"),
    ("gpt2", "last"): ("", LOGITS, (), "Output-Norm"),
    ("gpt2_ml", "last"): ("", LOGITS, (), "Transformer-1-FeedForward-Norm-1"),
}
for _name in ("t5.1.0", "t5.1.1", "mt5.1.1"):
    OUTPUTS[_name, "encoder"] = ("_encoder", {}, (), None)
    OUTPUTS[_name, "decoder"] = ("", {"with_lm": False}, ("decoder_ids",), None)
    OUTPUTS[_name, "logits"] = ("", {"with_lm": "linear"}, ("decoder_ids",), None)
FAMILIES = sorted({name for name, _ in OUTPUTS})
T5 = [name for name in FAMILIES if "t5" in name]


@pytest.fixture(scope="module")
def cases(shared_data):
    path = shared_data.parent / "spec" / "checks_models.json"
    if not path.is_file():
        pytest.skip(f"no numbers to check against: {path} is not there")
    return load_checks(path)


def test_every_listed_output_is_checked(cases):
    assert {(name, output) for name in FAMILIES for output in cases[name]["outputs"]} == set(OUTPUTS)


@pytest.mark.parametrize(("name", "output"), OUTPUTS)
def test_output(cases, name, output):
    case, (suffix, options, others, layer) = cases[name], OUTPUTS[name, output]
    model = build_transformer_model(case["config"], rule_weights(case["weights"]), model=name + suffix, **options)
    if layer:
        model = keras.Model(model.input, model.get_layer(layer).output)
    inputs = [np.array(case["inputs"][key]) for key in ("ids", *others)]
    ours, wanted = to_numpy(model(inputs if others else inputs[0])), np.array(case["outputs"][output])
    assert ours.shape == wanted.shape
    if "decoder_ids" not in others:
        valid = np.array(case["inputs"]["valid"], dtype=bool)
        ours, wanted = ours[valid], wanted[valid]
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=CHECKS_TOLERANCE)


@pytest.mark.parametrize("name", FAMILIES)
def test_written_file_is_that_of_the_case(cases, name, tmp_path):
    """Names, shapes and bits of the TensorFlow checkpoint that we write are those of the weights that were read."""
    weights = rule_weights(cases[name]["weights"])
    builder = build_transformer_model(cases[name]["config"], weights, model=name, return_keras_model=False)
    assert builder.load_report.unused == builder.load_report.initialized == []
    builder.save_weights_as_checkpoint(tmp_path / "model.ckpt")
    with open_checkpoint(tmp_path / "model.ckpt") as checkpoint:
        assert set(checkpoint.names) == set(weights)
        for variable, array in weights.items():
            np.testing.assert_array_equal(checkpoint.read(variable), array, err_msg=variable, strict=True)


def assert_equal_models(ours, theirs):
    """Two models hold the same variables, bit by bit, and what was loaded is all."""
    report = ours.builder.load_report
    assert report.missing == report.mismatched == report.unused == report.initialized == []
    values, wanted = ({v.path: to_numpy(v) for v in model.weights} for model in (ours, theirs))
    assert set(values) == set(wanted)
    for path, array in values.items():
        np.testing.assert_array_equal(array, wanted[path], err_msg=path, strict=True)


@pytest.mark.parametrize("row", ROWS)
def test_directory_and_tensorflow_checkpoint(row, tmp_path):
    """A directory says everything but the application; both namings are read back bit by bit, and give each other."""
    builder = build(row)
    save_pretrained(builder, None, tmp_path)
    name = ROWS[row][0]
    model = {"model": name} if name == "cpm" else {}  # it is saved as the GPT2 that it is
    from_directory = build_transformer_model(tmp_path, **model, **_logits(name))
    builder.save_weights_as_checkpoint(tmp_path / "model.ckpt")
    from_tensorflow = build(row, tmp_path / "model.ckpt")
    for again in (from_directory, from_tensorflow.model):
        assert_equal_models(again, builder.model)
        np.testing.assert_array_equal(run(again), run(builder))
    assert changed_options(from_directory.builder, builder) == {}
    from_tensorflow.save_weights_as_checkpoint(tmp_path / "again.safetensors")
    first, second = (load_file(tmp_path / file) for file in ("again.safetensors", "model.safetensors"))
    assert set(first) == set(second)
    assert all(np.array_equal(first[name], second[name]) for name in first)


def changed_options(ours, theirs):
    """{option: (ours, theirs)} where they differ, but for options whose default a file spells out."""
    pairs = {option: (getattr(ours, option), getattr(theirs, option)) for option in ours.known_options()}
    spelt = {"num_key_value_heads": ours.num_attention_heads}
    if getattr(ours, "version", "t5.1.0") != "t5.1.0":
        spelt["scale_decoder_outputs"] = False  # only a tied head is scaled
    del pairs["layers"]
    return {option: (a, b) for option, (a, b) in pairs.items() if a != b and a != spelt.get(option)}


def _logits(name):
    return {"with_lm": "linear"} if "t5" in name else LOGITS


def test_openai_s_own_layout(cases, tmp_path):
    """model/h0/attn/c_attn/w of shape (1, H, 3H), as a dict and as a TensorFlow checkpoint."""
    case, model = cases["gpt2"], {"model": "gpt2", **LOGITS}
    weights = rule_weights(case["weights"])
    wanted = build_transformer_model(case["config"], weights, **model)
    original = openai_weights(weights, blocks=2)
    assert original["model/h0/attn/c_attn/w"].shape == (1, 8, 24) and original["model/h1/mlp/c_fc/w"].ndim == 3
    tf = pytest.importorskip("tensorflow")
    save_tensorflow(tf, tmp_path / "model.ckpt", {**original, "global_step": np.int64(3)})
    for source in (original, tmp_path / "model.ckpt"):
        assert_equal_models(build_transformer_model(case["config"], source, **model), wanted)


def openai_weights(weights, blocks):
    """Generic names -> OpenAI's, whose kernels are those of convolutions."""
    renamed = {
        "model/wte": weights["gpt/embeddings/word_embeddings"],
        "model/wpe": weights["gpt/embeddings/position_embeddings"],
        "model/ln_f/b": weights["gpt/output/LayerNorm/beta"],
        "model/ln_f/g": weights["gpt/output/LayerNorm/gamma"],
    }
    denses = {"attn/c_proj": "attention/output/dense", "mlp/c_fc": "intermediate/dense", "mlp/c_proj": "output/dense"}
    norms = {"ln_1": "attention/input/LayerNorm", "ln_2": "input/LayerNorm"}
    for index in range(blocks):
        ours, theirs = f"gpt/transformer/layer_{index}", f"model/h{index}"
        fused = [[weights[f"{ours}/attention/self/{part}/{kind}"] for part in ("query", "key", "value")]
                 for kind in ("kernel", "bias")]
        renamed[f"{theirs}/attn/c_attn/w"] = np.concatenate(fused[0], axis=1)[None]
        renamed[f"{theirs}/attn/c_attn/b"] = np.concatenate(fused[1])
        for short, long in denses.items():
            renamed[f"{theirs}/{short}/w"] = weights[f"{ours}/{long}/kernel"][None]
            renamed[f"{theirs}/{short}/b"] = weights[f"{ours}/{long}/bias"]
        for short, long in norms.items():
            renamed[f"{theirs}/{short}/b"] = weights[f"{ours}/{long}/beta"]
            renamed[f"{theirs}/{short}/g"] = weights[f"{ours}/{long}/gamma"]
    return renamed


# rows with a tied and an untied head
HEADS = ["gpt", "gpt2", "gpt2_ml", "t5.1.0", "t5.1.1", "mt5.1.1", "llama", "llama-tied"]
KEPT = [0, 5, 3, 9, 2, 7, 1, 4, 12, 11, 8, 6]


@pytest.mark.parametrize("row", HEADS)
@pytest.mark.parametrize("file", ["model.safetensors", "model.ckpt"])
def test_keep_tokens(row, file, tmp_path, tolerance):
    """Rows of the table and rows or columns of the head are picked in this order, means of rows follow."""
    full, new = build(row), np.full(17, -1)
    full.save_weights_as_checkpoint(tmp_path / file)
    new[KEPT] = range(len(KEPT))
    cut = build(row, tmp_path / file, keep_tokens=KEPT, compound_tokens=[[1, 3]])
    assert cut.vocab_size == 13 and cut.load_report.unused == []
    logits, wanted = run(cut, ids=new[IDS], targets=new[TARGETS]), run(full)
    real = np.ones(wanted.shape[:2], bool) if "t5" in row else REAL
    np.testing.assert_allclose(logits[real][:, :12], wanted[real][:, KEPT], rtol=0, atol=tolerance)
    np.testing.assert_allclose(logits[real][:, 12], logits[real][:, [1, 3]].mean(-1), rtol=0, atol=tolerance)


@pytest.mark.parametrize("row", ["t5.1.1", "llama"])
def test_only_the_kept_rows_of_an_output_head_are_read(row, tmp_path, monkeypatch):
    """A vocabulary of 250112 tokens is not held in memory for the sake of a few."""
    build(row).save_weights_as_checkpoint(tmp_path / "model.safetensors")
    asked, load = {}, SafetensorsCheckpoint._load

    def recording(self, name, rows):
        asked[name] = rows if rows is None else len(rows)
        return load(self, name, rows)

    monkeypatch.setattr(SafetensorsCheckpoint, "_load", recording)
    build(row, tmp_path / "model.safetensors", keep_tokens=KEPT)
    assert asked["lm_head.weight"] == len(KEPT)
    assert asked["shared.weight" if row == "t5.1.1" else "model.embed_tokens.weight"] == len(KEPT)


@pytest.mark.parametrize("found", T5)
@pytest.mark.parametrize("given", ["t5", *T5])
def test_version_of_t5(cases, given, found):
    """The weights tell; a contradicting name is an error, except between the two that differ in names only."""
    case = cases[found]
    weights = rule_weights(case["weights"])
    if given != "t5" and ("t5.1.0" in (given, found)) and given != found:
        with pytest.raises(ValueError, match=f"are of {found}, not {given}.*Use model='{found}'"):
            build_transformer_model(case["config"], weights, model=given)
        return
    builder = build_transformer_model(case["config"], weights, model=given, return_keras_model=False)
    assert builder.version == found and builder.load_report.unused == []


@pytest.mark.parametrize("suffix", ["_encoder", "_decoder"])
@pytest.mark.parametrize("found", T5)
def test_version_of_a_part_of_t5(cases, found, suffix):
    part = {name: a for name, a in rule_weights(cases[found]["weights"]).items()
            if name.startswith((suffix[1:], "shared"))}
    config = cases[found]["config"]
    builder = build_transformer_model(config, part, model=f"t5{suffix}", return_keras_model=False)
    assert builder.version == found and builder.load_report.unused == builder.load_report.initialized == []
    other = "t5.1.1" if found == "t5.1.0" else "t5.1.0"
    with pytest.raises(ValueError, match=f"are of {found}, not {other}.*Use model='{found}{suffix}'"):
        build_transformer_model(config, part, model=f"{other}{suffix}")
    with pytest.raises(ValueError, match=f"holds the {suffix[1:]} of a T5 alone. Use model='t5{suffix}'"):
        build_transformer_model(config, part, model="t5")


def test_stand_alone_decoder_has_its_own_depth(tmp_path):
    """num_decoder_layers of a file is the depth of t5_decoder too."""
    builder = build("mt5.1.1")
    save_pretrained(builder, None, tmp_path)
    decoder = build_transformer_model(tmp_path, model="mt5.1.1_decoder", return_keras_model=False)
    assert decoder.num_blocks == 3 and builder.encoder.num_blocks == 2
    assert all(name.startswith("encoder.") for name in decoder.load_report.unused)


def test_a_head_that_differs_from_the_table(tmp_path):
    """GPT2 ties its head: a file with another one is refused; an equal copy, or the copy alone, is fine."""
    builder = build("gpt2")
    builder.save_weights_as_checkpoint(tmp_path / "model.safetensors")
    weights = load_file(tmp_path / "model.safetensors")
    table = weights["transformer.wte.weight"]
    assert_equal_models(build("gpt2", {**weights, "lm_head.weight": table.copy()}).model, builder.model)
    alone = {**weights, "lm_head.weight": table}
    del alone["transformer.wte.weight"]
    assert_equal_models(build("gpt2", alone).model, builder.model)
    with pytest.raises(CheckpointError, match="ties the two"):
        build("gpt2", {**weights, "lm_head.weight": table + 1})


def test_the_weights_decide_whether_llama_is_tied(tmp_path):
    """As in transformers: a head of its own wins over tie_word_embeddings, a copy of the table does not."""
    for row in ("llama", "llama-tied"):
        builder = build(row, attention_head_size=4, rope_theta=1e4)
        builder.save_weights_as_checkpoint(tmp_path / "model.safetensors")
        weights = load_file(tmp_path / "model.safetensors")
        weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
        save_file(weights, tmp_path / "both.safetensors")
        again = build("llama", tmp_path / "both.safetensors", tie_word_embeddings=True)
        assert again.tie_word_embeddings is (row == "llama-tied")
        np.testing.assert_array_equal(run(again), run(builder))


def test_missing_head_is_named(tmp_path):
    weights = google_weights(build("llama-tied", attention_head_size=4))
    with pytest.raises(CheckpointError, match="missing in the file: lm_head/kernel"):
        build("llama", weights)


def test_old_buffers_and_copies_are_not_reported(tmp_path):
    """Causal buffers of GPT2, rotary frequencies of LLaMA, copies of T5's table, its meaningless bias."""
    extras = {
        "gpt2": {"transformer.h.0.attn.bias": np.ones((1, 1, 9, 9)), "transformer.h.0.attn.masked_bias": np.ones(())},
        "llama": {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2)},
        "t5.1.0": {
            "decoder.embed_tokens.weight": np.ones((17, 12)),
            "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": np.ones((32, 4)),
        },
    }
    for row, buffers in extras.items():
        build(row).save_weights_as_checkpoint(tmp_path / f"{row}.safetensors")
        weights = load_file(tmp_path / f"{row}.safetensors")
        assert build(row, {**weights, **buffers}).load_report.unused == []


def test_saved_configurations(tmp_path):
    """model_type and the keys that another reader needs."""
    wanted = {
        "gpt": {"model_type": "openai-gpt", "afn": "gelu", "n_inner": 20},
        "gpt2": {"model_type": "gpt2", "activation_function": "gelu_new", "n_positions": 9},
        "t5.1.0": {"model_type": "t5", "feed_forward_proj": "relu", "d_kv": 5, "scale_decoder_outputs": True},
        "t5.1.1": {"model_type": "t5", "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        "mt5.1.1": {"model_type": "mt5", "num_decoder_layers": 3},
        "llama": {"model_type": "llama", "num_key_value_heads": 2, "hidden_act": "silu", "attention_bias": False},
        "llama-tied": {"model_type": "llama", "head_dim": 6, "rope_theta": 1e6, "tie_word_embeddings": True},
        "llama-qkv-biases": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 3},
        "llama-all-biases": {"model_type": "llama", "attention_bias": True},
        "llama-window": {"model_type": "mistral", "sliding_window": 2},
    }
    for row, keys in wanted.items():
        save_pretrained(build(row), None, tmp_path)
        config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
        assert {key: config.get(key) for key in keys} == keys


def test_rows_cover_every_family():
    from bert4x.models import FAMILIES as known
    from bert4x.models.gpt import GPT
    from bert4x.models.llama import LLaMA
    from bert4x.models.t5 import T5Base

    whole = {name for name, family in known.items() if issubclass(family, (GPT, LLaMA, T5Base))
             and not name.endswith(("_encoder", "_decoder"))}
    assert whole - {"t5"} == {model for model, _ in ROWS.values()}
    assert set(DECODERS) < set(ROWS)
