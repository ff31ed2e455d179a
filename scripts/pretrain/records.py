"""Shards of training records: TFRecord files written, checked and read with NumPy alone.

A shard is a sequence of frames, all numbers little-endian:

    length of the payload, uint64 | masked CRC-32C of these 8 bytes, uint32 | payload | masked CRC-32C of it, uint32

which is what `tf.data.TFRecordDataset` reads too. The payload of a record is int32 [2 n]: n token ids, then n marks.
"""

import mmap
import os
import struct
from pathlib import Path

import numpy as np

# What a token is the first one of. Each kind is a first token of the kinds below it too.
INSIDE, WORD, SENTENCE, DOCUMENT = range(4)

REMEDY = "Delete the file and run prepare.py again, which writes only what is missing."

_FRAME = 16  # bytes around a payload
_CHUNK = 2**26  # bytes whose checksums are computed at a time


class ShardError(ValueError):
    """A shard whose bytes are not those that were written."""


def _crc_table():
    """CRC-32C (Castagnoli) of each byte, for the reflected polynomial 0x82f63b78."""
    crc = np.arange(256, dtype="uint32")
    for _ in range(8):
        crc = (crc >> 1) ^ np.where(crc & 1, np.uint32(0x82F63B78), np.uint32(0))
    return crc


_TABLE = _crc_table()


def masked_crc32c(buffer, starts, lengths):
    """Masked CRC-32C of many pieces of one buffer at once: rotated right by 15 bits, plus 0xa282ead8.

    Args:
        buffer: uint8 array.
        starts, lengths: int arrays [N], in bytes.
    Returns: uint32 [N].
    """
    order = np.argsort(-lengths, kind="stable")  # so that those still running are always the first
    starts, running = starts[order], lengths[order]
    crc = np.full(len(order), 0xFFFFFFFF, "uint32")
    for i in range(running[0] if len(running) else 0):
        n = np.searchsorted(-running, -i)
        crc[:n] = _TABLE[(crc[:n] ^ buffer[starts[:n] + i]) & 0xFF] ^ (crc[:n] >> 8)
    crc = ~crc
    result = np.empty_like(crc)
    result[order] = ((crc >> 15) | (crc << 17)) + np.uint32(0xA282EAD8)
    return result


def frames(payloads):
    """The bytes of a shard with these payloads, as TensorFlow's own writer makes them."""
    lengths = np.array([len(payload) for payload in payloads], "int64")
    heads, body = lengths.astype("<u8").tobytes(), b"".join(payloads)
    head_crcs = masked_crc32c(np.frombuffer(heads, "uint8"), np.arange(len(lengths)) * 8, np.full(len(lengths), 8))
    crcs = masked_crc32c(np.frombuffer(body, "uint8"), np.cumsum(lengths) - lengths, lengths)
    rows = zip(lengths.tolist(), head_crcs.tolist(), payloads, crcs.tolist(), strict=True)
    return b"".join(struct.pack("<QI", size, head) + data + struct.pack("<I", crc) for size, head, data, crc in rows)


def write_shard(path, payloads):
    """Write a shard aside and rename it, so that a shard which exists is whole."""
    aside = f"{path}.{os.getpid()}"
    with open(aside, "wb") as file:
        file.write(frames(payloads))
    os.replace(aside, path)


def pack_record(ids, marks):
    """The payload of a record."""
    return np.array([ids, marks], "<i4").tobytes()


def unpack_record(payload):
    """Token ids and marks, int32 [2, n], of a payload."""
    return np.frombuffer(payload, "<i4").reshape(2, -1)


class Shards:
    """The records of several shards, as a sequence of arrays [2, n]; the files are mapped, not read into memory.

    Args:
        paths: the files.
        check: compare the checksums of all payloads now (about a second for 100 MB); those of the lengths always are.
    Raises: ShardError naming the file, the record and the place of the first damage.
    """

    def __init__(self, paths, *, check=True):
        self.paths = [Path(path) for path in paths]
        if not self.paths:
            raise ValueError("there must be at least one shard; got none. Run prepare.py, or look for a wrong folder.")
        self._buffers, self._places = [], []
        for number, path in enumerate(self.paths):
            buffer = _mapped(path)
            starts, lengths = _find_frames(buffer)
            _check(path, buffer, starts, lengths, bodies=check)
            self._buffers.append(buffer)
            self._places.append(np.stack([np.full_like(starts, number), starts, lengths], axis=1))
        self._places = np.concatenate(self._places)

    def __len__(self):
        return len(self._places)

    def __getitem__(self, index):
        number, start, length = self._places[index]
        return unpack_record(self._buffers[number][start : start + length])


def find_shards(folder, split):
    """The shards of one split in a folder, all of them, in order.

    Raises: ShardError if one of those that the names announce is not there.
    """
    paths = sorted(Path(folder).glob(f"{split}-*.tfrecord"))
    announced = int(paths[0].stem.rsplit("-", 1)[1]) if paths else 0
    missing = {shard_name(split, i, announced) for i in range(announced)} - {path.name for path in paths}
    if missing or len(paths) != announced:
        raise ShardError(f"{folder} must hold {announced} shards of {split!r}; missing: {', '.join(sorted(missing))}.")
    return paths


def shard_name(split, number, count):
    """File name of shard `number` of `count`."""
    return f"{split}-{number:05d}-of-{count:05d}.tfrecord"


def _mapped(path):
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return np.empty(0, "uint8")  # an empty file cannot be mapped
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), "uint8")


def _find_frames(buffer):
    """Where the payloads start and how long they are by their heads, int64 [N] each, in bytes; the last may be cut."""
    starts, lengths, at = [], [], 0
    while at < len(buffer):
        lengths.append(min(int.from_bytes(buffer[at : at + 8].tobytes(), "little"), 2**62))
        starts.append(at + 12)
        at += _FRAME + lengths[-1]
    return np.array(starts, "int64"), np.array(lengths, "int64")


def _check(path, buffer, starts, lengths, *, bodies):
    """Check that the last frame ends with the file, and the checksums: those of the heads always."""
    headed = starts[starts <= len(buffer)]
    bad = np.flatnonzero(masked_crc32c(buffer, headed - 12, np.full(len(headed), 8)) != _stored(buffer, headed - 4))
    if not len(bad) and len(starts) and starts[-1] + lengths[-1] + 4 > len(buffer):
        raise ShardError(
            f"{path}: record {len(starts) - 1} at byte {starts[-1] - 12} is truncated: the file ends in it. {REMEDY}"
        )
    if not len(bad) and bodies:
        # in parts, so that the checksums of a large file need little memory
        cuts = np.searchsorted(np.cumsum(lengths), np.arange(_CHUNK, lengths.sum(), _CHUNK))
        parts = zip(np.split(starts, cuts), np.split(lengths, cuts), strict=True)
        good = [masked_crc32c(buffer, start, size) == _stored(buffer, start + size) for start, size in parts]
        bad = np.flatnonzero(~np.concatenate(good))
    if len(bad):
        raise ShardError(
            f"{path}: record {bad[0]} at byte {starts[bad[0]] - 12} does not fit its checksum "
            f"({len(bad)} of {len(starts)} records). {REMEDY}"
        )


def _stored(buffer, places):
    """The uint32 at each place."""
    return buffer[places[:, None] + np.arange(4)].copy().view("<u4")[:, 0]
