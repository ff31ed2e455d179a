"""`search_layer`: from a model, a layer or a tensor, into nested models."""

import keras
import numpy as np
import pytest

from bert4x.backend import search_layer


@pytest.fixture(scope="module")
def nested():
    """outer: Input -> first -> inner model (a, wrapped b) -> last."""
    x = keras.Input((4,))
    wrapped = keras.layers.TimeDistributed(keras.layers.Dense(3, name="b"), name="wrapper")
    y = wrapped(keras.layers.Reshape((1, 3))(keras.layers.Dense(3, name="a")(x)))
    inner = keras.Model(x, y, name="inner")
    outer = keras.Input((4,))
    y = keras.layers.Flatten()(inner(keras.layers.Dense(4, name="first")(outer)))
    return keras.Model(outer, keras.layers.Dense(1, name="last")(y))


@pytest.mark.parametrize("name", ["first", "last", "inner", "a", "b", "wrapper"])
def test_finds_layers_everywhere(nested, name):
    for start in (nested, nested.output):
        assert search_layer(start, name).name == name


def test_starts_at_any_tensor_and_looks_back_only(nested):
    middle = nested.get_layer("first").output
    assert search_layer(middle, "first") is nested.get_layer("first")
    assert search_layer(middle, "last") is None
    assert search_layer(nested, "absent") is None


def test_layers_in_a_list_of_a_layer():
    class Stack(keras.layers.Layer):
        def __init__(self):
            super().__init__(name="stack")
            self.parts = [keras.layers.Dense(2, name=f"part-{i}") for i in range(2)]

    assert search_layer(Stack(), "part-1").name == "part-1"


def test_a_layer_of_several_inputs():
    a, b = keras.Input((2,)), keras.Input((2,))
    left, right = keras.layers.Dense(2, name="left")(a), keras.layers.Dense(2, name="right")(b)
    out = keras.layers.Add(name="sum")([left, right])
    assert [search_layer(out, name).name for name in ("left", "right", "sum")] == ["left", "right", "sum"]


def test_rejects_what_is_no_graph():
    with pytest.raises(TypeError, match="Keras model, layer or symbolic tensor; got ndarray"):
        search_layer(np.zeros(2), "a")
