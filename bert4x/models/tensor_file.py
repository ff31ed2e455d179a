"""What every checkpoint reader shares, and the readers of dicts and of safetensors (seek and readinto)."""

import difflib
import json
import math
import os

import numpy as np

HEADER_LIMIT = 100_000_000  # bytes; the format's own limit on the JSON header

# numpy has no bfloat16: its 16 bits travel as uint16 until `widen` makes them float32
STORED = {
    "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "BOOL": "bool",
    "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
    "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64",
}  # fmt: skip


class CheckpointError(ValueError):
    """What a checkpoint file holds is wrong: damaged, incomplete, or without the variable asked for."""


class Checkpoint:
    """Names, shapes and values of the variables of one checkpoint; values are read one at a time.

    Use it as a context manager. `source` says in messages where the values come from.

    Args:
        source: text naming the file, directory or dict.
        entries: dict name -> (shape, dtype name as stored).
    """

    def __init__(self, source, entries):
        self.source = source
        self._entries = entries

    @property
    def names(self):
        """Tuple of all variable names, optimizer slots included."""
        return tuple(self._entries)

    @property
    def naming(self):
        """'google' if names are paths with '/', else 'huggingface' (names with '.')."""
        return "google" if any("/" in name for name in self._entries) else "huggingface"

    def __contains__(self, name):
        return name in self._entries

    def shape(self, name):
        """Shape of a variable as a tuple of int."""
        return self._entry(name)[0]

    def dtype(self, name):
        """Name of the stored dtype, such as 'float32' or 'bfloat16'."""
        return self._entry(name)[1]

    def read(self, name, rows=None):
        """Value of one variable; bfloat16 comes back as float32, every other dtype as stored.

        Args:
            name: one of `names`.
            rows: indices along axis 0, in any order and with repeats; None reads everything. Where the format
                allows it (safetensors, TensorFlow, torch zip files) the other rows are never read.
        Shapes:
            returns: [*shape], or [len(rows), *shape[1:]]
        Raises: CheckpointError if the variable is absent or its bytes are damaged; IndexError or TypeError
            for bad rows.
        """
        shape, dtype = self._entry(name)
        value = self._load(name, None if rows is None else check_rows(rows, name, shape))
        return widen(value) if dtype == "bfloat16" and value.dtype == np.uint16 else value

    def close(self):
        """Release what the reader holds."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def _load(self, name, rows):
        """The stored value as a numpy array, bfloat16 as its bits in uint16."""
        raise NotImplementedError

    def _entry(self, name):
        if name not in self._entries:
            near = difflib.get_close_matches(str(name), self.names, n=3)
            hint = f"near matches: {', '.join(near)}" if near else f"first names: {', '.join(self.names[:3])}"
            raise CheckpointError(f"{self.source} has {len(self._entries)} variables but no {name!r}; {hint}")
        return self._entries[name]


def check_rows(rows, name, shape):
    """Row indices as an int64 array, after checking that they exist in a variable of this shape."""
    rows = np.asarray(rows)
    if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
        raise TypeError(f"rows must be a flat list of integers; got {rows.dtype} {rows.shape} for {name}")
    if not shape:
        raise IndexError(f"rows were asked of {name}, which is a scalar")
    if rows.size and not 0 <= rows.min() <= rows.max() < shape[0]:
        raise IndexError(f"{name} has rows 0 to {shape[0] - 1}; asked for {rows.min()} to {rows.max()}")
    return rows.astype(np.int64)


def widen(bits):
    """float32 values of bfloat16 numbers given as uint16 bits."""
    wide = np.asarray(bits).astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


class DictCheckpoint(Checkpoint):
    """Arrays or tensors of any library, already in memory; arrays are handed out without a copy."""

    def __init__(self, arrays):
        self._arrays = {
            name: value if hasattr(value, "shape") and hasattr(value, "dtype") else np.asarray(value)
            for name, value in arrays.items()
        }
        entries = {name: (tuple(a.shape), dtype_name(a.dtype)) for name, a in self._arrays.items()}
        super().__init__(f"a dict of {len(entries)} arrays", entries)

    def _load(self, name, rows):
        value = self._arrays[name]
        value = from_torch(value) if type(value).__module__.startswith("torch") else np.asarray(value)
        value = value if rows is None else value[rows]
        return value.view(np.uint16) if value.dtype.name == "bfloat16" else value


def dtype_name(dtype):
    """'float32' for np.dtype('float32'), np.float32, tf.float32, torch.float32 and 'float32'."""
    return getattr(dtype, "name", str(dtype)).rpartition(".")[-1]


def from_torch(tensor):
    """numpy array of a torch tensor, bfloat16 as float32, others without a copy."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if dtype_name(tensor.dtype) == "bfloat16" else tensor).numpy()


class SafetensorsCheckpoint(Checkpoint):
    """One safetensors file: 8 bytes of header length, a JSON header, then the tensors' bytes."""

    def __init__(self, path):
        self._path = path
        header, self._begin, size = _read_header(path)
        header.pop("__metadata__", None)
        entries, self._offsets = {}, {}
        for name, entry in header.items():
            shape, dtype, self._offsets[name] = _check_entry(path, name, entry, size - self._begin)
            entries[name] = (shape, dtype)
        super().__init__(path, entries)

    def _load(self, name, rows):
        shape, dtype = self._entries[name]
        begin = self._begin + self._offsets[name]
        return read_rows(self._path, begin, (shape, dtype), rows, f"{self.source} ends inside {name}")


def read_rows(path, begin, entry, rows, short):
    """A tensor whose bytes start at `begin` in a file, or some of its rows: the others are never read.

    Args:
        entry: (shape, dtype name) of the whole tensor.
        rows: indices along axis 0; None: all.
        short: what is said if the file ends too early.
    """
    shape, kind = entry[0], numpy_dtype(entry[1])
    value = np.empty(shape if rows is None else (len(rows), *shape[1:]), kind)
    stride = math.prod(shape[1:]) * kind.itemsize
    with open(path, "rb") as file:
        for start, stop in [(0, None)] if rows is None else _runs(rows):
            file.seek(begin if rows is None else begin + int(rows[start]) * stride)
            part = value if rows is None else value[start:stop]
            if file.readinto(part.reshape(-1).view(np.uint8)) != part.nbytes:
                raise CheckpointError(f"{short}: the file is truncated; get it again")
    return value


def _runs(rows):
    """Half-open ranges of positions in `rows` that hold consecutive row numbers."""
    if not len(rows):
        return []
    cuts = np.flatnonzero(np.diff(rows) != 1) + 1
    return zip([0, *cuts.tolist()], [*cuts.tolist(), len(rows)], strict=True)


def numpy_dtype(name):
    return np.dtype("uint16" if name == "bfloat16" else name)


def _read_header(path):
    """(header dict, position of the first tensor byte, size of the file)."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, HEADER_LIMIT):
            raise CheckpointError(
                f"{path} is not a whole safetensors file: its header should take {length} of {size} bytes; "
                "get it again"
            )
        try:
            header = json.loads(file.read(length).decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} is not a safetensors file: bad header: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is not a safetensors file: its header is no JSON object")
    return header, 8 + length, size


def _check_entry(path, name, entry, size):
    """(shape, dtype name, first byte) of one header entry, all within `size` bytes of data."""
    try:
        code, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: the header entry of {name} is damaged: {entry!r}") from error
    if not whole:
        raise CheckpointError(f"{path}: the header entry of {name} is damaged: {entry!r}")
    if not isinstance(code, str) or code not in STORED:
        raise CheckpointError(f"{path}: {name} has dtype {code}, which is not one of {', '.join(STORED)}")
    if end > size:
        raise CheckpointError(f"{path} is truncated: {name} ends at byte {end} of data of {size} bytes")
    if end - begin != math.prod(shape) * numpy_dtype(STORED[code]).itemsize:
        raise CheckpointError(f"{path}: {name} is {code} {list(shape)} but has {end - begin} bytes")
    return shape, STORED[code], begin
