"""K: the functions of the old `keras.backend` that users' scripts call, on `keras.ops`.

Use it as `from bert4x.backend import K`. Signatures and defaults are those of Keras 2. What needs a graph of
TensorFlow 1 (`gradients`, `function`) raises and names the replacement.
"""

import keras
from keras import ops
from keras.backend import clear_session, epsilon, floatx, is_keras_tensor, set_epsilon, set_floatx  # noqa: F401

from bert4x.backend.tensors import flatten, reshape  # noqa: F401  regional forms, as scripts know them

# Same name, arguments and defaults in `keras.ops`.
abs = ops.abs
all = ops.all
any = ops.any
cast = ops.cast
cos = ops.cos
dot = ops.dot
equal = ops.equal
exp = ops.exp
greater = ops.greater
greater_equal = ops.greater_equal
less = ops.less
less_equal = ops.less_equal
log = ops.log
logsumexp = ops.logsumexp
max = ops.max
maximum = ops.maximum
mean = ops.mean
min = ops.min
minimum = ops.minimum
not_equal = ops.not_equal
ones_like = ops.ones_like
pow = ops.power
prod = ops.prod
round = ops.round
shape = ops.shape
sigmoid = ops.sigmoid
sign = ops.sign
sin = ops.sin
softmax = ops.softmax
softplus = ops.softplus
sqrt = ops.sqrt
square = ops.square
squeeze = ops.squeeze
stop_gradient = ops.stop_gradient
sum = ops.sum
tanh = ops.tanh
tile = ops.tile
where = ops.where
zeros_like = ops.zeros_like


def clip(x, min_value, max_value):
    """Values limited to [min_value, max_value]."""
    return ops.clip(x, min_value, max_value)


def relu(x, alpha=0.0, max_value=None):
    """x where x > 0, else alpha x; at most max_value."""
    y = ops.leaky_relu(x, negative_slope=alpha) if alpha else ops.relu(x)
    return y if max_value is None else ops.minimum(y, max_value)


def argmax(x, axis=-1):
    """Index of the largest value along an axis."""
    return ops.argmax(x, axis=axis)


def argmin(x, axis=-1):
    """Index of the smallest value along an axis."""
    return ops.argmin(x, axis=axis)


def cumsum(x, axis=0):
    """Cumulative sum along an axis."""
    return ops.cumsum(x, axis=axis)


def l2_normalize(x, axis=None):
    """x divided by its Euclidean norm along an axis; zero stays zero."""
    square_sum = ops.sum(ops.square(x), axis=axis, keepdims=True)
    return x * ops.rsqrt(ops.maximum(square_sum, epsilon()))


def dtype(x):
    """Name of a tensor's dtype."""
    return keras.backend.standardize_dtype(x.dtype)


def ndim(x):
    """Number of axes."""
    return len(x.shape)


def int_shape(x):
    """Static shape as a tuple, with None for unknown sizes."""
    return tuple(x.shape)


def expand_dims(x, axis=-1):
    """Add an axis of size 1."""
    return ops.expand_dims(x, axis)


def concatenate(tensors, axis=-1):
    """Join tensors along an axis."""
    return ops.concatenate(tensors, axis=axis)


def stack(x, axis=0):
    """Join tensors along a new axis."""
    return ops.stack(x, axis=axis)


def transpose(x):
    """Reverse the order of the axes."""
    return ops.transpose(x)


def permute_dimensions(x, pattern):
    """Reorder the axes."""
    return ops.transpose(x, pattern)


def repeat(x, n):
    """[B, D] -> [B, n, D]."""
    return ops.repeat(ops.expand_dims(x, 1), n, axis=1)


def repeat_elements(x, rep, axis):
    """Repeat each element along an axis."""
    return ops.repeat(x, rep, axis=axis)


def gather(reference, indices):
    """Rows of a table by integer indices."""
    return ops.take(reference, ops.cast(indices, "int32"), axis=0)


def one_hot(indices, num_classes):
    """Indices [...] -> float [..., num_classes] with a 1 at each index."""
    return ops.one_hot(ops.cast(indices, "int32"), num_classes)


def arange(start, stop=None, step=1, dtype="int32"):
    """Numbers from start to stop; with one argument from 0 to it."""
    return ops.arange(start, stop, step, dtype=dtype)


def zeros(shape, dtype=None, name=None):
    """Tensor of zeros (a constant: use `variable` for something to assign to)."""
    return ops.zeros(shape, dtype=dtype or floatx())


def ones(shape, dtype=None, name=None):
    """Tensor of ones (a constant)."""
    return ops.ones(shape, dtype=dtype or floatx())


def constant(value, dtype=None, shape=None, name=None):
    """Tensor with the given values, or full of one value if a shape is given."""
    value = ops.convert_to_tensor(value, dtype=dtype or floatx())
    return value if shape is None else ops.broadcast_to(value, shape)


def variable(value, dtype=None, name=None):
    """Keras variable with an initial value."""
    value = ops.convert_to_tensor(value, dtype=dtype or floatx())
    return keras.Variable(value, dtype=dtype or floatx(), name=name)


def eval(x):
    """NumPy array of a tensor or variable; not inside a compiled function."""
    return ops.convert_to_numpy(x)


def get_value(x):
    """NumPy array of a variable."""
    return ops.convert_to_numpy(x)


def set_value(x, value):
    """Assign to a variable."""
    if not isinstance(x, keras.Variable):
        raise TypeError(
            f"K.set_value assigns to a variable; got {type(x).__name__}. Make it with K.variable(value)."
        )
    x.assign(value)


def batch_set_value(pairs):
    """Assign to several variables: pairs (variable, value)."""
    for x, value in pairs:
        set_value(x, value)


def update(x, new_x):
    """Assign to a variable and return it."""
    x.assign(new_x)
    return x


def update_add(x, increment):
    """Add to a variable and return it."""
    return update(x, x + increment)


def random_uniform(shape, minval=0.0, maxval=1.0, dtype=None, seed=None):
    """Uniform random numbers. Under JAX a compiled function needs a `keras.random.SeedGenerator` as seed."""
    return keras.random.uniform(shape, minval, maxval, dtype=dtype or floatx(), seed=seed)


def random_normal(shape, mean=0.0, stddev=1.0, dtype=None, seed=None):
    """Normal random numbers; `seed` as in `random_uniform`."""
    return keras.random.normal(shape, mean, stddev, dtype=dtype or floatx(), seed=seed)


def random_binomial(shape, p=0.0, dtype=None, seed=None):
    """1 with probability p, else 0; `seed` as in `random_uniform`."""
    return ops.cast(keras.random.uniform(shape, seed=seed) < p, dtype or floatx())


def binary_crossentropy(target, output, from_logits=False):
    """Binary cross-entropy of each element, in nats."""
    return ops.binary_crossentropy(target, output, from_logits=from_logits)


def categorical_crossentropy(target, output, from_logits=False, axis=-1):
    """Cross-entropy with distributions as targets, in nats; the class axis is gone."""
    return ops.categorical_crossentropy(target, output, from_logits=from_logits, axis=axis)


def sparse_categorical_crossentropy(target, output, from_logits=False, axis=-1):
    """Cross-entropy with class ids as targets (floats are cast), in nats; the class axis is gone."""
    target = ops.cast(target, "int32")
    return ops.sparse_categorical_crossentropy(target, output, from_logits=from_logits, axis=axis)


def switch(condition, then_expression, else_expression):
    """Elementwise choice; a condition of smaller rank applies to whole rows. Callables are called first."""
    then, other = (x() if callable(x) else x for x in (then_expression, else_expression))
    then = ops.convert_to_tensor(then)
    condition = ops.cast(condition, "bool")
    for _ in range(len(then.shape) - len(condition.shape)):
        condition = ops.expand_dims(condition, -1)
    return ops.where(condition, then, other)


def in_train_phase(x, alt, training=None):
    """x in training, else alt; callables are called first. `training=None`: as the layer now being called."""
    values = [value() if callable(value) else value for value in (x, alt)]
    if training is not None:
        return values[0] if training else values[1]
    return InTrainPhase()(values)


@keras.saving.register_keras_serializable(package="bert4x")
class InTrainPhase(keras.layers.Layer):
    """The first of two tensors in training, else the second. Keras tells a layer which of the two it is."""

    def __init__(self, **options):
        super().__init__(**{"autocast": False, **options})
        self.supports_masking = True

    def call(self, inputs, training=None):
        return inputs[0] if training else inputs[1]

    def compute_mask(self, inputs, mask=None):
        return mask[0] if isinstance(mask, (list, tuple)) else mask

    def compute_output_shape(self, input_shape):
        return input_shape[0]


def symbolic(function):
    """The function itself: there is no graph to enter any more."""
    return function


def gradients(loss, variables):
    """Not offered: raises NotImplementedError."""
    raise NotImplementedError(
        "K.gradients needs a TensorFlow 1 graph. Use bert4x.backend.runtime.value_and_grad(function, x), and "
        "in the function overridden([(variable, x)], model) to differentiate by a weight."
    )


def function(inputs, outputs, updates=None):
    """Not offered: raises NotImplementedError."""
    raise NotImplementedError(
        "K.function needs a TensorFlow 1 graph. Use bert4x.backend.runtime.jit(Model(inputs, outputs)), "
        "or bert4x.backend.runtime.value_and_grad(function, x) for gradients."
    )


def __getattr__(name):
    remedy = f"keras.ops.{name}" if hasattr(ops, name) else "a function of keras.ops or keras.random"
    raise AttributeError(f"K has no {name!r}. Use {remedy}.")
