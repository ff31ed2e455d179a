"""WordPiece: the tokenizer of BERT and most of its relatives."""

import os
import re
import warnings
from collections.abc import Mapping

import numpy as np

from bert4x.tokenizers.base import TokenizerBase
from bert4x.tokenizers.rows import pack
from bert4x.tokenizers.text import (
    ALONE,
    RUNS,
    Memo,
    is_cjk,
    is_punctuation,
    lowercase_and_normalize,
    space_out,
    trace,
)
from bert4x.tokenizers.vocab import VOCAB_FILE, load_wordpiece, save_vocab, write_settings

# Words kept in each memo, and the longest one: some 10 MB at most.
MEMO_SIZE = 1 << 16
MEMO_LONGEST = 32

_SAVED = (
    "do_lower_case", "word_maxlen", "token_pad", "token_unk", "token_mask", "token_start", "token_end",
    "token_translate", "special_tokens",
)
_CONTRACTIONS = frozenset(["re", "m", "s", "t", "ve", "d", "ll"])


class Tokenizer(TokenizerBase):
    """WordPiece as in Google's BERT: same ids for any text, but tokens keep their text when unknown.

    Lower-casing and accent stripping (if asked), control characters dropped, spaces around CJK and
    punctuation, then in every word the longest vocabulary entries from the left, those inside a word marked
    by "##". A word that cannot be put together stays one token, whose id is that of [UNK].

    A tokenizer may be used by several threads and pickled; its memory is bounded.

    Args:
        token_dict: dict token -> id, path of a vocabulary file, or a directory with vocab.txt and perhaps
            tokenizer_config.json, whose settings hold unless given here.
        do_lower_case: fold case and accents; None means what the directory says, else False.
        word_maxlen: longest word that is cut into pieces, in characters; None means what the directory says,
            else 200.
        options: token_start, token_end, pre_tokenize, token_translate as in `TokenizerBase`;
            token_pad, token_unk, token_mask: names of these tokens, default "[PAD]", "[UNK]", "[MASK]";
            special_tokens: tokens kept whole when they stand in a text; True for those five. The default None
            cuts "[MASK]" in a text into "[", "mask", "]" as Google's does.
    Raises: ValueError if the vocabulary lacks the start, end or unknown token, without which no text has
        right ids; a missing pad or mask token is a warning, and its id None.
    """

    def __init__(self, token_dict, do_lower_case=None, word_maxlen=None, **options):
        saved = {}
        if not isinstance(token_dict, Mapping):
            token_dict, saved = load_wordpiece(token_dict)
        given = {"do_lower_case": do_lower_case, "word_maxlen": word_maxlen}
        given = {name: value for name, value in given.items() if value is not None}
        self._configure(dict(token_dict), **{**saved, **given, **options})

    def _configure(self, token_dict, *, do_lower_case=False, word_maxlen=200, special_tokens=None,
                   token_pad="[PAD]", token_unk="[UNK]", token_mask="[MASK]", **options):
        super().__init__(**options)
        self._token_dict = token_dict
        self._token_dict_inv = {index: token for token, index in token_dict.items()}
        self._vocab_size = max(token_dict.values(), default=-1) + 1
        self._do_lower_case, self._word_maxlen = bool(do_lower_case), word_maxlen
        self._token_pad, self._token_unk, self._token_mask = token_pad, token_unk, token_mask
        self._longest_token = max(map(len, token_dict), default=0)
        self._check_special()
        self._set_special_ids(token_dict.__contains__)
        self._set_kept_whole(special_tokens)
        self._make_memos()

    def _check_special(self):
        if self._token_unk not in self._token_dict:
            raise ValueError(
                f"A vocabulary must have a token for unknown words; {self._token_unk!r} is not among its "
                f"{len(self._token_dict)} tokens. Add it, or pass the name it has there as token_unk=."
            )
        names = [name for name in (self._token_pad, self._token_mask) if name is not None]
        missing = [name for name in names if name not in self._token_dict]
        if missing:
            warnings.warn(
                f"The vocabulary lacks {' and '.join(missing)}; its id is None (padding is 0). Pass its name "
                "there as token_pad= or token_mask=, or None if there is none.",
                stacklevel=4,
            )

    def _set_kept_whole(self, special_tokens):
        names = special_tokens or ()
        if special_tokens is True:
            names = (self._token_pad, self._token_unk, self._token_start, self._token_end, self._token_mask)
            names = [name for name in names if name in self._token_dict]
        unknown = [name for name in names if name not in self._token_dict]
        if unknown:
            raise ValueError(f"special_tokens must be in the vocabulary; it lacks {unknown}. Remove them.")
        self._special_tokens = sorted(set(names), key=len, reverse=True)
        choices = "|".join(map(re.escape, self._special_tokens))
        self._special_pattern = re.compile(f"({choices})") if choices else None

    def _make_memos(self):
        self._word_pieces = Memo(self._split_word, MEMO_SIZE, longest=MEMO_LONGEST)
        self._word_ids = Memo(self._pack_word, MEMO_SIZE, longest=MEMO_LONGEST)
        self._run_ids = Memo(self._pack_run, MEMO_SIZE, longest=MEMO_LONGEST)
        self._alone = None

    def __getstate__(self):
        dropped = "_word_pieces", "_word_ids", "_run_ids", "_alone"
        return {name: value for name, value in self.__dict__.items() if name not in dropped}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._make_memos()

    def token_to_id(self, token):
        """Id of a token; that of [UNK] if the vocabulary lacks it."""
        return self._token_dict.get(token, self._token_unk_id)

    def id_to_token(self, i):
        """Token of an id; ValueError if the vocabulary has none."""
        token = self._token_dict_inv.get(i)
        if token is None:
            raise ValueError(f"An id must be one of the vocabulary, below {self._vocab_size}; got {i}.")
        return token

    def stem(self, token):
        """A token without its "##"."""
        return token[2:] if token[:2] == "##" else token

    def _is_special(self, token):
        return (len(token) > 2 and token[0] == "[" and token[-1] == "]") or super()._is_special(token)

    def _words(self, text):
        """Words of a text; one that stays whole (a special token, pre-tokenizer's word) comes as (word,)."""
        words = []
        segments = self._special_pattern.split(text) if self._special_pattern else [text]
        for i, segment in enumerate(segments):
            if i % 2:
                words.append((segment,))
            elif self._pre_tokenize is None:
                words += space_out(segment, self._do_lower_case).split()
            else:
                words += self._pre_tokenized(segment)
        return words

    def _pre_tokenized(self, text):
        words = []
        for word in self._pre_tokenize(lowercase_and_normalize(text) if self._do_lower_case else text):
            if word in self._token_dict:
                words.append((word,))
            else:
                words += space_out(word, self._do_lower_case).split()
        return words

    def _split_word(self, word):
        """Tuple of the pieces of one word, by greedy longest match from the left."""
        if isinstance(word, tuple):
            return tuple(self._token_translate.get(token, token) for token in word)
        pieces = self._greedy_pieces(word) or (word,)
        if self._token_translate:
            pieces = tuple(self._token_translate.get(piece, piece) for piece in pieces)
        return pieces

    def _greedy_pieces(self, word):
        """Tuple of pieces, None if the word is too long or the vocabulary cannot make it up."""
        if len(word) > self._word_maxlen:
            return None
        pieces, start, prefix = [], 0, ""
        while start < len(word):
            stop = min(len(word), start + self._longest_token)
            while stop > start and prefix + word[start:stop] not in self._token_dict:
                stop -= 1
            if stop == start:
                return None
            pieces.append(prefix + word[start:stop])
            start, prefix = stop, "##"
        return tuple(pieces)

    def _pack_word(self, word):
        return pack(self.tokens_to_ids(self._split_word(word)))

    def _pack_run(self, run):
        return b"".join([self._word_ids[word] for word in space_out(run, self._do_lower_case).split()])

    def _pieces(self, text):
        return [piece for word in self._words(text) for piece in self._word_pieces[word]]

    def _body(self, text):
        return b"".join([self._word_ids[word] for word in self._words(text)])

    def _bodies(self, texts):
        """`_body` of each text, with the characters that stand alone looked up in one array, all at once."""
        if self._pre_tokenize is not None or self._special_pattern is not None:
            return super()._bodies(texts)
        # The lower case of a capital sigma depends on what follows, even beyond punctuation: such a text is one run.
        texts = [["", text] if "Σ" in text else RUNS.split(text) for text in texts]
        alone = "".join([stretch for parts in texts for stretch in parts[::2]]).replace(" ", "")
        packed = self._alone_ids()[np.frombuffer(alone.encode("utf-16-le"), dtype="<u2")].tobytes()
        place = 0
        for parts in texts:
            parts[1::2] = map(self._run_ids.__getitem__, parts[1::2])
            for i in range(0, len(parts), 2):
                start, place = place, place + 4 * (len(parts[i]) - parts[i].count(" "))
                parts[i] = packed[start:place]
        return [b"".join(parts) for parts in texts]

    def _alone_ids(self):
        """Array code -> id of the characters that stand alone; made once, when it is first needed."""
        if self._alone is None:
            table = np.zeros(1 << 16, dtype="int32")
            table[list(map(ord, ALONE))] = [self.token_to_id(*self._split_word(word)) for word in ALONE]
            self._alone = table
        return self._alone

    def _trace(self, text):
        if self._special_pattern is None:
            return trace(text, self._do_lower_case)
        characters, starts, ends, offset = "", [], [], 0
        for i, segment in enumerate(self._special_pattern.split(text)):
            length = len(segment)
            whole = segment, range(length), range(1, length + 1)
            traced = whole if i % 2 else trace(segment, self._do_lower_case)
            characters += traced[0]
            starts += [offset + place for place in traced[1]]
            ends += [offset + place for place in traced[2]]
            offset += length
        return characters, starts, ends

    def _find(self, characters, token, cursor):
        stem, at = super()._find(characters, token, cursor)
        if at < 0 and self._do_lower_case and not self._is_special(token):
            stem = "".join(space_out(stem, True).split())  # a token that someone made from the text itself
            at = characters.find(stem, cursor) if stem else -1
        return stem, at

    def decode(self, ids, tokens=None):
        """Readable text: special tokens dropped, pieces joined, spaces where the languages put them.

        No space next to a CJK character or before punctuation after a word; a space after punctuation unless
        that is full-width, opening or joins two words. Where the text had spaces is not known: to cut a part
        out of a text, use offsets.

        Args:
            ids: list or array of ids.
            tokens: used instead of the ids if given.
        """
        tokens = self.ids_to_tokens(ids) if tokens is None else tokens
        tokens = [self._token_translate_inv.get(token, token) for token in tokens]
        text, before = "", ""
        for token in tokens:
            if not token or self._is_special(token):
                continue
            stem = self.stem(token)
            if text and stem == token and _needs_space(before, text, token):
                text += " "
            before, text = text, text + stem
        return text

    def save_pretrained(self, directory):
        """Writes vocab.txt and tokenizer_config.json, which `Tokenizer(directory)` and transformers read.

        A `pre_tokenize` function cannot be written: a warning says that it must be given again.
        """
        if self._pre_tokenize is not None:
            warnings.warn(
                "pre_tokenize is a function and is not saved; pass it to Tokenizer(directory, ...) again.",
                stacklevel=2,
            )
        settings = {name: getattr(self, f"_{name}") for name in _SAVED}
        shared = {"tokenizer_class": "BertTokenizer", "do_lower_case": self._do_lower_case}
        os.makedirs(directory, exist_ok=True)
        save_vocab(os.path.join(directory, VOCAB_FILE), self._token_dict)
        write_settings(directory, settings, **shared, strip_accents=None, tokenize_chinese_chars=True)


def _needs_space(before, text, token):
    """Whether a space stands between `text` and a new word; `before` is the text without its last token."""
    last = text[-1]
    if is_punctuation(last):
        if ord(last) > 127 or last in "+-/={(<[":
            return False
        if last == "'" and token in _CONTRACTIONS:
            return False
        return not (last == "." and before[-1:].isdigit() and token[0].isdigit())
    return not (is_cjk(last) or is_cjk(token[0]) or is_punctuation(token[0]))
