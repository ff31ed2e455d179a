"""Character offsets: every token points at the text that it came from."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert4x.tokenizers import Tokenizer
from bert4x.tokenizers.text import lowercase_and_normalize, space_out, trace
from tests.tokenizers.oracle import HARD, SMALL_VOCAB, random_texts

LOWER, CASED = (Tokenizer(SMALL_VOCAB, do_lower_case=lower) for lower in (True, False))
characters = st.one_of(
    st.characters(), st.sampled_from("abcABCéÉİıΣσς我爱京２20 ,.'\u0301\u0327\u200b\u00ad\t\u3000한각e")
)


def test_the_example_of_the_specification(small):
    text = "Café 我 unaffable"
    assert small.rematch(text, small.tokenize(text)) == [
        [], [0, 1, 2, 3], [5], [7, 8], [9, 10, 11], [12, 13, 14, 15], []]


@pytest.mark.parametrize("text, token, expected", [
    ("Cafe\u0301!", "cafe", (0, 5)),  # a combining accent belongs to its letter
    ("un\u200baffable", "##aff", (3, 6)),
    ("x İI", "ii", (2, 4)),  # i with a dot: one character becomes two
    ("ΟΔΟΣ", "οδος", (0, 4)),
    ("한", "##ᅡ", (0, 1)),  # three pieces of one syllable
    ("a\u0301\u3000b", "b", (3, 4)),
    ("我\u0301爱", "我", (0, 2)),
])
def test_spans_through_folding(small, text, token, expected):
    ids, segments, spans = small.encode(text, offsets=True)
    assert spans[small.tokenize(text).index(token)] == expected


def folded(text, lower):
    """What a piece of text looks like to a token; the two small sigmas count as one, since a part has another end."""
    return "".join(space_out(text, lower).split()).replace("ς", "σ")


def check(tokenizer, text):
    lower = tokenizer._do_lower_case
    tokens = tokenizer.tokenize(text)[1:-1]
    spans = tokenizer.encode(text, offsets=True)[2][1:-1]
    positions = tokenizer.rematch(text, ["[CLS]", *tokens, "[SEP]"])[1:-1]
    assert len(tokens) == len(spans) == len(positions)
    last = 0
    for token, span, places in zip(tokens, spans, positions, strict=True):
        assert span == (places[0], places[-1] + 1), (text, token)
        assert places == sorted(set(places)) and places[-1] < len(text)
        assert span[0] >= last - 1, (text, tokens, spans)  # in order; two pieces may share a character
        last = span[1]
        stem, surface = tokenizer.stem(token).replace("ς", "σ"), folded(text[slice(*span)], lower)
        if len(lowercase_and_normalize(text[span[0]])) == 1 == len(lowercase_and_normalize(text[span[1] - 1])):
            assert surface == stem, (text, token, span)
        else:
            assert stem in surface  # the span begins or ends in a character that folds to several


@given(st.text(characters, max_size=30), st.booleans())
def test_every_span_folds_to_its_token(text, lower):
    check(LOWER if lower else CASED, text)


@given(st.text(st.sampled_from("aábcunffle我爱京20 ,!İéÉ\u0301\u200b"), max_size=30))
def test_a_span_tokenizes_to_its_token(text):
    for token, span in zip(LOWER.tokenize(text)[1:-1], LOWER.encode(text, offsets=True)[2][1:-1], strict=True):
        again = LOWER.tokenize(text[slice(*span)])[1:-1]
        assert "".join(map(LOWER.stem, again)) == LOWER.stem(token)
        if token[:2] != "##":
            assert again == [token]


# Canonical order moves these marks, which are not dropped, past each other: their spans may come in either order.
MOVED = set("\u1715\u1734\u1b44\u302e\u302f\ua953\U000111c0\U0001d15e\U0001d165\U0001d16d")


def test_hard_and_random_texts(chinese):
    for text in HARD + random_texts(3000, seed=4):
        if MOVED.isdisjoint(text):
            check(chinese, text)
            check(CASED, text)


def test_trace_gives_the_folded_text_for_any_string():
    for text in HARD + random_texts(5000, seed=5):
        for lower in (True, False):
            found, starts, ends = trace(text, lower)
            assert found == "".join(space_out(text, lower).split()), repr(text)
            assert all(start < end <= len(text) for start, end in zip(starts, ends, strict=True))
            assert len(starts) == len(found)


@given(st.text(characters, max_size=20), st.lists(st.text(max_size=4), max_size=8))
def test_rematch_never_raises(text, tokens):
    for tokenizer in (LOWER, CASED):
        positions = tokenizer.rematch(text, tokens)
        assert len(positions) == len(tokens)
        assert all(0 <= place < len(text) for places in positions for place in places)


def test_rematch_of_what_is_not_in_the_text(small):
    assert small.rematch("hello 我 world", ["hello", "[UNK]", "zebra", "world"]) == [
        [0, 1, 2, 3, 4], [], [], [8, 9, 10, 11, 12]]
    assert small.rematch("Hello WORLD", ["Hello", "WORLD"]) == [[0, 1, 2, 3, 4], [6, 7, 8, 9, 10]]
    assert small.rematch("", ["[CLS]", "[SEP]"]) == [[], []] and small.rematch("abc", []) == []
    assert small.rematch("", ["[CLS]"]) == [[]]


def test_offsets_of_a_pair_refer_to_each_text(small):
    spans = small.encode("hello world", "我 爱", offsets=True)[2]
    assert spans == [None, (0, 5), (6, 11), None, (0, 1), (2, 3), None]
