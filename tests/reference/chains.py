"""Chains of labels by enumeration: all L^n paths of one sequence, in float64."""

import itertools

import numpy as np


def paths(scores, trans):
    """All paths, and their scores: for scores [n, L] arrays [L^n, n] and [L^n]."""
    n, labels = scores.shape
    found = np.array(list(itertools.product(range(labels), repeat=n)))
    values = scores[np.arange(n), found].sum(1) + trans[found[:, :-1], found[:, 1:]].sum(1)
    return found, values


def log_sum_exp(x, axis=None):
    """log sum exp along an axis."""
    top = x.max(axis, keepdims=True)
    return np.squeeze(top, axis) + np.log(np.exp(x - top).sum(axis))


def nll(scores, trans, labels):
    """-log of the probability of one path."""
    return log_sum_exp(paths(scores, trans)[1]) - paths_score(scores, trans, labels)


def paths_score(scores, trans, labels):
    """Score of one path."""
    return scores[np.arange(len(labels)), labels].sum() + trans[labels[:-1], labels[1:]].sum()


def expected(scores, trans):
    """Marginals [n, L] and expected numbers of transitions [L, L]."""
    found, values = paths(scores, trans)
    shares = np.exp(values - log_sum_exp(values))
    marginals, moves = np.zeros(scores.shape), np.zeros(trans.shape)
    for path, share in zip(found, shares, strict=True):
        marginals[np.arange(len(path)), path] += share
        np.add.at(moves, (path[:-1], path[1:]), share)
    return marginals, moves


def best(scores, trans):
    """All paths from the best to the worst, and their scores."""
    found, values = paths(scores, trans)
    order = np.argsort(-values, kind="stable")
    return found[order], values[order]


def viterbi(weights, masks, scores):
    """The best path of each row: the reference of a contract row."""
    return np.stack([best(row, weights["trans"])[0][0] for row in scores])
