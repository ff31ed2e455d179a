"""What the layer tests share: a layer that attaches a mask, random weights, calls that hand over NumPy arrays."""

import keras
import numpy as np

from bert4x.backend import runtime


@keras.saving.register_keras_serializable(package="tests")
class WithMask(keras.layers.Layer):
    """[x, mask [B, T]] -> x, which carries the mask from then on."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.autocast = False
        self.supports_masking = True

    def call(self, inputs):
        return inputs[0]

    def compute_mask(self, inputs, mask=None):
        return keras.ops.cast(inputs[1], "bool")

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(inputs[0].shape, inputs[0].dtype)


def to_arrays(tensors):
    """Tensors, or a nested list of them, as a flat list of NumPy arrays; bfloat16 becomes float32."""
    arrays = [runtime.to_numpy(t) for t in keras.tree.flatten(tensors)]
    return [a.astype("float32") if a.dtype.name == "bfloat16" else a for a in arrays]


def quick_compilation():
    """`jit_compile` with which a short fit takes least time: without XLA on TensorFlow, never without on JAX."""
    return "auto" if runtime.backend() == "jax" else False


def mask_of(tensor):
    """The mask that a tensor carries, as an array, or None."""
    mask = getattr(tensor, "_keras_mask", None)
    return None if mask is None else runtime.to_numpy(mask)


def randomize(layer, seed=0):
    """Give every variable random values: zero biases and unit norms would hide mistakes."""
    random = np.random.default_rng(seed)
    for variable in layer.weights:
        variable.assign(0.5 * random.standard_normal(variable.shape).astype("float32"))


def weights_of(layer):
    """{path inside the layer: float64 array}, e.g. query/kernel."""
    names = {}
    for variable in layer.weights:
        names[variable.path.removeprefix(f"{layer.name}/")] = runtime.to_numpy(variable).astype("float64")
    return names


def assert_close(got, want, atol, note=""):
    """Compare nested tensors or arrays one by one."""
    got, want = to_arrays(got), to_arrays(want)
    assert len(got) == len(want), f"{note}: {len(got)} outputs, {len(want)} expected"
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape, f"{note}: shape {a.shape}, {b.shape} expected"
        np.testing.assert_allclose(a.astype("float64"), b.astype("float64"), rtol=0, atol=atol, err_msg=note)


def gradients(layer, loss):
    """Gradients of loss() with respect to the trainable variables of a layer or model, as arrays by path."""
    variables = layer.trainable_variables

    def function(values):
        with runtime.overridden(list(zip(variables, values, strict=True)), layer):
            return loss()

    _, found = runtime.value_and_grad(function, [v.value for v in variables])
    return {v.path.split("/", 1)[1]: a for v, a in zip(variables, to_arrays(found), strict=True)}
