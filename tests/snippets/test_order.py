"""Orders of a stream: nothing is lost, batches lie in one bucket, the last record is marked."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bert4x.snippets.order import bucketed, buffer_shuffled, mark_last, whole_batches

items = st.lists(st.integers(0, 50), max_size=60)


@given(items)
def test_mark_last(values):
    expected = [(value, i == len(values) - 1) for i, value in enumerate(values)]
    assert list(mark_last(iter(values))) == expected


@given(items, st.integers(1, 20), st.integers(0, 99))
def test_buffer_shuffle_keeps_all_items_and_holds_few(values, size, seed):
    held, most = 0, 0

    def source():
        nonlocal held, most
        for value in values:
            held += 1
            most = max(most, held)
            yield value

    result = []
    for value in buffer_shuffled(source(), np.random.default_rng(seed), size):
        held -= 1
        result.append(value)
    assert sorted(result) == sorted(values) and most <= size + 1
    assert result == list(buffer_shuffled(values, np.random.default_rng(seed), size))


@given(items, st.integers(1, 7))
def test_bucketed(values, batch_size):
    buckets = [5, 10, 20]
    result = list(bucketed(values, lambda x: x, buckets, batch_size))
    assert sorted(result) == sorted(values)
    batches = [result[i:i + batch_size] for i in range(0, len(result), batch_size)]
    mixed = sum(len({next(b for b in buckets if b >= min(x, 20)) for x in batch}) > 1 for batch in batches)
    assert mixed < len(buckets)


@given(items, st.integers(1, 7))
def test_whole_batches(values, batch_size):
    assert list(whole_batches(values, batch_size)) == values[:len(values) // batch_size * batch_size]
