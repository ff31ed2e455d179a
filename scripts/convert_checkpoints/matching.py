"""Matching a source with a family's weight table: what is needed, found, missing, unknown; items for the writers."""

import functools
import re

import numpy as np

from bert4x.models import FAMILIES
from bert4x.models.checkpoint import CheckpointError
from bert4x.models.config import read_config
from bert4x.models.weights import find_name, is_ignored, join_parts, name_index, table_rows

# Layers that a family's table lists and only some of its models have.
CONDITIONS = {
    "Embedding-Position": lambda b: getattr(b, "learned_position", True),
    "Embedding-Segment": lambda b: b.segment_vocab_size and not b.shared_segment_embeddings,
    "Embedding-Mapping": lambda b: b.embedding_size != b.hidden_size or getattr(b, "embedding_mapping", False),
    "Output-Mapping": lambda b: b.embedding_size != b.hidden_size,
    "Decoder-Output-LM": lambda b: b.version != "t5.1.0",
    "LM-Head": lambda b: not b.tie_word_embeddings,
}
# Heads come along if the source has them.
OPTIONAL = re.compile(r"(Pooler|NSP|MLM|Discriminator)-\w+$")
_BLOCK = re.compile(r"(?:\blayers?[._/]?|\bh[./]?|\bblocks?[._/])(\d+)")
_LISTED = 20  # names in a message


def describe(config, model, source, **options):
    """A builder for a configuration, with a weight table but no layers, and the options that made it.

    Args:
        config: dict of a configuration file.
        model: a name of FAMILIES; None: the configuration's model_type.
        source: open checkpoint, from which some families tell their version.
        options: what the configuration does not say.
    """
    read, file_model, flavour, _ = read_config(config)
    name = model or file_model
    if name not in FAMILIES:
        raise ValueError(f"the model (or model_type) must be one of {', '.join(FAMILIES)}; got {name}")
    family = FAMILIES[name]
    if file_model in FAMILIES and FAMILIES[file_model].model_type != family.model_type:
        raise ValueError(f"the model is {name}, and the configuration's model_type {file_model}; give the right one")
    settings = family.recognise({**family.adapt(read, flavour), **options}, source)
    return family(**settings), settings


def match(builder, source, *, ignore_unknown=False):
    """Find a family's variables in a source.

    Returns: {(layer, variable inside it): (Row in the source's naming, name in the source)}.
    Raises: CheckpointError listing all that is missing, unknown, or of another shape than the configuration says.
    """
    index, found, known, missing = name_index(source), {}, set(_tied(builder, source)), {}
    for row in table_rows(builder, source.naming, builder.reading_table(source)):
        name = find_name(row.name, index, builder.fallback_names)
        known.add(name)
        if not CONDITIONS.get(row.layer, lambda _: True)(builder):
            continue
        if name is None:
            missing.setdefault(row.layer, []).append(row.name)
        else:
            found[row.layer, row.path] = row, name
    present = {layer for layer, _ in found}
    lacking = [n for layer, names in missing.items() if layer in present or not OPTIONAL.match(layer) for n in names]
    unknown = [n for n in source.names if n not in known and not is_ignored(n)]
    _refuse(builder, source, lacking, [] if ignore_unknown else unknown, _misshapen(builder, source, found))
    return found


def _tied(builder, source):
    """The source's names of copies that a family reads only if the original is absent."""
    index = name_index(source)
    return {index.get(name) for names in builder.fallback_names.values() for name in names}


def _misshapen(builder, source, found):
    """Lines about variables whose shape is not the one that the configuration gives them."""
    lines = []
    for (layer, path), (row, name) in found.items():
        want, got = _shape(builder, layer, path), row.kernel_shape(source.shape(name))
        if want is not None and got != want:
            lines.append(f"{name} {source.shape(name)}, the configuration asks for {row.file_shape(want)}")
    return lines


def _shape(builder, layer, path):
    """The shape of our variable, for those that show a configuration of another model; else None."""
    heads, width, inner = builder.num_attention_heads, builder.hidden_size, builder.intermediate_size
    groups = getattr(builder, "num_key_value_heads", None) or heads
    keys, values = builder.attention_key_size, builder.attention_head_size
    in_attention = {"query/kernel": (width, heads * keys), "key/kernel": (width, groups * keys)}
    in_attention |= {"value/kernel": (width, groups * values), "out/kernel": (heads * values, width)}
    in_feed_forward = {"inner_0/kernel": (width, inner), "inner_1/kernel": (width, inner), "out/kernel": (inner, width)}
    tables = {"Embedding-Token": builder.vocab_size, "Embedding-Position": getattr(builder, "max_position", None)}
    tables["Embedding-Segment"] = getattr(builder, "segment_vocab_size", None)
    if layer in tables:
        return (tables[layer], builder.embedding_size)
    if layer.endswith("Relative-Position") and path == "embeddings":
        return (builder.relative_attention_num_buckets, heads)
    return (in_feed_forward if "FeedForward" in layer else in_attention).get(path)


def _refuse(builder, source, missing, unknown, misshapen):
    lines = [
        f"  {what} ({len(names)}): {', '.join(names[:_LISTED])}{' ...' if len(names) > _LISTED else ''}"
        for what, names in (("missing", missing), ("unknown", unknown), ("wrong shape", misshapen))
        if names
    ]
    if not lines:
        return
    blocks = {int(number) for name in source.names for number in _BLOCK.findall(name)[:1]}
    if blocks and len(blocks) != builder.num_hidden_layers and (missing or unknown):
        lines.append(f"  layers: the configuration says {builder.num_hidden_layers}, the source holds {len(blocks)}")
    if unknown:
        lines.append("  --ignore-unknown leaves the unknown ones out.")
    raise CheckpointError("\n".join([f"{source.source} is no {builder.model_type} of this configuration:", *lines]))


def plan(builder, source, found, naming, dtype):
    """Items for the checkpoint writers (name, shape, dtype, function), each fetched from the source on demand.

    Args:
        found: result of `match`.
        naming: 'google' or 'huggingface'.
        dtype: dtype in the file; 'same': as stored in the source.
    """
    groups = {}
    for row in table_rows(builder, naming):
        if (row.layer, row.path) in found:
            groups.setdefault(row.name, []).append((row, *found[row.layer, row.path]))
    for name, parts in groups.items():
        written, read, stored = parts[0]
        shape = written.file_shape(read.kernel_shape(source.shape(stored)))
        kind = source.dtype(stored) if dtype == "same" else dtype
        yield name, shape, kind, functools.partial(_fetch, source, parts, kind)


def _fetch(source, parts, dtype):
    array = join_parts([(written, read.kernel(source.read(name))) for written, read, name in parts])
    if dtype == "float16" and np.any(np.isfinite(array) & (np.abs(array) > np.finfo("float16").max)):
        raise ValueError(f"{parts[0][2]} has values up to {np.abs(array).max():g}, too large for float16; use bfloat16")
    return array
