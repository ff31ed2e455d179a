"""Tokenizers: text to token ids and back, with character offsets."""

from bert4x.tokenizers.base import TokenizerBase
from bert4x.tokenizers.bytepair import BpeTokenizer
from bert4x.tokenizers.cpm import CPMTokenizer
from bert4x.tokenizers.sentencepiece import SpTokenizer
from bert4x.tokenizers.text import lowercase_and_normalize
from bert4x.tokenizers.vocab import character_vocab, load_vocab, save_vocab
from bert4x.tokenizers.wordpiece import Tokenizer

__all__ = [
    "BpeTokenizer",
    "CPMTokenizer",
    "SpTokenizer",
    "Tokenizer",
    "TokenizerBase",
    "character_vocab",
    "load_vocab",
    "lowercase_and_normalize",
    "save_vocab",
]
