"""AdaFactor's learning rate as a function of the number of updates."""

from bert4x.backend import keras, ops
from bert4x.optimizers.base import register


@register
class RelativeStep(keras.optimizers.schedules.LearningRateSchedule):
    """AdaFactor's own learning rate:  factor * min(0.01, 1 / sqrt(t)).

    Args:
        factor: 1 where updates are relative to the size of the weights, else 0.05.
    Source: arXiv:1804.04235 algorithm 5.
    """

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = factor

    def __call__(self, step):
        """Rate after `step` updates."""
        t = ops.cast(step + 1, keras.config.floatx())
        return self.factor * ops.minimum(ops.full_like(t, 1e-2), ops.rsqrt(t))

    def get_config(self):
        """Arguments of the constructor."""
        return {"factor": self.factor}
