"""Entities, tags and longest matches."""

from bert4x.snippets import (
    entities_to_tags,
    gazetteer,
    longest_match,
    longest_words,
    read_entities,
    tags_to_entities,
    tags_to_words,
    words_to_tags,
)

TYPES = ["LOC", "PER"]
SPANS = [None, (0, 1), (1, 2), (2, 5), (5, 6), None]
ENTITIES = [(0, 2, "PER"), (2, 5, "PER"), (5, 6, "LOC")]


def test_both_schemes_of_columns(tmp_path):
    for tags in ("B-A I-A O B-B B-A I-A", "B-A E-A O S-B B-A E-A", "I-A I-A O I-B B-A I-A"):
        rows = "\n".join(f"{c} {t}" for c, t in zip("abcdef", tags.split(), strict=True))
        (tmp_path / "data.txt").write_text(f"{rows}\n\n{rows}\n", encoding="utf-8")
        record = ("abcdef", [(0, 2, "A"), (3, 4, "B"), (4, 6, "A")])
        assert read_entities(tmp_path / "data.txt") == [record, record]


def test_tags_and_back():
    tags = entities_to_tags(ENTITIES, SPANS, TYPES)
    assert tags == [0, 3, 4, 3, 1, 0]
    assert tags_to_entities(tags, SPANS, TYPES) == ENTITIES
    assert tags_to_entities(entities_to_tags([(0, 5, "LOC")], SPANS, TYPES), SPANS, TYPES) == [(0, 5, "LOC")]


def test_what_tags_cannot_say():
    lost = [(2, 4, "PER"), (5, 9, "PER"), (0, 1, "ORG")]  # ends inside of a token, is cut off, has an unknown type
    assert entities_to_tags(lost, SPANS, TYPES) == [0] * 6


def test_tags_that_mean_nothing():
    """A continuation without a beginning, or of another type, closes; special tokens have no entity."""
    assert tags_to_entities([3, 4, 4, 3, 2, 4], SPANS, TYPES) == [(2, 5, "PER")]
    assert tags_to_entities([0, 1, 0, 2, 1, 2], SPANS, TYPES) == [(0, 1, "LOC"), (5, 6, "LOC")]


def test_longest_match():
    assert longest_match("abcabd", {"ab", "abc", "b", "d"}) == [(0, 3), (3, 5), (5, 6)]
    assert longest_match("abcabd", {"ab", "abc", "b"}, longest=2) == [(0, 2), (3, 5)]
    assert longest_match("xy", {}) == []


def test_words_and_back():
    words = ["ab", "cde", "f"]
    assert words_to_tags(words, SPANS) == [0, 1, 3, 0, 0, 0]
    assert words_to_tags(["abcde", "f"], SPANS) == [0, 1, 2, 3, 0, 0]
    assert tags_to_words("abcdef", words_to_tags(words, SPANS), SPANS) == words
    assert tags_to_words("abcdef", [0, 3, 2, 1, 3, 1], SPANS) == ["ab", "cdef"]
    assert tags_to_words("ab cd", [0, 1], [(0, 2), (3, 5)]) == ["ab ", "cd"]  # no character is lost


def test_baselines():
    records = [("xaby", [(1, 3, "A")]), ("ab", [(0, 2, "B")]), ("abc", [(0, 2, "B"), (0, 3, "C")])]
    assert gazetteer(records, ["zabczab", ""]) == [[(1, 4, "C"), (5, 7, "B")], []]
    assert gazetteer([], ["ab"]) == [[]]
    assert longest_words("xyabcab", {"ab", "abc"}) == ["x", "y", "abc", "ab"]
    assert longest_words("abcab", {"ab", "abc"}, 2) == ["ab", "c", "ab"]
