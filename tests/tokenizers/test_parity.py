"""Ids against transformers' BertTokenizer (the Rust one): equal, but for differences of listed kinds.

Kinds, all of them departures of that library from Google's BERT: (1) ideographs U+2B820-2B91F are not isolated;
(2) private-use characters are dropped; (3) punctuation, marks, formats and lower cases that Unicode added or moved
after version 3.2 follow other tables; (4) a final sigma is lower-cased like any other; (5) words over 100 characters
are unknown; (6) special tokens in a text are kept whole; (7) lone surrogates cannot be passed to it.
"""

import random
import unicodedata
from unicodedata import ucd_3_2_0

import pytest

from bert4x.tokenizers import Tokenizer
from bert4x.tokenizers.text import space_out
from tests.tokenizers.conftest import VOCABS
from tests.tokenizers.oracle import HARD, SMALL_VOCAB, random_texts

pytestmark = pytest.mark.parity
transformers = pytest.importorskip("transformers")


def listed(character):
    """Whether a character is of kind 1, 2 or 3, as far as it can be told without trying."""
    category = unicodedata.category(character)
    if 0x2B820 <= ord(character) <= 0x2B91F or category in ("Co", "Cn"):
        return True
    changed = ucd_3_2_0.category(character) != category
    return changed and (category[0] in "PM" or category in ("Cf", "So"))


@pytest.fixture(scope="module", params=(True, False), ids=("lower", "cased"))
def lower(request):
    return request.param


@pytest.fixture(scope="module")
def theirs_of(tmp_path_factory):
    def load(ours):
        folder = tmp_path_factory.mktemp("tokenizer")
        ours.save_pretrained(folder)
        return transformers.BertTokenizer.from_pretrained(folder)
    return load


def their_words(theirs, text):
    rust = theirs.backend_tokenizer
    return [word for word, _ in rust.pre_tokenizer.pre_tokenize_str(rust.normalizer.normalize_str(text))]


@pytest.fixture(scope="module")
def differing(lower, theirs_of):
    """Every character that they treat differently between two letters."""
    theirs = theirs_of(Tokenizer(SMALL_VOCAB, do_lower_case=lower))
    source = random.Random(0)
    found = set()
    for code in range(0x110000):
        character = chr(code)
        category = unicodedata.category(character)
        # A million code points are private or unassigned and behave alike: a sample of them will do.
        if category != "Cs" and (category not in ("Co", "Cn") or source.random() < 0.02):
            text = f"a{character}b"
            if their_words(theirs, text) != space_out(text, lower).split():
                found.add(character)
    return found


def test_every_differing_character_is_of_a_listed_kind(differing):
    unlisted = [f"U+{ord(c):04X} {unicodedata.category(c)}" for c in sorted(differing) if not listed(c)]
    assert not unlisted
    assert "\U0002b820" in differing  # the comparison does find what it must


def comparable(text, differing):
    """The text without what the listed kinds speak of."""
    kept = [c for c in text if c not in differing and c != "Σ" and not 0xD800 <= ord(c) < 0xE000
            and unicodedata.category(c) not in ("Co", "Cn")]
    text = "".join(kept)
    for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"):
        text = text.replace(name, "")
    return text


@pytest.mark.parametrize("name", ("small", *VOCABS))
def test_ids_are_equal_otherwise(name, lower, differing, theirs_of, request):
    vocab = SMALL_VOCAB if name == "small" else request.getfixturevalue("shared_data") / "vocabs" / name
    options = {"token_mask": None} if name == "cdial_gpt_vocab.txt" else {}
    ours = Tokenizer(vocab, do_lower_case=lower, **options)
    theirs = theirs_of(ours)
    texts = [comparable(text, differing) for text in HARD + random_texts(3000, seed=7)]
    texts = [text for text in texts if max(map(len, space_out(text, lower).split()), default=0) <= 100]
    assert len(texts) > 3000
    for text, row in zip(texts, theirs(texts)["input_ids"], strict=True):
        assert ours.encode(text)[0] == row, repr(text)


def test_pairs_and_segments_are_equal(chinese, theirs_of):
    theirs = theirs_of(chinese)
    ids, segments = chinese.encode_batch(["我爱北京", "hello world!"], ["天安门", "un"])
    expected = theirs(["我爱北京", "hello world!"], ["天安门", "un"], padding=True)
    assert ids.tolist() == expected["input_ids"] and segments.tolist() == expected["token_type_ids"]


def test_special_tokens_option_is_their_behaviour(chinese, theirs_of):
    whole = Tokenizer(chinese._token_dict, do_lower_case=True, special_tokens=True)
    text = "今天[MASK]气很[MASK]。[SEP]A[mask]"
    assert whole.encode(text)[0] == theirs_of(whole)(text)["input_ids"]


def test_a_directory_that_transformers_wrote(tmp_path, chinese, theirs_of):
    theirs_of(chinese).save_pretrained(tmp_path)
    copy = Tokenizer(tmp_path)
    assert copy._do_lower_case
    assert {i: token.rstrip() for token, i in chinese._token_dict.items() if i != 343} == {
        i: token for token, i in copy._token_dict.items() if i != 343}  # 343, U+2028, they strip to ""
    assert copy.encode("Café 我爱")[0] == chinese.encode("Café 我爱")[0]
