"""Configuration files: JSON of the original releases or of HuggingFace -> keyword arguments of a builder."""

import json
from pathlib import Path

from bert4x.models.checkpoint import CheckpointError

# Names that files use -> our option. The one alias table.
ALIASES = {
    "hidden_dropout_prob": "dropout_rate",
    "attention_probs_dropout_prob": "attention_dropout_rate",
    "max_position_embeddings": "max_position",
    "type_vocab_size": "segment_vocab_size",
    "layer_norm_epsilon": "layer_norm_eps",
    "rms_norm_eps": "layer_norm_eps",
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_positions": "max_position",
    "afn": "hidden_act",
    "activation_function": "hidden_act",
    "resid_pdrop": "dropout_rate",
    "attn_pdrop": "attention_dropout_rate",
    "attention_dropout": "attention_dropout_rate",
    "d_model": "hidden_size",
    "d_kv": "attention_head_size",
    "d_ff": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "head_dim": "attention_head_size",
}

# `model_type` of HuggingFace files -> our model name.
MODEL_TYPES = {
    "bert": "bert",
    "albert": "albert",
    "electra": "electra",
    "nezha": "nezha",
    "roformer": "roformer",
    "openai-gpt": "gpt",
    "gpt2": "gpt2",
    "t5": "t5",
    "mt5": "t5",
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "llama",
}

REFUSED_MODEL_TYPES = {
    "roberta": "byte-level RoBERTa (positions from 2, lm_head names) is another architecture than the Chinese "
    "RoBERTa-wwm releases, which are BERT and say so in their config.json",
    "xlm-roberta": "XLM-RoBERTa is not BERT-shaped (positions from 2, lm_head names)",
}

_DROPOUTS = {"dropout_rate": 0.1, "attention_dropout_rate": 0.1}
_BASE = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    **_DROPOUTS,
}

_GPT = {key: value for key, value in _BASE.items() if key != "intermediate_size"}  # 4 * hidden_size

_T5 = {
    "hidden_size": 512,
    "attention_head_size": 64,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "dropout_rate": 0.1,
}
_LLAMA = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
}

# What a HuggingFace file means by leaving a key out.
HUGGINGFACE_DEFAULTS = {
    "bert": _BASE,
    "electra": {
        **_BASE,
        "hidden_size": 256,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
        "embedding_size": 128,
    },
    "albert": {
        **_BASE,
        "vocab_size": 30000,
        "embedding_size": 128,
        "hidden_size": 4096,
        "num_attention_heads": 64,
        "intermediate_size": 16384,
        "hidden_act": "gelu_new",
        "dropout_rate": 0.0,
        "attention_dropout_rate": 0.0,
    },
    "nezha": {**_BASE, "vocab_size": 21128},
    "roformer": {**_BASE, "vocab_size": 50000, "max_position": 1536},
    "openai-gpt": {**_GPT, "vocab_size": 40478},
    "t5": {**_T5, "vocab_size": 32128, "num_hidden_layers": 6, "feed_forward_proj": "relu"},
    "mt5": {
        **_T5,
        "vocab_size": 250112,
        "intermediate_size": 1024,
        "num_hidden_layers": 8,
        "num_attention_heads": 6,
        "feed_forward_proj": "gated-gelu",
    },
    "llama": _LLAMA,
    "mistral": {**_LLAMA, "intermediate_size": 14336, "num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {**_LLAMA, "vocab_size": 151936, "intermediate_size": 22016, "use_qkv_bias": True},
    "gpt2": {**_GPT, "vocab_size": 50257, "max_position": 1024, "hidden_act": "gelu_new"},
}

_HUGGINGFACE_KEYS = ("model_type", "transformers_version", "architectures")


def read_config(source):
    """Read a configuration.

    Args:
        source: path of a JSON file, of a directory that holds config.json or bert_config.json, or a dict.
    Returns: (options, model name or None, flavour 'google' or 'huggingface', directory or None).
    Raises: CheckpointError for contents that are not a JSON object or name an architecture that we do not have;
        FileNotFoundError for an absent file.
    """
    directory = Path(source) if not isinstance(source, dict) and Path(source).is_dir() else None
    raw = source if isinstance(source, dict) else _load_json(_config_file(source))
    flavour = "huggingface" if any(key in raw for key in _HUGGINGFACE_KEYS) else "google"
    model_type = raw.get("model_type")
    if model_type in REFUSED_MODEL_TYPES:
        raise CheckpointError(f"model_type {model_type!r} cannot be loaded: {REFUSED_MODEL_TYPES[model_type]}")
    model = MODEL_TYPES.get(model_type, model_type)
    options = rename(raw)
    if flavour == "huggingface":
        options = {**HUGGINGFACE_DEFAULTS.get(model_type, {}), **options}
        if options.get("position_embedding_type", "absolute") != "absolute":
            raise CheckpointError(
                f"position_embedding_type must be 'absolute'; got {options['position_embedding_type']!r} in the config"
            )
        if options.get("rotary_value"):
            raise CheckpointError("rotary_value must be false: rotating values is not supported; the config says true")
    return {key: value for key, value in options.items() if value is not None}, model, flavour, directory


def rename(options, *, strict=False):
    """Apply the alias table; a name of ours wins over its alias.

    Args:
        strict: both spellings with different values are a ValueError.
    """
    renamed = {ALIASES[key]: value for key, value in options.items() if key in ALIASES}
    for key, value in options.items():
        if key in ALIASES:
            continue
        if strict and key in renamed and renamed[key] != value:  # other values may be tensors
            raise ValueError(f"{key} was given twice: {value!r}, and {renamed[key]!r} under its other name")
        renamed[key] = value
    return renamed


def _config_file(source):
    path = Path(source)
    if not path.is_dir():
        return path
    for name in ("config.json", "bert_config.json"):
        if (path / name).is_file():
            return path / name
    held = sorted(p.name for p in path.iterdir())[:20]
    raise FileNotFoundError(f"{path} holds no config.json or bert_config.json; it holds {held}")


def _load_json(path):
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} must be a JSON object; it is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} must be a JSON object; it holds a {type(raw).__name__}")
    return raw
