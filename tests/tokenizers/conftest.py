"""Tokenizers over the published vocabularies and a small one."""

import warnings

import pytest

from bert4x.tokenizers import Tokenizer, load_vocab
from tests.tokenizers.oracle import SMALL_VOCAB

VOCABS = ("bert_chinese_vocab.txt", "bert_uncased_vocab.txt", "gpt2_ml_clue_vocab.txt", "cdial_gpt_vocab.txt")


@pytest.fixture
def small():
    """A lower-casing tokenizer over the small vocabulary of the specification's examples, and a little more."""
    return Tokenizer(SMALL_VOCAB, do_lower_case=True)


@pytest.fixture(scope="session", params=("small", *VOCABS))
def vocab(request):
    """Each vocabulary as a dict."""
    if request.param == "small":
        return SMALL_VOCAB
    return load_vocab(request.getfixturevalue("shared_data") / "vocabs" / request.param)


@pytest.fixture(scope="session", params=(True, False), ids=("lower", "cased"))
def any_tokenizer(request, vocab):
    """A tokenizer for each vocabulary, with and without lower-casing."""
    mask = "[MASK]" if "[MASK]" in vocab else None
    return Tokenizer(vocab, do_lower_case=request.param, token_mask=mask)


@pytest.fixture(scope="session")
def chinese(shared_data):
    """The tokenizer of the Chinese BERT."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return Tokenizer(shared_data / "vocabs" / "bert_chinese_vocab.txt", do_lower_case=True)
