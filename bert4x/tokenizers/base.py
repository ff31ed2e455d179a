"""What all tokenizers share: pairs, truncation, batches, offsets."""

import numpy as np

from bert4x.tokenizers.rows import Part, content_length, pack, row_spans, truncate

PATTERNS = ("S*E*E", "S*ES*E")


class TokenizerBase:
    """Base class: a subclass says how a text becomes tokens, and what their ids are.

    A subclass defines `token_to_id`, `id_to_token`, `decode`, `_pieces(text)` (tokens without start and end)
    and `_trace(text)` (see `text.trace`), and calls `_set_special_ids` once its ids are known.

    Args:
        token_start: token put before a text, None for none.
        token_end: token put after a text, None for none.
        pre_tokenize: function text -> list of words, such as a Chinese word segmenter; None for none.
        token_translate: dict applied to the tokens of a text, inverted when decoding.
    """

    _token_pad = _token_unk = _token_mask = _token_unk_id = None

    def __init__(self, *, token_start="[CLS]", token_end="[SEP]", pre_tokenize=None, token_translate=None):
        self._token_start, self._token_end = token_start, token_end
        self._pre_tokenize = pre_tokenize
        self._token_translate = dict(token_translate or {})
        self._token_translate_inv = {new: old for old, new in self._token_translate.items()}

    def _set_special_ids(self, known):
        """Sets `_token_pad_id` and so on, None where the vocabulary (`known(token)`) has no such token."""
        for name in ("unk", "pad", "mask", "start", "end"):
            token = getattr(self, f"_token_{name}")
            setattr(self, f"_token_{name}_id", self.token_to_id(token) if known(token) else None)
        for name in ("start", "end"):
            token = getattr(self, f"_token_{name}")
            if token is not None and not known(token):
                raise ValueError(
                    f"token_{name} must be in the vocabulary, since every text gets it; {token!r} is not. "
                    f"Pass token_{name}=None to leave it out, or the name it has in this vocabulary."
                )
        self._lead = b"" if self._token_start is None else pack([self._token_start_id])
        self._tail = b"" if self._token_end is None else pack([self._token_end_id])

    def token_to_id(self, token):
        """Id of a token; that of the unknown token if the vocabulary lacks it."""
        raise NotImplementedError

    def id_to_token(self, i):
        """Token of an id."""
        raise NotImplementedError

    def tokens_to_ids(self, tokens):
        """Ids of a list of tokens."""
        return [self.token_to_id(token) for token in tokens]

    def ids_to_tokens(self, ids):
        """Tokens of a list (or array) of ids."""
        return [self.id_to_token(i) for i in ids]

    def decode(self, ids, tokens=None):
        """Text of a list of ids, or of tokens if those are given."""
        raise NotImplementedError

    def stem(self, token):
        """The part of a token that stands in the text."""
        return token

    def tokenize(self, text, maxlen=None):
        """Tokens of a text, with start and end token.

        Args:
            text: any string.
            maxlen: longest result, start and end included, in tokens; the end of the text is dropped.
        """
        tokens = self._pieces(_checked(text))
        lead = [] if self._token_start is None else [self._token_start]
        tail = [] if self._token_end is None else [self._token_end]
        if maxlen is not None:
            tokens = tokens[: content_length(maxlen, len(lead) + len(tail))]
        return lead + tokens + tail

    def encode(self, first_text, second_text=None, maxlen=None, pattern="S*E*E", truncate_from="right", *,
               offsets=False):
        """Ids and segment ids of a text or a pair of texts.

        While a pair is too long, one token of the text that then has more is dropped, of the first on ties.

        Args:
            first_text: a string, or a list of tokens as `tokenize` returns it.
            second_text: the same, or None.
            maxlen: longest result in tokens, the special ones included, which are never dropped.
            pattern: "S*E*E" is [CLS] a [SEP] b [SEP], "S*ES*E" is [CLS] a [SEP] [CLS] b [SEP].
            truncate_from: where tokens are dropped: "right" (the end), "left" (the beginning), or the place
                in the list of tokens (start token counted, negative: from the end) where one after another goes.
            offsets: also return the character range of every token.
        Returns: (ids, segments): two lists of int; segments are 0 for the first text and its special tokens,
            1 for the second. With `offsets` a third list: the half-open range (start, end) in the token's own
            text, None for special tokens and for texts given as tokens.
        Raises: ValueError if `maxlen` has no room for the special tokens.
        """
        _check_options(pattern, truncate_from)
        ids, first_length, spans = self._row(first_text, second_text, maxlen, pattern, truncate_from, offsets)
        ids = memoryview(ids).cast("i").tolist()
        segments = [0] * first_length + [1] * (len(ids) - first_length)
        return (ids, segments, spans) if offsets else (ids, segments)

    def encode_batch(self, first_texts, second_texts=None, maxlen=None, pattern="S*E*E",
                     truncate_from="right", *, offsets=False):
        """Ids and segment ids of many texts as arrays, padded on the right to the longest.

        Args:
            first_texts: iterable of what `encode` takes as first text.
            second_texts: iterable as long, or None.
            maxlen, pattern, truncate_from, offsets: as in `encode`.
        Shapes:  (B texts, T tokens of the longest row)
            returns: (ids, segments), int32 [B, T]; padding is the pad token's id (0 without one), segment 0.
                With `offsets` also int32 [B, T, 2], (-1, -1) where `encode` says None.
        """
        firsts = _texts(first_texts)
        seconds = [None] * len(firsts) if second_texts is None else _texts(second_texts)
        if len(firsts) != len(seconds):
            raise ValueError(f"Pairs need lists of one length; got {len(firsts)} and {len(seconds)} texts.")
        rows = self._rows(firsts, seconds, maxlen, pattern, truncate_from, offsets)
        lengths = np.array([len(ids) // 4 for ids, _, _ in rows], dtype="int32")
        columns = np.arange(lengths.max(initial=0), dtype="int32")
        filled = columns < lengths[:, None]
        ids = np.full(filled.shape, self._token_pad_id or 0, dtype="int32")
        ids[filled] = np.frombuffer(b"".join([ids for ids, _, _ in rows]), dtype="int32")
        segments = np.zeros_like(ids)
        if second_texts is not None:
            first_lengths = np.array([length for _, length, _ in rows], dtype="int32")
            segments[(columns >= first_lengths[:, None]) & filled] = 1
        return (ids, segments, _span_array(rows, filled.shape)) if offsets else (ids, segments)

    def rematch(self, text, tokens):
        """For each token, the positions of the characters of `text` that it came from.

        They are found through lower-casing, dropped accents and dropped characters. Tokens that are not in
        the text, and special tokens, get []; nothing is raised for them.

        Args:
            text: the string that was tokenized.
            tokens: its tokens as `tokenize` returns them.
        Returns: a list of ascending lists of int.
        """
        tokens = list(tokens)
        start = int(bool(tokens) and tokens[0] == self._token_start)
        stop = len(tokens) - int(len(tokens) > start and tokens[-1] == self._token_end)
        characters, starts, ends = self._trace(text)
        positions = [[] for _ in tokens]
        for i, covered in enumerate(self._match(characters, tokens[start:stop]), start):
            positions[i] = sorted({place for k in covered for place in range(starts[k], ends[k])})
        return positions

    def _pieces(self, text):
        raise NotImplementedError

    def _trace(self, text):
        raise NotImplementedError

    def _is_special(self, token):
        names = self._token_start, self._token_end, self._token_pad, self._token_unk, self._token_mask
        return token in names

    def _body(self, text):
        """Packed ids of a text, without start and end."""
        return pack(self.tokens_to_ids(self._pieces(text)))

    def _bodies(self, texts):
        return [self._body(text) for text in texts]

    def _match(self, characters, tokens):
        """For each token the range of `characters` that it covers, an empty one where it is not found."""
        cursor, found = 0, []
        for token in tokens:
            stem, at = self.stem(token), cursor
            if not stem or not characters.startswith(stem, cursor):
                stem, at = self._find(characters, token, cursor)
            cursor = at + len(stem) if at >= 0 else cursor
            found.append(range(at, cursor) if at >= 0 else range(0))
        return found

    def _find(self, characters, token, cursor):
        """(what stands in the text, its place or -1) for a token that is not next in the text as it is."""
        translated = token in self._token_translate_inv
        stem = self.stem(self._token_translate_inv.get(token, token))
        wanted = stem and (translated or not self._is_special(token))
        return stem, characters.find(stem, cursor) if wanted else -1

    def _spans(self, text):
        characters, starts, ends = self._trace(text)
        spans = []
        for covered in self._match(characters, self._pieces(text)):
            places = slice(covered.start, covered.stop)
            spans.append((min(starts[places]), max(ends[places])) if covered else None)
        return spans

    def _part(self, text, offsets):
        if isinstance(text, str):
            return Part(self._lead, self._body(text), self._tail, self._spans(text) if offsets else None)
        if not isinstance(text, (list, tuple)):
            _checked(text)
        start = int(bool(text) and text[0] == self._token_start)
        stop = len(text) - int(len(text) > start and text[-1] == self._token_end)
        ids = pack(self.tokens_to_ids(text))
        spans = [None] * (stop - start) if offsets else None
        return Part(ids[: 4 * start], ids[4 * start : 4 * stop], ids[4 * stop :], spans)

    def _row(self, first_text, second_text, maxlen, pattern, truncate_from, offsets):
        """(packed ids, tokens of the first part, spans or None) of one text or pair."""
        parts = [self._part(first_text, offsets)]
        if second_text is not None:
            parts.append(self._part(second_text, offsets))
            if pattern == "S*E*E":
                parts[1].lead = b""
        if maxlen is not None:
            truncate(parts, maxlen, truncate_from)
        packed = [b"".join((part.lead, part.body, part.tail)) for part in parts]
        return b"".join(packed), len(packed[0]) // 4, row_spans(parts) if offsets else None

    def _rows(self, firsts, seconds, maxlen, pattern, truncate_from, offsets):
        """`_row` of every text or pair; single strings cut on the right, which is most of what is asked, at once."""
        _check_options(pattern, truncate_from)
        simple = truncate_from == "right" and not offsets and all(second is None for second in seconds)
        if not simple or not all(isinstance(first, str) for first in firsts):
            options = maxlen, pattern, truncate_from, offsets
            return [self._row(first, second, *options) for first, second in zip(firsts, seconds, strict=True)]
        bodies = self._bodies(firsts)
        if maxlen is not None:
            room = 4 * content_length(maxlen, (len(self._lead) + len(self._tail)) // 4)
            bodies = [body[:room] for body in bodies]
        packed = [self._lead + body + self._tail for body in bodies]
        return [(ids, len(ids) // 4, None) for ids in packed]


def _checked(text):
    if not isinstance(text, str):
        raise TypeError(f"A text must be a str or a list of tokens; got {text!r}. Convert it first.")
    return text


def _check_options(pattern, truncate_from):
    if pattern not in PATTERNS:
        raise ValueError(f"pattern must be one of {PATTERNS}; got {pattern!r}.")
    is_place = isinstance(truncate_from, (int, np.integer)) and not isinstance(truncate_from, bool)
    if not is_place and truncate_from not in ("right", "left"):
        raise ValueError(f'truncate_from must be "right", "left" or an int; got {truncate_from!r}.')


def _texts(texts):
    if isinstance(texts, str):
        raise TypeError(f"A batch is a list of texts; got one str, {texts[:20]!r}. Use encode for one text.")
    texts = list(texts)
    if any(isinstance(text, tuple) for text in texts):
        raise TypeError(
            "A text must be a str or a list of tokens; got a tuple. For pairs: encode_batch(firsts, seconds)."
        )
    return texts


def _span_array(rows, shape):
    out = np.full((*shape, 2), -1, dtype="int32")
    for row, (_, _, spans) in zip(out, rows, strict=True):
        if spans:
            row[: len(spans)] = [span or (-1, -1) for span in spans]
    return out
