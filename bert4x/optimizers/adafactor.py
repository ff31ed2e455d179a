"""AdaFactor, which keeps row and column means instead of a second moment."""

import re

from bert4x.backend import ops
from bert4x.optimizers.base import Optimizer, at_least, mean, register, root_mean_square, variable_path
from bert4x.optimizers.schedules import RelativeStep


@register
class AdaFactor(Optimizer):
    """AdaFactor: Adam's scaling with n + m instead of n m numbers for an n x m matrix.

    q = g^2 + epsilon1;  b = 1 - t^-0.8
    r <- b r + (1 - b) mean(q over A);  c <- b c + (1 - b) mean(q over B);  v = r c / mean(r over B)
    z = g / sqrt(v + epsilon1);  z <- z / max(1, rms(z) / clipping_threshold)
    h = z max(rms(x), epsilon2)
    A is the largest axis, B the second largest. If B is too small, v is kept whole.

    Args:
        learning_rate: float, a Keras schedule, or None for min(0.01, 1 / sqrt(t)), times 0.05 without
            `multiply_by_parameter_scale`. Larger than Adam's, about 1e-3 even for fine-tuning.
        beta1: decay of a momentum of z; 0 keeps no such slot.
        beta2: a constant for b.
        epsilon1: floor of the squared gradient.
        epsilon2: floor of rms(x); variables that start from zero, such as biases, move slowly because of it.
        multiply_by_parameter_scale: whether the update is relative to rms(x).
        clipping_threshold: largest rms of z, or None.
        min_dim_size_to_factor: size that B must have.
        exclude_from_parameter_scale: patterns searched in the variable's path, whose update is not relative.
        **options: those of `keras.optimizers.Optimizer`.
    Source: arXiv:1804.04235 algorithms 4 and 5.
    """

    def __init__(
        self,
        learning_rate=1e-3,
        beta1=0.0,
        *,
        beta2=None,
        epsilon1=1e-30,
        epsilon2=1e-3,
        multiply_by_parameter_scale=True,
        clipping_threshold=1.0,
        min_dim_size_to_factor=128,
        exclude_from_parameter_scale=None,
        name="adafactor",
        **options,
    ):
        relative = RelativeStep(1.0 if multiply_by_parameter_scale else 0.05)
        super().__init__(learning_rate=relative if learning_rate is None else learning_rate, name=name, **options)
        self.beta1, self.beta2, self.epsilon1, self.epsilon2 = beta1, beta2, epsilon1, epsilon2
        self.multiply_by_parameter_scale = multiply_by_parameter_scale
        self.clipping_threshold = clipping_threshold
        self.min_dim_size_to_factor = min_dim_size_to_factor
        self.exclude_from_parameter_scale = list(exclude_from_parameter_scale or [])

    def build(self, variables):
        """Create the slots and match the patterns."""
        if self.built:
            return
        super().build(variables)
        self._scaled = [self.multiply_by_parameter_scale and not self._is_excluded(v) for v in variables]

    def _is_excluded(self, variable):
        return any(re.search(pattern, variable_path(variable)) for pattern in self.exclude_from_parameter_scale)

    def factored_axes(self, shape):
        """The axes (A, B), or None where v is kept whole."""
        if len(shape) < 2:
            return None
        b, a = sorted(range(len(shape)), key=lambda axis: shape[axis])[-2:]
        return (a, b) if shape[b] >= self.min_dim_size_to_factor else None

    def slot_shapes(self, shape):
        """Two factors or one whole moment, and the momentum if there is one."""
        axes = self.factored_axes(shape)
        if axes is None:
            slots = {"velocity": shape}
        else:
            row, column = ([1 if axis == out else size for axis, size in enumerate(shape)] for out in axes)
            slots = {"row": row, "column": column}
        return {**slots, "momentum": shape} if self.beta1 > 0 else slots

    def direction(self, step, slots):
        """h = z max(rms(x), epsilon2)."""
        t, new = step.time(), {}
        decay = 1 - ops.exp(-0.8 * ops.log(t)) if self.beta2 is None else self.beta2
        second = self._second_moment(step.gradient, decay, slots, new)
        z = step.gradient / ops.sqrt(second + self.epsilon1)
        if self.clipping_threshold is not None:
            z = z / at_least(root_mean_square(z) / self.clipping_threshold, 1.0)
        if self.beta1 > 0:
            z = new["momentum"] = self.beta1 * slots["momentum"] + (1 - self.beta1) * z
        if self._scaled[step.index]:
            z = z * at_least(root_mean_square(step.before), self.epsilon2)
        return z, new

    def _second_moment(self, gradient, decay, slots, new):
        """v, with the new values of its slots put into `new`."""
        q = ops.square(gradient) + self.epsilon1
        axes = self.factored_axes(gradient.shape)
        if axes is None:
            new["velocity"] = decay * slots["velocity"] + (1 - decay) * q
            return new["velocity"]
        for name, axis in zip(("row", "column"), axes, strict=True):
            new[name] = decay * slots[name] + (1 - decay) * mean(q, [axis])
        return new["row"] * new["column"] / mean(new["row"], axes[1:])

    def get_config(self):
        """Arguments of the constructor."""
        names = (
            "beta1", "beta2", "epsilon1", "epsilon2", "multiply_by_parameter_scale", "clipping_threshold",
            "min_dim_size_to_factor", "exclude_from_parameter_scale",
        )
        config = {**super().get_config(), **{name: getattr(self, name) for name in names}}
        if isinstance(self._learning_rate, RelativeStep):
            config["learning_rate"] = None
        return config
