"""Tiny random models of transformers, what they compute on a padded batch, and the same from ours."""

import keras
import numpy as np

from bert4x.models import build_transformer_model
from tests.models.reference_weights import to_numpy

# All different, I no multiple of H, and dropouts at their default 0.1, so that our graph holds the dropout layers.
SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "max_position_embeddings": 24,
    "type_vocab_size": 2,
}
NARROW = {"embedding_size": 20}
SAME = {"embedding_size": SIZES["hidden_size"]}
GROUPS = {"num_hidden_layers": 4, "num_hidden_groups": 2}

PRETRAINING = ("pooled", "nsp", "mlm")

# row -> (transformers' class with all heads, configuration beside SIZES, our heads that it has)
MODELS = {
    "bert": ("BertForPreTraining", {}, PRETRAINING),
    "bert-tanh": ("BertForPreTraining", {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5}, PRETRAINING),
    "albert": ("AlbertForPreTraining", NARROW, PRETRAINING),
    "albert-same": ("AlbertForPreTraining", SAME, PRETRAINING),
    "albert-groups": ("AlbertForPreTraining", {**NARROW, **GROUPS}, PRETRAINING),
    "albert-inner": ("AlbertForPreTraining", {**NARROW, "inner_group_num": 2}, PRETRAINING),
    "albert-groups-inner": ("AlbertForPreTraining", {**NARROW, **GROUPS, "inner_group_num": 2}, PRETRAINING),
    "electra-discriminator": ("ElectraForPreTraining", NARROW, ("discriminator",)),
    "electra-discriminator-same": ("ElectraForPreTraining", SAME, ("discriminator",)),
    "electra-generator": ("ElectraForMaskedLM", NARROW, ("mlm",)),
    "electra-generator-same": ("ElectraForMaskedLM", SAME, ("mlm",)),
    "roformer": ("RoFormerForMaskedLM", NARROW, ("mlm",)),
    "roformer-same": ("RoFormerForMaskedLM", SAME, ("mlm",)),
}

# Options of ours that make one head the first output.
HEADS = {
    "pooled": {"with_pool": True},
    "nsp": {"with_nsp": True},
    "mlm": {"with_mlm": "linear"},
    "discriminator": {"with_discriminator": "linear"},
}

_LENGTHS = (11, 7, 2)


def make_batch(vocab_size=SIZES["vocab_size"], seed=1):
    """Token ids and segment ids [B, T] padded with 0, and where the tokens are; T is 11."""
    random = np.random.default_rng(seed)
    valid = np.arange(max(_LENGTHS)) < np.array(_LENGTHS)[:, None]
    ids = np.where(valid, random.integers(1, vocab_size, valid.shape), 0)
    segments = np.where(valid, np.arange(valid.shape[1]) >= 4, False)
    return ids.astype("int32"), segments.astype("int32"), valid


def make_theirs(row):
    """A model of transformers with random values in every parameter, the padding row included."""
    import torch
    import transformers

    name, changes, _ = MODELS[row]
    family = getattr(transformers, name)
    model = family(family.config_class(**{**SIZES, **changes})).eval()
    random = np.random.default_rng(0)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if "embed_positions" in path:  # RoFormer's fixed table of sines
                continue
            value = random.normal(size=parameter.shape)
            value = 0.2 * value if value.ndim == 1 else value / np.sqrt(min(value.shape))
            if "norm" in path.lower() and path.endswith("weight"):
                value += 1
            parameter.copy_(torch.from_numpy(value))
    return model


def run_theirs(model, ids, segments, valid):
    """Outputs of a model of transformers: {'hidden': [h_0, ...], head: array}; those that the model has."""
    import torch

    inputs = {
        "input_ids": torch.from_numpy(ids).long(),
        "token_type_ids": torch.from_numpy(segments).long(),
        "attention_mask": torch.from_numpy(valid).long(),
    }
    with torch.no_grad():
        found = dict(model(**inputs, output_hidden_states=True))
        found["pooler_output"] = getattr(model.base_model(**inputs), "pooler_output", None)
    outputs = {"hidden": [h.numpy() for h in found["hidden_states"]]}
    for name, head in _their_names(model).items():
        if found.get(name) is not None:
            outputs[head] = found[name].numpy()
    if "nsp" in outputs:  # logits there, probabilities here
        outputs["nsp"] = np.exp(outputs["nsp"]) / np.exp(outputs["nsp"]).sum(-1, keepdims=True)
    if "discriminator" in outputs:
        outputs["discriminator"] = outputs["discriminator"][..., None]
    return outputs


def _their_names(model):
    """Their name of an output -> our name of the head."""
    pretraining = type(model).__name__ == "ElectraForPreTraining"
    return {
        "pooler_output": "pooled",
        "prediction_logits": "mlm",
        "seq_relationship_logits": "nsp",
        "sop_logits": "nsp",
        "logits": "discriminator" if pretraining else "mlm",
    }


def options_for(heads):
    """Our options that build several heads at once; the NSP head replaces the pooled vector."""
    return {name: value for head in heads for name, value in HEADS[head].items()}


def run_ours(source, heads, batch, **options):
    """The same outputs from the model that we build out of a directory."""
    outputs = {}
    for some in ([h for h in heads if h != "pooled"], [h for h in heads if h == "pooled"]):
        if some or not outputs:
            model = build_transformer_model(source, output_hidden_states=True, **options_for(some), **options)
            outputs |= named_outputs(model, some, batch)
    return outputs


def named_outputs(model, heads, batch):
    """Outputs of a model with these heads (in our order: pooled or nsp, mlm) and output_hidden_states."""
    outputs = call(model, batch)
    count = max(len(heads), 1)  # without a head the last hidden state stands there
    return dict(zip(heads, outputs[:count], strict=False)) | {"hidden": outputs[count:]}


def call(model, batch):
    """The outputs of a model of ours, as arrays."""
    outputs = model([keras.ops.convert_to_tensor(array) for array in batch[:2]])
    return [to_numpy(output) for output in (outputs if isinstance(outputs, list) else [outputs])]


def assert_close(ours, theirs, valid, tolerance):
    """Every output of ours equals theirs where tokens are, relative to the largest value where that is above 1."""
    assert len(ours["hidden"]) == len(theirs["hidden"])
    pairs = {f"hidden state {i}": pair for i, pair in enumerate(zip(ours["hidden"], theirs["hidden"], strict=True))}
    pairs |= {head: (ours[head], theirs[head]) for head in ours if head != "hidden"}
    for name, (our, their) in pairs.items():
        assert our.shape == their.shape, name
        our, their = (our[valid], their[valid]) if our.ndim == 3 else (our, their)
        limit = tolerance * max(1.0, np.abs(their).max())
        assert np.abs(our - their).max() <= limit, f"{name}: {np.abs(our - their).max():.2e} above {limit:.2e}"
