"""Adam, with and without bias correction, and Lion."""

from bert4x.backend import ops
from bert4x.optimizers.base import Optimizer, one_minus_power, register


@register
class Adam(Optimizer):
    """Adam, the moments corrected for their start at zero or not.

    m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  h = m' / (sqrt(v') + epsilon)
    with m' = m / (1 - b1^t), v' = v / (1 - b2^t), or m and v themselves without correction: 3.16 times larger at t = 1,
    which needs a warm-up; BERT was pretrained so.

    Args:
        learning_rate: float, or a Keras schedule, which is asked at the number of updates made.
        beta_1, beta_2: decay of the moments, in [0, 1).
        epsilon: added to the corrected root. Keras adds it to the uncorrected one.
        bias_correction: whether to correct.
        **options: those of `keras.optimizers.Optimizer`, such as clipnorm or name.
    Source: arXiv:1412.6980 algorithm 1.
    """

    row_wise = True

    def __init__(
        self,
        learning_rate=1e-3,
        beta_1=0.9,
        beta_2=0.999,
        *,
        epsilon=1e-6,
        bias_correction=True,
        name="adam",
        **options,
    ):
        super().__init__(learning_rate=learning_rate, name=name, **options)
        self.beta_1, self.beta_2, self.epsilon, self.bias_correction = beta_1, beta_2, epsilon, bias_correction

    def slot_shapes(self, shape):
        """Two moments."""
        return {"momentum": shape, "velocity": shape}

    def direction(self, step, slots):
        """h = m' / (sqrt(v') + epsilon)."""
        g, m, v = step.gradient, slots["momentum"], slots["velocity"]
        m = self.beta_1 * m + (1 - self.beta_1) * g
        v = self.beta_2 * v + (1 - self.beta_2) * ops.square(g)
        corrected_m, corrected_v = m, v
        if self.bias_correction:
            corrected_m = m / one_minus_power(self.beta_1, step.time())
            corrected_v = v / one_minus_power(self.beta_2, step.time())
        return corrected_m / (ops.sqrt(corrected_v) + self.epsilon), {"momentum": m, "velocity": v}

    def get_config(self):
        """Arguments of the constructor."""
        names = ("beta_1", "beta_2", "epsilon", "bias_correction")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@register
class Lion(Optimizer):
    """Lion, whose every coordinate moves by exactly the learning rate.

    h = sign(b1 m + (1 - b1) g);  m <- b2 m + (1 - b2) g

    Args:
        learning_rate: 3 to 10 times smaller than Adam's.
        beta_1, beta_2: mixing for the direction and decay of the momentum.
        **options: those of `keras.optimizers.Optimizer`.
    Source: arXiv:2302.06675 algorithm 2.
    """

    row_wise = True

    def __init__(self, learning_rate=3e-4, beta_1=0.95, beta_2=0.98, *, name="lion", **options):
        super().__init__(learning_rate=learning_rate, name=name, **options)
        self.beta_1, self.beta_2 = beta_1, beta_2

    def slot_shapes(self, shape):
        """One momentum."""
        return {"momentum": shape}

    def direction(self, step, slots):
        """h = sign(b1 m + (1 - b1) g)."""
        g, m = step.gradient, slots["momentum"]
        direction = ops.sign(self.beta_1 * m + (1 - self.beta_1) * g)
        return direction, {"momentum": self.beta_2 * m + (1 - self.beta_2) * g}

    def get_config(self):
        """Arguments of the constructor."""
        return {**super().get_config(), "beta_1": self.beta_1, "beta_2": self.beta_2}
