"""Pairs, truncation, batches: the shape of what a model gets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert4x.tokenizers import Tokenizer
from tests.tokenizers.oracle import SMALL_VOCAB, random_texts

TOKENIZER = Tokenizer(SMALL_VOCAB, do_lower_case=True)
texts = st.lists(st.sampled_from("a b , 我 爱 unaffable 2020 xyz \u0301 İ".split(" ")), max_size=12).map(" ".join)
patterns = st.sampled_from(["S*E*E", "S*ES*E"])
places = st.one_of(st.sampled_from(["right", "left"]), st.integers(-9, 9))


def test_the_example_of_the_specification(chinese):
    ids, segments = chinese.encode("hello world", "我爱北京", maxlen=8)
    assert chinese.ids_to_tokens(ids) == "[CLS] hello world [SEP] 我 爱 北 [SEP]".split()
    assert segments == [0, 0, 0, 0, 1, 1, 1, 1]
    assert ids == [101, 8701, 8572, 102, 2769, 4263, 1266, 102]  # also what bert4keras 0.11.5 gives


def test_numpy_integers_serve_as_sizes_and_places(small):
    text, place = "a b , 我 爱 unaffable", np.int64(2)
    assert small.encode(text, maxlen=np.int32(6), truncate_from=place) == small.encode(text, maxlen=6, truncate_from=2)
    with pytest.raises(ValueError, match="truncate_from"):
        small.encode(text, maxlen=6, truncate_from=True)


def test_patterns(small):
    a, b = "hello world", "我"
    tokens = {p: small.ids_to_tokens(small.encode(a, b, pattern=p)[0]) for p in ("S*E*E", "S*ES*E")}
    assert tokens["S*E*E"] == "[CLS] hello world [SEP] 我 [SEP]".split()
    assert tokens["S*ES*E"] == "[CLS] hello world [SEP] [CLS] 我 [SEP]".split()
    assert small.encode(a, b, pattern="S*ES*E")[1] == [0, 0, 0, 0, 1, 1, 1]
    with pytest.raises(ValueError, match="pattern"):
        small.encode(a, b, pattern="SEP")


@pytest.mark.parametrize("place, expected", [
    ("right", "[CLS] a b [SEP]"), ("left", "[CLS] , ! [SEP]"), (2, "[CLS] a ! [SEP]"), (-3, "[CLS] a ! [SEP]"),
    (1, "[CLS] , ! [SEP]"), (-2, "[CLS] a b [SEP]"), (0, "[CLS] , ! [SEP]"), (99, "[CLS] a b [SEP]"),
])
def test_where_tokens_are_dropped(small, place, expected):
    ids, _, spans = small.encode("a b , !", maxlen=4, truncate_from=place, offsets=True)
    assert small.ids_to_tokens(ids) == expected.split()
    assert ["a b , !"[slice(*span)] for span in spans[1:-1]] == expected.split()[1:-1]


def literal_truncation(first, second, budget):
    """One token after the other, from the end of the longer one, of the first on ties."""
    first, second = list(first), list(second)
    while len(first) + len(second) > budget:
        (second if len(second) > len(first) else first).pop()
    return first, second


@given(texts, texts, patterns, st.integers(4, 30))
def test_truncation_equals_dropping_one_by_one(first, second, pattern, maxlen):
    a, b = TOKENIZER.encode(first)[0][1:-1], TOKENIZER.encode(second)[0][1:-1]
    specials = 3 if pattern == "S*E*E" else 4
    kept_a, kept_b = literal_truncation(a, b, maxlen - specials)
    start = [2] if pattern == "S*ES*E" else []
    ids, segments = TOKENIZER.encode(first, second, maxlen, pattern)
    assert ids == [2, *kept_a, 3, *start, *kept_b, 3]
    assert segments == [0] * (len(kept_a) + 2) + [1] * (len(kept_b) + 1 + len(start))


@given(texts, st.one_of(st.none(), texts), patterns, places, st.integers(4, 30))
def test_no_row_is_longer_than_maxlen_and_none_shorter_than_it_must(first, second, pattern, place, maxlen):
    ids, segments, spans = TOKENIZER.encode(first, second, maxlen, pattern, place, offsets=True)
    full = TOKENIZER.encode(first, second, pattern=pattern)[0]
    assert len(ids) == len(segments) == len(spans) == min(maxlen, len(full))
    assert ids[0] == 2 and ids[-1] == 3 and segments == sorted(segments)


@given(st.lists(texts, min_size=1, max_size=5), st.data())
def test_a_batch_equals_its_texts_one_by_one(firsts, data):
    pairs = data.draw(st.booleans())
    seconds = data.draw(st.lists(texts, min_size=len(firsts), max_size=len(firsts))) if pairs else None
    options = {"maxlen": data.draw(st.one_of(st.none(), st.integers(4, 12))), "pattern": data.draw(patterns),
               "truncate_from": data.draw(places)}
    ids, segments, spans = TOKENIZER.encode_batch(firsts, seconds, **options, offsets=True)
    plain = TOKENIZER.encode_batch(firsts, seconds, **options)
    assert np.array_equal(plain[0], ids) and np.array_equal(plain[1], segments)
    assert ids.dtype == segments.dtype == spans.dtype == "int32" and spans.shape == (*ids.shape, 2)
    widths = []
    for i, first in enumerate(firsts):
        row, row_segments, row_spans = TOKENIZER.encode(first, seconds[i] if pairs else None, **options, offsets=True)
        n = len(row)
        widths.append(n)
        assert ids[i].tolist() == row + [0] * (ids.shape[1] - n)
        assert segments[i].tolist() == row_segments + [0] * (ids.shape[1] - n)
        assert spans[i, :n].tolist() == [list(span or (-1, -1)) for span in row_spans] and (spans[i, n:] == -1).all()
    assert ids.shape[1] == max(widths)


def test_padding_uses_the_id_of_the_pad_token():
    vocab = {"[CLS]": 0, "[PAD]": 1, "[SEP]": 2, "[UNK]": 3, "a": 4}
    ids, _ = Tokenizer(vocab, token_mask=None).encode_batch(["a a", ""])
    assert ids.tolist() == [[0, 4, 4, 2], [0, 2, 1, 1]]


def test_a_list_of_tokens_is_taken_as_it_is(small):
    tokens = small.tokenize("hello abd")
    assert small.encode(tokens) == small.encode("hello abd")
    assert small.encode(tokens, tokens, maxlen=6) == small.encode("hello abd", "hello abd", maxlen=6)
    assert small.encode(["hello", "world"])[0] == small.tokens_to_ids(["hello", "world"])
    assert small.encode(tokens, offsets=True)[2] == [None] * 4
    assert small.encode_batch([tokens, "a"])[0].tolist() == [small.encode(tokens)[0], small.encode("a")[0] + [0]]
    assert small.encode([]) == ([], [])


def test_tokenize_with_maxlen(small):
    assert small.tokenize("a b c", maxlen=4) == ["[CLS]", "a", "b", "[SEP]"]
    assert small.tokenize("a", maxlen=2) == ["[CLS]", "[SEP]"]


def test_empty_batches_and_texts(small):
    assert [array.shape for array in small.encode_batch([], offsets=True)] == [(0, 0), (0, 0), (0, 0, 2)]
    assert small.encode_batch(["", ""])[0].tolist() == [[2, 3], [2, 3]]
    bare = Tokenizer(SMALL_VOCAB, token_start=None, token_end=None)
    assert [array.shape for array in bare.encode_batch([""], offsets=True)] == [(1, 0), (1, 0), (1, 0, 2)]


def test_batches_may_be_written_to_and_come_from_any_iterable(small):
    ids, segments = small.encode_batch(text for text in ("a", "b"))
    ids[0, 0], segments[0, 0] = 9, 1
    assert small.encode_batch(np.array(["a", "b"]))[0].shape == ids.shape


@pytest.mark.parametrize("bad", [None, 3, b"a", float("nan")])
def test_what_is_no_text_is_refused(small, bad):
    for call in (small.encode, small.tokenize, lambda text: small.encode_batch(["a", text])):
        with pytest.raises(TypeError, match="must be a str"):
            call(bad)


def test_impossible_requests_are_refused(small):
    with pytest.raises(ValueError, match="room for the 2 special tokens; got 1"):
        small.encode("a", maxlen=1)
    with pytest.raises(ValueError, match="room for the 3 special tokens"):
        small.encode_batch(["a"], ["b"], maxlen=2)
    with pytest.raises(ValueError, match="truncate_from"):
        small.encode("a", truncate_from="middle")
    with pytest.raises(ValueError, match="got 1 and 2 texts"):
        small.encode_batch(["a"], ["b", "c"])
    with pytest.raises(TypeError, match="one str"):
        small.encode_batch("abc")


def test_large_random_batch_equals_singles(chinese):
    samples = random_texts(300, seed=3)
    ids, segments = chinese.encode_batch(samples, samples[::-1], maxlen=16)
    for i, (first, second) in enumerate(zip(samples, samples[::-1], strict=True)):
        row, row_segments = chinese.encode(first, second, 16)
        assert ids[i, : len(row)].tolist() == row and segments[i, : len(row)].tolist() == row_segments
