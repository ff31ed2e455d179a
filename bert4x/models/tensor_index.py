"""Where the bytes of a TensorFlow checkpoint's variables lie: what its .index file says, read without TensorFlow."""

from pathlib import Path

_MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
_FOOTER = 48
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # kinds of fields of a protocol buffer
_SHARD, _OFFSET, _SIZE, _SLICES = 3, 4, 5, 7  # fields of BundleEntryProto


def tensor_places(prefix):
    """{variable: (data file, first byte, bytes)} of a checkpoint; empty if its index is not of the usual form.

    The index is a sorted table of LevelDB: blocks of entries (bytes of the key shared with the previous one, further
    bytes of the key, bytes of the value, key, value), a block of blocks, and a footer that says where this is.
    Variables that were saved in slices are left out.
    """
    table = Path(f"{prefix}.index").read_bytes()
    if table[-8:] != _MAGIC:
        return {}
    _, at = _handle(table, len(table) - _FOOTER)
    blocks = [value for _, value in _entries(table, _handle(table, at)[0])]
    rows = [row for block in blocks for row in _entries(table, _handle(block, 0)[0])]
    header = next((_fields(value) for name, value in rows if not name), {})
    shards = header.get(1, 1)
    places = {}
    for name, value in rows:
        entry = _fields(value)
        if name and _SLICES not in entry:
            file = f"{prefix}.data-{entry.get(_SHARD, 0):05d}-of-{shards:05d}"
            places[name.decode("utf-8", "replace")] = file, entry.get(_OFFSET, 0), entry.get(_SIZE, 0)
    return places


def _varint(data, at):
    """(number, place behind it)."""
    number = shift = 0
    while True:
        byte = data[at]
        at, number, shift = at + 1, number | (byte & 127) << shift, shift + 7
        if byte < 128:
            return number, at


def _handle(data, at):
    """((first byte, bytes) of a block, place behind this handle)."""
    begin, at = _varint(data, at)
    size, at = _varint(data, at)
    return (begin, size), at


def _entries(table, place):
    """Pairs (key, value) of the block at (first byte, bytes); none if it is compressed."""
    begin, size = place
    block, kind = table[begin : begin + size], table[begin + size]
    if kind:
        return
    restarts = int.from_bytes(block[-4:], "little")
    at, end, key = 0, len(block) - 4 * (restarts + 1), b""
    while at < end:
        shared, at = _varint(block, at)
        fresh, at = _varint(block, at)
        length, at = _varint(block, at)
        key, at = key[:shared] + block[at : at + fresh], at + fresh
        yield key, block[at : at + length]
        at += length


def _fields(message):
    """{number: value} of a protocol buffer: whole numbers, and bytes of what is inside."""
    found, at = {}, 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
        else:
            length, at = _varint(message, at) if kind == _BYTES else ({_FIXED32: 4, _FIXED64: 8}[kind], at)
            value, at = message[at : at + length], at + length
        found[tag >> 3] = value
    return found
