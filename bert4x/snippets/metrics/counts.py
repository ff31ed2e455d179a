"""Precision, recall and F1 from counts, and the multiset overlap that several metrics share."""

import collections
from typing import NamedTuple


class Score(NamedTuple):
    """Precision, recall and F1, each in [0, 1]."""

    precision: float
    recall: float
    f1: float


def score(correct, predicted, gold, correct_gold=None):
    """Return P = correct / predicted, R = correct / gold and F1 = 2 P R / (P + R); 0 / 0 is 0.

    Args:
        correct: predictions that are right; may be a sum of partial scores.
        predicted, gold: numbers of predictions and of gold items.
        correct_gold: gold items that were found, where this can differ from `correct`.
    """
    precision = correct / predicted if predicted else 0.0
    recall = (correct if correct_gold is None else correct_gold) / gold if gold else 0.0
    total = precision + recall
    return Score(precision, recall, 2 * precision * recall / total if total else 0.0)


def overlap(first, second):
    """Return the size of the multiset intersection of two sequences."""
    return sum((collections.Counter(first) & collections.Counter(second)).values())
