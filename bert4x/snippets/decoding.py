"""Generating a sequence token by token: `AutoRegressiveDecoder`, with beam search and sampling."""

import functools
from numbers import Integral

import numpy as np

from bert4x.snippets.last_token import LastToken, as_numpy
from bert4x.snippets.padding import to_array

_TINY = 1e-12  # added to probabilities before their logarithm is taken
_FORBIDDEN = "At least one token must be allowed; in step {} (from 0) all are forbidden. See allowed and banned_ids."


class AutoRegressiveDecoder:
    """Beam search and random sampling over any model that predicts the next token of a sequence.

    A subclass defines `predict`, decorated by `wraps`; it gets the rows that are being extended and says what may
    follow each:

        class Writer(AutoRegressiveDecoder):
            @AutoRegressiveDecoder.wraps(default_rtype="probas")
            def predict(self, inputs, output_ids, states):
                token_ids = np.concatenate([inputs[0], output_ids], axis=1)
                return self.last_token(model).predict(token_ids)

        Writer(start_id=None, end_id=2, maxlen=32).beam_search([token_ids], topk=4)

    The whole sequence goes through the model for every token, which is simple, and slow for long ones. Two changes make
    the subclass above fast, where `model` is one of build_transformer_model with application lm or unilm, or a T5:
    default_rtype="logits", and `cached_step` in place of `last_token`. (`Generator` writes whole batches, faster yet.)

    Args:
        start_id: token that every output starts with; None for none.
        end_id: token that ends an output; None (or -1, as old scripts say) for none.
        maxlen: most tokens generated, the end token counted, the start token not.
        minlen: fewest tokens generated, counted likewise: before that the end token cannot end an output.
        banned_ids: tokens never generated, such as those of [PAD], [UNK] and [CLS].
    """

    def __init__(self, start_id, end_id, maxlen, minlen=1, *, banned_ids=()):
        _check_integers(maxlen=maxlen, minlen=minlen)
        if maxlen < 0 or minlen > max(maxlen, 1):
            raise ValueError(f"maxlen must be at least 0 and minlen at most maxlen; got {maxlen} and {minlen}.")
        end_id = -1 if end_id is None else end_id
        self.start_id, self.end_id, self.maxlen, self.minlen = start_id, end_id, maxlen, minlen
        self.banned_ids = [int(i) for i in banned_ids]
        if min(self.banned_ids, default=0) < 0:
            raise ValueError(f"banned_ids must be token ids of at least 0; got {min(self.banned_ids)}.")
        self.first_output_ids = np.array([[] if start_id is None else [start_id]], dtype="int32")
        self._last_tokens = {}

    @staticmethod
    def wraps(default_rtype="probas", use_states=False):
        """Decorator of `predict`: adds the arguments `temperature` and `rtype`.

        Args:
            default_rtype: what the method returns: "probas" (probabilities) or "logits".
            use_states: the method returns (prediction, states) rather than a prediction.
        Returns: a decorator. The decorated method is called as
            predict(inputs, output_ids, states, temperature=1, rtype=default_rtype) and returns (p, states), p being
            float64 [rows, V]: probabilities for rtype "probas", their logarithms for "logits".
        """
        _check_rtype(default_rtype)

        def decorate(predict):
            @functools.wraps(predict)
            def wrapped(self, inputs, output_ids, states=None, temperature=1, rtype=default_rtype):
                _check_rtype(rtype)
                result = predict(self, inputs, output_ids, states)
                prediction, states = result if use_states else (result, None)
                return _scaled(as_numpy(prediction), default_rtype, temperature, rtype), states

            return wrapped

        return decorate

    def predict(self, inputs, output_ids, states=None, temperature=1, rtype="probas"):
        """What may come next, for each row; a subclass defines it and decorates it by `wraps`.

        Args:
            inputs: the inputs of the search as a list of arrays [rows, ...].
            output_ids: int32 [rows, t], what was generated so far.
            states: what the previous call returned; arrays in it are [rows, ...] and go with their rows.
        """
        raise NotImplementedError(f"{type(self).__name__} must define predict(self, inputs, output_ids, states).")

    def last_token(self, model):
        """An object whose `predict(inputs)` gives what `model` says at the last token: [rows, V] for [rows, T, V]."""
        if id(model) not in self._last_tokens:
            self._last_tokens[id(model)] = LastToken(model)
        return self._last_tokens[id(model)]

    def cached_step(self, model):
        """As `last_token`, but by one step over a cache, and always logits. See `CachedStep`."""
        if ("step", id(model)) not in self._last_tokens:
            from bert4x.snippets.cached_step import CachedStep  # needs Keras

            self._last_tokens["step", id(model)] = CachedStep(model)
        return self._last_tokens["step", id(model)]

    def beam_search(self, inputs, topk, states=None, temperature=1, min_ends=1, *, length_penalty=0.0, allowed=None,
                    legacy=False):
        """The most probable output that a beam search finds.

        score = sum of log p(token) / length ** length_penalty. In each step all extensions of the running outputs are
        ranked together (equal ones: lower id first) and `topk` of them kept. Those that end leave for a pool, and the
        search stops when no running output can beat the best of the pool.

        Args:
            inputs: list of the inputs of one sample, without batch axis.
            topk: size of the beam; 1 is greedy search.
            states: initial states for `predict`.
            temperature: divides the logits.
            min_ends: how many end tokens end an output.
            length_penalty: 0 for none; with 1 the mean log-probability of a token decides.
            allowed: function (output ids of one row) -> ids that may follow, None for all.
            legacy: discard an output that ends without being the best, and make the beam smaller, as bert4keras did.
        Returns: int32 array of token ids, the start token and the end tokens included.
        """
        _check_positive(topk=topk, min_ends=min_ends)
        beam, scores = _Rows(inputs, self.first_output_ids, states), np.zeros(1)
        best = -np.inf, None
        longest = max(self.maxlen, 1) ** length_penalty
        for step in range(self.maxlen):
            logs = self._step(beam, step, temperature, "logits", min_ends, allowed)
            rows, tokens, scores = _best(scores[:, None] + logs, topk)
            if not len(rows):
                break  # nothing is allowed any more
            beam.extend(rows, tokens)
            ended = self._count_ends(beam.output_ids) >= min_ends
            if legacy and ended[0]:
                return beam.output_ids[0]
            if legacy:
                topk -= ended.sum()
            elif ended.any():
                rank = scores[ended][0] / (step + 1) ** length_penalty
                best = max(best, (rank, beam.output_ids[ended][0]), key=_first)
            beam.take(~ended)
            scores = scores[~ended]
            # Scores only fall, and dividing them by the greatest length shows how good they may yet become.
            if not len(scores) or best[0] >= scores[0] / longest:
                break
        if len(scores):
            best = max(best, (scores[0] / longest, beam.output_ids[0]), key=_first)
        if best[1] is None:
            raise ValueError(_FORBIDDEN.format(step))
        return best[1]

    def random_sample(self, inputs, n, topk=None, topp=None, states=None, temperature=1, min_ends=1, *, allowed=None,
                      seed=None):
        """`n` outputs drawn at random, each token by its probability.

        Order: what is allowed, then temperature, then topk, then topp, then the draw.

        Args:
            inputs: list of the inputs of one sample, without batch axis.
            n: number of outputs.
            topk: draw among the `topk` most probable tokens only (equal ones: lower id first); None for all.
            topp: draw among the fewest tokens only that together have at least this probability; None for all.
            states, temperature, min_ends, allowed: as in `beam_search`.
            seed: of this call; None draws from NumPy's global generator, which `set_seed` seeds.
        Returns: list of `n` int32 arrays of token ids, the start token and the end tokens included.
        """
        _check_positive(n=n, min_ends=min_ends, topk=1 if topk is None else topk)
        if topp is not None and not 0 < topp <= 1:
            raise ValueError(f"topp must be in (0, 1]; got {topp}.")
        draw = np.random if seed is None else np.random.default_rng(seed)
        beam, samples = _Rows(inputs, self.first_output_ids, states), np.arange(n)
        results = [self.first_output_ids[0]] * n
        for step in range(self.maxlen):
            probabilities = self._step(beam, step, temperature, "probas", min_ends, allowed)
            if not probabilities.any(axis=1).all():
                raise ValueError(_FORBIDDEN.format(step))
            order, kept = _filtered(probabilities, topk, topp)
            # All samples share the first distribution.
            rows = np.arange(len(samples)) if step else np.zeros(n, dtype=int)
            beam.extend(rows, _drawn(order[rows], kept[rows], draw.random(len(rows))))
            for sample, ids in zip(samples, beam.output_ids, strict=True):
                results[sample] = ids
            running = self._count_ends(beam.output_ids) < min_ends
            beam.take(running)
            samples = samples[running]
            if not len(samples):
                break
        return results

    def _step(self, beam, step, temperature, rtype, min_ends, allowed):
        """Probabilities [rows, V] or their logarithms, those of forbidden tokens 0 or -inf."""
        if temperature <= 0:
            raise ValueError(f"temperature must be positive; got {temperature}. For greedy search use topk=1.")
        p, beam.states = self.predict(beam.inputs, beam.output_ids, beam.states, temperature, rtype)
        if np.isnan(p).any():
            raise ValueError(f"Predictions must be numbers; in step {step} (from 0) some are NaN. Check the model.")
        never = 0.0 if rtype == "probas" else -np.inf
        p = np.array(p, dtype="float64")
        largest = max(self.end_id, *self.banned_ids, -1)
        if largest >= p.shape[1]:
            raise ValueError(f"end_id and banned_ids must be below {p.shape[1]}, what predict returns; got {largest}.")
        p[:, self.banned_ids] = never
        if step + 1 < self.minlen and self.end_id >= 0:
            p[self._count_ends(beam.output_ids) >= min_ends - 1, self.end_id] = never
        for row, ids in zip(p, beam.output_ids, strict=True):
            choice = None if allowed is None else allowed(ids)
            if choice is not None:
                forbidden = np.ones(len(row), dtype=bool)
                forbidden[list(choice)] = False
                row[forbidden] = never
        return p

    def _count_ends(self, output_ids):
        """End tokens among what was generated, for each row; the start token does not count."""
        return (output_ids[:, self.first_output_ids.shape[1] :] == self.end_id).sum(axis=1)


class _Rows:
    """The rows of a search: what they have generated, and the inputs and states that go with them."""

    def __init__(self, inputs, output_ids, states):
        self.inputs = [to_array([x]) for x in inputs]
        self.output_ids, self.states = output_ids, states

    def take(self, rows):
        """Keeps the rows of an index or mask, in its order and as often as it names them."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        if np.array_equal(rows, np.arange(len(self.output_ids))):
            return
        self.states = _taken(self.states, rows, len(self.output_ids))
        self.inputs = [x[rows] for x in self.inputs]
        self.output_ids = self.output_ids[rows]

    def extend(self, rows, tokens):
        """Row i becomes the old row rows[i] with tokens[i] behind it."""
        self.take(rows)
        self.output_ids = np.concatenate([self.output_ids, tokens[:, None].astype("int32")], axis=1)


def _taken(states, rows, count):
    if isinstance(states, dict):
        return {key: _taken(value, rows, count) for key, value in states.items()}
    if isinstance(states, (list, tuple)):
        return type(states)([_taken(value, rows, count) for value in states])
    if not getattr(states, "ndim", 0):
        return states  # a number, a string: the same for all rows
    if states.shape[0] != count:
        raise ValueError(f"Arrays in states must be [rows, ...]; got {tuple(states.shape)} for {count} rows.")
    if isinstance(states, np.ndarray):
        return states[rows]
    from bert4x.backend import ops  # a tensor; NumPy alone serves everything else

    return ops.take(states, rows, axis=0)


def _scaled(prediction, given, temperature, wanted):
    """Probabilities or logits `given`, float [rows, V], as what is `wanted`, after division of the logits by T."""
    if prediction.ndim != 2:
        raise ValueError(f"predict must return [rows, V]; got shape {prediction.shape}. See last_token.")
    p = prediction.astype("float64")
    if given == "probas" and temperature == 1:
        return p if wanted == "probas" else np.log(p + _TINY)
    with np.errstate(divide="ignore"):
        logits = (p if given == "logits" else np.log(p)) / temperature
    logits = logits - logits.max(axis=1, keepdims=True)
    total = np.exp(logits).sum(axis=1, keepdims=True)
    if wanted == "probas":
        return np.exp(logits) / total
    return logits - np.log(total) if given == "logits" else np.log(np.exp(logits) / total + _TINY)


def _best(scores, count):
    """Rows, tokens and scores of the `count` best that are allowed; of equals the lower token, then row, is first."""
    flat = scores.T.ravel()
    threshold = np.partition(flat, -count)[-count] if count < flat.size else -np.inf
    places = np.flatnonzero((flat >= threshold) & (flat > -np.inf))
    places = places[np.argsort(-flat[places], kind="stable")][:count]
    tokens, rows = np.divmod(places, len(scores))
    return rows, tokens, flat[places]


def _filtered(probabilities, topk, topp):
    """Tokens in descending order [rows, V], and their probabilities, those to leave out being 0."""
    order = np.argsort(-probabilities, axis=1, kind="stable")
    p = np.take_along_axis(probabilities, order, axis=1)
    if topk is not None:
        p[:, topk:] = 0
    p /= p.sum(axis=1, keepdims=True)
    if topp is not None:
        # The token that crosses topp stays. The slack is for the rounding of sums.
        p[np.cumsum(p, axis=1) - p > max(topp - 1e-7, 0)] = 0
    return order, p


def _drawn(order, p, numbers):
    """One token of each row, by a number in [0, 1)."""
    sums = np.cumsum(p, axis=1)
    places = (sums <= numbers[:, None] * sums[:, -1:]).sum(axis=1)
    places = np.minimum(places, (p > 0).sum(axis=1) - 1)  # the product may be rounded up to the sum
    return order[np.arange(len(order)), places]


def _first(pair):
    return pair[0]


def _check_rtype(rtype):
    if rtype not in ("probas", "logits"):
        raise ValueError(f"rtype must be 'probas' or 'logits'; got {rtype!r}.")


def _check_integers(**numbers):
    for name, number in numbers.items():
        if not isinstance(number, Integral):
            raise TypeError(f"{name} must be an integer; got {number!r}.")


def _check_positive(**numbers):
    _check_integers(**numbers)
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1; got {number}.")
