"""`DataGenerator`: shuffles, batches and feeds data to `model.fit`, the same way on all three backends."""

import itertools
import warnings

import numpy as np

from bert4x.snippets.batch import named, stacked, standard_batch, with_single_columns
from bert4x.snippets.order import bucketed, buffer_shuffled, mark_last, whole_batches


class UnknownLengthError(TypeError, ValueError):
    """The number of batches is not known. (A TypeError too: `list` and `tqdm` then do without a length.)"""


class DataGenerator:
    """Batches for `fit`, from any iterable, shuffled by a seed, in a new order every pass.

    Either give a `collate` function, as here, or subclass it and write `__iter__` on `sample`::

        def collate(records):
            ids, labels = zip(*records)
            return sequence_padding(ids), to_array(labels)

        generator = DataGenerator(records, 32, collate=collate)
        model.fit(generator.forfit(), steps_per_epoch=len(generator), epochs=3)

        class Reviews(DataGenerator):
            def __iter__(self, random=False):
                records = []
                for is_end, record in self.sample(random):
                    records.append(record)
                    if len(records) == self.batch_size or is_end:
                        yield collate(records)
                        records = []

    Args:
        data: anything that can be iterated; with a length and `data[i]` it is shuffled as a whole, otherwise
            (an iterator, a file, a set) within a buffer. A one-shot iterator gives one pass.
        batch_size: records per batch, >= 1.
        buffer_size: records held for shuffling where there is no length; None for 1000 batches.
        collate: function from a list of at most batch_size records to a batch (x,), (x, y) or (x, y, w).
        seed: integer; the order of pass p is a function of (seed, p).
        buckets: ascending padded lengths, in tokens. A shuffled pass then puts records of one bucket into one
            batch; pad with `sequence_padding(ids, bucket_length(ids, buckets))`, so that a compiled model
            sees at most len(buckets) + 1 shapes. The order of a pass that is not shuffled is not touched.
        length: function from a record to its length in tokens; needed with buckets.
        drop_remainder: leave out the records that do not fill a batch (training data only: one shape less).
        vocab_size: check on the host that the token ids fed are in [0, vocab_size); out of range they are NaN
            on JAX.
        steps: number of batches per pass where it cannot be computed.
    Raises:
        ValueError for empty data, or buckets without length.
    """

    def __init__(
        self, data, batch_size=32, buffer_size=None, *, collate=None, seed=0, buckets=None, length=None,
        drop_remainder=False, vocab_size=None, steps=None,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}.")
        size = _size(data)
        if size == 0:
            raise ValueError("data must hold at least one record; got none. Is it the right file?")
        if buckets is not None and (length is None or list(buckets) != sorted(set(buckets)) or not buckets):
            raise ValueError(f"buckets must be ascending and length a function; got {buckets}, {length}.")
        self.data = data
        self.batch_size = batch_size
        self.buffer_size = buffer_size or batch_size * 1000
        self.collate = collate
        self.seed = seed
        self.buckets = buckets
        self.length = length
        self.drop_remainder = drop_remainder
        self.vocab_size = vocab_size
        self.steps = steps
        if steps is None and size is not None:
            self.steps = size // batch_size if drop_remainder else -(-size // batch_size)
        self._passes = 0  # shuffled passes made by direct iteration
        self._start = (0, 0)  # pass and batch within it where `forfit` starts
        self._pass_starts = [(0, 0, 0)]  # (batches fed before, pass, batch within it) of the newest `forfit`

    def __len__(self):
        """Return the number of batches in one pass, the `steps_per_epoch` of `fit`."""
        if self.steps is None:
            raise UnknownLengthError(
                f"the number of batches is unknown, since {type(self.data).__name__} has no length. "
                "Give DataGenerator(steps=...), or fit(steps_per_epoch=...) a number of your choice."
            )
        return self.steps

    def __bool__(self):
        return True

    def __iter__(self, random=False):
        """Yield the batches of one pass; subclasses write their own, on `sample(random)`."""
        if self.collate is None:
            raise NotImplementedError(f"{type(self).__name__} needs collate=, or __iter__(self, random).")
        items = []
        for is_end, item in self.sample(random):
            items.append(item)
            if len(items) == self.batch_size or is_end:
                yield self.collate(items)
                items = []

    def sample(self, random=False):
        """Yield (is_end, record) over one pass; `is_end` is true with the last record.

        Args:
            random: False for the order of the data; True for the next shuffled order; or a NumPy Generator
                that shuffles. `forfit` hands such a one to `__iter__`, where it may also serve for other
                random choices.
        """
        if random and not isinstance(random, np.random.Generator):
            random = self._generator(self._passes)
            self._passes += 1
        items = self._shuffled(random) if random else iter(self.data)
        if random and self.buckets is not None:
            items = bucketed(items, self.length, self.buckets, self.batch_size)
        if self.drop_remainder:
            items = whole_batches(items, self.batch_size)
        for item, is_end in mark_last(items):
            yield is_end, item

    def _generator(self, number):
        return np.random.default_rng([self.seed, number])

    def _shuffled(self, rng):
        size = _size(self.data)
        if size and hasattr(self.data, "__getitem__") and not hasattr(self.data, "keys"):
            return (self.data[i] for i in rng.permutation(size).tolist())
        return buffer_shuffled(self.data, rng, self.buffer_size)

    def forfit(self, random=True):
        """Return endless batches in the form that `model.fit` needs on the backend in use.

        TensorFlow: a tf.data.Dataset in which every axis is free. JAX and torch: a generator.

        Args:
            random: True to shuffle every pass anew, False to keep the order.
        """
        return self._feed(lambda: self._standard(self._endless(random)))

    def fortest(self, random=False):
        """Return endless inputs, without targets, for `model.predict(g.fortest(), steps=len(g))`."""
        def inputs():
            return (batch[:1] for batch in self._standard(self._endless(random, start=(0, 0))))

        return self._feed(inputs)

    def to_dataset(self, types, shapes, names=None, padded_batch=False):
        """Feed single records: `__iter__` yields one at a time, and this makes the batches of them.

        Args:
            types: NumPy or TensorFlow types, in the structure of a record.
            shapes: shape of each array of a record, None for an axis of free length, in the same structure.
            names: a name for a single array, a tuple of names, or a tuple of tuples of names: arrays come as
                dicts.
            padded_batch: pad with zeros at the axes of free length; otherwise all must be equal.
        """
        def batches():
            records = self._endless(start=(0, 0))
            while rows := list(itertools.islice(records, self.batch_size)):
                yield named(names, stacked(rows, types, shapes, padded_batch))

        return self._feed(lambda: self._standard(batches()))

    def _standard(self, batches):
        return (standard_batch(batch, self.vocab_size) for batch in batches)

    def _feed(self, make_iterator):
        """Hand batches to the backend, with one of them as the example of types and ranks."""
        from bert4x.backend.runtime import dataset_from_generator

        # `fit` has shuffle=True by default and warns whenever its data is no array. Ours is shuffled already.
        warnings.filterwarnings("ignore", "`shuffle=True` was passed, but will be ignored", UserWarning)
        batches = make_iterator()
        example = next(batches)
        if _reads_once(self.data):
            # It cannot start again: the example is the first batch, and everyone goes on from there.
            batches = itertools.chain([example], batches)
            return with_single_columns(dataset_from_generator(lambda: batches, example), example)
        return with_single_columns(dataset_from_generator(make_iterator, example), example)

    def _endless(self, random=True, *, start=None):
        """Yield batch after batch, pass after pass; without `start` also note where each pass begins."""
        number, skip = self._start if start is None else start
        fed, pass_starts = 0, [(0, number, skip)]
        if start is None:
            self._pass_starts = pass_starts
        while True:
            order = self._generator(number) if random else False
            for batch, is_end in mark_last(itertools.islice(self.__iter__(order), skip, None)):
                fed += 1
                if is_end:
                    pass_starts.append((fed, number + 1, 0))
                yield batch
            if not fed:
                raise ValueError("data must give at least one batch; got none. Is it empty, or used up?")
            if pass_starts[-1][1] == number:
                return  # an iterator that can be read only once; Keras says that the input ran out of data
            number, skip = number + 1, 0

    def get_state(self, batches):
        """Return where the newest `forfit` stands after `batches` batches, for `set_state`."""
        fed, number, skip = next(start for start in reversed(self._pass_starts) if start[0] <= batches)
        return {"seed": self.seed, "pass": number, "batch": skip + batches - fed}

    def set_state(self, state):
        """Let the next `forfit` start where `get_state` was; `fit` must not have begun."""
        self.seed = state["seed"]
        self._start = (state["pass"], state["batch"])


def _size(data):
    try:
        return len(data)
    except TypeError:  # no length at all, or none for now, as a text file without an index
        return None


def _reads_once(data):
    return hasattr(data, "__iter__") and iter(data) is iter(data)
