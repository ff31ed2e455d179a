"""Weight tables: which variable of a layer is which variable of a file, applied strictly in both directions.

A table maps layer name -> {path of a variable inside the layer: `Source` or Google name}. HuggingFace names follow from
the Google names by `huggingface_name` and a family's few renaming rules.
"""

import dataclasses
import functools
import re
import warnings
from typing import NamedTuple

import numpy as np

from bert4x.backend import runtime, walk_layers
from bert4x.models.checkpoint import CheckpointError
from bert4x.models.initializers import raw_variable, settle
from bert4x.models.resize import compound_rows, resize_array


class Source(NamedTuple):
    """Where a variable lives in a file.

    name: its Google name.
    transpose: the file holds the transpose of our kernel.
    rows: 'token' or 'position' if the rows are tokens (keep_tokens applies) or positions (fewer may be taken); 'column'
        if the columns of our kernel are tokens.
    part: (i, n) if the file holds n variables side by side on the last axis, of which this is number i.
    optional: a file without it is in order; the variable keeps its initial values.
    """

    name: str
    transpose: bool = False
    rows: str | None = None
    part: tuple | None = None
    optional: bool = False


def dense(prefix):
    """Rows of a table for one Dense layer."""
    return {"kernel": f"{prefix}/kernel", "bias": f"{prefix}/bias"}


def norm(prefix):
    """Rows of a table for one layer norm."""
    return {"beta": f"{prefix}/beta", "gamma": f"{prefix}/gamma"}


def inside(part, rows):
    """The same rows for the Dense layer called `part` inside a layer."""
    return {f"{part}/{path}": source for path, source in rows.items()}


# Google name -> HuggingFace name, after a family's own rules.
_GENERIC_RULES = (
    (r"layer_(\d+)/", r"layer.\1/"),
    (r"_embeddings$", "_embeddings/weight"),
    (r"predictions/output_bias$", "predictions/bias"),
    (r"output_weights$", "weight"),
    (r"seq_relationship/output_bias$", "seq_relationship/bias"),
    (r"/(gamma|kernel)$", "/weight"),
    (r"/beta$", "/bias"),
    (r"/", "."),
)

# HuggingFace's Linear weights are (out, in), and T5's bias tables (buckets, heads).
_TURNED = re.compile(r"/(kernel|relative_attention_bias|[qkvo])$")
# In files, but never weights of a model: optimizer slots, buffers, tied copies.
_IGNORED = re.compile(
    r"(adam_[mv]|/adafactor_(m|vr?|vc)|/Adam(_1)?|_slot_\w+|/lamb_[mv]|AdamWeightDecayOptimizer(_\d)?)$"
    r"|global_step|_power$|CHECKPOINTABLE_OBJECT_GRAPH|save_counter|position_ids$|embed_positions"
    r"|relative_positions_encoding|rotary_emb\.inv_freq|predictions\.decoder\.|lm_head\.weight$|\.attn\.(masked_)?bias$"
    r"|embed_tokens\.weight$|EncDecAttention\.relative_attention_bias"
)
_LIBRARY_PREFIX = re.compile(r"^(bert|albert|electra|nezha|roformer|transformer|model)\.")


def huggingface_name(google, rules=()):
    """Translate a Google name, e.g. bert/pooler/dense/kernel -> bert.pooler.dense.weight.

    A rule may end in '#i:n' for `Source.part`: c_attn.weight#0:3 is the first third of a fused kernel.
    """
    for pattern, replacement in (*rules, *_GENERIC_RULES):
        google = re.sub(pattern, replacement, google)
    return google


@dataclasses.dataclass
class LoadReport:
    """What a load did: names of file variables, and numbers of parameters.

    loaded, missing, unused: names in the file's naming.
    mismatched: (name, shape in the file, shape wanted).
    initialized: paths of the model's variables that no file variable filled.
    loaded_parameters, initialized_parameters: counts of numbers.
    """

    source: str
    loaded: list = dataclasses.field(default_factory=list)
    missing: list = dataclasses.field(default_factory=list)
    mismatched: list = dataclasses.field(default_factory=list)
    unused: list = dataclasses.field(default_factory=list)
    initialized: list = dataclasses.field(default_factory=list)
    loaded_parameters: int = 0
    initialized_parameters: int = 0

    def __str__(self):
        lines = [
            f"{self.source}: {len(self.loaded)} variables loaded ({self.loaded_parameters:,} parameters), "
            f"{len(self.initialized)} initialised ({self.initialized_parameters:,} parameters)"
        ]
        return "\n  ".join(lines) + self.problems()

    def problems(self):
        """What is missing, of another shape, or left over: one line each."""
        lines = [""]
        lines += [f"missing in the file: {name}" for name in self.missing]
        lines += [f"wrong shape: {name} is {got}, the model needs {want}" for name, got, want in self.mismatched]
        lines += [f"unused in the file: {name}" for name in self.unused]
        return "\n  ".join(lines)


class Row(NamedTuple):
    """One row of a weight table in one naming: how a variable of a layer lies in a file.

    layer, path: the layer's name, and the variable inside it.
    name: the file's variable; transpose, part: as in `Source`, for this naming.
    """

    layer: str
    path: str
    source: Source
    name: str
    transpose: bool
    part: tuple | None

    def kernel_shape(self, shape):
        """Shape of our variable, for a file variable of this shape."""
        shape = tuple(shape)
        if len(shape) == 3 and shape[0] == 1:  # OpenAI's kernels are those of convolutions of width 1
            shape = shape[1:]
        if self.part is not None:
            shape = (*shape[:-1], shape[-1] // self.part[1])
        return shape[::-1] if self.transpose else shape

    def kernel(self, array):
        """The values of our variable, from those of the file variable."""
        array = array[0] if array.ndim == 3 and array.shape[0] == 1 else array
        if self.part is not None:
            array = np.split(array, self.part[1], axis=-1)[self.part[0]]
        return array.T if self.transpose else array

    def file_shape(self, shape):
        """Shape of the file variable, for our variable of this shape."""
        shape = tuple(shape)[::-1] if self.transpose else tuple(shape)
        return shape if self.part is None else (*shape[:-1], shape[-1] * self.part[1])


def table_rows(builder, naming, table=None):
    """The rows of a weight table with names in the given naming; the builder need not be built."""
    for layer, variables in (builder.weight_table() if table is None else table).items():
        for path, source in variables.items():
            source = Source(source) if isinstance(source, str) else source
            name, transpose, part = source.name, source.transpose, source.part
            if naming == "huggingface":
                name, _, fused = huggingface_name(name, builder.huggingface_rules).partition("#")
                part = tuple(map(int, fused.split(":"))) if fused else part
                transpose ^= bool(_TURNED.search(source.name)) and builder.huggingface_transposes
            yield Row(layer, path, source, name, transpose, part)


def join_parts(parts):
    """The array of a file variable, from its rows and the values of our variables: [(Row, array)].

    Parts that the model lacks (attention without queries and keys) are zeros.
    """
    places = {(row.part or (0, 1))[0]: array.T if row.transpose else array for row, array in parts}
    some, count = next(iter(places.values())), (parts[0][0].part or (0, 1))[1]
    arrays = [places[i] if i in places else np.zeros_like(some) for i in range(count)]
    return np.ascontiguousarray(arrays[0] if count == 1 else np.concatenate(arrays, axis=-1))


class _Entry(NamedTuple):
    """A row whose layer exists."""

    row: Row
    layer: object
    variable: object


def entries(builder, naming, table=None):
    """The rows of a weight table whose layers exist in the builder, with names in the given naming."""
    table = builder.fitted_table(builder.weight_table() if table is None else table)
    for row in table_rows(builder, naming, table):
        layer = builder.layers.get(row.layer)
        if layer is not None:
            yield _Entry(row, layer, _variable(layer, row.path))


def _owner(layer, path):
    *parts, name = path.split("/")
    for part in parts:
        layer = getattr(layer, part)
    return layer, name


def _variable(layer, path):
    return raw_variable(*_owner(layer, path))


def load_weights(builder, checkpoint, *, table=None, tolerant=False, resize=False):
    """Fill the builder's layers from an open checkpoint; nothing is assigned unless all of it fits.

    Args:
        table: another weight table than the family's.
        tolerant: missing and wrongly shaped variables are a warning and keep their initial values.
        resize: wrongly shaped variables are resized (see `resize_array`).
    Returns: LoadReport.
    Raises: CheckpointError that lists everything missing and wrongly shaped, and what the file holds besides.
    """
    wanted = list(entries(builder, checkpoint.naming, table or builder.reading_table(checkpoint)))
    index = name_index(checkpoint)
    report = LoadReport(source=checkpoint.source)
    usable = []
    for entry in wanted:
        name = find_name(entry.row.name, index, builder.fallback_names)
        if name is None:
            report.missing += [] if entry.row.source.optional else [entry.row.name]
            continue
        got, want = _loaded_shape(builder, checkpoint, entry, name), tuple(entry.variable.shape)
        if got == want or (resize and len(got) == len(want)):
            usable.append((entry, name))
        else:
            report.mismatched.append((name, tuple(checkpoint.shape(name)), entry.row.file_shape(want)))
    used = {name for _, name in usable} | {name for name, _, _ in report.mismatched}
    report.unused = sorted(n for n in checkpoint.names if n not in used and not is_ignored(n))
    _refuse(report, tolerant)
    for entry, name in usable:
        runtime.assign(entry.variable, _prepared(builder, checkpoint, entry, name))
        report.loaded.append(name)
        report.loaded_parameters += int(np.prod(entry.variable.shape))
    _complete(builder, report, {id(entry.variable) for entry, _ in usable})
    return report


def is_ignored(name):
    """Whether a file variable is never a weight: optimizer slots, buffers, tied copies."""
    return bool(_IGNORED.search(name))


def has_own_head(checkpoint, tables, head="lm_head.weight"):
    """Whether the weight `head` is there and no copy of the token table; `tables`: names that this may have.

    What `tie_word_embeddings` says in files is unreliable, so the first rows are compared.
    """
    index = name_index(checkpoint)
    table = next((index[name] for name in map(_canonical, tables) if name in index), None)
    if table is None or head not in checkpoint.names:
        return False
    rows = range(min(8, checkpoint.shape(table)[0], checkpoint.shape(head)[0]))
    return not np.array_equal(checkpoint.read(head, rows=rows), checkpoint.read(table, rows=rows))


def name_index(checkpoint):
    """Canonical name -> name in the file: library prefixes are optional, old norm names are understood."""
    return {_canonical(name) if checkpoint.naming == "huggingface" else name: name for name in checkpoint.names}


def _canonical(name):
    name = _LIBRARY_PREFIX.sub("", name)
    return re.sub(r"gamma$", "weight", re.sub(r"beta$", "bias", name))


def find_name(name, index, fallbacks):
    """What a file calls the variable `name`, or None.

    Args:
        index: the file's `name_index`.
        fallbacks: other names, as in `Transformer.fallback_names`.
    """
    candidates = (name, *fallbacks.get(_canonical(name), ()))
    for candidate in candidates:
        found = index.get(candidate) or index.get(_canonical(candidate))
        if found is not None:
            return found
    return None


def _loaded_shape(builder, checkpoint, entry, name):
    """The shape that the file's variable has once it is turned and cut for the model."""
    shape, rows = entry.row.kernel_shape(checkpoint.shape(name)), entry.row.source.rows
    if rows in ("token", "column") and builder.keep_tokens:
        last, ids = shape[0 if rows == "token" else -1] - 1, builder.keep_tokens
        if not 0 <= min(ids) <= max(ids) <= last:
            raise ValueError(f"keep_tokens must be ids of the file, 0 to {last}; got ids {min(ids)} to {max(ids)}")
    if rows == "token" and (builder.keep_tokens or builder.compound_tokens):
        kept = len(builder.keep_tokens) if builder.keep_tokens else shape[0]
        return (kept + len(builder.compound_tokens or ()), *shape[1:])
    if rows == "column" and (builder.keep_tokens or builder.compound_tokens):
        return (*shape[:-1], builder.vocab_size)
    if rows == "position":
        return (min(shape[0], entry.variable.shape[0]), *shape[1:])
    return shape


def _prepared(builder, checkpoint, entry, name):
    rows, kind = None, entry.row.source.rows
    if kind == "token" or (kind == "column" and entry.row.transpose):
        rows = builder.keep_tokens
    elif kind == "position" and entry.variable.shape[0] < checkpoint.shape(name)[0]:
        rows = range(entry.variable.shape[0])
    array = entry.row.kernel(checkpoint.read(name, rows=rows))
    if kind == "token":
        array = compound_rows(array, builder.compound_tokens)
    if kind == "column":
        kept = array if rows is not None or builder.keep_tokens is None else array[:, builder.keep_tokens]
        array = compound_rows(kept.T, builder.compound_tokens).T
    want = tuple(entry.variable.shape)
    if array.shape != want:
        array = builder.rescaled(entry.row.path, resize_array(array, want), array)
    return array


def _refuse(report, tolerant):
    if not (report.missing or report.mismatched):
        return
    if tolerant:
        warnings.warn(f"{report.source}: these weights keep their initial values:{report.problems()}", stacklevel=4)
        return
    raise CheckpointError(
        f"{report.source} does not fit the model: {len(report.missing)} variables are missing, "
        f"{len(report.mismatched)} have another shape. Nothing was loaded.{report.problems()}\n"
        "Check the configuration and the options (heads such as with_mlm need their weights), or pass "
        "ignore_invalid_weights=True to keep initial values for these."
    )


def _complete(builder, report, filled):
    """Initialise and report the variables that no file variable filled."""
    settle((inner for layer in builder.layers.values() for inner in walk_layers(layer)), filled)
    for layer in builder.layers.values():
        for variable in layer.trainable_variables:
            if id(variable) not in filled:
                report.initialized.append(variable.path)
                report.initialized_parameters += int(np.prod(variable.shape))


def weight_items(builder, naming, *, table=None, dtype=None):
    """(name, shape, dtype, function returning the array) for every file variable: what the checkpoint writers take.

    LoRA is merged into the kernels. Raises ValueError for quantised layers.
    """
    dtype = dtype or "float32"
    fused = {}
    for entry in entries(builder, naming, table):
        owner, name = _owner(entry.layer, entry.row.path)
        if getattr(owner, "quantization_mode", None) and name != "bias":
            raise ValueError(
                f"{owner.path} is quantised to {owner.quantization_mode}: a checkpoint holds float weights. "
                "Save the Keras model (.keras), or write the checkpoint before quantising."
            )
        fused.setdefault(entry.row.name, []).append(entry)
    for name, parts in fused.items():
        shape = parts[0].row.file_shape(parts[0].variable.shape)
        yield name, shape, dtype, functools.partial(_read_back, parts, dtype)


def _read_back(parts, dtype):
    """The array of a file variable, from the variables that are its parts."""
    values = ((entry.row, runtime.to_numpy(getattr(*_owner(entry.layer, entry.row.path)))) for entry in parts)
    return join_parts([(row, np.asarray(value, dtype=dtype)) for row, value in values])
