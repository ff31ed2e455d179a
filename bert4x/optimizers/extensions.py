"""The class factories `extend_with_...(base, name=None)`: an optimizer class in, one with more options out.

They work on every optimizer class of bert4x and of Keras and in any order of calls; the changes always act in the same
order (`parts.ORDER`). Options are arguments of the new class beside those of `base`, and part of its config. Patterns
are regular expressions searched in the variable's path, e.g. "Transformer-0-FeedForward-Norm/gamma"; a pattern that is
in none is a warning. To load a saved model, `import bert4x.optimizers` is enough.
"""

from bert4x.optimizers import parts
from bert4x.optimizers.extended import extend


def extend_with_gradient_accumulation(base, name=None):
    """One update for every n calls, with the mean of their gradients:  g = (g_1 + ... + g_n) / n.

    Equal to one batch n times as large if the loss is a mean over rows, all micro-batches have the same size, and there
    is neither dropout nor batch normalisation; a loss that divides by the number of tokens needs a fixed divisor then.
    Everything else, schedules too, counts updates. A group that an epoch leaves incomplete is completed by the next.

    Args:
        base: optimizer class, with the new option
            grad_accum_steps: n >= 1; default 2.
        name: name of the class.
    """
    return extend(base, parts.GradientAccumulation, parts.ORDER, name)


def extend_with_gradient_centralization(base, name=None):
    """Gradients without their mean over all axes but the last, for variables of two axes or more.

    Args:
        base: optimizer class, with the new option
            exclude_from_gradient_centralization: patterns; default [].
        name: name of the class.
    Source: arXiv:2004.01461.
    """
    return extend(base, parts.GradientCentralization, parts.ORDER, name)


def extend_with_weight_decay(base, name=None):
    """Decoupled weight decay:  x <- x - rate (h + w x), where h is the direction of `base`.

    Args:
        base: optimizer class, with the new options
            weight_decay_rate: w; default 0.01.
            exclude_from_weight_decay: patterns, usually ["Norm", "bias"]; default [].
        name: name of the class, e.g. "AdamW".
    Source: arXiv:1711.05101.
    """
    return extend(base, parts.WeightDecay, parts.ORDER, name)


def extend_with_layer_adaptation(base, name=None):
    """LAMB's trust ratio:  h <- h |x| / |h|, where h includes the decay; unchanged if x or h is zero.

    Args:
        base: optimizer class, with the new option
            exclude_from_layer_adaptation: patterns, usually ["Norm", "bias"]; default [].
        name: name of the class, e.g. "LAMB".
    Source: arXiv:1904.00962 algorithm 2, with the ratio unbounded.
    """
    return extend(base, parts.LayerAdaptation, parts.ORDER, name)


def extend_with_piecewise_linear_lr(base, name=None):
    """Learning rate times s(u), linear between given points and constant after the last; u counts updates made.

    Args:
        base: optimizer class, with the new option
            lr_schedule: dict {u: s}, e.g. {1000: 1, 20000: 0.1} for a warm-up from 0; default {0: 1}.
        name: name of the class.
    """
    return extend(base, parts.PiecewiseLinearLearningRate, parts.ORDER, name)


def extend_with_parameter_wise_lr(base, name=None):
    """Learning rate of a variable times the values of all keys that are part of its path; decay is scaled too.

    Args:
        base: optimizer class, with the new option
            paramwise_lr_schedule: dict {part of the path: factor}; default {}. See `layer_wise_lr_decay`.
        name: name of the class.
    """
    return extend(base, parts.ParameterWiseLearningRate, parts.ORDER, name)


def extend_with_lazy_optimization(base, name=None):
    """Rows (of all axes but the last) whose gradient is exactly zero stay as they are, also under weight decay.

    Useless for embeddings that are tied to an output layer: there every row has a gradient.

    Args:
        base: optimizer class, with the new options
            include_in_lazy_optimization: patterns, usually ["Embedding"]; default [].
            freeze_moments: whether the moments of those rows stay too; default False: they decay. With it, Adam, AdaX
                and Lion of bert4x touch only the rows in the batch on TensorFlow, unless there is accumulation,
                clipping or an extension that needs the whole variable. Look the rows up with `bert4x.layers.Embedding`
                in float32: Keras' own layer, and the cast of mixed precision, read the whole table.
        name: name of the class.
    """
    return extend(base, parts.LazyOptimization, parts.ORDER, name)


def extend_with_lookahead(base, name=None):
    """After every k-th update:  slow <- slow + alpha (x - slow);  x <- slow. It starts from the initial weights.

    Args:
        base: optimizer class, with the new options
            steps_per_slow_update: k >= 1; default 5.
            slow_step_size: alpha; default 0.5.
        name: name of the class.
    Source: arXiv:1907.08610 algorithm 1.
    """
    return extend(base, parts.Lookahead, parts.ORDER, name)


def extend_with_exponential_moving_average(base, name=None):
    """A moving average of the weights beside training:  e <- mu e + (1 - mu) x.

    The optimizer has `apply_ema_weights(bias_correction=True)`, which puts e / (1 - mu^t) into the model, and
    `reset_old_weights()`, which puts the weights back. See `ema_weights` and `EvaluateWithEMA`.

    Args:
        base: optimizer class, with the new option
            ema_momentum: mu in [0, 1); default 0.999.
        name: name of the class.
    """
    return extend(base, parts.ExponentialMovingAverage, parts.ORDER, name)


# bert4keras' names of its second generation.
extend_with_gradient_accumulation_v2 = extend_with_gradient_accumulation
extend_with_weight_decay_v2 = extend_with_weight_decay
extend_with_layer_adaptation_v2 = extend_with_layer_adaptation
extend_with_piecewise_linear_lr_v2 = extend_with_piecewise_linear_lr
extend_with_parameter_wise_lr_v2 = extend_with_parameter_wise_lr
extend_with_lazy_optimization_v2 = extend_with_lazy_optimization
extend_with_lookahead_v2 = extend_with_lookahead
extend_with_exponential_moving_average_v2 = extend_with_exponential_moving_average
