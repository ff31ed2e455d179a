"""Vector quantisation: each vector is replaced by the nearest of K learned ones, and gradients pass through."""

from bert4x.backend import keras, ops, scopes
from bert4x.layers.base import Layer, register

MODES = ("quantize", "encode", "decode")


class _Perplexity(keras.metrics.Metric):
    """exp of the entropy of the codes used since the last reset, out of counts that are a variable of the layer."""

    def __init__(self, counts):
        super().__init__(name="perplexity")
        self.counts = lambda: counts  # a function, so that Keras does not take the variable for the metric's own

    def result(self):
        """Perplexity in [1, K], or NaN inside JAX's training step, where the layer's variables are out of reach."""
        counts = scopes.value_or_none(self.counts())
        return float("nan") if counts is None else perplexity(counts)

    def reset_state(self):
        """Begin anew."""
        self.counts().assign(ops.zeros_like(self.counts().value))


def perplexity(counts):
    """exp(-sum p ln p) of the shares p = counts / sum(counts): how many of the codes are in use; 1 for no counts."""
    shares = counts / ops.maximum(ops.sum(counts), 1.0)
    return ops.exp(-ops.sum(shares * ops.log(ops.maximum(shares, 1e-30))))


@register
class VectorQuantizer(Layer):
    """Replace vectors by the nearest rows of a codebook E; the gradient passes to them unchanged (VQ-VAE).

    k = argmin_j |z - E_j|^2, the first on ties;  e = E_k;  out = z + stop_gradient(e - z).
    Adds the loss codebook_weight mean((stop_gradient(z) - e)^2) + commitment_weight mean((z - stop_gradient(e))^2), and
    the metric `perplexity`, exp of the entropy of the codes in use, K at most; on JAX it is known at the end of an
    epoch. The gradient of what comes behind `out` reaches what made z, never the codebook.

    With `ema` no gradient moves the codebook and there is no codebook loss. Counts n and sums m of each training batch
    go into N <- decay N + (1 - decay) n and M <- decay M + (1 - decay) m, and
    E_j = M_j / N~_j with N~_j = (N_j + epsilon) / (sum N + K epsilon) sum N.

    Call it with `mode`: "quantize" (above), "encode" for the numbers of the codes, "decode" for the vectors of such
    numbers, as a prior over codes needs to draw images; `encode(z)` and `decode(indices)` are short for the last two.

    Args:
        num_codes: K.
        dim: D.
        codebook_weight, commitment_weight: of the two losses.
        ema, decay, epsilon: the codebook as running means.
        restart_below: codes used less than this share of 1 / K, as a running mean with `decay`, start again from
            vectors of the batch, e.g. 0.1; None: never. A codebook that collapses to few codes needs it.
        return_indices: "quantize" returns [out, k].
    Shapes: z [..., D] -> [..., D] in the compute dtype; k int32 [...].
    Masks: what is masked is quantised too but counts for nothing: losses, means, restarts, perplexity. Passed on to
        the first output.
    Raises: ValueError for another last axis than D, or another mode.
    Source: arXiv:1711.00937 eq. 1-3, appendix A.1 (moving averages); kexue.fm archives 6760.
    """

    def __init__(
        self, num_codes, dim, codebook_weight=1.0, commitment_weight=0.25, *, ema=False, decay=0.99, epsilon=1e-5,
        restart_below=None, return_indices=False, **kwargs,
    ):
        super().__init__(**kwargs)
        self.autocast = False  # distances in float32
        self.num_codes, self.dim, self.ema, self.decay, self.epsilon = num_codes, dim, ema, decay, epsilon
        self.codebook_weight, self.commitment_weight = codebook_weight, commitment_weight
        self.restart_below, self.return_indices = restart_below, return_indices
        self.seed_generator = keras.random.SeedGenerator() if restart_below else None

    def build(self, input_shape=None):
        # One initialiser with one seed: the running sums must start as the codebook does.
        limit = 1 / self.num_codes
        start = keras.initializers.RandomUniform(-limit, limit)
        table = (self.num_codes, self.dim)
        self.codebook = self._state("codebook", table, start, trainable=not self.ema)
        if self.ema:
            self.cluster_size = self._state("cluster_size", table[:1], "ones")
            self.code_sum = self._state("code_sum", table, start)
        if self.restart_below:
            self.usage = self._state("usage", table[:1], "ones")
        if self.restart_below and not self.ema:
            self.shift = self._state("shift", table, "zeros")
        self.code_counts = self._state("code_counts", table[:1], "zeros")
        metric = _Perplexity(self.code_counts)
        self._perplexity = lambda: metric

    def _state(self, name, shape, initializer, trainable=False):
        options = {"dtype": "float32", "autocast": False, "trainable": trainable}
        return self.add_weight(name=name, shape=shape, initializer=initializer, **options)

    @property
    def metrics(self):
        """The perplexity, for the training loop."""
        return [*super().metrics, *([self._perplexity()] if self.built else [])]

    def codes(self):
        """The codebook E, float32 [K, D]."""
        # A restarted code is moved by a constant, because JAX's training step forgets what a call assigns to a
        # trainable variable.
        moved = self.restart_below and not self.ema
        return ops.convert_to_tensor(self.codebook) + (ops.convert_to_tensor(self.shift) if moved else 0.0)

    def set_codes(self, vectors):
        """Start from K given vectors [K, D], e.g. encoder outputs, in place of small random ones."""
        self.codebook.assign(vectors)
        if self.ema:
            self.code_sum.assign(self.codebook.value * self.cluster_size.value[:, None])
        elif self.restart_below:
            self.shift.assign(ops.zeros_like(self.shift.value))

    def encode(self, inputs):
        """Vectors [..., D] -> numbers of their nearest codes, int32 [...]."""
        return self(inputs, mode="encode")

    def decode(self, indices):
        """Numbers of codes [...] -> their vectors [..., D]."""
        return self(indices, mode="decode")

    def call(self, inputs, mask=None, training=None, mode="quantize"):
        if mode not in MODES:
            raise ValueError(f"the mode of a VectorQuantizer must be one of {', '.join(MODES)}; got {mode!r}.")
        codes = self.codes()
        if mode == "decode":
            return ops.cast(ops.take(codes, ops.cast(inputs, "int32"), axis=0), self.compute_dtype)
        if inputs.shape[-1] != self.dim:
            raise ValueError(f"the last axis must have the width of the codes, {self.dim}; got {inputs.shape}.")
        flat = ops.reshape(ops.cast(inputs, "float32"), (-1, self.dim))
        shape = ops.shape(inputs)
        nearest = self._nearest(ops.stop_gradient(flat), ops.stop_gradient(codes))
        indices = ops.reshape(nearest, shape[:-1])
        if mode == "encode":
            return indices
        chosen = ops.take(codes, nearest, axis=0)
        weights = ops.ones_like(flat[:, 0]) if mask is None else ops.reshape(ops.cast(mask, "float32"), (-1,))
        self.add_loss(self._loss(flat, chosen, weights))
        self._count(ops.stop_gradient(flat), nearest, weights, training)
        output = ops.reshape(flat + ops.stop_gradient(chosen - flat), shape)
        output = ops.cast(output, self.compute_dtype)
        return [output, indices] if self.return_indices else output

    @staticmethod
    def _nearest(z, codes):
        """argmin of |z - E|^2, without |z|^2, which is the same for all codes."""
        distances = ops.sum(ops.square(codes), axis=-1) - 2.0 * ops.matmul(z, ops.transpose(codes))
        return ops.cast(ops.argmin(distances, axis=-1), "int32")

    def _loss(self, z, chosen, weights):
        """Both terms as means over the numbers in unmasked vectors."""
        total = ops.maximum(ops.sum(weights), 1.0) * self.dim

        def mean(difference):
            return ops.sum(ops.square(difference) * weights[:, None]) / total

        loss = self.commitment_weight * mean(z - ops.stop_gradient(chosen))
        return loss if self.ema else loss + self.codebook_weight * mean(ops.stop_gradient(z) - chosen)

    def _count(self, z, nearest, weights, training):
        """Add to the counts of the metric and, in training, move what the batch moves without gradient."""
        counts = ops.segment_sum(weights, nearest, self.num_codes)
        self.code_counts.assign(self.code_counts + counts)
        if not training:
            return
        if self.ema:
            self._follow(counts, ops.segment_sum(z * weights[:, None], nearest, self.num_codes))
        if self.restart_below:
            self._restart(z, weights, counts)

    def _follow(self, counts, sums):
        """The step of the running means."""
        size = self.decay * self.cluster_size + (1 - self.decay) * counts
        sums = self.decay * self.code_sum + (1 - self.decay) * sums
        total = ops.sum(size)
        smooth = (size + self.epsilon) / (total + self.num_codes * self.epsilon) * total
        self.cluster_size.assign(size)
        self.code_sum.assign(sums)
        self.codebook.assign(sums / smooth[:, None])

    def _restart(self, z, weights, counts):
        """Give codes that are hardly used vectors of the batch, drawn at random, each once where there are enough."""
        number = ops.sum(weights)
        shares = counts / ops.maximum(number, 1.0) * self.num_codes
        usage = self.decay * self.usage + (1 - self.decay) * shares
        dead = ops.logical_and(usage < self.restart_below, number > 0)
        # Unmasked vectors in random order come first, the others have keys above theirs.
        keys = keras.random.uniform(ops.shape(weights), seed=self.seed_generator) + 2.0 * (1.0 - weights)
        turn = ops.arange(self.num_codes) % ops.cast(ops.maximum(number, 1.0), "int32")
        drawn = ops.take(z, ops.take(ops.argsort(keys), turn), axis=0)
        self.usage.assign(ops.where(dead, 1.0, usage))
        if self.ema:
            self.cluster_size.assign(ops.where(dead, 1.0, self.cluster_size.value))
            self.code_sum.assign(ops.where(dead[:, None], drawn, self.code_sum.value))
            self.codebook.assign(ops.where(dead[:, None], drawn, self.codebook.value))
        else:
            moved = drawn - ops.stop_gradient(self.codebook.value)
            self.shift.assign(ops.where(dead[:, None], moved, self.shift.value))

    def compute_mask(self, inputs, mask=None):
        # Keras does not tell the mode of the call, and with one output takes the first.
        return [mask, None] if self.return_indices else mask

    def compute_output_shape(self, input_shape, mode="quantize"):
        if mode == "decode":
            return (*input_shape, self.dim)
        indices = tuple(input_shape[:-1])
        quantized = tuple(input_shape)
        return indices if mode == "encode" else [quantized, indices] if self.return_indices else quantized

    def compute_output_spec(self, inputs, mask=None, training=None, mode="quantize"):
        shapes = self.compute_output_shape(inputs.shape, mode)
        if mode == "encode":
            return keras.KerasTensor(shapes, dtype="int32")
        if isinstance(shapes, list):
            dtypes = (self.compute_dtype, "int32")
            return [keras.KerasTensor(shape, dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
        return keras.KerasTensor(shapes, dtype=self.compute_dtype)

    def get_config(self):
        names = (
            "num_codes", "dim", "codebook_weight", "commitment_weight", "ema", "decay", "epsilon", "restart_below",
            "return_indices",
        )
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
