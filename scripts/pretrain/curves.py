"""The course of a run: a table in CSV, a picture, and scalars for TensorBoard."""

import csv
import math
import os
import time

from bert4x.backend import keras, runtime


class Curves(keras.callbacks.Callback):
    """Writes one row per epoch of `fit`, to curves.csv and curves.png.

    Put it before `Resume` and among its `tracked`: rows of steps that are done again after a kill are dropped.

    Args:
        folder: where to write.
        tokens_per_step: for the tokens per second, padding included.
    """

    def __init__(self, folder, tokens_per_step):
        super().__init__()
        self.folder, self.tokens_per_step = folder, tokens_per_step
        self.rows, self._steps, self._began = [], 0, 0.0

    def get_state(self):
        """The rows, for `Resume`."""
        return self.rows

    def set_state(self, state):
        """Take over the rows of an interrupted run."""
        self.rows = state

    def on_epoch_begin(self, epoch, logs=None):
        """Start the clock."""
        self._began = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        """Count the steps."""
        self._steps = batch + 1

    def on_test_begin(self, logs=None):
        """Validation does not count as training time."""
        self._training = time.perf_counter() - self._began

    def on_epoch_end(self, epoch, logs=None):
        """Add a row."""
        seconds = getattr(self, "_training", None) or time.perf_counter() - self._began
        updates = int(runtime.to_numpy(self.model.optimizer.iterations))
        row = {"step": updates, "hours": (self.rows[-1]["hours"] if self.rows else 0) + seconds / 3600}
        row["tokens_per_second"] = round(self._steps * self.tokens_per_step / seconds)
        row |= {name: float(f"{value:.6g}") for name, value in logs.items()}
        loss = row.get("val_tokens_loss", row.get("val_loss", row["loss"]))
        row["perplexity"] = float(f"{math.exp(min(loss, 99)):.6g}")
        self.rows.append(row)
        self._write_table()
        draw(self.rows, self.folder / "curves.png")

    def _write_table(self):
        aside = self.folder / ".curves.csv"
        with open(aside, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(name for row in self.rows for name in row)))
            writer.writeheader()
            writer.writerows(self.rows)
        os.replace(aside, self.folder / "curves.csv")


def draw(rows, path):
    """Loss and accuracy over the updates, training and held out, as PNG; nothing without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, kind in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for name in rows[-1]:
            if name.endswith(kind):
                known = [row for row in rows if name in row]
                axes.plot([row["step"] for row in known], [row[name] for row in known], label=name)
        axes.set(xlabel="updates", ylabel=f"{kind} (nats)" if kind == "loss" else kind)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=100)


def tensorboard(folder):
    """Keras' callback for TensorBoard."""
    return keras.callbacks.TensorBoard(str(folder), write_graph=False, update_freq="epoch")
