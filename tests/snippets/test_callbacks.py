"""Best weights, the effective learning rate, and a run that is killed and resumed."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from bert4x.backend import keras, ops, runtime
from bert4x.snippets import BestWeights, DataGenerator, LearningRateLogger, Resume, set_seed


def data():
    draw = np.random.default_rng(0)
    return [(draw.integers(0, 30, 6), draw.integers(0, 2)) for _ in range(22)]


def collate(records):
    ids, labels = zip(*records, strict=True)
    return np.array(ids), np.array(labels)


def bare():
    return keras.Sequential([
        keras.Input((None,), dtype="int32"),
        keras.layers.Embedding(30, 8),
        keras.layers.Dropout(0.5),
        keras.layers.GlobalAveragePooling1D(),
        keras.layers.Dense(2, activation="softmax"),
    ])


def classifier(learning_rate=0.01):
    model = bare()
    model.compile(keras.optimizers.Adam(learning_rate), "sparse_categorical_crossentropy")
    return model


class Kill(keras.callbacks.Callback):
    """Ends the process without any clean-up when an epoch begins."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            os._exit(9)


def train(folder, epochs, kill=None, steps=4):
    """Train in `folder`, resuming if there is something to resume; return the weights and the history."""
    set_seed(3)
    model = classifier(keras.optimizers.schedules.ExponentialDecay(0.02, 5, 0.9))
    generator = DataGenerator(data(), 5, collate=collate, seed=1)
    best = BestWeights(folder / "best.weights.h5", lambda model: -model.evaluate(*collate(data()), verbose=0))
    resume = Resume(folder / "run.npz", generator, tracked=[best])
    start = resume.epoch
    history = model.fit(
        generator.forfit(), steps_per_epoch=steps, epochs=epochs, verbose=0,
        callbacks=[best, LearningRateLogger(), resume, *([] if kill is None else [Kill(kill)])],
    )
    return model, history.history, start


def digest(model):
    """A fingerprint of the weights and the optimizer's state, bit for bit."""
    values = [runtime.to_numpy(v).tobytes() for v in [*model.variables, *model.optimizer.variables]]
    return hashlib.sha256(b"".join(values)).hexdigest()


def run_and_kill(folder, epoch):
    """Train in a process of its own that dies when this epoch begins."""
    code = (
        "import pathlib, tests.snippets.test_callbacks as t; "
        f"t.train(pathlib.Path({str(folder)!r}), 4, kill={epoch})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 9, done.stderr


def test_a_killed_run_resumes_to_the_same_weights(tmp_path):
    # 4 steps an epoch, but 5 batches a pass: the run is cut inside a pass of the data.
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    whole.mkdir()
    resumed.mkdir()
    expected, history, _ = train(whole, 4)
    run_and_kill(resumed, 2)
    assert sorted(os.listdir(resumed)) == ["best.weights.h5", "run.npz"]
    model, rest, start = train(resumed, 4)
    assert start == 2 and len(rest["loss"]) == 2
    assert digest(model) == digest(expected)
    assert rest["best_score"] == history["best_score"][2:]
    assert rest["learning_rate"] == history["learning_rate"][2:]
    assert sorted(os.listdir(resumed)) == ["best.weights.h5"]  # the run is complete


def test_resume_errors_and_keep(tmp_path):
    model = classifier()
    x, y = collate(data())
    model.fit(x, y, epochs=1, verbose=0, callbacks=[Resume(tmp_path / "run.npz", keep=True)])
    assert os.listdir(tmp_path) == ["run.npz"]
    # A finished run has nothing left to do; more epochs go on from there; a later fit starts at 0 again.
    resume = Resume(tmp_path / "run.npz", keep=True)
    history = model.fit(x, y, epochs=2, verbose=0, callbacks=[resume])
    assert history.epoch == [1]
    assert model.fit(x, y, epochs=2, verbose=0).epoch == [0, 1]
    small = keras.Sequential([keras.Input((None,), dtype="int32"), keras.layers.Embedding(30, 4),
                              keras.layers.GlobalMaxPooling1D(), keras.layers.Dense(2, activation="softmax")])
    small.compile("adam", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match="Remove the file"):
        small.fit(x, y, verbose=0, callbacks=[Resume(tmp_path / "run.npz")])


def test_a_complete_run_is_not_repeated_unless_told_so(tmp_path):
    """What a script of several stages meets that is killed in a later one."""
    x, y = collate(data())
    scores = iter([0.5, 0.4, 0.3, 0.2])

    def run(**options):
        best = BestWeights(tmp_path / "best.weights.h5", lambda _: next(scores), restore=True)
        resume = Resume(tmp_path / "run.npz", tracked=[best], keep=True, **options)
        model = classifier()
        history = model.fit(x, y, epochs=2, verbose=0, callbacks=[best, resume])
        return history.epoch, best.best, [runtime.to_numpy(w) for w in model.weights]

    epochs, best, weights = run()
    assert (epochs, best) == ([0, 1], 0.5)
    epochs, best, again = run()
    assert (epochs, best) == ([], 0.5)
    for one, two in zip(weights, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert run(fresh=True)[:2] == ([0, 1], 0.3)


def test_best_weights(tmp_path):
    path = tmp_path / "best.weights.h5"
    scores = iter([0.3, 0.5, 0.4])
    seen = []

    def evaluate(model):
        seen.append([runtime.to_numpy(w) for w in model.weights])
        return next(scores)

    model = classifier()
    x, y = collate(data())
    best = BestWeights(path, evaluate, restore=True)
    history = model.fit(x, y, epochs=3, verbose=0, callbacks=[best]).history
    assert history["score"] == [0.3, 0.5, 0.4] and history["best_score"] == [0.3, 0.5, 0.5]
    assert os.listdir(tmp_path) == [path.name]  # nothing is left aside
    for weight, expected in zip(model.weights, seen[1], strict=True):
        np.testing.assert_array_equal(runtime.to_numpy(weight), expected)
    other = bare()
    other.load_weights(path)
    np.testing.assert_array_equal(runtime.to_numpy(other.weights[0]), seen[1][0])


def test_patience(tmp_path):
    """Stops after two epochs without a better score, also where the run was resumed in between."""
    x, y = collate(data())
    scores = [0.3, 0.5, 0.4, 0.5, 0.6]
    best = BestWeights(tmp_path / "a.weights.h5", lambda _: scores[len(seen) - 1], patience=2)
    seen = []

    class Count(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            seen.append(epoch)

    classifier().fit(x, y, epochs=9, verbose=0, callbacks=[Count(), best])
    assert seen == [0, 1, 2, 3] and best.best == 0.5 and best.waited == 2
    again = BestWeights(tmp_path / "a.weights.h5", lambda _: 0.2, patience=2)
    again.set_state({**best.get_state(), "waited": 1})
    assert len(classifier().fit(x, y, epochs=9, verbose=0, callbacks=[again]).epoch) == 1
    with pytest.raises(ValueError, match="patience"):
        BestWeights(tmp_path / "a.weights.h5", "loss", patience=0)


def test_the_weights_of_another_model_are_saved(tmp_path):
    """A training model around the model that is used: the file loads into the latter."""
    used = bare()
    training = keras.Model(used.inputs, keras.layers.Rescaling(1.0)(used.outputs[0]))
    training.compile("adam", "sparse_categorical_crossentropy")
    given = []
    best = BestWeights(tmp_path / "a.weights.h5", lambda m: given.append(m) or 1.0, saved=used, restore=True)
    training.fit(*collate(data()), verbose=0, callbacks=[best])
    other = bare()
    other.load_weights(tmp_path / "a.weights.h5")
    assert given == [used]
    np.testing.assert_array_equal(runtime.to_numpy(other.weights[0]), runtime.to_numpy(used.weights[0]))


KILLED_WHILE_WRITING = """
import os, sys
from tests.snippets.test_callbacks import *

def killed(path, *args, **kwargs):
    with open(path, "wb") as file:
        file.write(b"half a file")
    os._exit(9)

class Breaks(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            self.model.save_weights = killed

scores = iter([1, 2])
best = BestWeights(sys.argv[1], lambda model: next(scores))
set_seed(0)
model = classifier()
model.fit(*collate(data()), epochs=2, verbose=0, callbacks=[Breaks(), best])
"""


def test_a_kill_while_the_weights_are_written_leaves_the_old_ones(tmp_path):
    path = tmp_path / "best.weights.h5"
    done = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, str(path)], capture_output=True, text=True)
    assert done.returncode == 9, done.stderr
    assert path.name in os.listdir(tmp_path) and len(os.listdir(tmp_path)) == 2  # the other is the half file
    set_seed(0)
    model = classifier()
    model.fit(*collate(data()), epochs=1, verbose=0)
    other = bare()
    other.load_weights(path)
    for one, two in zip(model.weights, other.weights, strict=True):
        np.testing.assert_allclose(runtime.to_numpy(one), runtime.to_numpy(two), rtol=0, atol=1e-7)


def test_best_weights_by_a_key_of_the_logs(tmp_path):
    model = classifier()
    x, y = collate(data())
    best = BestWeights(tmp_path / "a.weights.h5", "val_loss", mode="min")
    history = model.fit(x, y, epochs=3, validation_data=(x, y), verbose=0, callbacks=[best]).history
    assert best.best == min(history["val_loss"])
    with pytest.raises(ValueError, match="val_accuracy"):
        model.fit(x, y, verbose=0, callbacks=[BestWeights(tmp_path / "a.weights.h5", "val_accuracy")])
    with pytest.raises(ValueError, match="NaN"):
        model.fit(x, y, verbose=0, callbacks=[BestWeights(tmp_path / "a.weights.h5", lambda _: float("nan"))])
    with pytest.raises(ValueError, match="weights.h5"):
        BestWeights(tmp_path / "best.model", "loss")
    with pytest.raises(ValueError, match="mode"):
        BestWeights(tmp_path / "a.weights.h5", "loss", mode="auto")


def test_learning_rate_of_the_last_step(capsys):
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([2, 5], [0.5, 0.25, 0.125])
    model = classifier(schedule)
    x, y = collate(data())
    seen = []

    class Spy(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(logs["learning_rate"])

    history = model.fit(x, y, batch_size=6, epochs=2, verbose=2, callbacks=[LearningRateLogger(), Spy()])
    assert seen == [float(ops.convert_to_numpy(schedule(step))) for step in range(8)]
    assert history.history["learning_rate"] == [seen[3], seen[7]] == [0.25, 0.125]
    assert "learning_rate: 0.1250" in capsys.readouterr().out
    plain = classifier(0.25)
    history = plain.fit(x, y, verbose=0, callbacks=[LearningRateLogger()])
    assert history.history["learning_rate"] == [0.25]


def test_set_seed_repeats_a_training():
    def weights():
        set_seed(7)
        model = classifier()
        model.fit(*collate(data()), batch_size=5, epochs=2, verbose=0)
        return [runtime.to_numpy(w) for w in model.weights]

    for a, b in zip(weights(), weights(), strict=True):
        np.testing.assert_array_equal(a, b)
