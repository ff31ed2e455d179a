"""CPM's tokenizer: a SentencePiece model behind a word segmenter, with characters that stand for space and newline."""

import re
import warnings

from bert4x.tokenizers.sentencepiece import SpTokenizer

SPACE, NEWLINE = "\u2582", "\u2583"
# What piece 3, the newline, is called in the first release of the file, which does not know U+2583.
OLD_NEWLINE = "<cls>"

_HIDDEN = str.maketrans({" ": SPACE, "\n": NEWLINE})
_SHOWN = str.maketrans({" ": None, SPACE: " ", NEWLINE: "\n"})
_NEWLINES = re.compile(f"({NEWLINE})")


def jieba_words(text):
    """Words of a Chinese text, by jieba's accurate mode, as CPM was trained; joined they are the text.

    Raises: ImportError with the pip line if jieba is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # jieba imports pkg_resources, deprecated in some releases of setuptools
            import jieba
    except ImportError as error:
        raise ImportError(
            'CPMTokenizer cuts texts into words with jieba: pip install "bert4x[cpm]". With another segmenter, or '
            "pre_tokenize=None for none, it works without, but gives the model ids unlike those it was "
            "trained on."
        ) from error
    return jieba.lcut(text)


class CPMTokenizer(SpTokenizer):
    r"""The tokenizer of CPM-LM: words joined by spaces, " " written as U+2582 and "\n" as U+2583, then SentencePiece.

    Ids of every release of the model file: <unk> 0, newline 3, <pad> 5, <eod> 7 (end of document), space 10. There is
    no start and no end token.

    Args:
        sp_model_path: path of the .model file (either release), or a directory with one.
        pre_tokenize: function text -> list of words that joined are the text; jieba's accurate mode by default, None
            for none. The ids depend on it, so the results of the model do too.
        options: as in `SpTokenizer`.
    """

    def __init__(self, sp_model_path, *, pre_tokenize=jieba_words, **options):
        options = {"token_start": None, "token_end": None, **options}
        super().__init__(sp_model_path, pre_tokenize=pre_tokenize, **options)
        if not self._has(NEWLINE) and self._has(OLD_NEWLINE):
            self._token_translate.setdefault(NEWLINE, OLD_NEWLINE)
            self._token_translate_inv.setdefault(OLD_NEWLINE, NEWLINE)

    def decode(self, ids, tokens=None):
        """Text of a list (or array) of ids, or of tokens: spaces dropped, then U+2582 and U+2583 turned back."""
        tokens = self.ids_to_tokens(ids) if tokens is None else tokens
        # The old file calls the newline a control piece, which decoding would drop.
        shown = [self._token_translate_inv.get(token, token) for token in tokens]
        return super().decode(None, tokens=shown).translate(_SHOWN)

    def _joined(self, text):
        words = [text] if self._pre_tokenize is None else self._pre_tokenize(text)
        return " ".join(word.translate(_HIDDEN) for word in words)

    def _pieces(self, text):
        pieces = self._sp_model.encode_as_pieces(self._joined(text))
        if self._token_translate:  # a run of characters that the model lacks is one piece: get the newlines out of it
            pieces = [part for piece in pieces for part in _NEWLINES.split(piece) if part]
        return [self._token_translate.get(piece, piece) for piece in pieces]
