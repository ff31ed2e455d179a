"""ON-LSTM: an LSTM whose cells are ordered in levels, and the distances between words that it learns thereby."""

from bert4x.backend import attention_normalize, keras, ops
from bert4x.layers.base import Layer, register

INPUT_GATES = ("reverse_cumsum", "one_minus_cumax")


@register
class ONLSTM(Layer):
    """Ordered-neurons LSTM: what high levels of the cell hold lives long, what low ones hold is overwritten.

    z = x W + h U + b holds, in this order, master forget and master input gate (one number per level), then forget,
    input and output gate and candidate (one per unit); cumax(z) = cumsum(softmax(z)); unit u is of level u // chunk.
        F = cumax(z_F);  I_k = sum_{j >= k} softmax(z_I)_j;  w = F I
        c' = w (f c + i g) + (F - w) c + (I - w) g;  h' = o tanh(c')
    The distance of a step is 1 - mean(F): how much is forgotten there. `bert4x.snippets.build_tree` makes a tree of it.

    Args:
        units: width D' of the state.
        levels: number of levels, a divisor of units.
        return_sequences: return the state of every step, not that of the last.
        return_distances: also return 1 - mean(F) and mean(I) of every step. They change no weight, so that a model
            may be trained with `output[0]` while a second one, on the same tensors, shows the distances of any layer.
        dropconnect: rate in [0, 1) at which entries of W and U are dropped in training, the same for all steps of a
            call; None for none.
        input_gate: "reverse_cumsum" (above, of the article), or "one_minus_cumax": I = 1 - cumax(z_I), of the paper,
            whose sum leaves k out. They are different functions.
    Shapes: [B, T, D] -> [B, T, D'] or [B, D']; with distances a list of that, [B, T] and [B, T], both float32.
    Masks: a masked step copies the state, and its distances are 0; the mask is passed on with sequences.
    Raises: ValueError for levels that do not divide units, and for another input_gate.
    Source: arXiv:1810.09536 eq. 1-15; kexue.fm archives 6621.
    """

    def __init__(
        self, units, levels, *, return_sequences=False, return_distances=False, dropconnect=None,
        input_gate="reverse_cumsum", **kwargs,
    ):
        super().__init__(**kwargs)
        if levels < 1 or units % levels:
            raise ValueError(f"units must be a multiple of levels; got units={units} and levels={levels}.")
        if input_gate not in INPUT_GATES:
            raise ValueError(f"input_gate must be one of {', '.join(INPUT_GATES)}; got {input_gate!r}.")
        if not 0 <= (dropconnect or 0) < 1:
            raise ValueError(f"dropconnect must be a rate in [0, 1) or None; got {dropconnect}.")
        self.units, self.levels, self.dropconnect, self.input_gate = units, levels, dropconnect, input_gate
        self.return_sequences, self.return_distances = return_sequences, return_distances
        self.seed_generator = keras.random.SeedGenerator() if dropconnect else None

    def build(self, input_shape):
        width = 4 * self.units + 2 * self.levels
        self.kernel = self.add_weight(name="kernel", shape=(input_shape[-1], width), initializer="glorot_uniform")
        self.recurrent_kernel = self.add_weight(
            name="recurrent_kernel", shape=(self.units, width), initializer="orthogonal"
        )
        self.bias = self.add_weight(name="bias", shape=(width,), initializer="zeros")

    def call(self, inputs, mask=None, training=None):
        kernel, recurrent = (self._dropped(w, training) for w in (self.kernel, self.recurrent_kernel))
        # The share of the inputs needs no loop.
        projected = ops.matmul(inputs, kernel) + self.bias
        # Keras' loop serves all backends, XLA and gradients. Its layer is without weights, and of this call only,
        # because it uses this call's draw of the weights.
        loop = keras.layers.RNN(_Cell(self, recurrent), return_sequences=True, dtype="float32")
        states = ops.cast(loop.call(projected, mask=mask), self.compute_dtype)
        output = states if self.return_sequences else states[:, -1]
        return [output, *self._distances(projected, recurrent, states, mask)] if self.return_distances else output

    def _dropped(self, weight, training):
        if not (training and self.dropconnect):
            return ops.convert_to_tensor(weight)
        return keras.random.dropout(ops.convert_to_tensor(weight), self.dropconnect, seed=self.seed_generator)

    def _distances(self, projected, recurrent, states, mask):
        """Both master gates of all steps at once: they follow from the states before the steps."""
        before = ops.pad(states[:, :-1], [[0, 0], [1, 0], [0, 0]])
        masters = 2 * self.levels
        z = projected[..., :masters] + ops.matmul(before, recurrent[:, :masters])
        forget, remember = self.master_gates(ops.cast(z, "float32"))
        distances = [1.0 - ops.mean(forget, axis=-1), ops.mean(remember, axis=-1)]
        return distances if mask is None else [ops.where(mask, d, 0.0) for d in distances]

    def step(self, inputs, h, c):
        """One step without dropconnect: inputs [B, D] and states [B, D'] each -> new h, new c, in float32."""
        projected = ops.matmul(inputs, ops.convert_to_tensor(self.kernel)) + self.bias
        return self.advance(projected, h, c, ops.convert_to_tensor(self.recurrent_kernel))

    def advance(self, projected, h, c, recurrent):
        """`step` with x W + b in place of the inputs, and with a recurrent kernel of the caller's."""
        z = ops.cast(projected + ops.matmul(ops.cast(h, recurrent.dtype), recurrent), "float32")
        units, levels = self.units, self.levels
        forget, remember = (gate[..., None] for gate in self.master_gates(z[:, : 2 * levels]))
        z, c = z[:, 2 * levels :], ops.reshape(ops.cast(c, "float32"), (-1, levels, units // levels))
        gates = ops.reshape(ops.sigmoid(z[:, : 3 * units]), (-1, 3, levels, units // levels))
        f, i, o = gates[:, 0], gates[:, 1], gates[:, 2]
        g = ops.reshape(ops.tanh(z[:, 3 * units :]), (-1, levels, units // levels))
        both = forget * remember
        c = both * (f * c + i * g) + (forget - both) * c + (remember - both) * g
        return ops.reshape(o * ops.tanh(c), (-1, units)), ops.reshape(c, (-1, units))

    def master_gates(self, z):
        """F and I, float32 [..., levels], out of their logits z [..., 2 levels]."""
        forget, shares = (attention_normalize(part) for part in (z[..., : self.levels], z[..., self.levels :]))
        sums = ops.cumsum(shares, axis=-1)
        inclusive = self.input_gate == "reverse_cumsum"
        return ops.cumsum(forget, axis=-1), 1.0 - sums + shares if inclusive else 1.0 - sums

    def compute_mask(self, inputs, mask=None):
        mask = mask if self.return_sequences else None
        return [mask, None, None] if self.return_distances else mask

    def compute_output_shape(self, input_shape):
        steps = tuple(input_shape[:2])
        output = (*(steps if self.return_sequences else steps[:1]), self.units)
        return [output, steps, steps] if self.return_distances else output

    def compute_output_spec(self, inputs, mask=None, training=None):
        shapes = self.compute_output_shape(inputs.shape)
        if not self.return_distances:
            return keras.KerasTensor(shapes, dtype=self.compute_dtype)
        dtypes = (self.compute_dtype, "float32", "float32")
        return [keras.KerasTensor(shape, dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]

    def get_config(self):
        names = ("units", "levels", "return_sequences", "return_distances", "dropconnect", "input_gate")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


class _Cell:
    """What Keras' RNN asks of a cell: one step, on inputs that are projected already; states are float32."""

    compute_dtype = "float32"

    def __init__(self, layer, recurrent):
        self.layer, self.recurrent = layer, recurrent
        self.output_size, self.state_size = layer.units, [layer.units, layer.units]

    def __call__(self, projected, states):
        return self.call(projected, states)

    def call(self, projected, states):
        h, c = self.layer.advance(projected, *states, self.recurrent)
        return h, [h, c]
