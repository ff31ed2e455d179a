"""Longest common parts against quadratic tables, the splitter's promises, and identity search."""

import random
import time

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bert4x.snippets import (
    is_one_of,
    longest_common_subsequence,
    longest_common_substring,
    text_segmentate,
)

words = st.text("abc", max_size=12)


@given(words, words)
def test_longest_common_substring(source, target):
    length, (i, k, j, m) = longest_common_substring(source, target)
    parts = {source[a:b] for a in range(len(source)) for b in range(a, len(source) + 1)}
    assert length == max((len(part) for part in parts if part in target), default=0)
    assert source[i:k] == target[j:m] and k - i == m - j == length


@given(words, words)
def test_longest_common_subsequence(source, target):
    table = np.zeros((len(source) + 1, len(target) + 1), int)
    for i, x in enumerate(source):
        for j, y in enumerate(target):
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
    length, pairs = longest_common_subsequence(source, target)
    assert length == len(pairs) == table[-1, -1]
    assert all(source[i] == target[j] for i, j in pairs)
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in zip(pairs, pairs[1:], strict=False))


def test_lists_of_anything_and_long_texts():
    assert longest_common_substring([1, "x", (2,)], ["x", (2,), 1]) == (2, (1, 3, 0, 2))
    assert longest_common_subsequence([1, 2, 3], [1, 3]) == (2, [(0, 0), (2, 1)])
    draw = random.Random(0)
    source, target = ("".join(draw.choices("的一是了我不人在他有", k=10000)) for _ in range(2))
    start = time.perf_counter()
    length, (i, k, _, _) = longest_common_substring(source, target)
    assert length == k - i and source[i:k] in target
    length, pairs = longest_common_subsequence(source, target)
    assert all(source[i] == target[j] for i, j in pairs) and length > 4000
    assert time.perf_counter() - start < 10  # seconds; a table in Python takes minutes


@given(st.text("ab。,\n ", max_size=60), st.integers(2, 12))
def test_text_segmentate_keeps_the_text(text, maxlen):
    pieces = text_segmentate(text, maxlen, "\n。, ")
    assert "".join("".join(pieces).split()) == "".join(text.split())
    for piece in pieces:
        # What is too long has no separator left between other characters.
        assert len(piece) <= maxlen or not set(piece.rstrip("\n。, ")) & set("\n。, ")


def test_text_segmentate_examples():
    assert text_segmentate("短文", 10) == ["短文"]
    assert text_segmentate("甲乙。丙丁。戊", 6, "。") == ["甲乙。丙丁。", "戊"]
    assert text_segmentate("甲乙。丙丁。戊", 4, "。") == ["甲乙。", "丙丁。", "戊"]
    assert text_segmentate("甲乙。丙丁。戊", 5, "。", "。") == ["甲乙", "丙丁。戊"]
    assert text_segmentate("a, b\nccccc, ddd", 6, ["\n", ", "]) == ["a, b", "ccccc,", "ddd"]
    assert text_segmentate("没有分隔的长句", 3, "。") == ["没有分隔的长句"]


def test_is_one_of_uses_identity():
    array = np.zeros(3)
    assert is_one_of(array, [np.zeros(3), array])
    assert not is_one_of(array, [np.zeros(3)])
