"""AdaX, whose second moment forgets ever more slowly, and AdaXW, AdaX with weight decay."""

import math

from bert4x.backend import ops
from bert4x.optimizers.base import Optimizer, register
from bert4x.optimizers.extensions import extend_with_weight_decay


@register
class AdaX(Optimizer):
    """AdaX: a second moment with exponential long-term memory.

    m <- b1 m + (1 - b1) g;  v <- v + c_t (g^2 - v), c_t = b2 / ((1 + b2)^t - 1);  h = m / (sqrt(v) + epsilon)
    v here is the article's v divided by (1 + b2)^t - 1: that one overflows float32 near t = 9e5. m is not corrected.

    Args:
        learning_rate: float, or a Keras schedule.
        beta_1: decay of the momentum, in [0, 1).
        beta_2: growth of the memory, > 0.
        epsilon: added to the root.
        **options: those of `keras.optimizers.Optimizer`.
    Source: arXiv:2004.09740 algorithm 2, with epsilon outside the root.
    """

    row_wise = True

    def __init__(self, learning_rate=1e-3, beta_1=0.9, beta_2=1e-4, *, epsilon=1e-6, name="adax", **options):
        super().__init__(learning_rate=learning_rate, name=name, **options)
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon

    def slot_shapes(self, shape):
        """Two moments."""
        return {"momentum": shape, "velocity": shape}

    def direction(self, step, slots):
        """h = m / (sqrt(v) + epsilon)."""
        g, m, v = step.gradient, slots["momentum"], slots["velocity"]
        m = self.beta_1 * m + (1 - self.beta_1) * g
        # expm1: in float32 (1 + 1e-4) - 1 is wrong by 1.7e-4 of its value.
        change = self.beta_2 / ops.expm1(step.time() * math.log1p(self.beta_2))
        v = v + change * (ops.square(g) - v)
        return m / (ops.sqrt(v) + self.epsilon), {"momentum": m, "velocity": v}

    def get_config(self):
        """Arguments of the constructor."""
        names = ("beta_1", "beta_2", "epsilon")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


AdaXW = extend_with_weight_decay(AdaX, name="AdaXW")
