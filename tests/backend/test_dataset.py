"""`dataset_from_generator`: what `fit` gets from batches of any lengths, and the traps F1 to F3 of Keras."""

import ctypes

import keras
import numpy as np
import pytest

from bert4x.backend.batches import as_tuples, conform
from bert4x.backend.runtime import backend, dataset_from_generator, to_numpy


def batches(lengths, size=2):
    """([ids, segments], labels) with one length per batch, as old scripts yield them."""
    random = np.random.default_rng(0)
    for length in lengths:
        ids = random.integers(0, 5, (size, length)).astype("int32")
        yield [ids, np.zeros_like(ids)], np.ones((size, 1), "float32")


def read(make_iterator, example=None, count=None):
    """The first batches of a data set, as NumPy arrays in the structure that a train step gets."""
    data = iter(dataset_from_generator(make_iterator, example or next(make_iterator())))
    result = [next(data) for _ in range(count)] if count else list(data)
    return keras.tree.map_structure(lambda a: None if a is None else np.asarray(a), result)


def two_inputs():
    ids, segments = keras.Input((None,), dtype="int32"), keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(5, 4)(ids) + keras.layers.Embedding(2, 4)(segments)
    model = keras.Model([ids, segments], keras.layers.Dense(1)(keras.layers.GlobalAveragePooling1D()(x)))
    model.compile("adam", "mse")
    return model


def test_fit_when_the_first_two_batches_have_the_same_length_and_later_ones_not():
    lengths = [4, 4, 7, 2]
    model = two_inputs()
    before = to_numpy(model.trainable_variables[0])
    data = dataset_from_generator(lambda: batches(lengths), next(batches(lengths)))
    model.fit(data, steps_per_epoch=4, shuffle=False, verbose=0)
    assert not np.array_equal(to_numpy(model.trainable_variables[0]), before)


def test_fit_over_epochs_from_an_endless_iterator():
    def endless():
        while True:
            yield from batches([3, 3, 5])

    data = dataset_from_generator(endless, next(endless()))
    history = two_inputs().fit(data, epochs=2, steps_per_epoch=4, shuffle=False, verbose=0)
    assert len(history.history["loss"]) == 2


def test_evaluate_and_predict():
    model = two_inputs()
    data = dataset_from_generator(lambda: batches([3, 3, 5]), next(batches([3])))
    assert np.isfinite(model.evaluate(data, steps=3, verbose=0))
    inputs = dataset_from_generator(lambda: ((x,) for x, _ in batches([3, 3, 5])), next(batches([3]))[:1])
    assert model.predict(inputs, steps=3, verbose=0).shape == (6, 1)


def test_batches_arrive_as_tuples_with_the_dtypes_of_the_example():
    (first, second) = read(lambda: batches([3, 5]))
    assert isinstance(first, tuple) and isinstance(first[0], tuple) and len(first) == 2
    expected = list(batches([3, 5]))
    for got, want in zip((first, second), expected, strict=True):
        np.testing.assert_array_equal(got[0][0], want[0][0])
        np.testing.assert_array_equal(got[1], want[1])
        assert got[0][0].dtype == np.int32 and got[1].dtype == np.float32


def test_later_batches_are_cast_to_the_example():
    def wide():
        yield np.zeros((1, 2), "int32"), np.zeros(1, "float32")
        yield np.zeros((1, 2), "int64"), np.zeros(1, "float64")

    assert [x.dtype for x, _ in read(wide)] == [np.int32] * 2
    assert [y.dtype for _, y in read(wide)] == [np.float32] * 2


def test_the_batch_size_may_change_too():
    def shrinking():
        yield np.zeros((3, 2)), np.zeros(3)
        yield np.zeros((3, 2)), np.zeros(3)
        yield np.zeros((1, 2)), np.zeros(1)

    assert [len(y) for _, y in read(shrinking)] == [3, 3, 1]


@pytest.mark.parametrize("batch", [([np.ones((1, 2)), np.ones((1, 3))], None), ([np.ones((1, 2))] * 2,)])
def test_absent_targets_leave_a_tuple_of_inputs(batch):
    (got,) = read(lambda: iter([batch]))
    assert len(got) == 1 and len(got[0]) == 2


def test_weights_without_targets():
    (got,) = read(lambda: iter([(np.ones((2, 2)), None, np.ones(2))]))
    assert got[1] is None
    np.testing.assert_array_equal(got[2], [1, 1])


def test_loss_layers_need_no_targets():
    """F3: compile(optimizer) with add_loss, batches (x, None)."""
    ids = keras.Input((None,), dtype="int32")
    x = keras.layers.ActivityRegularization(l2=1.0)(keras.layers.Embedding(5, 2)(ids))
    model = keras.Model(ids, x)
    model.compile("adam")

    def inputs_only():
        for (ids, _), _ in batches([3, 3, 6]):
            yield ids, None

    data = dataset_from_generator(inputs_only, next(inputs_only()))
    history = model.fit(data, steps_per_epoch=3, shuffle=False, verbose=0)
    assert history.history["loss"][0] > 0


def test_dictionaries_of_inputs():
    def named():
        for (ids, segments), labels in batches([3, 3, 5]):
            yield {"ids": ids, "more": [segments, ids]}, labels

    got = read(named)
    assert [batch[0]["ids"].shape for batch in got] == [(2, 3), (2, 3), (2, 5)]
    assert got[2][0]["more"][1].shape == (2, 5)


def test_a_data_set_can_be_read_twice_on_tensorflow():
    if backend() != "tensorflow":
        pytest.skip("JAX and torch get a generator, which is read once")
    data = dataset_from_generator(lambda: batches([3, 5]), next(batches([3])))
    assert len(list(data)) == len(list(data)) == 2


def test_as_tuples_rejects_what_is_no_batch():
    with pytest.raises(TypeError, match="must be a tuple.*got ndarray"):
        as_tuples(np.zeros(3))
    for parts in ([], [None, None], [np.zeros(1)] * 4):
        with pytest.raises(ValueError, match=r"must be \(x,\), \(x, y\) or \(x, y, w\)"):
            as_tuples(parts)


def test_conform_rejects_another_structure_rank_or_kind():
    example = as_tuples(([np.zeros((1, 2), "int32")], np.zeros(1)))
    for wrong in (([np.zeros((1, 2), "int32")] * 2, np.zeros(1)), ([np.zeros(2, "int32")], np.zeros(1))):
        with pytest.raises(ValueError, match="structure of the first"):
            conform(wrong, example)
    with pytest.raises(TypeError, match="[Cc]annot cast"):
        conform(([np.zeros((1, 2), "float32")], np.zeros(1)), example)


class MallocInfo(ctypes.Structure):
    """What glibc's mallinfo2(3) returns."""

    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33 or later")
def test_arrays_of_a_mebibyte_are_not_mapped_anew():
    """TensorFlow makes it so for every data set from a generator, which halves the speed of training on a CPU."""
    library = ctypes.CDLL(None)
    library.mallinfo2.restype, library.malloc.restype = MallocInfo, ctypes.c_void_p
    read(lambda: batches([3, 4]), count=2)
    before = library.mallinfo2().hblks
    blocks = [library.malloc(ctypes.c_size_t(2**20)) for _ in range(20)]
    mapped = library.mallinfo2().hblks - before
    for block in blocks:
        library.free(ctypes.c_void_p(block))
    assert mapped == 0
