"""`parallel_apply` under fork and spawn and in threads: results, order, errors, seeds, endless input."""

import itertools
import random

import numpy as np
import pytest

from bert4x.snippets import parallel_apply, parallel_apply_generator

# Under JAX, which starts threads, Python warns of every fork; the children run nothing but these functions.
pytestmark = pytest.mark.filterwarnings("ignore:os.fork.. was called:RuntimeWarning")


def square(x):
    return x * x


def fail_at_three(x):
    if x == 3:
        raise KeyError("three")
    return x


def draw(_):
    return random.random()


def draw_numpy(_):
    return np.random.random()


@pytest.mark.parametrize("options", [
    {"dummy": True}, {"start_method": "fork"}, {"start_method": "spawn"},
], ids=str)
def test_results_order_and_callback(options):
    expected = [x * x for x in range(20)]
    assert sorted(parallel_apply(square, range(20), 2, 5, **options)) == expected
    assert parallel_apply(square, iter(range(20)), 2, 5, unordered=False, **options) == expected
    results = []
    assert parallel_apply(square, range(20), 2, 5, callback=results.append, **options) is None
    assert sorted(results) == expected
    assert parallel_apply(square, [], 2, 5, **options) == []


def test_closures_under_fork():
    factor = 3
    results = parallel_apply(lambda x: x * factor, range(4), 2, 2, unordered=False, start_method="fork")
    assert results == [0, 3, 6, 9]


@pytest.mark.parametrize("dummy", [True, False])
def test_errors_reach_the_caller(dummy):
    with pytest.raises(KeyError, match="three"):
        parallel_apply(fail_at_three, range(10), 2, 2, dummy=dummy)


def test_endless_input_is_read_as_needed():
    read = itertools.count()
    generator = parallel_apply_generator(square, read, 2, 4, dummy=True)
    first = dict(itertools.islice(generator, 10))
    generator.close()
    assert len(first) == 10 and all(result == index * index for index, result in first.items())
    assert next(read) <= 10 + 4


def test_random_seeds():
    options = {"workers": 1, "max_queue_size": 1, "start_method": "fork"}
    assert parallel_apply(draw, [0], random_seeds=5, **options) == [random.Random(5).random()]
    random.seed(0)
    first = parallel_apply(draw, [0], random_seeds=True, **options)
    assert parallel_apply(draw, [0], random_seeds=True, **options) != first
    # NumPy's generator is inherited by a fork; Python seeds its own anew after one.
    np.random.seed(1)
    results = parallel_apply(draw_numpy, [0], random_seeds=False, **options)
    assert results == [np.random.RandomState(1).random()]


def test_limits():
    with pytest.raises(ValueError, match="at least 1"):
        parallel_apply(square, [1], 0, 1)
