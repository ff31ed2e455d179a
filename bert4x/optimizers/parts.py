"""The extensions of optimizers, each a small change of one update, in their order."""

import warnings

from bert4x.backend import ops, piecewise_linear
from bert4x.optimizers.averaging import AveragedWeights
from bert4x.optimizers.base import add_slot, mean, read, slots_like, variable_path
from bert4x.optimizers.extended import Extension, as_list, matching


class GradientAccumulation(Extension):
    """One update with the mean gradient of n calls; Keras' own accumulator, which also takes n = 1."""

    def __init__(self, grad_accum_steps=2):
        if grad_accum_steps < 1:
            raise ValueError(f"grad_accum_steps must be at least 1; got {grad_accum_steps!r}. 1 turns it off.")
        self.grad_accum_steps = grad_accum_steps

    def base_options(self):
        """Keras refuses 1."""
        return {"gradient_accumulation_steps": self.grad_accum_steps if self.grad_accum_steps > 1 else None}


class GradientCentralization(Extension):
    """g <- g - mean(g over all axes but the last), for variables of two axes or more."""

    def __init__(self, exclude_from_gradient_centralization=()):
        option = "exclude_from_gradient_centralization"
        self.exclude_from_gradient_centralization = as_list(exclude_from_gradient_centralization, option)

    def build(self, optimizer, variables):
        """Match the patterns."""
        option = "exclude_from_gradient_centralization"
        self.excluded = matching(self.exclude_from_gradient_centralization, variables, option)

    def gradient(self, gradient, step):
        """Subtract the mean."""
        if step.index in self.excluded or len(gradient.shape) < 2:
            return gradient
        return gradient - mean(gradient, range(len(gradient.shape) - 1))


class WeightDecay(Extension):
    """h <- h + w x."""

    row_wise = True

    def __init__(self, weight_decay_rate=0.01, exclude_from_weight_decay=()):
        self.weight_decay_rate = weight_decay_rate
        self.exclude_from_weight_decay = as_list(exclude_from_weight_decay, "exclude_from_weight_decay")

    def build(self, optimizer, variables):
        """Match the patterns."""
        self.excluded = matching(self.exclude_from_weight_decay, variables, "exclude_from_weight_decay")

    def delta(self, delta, step):
        """Pull the weights towards zero."""
        return delta if step.index in self.excluded else delta - step.rate * self.weight_decay_rate * step.before


class LayerAdaptation(Extension):
    """h <- h |x| / |h|, the trust ratio of LAMB."""

    def __init__(self, exclude_from_layer_adaptation=()):
        self.exclude_from_layer_adaptation = as_list(exclude_from_layer_adaptation, "exclude_from_layer_adaptation")

    def build(self, optimizer, variables):
        """Match the patterns."""
        self.excluded = matching(self.exclude_from_layer_adaptation, variables, "exclude_from_layer_adaptation")
        if getattr(optimizer, "multiply_by_parameter_scale", False):
            warnings.warn(
                "Layer adaptation on AdaFactor with multiply_by_parameter_scale normalises twice; turn one off.",
                stacklevel=2,
            )

    def delta(self, delta, step):
        """Make the norm of the update rate |x|."""
        if step.index in self.excluded:
            return delta
        size, change = (ops.sqrt(ops.sum(ops.square(value))) for value in (step.before, delta))
        one = ops.ones_like(change)
        usable = ops.logical_and(size > 0, change > 0)
        return delta * ops.where(usable, step.rate * size / ops.where(change > 0, change, one), one)


class PiecewiseLinearLearningRate(Extension):
    """rate <- rate s(u), s piecewise linear in the number u of updates made."""

    row_wise = True

    def __init__(self, lr_schedule=None):
        schedule = {0: 1} if lr_schedule is None else lr_schedule
        # JSON makes the keys strings.
        self.lr_schedule = {int(step): value for step, value in schedule.items()}
        if not self.lr_schedule or len(self.lr_schedule) < len(schedule) or min(self.lr_schedule) < 0:
            raise ValueError(f"lr_schedule must have distinct numbers of updates >= 0 as keys; got {schedule!r}.")

    def multiplier(self, updates):
        """s(u)."""
        return piecewise_linear(updates, self.lr_schedule)

    def delta(self, delta, step):
        """Scale the update."""
        return delta * ops.cast(self.multiplier(step.updates), delta.dtype)


class ParameterWiseLearningRate(Extension):
    """rate <- rate times the product of the values of all keys that are part of the variable's path."""

    row_wise = True

    def __init__(self, paramwise_lr_schedule=None):
        self.paramwise_lr_schedule = dict(paramwise_lr_schedule or {})

    def build(self, optimizer, variables):
        """Match the keys."""
        paths = [variable_path(variable) for variable in variables]
        self.multipliers = [1.0] * len(paths)
        for key, value in self.paramwise_lr_schedule.items():
            if not any(key in path for path in paths):
                warnings.warn(
                    f"paramwise_lr_schedule: {key!r} is in no variable's path, e.g. {paths[0]!r}.", stacklevel=2
                )
            self.multipliers = [old * (value if key in path else 1.0)
                                for old, path in zip(self.multipliers, paths, strict=True)]

    def delta(self, delta, step):
        """Scale the update."""
        factor = self.multipliers[step.index]
        return delta if factor == 1 else delta * factor


class LazyOptimization(Extension):
    """Rows whose gradient is exactly zero stay; with `freeze_moments` so do their moments."""

    row_wise = True

    def __init__(self, include_in_lazy_optimization=(), freeze_moments=False):
        self.include_in_lazy_optimization = as_list(include_in_lazy_optimization, "include_in_lazy_optimization")
        self.freeze_moments = freeze_moments

    def build(self, optimizer, variables):
        """Match the patterns and find the state to freeze."""
        self.included = matching(self.include_in_lazy_optimization, variables, "include_in_lazy_optimization")
        self.frozen = {index: slots_like(optimizer, index) for index in self.included if self.freeze_moments}

    def gradient(self, gradient, step):
        """Remember the moments."""
        step.notes["moments"] = [read(slot, step.rows) for slot in self.frozen.get(step.index, ())]
        return gradient

    def delta(self, delta, step):
        """Undo what happened to rows without gradient."""
        if step.index not in self.included:
            return delta
        active = ops.any(step.gradient != 0, axis=-1, keepdims=True)
        for slot, old in zip(self.frozen.get(step.index, ()), step.notes["moments"], strict=True):
            step.write(slot, ops.where(active, read(slot, step.rows), old))
        return ops.where(active, delta, ops.zeros_like(delta))


class Lookahead(Extension):
    """After every k-th update: slow <- slow + alpha (x - slow);  x <- slow."""

    def __init__(self, steps_per_slow_update=5, slow_step_size=0.5):
        if steps_per_slow_update < 1:
            raise ValueError(f"steps_per_slow_update must be at least 1; got {steps_per_slow_update!r}.")
        self.steps_per_slow_update = steps_per_slow_update
        self.slow_step_size = slow_step_size

    def build(self, optimizer, variables):
        """Make the slow weights, which the first update fills: weights may be loaded after this."""
        self.slow = [add_slot(optimizer, variable, "slow") for variable in variables]

    def weights(self, weights, step):
        """Synchronise every k-th time."""
        slot = self.slow[step.index]
        slow = ops.where(step.updates == 0, step.before, read(slot))
        is_slow_update = (step.updates + 1) % self.steps_per_slow_update == 0
        slow = ops.where(is_slow_update, slow + self.slow_step_size * (weights - slow), slow)
        step.write(slot, slow)
        return ops.where(is_slow_update, slow, weights)


class ExponentialMovingAverage(Extension):
    """e <- mu e + (1 - mu) x, beside training; the optimizer gets the methods of `AveragedWeights`."""

    mixins = (AveragedWeights,)

    def __init__(self, ema_momentum=0.999):
        if not 0 <= ema_momentum < 1:
            raise ValueError(f"ema_momentum must be in [0, 1); got {ema_momentum!r}.")
        self.ema_momentum = ema_momentum

    def base_options(self):
        """Keras' own average starts differently and overwrites the weights."""
        return {"use_ema": False}

    def build(self, optimizer, variables):
        """Make the averages."""
        self.averages = [add_slot(optimizer, variable, "average") for variable in variables]

    def weights(self, weights, step):
        """Take the new weights into the average."""
        average = self.averages[step.index]
        step.write(average, self.ema_momentum * read(average) + (1 - self.ema_momentum) * weights)
        return weights


# The order in which they act, whatever the order of calls. Decay is part of what layer adaptation measures; rates come
# after it, since it would divide them out; lazy rows are cut out of the complete change; the average sees the weights
# that Lookahead leaves. Accumulation and clipping happen in Keras, before all this.
ORDER = (
    GradientAccumulation,
    GradientCentralization,
    WeightDecay,
    LayerAdaptation,
    PiecewiseLinearLearningRate,
    ParameterWiseLearningRate,
    LazyOptimization,
    Lookahead,
    ExponentialMovingAverage,
)
