"""Orders of a stream of records: shuffled in a buffer, grouped by length, cut to whole batches."""

from bert4x.snippets.padding import bucket_length


def mark_last(items):
    """Yield (item, is_last), one item behind the source."""
    iterator = iter(items)
    for item in iterator:
        for following in iterator:
            yield item, False
            item = following
        yield item, True


def buffer_shuffled(items, rng, size):
    """Yield the items of a stream, each drawn at random from the `size` items read ahead."""
    buffer = []
    for item in items:
        buffer.append(item)
        if len(buffer) > size:
            i = int(rng.integers(len(buffer)))
            buffer[i], buffer[-1] = buffer[-1], buffer[i]
            yield buffer.pop()
    rng.shuffle(buffer)
    yield from buffer


def bucketed(items, length, buckets, batch_size):
    """Yield the items so that every `batch_size` of them lie in one bucket.

    What remains in the pools at the end comes in ascending order, so that only few batches mix two buckets.
    """
    pools = {bucket: [] for bucket in buckets}
    for item in items:
        pool = pools[bucket_length([length(item)], buckets)]
        pool.append(item)
        if len(pool) == batch_size:
            yield from pool
            pool.clear()
    for pool in pools.values():
        yield from pool


def whole_batches(items, batch_size):
    """Yield the items without those at the end that do not fill a batch."""
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == batch_size:
            yield from batch
            batch.clear()
