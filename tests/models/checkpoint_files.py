"""Arrays of every kind that checkpoints hold, and comparing a checkpoint with them bit by bit."""

import numpy as np

ROWS = [4, 0, 1, 2, 2, 4, 3]


def make_arrays():
    """Arrays of every kind that files hold, bfloat16 apart."""
    random = np.random.default_rng(0)
    return {
        "bert.table": random.normal(size=(5, 3)).astype("float32"),
        "bert.cube": random.normal(size=(5, 2, 3)).astype("float64"),
        "bert.half": random.normal(size=(5, 7)).astype("float16"),
        "bert.ids": np.arange(-2, 3, dtype="int64"),
        "bert.flags": np.array([True, False, True, True, False]),
        "bert.step": np.array(12345, "int64"),
        "bert.empty": np.zeros((0, 3), "float32"),
        "bert.narrow": np.zeros((5, 0), "float32"),
    }


def as_items(arrays):
    """What the writers take."""
    return [(name, a.shape, a.dtype.name, lambda a=a: a) for name, a in arrays.items()]


def assert_holds(checkpoint, arrays):
    """The checkpoint has exactly these arrays, bit by bit, whole and by rows."""
    assert set(checkpoint.names) == set(arrays)
    for name, array in arrays.items():
        assert (checkpoint.shape(name), checkpoint.dtype(name)) == (array.shape, array.dtype.name)
        assert_same(checkpoint.read(name), array)
        if array.ndim and len(array) == 5:
            assert_same(checkpoint.read(name, ROWS), array[ROWS])
            assert_same(checkpoint.read(name, rows=np.arange(1, 4)), array[1:4])
            assert_same(checkpoint.read(name, rows=[]), array[:0])


def assert_same(value, array):
    """Same type, shape and bits."""
    assert isinstance(value, np.ndarray)
    assert (value.dtype, value.shape, value.tobytes()) == (array.dtype, array.shape, array.tobytes())


def save_tensorflow(tf, prefix, arrays):
    """Write a TensorFlow checkpoint as TensorFlow's own savers do, without our writer."""
    tensors = [tf.constant(array) for array in arrays.values()]
    slices = [""] * len(tensors)
    tf.raw_ops.SaveV2(prefix=str(prefix), tensor_names=list(arrays), shape_and_slices=slices, tensors=tensors)
