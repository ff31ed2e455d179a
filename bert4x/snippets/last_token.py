"""The outputs of a model at the last token of its inputs, in few compiled shapes."""

import numpy as np

from bert4x.snippets.inference import bucket, power_of_two
from bert4x.snippets.padding import sequence_padding


class LastToken:
    """A functional Keras model whose `predict` gives one output per row, that at the last token.

    The sequences (integer inputs [rows, T], T free) are padded on the right with 0 to the lengths of BUCKETS, the rows
    up to a power of two by repeating one. So a search needs few shapes, each compiled once. Models that mask id 0, or
    look to the left only, give the same as without padding. The last of these inputs says where the last token is; of
    an encoder-decoder that is the decoder's.

    Raises: ValueError for a model of several outputs, or without such an input.
    """

    def __init__(self, model):
        inputs = getattr(model, "inputs", None) or []
        self._sequences = [i for i, x in enumerate(inputs) if x.shape == (None, None) and "int" in str(x.dtype)]
        if not self._sequences or len(model.outputs) != 1 or len(model.outputs[0].shape) != 3:
            raise ValueError(
                "last_token takes a functional model of integer inputs [rows, T], T free, and one output [rows, T, V]; "
                f"got inputs {[tuple(x.shape) for x in inputs]} and outputs "
                f"{[tuple(x.shape) for x in getattr(model, 'outputs', None) or []]}."
            )
        self.model = model
        # A table of positions may end between two buckets.
        self._longest = getattr(getattr(model, "builder", None), "max_position", None) or 0
        self._compiled = None

    def predict(self, inputs):
        """Outputs at the last token.

        Args:
            inputs: what the model takes, as arrays: one, a list, or a dict by input name.
        Shapes:
            returns: float array [rows, V].
        """
        if isinstance(inputs, dict):
            inputs = [inputs[x.name] for x in self.model.inputs]
        arrays = [np.asarray(x) for x in inputs] if isinstance(inputs, (list, tuple)) else [np.asarray(inputs)]
        rows, length = arrays[self._sequences[-1]].shape
        if not length:
            raise ValueError("The sequences must have at least one token; got none. Is the prompt empty?")
        filled = [self._fill(i, x) for i, x in enumerate(arrays)]
        return as_numpy(self._forward()(np.int32(length - 1), *filled))[:rows]

    def _fill(self, i, array):
        rows = len(array)
        if i in self._sequences:
            length = array.shape[1]
            size = bucket(length)
            size = min(size, self._longest) if length <= self._longest else size
            array = sequence_padding(array.astype("int32"), size)
        spare = power_of_two(rows) - rows
        return np.concatenate([array, array[:1].repeat(spare, axis=0)])

    def _forward(self):
        from bert4x.backend import runtime

        if self._compiled is None:
            self._compiled = runtime.jit(self._at, model=self.model)
        return self._compiled

    def _at(self, position, *inputs):
        from bert4x.backend import ops

        outputs = self.model(inputs[0] if len(inputs) == 1 else list(inputs), training=False)
        return ops.take(outputs, position, axis=1)


def as_numpy(x):
    """A NumPy array of an array or a tensor."""
    if isinstance(x, np.ndarray):
        return x
    from bert4x.backend import runtime

    return runtime.to_numpy(x)
