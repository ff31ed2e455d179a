"""Talking-heads attention: two small matrices mix the heads, before the softmax and after it."""

from bert4x.backend import attention_normalize, keras, ops
from bert4x.layers.attention import MultiHeadAttention
from bert4x.layers.base import register


class _Mix(keras.layers.Layer):
    """[B, H, T, S] -> [B, G, T, S]. A layer, so that its weight comes after those of the projections."""

    def __init__(self, heads, initializer, name, dtype):
        super().__init__(name=name, dtype=dtype)
        self.heads, self.initializer = heads, initializer

    def build(self, input_shape):
        shape = (input_shape[1], self.heads)
        self.matrix = self.add_weight(name="matrix", shape=shape, initializer=self.initializer)

    def call(self, x):
        return ops.einsum("bhts,hg->bgts", x, self.matrix)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.heads, *input_shape[2:])


@register
class TalkingHeadsAttention(MultiHeadAttention):
    """Attention whose heads see one another's scores and weights.

    J_i = q_i k_i' / sqrt(K);  J'_g = sum_i Lambda[i, g] J_i;  A_g = normalize(J'_g);  O_v = (sum_g M[g, v] A_g) v_v.

    Lambda and M start as identities, so that a fresh layer equals `MultiHeadAttention` and takes its weights. Masks
    come after the first mixing: before it, they would leak into other heads. The second keeps masked keys at 0.

    Args (besides those of `MultiHeadAttention`):
        softmax_heads: number G of heads between the two mixings; H if absent. With more than H a fresh layer equals
            plain attention too, with fewer some heads start at 0.
        mix_initializer: of Lambda and M.
    Shapes:  as `MultiHeadAttention`, G heads in float biases, T5 numbers and returned scores (J', with the biases)
    Weights: those of `MultiHeadAttention`, then Lambda [H, G] in `logit_mix`, M [G, H] in `weight_mix`.
    Masks, raises: as `MultiHeadAttention`. Dropout acts on the mixed weights. There is no fused form.
    Source: arXiv:2003.02436 section 3.
    """

    fusible = False
    own_weights = ("logit_mix/matrix", "weight_mix/matrix")

    def __init__(self, heads, head_size, *, softmax_heads=None, mix_initializer="identity", **kwargs):
        super().__init__(heads, head_size, **kwargs)
        self.softmax_heads = softmax_heads or heads
        self.mix_initializer = keras.initializers.get(mix_initializer)

    @property
    def score_heads(self):
        return self.softmax_heads

    def build(self, input_shape):
        super().build(input_shape)
        self.logit_mix = _Mix(self.softmax_heads, self.mix_initializer, "logit_mix", self.dtype_policy)
        # A clone, since one that is random gives the same values at each call.
        self.weight_mix = _Mix(self.heads, self.mix_initializer.clone(), "weight_mix", self.dtype_policy)
        self.logit_mix.build((None, self.heads, None, None))
        self.weight_mix.build((None, self.softmax_heads, None, None))

    def _scores(self, x, q, k, relative, start, padding):
        return self.logit_mix(super()._scores(x, q, k, relative, start, padding))

    def _weights(self, scores, allowed, training):
        weights = attention_normalize(scores, allowed, method=self.normalization)
        return self.dropout(self.weight_mix(weights), training=training)

    def get_config(self):
        return {
            **super().get_config(),
            "softmax_heads": self.softmax_heads,
            "mix_initializer": keras.initializers.serialize(self.mix_initializer),
        }
