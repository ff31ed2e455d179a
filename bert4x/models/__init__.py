"""Model families, and the one function that builds any of them."""

import difflib
import inspect

from bert4x.models.albert import ALBERT, ALBERTUnshared
from bert4x.models.applications import extend_with_language_model, extend_with_unified_language_model
from bert4x.models.base import Transformer
from bert4x.models.bert import BERT
from bert4x.models.checkpoint import CheckpointError, has_checkpoint, open_checkpoint
from bert4x.models.config import MODEL_TYPES, read_config, rename
from bert4x.models.cpm import CPM
from bert4x.models.electra import ELECTRA
from bert4x.models.finetune import enable_lora, set_trainable
from bert4x.models.gpt import GPT
from bert4x.models.gpt2 import GPT2
from bert4x.models.gpt2_ml import GPT2_ML
from bert4x.models.llama import LLaMA
from bert4x.models.nezha import NEZHA
from bert4x.models.pretrained import load_weights, save_pretrained
from bert4x.models.roformer import RoFormer, RoFormerV2
from bert4x.models.t5 import T5, T5Decoder, T5Encoder, variants
from bert4x.models.teaforn import teaforn
from bert4x.models.weights import LoadReport

__all__ = [
    "ALBERT",
    "ALBERTUnshared",
    "BERT",
    "CPM",
    "CheckpointError",
    "ELECTRA",
    "FAMILIES",
    "GPT",
    "GPT2",
    "GPT2_ML",
    "LLaMA",
    "LoadReport",
    "NEZHA",
    "RoFormer",
    "RoFormerV2",
    "T5",
    "T5Decoder",
    "T5Encoder",
    "Transformer",
    "build_transformer_model",
    "enable_lora",
    "extend_with_language_model",
    "extend_with_unified_language_model",
    "load_weights",
    "open_checkpoint",
    "save_pretrained",
    "set_trainable",
    "teaforn",
]

FAMILIES = {
    "bert": BERT,
    "roberta": BERT,
    "albert": ALBERT,
    "albert_unshared": ALBERTUnshared,
    "nezha": NEZHA,
    "electra": ELECTRA,
    "roformer": RoFormer,
    "roformer_v2": RoFormerV2,
    "gpt": GPT,
    "gpt2": GPT2,
    "gpt2_ml": GPT2_ML,
    "cpm": CPM,
    **variants(T5, ""),
    **variants(T5Encoder, "_encoder"),
    **variants(T5Decoder, "_decoder"),
    "llama": LLaMA,
}

_APPLICATIONS = {
    "encoder": lambda family: family,
    "lm": extend_with_language_model,
    "unilm": extend_with_unified_language_model,
}


def build_transformer_model(
    config_path=None,
    checkpoint_path=None,
    model=None,
    application="encoder",
    return_keras_model=True,
    *,
    trainable=None,
    lora_rank=None,
    **options,
):
    """Build a model and load its weights.

    Args:
        config_path: JSON file (Google's or HuggingFace's keys), a directory that holds one (its weights are loaded
            unless checkpoint_path says otherwise), or a dict. Keys we do not know are ignored there.
        checkpoint_path: TensorFlow checkpoint, .safetensors, .bin, directory, or dict name -> array; False: none.
        model: a name of FAMILIES or a class; None means the configuration's `model_type`, else bert.
        application: encoder, lm (causal) or unilm (source seen both ways, target causally).
        return_keras_model: False returns the builder (.model, .layers, .initializer, .load_report ...).
        trainable: patterns on layer names; layers that match none are frozen. True or False: all or none.
        lora_rank: train only low-rank additions of this rank to the query and value kernels; not with `trainable`.
        options: the family's options (`Transformer.options`, `BERT.options`, ...); they override the configuration.
    Returns: a Keras model, its builder as `model.builder`.
    Raises: ValueError for an unknown model, application or option (with the nearest name); CheckpointError for weights
        that do not fit (all mismatches in one message).
    """
    if lora_rank is not None and trainable is not None:
        raise ValueError(
            "lora_rank and trainable both say what is trained; give one. After building with lora_rank, "
            "set layer.trainable of further layers yourself."
        )
    read, file_model, flavour, directory = read_config({} if config_path is None else config_path)
    family = _application_class(_family(model, file_model), application)
    settings = {**family.adapt(read, flavour), **_given(family, options)}
    if checkpoint_path is None and directory is not None and has_checkpoint(directory):
        checkpoint_path = directory
    builder = _loaded(family, settings, checkpoint_path) if _is_given(checkpoint_path) else family(**settings)
    builder.build()
    if lora_rank is not None:
        enable_lora(builder.model, lora_rank)
    if trainable is not None:
        set_trainable(builder.model, trainable)
    return builder.model if return_keras_model else builder


def _is_given(checkpoint_path):
    return checkpoint_path is not None and checkpoint_path is not False


def _loaded(family, settings, checkpoint_path):
    """A built builder with its weights."""
    with open_checkpoint(checkpoint_path) as checkpoint:
        builder = family(**family.recognise(settings, checkpoint))
        builder.build(deferred=True)
        builder.load_weights_from_checkpoint(checkpoint)
    return builder


def _given(family, options):
    """The user's own keyword arguments: aliases understood, 'gelu' resolved, unknown names left for the error."""
    options = rename(options, strict=True)
    if "hidden_act" in options:
        options["hidden_act"] = family.resolve_activation(options["hidden_act"])
    return options


def _family(model, file_model):
    if inspect.isclass(model) and issubclass(model, Transformer):
        return model
    if model is not None and not isinstance(model, str):
        raise TypeError(f"model must be a name of {', '.join(FAMILIES)}, or a subclass of Transformer; got {model!r}")
    name = (model or (file_model if file_model in FAMILIES else None) or "bert").lower()
    if model is None and file_model is not None and file_model not in FAMILIES:
        raise ValueError(f"model_type {file_model!r} of the configuration is none of ours: {', '.join(FAMILIES)}")
    if name not in FAMILIES:
        near = difflib.get_close_matches(name, FAMILIES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown model {model!r}.{hint} Models: {', '.join(FAMILIES)}.")
    if file_model in MODEL_TYPES.values() and not _related(FAMILIES[name], FAMILIES[file_model]):
        raise ValueError(
            f"model={model!r} contradicts the configuration, whose model_type is {file_model!r}. "
            f"Leave model out, or use model={file_model!r}."
        )
    return FAMILIES[name]


def _related(family, other):
    """albert_unshared reads albert's files, t5_encoder t5's; BERT is the parent of most and has no variants."""
    return family.model_type == other.model_type or (other is not BERT and issubclass(family, other))


def _application_class(family, application):
    if application not in _APPLICATIONS:
        raise ValueError(f"application must be one of {', '.join(_APPLICATIONS)}; got {application!r}")
    if application not in family.applications:
        raise ValueError(
            f"{family.__name__} can be built as {', '.join(family.applications)}; got application={application!r}. "
            "For lm and unilm use a family such as bert."
        )
    return _APPLICATIONS[application](family)


