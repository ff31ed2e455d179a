"""Generative families: what configuration files say and leave out, and what is refused."""

import pytest

from bert4x.models import FAMILIES, CheckpointError, build_transformer_model, save_pretrained
from bert4x.models.config import read_config
from tests.models.generative import build

CONFIGURATIONS = {  # file -> (model, mask_zero, hidden_act, epsilon, dropout rates, inner width, positions)
    "cdial_gpt": ("gpt", True, "gelu_tanh", 1e-5, (0.1, 0.1), 3072, 513),
    "cpm_lm_large": ("cpm", False, "gelu_tanh", 1e-5, (0.0, 0.0), 10240, 1024),
    "gpt2_chinese_small": ("gpt2", False, "gelu_tanh", 1e-5, (0.0, 0.0), 3072, 1024),
    "gpt2_ml_base": ("gpt2_ml", True, "gelu_erf", 1e-5, (0.1, 0.1), 3072, 1024),
    "gpt2_ml_large": ("gpt2_ml", True, "gelu_erf", 1e-5, (0.1, 0.1), 4096, 1024),
    "gpt2_ml_mega": ("gpt2_ml", True, "gelu_erf", 1e-5, (0.1, 0.1), 6144, 1024),
    "mt5_small": ("mt5.1.1", True, ["gelu_tanh", "linear"], 1e-6, (0.1, 0.0), 1024, None),
}


@pytest.mark.parametrize("file", CONFIGURATIONS)
def test_configurations_of_the_releases(file, shared_data):
    model, mask_zero, activation, epsilon, rates, width, positions = CONFIGURATIONS[file]
    path = shared_data / "configs" / f"{file}.json"
    read, _, flavour, _ = read_config(path)
    builder = FAMILIES[model](**FAMILIES[model].adapt(read, flavour))
    assert builder.mask_zero is mask_zero and builder.hidden_act == activation and builder.layer_norm_eps == epsilon
    assert (builder.dropout_rate, builder.attention_dropout_rate) == rates
    assert builder.intermediate_size == width and getattr(builder, "max_position", None) == positions
    small = {"num_hidden_layers": 1, "vocab_size": 11, "hidden_size": 8, "num_attention_heads": 1}
    assert len(build_transformer_model(path, model=model, **small).inputs) == (2 if model == "mt5.1.1" else 1)


def test_every_generative_configuration_is_listed(shared_data):
    files = {path.stem for path in (shared_data / "configs").glob("*.json")}
    ours = {name for name in files if name.startswith(("gpt", "cpm", "cdial", "mt5", "t5", "llama"))}
    assert ours == set(CONFIGURATIONS)


def test_what_a_gpt_configuration_leaves_out():
    """The inner width is four times the width, also where options override the file; 'gelu' is the tanh form."""
    sizes = {"vocab_size": 9, "n_embd": 8, "n_layer": 1, "n_head": 2}
    for options in ({}, {"hidden_size": 12}):
        builder = build_transformer_model(sizes, model="gpt2", return_keras_model=False, **options)
        assert builder.intermediate_size == 4 * builder.hidden_size and builder.hidden_act == "gelu_tanh"
        assert (builder.max_position, builder.mask_zero, len(builder.inputs)) == (512, False, 1)


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
HUGGINGFACE = {  # configuration -> options
    "gpt2-erf": ({"model_type": "gpt2", "activation_function": "gelu"}, {"hidden_act": "gelu_erf"}),
    "gpt2": ({"model_type": "gpt2"}, {"hidden_act": "gelu_tanh", "max_position": 1024, "vocab_size": 50257}),
    "gpt": ({"model_type": "openai-gpt"}, {"hidden_act": "gelu_tanh", "max_position": 512, "mask_zero": False}),
    "t5": ({"model_type": "t5", "dropout_rate": 0.0}, {"attention_dropout_rate": 0.0, "hidden_act": "relu"}),
    "t5-erf": ({"model_type": "t5", "feed_forward_proj": "gelu"}, {"hidden_act": "gelu_erf", "version": "t5.1.0"}),
    "mt5": ({"model_type": "mt5"}, {"hidden_act": ["gelu_tanh", "linear"], "attention_dropout_rate": 0.1}),
    "mistral": ({"model_type": "mistral"}, {"sliding_window": 4096, "num_key_value_heads": 8, "mask_zero": False}),
    "mistral-2": ({"model_type": "mistral", "sliding_window": None}, {"sliding_window": None}),
    "qwen2": ({"model_type": "qwen2", "sliding_window": 9, "use_sliding_window": False}, {"sliding_window": None,
              "use_qkv_bias": True, "use_out_bias": False}),
    "llama": ({"model_type": "llama", "rope_theta": 5e5}, {"rope_theta": 5e5, "use_qkv_bias": False}),
    "llama-new": ({"model_type": "llama", "rope_parameters": {"rope_theta": 7.0, "rope_type": "default"}},
                  {"rope_theta": 7.0, "hidden_act": ["silu", "linear"], "layer_norm_eps": 1e-6}),
    "llama-3": ({"model_type": "llama", "rope_theta": 5e5, "rope_scaling": LLAMA3},
                {"rope_theta": 5e5, "rope_scaling": LLAMA3}),
    "llama-old": ({"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2.0}},
                  {"rope_theta": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    "llama-biases": ({"model_type": "llama", "attention_bias": True}, {"use_qkv_bias": True, "use_out_bias": True}),
}  # fmt: skip


@pytest.mark.parametrize("row", HUGGINGFACE)
def test_keys_of_huggingface(row):
    """What their files say and what they leave out, read without building anything."""
    config, wanted = HUGGINGFACE[row]
    read, model, flavour, _ = read_config(config)
    builder = FAMILIES[model](**FAMILIES[model].adapt(read, flavour))
    assert {option: getattr(builder, option) for option in wanted} == wanted


WRONG = {  # what is built -> (row, options, words of the error)
    "unilm of gpt without segments": ("gpt", {"application": "unilm"}, "unilm needs segment ids"),
    "unilm of shared segments": ("gpt-shared-segments", {"application": "unilm"}, "shared ones are token ids"),
    "unilm of gpt2": ("gpt2", {"application": "unilm"}, "GPT2 can be built as encoder, lm"),
    "unilm of gpt2_ml": ("gpt2_ml", {"application": "unilm"}, "GPT2_ML can be built as encoder, lm"),
    "unilm of llama": ("llama", {"application": "unilm"}, "LLaMA can be built as encoder, lm"),
    "lm of t5": ("t5.1.0", {"application": "lm"}, "T5 can be built as encoder"),
    "unilm of mt5": ("mt5.1.1", {"application": "unilm"}, "T5 can be built as encoder"),
    "mlm of gpt": ("gpt", {"with_mlm": "linear"}, "with_mlm is not available for GPT.*final_activation"),
    "pooler of gpt2": ("gpt2", {"with_pool": True}, "with_pool is not available for GPT2"),
    "segments of gpt2": ("gpt2", {"segment_vocab_size": 2}, "segment_vocab_size is not available for GPT2"),
    "segments of gpt2_ml": ("gpt2_ml", {"shared_segment_embeddings": True}, "shared_segment_embeddings is not avail"),
    "narrow embeddings of gpt": ("gpt", {"embedding_size": 6}, "embedding_size is not available for GPT"),
    "narrow embeddings of t5": ("t5.1.0", {"embedding_size": 6}, "embedding_size is not available for T5"),
    "narrow embeddings of llama": ("llama", {"embedding_size": 6}, "embedding_size is not available for LLaMA"),
    "attention mask of t5": ("t5.1.0", {"attention_mask": True}, "attention_mask is not available .*context_mask"),
    "another version": ("t5.1.0", {"version": "t5.2"}, "version must be one of t5.1.0, t5.1.1, mt5.1.1"),
    "groups": ("llama", {"num_key_value_heads": 3}, "must be a multiple of num_key_value_heads; got 4 and 3"),
    "one bias": ("llama", {"use_out_bias": True}, "use_out_bias needs use_qkv_bias"),
    "misspelt": ("llama", {"num_key_value_head": 2}, "Did you mean 'num_key_value_heads'"),
    "final_activation of t5": ("t5.1.0", {"final_activation": "linear"}, "'final_activation' is not an option of T5"),
}


@pytest.mark.parametrize("row", WRONG)
def test_errors(row):
    row, options, words = WRONG[row]
    with pytest.raises(ValueError, match=words):
        build(row, **options)


REFUSED = {
    "positions": ({"model_type": "llama", "rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
    "lacking": ({"model_type": "llama", "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "with its numbers"),
    "partial": ({"model_type": "llama", "partial_rotary_factor": 0.5}, "partial_rotary_factor 1"),
    "old positions": ({"model_type": "llama", "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
    "biases": ({"model_type": "llama", "mlp_bias": True}, "mlp_bias must be false"),
    "windows": ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 3}, "max_window_layers"),
    "scores": ({"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True}, "scale_attn"),
    "scale": ({"model_type": "gpt2", "scale_attn_weights": False}, "scale_attn"),
}


@pytest.mark.parametrize("row", REFUSED)
def test_configurations_that_mean_another_arithmetic(row):
    config, words = REFUSED[row]
    with pytest.raises(CheckpointError, match=words):
        build_transformer_model(config)


def test_what_no_configuration_of_transformers_can_say(tmp_path):
    builder = build("llama-all-biases", sliding_window=3)
    with pytest.raises(ValueError, match="use model.save"):
        save_pretrained(builder, None, tmp_path)
