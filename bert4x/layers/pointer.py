"""Global pointers: a score for each span and each type, so that entities may nest."""

from bert4x.backend import (
    align,
    apply_rotary_position_embeddings,
    combine_masks,
    keras,
    masked_logit,
    ops,
    sinusoidal_embeddings,
)
from bert4x.layers.base import Layer, register


@register
class GlobalPointer(Layer):
    """Scores of all spans [start, end] for each of H types: s_h(i, j) = (R_i q_hi) . (R_j k_hj) / sqrt(K).

    q and k are linear maps of the input, R the rotary position embedding. Train it with
    `multilabel_categorical_crossentropy` over the spans of each type; a span is found if its score is above 0.

    Args:
        heads: number of types H.
        head_size: width K of q and k, even with RoPE.
        RoPE: rotary positions; without any relative position span lengths are hardly learned.
        use_bias: biases of the linear maps.
        tril_mask: exclude spans that end before they start.
        kernel_initializer: of the linear maps.
    Shapes: [B, T, D] -> [B, H, T, T], indexed [start, end].
    Masks: spans that touch padding, and those that end before they start, have the score -1e9 (float16: -3e4), which
        losses take for absent; no mask is passed on.
    Source: kexue.fm archives 8373; arXiv:2208.03054.
    """

    def __init__(
        self, heads, head_size=64, RoPE=True, use_bias=True, tril_mask=True, kernel_initializer="lecun_normal", **kwargs
    ):
        super().__init__(**kwargs)
        if RoPE and head_size % 2:
            raise ValueError(f"head_size must be even with RoPE=True; got {head_size}")
        self.heads, self.head_size, self.RoPE = heads, head_size, RoPE
        self.use_bias, self.tril_mask = use_bias, tril_mask
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape):
        self._add("dense", self.heads * self.head_size * 2, input_shape)

    def _add(self, name, units, shape):
        self.add_dense(name, units, shape, use_bias=self.use_bias, kernel_initializer=self.kernel_initializer)

    def call(self, inputs, mask=None):
        x = self.dense(inputs)
        x = ops.reshape(x, (*ops.shape(x)[:2], self.heads, 2 * self.head_size))
        starts, ends = self._placed(x[..., : self.head_size], x[..., self.head_size :])
        return self._masked(ops.einsum("bthk,bshk->bhts", starts, ends), mask)

    def _placed(self, starts, ends):
        """Rotated by their positions; divided by sqrt(K) before the product, which could overflow float16."""
        if self.RoPE:
            table = sinusoidal_embeddings(ops.arange(ops.shape(starts)[1])[None], self.head_size)
            starts, ends = apply_rotary_position_embeddings(table, starts, ends)
        return starts * ops.cast(self.head_size**-0.5, starts.dtype), ends

    def _masked(self, scores, mask):
        allowed = None
        if mask is not None:
            mask = ops.cast(mask, "bool")
            allowed = ops.logical_and(align(mask, [0, 2], 4), align(mask, [0, 3], 4))
        if self.tril_mask:
            places = ops.arange(ops.shape(scores)[-1])
            allowed = combine_masks(allowed, places[:, None] <= places[None, :])
        if allowed is None:
            return scores
        return ops.where(allowed, scores, ops.cast(masked_logit(scores.dtype), scores.dtype))

    def compute_mask(self, inputs, mask=None):
        return None

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.heads, input_shape[1], input_shape[1])

    def compute_output_spec(self, inputs, mask=None):
        return keras.KerasTensor(self.compute_output_shape(inputs.shape), dtype=self.compute_dtype)

    def get_config(self):
        names = ("heads", "head_size", "RoPE", "use_bias", "tril_mask")
        initializer = keras.initializers.serialize(self.kernel_initializer)
        return {**super().get_config(), **{n: getattr(self, n) for n in names}, "kernel_initializer": initializer}


@register
class EfficientGlobalPointer(GlobalPointer):
    """A global pointer with one product q k for all types and biases per type: fewer weights, much faster with many.

    y = x W + b, q = y[0::2], k = y[1::2];  t = (y V + c) / 2;  s_h(i, j) = q_i . k_j / sqrt(K) + t_j[2h] + t_i[2h + 1]

    Arguments, shapes and masks: as in `GlobalPointer`.
    Source: kexue.fm archives 8877.
    """

    def build(self, input_shape):
        self._add("p_dense", self.head_size * 2, input_shape)
        self._add("q_dense", self.heads * 2, (*input_shape[:-1], self.head_size * 2))

    def call(self, inputs, mask=None):
        y = self.p_dense(inputs)
        biases = ops.transpose(self.q_dense(y) / 2, (0, 2, 1))  # [B, 2H, T], from y, not from the input
        starts, ends = self._placed(y[..., 0::2], y[..., 1::2])
        shared = ops.einsum("btk,bsk->bts", starts, ends)
        scores = shared[:, None] + biases[:, 0::2, None, :] + biases[:, 1::2, :, None]
        return self._masked(scores, mask)
