"""Folds: every record once, evenly, labels spread, groups whole."""

import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert4x.snippets import k_fold


@given(st.integers(2, 60), st.integers(2, 7), st.integers(0, 99), st.integers(1, 4))
def test_every_record_is_evaluated_once(size, k, seed, kinds):
    k = min(k, size)
    labels = [f"label {i % kinds}" for i in range(size)]
    for options in ({}, {"stratify": labels}):
        folds = k_fold(list(range(size)), k, seed=seed, **options)
        assert len(folds) == k
        np.testing.assert_array_equal(np.sort(np.concatenate([dev for _, dev in folds])), np.arange(size))
        sizes = {len(dev) for _, dev in folds}
        assert max(sizes) - min(sizes) <= 1
        for train, dev in folds:
            np.testing.assert_array_equal(np.sort(np.concatenate([train, dev])), np.arange(size))
            assert (np.diff(train) > 0).all() and (np.diff(dev) > 0).all()
        if options:
            for label in set(labels):
                counts = [sum(labels[i] == label for i in dev) for _, dev in folds]
                assert max(counts) - min(counts) <= 1


def test_the_same_arguments_give_the_same_folds():
    one, two, other = k_fold(30, 3, seed=1), k_fold(range(30), 3, seed=1), k_fold(30, 3, seed=2)
    for (_, a), (_, b) in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for (_, a), (_, b) in zip(one, other, strict=True))
    assert (one[0][1] != np.arange(10)).any()  # shuffled


@given(st.lists(st.integers(0, 9), min_size=8, max_size=60), st.integers(0, 9))
def test_groups_stay_together(groups, seed):
    distinct = len(set(groups))
    if distinct < 2:
        return
    folds = k_fold(groups, min(3, distinct), seed=seed, groups=groups)
    for train, dev in folds:
        assert len(dev) and not {groups[i] for i in train} & {groups[i] for i in dev}
    assert sum(len(dev) for _, dev in folds) == len(groups)
    largest = max(collections.Counter(groups).values())
    sizes = [len(dev) for _, dev in folds]
    assert max(sizes) - min(sizes) <= largest


def test_refusals():
    for arguments in ({"k": 1}, {"k": 6}):
        with pytest.raises(ValueError, match="k must be"):
            k_fold(5, **arguments)
    with pytest.raises(ValueError, match="number of groups, 2"):
        k_fold(5, 3, groups=np.array([0, 0, 1, 1, 1]))
    with pytest.raises(ValueError, match="one entry per record"):
        k_fold(5, 2, stratify=[0, 1])
    with pytest.raises(ValueError, match="not both"):
        k_fold(2, 2, stratify=[0, 1], groups=[0, 1])
