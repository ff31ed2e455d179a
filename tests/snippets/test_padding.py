"""Padding and truncation: against obvious loops, on ragged input drawn by hypothesis."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert4x.snippets import bucket_length, sequence_padding, to_array, truncate_sequences

sequences = st.lists(st.lists(st.integers(-5, 30000), max_size=9), min_size=1, max_size=6)


@given(sequences, st.none() | st.integers(0, 12), st.integers(-3, 3), st.sampled_from(["post", "pre"]))
def test_sequence_padding_equals_a_loop(inputs, length, value, mode):
    size = max(map(len, inputs)) if length is None else length
    expected = []
    for row in inputs:
        row = row[:size]
        padding = [value] * (size - len(row))
        expected.append(row + padding if mode == "post" else padding + row)
    result = sequence_padding(inputs, length, value, mode=mode)
    assert result.dtype == np.int32
    assert result.shape == (len(inputs), size)
    assert result.tolist() == expected


@given(st.lists(sequences, min_size=1, max_size=4), st.sampled_from(["post", "pre"]))
def test_two_ragged_axes(inputs, mode):
    result = sequence_padding(inputs, seq_dims=2, mode=mode, value=-9)
    rows, columns = max(map(len, inputs)), max(len(row) for item in inputs for row in item)
    assert result.shape == (len(inputs), rows, columns)
    for item, padded in zip(inputs, result, strict=True):
        for i, row in enumerate(item):
            place = padded[i if mode == "post" else i + rows - len(item)]
            kept = place[:len(row)] if mode == "post" else place[columns - len(row):]
            assert kept.tolist() == row
    assert (result != -9).sum() == sum(len(row) for item in inputs for row in item)


def test_lengths_per_axis_and_types():
    inputs = [np.ones((2, 5), "float32"), np.ones((4, 1), "float32")]
    result = sequence_padding(inputs, [3, None], seq_dims=2)
    assert result.shape == (2, 3, 5) and result.dtype == np.float32
    assert result.sum(axis=(1, 2)).tolist() == [10, 3]
    assert sequence_padding(inputs, 6, seq_dims=2).shape == (2, 6, 6)
    features = sequence_padding([np.ones((2, 7)), np.ones((3, 7))])
    assert features.shape == (2, 3, 7) and features[0, 2].sum() == 0
    assert sequence_padding([[True], [True, False]]).dtype == bool
    assert sequence_padding([[1, 2], []]).dtype == np.int32
    assert sequence_padding([[1], [2, 3]], value=-1e9).dtype == np.float64
    assert sequence_padding([[2**40], [1]]).tolist() == [[2**40], [1]]
    assert sequence_padding([(1, 2), (3,)]).tolist() == [[1, 2], [3, 0]]
    assert sequence_padding([[], []], 2).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("inputs, options", [
    ([], {}),
    ([[1]], {"mode": "left"}),
    ([1, 2], {}),
    ([[1], [2]], {"seq_dims": 2}),
    ([[1]], {"length": [1, 2]}),
    ([np.ones((2, 3)), np.ones((2, 4))], {}),
    ([["a"]], {}),
])
def test_padding_errors(inputs, options):
    with pytest.raises(ValueError):
        sequence_padding(inputs, **options)


def naive_truncate(maxlen, index, *items):
    items = [list(x) for x in items if x]
    while sum(map(len, items)) > maxlen:
        lengths = [len(x) for x in items]
        items[lengths.index(max(lengths))].pop(index)
    return items


@given(st.integers(0, 20), st.sampled_from([-1, 0]), st.lists(st.integers(), max_size=15),
       st.lists(st.integers(), max_size=15))
def test_truncate_sequences_equals_a_loop(maxlen, index, first, second):
    expected = naive_truncate(maxlen, index, first, second)
    assert truncate_sequences(maxlen, index, first, second) == expected
    assert len(first) + len(second) <= maxlen  # in place


def test_truncate_sequences_by_index():
    first, second = list("abcd"), list("xyz")
    assert truncate_sequences(4, [-2, 0], first, second) == [["a", "d"], ["y", "z"]]
    assert truncate_sequences(3, -1, None, [1, 2, 3, 4]) == [[1, 2, 3]]
    # The indices stay with their sequences when an empty one is left out.
    assert truncate_sequences(2, [0, -1], [], [1, 2, 3]) == [[1, 2]]
    with pytest.raises(ValueError, match="maxlen"):
        truncate_sequences(-1, 0, [1])
    with pytest.raises(ValueError, match="cannot remove"):
        truncate_sequences(0, -2, [1, 2])
    with pytest.raises(ValueError, match="indices"):
        truncate_sequences(1, [0], [1], [2])


def test_to_array_and_buckets():
    one, two = to_array([1, 2], [[0.5]])
    assert one.dtype == np.int32 and two.shape == (1, 1)
    assert isinstance(to_array([1]), np.ndarray)
    assert bucket_length([[1, 2, 3], [1]], [2, 4, 8]) == 4
    assert bucket_length([2], [2, 4, 8]) == 2
    assert bucket_length([99], [2, 4, 8]) == 8
