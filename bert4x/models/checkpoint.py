"""Checkpoints of every format as name -> array: finds the format; readers of torch, shards and TensorFlow."""

import contextlib
import glob
import json
import math
import os
import re
import zipfile
from collections.abc import Mapping

import numpy as np

from bert4x.models.checkpoint_path import absent_message, find_in_directory, has_checkpoint
from bert4x.models.tensor_file import (
    STORED,
    Checkpoint,
    CheckpointError,
    DictCheckpoint,
    SafetensorsCheckpoint,
    dtype_name,
    from_torch,
    numpy_dtype,
    read_rows,
)
from bert4x.models.tensor_index import tensor_places
from bert4x.models.tensor_writer import aside, check_items, fetch, item_bytes, move, split, write_safetensors

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "has_checkpoint",
    "open_checkpoint",
    "write_safetensors",
    "write_tensorflow",
]

TORCH_SUFFIXES = (".bin", ".pt", ".pth")
# Pages of a mapped file count as memory of the process for as long as it is mapped.
_MAPPED_BYTES = 2**28


def open_checkpoint(source):
    """Open a checkpoint of any format for reading.

    Args:
        source: a TensorFlow prefix (with or without .index, .meta, .data-...), a .safetensors file, an index
            of shards (*.index.json), a .bin, .pt or .pth file of torch, a directory holding one of these
            (safetensors first, then shards, .bin, TensorFlow), a dict name -> array, or an open Checkpoint.
    Returns: a Checkpoint; use it in a `with` statement.
    Raises: FileNotFoundError if nothing is there; CheckpointError if what is there cannot be read;
        ImportError if the format's library is missing.
    """
    if isinstance(source, Checkpoint):
        return source
    if isinstance(source, Mapping):
        return DictCheckpoint(source)
    path = re.sub(r"\.(index|meta|data-\d{5}-of-\d{5})$", "", os.fspath(source))
    if os.path.isdir(path):
        path = find_in_directory(path)
    if os.path.exists(f"{path}.index") or _data_files(path):
        return TensorFlowCheckpoint(path)
    if not os.path.exists(path):
        raise FileNotFoundError(absent_message(path))
    if path.endswith(".index.json"):
        return ShardedCheckpoint(path)
    return _open_file(path)


def _open_file(path):
    """Open a single file by its suffix."""
    if path.endswith(".safetensors"):
        return SafetensorsCheckpoint(path)
    if path.endswith(TORCH_SUFFIXES):
        return TorchCheckpoint(path)
    hint = " Keras files are read by model.load_weights." if path.endswith((".h5", ".keras")) else ""
    known = ".safetensors, .index.json, .bin, .pt, .pth, or a TensorFlow prefix with its .index file"
    raise CheckpointError(f"{path} has a suffix that no checkpoint format has: {known} are read.{hint}")


class TorchCheckpoint(Checkpoint):
    """A state dict saved by torch.save; only plain tensors are unpickled.

    Zip files (torch >= 1.6) are mapped and read tensor by tensor; older files are held in memory as a whole.
    """

    def __init__(self, path):
        self._mapped, self._touched = zipfile.is_zipfile(path), 0
        state = self._state = _load_torch(path)
        entries = {name: (tuple(value.shape), dtype_name(value.dtype)) for name, value in state.items()}
        super().__init__(path, entries)

    def _load(self, name, rows):
        tensor = self._state[name]
        if rows is not None:
            tensor = tensor[_torch().from_numpy(rows)]
        # a copy, because the array would otherwise keep the whole file mapped
        array = np.array(from_torch(tensor))
        self._touched += tensor.nbytes
        if self._mapped and self._touched > _MAPPED_BYTES:
            self._state, self._touched = _load_torch(self.source), 0  # maps it anew, with no page read yet
        return array

    def close(self):
        self._state = {}


def _load_torch(path):
    """Dict name -> tensor of a torch file."""
    torch = _torch()
    with open(path, "rb"):  # a file we may not read stays a PermissionError
        mapped = zipfile.is_zipfile(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged pickle can raise anything
        raise CheckpointError(
            f"{path} is not a torch file of plain tensors ({type(error).__name__}): it is damaged or holds "
            "other Python objects, which are never unpickled; save model.state_dict() alone."
        ) from error
    inner = state if isinstance(state, Mapping) else {}
    for key in ("state_dict", "module"):  # training frameworks keep it under one of these
        inner = inner[key] if isinstance(inner.get(key), Mapping) else inner
    tensors = {name: value for name, value in inner.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise CheckpointError(f"{path} holds a {type(state).__name__} without tensors, not a state dict")
    return tensors


class ShardedCheckpoint(Checkpoint):
    """Several safetensors or torch files under one index (`weight_map`: name -> file)."""

    def __init__(self, path):
        weight_map = _read_weight_map(path)
        files = sorted(set(weight_map.values()))
        shards = {file: _open_file(os.path.join(os.path.dirname(path), file)) for file in files}
        self._shards = {name: shards[file] for name, file in weight_map.items()}
        lost = [f"{name} ({file})" for name, file in weight_map.items() if name not in shards[file]]
        if lost:
            raise CheckpointError(f"{path} names variables that no shard holds: {', '.join(lost[:5])}")
        super().__init__(path, {name: shard._entry(name) for name, shard in self._shards.items()})

    def _load(self, name, rows):
        return self._shards[name]._load(name, rows)

    def close(self):
        for shard in self._shards.values():
            shard.close()


def _read_weight_map(path):
    """Dict name -> file name of an index whose files all exist."""
    try:
        with open(path, encoding="utf-8") as file:
            weight_map = dict(json.load(file)["weight_map"])
        files = sorted(set(weight_map.values()))
        plain = all(name and name == os.path.basename(name) for name in files)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not an index of shards: {type(error).__name__}: {error}") from error
    if not files or not plain:
        raise CheckpointError(f"{path} must name files next to it; it names {files[:5]}")
    missing = [name for name in files if not os.path.exists(os.path.join(os.path.dirname(path), name))]
    if missing:
        raise CheckpointError(f"{path} names shards that are not there: {', '.join(missing)}; fetch them too")
    return weight_map


class TensorFlowCheckpoint(Checkpoint):
    """prefix.index and prefix.data-?????-of-?????, read through TensorFlow under any Keras backend.

    Rows are read from the data file itself, without its checksum: TensorFlow reads all of a stored tensor for every
    slice asked of it (30,000 rows of 512 MB: this way 0.2 s and 59 MB of memory, with TensorFlow 0.6 s and 561 MB).
    """

    def __init__(self, prefix):
        _check_data_files(prefix)
        with _contents(prefix):
            self._reader = _tensorflow().train.load_checkpoint(prefix)
            shapes = self._reader.get_variable_to_shape_map()
            dtypes = self._reader.get_variable_to_dtype_map()
        super().__init__(prefix, {name: (tuple(shapes[name]), dtypes[name].name) for name in sorted(shapes)})

    def _load(self, name, rows):
        place = self._place(name) if rows is not None else None
        if place is not None:
            return read_rows(*place, self._entries[name], rows, f"{place[0]} ends inside {name}")
        with _contents(f"{self.source}, variable {name}"):
            value = np.asarray(self._reader.get_tensor(name))
        value = value if rows is None else value[rows]
        return value.view(np.uint16) if value.dtype.name == "bfloat16" else value

    def _place(self, name):
        """(data file, first byte) of a variable that lies there as a whole; else None."""
        (shape, dtype), place = self._entries[name], tensor_places(self.source).get(name)
        if place is None or dtype not in STORED.values():
            return None
        file, begin, size = place
        whole = size == math.prod(shape) * numpy_dtype(dtype).itemsize and begin + size <= os.path.getsize(file)
        return (file, begin) if whole else None


@contextlib.contextmanager
def _contents(source):
    """Turn TensorFlow's errors about a file into CheckpointError."""
    try:
        yield
    # its reader raises OpError, IndexError, ValueError ... after the kind of damage
    except (_tensorflow().errors.OpError, LookupError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{source} is damaged; get it again. TensorFlow says: {error}") from error


def _data_files(prefix):
    return sorted(glob.glob(f"{glob.escape(prefix)}.data-?????-of-?????"))


def _check_data_files(prefix):
    """Raise CheckpointError unless index and data files are all there, PermissionError if they are barred."""
    if not os.path.exists(f"{prefix}.index"):
        raise CheckpointError(f"{prefix} is incomplete: {prefix}.index is missing beside its data files")
    files = _data_files(prefix)
    expected = int(files[0][-5:]) if files else 1
    missing = sorted({f"{prefix}.data-{i:05d}-of-{expected:05d}" for i in range(expected)} - set(files))
    if missing:
        raise CheckpointError(f"{prefix}.index is there, but these are missing: {', '.join(missing)}")
    for path in (f"{prefix}.index", *files):
        with open(path, "rb"):
            pass


def write_tensorflow(prefix, items):
    """Write a TensorFlow checkpoint (prefix.index, prefix.data-...), under any Keras backend.

    Tensors are fetched one by one and saved in parts no larger than the largest tensor, then joined. All is
    written in a folder aside and moved into place at the end; a failed write leaves older files intact.

    Args:
        prefix: path without suffix, such as 'bert_model.ckpt'; missing parent folders are made.
        items: iterable of (name, shape, dtype name, function returning the array).
    Raises: ValueError if names repeat or an array has not the stated shape; ImportError without TensorFlow.
    """
    tf = _tensorflow()
    directory, name = os.path.split(os.fspath(prefix))
    items = check_items(items)
    # on the CPU, whatever the model's device: the arrays are in host memory
    with aside(directory) as folder, tf.init_scope(), tf.device("CPU:0"):
        parts = []
        for part in split(items, max(map(item_bytes, items))):
            parts.append(os.path.join(folder, "parts", str(len(parts))))
            _save_part(tf, parts[-1], part)
        tf.raw_ops.MergeV2Checkpoints(
            checkpoint_prefixes=parts, destination_prefix=os.path.join(folder, name), delete_old_dirs=False
        )
        # sorted: the index comes after the data it points to
        names = sorted(file for file in os.listdir(folder) if file != "parts")
        move(folder, directory, names, stale=rf"{re.escape(name)}\.data-\d{{5}}-of-\d{{5}}")


def _save_part(tf, prefix, items):
    tensors = [tf.convert_to_tensor(fetch(item)) for item in items]
    tensors = [
        tf.bitcast(tensor, tf.bfloat16) if item[2] == "bfloat16" else tensor
        for item, tensor in zip(items, tensors, strict=True)
    ]
    names = [item[0] for item in items]
    tf.raw_ops.SaveV2(prefix=prefix, tensor_names=names, shape_and_slices=[""] * len(names), tensors=tensors)


def _tensorflow():
    try:
        import tensorflow
    except ImportError as error:
        raise ImportError("TensorFlow checkpoints need TensorFlow: pip install tensorflow") from error
    return tensorflow


def _torch():
    try:
        import torch
    except ImportError as error:
        raise ImportError('torch checkpoints (.bin, .pt) need torch: pip install "bert4x[torch]"') from error
    return torch
