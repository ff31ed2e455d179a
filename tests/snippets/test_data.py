"""`DataGenerator`: orders, errors, checks on the host, and `fit` on the backend under test."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert4x.backend import keras, ops
from bert4x.snippets import DataGenerator, bucket_length, open, sequence_padding, to_array
from bert4x.snippets.batch import standard_batch

LENGTHS = (5, 5, 3, 9)  # of the batches below: Keras looks at the first two batches to learn what is variable


class Reviews(DataGenerator):
    """Written as old scripts write it."""

    def __iter__(self, random=False):
        batch_token_ids, batch_segment_ids, batch_labels = [], [], []
        for is_end, (token_ids, label) in self.sample(random):
            batch_token_ids.append(token_ids)
            batch_segment_ids.append([0] * len(token_ids))
            batch_labels.append([label])
            if len(batch_token_ids) == self.batch_size or is_end:
                batch_token_ids = sequence_padding(batch_token_ids)
                batch_segment_ids = sequence_padding(batch_segment_ids)
                batch_labels = sequence_padding(batch_labels)
                yield [batch_token_ids, batch_segment_ids], batch_labels
                batch_token_ids, batch_segment_ids, batch_labels = [], [], []


class Unlabelled(Reviews):
    """Batches whose loss is made inside the model."""

    def __iter__(self, random=False):
        for x, y in super().__iter__(random):
            yield [*x, y], None


def records():
    draw = np.random.default_rng(0)
    return [
        (draw.integers(1, 20, length).tolist(), int(draw.integers(2)))
        for length in LENGTHS for _ in range(4)
    ]


def tower():
    token = keras.Input((None,), dtype="int32", name="Input-Token")
    segment = keras.Input((None,), dtype="int32", name="Input-Segment")
    x = keras.layers.Embedding(20, 8)(token) + keras.layers.Embedding(2, 8)(segment)
    return [token, segment], keras.layers.GlobalAveragePooling1D()(x)


def classifier():
    inputs, x = tower()
    model = keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(x))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


class SquaredError(keras.layers.Layer):
    """Adds its loss to the model, as bert4keras' `Loss` does."""

    def call(self, inputs):
        prediction, label = inputs
        self.add_loss(ops.mean((prediction - ops.cast(label, prediction.dtype)) ** 2))
        return prediction


def test_fit_of_an_old_script():
    generator = Reviews(records(), batch_size=4)
    assert len(generator) == 4
    model = classifier()
    history = model.fit(generator.forfit(random=False), steps_per_epoch=len(generator), epochs=3, verbose=0,
                        validation_data=generator.forfit(random=False), validation_steps=len(generator))
    assert len(history.history["loss"]) == 3
    assert np.isfinite(history.history["loss"]).all()
    assert history.history["val_loss"][-1] < history.history["loss"][0]


def test_fit_without_targets():
    generator = Unlabelled(records(), batch_size=4)
    inputs, x = tower()
    label = keras.Input((None,), dtype="int32")
    model = keras.Model([*inputs, label], SquaredError()([keras.layers.Dense(1)(x), label]))
    model.compile("adam")
    history = model.fit(generator.forfit(random=False), steps_per_epoch=len(generator), epochs=3, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]


def test_fit_with_named_inputs_and_weights():
    def collate(items):
        ids, labels = zip(*items, strict=True)
        ids = sequence_padding(ids)
        return {"Input-Token": ids, "Input-Segment": 0 * ids}, np.array(labels), np.ones(len(labels))

    generator = DataGenerator(records(), 4, collate=collate, vocab_size=20)
    history = classifier().fit(generator.forfit(), steps_per_epoch=4, epochs=2, verbose=0)
    assert np.isfinite(history.history["loss"]).all()


def test_fit_sees_every_batch_once():
    seen = []

    class Spy(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(float(ops.convert_to_numpy(self.model.get_layer("sum").total)))

    class Sum(keras.layers.Layer):
        def build(self, shape):
            self.total = self.add_weight(shape=(), initializer="zeros", trainable=False)

        def call(self, x):
            self.total.assign(self.total + ops.sum(x))
            return x

    x = keras.Input((1,))
    model = keras.Model(x, keras.layers.Dense(1)(Sum(name="sum")(x)))
    model.compile("sgd", "mse")
    # With a loss Keras builds it on a first batch of its own, which must not be missing later.
    data = [2.0**i for i in range(6)]

    def collate(items):
        return np.array(items)[:, None], np.zeros((len(items), 1))

    generator = DataGenerator(data, 2, collate=collate)
    model.fit(generator.forfit(), steps_per_epoch=3, epochs=2, verbose=0, callbacks=[Spy()])
    assert seen == [63, 126]


def test_predict_from_the_generator():
    generator = Reviews(records(), batch_size=4)
    model = classifier()
    result = model.predict(generator.fortest(), steps=len(generator), verbose=0)
    expected = np.concatenate([ops.convert_to_numpy(model(x)) for x, _ in generator])
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_to_dataset_of_single_records():
    class Records(DataGenerator):
        def __iter__(self, random=False):
            for _, (ids, label) in self.sample(random):
                yield ids, [0] * len(ids), label

    generator = Records(records(), batch_size=4)
    names = (("Input-Token", "Input-Segment"), ("label",))

    class Pairs(Records):
        def __iter__(self, random=False):
            for ids, segments, label in super().__iter__(random):
                yield (ids, segments), label

    dataset = Pairs(records(), 4).to_dataset((("int32", "int32"), "int32"), (([None], [None]), []),
                                             padded_batch=True)
    history = classifier().fit(dataset, steps_per_epoch=4, epochs=2, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    dataset = generator.to_dataset(("float32", "int32", "int32"), ([12], [None], []),
                                   ("a", "b", "c"), padded_batch=True)
    x, = next(iter(dataset))
    assert ops.shape(x["a"]) == (4, 12) and ops.shape(x["c"]) == (4,) and len(x["b"]) == 4
    assert "float32" in str(x["a"].dtype) and names


def first_items(generator, batches):
    iterator = iter(generator.forfit())
    return [np.asarray(next(iterator)[0]).tolist() for _ in range(batches)]


def test_shuffle_is_seeded_and_differs_by_pass():
    def make(**options):
        return DataGenerator(list(range(40)), 10, collate=np.array, **options)

    items = first_items(make(), 12)
    passes = [sum(items[i:i + 4], []) for i in (0, 4, 8)]
    assert all(sorted(p) == list(range(40)) for p in passes)
    assert passes[0] != passes[1] != passes[2] != passes[0]
    assert items == first_items(make(), 12)
    assert items != first_items(make(seed=1), 12)
    generator = make()
    direct = [np.concatenate(list(generator.__iter__(True))).tolist() for _ in range(2)]
    assert direct == passes[:2]  # True means the next order
    assert np.concatenate(list(generator)).tolist() == list(range(40))
    assert first_items(generator, 12) == items  # whatever was iterated before


@pytest.mark.parametrize("skip", [0, 3, 4, 7, 11])
def test_state_continues_the_stream(skip):
    def make():
        return DataGenerator(list(range(37)), 10, collate=np.array, seed=5)

    whole = first_items(make(), 16)
    generator = make()
    first_items(generator, skip + 2)  # reads ahead, as `fit` does
    state = generator.get_state(skip)
    assert state["pass"] == skip // 4 and state["batch"] == skip % 4
    other = DataGenerator(list(range(37)), 10, collate=np.array)
    other.set_state(state)
    assert first_items(other, 16 - skip) == whole[skip:]
    assert other.get_state(16 - skip)["pass"] == 4


@given(st.integers(1, 30), st.integers(1, 7), st.booleans(), st.booleans())
def test_every_record_once_a_pass(size, batch_size, drop, random):
    generator = DataGenerator(range(size), batch_size, collate=list, drop_remainder=drop)
    batches = list(generator.__iter__(random))
    assert len(batches) == len(generator)
    assert all(len(batch) == batch_size for batch in batches[:-1])
    kept = size // batch_size * batch_size if drop else size
    values = [value for batch in batches for value in batch]
    assert len(values) == kept and len(set(values)) == kept
    if not random:
        assert values == list(range(kept))


def test_is_end_marks_the_last_record():
    generator = DataGenerator("abcde", 2)
    assert [is_end for is_end, _ in generator.sample()] == [False] * 4 + [True]


def test_buckets_bound_the_shapes():
    buckets = (8, 16, 32)
    draw = np.random.default_rng(0)
    data = [[1] * int(n) for n in draw.integers(1, 40, 403)]

    def collate(ids):
        return sequence_padding(ids, bucket_length(ids, buckets)),

    generator = DataGenerator(data, 16, collate=collate, buckets=buckets, length=len)
    plain = DataGenerator(data, 16, collate=collate)
    batches = [x for x, in generator.__iter__(True)]
    assert len(batches) == len(generator) == 26
    assert len({x.shape for x in batches}) <= len(buckets) + 1
    assert sum(x.size for x in batches) < 0.8 * sum(x.size for x, in plain.__iter__(True))
    assert sum((x > 0).sum() for x in batches) == sum(min(len(ids), 32) for ids in data)
    lengths = [int((row > 0).sum()) for x, in generator for row in x]
    assert lengths == [min(len(ids), 32) for ids in data]  # the order for evaluation is that of the data
    with pytest.raises(ValueError, match="ascending"):
        DataGenerator(data, buckets=(8, 4), length=len)
    with pytest.raises(ValueError, match="length"):
        DataGenerator(data, buckets=(8,))


def test_iterators_of_unknown_length(tmp_path):
    generator = DataGenerator((i for i in range(10)), 2, collate=np.array)
    with pytest.raises(ValueError, match="steps_per_epoch"):
        len(generator)
    assert generator and len(list(generator)) == 5  # list and bool do without a length
    assert len(DataGenerator(iter("abc"), steps=3)) == 3
    # The example that the backend needs is not lost.
    items = first_items(DataGenerator((i for i in range(10)), 2, collate=np.array, buffer_size=3), 5)
    assert sorted(sum(items, [])) == list(range(10))
    path = tmp_path / "lines.txt"
    path.write_text("".join(f"{i}\n" for i in range(9)), encoding="utf-8")

    def collate(lines):
        return np.array([int(line) for line in lines]), np.zeros(len(lines))

    with open(path) as file:
        generator = DataGenerator(file, 3, collate=collate, buffer_size=2)
        assert sorted(sum(first_items(generator, 3), [])) == list(range(9))
    with open(path, indexable=True) as file:
        generator = DataGenerator(file, 3, collate=collate)
        assert len(generator) == 3
        assert sorted(sum(first_items(generator, 6), [])) == sorted([*range(9)] * 2)


def test_errors_of_data():
    with pytest.raises(ValueError, match="empty|none"):
        DataGenerator([])
    with pytest.raises(ValueError, match="batch_size"):
        DataGenerator([1], 0)
    with pytest.raises(ValueError, match="at least one batch"):
        DataGenerator(iter([]), collate=np.array).forfit()
    with pytest.raises(ValueError, match="at least one batch"):
        DataGenerator([1], 2, collate=np.array, drop_remainder=True).forfit()
    with pytest.raises(NotImplementedError, match="collate"):
        next(iter(DataGenerator([1])))


def test_vocab_size_is_checked_on_the_host():
    def make(x):
        return DataGenerator([0], collate=lambda items: (x, None), vocab_size=10)

    make([np.array([[9, 0]]), np.array([[99, 0]])]).forfit()
    make({"prefix-Input-Segment": np.array([[99]]), "prefix-Input-Token": np.array([[9]])}).forfit()
    for bad in (10, -1):
        with pytest.raises(ValueError, match=r"\[0, 10\); got -?1"):
            make([np.array([[0, bad]])]).forfit()
    with pytest.raises(ValueError, match="integer token ids"):
        make([np.array([[0.5]])]).forfit()


def test_standard_batch():
    ids = np.arange(6).reshape(2, 3)
    (x, z), y = standard_batch(([ids, ids / 2], [0, 1]))
    assert x.dtype == np.int32 and z.dtype == np.float32 and y.tolist() == [0, 1] and y.dtype == np.int32
    assert len(standard_batch((ids, None))) == 1
    assert len(standard_batch(([ids], None, None))) == 1
    assert standard_batch(({"a": ids}, None))[0]["a"].dtype == np.int32
    assert standard_batch({"a": ids})[0]["a"].shape == (2, 3)
    assert standard_batch(ids)[0].shape == (2, 3)
    assert standard_batch(([[1, 2], [3, 4]], [[1.0], [2.0]]))[0].shape == (2, 2)
    assert standard_batch((to_array([True, False]),))[0].dtype == bool
    for bad in ([[1, 2], [3]], np.array(["a"]), np.array([2**40])):
        with pytest.raises(ValueError):
            standard_batch((bad, None))


def test_generator_is_picklable_and_fits_lists_of_arrays():
    generator = pickle.loads(pickle.dumps(Reviews(records(), batch_size=4)))
    x, y = next(iter(generator))
    assert len(x) == 2 and y.shape == (4, 1)
