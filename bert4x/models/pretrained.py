"""One directory per model: config.json, model.safetensors, vocabulary; and strict loading of Keras weight files."""

import collections
import json
import os
from pathlib import Path

import h5py

from bert4x.models.checkpoint import CheckpointError, write_safetensors
from bert4x.models.weights import weight_items

# Our activation names -> HuggingFace's.
_ACTIVATIONS = {"gelu_erf": "gelu", "gelu_tanh": "gelu_new"}
# Our option -> the key in a HuggingFace config.json.
_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "hidden_act": "hidden_act",
    "embedding_size": "embedding_size",
    "dropout_rate": "hidden_dropout_prob",
    "attention_dropout_rate": "attention_probs_dropout_prob",
    "initializer_range": "initializer_range",
    "layer_norm_eps": "layer_norm_eps",
    "max_position": "max_position_embeddings",
    "segment_vocab_size": "type_vocab_size",
    "max_relative_position": "max_relative_position",
    "num_hidden_groups": "num_hidden_groups",
    "inner_group_num": "inner_group_num",
}


def save_pretrained(model, tokenizer, directory):
    """Write a model that `build_transformer_model(directory)`, `Tokenizer(directory)` and transformers read.

    Args:
        model: a model from `build_transformer_model`, or its builder.
        tokenizer: written beside it; None: the model alone.
        directory: created if absent; each file is written aside and then renamed.
    """
    builder = getattr(model, "builder", model)
    if not hasattr(builder, "weight_table"):
        raise TypeError(
            f"save_pretrained takes a model made by build_transformer_model; got {type(model).__name__}. "
            "For a model with layers of your own use model.save('name.keras'), or pass the inner model."
        )
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    _write_json(directory / "config.json", pretrained_config(builder))
    write_safetensors(str(directory / "model.safetensors"), weight_items(builder, "huggingface"))
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)


def pretrained_config(builder):
    """The builder's options under HuggingFace's names, a dict for config.json."""
    keys = {**_KEYS, **builder.pretrained_keys}
    config = {"model_type": builder.model_type}
    for option, key in keys.items():
        if key is not None and hasattr(builder, option):
            config[key] = _activation(getattr(builder, option)) if option == "hidden_act" else getattr(builder, option)
    if builder.attention_head_size * builder.num_attention_heads != builder.hidden_size:
        config.setdefault("attention_head_size", builder.attention_head_size)
    if builder.attention_key_size != builder.attention_head_size:
        config["attention_key_size"] = builder.attention_key_size
    if builder.attention_variant != "standard" or builder.attention_settings:
        config |= _variant(builder)
    return config | builder.pretrained_extras()


def _variant(builder):
    """The variant of attention, which no other library reads."""
    if not isinstance(builder.attention_variant, str):
        raise ValueError(
            f"config.json cannot hold the class {builder.attention_variant.__name__} of attention_variant: use "
            "model.save('name.keras')"
        )
    return {name: getattr(builder, name) for name in ("attention_variant", "attention_settings")}


def _activation(name):
    return [_activation(part) for part in name] if isinstance(name, list) else _ACTIVATIONS.get(name, name)


def _write_json(path, value):
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    os.replace(aside, path)


def load_weights(model, path):
    """`model.load_weights` for a `.weights.h5` file that refuses a file of another model.

    Keras itself takes the first layers of a larger file without a word. It numbers the variables of a file instead of
    naming them, so the two sides are compared by the shapes of all their variables.

    Args:
        model: Keras model.
        path: file written by `model.save_weights`.
    Raises: CheckpointError listing what is left over on either side; then nothing was changed.
    """
    if not str(path).endswith(".weights.h5"):
        raise ValueError(f"Keras weight files end in .weights.h5; got {path}. See load_weights_from_checkpoint.")
    if not os.path.exists(path):
        raise FileNotFoundError(f"no weight file at {path}")
    with h5py.File(path, "r") as file:
        held, has_optimizer = _datasets(file), "optimizer" in file
    # `weights` leaves out the states of random seeds and metrics, which Keras does not save.
    wanted = [(variable.path, tuple(variable.shape)) for variable in model.weights]
    left, lacking = _difference(held, wanted), _difference(wanted, held)
    if left or lacking:
        raise CheckpointError(
            f"{path} holds {len(held)} variables and the model {len(wanted)}; nothing was loaded.\n"
            f"  only in the file: {_listed(left)}\n  only in the model: {_listed(lacking)}\n"
            "Build the model with the configuration it was saved with."
        )
    skipped = [] if has_optimizer or getattr(model, "optimizer", None) is None else [model.optimizer]
    model.load_weights(path, objects_to_skip=skipped)


def _datasets(file):
    found = []
    file.visititems(lambda name, item: found.append((name, item.shape)) if isinstance(item, h5py.Dataset) else None)
    return [(name, tuple(shape)) for name, shape in found if not name.startswith(("optimizer/", "_metrics", "metrics"))]


def _difference(items, others):
    """The items whose shape occurs more often here than there."""
    spare = collections.Counter(shape for _, shape in others)
    rest = []
    for name, shape in items:
        if spare[shape]:
            spare[shape] -= 1
        else:
            rest.append((name, shape))
    return rest


def _listed(items):
    return ", ".join(f"{name} {shape}" for name, shape in items) or "nothing"
