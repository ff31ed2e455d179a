"""`CachedStep`: what a model says at the last token, by one step over a cache where the rows of the last call go on."""

import numpy as np

from bert4x.backend import keras, ops, runtime
from bert4x.snippets.inference import bucket, power_of_two
from bert4x.snippets.loops import empty_cache
from bert4x.snippets.requests import filled

_ROLES = {
    "Input-Token": "token",
    "Decoder-Input-Token": "token",
    "Input-Segment": "segment",
    "Input-Position": "position",
}
_SOURCES = ("Encoder-Input-Token", "Input-Context", "Input-Context-Mask")
_ROOM = 32  # slots for new tokens when a cache is made


class CachedStep:
    """Takes the place of `LastToken` for a model of build_transformer_model that generates.

    `predict` takes the whole sequences at each call, as the full model does. Rows that are those of the last call with
    one token more, in any order and number (a beam), cost one step of one token; all others a pass over the sequence.
    Only a token 0 that is written counts here, where a full model with mask_zero masks it as padding: the decoder's
    banned_ids=[0] forbids it.

    Raises: TypeError for a model that has no step graph, such as one with layers put on top.
    """

    def __init__(self, model):
        builder = getattr(model, "builder", None)
        if builder is None:
            raise TypeError("cached_step takes a model of build_transformer_model as it was built; else use last_token")
        self.builder, self.step = builder, builder.build_step(last_only=True)
        self._names = [x.name.removeprefix(builder.prefix) for x in builder.inputs]
        self._run = runtime.jit(self.step)  # many shapes: without XLA one graph serves all
        self._context_run = self._source = self._context = None
        self._rows, self._cache, self._start, self._padding = None, None, 0, 0

    def predict(self, inputs):
        """Logits after the last token.

        Args:
            inputs: what the model takes, as arrays in its order: one, or a list.
        Shapes:
            returns: float32 [rows, V], logits whatever the model's output activation.
        """
        arrays = [np.asarray(x) for x in (inputs if isinstance(inputs, (list, tuple)) else [inputs])]
        if len(arrays) != len(self._names):
            raise ValueError(f"The model takes the inputs {self._names}; got {len(arrays)} arrays")
        given = dict(zip(self._names, arrays, strict=True))
        sequences = {_ROLES[name]: x.astype("int32") for name, x in given.items() if name in _ROLES}
        self._check(sequences["token"])
        others = {name: x for name, x in given.items() if name not in _SOURCES and name not in _ROLES}
        same = {name: filled(x, power_of_two(len(x))) for name, x in others.items()}
        places = self._continued(sequences)
        same |= self._context_of(given, anew=places is None)
        logits = self._begin(sequences, same) if places is None else self._go_on(sequences, same, places)
        self._rows = sequences
        return logits[: len(sequences["token"])]

    def _check(self, tokens):
        limit, size = self.builder.position_limit, self.builder.vocab_size
        if not tokens.size:
            raise ValueError("The sequences must have at least one token; got none. Is the prompt empty?")
        if limit is not None and tokens.shape[1] > limit:
            raise ValueError(f"The model has a table of {limit} positions; got sequences of {tokens.shape[1]} tokens")
        if tokens.min() < 0 or tokens.max() >= size:
            raise ValueError(f"Token ids must be at least 0 and below {size}; got {tokens.min()} to {tokens.max()}")

    def _continued(self, sequences):
        """For each row the row of the last call that it goes on from; None if there is one without."""
        length = sequences["token"].shape[1]
        if self._rows is None or self._rows["token"].shape[1] != length - 1 or self._start >= self._slots:
            return None
        if self.builder.application == "unilm" and not sequences["segment"][:, -1].all():
            return None  # a token of the source, which all others see
        old = {key: i for i, key in enumerate(_keys(self._rows, length - 1))}
        places = [old.get(key) for key in _keys(sequences, length - 1)]
        return None if None in places else np.array(places, "int32")

    @property
    def _slots(self):
        return self._cache["key_0"].shape[1]

    def _begin(self, sequences, same):
        """A pass over the sequences, padded on the left, that fills a new cache."""
        count, length = sequences["token"].shape
        batch, size = power_of_two(count), bucket(length)
        fed = {role: filled(np.pad(x, ((0, 0), (size - length, 0))), batch) for role, x in sequences.items()}
        self._padding = size - length
        self._cache = empty_cache(self.step, batch, bucket(size + _ROOM))
        return self._called(fed, same, 0, size)

    def _go_on(self, sequences, same, places):
        """One step from the caches of the rows `places`."""
        batch = power_of_two(len(places))
        fed = {role: filled(x[:, -1:], batch) for role, x in sequences.items()}
        places = filled(places, batch)
        if not np.array_equal(places, np.arange(self._cache["key_0"].shape[0])):
            self._cache = {name: ops.take(x, places, axis=0) for name, x in self._cache.items()}
        return self._called(fed, same, self._start, 1)

    def _called(self, fed, same, start, count):
        batch = len(fed["token"])
        padding = np.full(batch, self._padding, "int32")
        fed = {role: x for role, x in fed.items() if role in self.step.input}
        made = self._run({**fed, **same, **self._cache, "start": np.int32(start), "padding": padding})
        logits = runtime.to_numpy(made.pop("logits"))[:, -1]
        self._cache, self._start = made, start + count
        return logits

    def _context_of(self, given, anew):
        """Keys, values and mask of the encoder's states, made once per search if all rows have the same source.

        anew: make them again, as a new search may follow a change of the weights.
        """
        sources = [given[name] for name in self._names if name in _SOURCES]
        if not sources:
            return {}
        count, key = len(sources[0]), tuple(x[:1].tobytes() for x in sources)
        shared = all((x == x[:1]).all() for x in sources)
        if anew or not shared or self._source != key:
            made = self._encode(given, 1 if shared else power_of_two(count))
            self._source, self._context = (key, made) if shared else (None, made)
        repeats = power_of_two(count) if shared else 1
        return keras.tree.map_structure(lambda x: ops.repeat(x, repeats, axis=0), self._context)

    def _encode(self, given, batch):
        if self._context_run is None:
            self._context_run = runtime.jit(self.builder.build_context())
        source = given.get("Encoder-Input-Token", given.get("Input-Context"))
        source = filled(source[:batch], batch)
        real = np.arange(source.shape[1]) == 0
        mask = np.ones(source.shape[:2], bool) if source.ndim == 3 else (source != 0) | real
        mask = filled(given["Input-Context-Mask"][:batch], batch) if "Input-Context-Mask" in given else mask
        return {**self._context_run(source), "context_mask": ops.convert_to_tensor(mask)}


def _keys(sequences, length):
    """One hashable key per row: the first `length` of all its ids."""
    joined = np.concatenate([x[:, :length] for x in sequences.values()], axis=1)
    return [row.tobytes() for row in joined]
