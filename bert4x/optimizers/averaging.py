"""Puts the moving average of the weights into the model and back."""

import contextlib

from bert4x.backend import keras, ops


class AveragedWeights:
    """Methods of an optimizer with the extension `ExponentialMovingAverage`."""

    _old_weights = None

    def apply_ema_weights(self, bias_correction=True):
        """Put the average e / (1 - mu^t) into the model, keeping the weights for `reset_old_weights`.

        A second call in a row puts it there again and loses nothing. A variable that never had a gradient keeps its
        value.

        Args:
            bias_correction: False takes e itself, which starts at zero.
        Raises: RuntimeError before the first update.
        """
        part = self._ema()
        updates = int(ops.convert_to_numpy(self.iterations))
        if updates == 0:
            raise RuntimeError("There is no average before the first update of this optimizer. Train first.")
        if self._old_weights is None:
            self._old_weights = tuple(ops.copy(ops.convert_to_tensor(v)) for v in self._trainable_variables)
        scale = 1 - part.ema_momentum**updates if bias_correction else 1.0
        for variable, average in zip(self._trainable_variables, part.averages, strict=True):
            average = ops.convert_to_tensor(average)
            if bool(ops.convert_to_numpy(ops.any(average != 0))):
                variable.assign(ops.cast(average / scale, variable.dtype))

    def reset_old_weights(self):
        """Put the weights back that `apply_ema_weights` replaced, exactly.

        Raises: RuntimeError without a call of `apply_ema_weights`.
        """
        if self._old_weights is None:
            raise RuntimeError("reset_old_weights needs a call of apply_ema_weights before it; there was none.")
        for variable, old in zip(self._trainable_variables, self._old_weights, strict=True):
            variable.assign(old)
        self._old_weights = None

    @contextlib.contextmanager
    def trained_weights(self):
        """Context in which the model has the weights that are trained, also while the average is in it otherwise."""
        old = self._old_weights
        if old is None:
            yield
            return
        averages = [ops.copy(ops.convert_to_tensor(variable)) for variable in self._trainable_variables]
        self.reset_old_weights()
        try:
            yield
        finally:
            for variable, average in zip(self._trainable_variables, averages, strict=True):
                variable.assign(average)
            self._old_weights = old

    def _ema(self):
        return next(part for part in self._parts if hasattr(part, "averages"))


def _with_average(model):
    """The model's optimizer, without the loss scaling that float16 puts around it."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if not isinstance(optimizer, AveragedWeights):
        raise ValueError(
            f"The model's optimizer must keep an average; got {type(optimizer).__name__}. Make its class with "
            "extend_with_exponential_moving_average."
        )
    return optimizer


@contextlib.contextmanager
def ema_weights(model, *, bias_correction=True):
    """Context in which the model has its averaged weights; after it, also after an error, the old ones.

    Args:
        model: a compiled model whose optimizer keeps an average.
        bias_correction: as in `apply_ema_weights`.
    """
    optimizer = _with_average(model)
    optimizer.apply_ema_weights(bias_correction)
    try:
        yield model
    finally:
        optimizer.reset_old_weights()


class EvaluateWithEMA(keras.callbacks.Callback):
    """Evaluates and saves the averaged weights: they are in the model during validation and after each epoch.

    Put it first in the list of callbacks, so that those which save or score at the end of an epoch find the average.
    The weights come back when the next epoch begins and when training ends. Until the first update (accumulation over
    more steps than an epoch has, float16 that overflows at first) there is no average and the weights stay.
    """

    def __init__(self):
        super().__init__()
        self.applied = False

    def _apply(self):
        optimizer = _with_average(self.model)
        if not self.applied and int(ops.convert_to_numpy(optimizer.iterations)) > 0:
            optimizer.apply_ema_weights()
            self.applied = True

    def _reset(self):
        if self.applied:
            _with_average(self.model).reset_old_weights()
            self.applied = False

    def on_test_begin(self, logs=None):
        """Validate with the average."""
        self._apply()

    def on_test_end(self, logs=None):
        """Back to the weights."""
        self._reset()

    def on_epoch_end(self, epoch, logs=None):
        """Let the other callbacks see the average."""
        self._apply()

    def on_epoch_begin(self, epoch, logs=None):
        """Train on from the weights."""
        self._reset()

    def on_train_end(self, logs=None):
        """Leave the model with its weights."""
        self._reset()
