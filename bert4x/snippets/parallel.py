"""`parallel_apply`: one function over many items in processes or threads, under fork and spawn."""

import itertools
import multiprocessing
import random
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, ThreadPoolExecutor, wait

import numpy as np

_worker = {}  # the function of this worker process


def parallel_apply_generator(
    func, iterable, workers, max_queue_size, dummy=False, random_seeds=True, *, start_method=None
):
    """Yield (index, func(item)) in the order in which results arrive.

    Items are read only while fewer than `max_queue_size` of them are under way, so the iterable may be
    endless. An error in `func` is raised here. Under "spawn" (the rule on Windows and macOS) `func` must be a
    function of a module and the calling script needs the guard `if __name__ == "__main__":`; under "fork" any
    function will do.

    Args:
        func: function of one item.
        iterable: the items.
        workers: number of processes or threads, >= 1.
        max_queue_size: items under way at most, >= 1.
        dummy: threads instead of processes.
        random_seeds: True to seed `random` and `numpy.random` of every process differently, an int to start
            these seeds from, False to leave them.
        start_method: "fork", "spawn", "forkserver", or None for Python's default.
    """
    if workers < 1 or max_queue_size < 1:
        raise ValueError(f"workers and max_queue_size must be at least 1; got {workers}, {max_queue_size}.")
    if dummy:
        pool, call = ThreadPoolExecutor(workers), func
    else:
        context = multiprocessing.get_context(start_method)
        # The function goes to a worker at its start, not with every item; a fork inherits even a lambda.
        start = (func, _seeds(context, workers, random_seeds))
        pool = ProcessPoolExecutor(workers, context, _start_worker, start)
        call = _apply
    try:
        yield from _results(pool, call, iter(iterable), max_queue_size)
    finally:
        pool.shutdown(cancel_futures=True)


def _results(pool, call, items, limit):
    """Keep `limit` items under way and yield what is done."""
    pending = {}
    numbers = itertools.count()
    exhausted = False
    while pending or not exhausted:
        for item in itertools.islice(items, limit - len(pending)):
            pending[pool.submit(call, item)] = next(numbers)
        exhausted = len(pending) < limit
        for future in wait(pending, return_when=FIRST_COMPLETED).done:
            yield pending.pop(future), future.result()


def _seeds(context, workers, random_seeds):
    """Return a queue with a seed for each worker, or None."""
    if random_seeds is False:
        return None
    first = random.randrange(2**31) if random_seeds is True else random_seeds
    queue = context.SimpleQueue()
    for number in range(workers):
        queue.put(first + number)
    return queue


def _start_worker(func, seeds):
    _worker["func"] = func
    if seeds is not None:
        seed = seeds.get()
        random.seed(seed)
        np.random.seed(seed % 2**32)


def _apply(item):
    return _worker["func"](item)


def parallel_apply(
    func, iterable, workers, max_queue_size, callback=None, dummy=False, random_seeds=True, unordered=True,
    *, start_method=None,
):
    """Apply `func` to all items in parallel; see `parallel_apply_generator`.

    Args:
        callback: function called with each result in the main process; then nothing is returned.
        unordered: False to return the results in the order of the items.
    Returns:
        list of results, or None with a callback.
    """
    results = parallel_apply_generator(
        func, iterable, workers, max_queue_size, dummy, random_seeds, start_method=start_method
    )
    if callback is not None:
        for _, result in results:
            callback(result)
        return None
    if not unordered:
        results = sorted(results, key=lambda pair: pair[0])
    return [result for _, result in results]
