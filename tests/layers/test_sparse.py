"""Sparse attention at its edges: any length, gradients, no n x n tensor, rotary positions, errors."""

import os

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from bert4x import layers
from bert4x.backend import runtime, sinusoidal_embeddings
from tests.layers.helpers import assert_close, randomize, to_arrays

KINDS = {
    "atrous": lambda **more: layers.AtrousSelfAttention(2, 4, 3, **more),
    "local": lambda **more: layers.LocalSelfAttention(2, 4, 2, **more),
    "local, itself only": lambda **more: layers.LocalSelfAttention(2, 4, 0, **more),
    "local, apart": lambda **more: layers.LocalSelfAttention(2, 4, 2, rate=2, **more),
    "sparse": lambda **more: layers.SparseSelfAttention(2, 4, 3, **more),
}


def normal(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def pair(kind, **more):
    """A sparse layer and a dense one with its weights."""
    sparse = KINDS[kind](key_size=3, **more)
    dense = layers.MultiHeadAttention(2, 4, key_size=3, key_value_heads=sparse.key_value_heads)
    sparse.build((None, None, 5))
    dense.build([(None, None, 5)] * 3)
    randomize(sparse)
    dense.set_weights(sparse.get_weights())
    return sparse, dense


def masked_dense(dense, sparse, x, mask=None):
    """The definition: dense attention under the pattern, zeros at padded queries."""
    allowed = layers.AttentionMask(sparse.pattern)(x)
    o = dense([x, x, x, allowed], mask=[mask, mask, mask, None], a_bias=True)
    return o if mask is None else o * ops.cast(mask, "float32")[:, :, None]


def both(sparse, dense):
    """Compiled: x and mask -> what the sparse layer and its definition give."""
    functions = [sparse, lambda x, mask: masked_dense(dense, sparse, x, mask)]
    return runtime.jit(lambda x, mask: [f(x, mask=mask) for f in functions], model=[sparse, dense])


def lengths(n):
    """A mask [2, n] of one shorter and one whole sample, or of left padding."""
    mask = np.ones((2, n), bool)
    mask[0, -(-n // 2) :] = False
    return mask


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_masked_dense_attention_at_any_length(kind, causal, tolerance):
    """n below r, multiples of it and others, with padding right, left and none."""
    compare = both(*pair(kind, causal=causal))
    masks = {1: None, 2: lengths(2), 7: lengths(7)[:, ::-1].copy(), 12: None}
    for n, mask in masks.items():
        got, want = compare(normal(2, n, 5, seed=n), mask)
        assert_close(got, want, tolerance, f"{kind}, n={n}")


@settings(max_examples=6)
@given(st.integers(1, 40), st.integers(0, 9), st.integers(1, 9), st.booleans(), st.integers(0, 99))
def test_local_attention_of_any_size(n, neighbors, rate, causal, seed):
    sparse = layers.LocalSelfAttention(1, 2, neighbors, rate=rate, causal=causal)
    dense = layers.MultiHeadAttention(1, 2)
    sparse.build((None, None, 2))
    dense.build([(None, None, 2)] * 3)
    dense.set_weights(sparse.get_weights())
    distance = np.subtract.outer(np.arange(n), np.arange(n))
    allowed = (abs(distance) <= neighbors * rate) & (distance % rate == 0) & ((distance >= 0) | (not causal))
    np.testing.assert_equal(sparse.pattern.matrix(n), allowed)
    assert_close(*both(sparse, dense)(normal(1, n, 2, seed=seed), None), 1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_those_of_masked_dense_attention(kind, causal, tolerances):
    sparse, dense = pair(kind, causal=causal)
    n, mask = 7, lengths(7)
    got = all_gradients(sparse, sparse, n, mask)
    want = all_gradients(dense, lambda x, mask: masked_dense(dense, sparse, x, mask), n, mask)
    assert_close(got, want, tolerances["gradient"])
    assert (to_arrays(got[0])[0][~mask] == 0).all()


def all_gradients(layer, attend, n, mask):
    """Gradients of the input and of all weights, for a random direction of the output; compiled."""
    variables, cotangent = layer.trainable_variables, ops.convert_to_tensor(normal(2, n, 8, seed=2))

    def loss(point):
        x, *values = point
        with runtime.overridden(list(zip(variables, values, strict=True)), layer):
            return ops.sum(attend(x, mask=ops.convert_to_tensor(mask)) * cotangent)

    def step(*point):
        return runtime.value_and_grad(loss, list(point), differentiable=False)[1]

    return runtime.jit(step, model=layer)(normal(2, n, 5), *(v.value for v in variables))


@pytest.mark.parametrize("kind", ["atrous", "local", "sparse"])
@pytest.mark.parametrize("position", ["rotary", "rotary_half"])
def test_rotary_positions(kind, position, tolerance):
    sparse = KINDS[kind]()
    dense = layers.MultiHeadAttention(2, 4)
    x, table = ops.convert_to_tensor(normal(2, 7, 5)), sinusoidal_embeddings(np.arange(7)[None], 4)
    sparse([x, table], p_bias=position)
    randomize(sparse)
    dense.build([x.shape] * 3)
    dense.set_weights(sparse.get_weights())
    want = dense([x, x, x, sparse.pattern.matrix(7), table], a_bias=True, p_bias=position)
    assert_close(sparse([x, table], p_bias=position), want, tolerance)


def test_other_options_of_dense_attention(tolerance):
    x = ops.convert_to_tensor(normal(2, 7, 5))
    for options in ({"key_value_heads": 1}, {"normalization": "softmax_plus"}, {"normalization": "squared_relu"}):
        sparse = KINDS["sparse"](**options)
        dense = layers.MultiHeadAttention(2, 4, **options)
        sparse(x)
        randomize(sparse)
        dense.build([x.shape] * 3)
        dense.set_weights(sparse.get_weights())
        want = dense([x, x, x, sparse.pattern.matrix(7)], a_bias=True)
        assert_close(sparse(x), want, tolerance, str(options))


def test_dropout_is_for_training():
    layer, x = KINDS["local"](attention_dropout=0.5), ops.convert_to_tensor(normal(1, 9, 5))
    assert_close(layer(x), layer(x, training=False), 0)
    assert np.abs(to_arrays(layer(x, training=True))[0] - to_arrays(layer(x))[0]).max() > 0.01


# ---- memory


def shapes_of_step(layer, n):
    """Shapes of all tensors in the compiled forward and backward pass, from JAX or TensorFlow."""
    layer.build((1, n, 8))
    variables = layer.trainable_variables

    def step(x, *values):
        def loss(point):
            x, *values = point
            with runtime.overridden(list(zip(variables, values, strict=True)), layer):
                return ops.sum(ops.square(layer(x)))

        return runtime.value_and_grad(loss, [x, *values], differentiable=False)

    arrays = [np.zeros((1, n, 8), "float32"), *(runtime.to_numpy(v) for v in variables)]
    return {"jax": _jax_shapes, "tensorflow": _tensorflow_shapes}[keras.backend.backend()](step, arrays)


def _jax_shapes(step, arrays):
    import jax

    shapes, stack = set(), [jax.make_jaxpr(step)(*arrays).jaxpr]
    while stack:
        for equation in stack.pop().eqns:
            shapes |= {tuple(v.aval.shape) for v in equation.outvars}
            parts = [part for value in equation.params.values() for part in keras.tree.flatten(value)]
            stack += [inner for part in parts if (inner := getattr(part, "jaxpr", part)) is not None
                      and hasattr(inner, "eqns")]
    return shapes


def _tensorflow_shapes(step, arrays):
    import tensorflow as tf

    specs = [tf.TensorSpec(a.shape, a.dtype) for a in arrays]
    graph = tf.function(step, autograph=False).get_concrete_function(*specs).graph
    shapes = {t.shape for operation in graph.get_operations() for t in operation.outputs}
    assert all(shape.rank is not None for shape in shapes), "a tensor of unknown rank hides its size"
    return {tuple(shape) for shape in shapes}


def largest(layer, n):
    shapes = shapes_of_step(layer, n)
    assert all(None not in shape for shape in shapes)
    return max(int(np.prod(shape)) for shape in shapes)


@pytest.mark.skipif(os.environ.get("KERAS_BACKEND") == "torch", reason="torch has no graph to look at")
def test_no_tensor_grows_with_the_square_of_the_length():
    """The largest tensor of the forward and backward pass doubles with the length; that of dense attention does not."""
    n = 1024
    heads, window = 2, 16
    sizes = {"local": window, "causal": window, "sparse": max(n // window, window), "atrous": n // window}
    kinds = {
        "local": layers.LocalSelfAttention(heads, 4, window),
        "causal": layers.LocalSelfAttention(heads, 4, window, causal=True),
        "sparse": layers.SparseSelfAttention(heads, 4, window),
        "atrous": layers.AtrousSelfAttention(heads, 4, window),
    }
    for name, layer in kinds.items():
        assert largest(layer, n) == heads * n * sizes[name], name
    assert largest(layers.LocalSelfAttention(heads, 4, window), 2 * n) == 2 * heads * n * sizes["local"]


@pytest.mark.skipif(os.environ.get("KERAS_BACKEND") == "torch", reason="torch has no graph to look at")
def test_the_largest_tensor_of_dense_attention_is_found():
    class Dense(layers.MultiHeadAttention):
        def build(self, shape):
            super().build([shape] * 3)

        def call(self, x, **more):
            return super().call([x, x, x], **more)

        def compute_output_spec(self, x, **more):
            return keras.KerasTensor((*x.shape[:2], self.out_dim), dtype=self.compute_dtype)

    assert largest(Dense(2, 4), 64) == 2 * 64 * 64


# ---- errors


def test_what_sparse_layers_refuse():
    with pytest.raises(ValueError, match="return_attention_scores=True. Use MultiHeadAttention"):
        layers.AtrousSelfAttention(2, 4, 3, return_attention_scores=True)
    with pytest.raises(ValueError, match="AtrousSelfAttention has no fused form"):
        layers.AtrousSelfAttention(2, 4, 3, fused=True)
    with pytest.raises(ValueError, match="rate must be an integer of at least 2; got 1"):
        layers.SparseSelfAttention(2, 4, 1)
    with pytest.raises(ValueError, match="rate must be an integer of at least 1; got 0"):
        layers.AtrousSelfAttention(2, 4, 0)
    with pytest.raises(ValueError, match="neighbors must be an integer of at least 0; got -1"):
        layers.LocalSelfAttention(2, 4, -1)
    x = normal(1, 4, 5)
    with pytest.raises(ValueError, match="attends to its one input x.*got 3 inputs"):
        KINDS["local"]()([x, x, x])
    with pytest.raises(ValueError, match="p_bias None, 'rotary' or 'rotary_half'; got 't5_relative'"):
        KINDS["local"]()([x, x], p_bias="t5_relative")
