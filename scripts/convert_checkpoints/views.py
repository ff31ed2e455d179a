"""Seeing a source as a checkpoint of ours: other names, variables left out, arrays edited while they are read."""

import re

from bert4x.models.checkpoint import Checkpoint, CheckpointError


class View(Checkpoint):
    """A checkpoint under other names; nothing is read until it is asked for.

    Args:
        inner: an open Checkpoint.
        renames: pairs (pattern, replacement), applied in order to each name; None as replacement leaves the
            variable out.
        edits: {new name: function of the array}; shape and dtype stay.
    Raises: CheckpointError if two variables get the same name, or an edited one is not there.
    """

    def __init__(self, inner, renames=(), edits=None):
        self._inner, self._edits, self._names = inner, edits or {}, {}
        for name in inner.names:
            new = renamed(name, renames)
            if new in self._names:
                raise CheckpointError(f"{inner.source}: {self._names[new]} and {name} both become {new}")
            if new is not None:
                self._names[new] = name
        super().__init__(
            inner.source, {new: (inner.shape(name), inner.dtype(name)) for new, name in self._names.items()}
        )
        for name in self._edits:
            self._entry(name)

    def _load(self, name, rows):
        if name not in self._edits:
            return self._inner.read(self._names[name], rows)
        array = self._edits[name](self._inner.read(self._names[name]))
        return array if rows is None else array[rows]


def renamed(name, renames):
    """The name after all renames, or None if one of them leaves it out."""
    for pattern, replacement in renames:
        if replacement is None:
            if re.search(pattern, name):
                return None
        else:
            name = re.sub(pattern, replacement, name)
    return name
