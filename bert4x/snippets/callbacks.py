"""Callbacks for `fit`: keep the best weights and stop early, resume an interrupted run, show the learning rate."""

import contextlib
import json
import os
from pathlib import Path

import numpy as np

from bert4x.backend import keras, runtime


class BestWeights(keras.callbacks.Callback):
    """Saves the weights whenever the score of an epoch is better than all before; may end training early.

    The score and the best score so far enter the logs (the last line of the progress bar) as `score`,
    `best_score`.

    Args:
        filepath: ends in ".weights.h5"; read it back with `model.load_weights`, before `compile` (Keras
            writes the optimizer too, and warns if it does not find the same one). It is written aside and
            renamed, so it is always whole.
        score: function of the model that returns a number, e.g. the task's metric on the dev set; or a key of
            the logs.
        mode: "max" if more is better, "min" if less is.
        restore: load the best weights when training ends.
        patience: end training after so many epochs in a row without a better score.
        saved: the model whose weights are saved and that `score` is given, where it is not the one that is trained:
            what is used afterwards, of a training model that shares its weights.
    Raises:
        ValueError for another suffix, mode or patience, or a score that is missing or NaN.
    """

    def __init__(self, filepath, score, *, mode="max", restore=False, patience=None, saved=None):
        super().__init__()
        if not str(filepath).endswith(".weights.h5"):
            raise ValueError(f"filepath must end in '.weights.h5', as Keras demands; got {str(filepath)!r}.")
        if mode not in ("max", "min"):
            raise ValueError(f"mode must be 'max' or 'min'; got {mode!r}.")
        if patience is not None and patience < 1:
            raise ValueError(f"patience must be at least 1 epoch, or None; got {patience!r}.")
        self.filepath = Path(filepath)
        self.score = score
        self.sign = 1 if mode == "max" else -1
        self.restore = restore
        self.patience, self.saved = patience, saved
        self.best, self.waited = None, 0  # `waited`: epochs since the best one

    def on_epoch_end(self, epoch, logs=None):
        """Score the model and save it if it is the best."""
        logs = {} if logs is None else logs
        trained = self.model  # reading it brings JAX's state back into the variables, also those of `saved`
        model = trained if self.saved is None else self.saved
        score = self._score(model, logs)
        self.waited += 1
        if self.best is None or self.sign * score > self.sign * self.best:
            self.best, self.waited = score, 0
            aside = self.filepath.with_name(f".{os.getpid()}-{self.filepath.name}")
            model.save_weights(aside)
            os.replace(aside, self.filepath)
        if self.patience is not None and self.waited >= self.patience:
            trained.stop_training = True
        logs["score"], logs["best_score"] = score, self.best

    def _score(self, model, logs):
        if callable(self.score):
            score = float(self.score(model))
        elif self.score in logs:
            score = float(logs[self.score])
        else:
            raise ValueError(f"score must be a function or one of {sorted(logs)}; got {self.score!r}.")
        if np.isnan(score):
            raise ValueError("the score is NaN: training has diverged, or the metric divides by zero.")
        return score

    def on_train_end(self, logs=None):
        """Load the best weights if asked to."""
        if self.restore and self.best is not None:
            (self.model if self.saved is None else self.saved).load_weights(self.filepath)

    def get_state(self):
        """Return the best score, for `Resume`."""
        return {"best": self.best, "waited": self.waited}

    def set_state(self, state):
        """Take over the best score of an interrupted run."""
        self.best, self.waited = state["best"], state.get("waited", 0)


class Resume(keras.callbacks.Callback):
    """Stores everything a run needs after each epoch, and continues an interrupted run where it was.

    The file holds all weights, the optimizer's state, the states of the seed generators (dropout), on torch
    its own generator too, the epoch, the shuffle seed and position of the data. It is written aside and
    renamed, and removed when training ends. A resumed run gives the same weights as one that was not
    interrupted; bit for bit on TensorFlow's CPU. Make it before `fit` is called and put it last among the
    callbacks:

        resume = Resume("run.npz", generator, tracked=[best])
        model.fit(generator.forfit(), steps_per_epoch=len(generator), epochs=9, callbacks=[best, resume])

    Args:
        filepath: file of the state; its folder must exist.
        data: the `DataGenerator` whose `forfit` is trained on, or None if the order of the data is not to be
            restored.
        tracked: other objects to carry on, with get_state() -> numbers and set_state(state), e.g.
            `BestWeights`.
        keep: do not remove the file when training ends.
        fresh: begin anew, and remove the file if there is one.
    Raises:
        ValueError if the file belongs to a model with other weights.
    """

    def __init__(self, filepath, data=None, *, tracked=(), keep=False, fresh=False):
        super().__init__()
        self.filepath = Path(filepath)
        self.data = data
        self.tracked = tracked
        self.keep = keep
        self.batches = 0  # batches that `fit` has used since it began
        self._steps = 0  # of these, in the running epoch
        self._random_state = None
        self._saved = None
        if fresh:
            self.filepath.unlink(missing_ok=True)
        if self.filepath.exists():
            self._saved = _read(self.filepath)
            self._restore_data()

    @property
    def epoch(self):
        """The number of epochs that the file holds, 0 if there was none."""
        return 0 if self._saved is None else self._saved[0]["epoch"]

    def _restore_data(self):
        # Now, and not in on_train_begin: on JAX and torch Keras reads batches before that.
        facts, _ = self._saved
        if self.data is not None and facts["data"] is not None:
            self.data.set_state(facts["data"])
        for item, state in zip(self.tracked, facts["tracked"], strict=True):
            item.set_state(state)

    def on_train_begin(self, logs=None):
        """Restore the weights and let `fit` begin at the right epoch."""
        self.batches = self._steps = 0
        if self._saved is None:
            return
        facts, arrays = self._saved
        model = self.model
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        _assign(_variables(model), arrays, self.filepath)
        self._random_state = {name[6:]: x for name, x in arrays.items() if name.startswith("state/")}
        model._initial_epoch = facts["epoch"]  # as BackupAndRestore does; `fit` reads it next
        self._saved = None

    def on_train_batch_begin(self, batch, logs=None):
        """Restore torch's generator; not before, since making the data iterator draws from it."""
        if self._random_state is not None:
            runtime.set_random_state(self._random_state)
            self._random_state = None

    def on_train_batch_end(self, batch, logs=None):
        """Count the batches used."""
        self._steps = batch + 1

    def on_epoch_end(self, epoch, logs=None):
        """Write the state."""
        self.batches += self._steps
        self._steps = 0
        facts = {
            "epoch": epoch + 1,
            "data": None if self.data is None else self.data.get_state(self.batches),
            "tracked": [item.get_state() for item in self.tracked],
        }
        optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
        with getattr(optimizer, "trained_weights", contextlib.nullcontext)():  # `EvaluateWithEMA` has put in others
            _write(self.filepath, facts, _variables(self.model), runtime.random_state())

    def on_train_end(self, logs=None):
        """Remove the file: the run is complete."""
        self.model._initial_epoch = None  # a later `fit` of this model begins at 0 again
        if not self.keep:
            self.filepath.unlink(missing_ok=True)


def _variables(model):
    """Return all variables of a model, seed generators included, and those of its optimizer."""
    return [*model.variables, *model.optimizer.variables]


def _write(filepath, facts, variables, random_state):
    """Write a state file aside and rename it."""
    arrays = {f"state/{name}": state for name, state in random_state.items()}
    for number, variable in enumerate(variables):
        array = runtime.to_numpy(variable)
        # NumPy's files do not know bfloat16; float32 holds it exactly.
        arrays[f"variable/{number}"] = array.astype("float32") if array.dtype.name == "bfloat16" else array
    arrays["facts"] = np.array(json.dumps(facts))
    aside = filepath.with_name(f".{os.getpid()}-{filepath.name}")
    with open(aside, "wb") as file:
        np.savez(file, **arrays)
    os.replace(aside, filepath)


def _read(filepath):
    """Return the facts and the arrays of a state file."""
    with np.load(filepath) as file:
        arrays = dict(file)
    return json.loads(str(arrays.pop("facts"))), arrays


def _assign(variables, arrays, filepath):
    """Give the variables their stored values, after checking that all of them fit."""
    stored = [x for name, x in arrays.items() if name.startswith("variable/")]
    if [tuple(v.shape) for v in variables] != [x.shape for x in stored]:
        raise ValueError(
            f"{filepath} must hold the variables of this model and its optimizer; it holds {len(stored)}, "
            f"needed are {len(variables)}, or their shapes differ. Remove the file to begin anew."
        )
    for variable, array in zip(variables, stored, strict=True):
        variable.assign(array)


class LearningRateLogger(keras.callbacks.Callback):
    """Puts the effective learning rate of the last step into the logs as `learning_rate`.

    It is read before each step, since after it a schedule already gives the rate of the next one. With
    `steps_per_execution` above 1 it is the rate of the first step executed. The schedules of bert4x.optimizers are
    included; of accumulated micro-batches each shows the rate of the update that it becomes part of.

    It stands before the callbacks that write logs: `CSVLogger`, `RunPlot`, `bert4x.snippets.TensorBoard`.

    Args:
        key: name in the logs. Keras' own TensorBoard callback overwrites `learning_rate` by the rate without those
            schedules: with it, take another name.
    """

    def __init__(self, *, key="learning_rate"):
        super().__init__()
        self.key = key
        self.learning_rate = None

    def on_train_batch_begin(self, batch, logs=None):
        """Read the rate of the coming step."""
        # `self.model` (not `_model`) brings JAX's state back into the variables.
        optimizer = self.model.optimizer
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # float16 wraps it to scale the loss
        with_schedule = getattr(optimizer, "effective_learning_rate", None)
        rate = optimizer.learning_rate if with_schedule is None else with_schedule()
        self.learning_rate = float(runtime.to_numpy(rate))

    def on_train_batch_end(self, batch, logs=None):
        """Show it in the progress bar."""
        if logs is not None:
            logs[self.key] = self.learning_rate

    def on_epoch_end(self, epoch, logs=None):
        """Keep it in the history."""
        if logs is not None and self.learning_rate is not None:
            logs[self.key] = self.learning_rate
