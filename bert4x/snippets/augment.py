"""Changes of training batches: each row several times (R-Drop), random tokens in a decoder's input."""

import numpy as np


def repeat_rows(batch, times=2):
    """Each row of all arrays of a batch `times` times in a row, as R-Drop needs them.

    Args:
        batch: array, or nested lists, tuples and dicts of arrays; None stays.
        times: number of copies, >= 1.
    """
    if batch is None:
        return None
    if isinstance(batch, dict):
        return {name: repeat_rows(part, times) for name, part in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(repeat_rows(part, times) for part in batch)
    return np.repeat(np.asarray(batch), times, axis=0)


def random_replacement(ids, target=None, *, random, rate=0.3, keep=0.5, pool="target", special=(0,)):
    """A decoder's input with some tokens replaced by others of the same sample, against exposure bias.

    With probability `keep` a row stays as it is; else each of its tokens is replaced with probability `rate` by one
    drawn uniformly from its pool, which may be the same token. Compare the scores with the original ids. For training
    data only, and drawn anew in each pass: in a `DataGenerator` subclass `random` is the argument of `__iter__`. The
    layer `bert4x.layers.RandomReplacement` does the same in the model.

    Args:
        ids: int [B, T].
        target: 0/1 [B, T], where the tokens that may be replaced are: UniLM's segment ids. Absent: everywhere.
        random: a NumPy Generator, or the seed of one.
        rate, keep: probabilities.
        pool: "target" draws from the target alone, "all" from the whole row.
        special: ids that are neither replaced nor drawn: padding, start, [SEP].
    Returns: a new array like ids.
    Source: kexue.fm archives 7259.
    """
    if pool not in ("target", "all"):
        raise ValueError(f"pool must be 'target' or 'all'; got {pool!r}")
    random, ids = np.random.default_rng(random), np.array(ids)
    ordinary = ~np.isin(ids, list(special))
    replaceable = ordinary if target is None else ordinary & (np.asarray(target) != 0)
    drawn = random.random(ids.shape) < rate
    drawn &= random.random((len(ids), 1)) >= keep
    pools = replaceable if pool == "target" else ordinary
    # Places in the pool first, in order; then the number of one of them for each place.
    order = np.argsort(~pools, axis=1, kind="stable")
    numbers = (random.random(ids.shape) * pools.sum(axis=1, keepdims=True)).astype("int64")
    others = np.take_along_axis(ids, np.take_along_axis(order, numbers, axis=1), axis=1)
    return np.where(replaceable & drawn, others, ids)
