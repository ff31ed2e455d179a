"""Searching in text and sequences: splitting by separators, longest common parts, identity search."""

import numpy as np


def text_segmentate(text, maxlen, seps="\n", strips=None):
    """Split a long text into pieces of at most `maxlen` characters, at the strongest separators that do.

    The text is cut after every `seps[0]`; neighbouring pieces are joined again while they fit; a piece that
    is still too long is cut at the next separator. Where no separator is left a piece stays longer than
    `maxlen`.

    Args:
        text: str.
        maxlen: length wanted, in characters, the separator included.
        seps: separators, strongest first: a str (each character is one) or a list of str.
        strips: characters removed at both ends of every piece, None for white space only.
    Returns:
        list of str.
    """
    text = text.strip().strip(strips)
    if not seps or len(text) <= maxlen:
        return [text]
    pieces = []
    for chunk in _chunks(text.split(seps[0]), seps[0], maxlen - 1):
        pieces.extend(text_segmentate(chunk, maxlen, seps[1:], strips))
    return [piece for piece in pieces if piece]


def _chunks(parts, separator, limit):
    """Yield neighbours joined by their separator, within `limit` characters and the last separator."""
    chunk = ""
    for part in parts[:-1]:
        if chunk and part and len(chunk) + len(part) > limit:
            yield chunk
            chunk = ""
        chunk += part + separator
    if chunk and len(chunk) + len(parts[-1]) > limit:
        yield chunk
        chunk = ""
    yield chunk + parts[-1]


def longest_common_substring(source, target):
    """Find the longest run of items that both sequences contain.

    c[i, j] = c[i - 1, j - 1] + 1 where source[i] = target[j], else 0; one row at a time, 0.1 s for 10,000 x
    10,000.

    Args:
        source, target: str, or lists of anything hashable.
    Returns:
        length, (start in source, end in source, start in target, end in target), ends not included; the first
        of several.
    """
    codes = {}
    source = [codes.setdefault(item, len(codes)) for item in source]
    target = np.array([codes.setdefault(item, len(codes)) for item in target], "int64")
    if not source or not len(target):
        return 0, (0, 0, 0, 0)
    length, span = 0, (0, 0, 0, 0)
    row = np.zeros(len(target) + 1, "int64")
    for i, item in enumerate(source, 1):
        row[1:] = (row[:-1] + 1) * (target == item)
        j = int(row.argmax())
        if row[j] > length:
            length = int(row[j])
            span = (i - length, i, j - length, j)
    return length, span


def longest_common_subsequence(source, target):
    """Find the longest sequence of items that both sequences contain in this order, with gaps allowed.

    The table L[i, j] of lengths grows by 0 or 1 along a row, so a row is one integer whose bit j is 0 where
    it grows, and the next row takes four operations on integers (Hyyro 2004, "Bit-parallel LCS-length
    computation revisited").

    Args:
        source, target: str, or lists of anything hashable.
    Returns:
        length, list of pairs (index in source, index in target); one of several.
    """
    full = (1 << len(target)) - 1
    places = {}
    for j, item in enumerate(target):
        places[item] = places.get(item, 0) | 1 << j
    rows = [full]
    for item in source:
        row = rows[-1]
        hits = row & places.get(item, 0)
        rows.append((row + hits | row - hits) & full)
    pairs = _pairs([row ^ full for row in rows], len(target))
    return len(pairs), pairs


def _pairs(rows, width):
    """Walk back through the table; bit j of rows[i] tells whether L[i, j] grows at j."""
    pairs = []
    length = rows[-1].bit_count()
    for i in range(len(rows) - 1, 0, -1):
        below = (1 << width) - 1
        if not length:
            break
        if (rows[i - 1] & below).bit_count() == length:
            continue  # the same length without source[i - 1]
        width = (rows[i] & below).bit_length() - 1
        pairs.append((i - 1, width))
        length -= 1
    return pairs[::-1]


def is_one_of(x, ys):
    """Tell whether `x` is one of the objects `ys`, by identity (arrays and layers have no usable ==)."""
    return any(x is y for y in ys)
