"""Files and strings: `open` with random access to lines, conversions between encodings, widths and cases."""

import array
import builtins
import gzip
import mmap
import os
import re
import unicodedata


class open:
    """A text file in UTF-8 that may be gzipped and whose lines may be reached by number.

    Everything a file object offers (`read`, `readlines`, `write`, `with`, iteration) works; with
    `indexable=True` also `len(f)` lines and `f[i]`, so that a file larger than memory can be shuffled as the
    data of a `DataGenerator`. Lines keep their "\\n". The index lives in memory (8 bytes a line); no file is
    written beside the data.

    Args:
        name: path; a name that ends in ".gz" is read and written through gzip.
        mode: as in Python; with "b" bytes come out, otherwise str.
        encoding: encoding of a text file, None for UTF-8.
        errors: what to do with bytes that do not decode, as in Python: "strict", "ignore", "replace".
        indexable: scan the file once for its line starts; needs a mode that reads and a file that is not
            gzipped.
    Raises:
        ValueError if an indexable file is gzipped or opened for writing.
    """

    def __init__(self, name, mode="r", encoding=None, errors="strict", indexable=False):
        self.name = name
        self.mode = mode
        self.encoding = None if "b" in mode else encoding or "utf-8"
        self.errors = errors
        zipped = os.fspath(name).endswith(".gz")
        if indexable and (zipped or mode not in ("r", "rb", "rt")):
            raise ValueError(
                "an indexable file must be uncompressed and open for reading; "
                f"got {os.fspath(name)!r} with mode {mode!r}. Unpack it, or leave indexable=False."
            )
        opener = gzip.open if zipped else builtins.open
        mode = mode if "b" in mode or "t" in mode else mode + "t"  # gzip takes a bare "r" for "rb"
        self.file = opener(name, mode, encoding=self.encoding, errors=None if "b" in mode else errors)
        self.offsets = None
        if indexable:
            self.offsets, self._bytes = _line_index(name)

    def __getattr__(self, name):
        if name == "file":  # not opened: __init__ failed, or a copy is being made
            raise AttributeError(name)
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def __iter__(self):
        """Yield line after line; an indexable file starts at its first line every time."""
        return iter(self.file) if self.offsets is None else (self[i] for i in range(len(self)))

    def __next__(self):
        return next(self.file)

    def __bool__(self):
        return True

    def __len__(self):
        self._require_index()
        return len(self.offsets) - 1

    def __getitem__(self, index):
        """Return line number `index`, or a list of lines for a slice."""
        self._require_index()
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"line {index} of {len(self)} lines in {os.fspath(self.name)!r}")
        line = self._bytes[self.offsets[position]:self.offsets[position + 1]]
        if self.encoding is None:
            return line
        # Text files translate line ends, and f[i] must equal what iteration gave.
        return re.sub("\r\n$", "\n", line.decode(self.encoding, self.errors))

    def close(self):
        """Close the file; an index becomes unusable with it."""
        self.file.close()
        if self.offsets is not None and not isinstance(self._bytes, bytes):
            self._bytes.close()

    def _require_index(self):
        if self.offsets is None:
            raise TypeError(
                f"lines of {os.fspath(self.name)!r} have no numbers: open it with indexable=True."
            )


def _line_index(name):
    """Return the byte offsets of the lines, end of the last one included, and the file as bytes."""
    offsets = array.array("q", [0])
    with builtins.open(name, "rb") as file:
        for line in file:
            offsets.append(offsets[-1] + len(line))
        if offsets[-1] == 0:
            return offsets, b""  # an empty file cannot be mapped
        # A map has no position, so threads and forked workers can read lines at the same time.
        return offsets, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def is_string(s):
    """Tell whether `s` is a str."""
    return isinstance(s, str)


def string_matching(s, keywords):
    """Tell whether any of the regular expressions `keywords` is found in `s`."""
    return any(re.search(keyword, s) for keyword in keywords)


def convert_to_unicode(text, encoding="utf-8", errors="ignore"):
    """Return `text` as str; bytes are decoded, other types are a TypeError."""
    if isinstance(text, str):
        return text
    if isinstance(text, (bytes, bytearray)):
        return bytes(text).decode(encoding, errors)
    raise TypeError(f"text must be str or bytes; got {type(text).__name__}.")


def convert_to_str(text, encoding="utf-8", errors="ignore"):
    """Return `text` as str, the same as `convert_to_unicode` since Python 3."""
    return convert_to_unicode(text, encoding, errors)


def lowercase_and_normalize(text):
    """Lower-case `text` and strip its accents: lower, then NFD, then drop the combining marks (category Mn).

    This is what BERT's uncased vocabularies were made with. The length may change (Hangul syllables fall
    apart, `İ` becomes one letter), so take character positions from `Tokenizer.rematch`, never from the
    result.
    """
    text = unicodedata.normalize("NFD", text.lower())
    return "".join(character for character in text if unicodedata.category(character) != "Mn")


def strQ2B(ustring):
    """Turn full-width characters into half-width ones: U+3000 into a space, U+FF01..U+FF5E minus 0xFEE0."""
    return ustring.translate(_HALF_WIDTH)


_HALF_WIDTH = {0x3000: 0x20} | {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}


class _Uniout:
    """Old scripts import `uniout` to print Chinese under Python 2; there is nothing to do now."""


uniout = _Uniout()


def find_splits(path, names=("train", "dev|valid", "test")):
    """The files of a data set: one path per name, None for a split that is not there.

    Args:
        path: a folder, or a folder and how the names of the files begin (`data/iflytek`: iflytek.train.jsonl.gz ...).
        names: of the splits, as they stand in the file names before a dot; alternatives with |.
    Raises: FileNotFoundError if no file has any of the names.
    """
    path = os.fspath(path)
    folder, start = (path, "") if os.path.isdir(path) else os.path.split(path)
    files = sorted(name for name in os.listdir(folder or ".") if name.startswith(start))
    found = [[name for name in files if re.search(rf"\b({split})\.", name)] for split in names]
    if not any(found):
        raise FileNotFoundError(f"{path} must hold files named {', '.join(names)} (before a dot); got {files[:10]}")
    return [os.path.join(folder, split[0]) if split else None for split in found]
