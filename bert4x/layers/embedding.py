"""Token embeddings that can be applied in reverse, and sums that keep masks."""

from bert4x.backend import keras, ops, runtime
from bert4x.layers.base import Layer, register


@register
class Embedding(keras.layers.ReversibleEmbedding):
    """Table lookup, or the product with the transposed table (tied output layer).

    mode 'embedding': y = table[ids];  mode 'dense': logits = x table^T, without bias.

    Args:
        input_dim: number of rows V.
        output_dim: width D.
        mask_zero: id 0 is padding.
        check_ids: raise for ids outside [0, V) also where the backend would not (JAX, TensorFlow's XLA).
    Shapes:
        embedding: int [B, T] -> [B, T, D]      dense: [B, T, D] -> [B, T, V]
    Masks: with `mask_zero`, ids != 0, but position 0 is always kept: a T5 decoder starts with id 0, and a sample that
        is all padding must not be masked throughout. In mode 'dense' the mask of x is passed on.
    """

    def __init__(self, input_dim, output_dim, *, mask_zero=False, check_ids=False, **kwargs):
        # Keras' own mask_zero has no exception for position 0, so its part stays off and compute_mask is ours.
        super().__init__(input_dim, output_dim, mask_zero=False, **kwargs)
        # Keras casts neither the inputs of an Embedding, which may be ids, nor its table in the reverse product.
        self.reverse_dtype = self.reverse_dtype or self.compute_dtype
        self.supports_masking = True
        self.pad_is_zero = mask_zero
        self.check_ids = check_ids

    def call(self, inputs, mode="embedding"):
        inputs = self._checked(inputs, mode)
        if mode == "dense" or self.lora_enabled:
            return super().call(inputs, reverse=mode == "dense")
        # Keras reads the whole table, which TensorFlow copies once an optimizer writes single rows of it.
        return ops.cast(runtime.look_up(self._embeddings, ops.cast(inputs, "int32")), self.compute_dtype)

    def quantized_call(self, inputs, mode="embedding"):
        return super().quantized_call(self._checked(inputs, mode), reverse=mode == "dense")

    def _checked(self, inputs, mode):
        if mode not in ("embedding", "dense"):
            raise ValueError(f"the mode of an Embedding must be 'embedding' or 'dense'; got {mode!r}")
        if mode == "embedding" and self.check_ids:
            return runtime.check_ids(inputs, self.input_dim, self.name)
        return inputs

    def compute_mask(self, inputs, mask=None):
        if not self.pad_is_zero or self._are_vectors(inputs):
            return mask
        first = ops.ones_like(inputs[:, :1], dtype="bool")
        return ops.concatenate([first, ops.not_equal(inputs[:, 1:], 0)], axis=1)

    def _are_vectors(self, inputs):
        # Keras does not tell compute_mask the mode of the call. Ids may be floats: the default dtype of keras.Input.
        if keras.backend.is_int_dtype(inputs.dtype):
            return False
        return len(inputs.shape) != 2 or inputs.shape[-1] == self.output_dim

    def compute_output_shape(self, input_shape, mode="embedding"):
        return (*input_shape[:-1], self.input_dim) if mode == "dense" else (*input_shape, self.output_dim)

    def compute_output_spec(self, inputs, mode="embedding"):
        return keras.KerasTensor(self.compute_output_shape(inputs.shape, mode), dtype=self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "mask_zero": self.pad_is_zero, "check_ids": self.check_ids}


@register
class Add(keras.layers.Add):
    """Sum of tensors; the mask is the first one present (Keras' own needs all inputs to carry one)."""

    def compute_mask(self, inputs, mask=None):
        return next((m for m in mask or [] if m is not None), None)


@register
class Concatenate1D(Layer):
    """Tensors behind one another on the length axis: [[B, T, D], [B, S, D], ...] -> [B, T + S + ..., D].

    Masks: behind one another too; a tensor without a mask counts as unmasked.
    """

    def call(self, inputs):
        return ops.concatenate(inputs, axis=1)

    def compute_mask(self, inputs, mask=None):
        if mask is None or all(m is None for m in mask):
            return None
        full = [ops.ones_like(x[:, :, 0], dtype="bool") if m is None else m for x, m in zip(inputs, mask, strict=True)]
        return ops.concatenate(full, axis=1)

    def compute_output_shape(self, input_shape):
        lengths = [shape[1] for shape in input_shape]
        return (input_shape[0][0], None if None in lengths else sum(lengths), input_shape[0][2])
