"""The best path through scores of labels, in NumPy: one text at a time, with constraints on both ends."""

import numpy as np


class ViterbiDecoder:
    """Finds the path y of the highest sum_t h[t, y_t] + sum_(t > 1) A[y_(t-1), y_t]; of equal ones the smaller labels.

    Args:
        trans: transitions A [L, L], from the first to the second index: those in use, as `crf.trans` gives them.
        starts, ends: labels allowed at the first and the last step; None for all. A text of one step obeys both.
    Raises: ValueError for an empty set of labels, or labels that A does not have.
    """

    def __init__(self, trans, starts=None, ends=None):
        self.trans = np.asarray(trans, "float64")
        if self.trans.ndim != 2 or self.trans.shape[0] != self.trans.shape[1]:
            raise ValueError(f"trans must be square, [labels, labels]; got the shape {self.trans.shape}.")
        self.starts, self.ends = self._penalties("starts", starts), self._penalties("ends", ends)

    def _penalties(self, name, allowed):
        """0 for an allowed label, -inf for others."""
        size = len(self.trans)
        if allowed is None:
            return np.zeros(size)
        allowed = list(allowed)
        if not allowed or not all(0 <= label < size for label in allowed):
            raise ValueError(f"{name} must hold labels from 0 to {size - 1}, at least one; got {allowed}.")
        penalties = np.full(size, -np.inf)
        penalties[allowed] = 0
        return penalties

    def decode(self, nodes):
        """Return the best path.

        Shapes: nodes [n, L], scores h without padding, n >= 1; returns int64 [n].
        Raises: ValueError if each path has a score of -inf.
        """
        scores = np.array(nodes, "float64")  # a copy
        if scores.ndim != 2 or not len(scores) or scores.shape[1] != len(self.trans):
            raise ValueError(f"nodes must be [n >= 1, {len(self.trans)}], a row per token; got {scores.shape}.")
        scores[0] += self.starts
        scores[-1] += self.ends
        best, origins = scores[0], np.zeros(scores.shape, "int64")
        for t in range(1, len(scores)):
            ways = best[:, None] + self.trans
            origins[t] = ways.argmax(axis=0)
            best = ways.max(axis=0) + scores[t]
        if not best.max() > -np.inf:
            raise ValueError("no path has a finite score. Allow more labels in starts, ends or trans.")
        path = np.empty(len(scores), "int64")
        path[-1] = best.argmax()
        for t in range(len(scores) - 1, 0, -1):
            path[t - 1] = origins[t, path[t]]
        return path
