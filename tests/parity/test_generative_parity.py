"""Generative families against transformers: logits of padded batches, from their files to us and from ours to them."""

import json
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bert4x.models import build_transformer_model, save_pretrained
from tests.models.reference_weights import randomize, to_numpy

pytestmark = pytest.mark.parity

V = 53
GPT = {"vocab_size": V, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 16}
T5 = {"vocab_size": V, "d_model": 32, "d_kv": 6, "d_ff": 44, "num_layers": 2, "num_heads": 4}
GATED = {**T5, "feed_forward_proj": "gated-gelu", "num_decoder_layers": 3}
LLAMA = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "factor": 3.0}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}

# row -> (transformers' class, configuration)
MODELS = {
    "openai-gpt": ("OpenAIGPTLMHeadModel", GPT),
    "gpt2": ("GPT2LMHeadModel", {**GPT, "n_inner": 44}),
    "gpt2-gelu": ("GPT2LMHeadModel", {**GPT, "activation_function": "gelu", "layer_norm_epsilon": 1e-3}),
    "t5": ("T5ForConditionalGeneration", T5),
    "t5-gelu": ("T5ForConditionalGeneration", {**T5, "feed_forward_proj": "gelu"}),
    "t5-gated-tied": ("T5ForConditionalGeneration", GATED),
    "t5-gated-unscaled": ("T5ForConditionalGeneration", {**GATED, "tie_word_embeddings": False}),
    "t5-buckets": (
        "T5ForConditionalGeneration",
        {**GATED, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 10},
    ),
    "mt5": ("MT5ForConditionalGeneration", GATED),
    "llama": ("LlamaForCausalLM", LLAMA),
    "llama-tied": ("LlamaForCausalLM", {**LLAMA, **ROPE, "tie_word_embeddings": True, "head_dim": 10}),
    "llama-3": ("LlamaForCausalLM", {**LLAMA, "head_dim": 16, "rope_parameters": LLAMA3}),
    "llama-linear": ("LlamaForCausalLM", {**LLAMA, "rope_parameters": {**ROPE["rope_parameters"], **LINEAR}}),
    "llama-biases": ("LlamaForCausalLM", {**LLAMA, "attention_bias": True, "num_key_value_heads": 4}),
    "qwen2": ("Qwen2ForCausalLM", {**LLAMA, **ROPE, "rms_norm_eps": 1e-4}),
    "qwen2-tied": ("Qwen2ForCausalLM", {**LLAMA, "tie_word_embeddings": True, "num_key_value_heads": 1}),
    "qwen2-window": (
        "Qwen2ForCausalLM",
        {**LLAMA, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0},
    ),
    "mistral": ("MistralForCausalLM", LLAMA),
    "mistral-window": ("MistralForCausalLM", {**LLAMA, "sliding_window": 3}),
}
# The same with an output head of its own, as the T5.1.1 and mT5 releases have it, though the classes tie the two.
OWN_HEAD = ["t5-gated-unscaled", "mt5"]
ROWS = [*MODELS, *(f"{row}-own-head" for row in OWN_HEAD)]

LENGTHS = np.array([[11], [7], [2]])
VALID = np.arange(11) < LENGTHS
IDS = np.where(VALID, np.random.default_rng(1).integers(1, V, VALID.shape), 0).astype("int32")
TARGETS = np.random.default_rng(2).integers(1, V, (3, 6)).astype("int32")
TARGETS[:, 0] = 0


def is_t5(row):
    return "t5" in row


def logits_of(row):
    """Our option for logits."""
    return {"with_lm": "linear"} if is_t5(row) else {"final_activation": "linear"}


def make_theirs(row, directory):
    """Save a model of transformers with random values in every parameter; returns it as transformers reads it back."""
    import torch
    import transformers

    name, config = MODELS[row.removesuffix("-own-head")]
    family = getattr(transformers, name)
    model, random = family(family.config_class(**config)), np.random.default_rng(0)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            value = random.normal(size=parameter.shape)
            value = 0.2 * value if value.ndim == 1 else value / np.sqrt(min(value.shape))
            if re.search(r"(norm|ln_.)\.?\d?\.?weight$|layernorm\.weight$", path):
                value += 1
            parameter.copy_(torch.from_numpy(value))
    model.save_pretrained(directory)
    if row.endswith("-own-head"):
        weights = load_file(directory / "model.safetensors")
        weights["lm_head.weight"] = random.normal(size=(V, 32)).astype("float32") / np.sqrt(32)
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return read_theirs(row, directory)[0]


def read_theirs(row, directory):
    """The model of transformers in a directory, and all that it complains about."""
    import transformers

    family = getattr(transformers, MODELS[row.removesuffix("-own-head")][0])
    model, info = family.from_pretrained(directory, output_loading_info=True)
    return model.eval(), {kind: names for kind, names in info.items() if names}


def run_theirs(model, ids=IDS, valid=VALID):
    import torch

    inputs = {"input_ids": torch.from_numpy(ids).long(), "attention_mask": torch.from_numpy(valid).long()}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.from_numpy(TARGETS).long()
    with torch.no_grad():
        return model(**inputs).logits.numpy()


def run_ours(row, source, **options):
    """Our logits of a directory, and the builder."""
    model = build_transformer_model(source, **logits_of(row), **options)
    return to_numpy(model([IDS, TARGETS] if is_t5(row) else IDS)), model.builder


def assert_close(row, ours, theirs, tolerance):
    """Equal where tokens are, relative to the largest logit where that is above 1."""
    if not is_t5(row):
        ours, theirs = ours[VALID], theirs[VALID]
    assert ours.shape == theirs.shape
    limit = tolerance * max(1.0, np.abs(theirs).max())
    assert np.abs(ours - theirs).max() <= limit, f"{np.abs(ours - theirs).max():.2e} above {limit:.2e}"


@pytest.fixture(scope="module", params=ROWS)
def saved(request, tmp_path_factory):
    """(row, directory that transformers wrote, what transformers computes)."""
    directory = tmp_path_factory.mktemp(request.param)
    return request.param, directory, run_theirs(make_theirs(request.param, directory))


def test_logits(saved, tolerance):
    row, directory, theirs = saved
    ours, builder = run_ours(row, directory)
    assert np.abs(theirs).max() > 0.5
    assert_close(row, ours, theirs, tolerance)
    report = builder.load_report
    assert report.missing == report.unused == report.initialized == []
    if is_t5(row):
        own = "mt5.1.1" if row.startswith("mt5") else "t5.1.1"
        assert builder.version == (own if row.endswith("-own-head") else "t5.1.0")


def test_our_directory_is_read_back(saved, tmp_path):
    """transformers reads what we write: no key is missing or left over, and not a bit differs."""
    row, directory, theirs = saved
    model = build_transformer_model(directory)
    save_pretrained(model, None, tmp_path)
    again, complaints = read_theirs(row, tmp_path)
    assert complaints == {}
    np.testing.assert_array_equal(run_theirs(again), theirs)
    written = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert written["model_type"] == again.config_class.model_type or row == "mt5"  # tied, it is a T5


def test_tensorflow_checkpoint(saved, tmp_path):
    """Through Google's naming and back: not a bit differs."""
    row, directory, _ = saved
    ours, builder = run_ours(row, directory)
    builder.save_weights_as_checkpoint(tmp_path / "model.ckpt")
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    again, _ = run_ours(row, config, checkpoint_path=tmp_path / "model.ckpt")
    np.testing.assert_array_equal(again, ours)


FORMS = ["openai-gpt", "gpt2", "t5", "mt5-own-head", "qwen2", "qwen2-tied"]


@pytest.fixture(scope="module", params=FORMS)
def form(request, tmp_path_factory):
    """(row, directory that transformers wrote, their model, our logits of it)."""
    directory = tmp_path_factory.mktemp(request.param)
    model = make_theirs(request.param, directory)
    return request.param, directory, model, run_ours(request.param, directory)[0]


def test_sharded_safetensors(form, tmp_path):
    row, _, model, ours = form
    if row.endswith("-own-head"):
        model.config.tie_word_embeddings = False  # else the copy that is none is dropped
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    np.testing.assert_array_equal(run_ours(row, tmp_path)[0], ours)


def test_torch_file(form, tmp_path):
    """A state dict as older releases saved it: tied copies and buffers included."""
    import torch

    row, directory, model, ours = form
    shutil.copy(directory / "config.json", tmp_path)
    state = model.state_dict()
    if row == "gpt2":
        state["transformer.h.0.attn.bias"] = torch.tril(torch.ones(16, 16))[None, None]
    assert "lm_head.weight" in state
    torch.save(state, tmp_path / "pytorch_model.bin")
    again, builder = run_ours(row, tmp_path)
    np.testing.assert_array_equal(again, ours)
    assert builder.load_report.unused == []


def test_without_prefix(form, tmp_path):
    """As the hub's gpt2 has it."""
    row, directory, model, ours = form
    prefix = model.base_model_prefix + "."
    weights = load_file(directory / "model.safetensors")
    bare = {name.removeprefix(prefix): array for name, array in weights.items()}
    assert is_t5(row) or set(bare) != set(weights)
    shutil.copy(directory / "config.json", tmp_path)
    save_file(bare, tmp_path / "model.safetensors")
    np.testing.assert_array_equal(run_ours(row, tmp_path)[0], ours)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_small_floats(form, dtype, tmp_path, tolerance):
    """Files of 16 bits: equal to transformers computing with the rounded numbers in float32."""
    import torch
    from safetensors.torch import save_file as save_torch

    row, directory, model, _ = form
    weights = {name: torch.from_numpy(array).to(getattr(torch, dtype))
               for name, array in load_file(directory / "model.safetensors").items()}  # fmt: skip
    shutil.copy(directory / "config.json", tmp_path)
    save_torch(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs = run_theirs(read_theirs(row, tmp_path)[0].float())
    assert_close(row, run_ours(row, tmp_path)[0], theirs, tolerance)


def test_openai_gpt_takes_segments_as_tokens(tmp_path, tolerance):
    """token_type_ids of that class are rows of the token table: our shared_segment_embeddings."""
    import torch

    theirs = make_theirs("openai-gpt", tmp_path)
    segments = np.where(np.arange(11) < 5, 51, 52).astype("int32")[None].repeat(3, axis=0)
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(IDS).long(), token_type_ids=torch.from_numpy(segments).long()).logits.numpy()
    model = build_transformer_model(tmp_path, final_activation="linear", shared_segment_embeddings=True)
    assert_close("openai-gpt", to_numpy(model([IDS, segments])), wanted, tolerance)


@pytest.mark.parametrize("row", ["llama", "qwen2-tied", "mistral-window"])
def test_padding_on_the_left(row, tmp_path, tolerance):
    """With a mask of the keys, as generation pads: equal where tokens are."""
    theirs = make_theirs(row, tmp_path)
    ids, valid = IDS[:, ::-1].copy(), VALID[:, ::-1].copy()
    model = build_transformer_model(tmp_path, attention_mask="keys", **logits_of(row))
    ours, wanted = to_numpy(model([ids, valid.astype("int32")])), run_theirs(theirs, ids, valid)
    np.testing.assert_allclose(ours[valid], wanted[valid], rtol=0, atol=tolerance * max(1, np.abs(wanted).max()))


OURS = {  # row -> (our model, configuration): what no file of theirs led to
    "gpt2": ("gpt2", {"hidden_act": "gelu_erf", "mask_zero": True}),
    "openai-gpt": ("gpt", {"intermediate_size": 128, "hidden_act": "gelu_tanh"}),
    "t5": ("t5.1.0", {"hidden_act": "gelu_tanh", "scale_decoder_outputs": False, "attention_head_size": 6}),
    "t5-gated-own-head": ("t5.1.1", {"hidden_act": ["gelu_erf", "linear"], "num_decoder_layers": 1}),
    "mt5-own-head": ("mt5.1.1", {"hidden_act": ["gelu", "linear"], "relative_attention_num_buckets": 16}),
    "llama": ("llama", {"hidden_act": "gelu_tanh", "layer_norm_eps": 1e-3}),
    "qwen2": ("llama", {"hidden_act": "silu", "use_qkv_bias": True, "num_key_value_heads": 2, "rope_theta": 100.0}),
    "mistral": ("llama", {"hidden_act": "silu", "sliding_window": 4, "tie_word_embeddings": True}),
}


@pytest.mark.parametrize("row", OURS)
def test_models_built_by_us(row, tmp_path, tolerance):
    """Random models of ours, saved by us and computed by transformers."""
    name, changes = OURS[row]
    config = {"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
              "intermediate_size": 44, **changes}  # fmt: skip
    model = randomize(build_transformer_model(config, model=name, **logits_of(row)))
    save_pretrained(model, None, tmp_path)
    theirs, complaints = read_theirs("t5-gated-tied" if row == "t5-gated-own-head" else row, tmp_path)
    assert complaints == {}
    ours = to_numpy(model([IDS, TARGETS] if is_t5(row) else IDS))
    assert_close(row, ours, run_theirs(theirs), tolerance)


def test_parts_of_t5_for_transformers(tmp_path, tolerance):
    """An encoder alone, saved by us, is their T5EncoderModel."""
    import torch
    import transformers

    make_theirs("t5-gated-tied", tmp_path)
    encoder = build_transformer_model(tmp_path, model="t5_encoder")
    save_pretrained(encoder, None, tmp_path / "encoder")
    theirs, info = transformers.T5EncoderModel.from_pretrained(tmp_path / "encoder", output_loading_info=True)
    assert not any(info.values())
    with torch.no_grad():
        inputs = {"input_ids": torch.from_numpy(IDS).long(), "attention_mask": torch.from_numpy(VALID).long()}
        wanted = theirs.eval()(**inputs).last_hidden_state.numpy()
    ours, limit = to_numpy(encoder(IDS)), tolerance * np.abs(wanted).max()
    np.testing.assert_allclose(ours[VALID], wanted[VALID], rtol=0, atol=limit)


def test_the_comparison_can_fail(tmp_path, tolerance):
    """A transposed square kernel, a swapped third of a fused one, one bias: seen."""
    theirs = make_theirs("gpt2", tmp_path)
    wanted = run_theirs(theirs)
    for name in ("2.attn.c_proj.weight", "0.attn.c_attn.weight", "1.ln_2.bias"):
        parameter = theirs.get_parameter(f"transformer.h.{name}")
        original = parameter.data
        square = original.ndim == 2 and original.shape[0] == original.shape[1]
        parameter.data = original.T.contiguous() if square else original.roll(1, dims=-1)
        theirs.save_pretrained(tmp_path)
        with pytest.raises(AssertionError, match="above"):
            assert_close("gpt2", run_ours("gpt2", tmp_path)[0], wanted, tolerance)
        parameter.data = original
