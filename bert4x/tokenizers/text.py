"""Unicode rules of BERT: character classes, cleaning, lower-casing, and where each character came from."""

import re
import unicodedata

CJK_RANGES = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)

# Stands in a folded text for a character whose folding depends on its neighbours. NUL never survives
# cleaning, so finding one (a memchr) tells that this text needs the slow path.
_CONTEXT = "\0"


class Memo(dict):
    """A table that computes a missing entry and keeps at most `limit` entries.

    A full table is emptied: one dict operation, hence safe between threads, and the frequent entries are back
    at once.

    Args:
        compute: function of the key; must be pure, since two threads may both call it.
        limit: entries kept.
        longest: longest key that is kept, in characters; None for keys without a length.
    """

    __slots__ = ("_compute", "_limit", "_longest")

    def __init__(self, compute, limit, *, longest=None):
        super().__init__()
        self._compute, self._limit, self._longest = compute, limit, longest

    def __missing__(self, key):
        value = self._compute(key)
        if self._longest is None or len(key) <= self._longest:
            if len(self) >= self._limit:
                self.clear()
            self[key] = value
        return value


def is_cjk(character):
    """True for Chinese characters in BERT's sense: the ideograph blocks, neither kana nor hangul."""
    code = ord(character)
    return any(first <= code <= last for first, last in CJK_RANGES)


def is_punctuation(character):
    """True for every ASCII sign that is no letter, digit or space, and for Unicode category P."""
    code = ord(character)
    if code < 128:
        return 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126
    return unicodedata.category(character).startswith("P")


def is_space(character):
    """True for tab, newline, carriage return and Unicode category Zs."""
    return character in "\t\n\r" or unicodedata.category(character) == "Zs"


def is_control(character):
    """True for what is dropped: U+FFFD, and the categories Cc and Cf but for tab, newline and return."""
    if character in "\t\n\r":
        return False
    return character == "\ufffd" or unicodedata.category(character) in ("Cc", "Cf")


def lowercase_and_normalize(text):
    """Lower case, canonical decomposition (NFD), and accents (category Mn) dropped."""
    decomposed = unicodedata.normalize("NFD", text.lower())
    return "".join(character for character in decomposed if unicodedata.category(character) != "Mn")


def _clean(code):
    character = chr(code)
    if is_space(character):
        return " "
    if is_control(character):
        return ""
    return f" {character} " if is_cjk(character) or is_punctuation(character) else character


def _fold(code):
    folded = lowercase_and_normalize(chr(code))
    # A capital sigma has two lower cases; marks that are not dropped are put in order by NFD.
    if code == ord("Σ") or any(map(unicodedata.combining, folded)):
        return _CONTEXT
    return folded.translate(_CLEANED)


# Tables for str.translate: code point -> what stands in its place. They depend on no vocabulary, so all
# tokenizers share them. 2^16 entries hold every character in common use, in about 10 MB.
_CLEANED = Memo(_clean, 1 << 16)
_FOLDED = Memo(_fold, 1 << 16)


def space_out(text, do_lower_case):
    """Text cleaned, folded if asked, and with spaces around each CJK and punctuation character.

    `.split()` of the result gives the words of BERT's basic tokenizer (str.split also cuts at U+2028 and
    U+2029, as Google's does).
    """
    if not do_lower_case:
        return text.translate(_CLEANED)
    folded = text.translate(_FOLDED)
    return lowercase_and_normalize(text).translate(_CLEANED) if _CONTEXT in folded else folded


# Characters that are words of their own wherever they stand, for the fast path of batches. Not all of them: one that
# is missing here costs time, not correctness. All have one UTF-16 unit.
_ALONE_RANGES = (
    "!-/", ":-@", "[-`", "{-~", "\u2010-\u2027", "\u3001-\u3003", "\u3008-\u3011", "\u3400-\u4dbf", "\u4e00-\u9fff",
    "\uff01-\uff03", "\uff05-\uff0a", "\uff0c-\uff0f", "\uff1a-\uff1b", "\uff1f-\uff20",
)
ALONE = "".join(chr(code) for first, _, last in _ALONE_RANGES for code in range(ord(first), ord(last) + 1))

# Splitting by RUNS gives stretches of such characters and spaces at even places, and the runs between at odd ones.
RUNS = re.compile(f"([^ {''.join(_ALONE_RANGES).replace('[', chr(92) + '[')}]+)")


def trace(text, do_lower_case):
    """The characters that tokens are made of, each with the range of `text` that it came from.

    A dropped accent counts to the letter before it, so that a span never cuts an accent off.

    Args:
        text: any string.
        do_lower_case: fold case and accents as `space_out` does.
    Returns: (characters, starts, ends): the words of `space_out(text)` joined without spaces, and for each
        character the half-open range `starts[i]:ends[i]` of the text.
    """
    table = _FOLDED if do_lower_case else _CLEANED
    units = [(table[ord(character)], index) for index, character in enumerate(text)]
    if any(unit == _CONTEXT for unit, _ in units):
        units = [(_clean_mark(character), index) for character, index in _fold_pairs(text)]
    characters, starts, ends, attached = [], [], [], False
    for unit, index in units:
        kept = unit.strip()
        if kept:
            characters.append(kept)
            starts += [index] * len(kept)
            ends += [index + 1] * len(kept)
            attached = True
        elif unit:
            attached = False  # a space
        elif attached and do_lower_case and unicodedata.category(text[index]) == "Mn":
            ends[-1] = max(ends[-1], index + 1)
    return "".join(characters), starts, ends


def _clean_mark(character):
    return "" if unicodedata.category(character) == "Mn" else _CLEANED[ord(character)]


def _fold_pairs(text):
    """NFD of the lower-cased text as (character, index of its source) pairs."""
    pairs = []
    for index, lowered in enumerate(_lowered_characters(text)):
        pairs.extend((character, index) for character in unicodedata.normalize("NFD", lowered))
    ordered, marks = [], []
    for pair in pairs:
        if unicodedata.combining(pair[0]):
            marks.append(pair)
            continue
        ordered += sorted(marks, key=_combining_class)
        ordered.append(pair)
        marks.clear()
    return ordered + sorted(marks, key=_combining_class)


def _combining_class(pair):
    return unicodedata.combining(pair[0])


def _lowered_characters(text):
    """The lower case of each character, in the context of the text (only the capital sigma looks at it)."""
    if "Σ" not in text:
        return [character.lower() for character in text]
    # The dotted I alone becomes two characters; a plain I keeps the lengths equal and sigma the same.
    whole = text.replace("İ", "I").lower()
    return [low if old == "Σ" else old.lower() for old, low in zip(text, whole, strict=True)]
