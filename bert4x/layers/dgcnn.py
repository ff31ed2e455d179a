"""DGCNN: gated dilated convolution, attention pooling and character-word embeddings, a reader without a Transformer."""

from bert4x.backend import attention_normalize, keras, ops
from bert4x.layers.base import Layer, register
from bert4x.layers.embedding import Embedding
from bert4x.layers.pooling import _Pooling


@register
class DilatedGatedConv1D(Layer):
    """Dilated convolution whose gate mixes what it found with its input.

    [c | g] = conv(x m);  with the gate s = sigmoid(g):  y = (x' (1 - s) + c s) m, or y = c s m without residual.
    x' is x, or a linear map of it if the widths differ. c has no activation. m is the mask.

    Args:
        out_dim: width D' of the output; None for that of the input.
        kernel_size: number of taps.
        rate: distance between two taps, in positions. `same` padding with zeros.
        residual: mix with x'.
        drop_gate: rate in [0, 1) of dropout on g, in front of the sigmoid, used in training only. None for none.
    Shapes: [B, T, D] -> [B, T, D'].
    Masks: masked positions neither leak into others nor come out: they are zeros. Passed on.
    Source: kexue.fm archives 5409.
    """

    def __init__(self, out_dim=None, kernel_size=3, rate=1, *, residual=True, drop_gate=None, **kwargs):
        super().__init__(**kwargs)
        self.out_dim, self.kernel_size, self.rate, self.residual = out_dim, kernel_size, rate, residual
        self.drop_gate = drop_gate
        self.dropout = keras.layers.Dropout(drop_gate, dtype=self.dtype_policy) if drop_gate else None

    def build(self, input_shape):
        width = self.out_dim or input_shape[-1]
        self.conv = keras.layers.Conv1D(
            2 * width, self.kernel_size, padding="same", dilation_rate=self.rate, name="conv", dtype=self.dtype_policy
        )
        self.conv.build(input_shape)
        if self.residual and width != input_shape[-1]:
            self.add_dense("shortcut", width, input_shape)

    def call(self, inputs, mask=None, training=None):
        kept = 1 if mask is None else ops.cast(mask, self.compute_dtype)[:, :, None]
        value, gate = ops.split(self.conv(inputs * kept), 2, axis=-1)
        if self.dropout is not None:
            gate = self.dropout(gate, training=training)
        gate = ops.sigmoid(gate)
        output = value * gate
        if self.residual:
            carried = self.shortcut(inputs) if self._dense_names else inputs
            output = output + carried * (1 - gate)
        return output * kept

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.out_dim or input_shape[-1])

    def compute_output_spec(self, inputs, mask=None, training=None):
        return keras.KerasTensor(self.compute_output_shape(inputs.shape), dtype=self.compute_dtype)

    def get_config(self):
        names = ("out_dim", "kernel_size", "rate", "residual", "drop_gate")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@register
class AttentionPooling1D(_Pooling):
    """Sum over positions, weighted by softmax_t(v . tanh(W x_t)) over the unmasked ones.

    Args:
        hidden_dim: width of W x; None for D.
    Shapes: [B, T, D] -> [B, D].
    Masks: masked positions get no weight; where all is masked the sum is zeros. The output has no mask.
    Source: kexue.fm archives 5409.
    """

    def __init__(self, hidden_dim=None, **kwargs):
        super().__init__(**kwargs)
        self.hidden_dim = hidden_dim

    def build(self, input_shape):
        hidden = self.hidden_dim or input_shape[-1]
        self.add_dense("key", hidden, input_shape, activation="tanh", use_bias=False)
        self.add_dense("score", 1, (*input_shape[:-1], hidden), use_bias=False)

    def call(self, inputs, mask=None):
        scores = self.score(self.key(inputs))
        mask = None if mask is None else ops.cast(mask, "bool")[:, :, None]
        return ops.sum(attention_normalize(scores, mask, axis=1) * inputs, axis=1)

    def get_config(self):
        return {**super().get_config(), "hidden_dim": self.hidden_dim}


@register
class CharacterWordEmbedding(Layer):
    """Embedding of a character plus the projected vector of the word that it is part of: table[id] + v Wp.

    The word vectors are looked up outside the model and stay as they are: `bert4x.snippets.CharacterWords` does so.

    Args:
        input_dim: number of characters, padding (0) and unknown ones (1) included.
        output_dim: width D.
    Shapes: inputs are [ids int [B, T], word vectors float [B, T, W]]; returns [B, T, D].
    Masks: makes one, as `Embedding` does: ids != 0, and position 0 always.
    Source: kexue.fm archives 5409.
    """

    def __init__(self, input_dim, output_dim, **kwargs):
        super().__init__(**kwargs)
        self.input_dim, self.output_dim = input_dim, output_dim

    def build(self, input_shape):
        ids_shape, vectors_shape = input_shape
        self.add_sublayer(
            "characters", Embedding, self.input_dim, self.output_dim, shape=ids_shape, mask_zero=True
        )
        self.add_dense("projection", self.output_dim, vectors_shape, use_bias=False)

    def call(self, inputs):
        ids, vectors = inputs
        return self.characters(ids) + self.projection(vectors)

    def compute_mask(self, inputs, mask=None):
        return self.characters.compute_mask(inputs[0])

    def compute_output_shape(self, input_shape):
        return (*input_shape[0], self.output_dim)

    def compute_output_spec(self, inputs):
        return keras.KerasTensor((*inputs[0].shape, self.output_dim), dtype=self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "input_dim": self.input_dim, "output_dim": self.output_dim}
