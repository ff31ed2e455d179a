"""K: the old backend functions keep the arguments and defaults of Keras 2."""

import keras
import numpy as np
import pytest
from keras import ops

from bert4x.backend import K
from bert4x.backend.runtime import jit

X = np.float32([[1, 2, 3], [4, 5, 6]])
CALLS = [  # (name, arguments, keywords, expected)
    ("sum", (X,), {}, 21),
    ("sum", (X,), {"axis": 1, "keepdims": True}, [[6], [15]]),
    ("mean", (X,), {"axis": -1}, [2, 5]),
    ("prod", (X,), {"axis": 0}, [4, 10, 18]),
    ("max", (X,), {"axis": 0}, [4, 5, 6]),
    ("cumsum", (X,), {}, [[1, 2, 3], [5, 7, 9]]),
    ("cumsum", (X, 1), {}, [[1, 3, 6], [4, 9, 15]]),
    ("argmax", (X,), {}, [2, 2]),
    ("argmin", (X,), {"axis": 0}, [0, 0, 0]),
    ("cast", (X, "int32"), {}, X),
    ("clip", (X, 2, 5), {}, [[2, 2, 3], [4, 5, 5]]),
    ("equal", (X, 2), {}, X == 2),
    ("not_equal", (X, 2), {}, X != 2),
    ("greater", (X, 2), {}, X > 2),
    ("expand_dims", (X,), {}, X[..., None]),
    ("expand_dims", (X, 0), {}, X[None]),
    ("concatenate", ([X, X],), {}, np.concatenate([X, X], -1)),
    ("stack", ([X, X],), {}, np.stack([X, X])),
    ("transpose", (X,), {}, X.T),
    ("permute_dimensions", (X, (1, 0)), {}, X.T),
    ("gather", (X, [1, 0, 1]), {}, X[[1, 0, 1]]),
    ("one_hot", ([0, 2], 3), {}, [[1, 0, 0], [0, 0, 1]]),
    ("arange", (3,), {}, [0, 1, 2]),
    ("arange", (1, 7, 2), {"dtype": "float32"}, [1, 3, 5]),
    ("repeat", (X, 2), {}, np.repeat(X[:, None], 2, 1)),
    ("repeat_elements", (X, 2, 1), {}, np.repeat(X, 2, 1)),
    ("zeros", ((2, 1),), {}, [[0], [0]]),
    ("ones", ((2,),), {"dtype": "int32", "name": "ones"}, [1, 1]),
    ("zeros_like", (X,), {}, X * 0),
    ("ones_like", (X,), {}, X * 0 + 1),
    ("constant", (2,), {"shape": (2,)}, [2, 2]),
    ("reshape", (X, (3, 2)), {}, X.reshape(3, 2)),
    ("flatten", (X,), {}, X.ravel()),
    ("logsumexp", (X,), {"axis": 1}, np.log(np.exp(X).sum(1))),
    ("softmax", (X,), {}, np.exp(X) / np.exp(X).sum(1, keepdims=True)),
    ("dot", (X, X.T), {}, X @ X.T),
    ("l2_normalize", (X, 1), {}, X / np.linalg.norm(X, axis=1, keepdims=True)),
    ("relu", (X - 3,), {"alpha": 0.5, "max_value": 2.0}, [[-1, -0.5, 0], [1, 2, 2]]),
    ("switch", (np.array([True, False]), X, -X), {}, [[1, 2, 3], [-4, -5, -6]]),
    ("switch", (X > 2, lambda: X, lambda: X * 0), {}, X * (X > 2)),
    ("in_train_phase", (X, -X), {"training": True}, X),
    ("in_train_phase", (lambda: X, lambda: -X), {"training": False}, -X),
    ("binary_crossentropy", (np.float32([1, 0]), np.float32([0.8, 0.8])), {}, -np.log([0.8, 0.2])),
    ("categorical_crossentropy", (np.float32([[0, 1]]), np.float32([[0.3, 0.7]])), {}, [-np.log(0.7)]),
    ("sparse_categorical_crossentropy", (np.float32([1]), np.float32([[0.3, 0.7]])), {}, [-np.log(0.7)]),
    ("sparse_categorical_crossentropy", ([0], np.float32([[0, 0]]), True), {}, [np.log(2)]),
]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call[0])
def test_values(call):
    name, arguments, keywords, expected = call
    tensors = [ops.convert_to_tensor(a) if isinstance(a, np.ndarray) else a for a in arguments]
    got = K.eval(getattr(K, name)(*tensors, **keywords))
    assert got.shape == np.shape(expected)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_target_with_a_trailing_axis():
    target, output = ops.convert_to_tensor([[[1], [0]]]), ops.convert_to_tensor([[[0.3, 0.7], [0.6, 0.4]]])
    loss = K.sparse_categorical_crossentropy(target, output)
    np.testing.assert_allclose(K.eval(loss), [-np.log([0.7, 0.6])], rtol=1e-5)


def test_variables():
    v = K.variable([1, 2], name="v")
    assert isinstance(v, keras.Variable) and K.dtype(v) == "float32"
    K.set_value(v, [3, 4])
    np.testing.assert_array_equal(K.get_value(v), [3, 4])
    K.update_add(v, 1.0)
    K.batch_set_value([(v, K.get_value(v) * 2)])
    np.testing.assert_array_equal(K.get_value(v), [8, 10])
    assert K.update(v, [0, 0]) is v
    with pytest.raises(TypeError, match="assigns to a variable.*K.variable"):
        K.set_value(K.zeros((2,)), [1, 1])


def test_shapes_and_types():
    x = keras.Input((None, 3))
    assert K.int_shape(x) == (None, None, 3) and K.ndim(x) == 3 and K.dtype(x) == "float32"
    assert K.is_keras_tensor(x)
    assert tuple(K.shape(ops.zeros((2, 3)))) == (2, 3)
    assert K.floatx() == "float32" and K.epsilon() == 1e-7


def test_random_numbers():
    uniform = K.eval(K.random_uniform((1000,), 2, 3))
    assert uniform.min() >= 2 and uniform.max() <= 3 and uniform.std() > 0.2
    binomial = K.eval(K.random_binomial((1000,), p=0.3))
    assert set(np.unique(binomial)) == {0, 1} and 0.2 < binomial.mean() < 0.4
    assert abs(K.eval(K.random_normal((1000,), mean=5.0)).mean() - 5) < 0.3
    np.testing.assert_array_equal(K.eval(K.random_uniform((3,), seed=1)), K.eval(K.random_uniform((3,), seed=1)))


def test_in_train_phase_asks_the_layer_that_is_called():
    class Noisy(keras.layers.Layer):
        def call(self, x):
            return K.in_train_phase(lambda: x + 1, x)

    x = ops.zeros((1, 2))
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Dense(2, kernel_initializer="identity")(Noisy()(inputs)))
    assert K.eval(model(x, training=True)).tolist() == [[1, 1]]
    assert K.eval(model(x, training=False)).tolist() == [[0, 0]]
    assert K.eval(jit(model)(x)).tolist() == [[0, 0]]
    model.compile("sgd", "mse")
    assert model.fit(x, np.zeros((1, 2)), verbose=0).history["loss"] == [1.0]


def test_in_train_phase_in_a_graph_survives_saving(tmp_path):
    inputs = keras.Input((2,))
    model = keras.Model(inputs, K.in_train_phase(inputs * 2, inputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x = ops.ones((1, 2))
    assert K.eval(loaded(x, training=True)).tolist() == [[2, 2]]
    assert K.eval(loaded(x, training=False)).tolist() == [[1, 1]]


def test_a_custom_loss_of_old_style_trains():
    def loss(y_true, y_pred):
        mask = K.cast(K.not_equal(y_true, 0), K.floatx())
        each = K.sparse_categorical_crossentropy(y_true, y_pred)
        return K.sum(each * mask) / (K.sum(mask) + K.epsilon())

    model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(3, activation="softmax")])
    model.compile("adam", loss)
    history = model.fit(np.eye(2), np.array([1, 0]), epochs=2, verbose=0).history["loss"]
    assert history[1] < history[0]


def test_every_counted_function_is_there():
    """The functions that compat.md A-REF.7 counted in users' scripts."""
    names = (
        "sum cast sparse_categorical_crossentropy eval floatx zeros set_value epsilon zeros_like shape mean "
        "stop_gradient reshape one_hot not_equal int_shape concatenate binary_crossentropy switch random_uniform "
        "random_binomial prod in_train_phase cumsum categorical_crossentropy expand_dims greater argmax equal "
        "transpose gather variable softmax arange logsumexp flatten where symbolic"
    )
    assert [name for name in names.split() if not callable(getattr(K, name))] == []


def test_what_is_gone_names_its_replacement():
    with pytest.raises(NotImplementedError, match="value_and_grad"):
        K.gradients(None, [])
    with pytest.raises(NotImplementedError, match="runtime.jit.*value_and_grad"):
        K.function([], [])
    with pytest.raises(AttributeError, match=r"K has no 'einsum'. Use keras.ops.einsum"):
        K.einsum  # noqa: B018
    with pytest.raises(AttributeError, match="K has no 'tf'"):
        K.tf  # noqa: B018
