"""Callbacks that write what a run did: TensorBoard with the effective learning rate, and a plot of the run."""

import csv
import math
import os
from pathlib import Path

from bert4x.backend import keras


class TensorBoard(keras.callbacks.TensorBoard):
    """Keras' TensorBoard callback, which leaves the `learning_rate` of `LearningRateLogger` as it is.

    Keras' own overwrites it by the base rate, without the schedules of bert4x.optimizers. Put `LearningRateLogger`
    before it. Arguments: those of `keras.callbacks.TensorBoard`.
    """

    def _collect_learning_rate(self, logs):
        return logs if "learning_rate" in logs else super()._collect_learning_rate(logs)


class RunPlot(keras.callbacks.Callback):
    """Draws the run as a PNG after each epoch: one panel for each quantity in the logs, training and validation in one.

    Put it behind the callbacks that add to the logs (`BestWeights`, `LearningRateLogger`) and among the `tracked` of
    `Resume`, so that a resumed run is drawn from its beginning.

    Args:
        filepath: the picture; it is written aside and renamed.
    Raises: ImportError if matplotlib is missing.
    """

    def __init__(self, filepath):
        super().__init__()
        _figure_class()  # fail now, not after the first epoch
        self.filepath = Path(filepath)
        self.history = {}

    def on_epoch_end(self, epoch, logs=None):
        """Add the epoch and draw."""
        for name, value in (logs or {}).items():
            values = self.history.setdefault(name, [])
            values += [math.nan] * (epoch - len(values))  # a quantity that appears late
            values.append(float(value))
        plot_history(self.history, self.filepath)

    def get_state(self):
        """Return what was drawn so far, for `Resume`."""
        return {"history": self.history}

    def set_state(self, state):
        """Take over the history of an interrupted run."""
        self.history = dict(state["history"])


def plot_history(history, filepath):
    """Draw a run as a PNG: one panel for each quantity, training and validation in one.

    Args:
        history: what `fit` returns, a dict {name: one number per epoch}, or the path of a `CSVLogger`'s file.
        filepath: the picture.
    Raises: ImportError if matplotlib is missing; ValueError for a history without epochs.
    """
    values = _values(history)
    names = [name for name in values if name.removeprefix("val_") == name or name[4:] not in values]
    if not names:
        raise ValueError("a history must hold at least one quantity; got none. Has an epoch ended?")
    columns = min(len(names), 3)
    rows = -(-len(names) // columns)
    figure = _figure_class()(figsize=(4 * columns, 3 * rows), layout="constrained")
    for number, name in enumerate(names, 1):
        panel = figure.add_subplot(rows, columns, number)
        panel.set_title(name)
        panel.set_xlabel("epoch")
        for key, label in ((name, "training"), (f"val_{name}", "validation")):
            if key in values:
                panel.plot(range(1, len(values[key]) + 1), values[key], marker=".", label=label)
        if f"val_{name}" in values:
            panel.legend()
    filepath = Path(filepath)
    aside = filepath.with_name(f".{os.getpid()}-{filepath.name}")
    figure.savefig(aside, format="png")
    os.replace(aside, filepath)


def _values(history):
    """A history as a dict of lists of numbers."""
    history = getattr(history, "history", history)
    if isinstance(history, dict):
        return history
    with open(history, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in (rows[0] if rows else {}) if name != "epoch"]
    return {name: [_number(row[name]) for row in rows] for name in names}


def _number(text):
    """A number of a CSV file; NaN for an empty field."""
    return float(text) if text and text != "NA" else math.nan


def _figure_class():
    """matplotlib's Figure, which draws into files without a display and without global state."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "bert4x[plot]"') from error
    return Figure
