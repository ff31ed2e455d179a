"""What writers share (items, groups, files made aside), and the safetensors writer with shards and index."""

import contextlib
import json
import math
import os
import re
import shutil
import tempfile

import numpy as np

from bert4x.models.tensor_file import STORED, numpy_dtype

CODES = {name: code for code, name in STORED.items()}


def write_safetensors(path, items, *, metadata=None, max_shard_bytes=None):
    """Write tensors to a safetensors file, or to shards and an index, fetching them one by one.

    All is written in a folder aside and moved into place at the end; a failed write leaves old files intact.
    Files of an older checkpoint of this path that are not part of the new one are removed.

    Args:
        path: file to write, such as 'model.safetensors'; missing parent folders are made.
        items: iterable of (name, shape, dtype name, function returning the array).
        metadata: dict of str for the header; None means {"format": "pt"}, which transformers asks for.
        max_shard_bytes: most bytes of tensors per file; larger sets become 'model-00001-of-00002.safetensors'
            ... and 'model.safetensors.index.json'. A single larger tensor gets a file of its own.
    Returns: the path to open: the file, or the index.
    Raises: ValueError if names repeat or an array has not the stated shape.
    """
    path = os.fspath(path)
    metadata = {"format": "pt"} if metadata is None else metadata
    shards = split(check_items(items), max_shard_bytes)
    directory, name = os.path.split(path)
    names = [name]
    if len(shards) > 1:
        stem = name.removesuffix(".safetensors")
        names = [f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    with aside(directory) as folder:
        for file_name, shard in zip(names, shards, strict=True):
            _write_file(os.path.join(folder, file_name), shard, metadata)
        if len(shards) > 1:
            names.append(f"{name}.index.json")
            _write_index(os.path.join(folder, names[-1]), names, shards)
        move(folder, directory, names, stale=_safetensors_files(name))
    return os.path.join(directory, names[-1])


def _safetensors_files(name):
    """Pattern of the files that a checkpoint called `name` can consist of."""
    stem = re.escape(name.removesuffix(".safetensors"))
    return rf"{re.escape(name)}(\.index\.json)?|{stem}-\d{{5}}-of-\d{{5}}\.safetensors"


def split(items, limit):
    """Consecutive groups of items of at most `limit` bytes each (None: one group); none is empty."""
    groups, size = [], 0
    for item in items:
        size += item_bytes(item)
        if not groups or (limit is not None and size > limit):
            groups.append([])
            size = item_bytes(item)
        groups[-1].append(item)
    return groups


def _write_file(path, items, metadata):
    # wide dtypes first keeps every tensor aligned to its own item size, as readers that map the file like it
    items = sorted(items, key=lambda item: -numpy_dtype(item[2]).itemsize)
    header, end = {"__metadata__": metadata} if metadata else {}, 0
    for name, shape, dtype, _ in items:
        begin, end = end, end + item_bytes((name, shape, dtype, None))
        header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for item in items:
            file.write(fetch(item).reshape(-1).view(np.uint8))


def _write_index(path, names, shards):
    weight_map = {item[0]: name for name, shard in zip(names, shards, strict=False) for item in shard}
    total = sum(item_bytes(item) for shard in shards for item in shard)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    with open(path, "w", encoding="utf-8") as file:
        json.dump(index, file, indent=2, ensure_ascii=False)


def check_items(items):
    """Items as a list of (name, shape tuple, dtype name, function), names unique and dtypes known."""
    items = [(name, tuple(map(int, shape)), str(dtype), function) for name, shape, dtype, function in items]
    seen = set()
    for name, _, dtype, _ in items:
        if name in seen:
            raise ValueError(f"names must be unique in a checkpoint; {name} comes twice")
        if dtype not in CODES:
            raise ValueError(f"{name} has dtype {dtype}; it must be one of {', '.join(CODES)}")
        seen.add(name)
    if not items:
        raise ValueError("there is nothing to write: items is empty")
    return items


def item_bytes(item):
    """Bytes of the tensor of one item."""
    return math.prod(item[1]) * numpy_dtype(item[2]).itemsize


def fetch(item):
    """The array of one item, contiguous and in its stated dtype (bfloat16 as bits in uint16)."""
    name, shape, dtype, function = item
    value = np.asarray(function())
    if value.shape != shape:
        raise ValueError(f"{name} was announced with shape {shape}, its array has {value.shape}")
    if dtype != "bfloat16":
        value = value.astype(dtype, casting="same_kind", copy=False)
    elif value.dtype.name == "bfloat16":
        value = value.view(np.uint16)
    else:
        value = narrow(value)
    return np.asarray(value, order="C")


@contextlib.contextmanager
def aside(directory):
    """A scratch folder next to the target (so that moving is a rename), removed afterwards."""
    os.makedirs(directory or ".", exist_ok=True)
    folder = tempfile.mkdtemp(prefix=".writing-", dir=directory or ".")
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def move(folder, directory, names, *, stale):
    """Move finished files into place in this order, then drop older files whose names match `stale`."""
    for name in names:
        os.replace(os.path.join(folder, name), os.path.join(directory, name))
    for name in os.listdir(directory or "."):
        if re.fullmatch(stale, name) and name not in names:
            os.remove(os.path.join(directory, name))


def narrow(values):
    """uint16 bits of the bfloat16 numbers nearest to float32 values (ties to even)."""
    values = np.asarray(values, np.float32)
    bits = values.view(np.uint32)
    rounded = ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)
    # rounding could carry a NaN into infinity
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)
