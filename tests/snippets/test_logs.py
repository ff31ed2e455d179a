"""What a run writes: the effective learning rate in CSV files and TensorBoard, and plots."""

import csv
import sys

import numpy as np
import pytest

from bert4x import optimizers as o
from bert4x.backend import keras
from bert4x.snippets import LearningRateLogger, Resume, RunPlot, TensorBoard, plot_history
from tests.snippets.test_callbacks import classifier, collate, data

PNG = b"\x89PNG\r\n\x1a\n"


def accumulating():
    """Six micro-batches an epoch, two to an update: the schedule must count updates."""
    cls = o.extend_with_gradient_accumulation(o.extend_with_piecewise_linear_lr(o.Adam))
    model = classifier()
    model.compile(cls(0.5, lr_schedule={4: 1, 8: 0.5}, grad_accum_steps=2), "sparse_categorical_crossentropy")
    return model


EVERY_RATE = np.repeat([0.0, 0.125, 0.25, 0.375, 0.5, 0.4375], 2)  # 0.5 s(u) of updates u = 0 ... 5, two batches each
RATES = EVERY_RATE[[5, 11]]  # of the last update of each epoch


def scalars(folder):
    """{tag: values} of the event files of TensorBoard."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
    from tensorboard.util.tensor_util import make_ndarray

    found = {}
    for path in sorted(folder.rglob("events*")):
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.HasField("tensor") and value.tag != "keras":
                    found.setdefault(value.tag, []).append(float(make_ndarray(value.tensor)))
    return found


def test_the_effective_rate_is_in_csv_files(tmp_path):
    x, y = collate(data())
    callbacks = [LearningRateLogger(), keras.callbacks.CSVLogger(tmp_path / "log.csv")]
    history = accumulating().fit(x, y, batch_size=4, epochs=2, verbose=0, callbacks=callbacks).history
    np.testing.assert_allclose(history["learning_rate"], RATES)
    with open(tmp_path / "log.csv", encoding="utf-8") as file:
        np.testing.assert_allclose([float(row["learning_rate"]) for row in csv.DictReader(file)], RATES)


def test_the_effective_rate_is_in_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    x, y = collate(data())
    for number, callback in enumerate((TensorBoard, keras.callbacks.TensorBoard)):
        board = callback(tmp_path / str(number), write_graph=False, update_freq=1)
        accumulating().fit(x, y, batch_size=4, epochs=2, verbose=0, callbacks=[LearningRateLogger(), board])
    ours, theirs = (scalars(tmp_path / number) for number in "01")
    np.testing.assert_allclose(ours["epoch_learning_rate"], RATES, rtol=1e-6)
    np.testing.assert_allclose(theirs["epoch_learning_rate"], [0.5, 0.5])  # why there is one of ours
    np.testing.assert_allclose(ours["batch_learning_rate"], EVERY_RATE, rtol=1e-6)


def test_the_run_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    x, y = collate(data())
    path, table = tmp_path / "run.png", tmp_path / "log.csv"
    plot = RunPlot(path)
    model = classifier()
    callbacks = [LearningRateLogger(), plot, keras.callbacks.CSVLogger(table)]
    resume = Resume(tmp_path / "run.npz", tracked=[plot], keep=True)
    history = model.fit(x, y, epochs=2, verbose=0, validation_data=(x, y), callbacks=[*callbacks, resume])
    assert path.read_bytes().startswith(PNG) and len(list(tmp_path.iterdir())) == 3
    assert plot.history == {name: [float(v) for v in values] for name, values in history.history.items()}
    again = RunPlot(path)
    resume = Resume(tmp_path / "run.npz", tracked=[again], keep=True)
    model.fit(x, y, epochs=3, verbose=0, validation_data=(x, y), callbacks=[LearningRateLogger(), again, resume])
    assert len(again.history["loss"]) == 3 and again.history["loss"][:2] == plot.history["loss"]
    for number, source in enumerate((history, history.history, table)):
        plot_history(source, tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").read_bytes().startswith(PNG)
    with pytest.raises(ValueError, match="at least one quantity"):
        plot_history({}, path)


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for draw in (lambda: RunPlot(tmp_path / "run.png"), lambda: plot_history({"loss": [1]}, tmp_path / "a.png")):
        with pytest.raises(ImportError, match=r'pip install "bert4x\[plot\]"'):
            draw()
