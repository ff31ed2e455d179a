"""The gated attention unit: attention with one head and a gate, in place of attention and feed-forward layer."""

from bert4x.backend import (
    align,
    apply_rotary_position_embeddings,
    attention_normalize,
    combine_masks,
    get_activation,
    is_boolean,
    keras,
    ops,
)
from bert4x.layers.base import Layer, register


@register
class GatedAttentionUnit(Layer):
    """Single-head attention whose output is multiplied by a gate.

    [u | v | z] = act(x Wi + bi);  q = z gq + bq, k = z gk + bk;  A = normalize(q k' / sqrt(K));  O = (u (A v)) Wo + bo.
    Cross form: [u | q] = act(x Wi + bi) of the queries' states, k and v act(y W + b) of the others.

    Args:
        units: width E of u and v; usually twice the model's.
        key_size: width K of z, q and k; usually 128.
        activation: of the projections.
        use_bias: all biases, also bq and bk.
        normalization: squared_relu, softmax_plus or softmax (see `attention_normalize`).
        self_attention: False: the cross form.
        attention_scale: divide by sqrt(K).
        attention_dropout: rate in [0, 1) on the weights, used in training only.
    Call: x, or [x, ...] (cross form: [q, k, v, ...]), then `a_bias` tensors (True: one, or a number of them), then with
        p_bias="rotary" a table [B or 1, T, K] of sines and cosines (self form only).
    Shapes:  (B batch, T queries, S keys, D width)
        x or q float [B, T, D], k and v float [B, S, .]
        a_bias: bool (True = allowed, ANDed) or float (added): [T, S] or [B, T, S], 1 broadcasts
        returns [B, T, D]
    Masks: padded keys get no weight, a query that may see nothing gets bo; the mask of x or q is passed on.
    Raises: ValueError if the number of inputs does not fit the flags, or for positions in the cross form.
    Source: arXiv:2202.10447 section 3.2; kexue.fm archives 9019 (softmax_plus).
    """

    def __init__(
        self,
        units,
        key_size,
        *,
        activation="swish",
        use_bias=True,
        normalization="squared_relu",
        self_attention=True,
        attention_scale=True,
        attention_dropout=None,
        kernel_initializer="glorot_uniform",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.units, self.key_size, self.activation = units, key_size, get_activation(activation)
        self.use_bias, self.normalization, self.self_attention = use_bias, normalization, self_attention
        self.attention_scale, self.attention_dropout = attention_scale, attention_dropout or 0.0
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.dropout = keras.layers.Dropout(self.attention_dropout, dtype=self.dtype_policy)

    def build(self, input_shape):
        shapes = input_shape if isinstance(input_shape[0], (list, tuple)) else [input_shape]
        if not self.self_attention and len(shapes) < 3:
            self._check(shapes, None, None)  # raises
        options = {"use_bias": self.use_bias, "kernel_initializer": self.kernel_initializer}
        active = {"activation": self.activation, **options}
        if self.self_attention:
            self.add_dense("inner", 2 * self.units + self.key_size, shapes[0], **active)
            for name in ("query", "key"):
                self._add_affine(name)
        else:
            self.add_dense("inner", self.units + self.key_size, shapes[0], **active)
            self.add_dense("key", self.key_size, shapes[1], **active)
            self.add_dense("value", self.units, shapes[2], **active)
        self.add_dense("out", shapes[0][-1], (*shapes[0][:-1], self.units), **options)

    def _add_affine(self, name):
        gamma, beta = f"{name}_gamma", f"{name}_beta"
        setattr(self, gamma, self.add_weight(name=gamma, shape=(self.key_size,), initializer="ones"))
        if self.use_bias:
            setattr(self, beta, self.add_weight(name=beta, shape=(self.key_size,), initializer="zeros"))

    def call(self, inputs, mask=None, a_bias=None, p_bias=None, training=None):
        inputs = inputs if isinstance(inputs, (list, tuple)) else [inputs]
        self._check(inputs, a_bias, p_bias)
        count = 1 if self.self_attention else 3
        u, q, k, v = self._projected(*inputs[:count])
        biases = inputs[count:]
        if p_bias == "rotary":
            *biases, table = biases
            q, k = apply_rotary_position_embeddings(table, q, k)
        scores = ops.einsum("btk,bsk->bts", q * ops.cast(self._scale, q.dtype), k)
        allowed = self._key_mask(mask, count)
        for bias in biases:
            bias = bias[None] if len(bias.shape) == 2 else bias
            if is_boolean(bias):
                allowed = combine_masks(allowed, bias)
            else:
                scores = scores + ops.cast(bias, scores.dtype)
        weights = self.dropout(attention_normalize(scores, allowed, method=self.normalization), training=training)
        return self.out(u * ops.einsum("bts,bse->bte", weights, v))

    def _check(self, inputs, a_bias, p_bias):
        if p_bias not in (None, "rotary") or (p_bias and not self.self_attention):
            raise ValueError(
                f"p_bias must be None, or 'rotary' in the self form; got {p_bias!r}, "
                f"self_attention={self.self_attention}"
            )
        expected = (1 if self.self_attention else 3) + int(a_bias or 0) + (p_bias is not None)
        if len(inputs) != expected:
            raise ValueError(
                f"{self.name} expects {expected} inputs with self_attention={self.self_attention}, a_bias={a_bias} and "
                f"p_bias={p_bias!r}; got {len(inputs)}"
            )

    def _projected(self, x, *others):
        """u, q, k, v."""
        if others:
            u, q = ops.split(self.inner(x), [self.units], axis=-1)
            return u, q, self.key(others[0]), self.value(others[1])
        u, v, z = ops.split(self.inner(x), [self.units, 2 * self.units], axis=-1)
        return u, self._affine(z, "query"), self._affine(z, "key"), v

    def _affine(self, z, name):
        z = z * getattr(self, f"{name}_gamma")
        return z + getattr(self, f"{name}_beta") if self.use_bias else z

    @property
    def _scale(self):
        return self.key_size**-0.5 if self.attention_scale else 1.0

    @staticmethod
    def _key_mask(mask, count):
        mask = mask[count - 1] if isinstance(mask, (list, tuple)) else mask
        return None if mask is None else align(mask, [0, -1], 3)

    def compute_output_spec(self, inputs, mask=None, a_bias=None, p_bias=None, training=None):
        inputs = inputs if isinstance(inputs, (list, tuple)) else [inputs]
        self._check(inputs, a_bias, p_bias)
        return keras.KerasTensor(inputs[0].shape, dtype=self.compute_dtype)

    def compute_mask(self, inputs, mask=None, **kwargs):
        return super().compute_mask(inputs, mask)

    def get_config(self):
        names = ("units", "key_size", "use_bias", "normalization", "self_attention", "attention_scale")
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in names},
            "attention_dropout": self.attention_dropout,
            "activation": keras.activations.serialize(self.activation),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }
