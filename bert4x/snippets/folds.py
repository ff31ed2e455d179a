"""Cross-validation: which records are for training and which for evaluation."""

import numpy as np


def k_fold(data, k=5, *, seed=0, stratify=None, groups=None):
    """Split records into k folds; each record is evaluated exactly once.

    The result depends on the arguments alone::

        for fold, (train, dev) in enumerate(k_fold(data, 5, stratify=labels)):
            generator = DataGenerator([data[i] for i in train], 32, collate=collate)

    Args:
        data: the records, or their number n.
        k: number of folds, 2 to n.
        seed: integer.
        stratify: n labels; each is spread over the folds as evenly as it can be.
        groups: n names; records of one group (the same document, the same author) are never on both sides. The folds
            are then as even as whole groups allow. Not with `stratify`.
    Returns: list of k pairs of ascending index arrays (training, evaluation).
    Raises: ValueError for a k that is too small or too large, lists of another length, or both options.
    """
    size = data if isinstance(data, int) else len(data)
    for name, values in (("stratify", stratify), ("groups", groups)):
        if values is not None and len(values) != size:
            raise ValueError(f"{name} must have one entry per record; got {len(values)} for {size} records.")
    if stratify is not None and groups is not None:
        raise ValueError("k_fold keeps groups together or spreads labels evenly, not both; give one of them.")
    limit = size if groups is None else len(set(groups))
    if not 2 <= k <= limit:
        kind = "records" if groups is None else "groups"
        raise ValueError(f"k must be from 2 to the number of {kind}, {limit}; got {k}.")
    random = np.random.default_rng(seed)
    fold_of = _by_group(groups, k, random) if groups is not None else _in_turn(stratify, size, k, random)
    return [(np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)) for fold in range(k)]


def _in_turn(labels, size, k, random):
    """Fold of each record: in random order, label by label, dealt out like cards."""
    order = random.permutation(size)
    if labels is not None:
        first = {}
        for label in labels:
            first.setdefault(label, len(first))
        kinds = np.array([first[label] for label in labels])
        order = order[np.argsort(kinds[order], kind="stable")]
    fold_of = np.empty(size, int)
    fold_of[order] = np.arange(size) % k
    return fold_of


def _by_group(groups, k, random):
    """Fold of each record: the largest group first, into the fold that is smallest by then."""
    members = {}
    for number, group in enumerate(groups):
        members.setdefault(group, []).append(number)
    shuffled = [list(members.values())[i] for i in random.permutation(len(members))]
    fold_of, sizes = np.empty(len(groups), int), [0] * k
    for numbers in sorted(shuffled, key=len, reverse=True):
        fold = sizes.index(min(sizes))
        fold_of[numbers] = fold
        sizes[fold] += len(numbers)
    return fold_of
