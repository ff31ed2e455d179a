"""Problems with prescribed gradients: variables, gradients per step, and how an optimizer runs on them."""

import numpy as np

from bert4x.backend import keras, ops

START = {
    "dense/kernel": np.array([[0.5, -0.3, 0.8], [-0.6, 0.1, 0.9]]),
    "dense/bias": np.array([0.05, -0.2, 0.3]),
}
EMBEDDINGS = {"emb/embeddings": np.array([[0.1, -0.2], [0.3, 0.4], [-0.5, 0.6], [0.7, -0.8]])}
ACTIVE_ROWS = ({0, 1}, {1, 2}, {0, 2}, {1}, {0, 2})


def dense_gradients(t):
    """Gradients of `START` at (micro-)step t = 1, 2, ..."""
    i, j = np.indices((2, 3))
    return {
        "dense/kernel": 0.1 * np.sin(t + 2 * i + 3 * j),
        "dense/bias": 0.05 * np.cos(t + np.arange(3)),
    }


def row_gradients(t):
    """Gradients of `EMBEDDINGS`: exactly zero but in the active rows."""
    gradient = np.zeros((4, 2))
    for i in ACTIVE_ROWS[(t - 1) % 5]:
        gradient[i] = 0.1 * np.sin(t + i), 0.1 * np.cos(t - i)
    return {"emb/embeddings": gradient}


def all_gradients(t):
    """Gradients of both."""
    return {**dense_gradients(t), **row_gradients(t)}


def make_variables(start, dtype="float64"):
    """Keras variables with the given paths and values."""
    variables = []
    for path, value in start.items():
        layer, name = path.split("/")
        with keras.name_scope(layer):
            variables.append(keras.Variable(value, dtype=dtype, name=name))
    assert [v.path for v in variables] == list(start)
    return variables


def apply_all(optimizer, variables, gradients, first=1, last=5, compiled=False):
    """Feed the gradients of steps `first` to `last` to the optimizer; on JAX always compiled, on torch never."""
    update = _jitted(optimizer, variables) if keras.backend.backend() == "jax" else optimizer.apply
    if compiled and keras.backend.backend() == "tensorflow":
        update = _in_a_graph(optimizer, variables)
    for t in range(first, last + 1):
        arrays = gradients(t).values()
        update([ops.convert_to_tensor(g, dtype=v.dtype) for g, v in zip(arrays, variables, strict=True)], variables)


def _in_a_graph(optimizer, variables):
    import tensorflow as tf

    optimizer.build(variables)  # a graph may make no variables
    return tf.function(lambda gradients, _: optimizer.apply(gradients, variables))


def _jitted(optimizer, variables):
    """`apply` in one compiled function; JAX would compile Keras' accumulation anew at every call."""
    import jax

    if not optimizer.built:
        optimizer.build(variables)
    compiled = jax.jit(optimizer.stateless_apply)

    def update(gradients, variables):
        new = compiled([v.value for v in optimizer.variables], gradients, [v.value for v in variables])
        for variable, value in zip([*variables, *optimizer.variables], [*new[0], *new[1]], strict=True):
            variable.assign(value)

    return update


def run(optimizer, start=START, gradients=dense_gradients, calls=5):
    """Weights by path after some calls."""
    variables = make_variables(start)
    apply_all(optimizer, variables, gradients, last=calls)
    return values(variables)


def values(variables):
    """NumPy values by path."""
    return {v.path: np.array(ops.convert_to_numpy(v)) for v in variables}


def assert_near(got, wanted, tolerance):
    """Compare dicts of arrays."""
    assert set(got) == set(wanted)
    for path, array in wanted.items():
        np.testing.assert_allclose(got[path], array, rtol=0, atol=tolerance, err_msg=path)
