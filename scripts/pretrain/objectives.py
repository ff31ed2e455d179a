"""What is learned: records -> batches for masked words, sentence order, next tokens, and UniLM's targets.

A batch is (inputs, targets, weights). All arrays have one shape per (rows, length), so that a compiled step is compiled
once. Every random choice comes from the generator given, which a resumed run replays.
"""

import numpy as np
from records import DOCUMENT, SENTENCE, WORD


class Objective:
    """Base: how long rows are, and which ids are what.

    Args:
        length: T, tokens per row, special ones included.
        tokenizer: gives the ids of [CLS], [SEP], [MASK] and of padding.
    Shapes:  (B rows, T tokens, P predictions per row)
    """

    application = None  # of `build_transformer_model`: which tokens may see which

    def __init__(self, length, tokenizer):
        self.length = length
        self.start, self.end = tokenizer._token_start_id, tokenizer._token_end_id
        self.mask, self.pad = tokenizer._token_mask_id, tokenizer._token_pad_id
        self.vocab_size = tokenizer._vocab_size
        tokens = tokenizer.ids_to_tokens(range(self.vocab_size))
        self.ordinary = np.array([i for i, token in enumerate(tokens) if not _is_special(token)], "int32")
        self.is_ordinary = np.isin(np.arange(self.vocab_size), self.ordinary)

    def rows(self, records):
        """[CLS] content [SEP] of each record: ids and marks, int32 [B, T]; marks of special tokens are 0."""
        ids = np.full((len(records), self.length), self.pad, "int32")
        marks = np.zeros_like(ids)
        for row, mark, (tokens, kinds) in zip(ids, marks, records, strict=True):
            n = len(tokens)
            row[0], row[1 : n + 1], row[n + 1], mark[1 : n + 1] = self.start, tokens, self.end, kinds
        return ids, marks

    def batch(self, records, rng):
        """(inputs, targets, weights), each a tuple of arrays."""
        raise NotImplementedError


def _is_special(token):
    return token.startswith("[") and token.endswith("]") and len(token) > 2


class MaskedWords(Objective):
    """RoBERTa's masked language model over whole words, masked anew in every pass.

    Words are drawn at random while they fit into rate * (tokens of the row); each of their tokens becomes [MASK] with
    probability 0.8, a random ordinary token with 0.1, and stays with 0.1.

    Args (further):
        rate: share of a row's tokens that are predicted, in (0, 1).
        single_tokens: share of the rows in which tokens are masked one by one (BERT), so that the model also sees words
            of which a part is hidden, in [0, 1].
        sentence_order: split rows of one document at a sentence, exchange the halves of every other one, and ask which
            (ALBERT's objective); the second half has segment 1.
    Batch: ([ids [B, T], segments [B, T], places [B, P]], [targets [B, P]], [weights [B, P]]); with sentence_order
        also targets [B] (0: in order, as in NSP) and weights [B] (0: the row has nothing to exchange).
    """

    application = "encoder"

    def __init__(self, length, tokenizer, *, rate=0.15, single_tokens=0.0, sentence_order=False):
        super().__init__(length, tokenizer)
        if not 0 < rate < 1:
            raise ValueError(f"rate must be between 0 and 1; got {rate}. 0.15 is BERT's.")
        if not 0 <= single_tokens <= 1:
            raise ValueError(f"single_tokens must be a share of the rows, from 0 to 1; got {single_tokens}.")
        self.rate, self.single_tokens, self.sentence_order = rate, single_tokens, sentence_order
        self.predictions = round(rate * length) + 1

    def batch(self, records, rng):
        orders = None
        if self.sentence_order:
            records, splits, orders = self._exchanged(records, rng)
        ids, marks = self.rows(records)
        segments = np.zeros_like(ids)
        if self.sentence_order:
            segments = self._with_split(ids, marks, splits)
        chosen = self.choose(ids, marks, rng)
        places, weights = _places(chosen, self.predictions)
        targets = np.take_along_axis(ids, places, axis=1)
        inputs = (self.corrupted(ids, chosen, rng), segments, places)
        if orders is None:
            return inputs, (targets,), (weights,)
        return inputs, (targets, orders), (weights, (splits > 0).astype("float32"))

    def choose(self, ids, marks, rng):
        """Which tokens are predicted, bool [B, T]: words in random order while they fit into the row's share."""
        ordinary = self.is_ordinary[ids] & (np.cumsum(marks > 0, axis=1) > 0)
        # Words are numbered within their row; what is not ordinary gets a key behind all of them.
        starts = (marks >= WORD) | ~ordinary
        if self.single_tokens:
            starts |= rng.random((len(ids), 1)) < self.single_tokens
        words = np.cumsum(starts, axis=1)
        keys = np.take_along_axis(rng.random((len(ids), self.length + 2)), words, axis=1)
        order = np.argsort(np.where(ordinary, keys, 2.0), axis=1, kind="stable")
        ordered = np.take_along_axis(words, order, axis=1)
        ends = np.concatenate([ordered[:, 1:] != ordered[:, :-1], np.ones((len(ids), 1), bool)], axis=1)
        place = np.where(ends, np.arange(self.length), self.length)
        last = np.minimum.accumulate(place[:, ::-1], axis=1)[:, ::-1]  # of the word that a token is in
        count = ordinary.sum(axis=1, keepdims=True)
        budget = np.clip(np.ceil(self.rate * count + rng.random(count.shape) - 0.5), 1, self.predictions)
        chosen = np.zeros_like(ordinary)
        np.put_along_axis(chosen, order, last < np.minimum(budget, count), axis=1)
        return chosen

    def corrupted(self, ids, chosen, rng):
        """The ids with 80 % of the chosen ones masked, 10 % replaced, 10 % as they are."""
        draw = rng.random(ids.shape)
        random_ids = self.ordinary[rng.integers(len(self.ordinary), size=ids.shape)]
        corrupted = np.where(draw < 0.8, self.mask, np.where(draw < 0.9, random_ids, ids))
        return np.where(chosen, corrupted, ids).astype("int32")

    def _exchanged(self, records, rng):
        """(records, half of them with exchanged halves; where the second half starts, 0: no split; 1 if exchanged)."""
        draws = rng.random((len(records), 2))
        result, splits = list(records), np.zeros(len(records), "int64")
        exchanged = (draws[:, 0] < 0.5).astype("int32")
        for i, record in enumerate(records):
            candidates = np.flatnonzero(record[1] == SENTENCE)
            candidates = candidates[candidates > 0]
            if not len(candidates) or np.any(record[1, 1:] == DOCUMENT):
                exchanged[i] = 0
                continue
            split = candidates[int(draws[i, 1] * len(candidates))]
            if exchanged[i]:
                result[i] = np.concatenate([record[:, split:], record[:, :split]], axis=1)
                split = record.shape[1] - split
            splits[i] = split
        return result, splits, exchanged

    def _with_split(self, ids, marks, splits):
        """Insert [SEP] before token `split` of each row's content, in place; returns the segments."""
        segments = np.zeros_like(ids)
        for i in np.flatnonzero(splits):
            at, n = splits[i] + 1, int((ids[i] != self.pad).sum())
            for array, value in ((ids, self.end), (marks, 0)):
                array[i, at + 1 : n + 1] = array[i, at:n].copy()
                array[i, at] = value
            segments[i, at + 1 : n + 1] = 1
        return segments


def _places(chosen, count):
    """Indices of the chosen tokens of each row, int32 [B, P] filled up with 0, and their weights, 1 or 0."""
    order = np.argsort(~chosen, axis=1, kind="stable")[:, :count]
    weights = np.take_along_axis(chosen, order, axis=1)
    return np.where(weights, order, 0).astype("int32"), weights.astype("float32")


class NextToken(Objective):
    """GPT: each token from those before it.

    Batch: ([ids [B, T], segments [B, T]], [the following ids [B, T]], [1 where one follows, [B, T]]).
    """

    application = "lm"

    def batch(self, records, rng):
        ids, _ = self.rows(records)
        return self._shifted(ids, np.zeros_like(ids), ids != self.pad)

    def _shifted(self, ids, segments, predicted):
        targets, weights = np.full_like(ids, self.pad), np.zeros(ids.shape, "float32")
        targets[:, :-1] = ids[:, 1:]
        weights[:, :-1] = predicted[:, 1:]
        return (ids, segments), (targets,), (weights,)


class SourceToTarget(NextToken):
    """UniLM: a random part of a row is a source seen both ways, what follows its [SEP] a target seen causally.

    Some rows are sources as a whole (segment 0, seen both ways) and have masked words in place of a target.

    Args (further):
        rate: share of the tokens that are masked in those rows.
        bidirectional: share of those rows, in [0, 1].
    """

    application = "unilm"

    def __init__(self, length, tokenizer, *, rate=0.15, bidirectional=0.5):
        super().__init__(length, tokenizer)
        self.masked, self.bidirectional = MaskedWords(length, tokenizer, rate=rate), bidirectional

    def batch(self, records, rng):
        draws = rng.random((len(records), 2))
        both_ways = draws[:, :1] < self.bidirectional
        causal = self._divided(records, draws[:, 1])
        ids, marks = self.rows(records)
        chosen = self.masked.choose(ids, marks, rng)
        masked = (self.masked.corrupted(ids, chosen, rng), np.zeros_like(ids)), (ids,), (chosen.astype("float32"),)
        return tuple(
            tuple(np.where(both_ways, a, b) for a, b in zip(*pair, strict=True))
            for pair in zip(masked, causal, strict=True)
        )

    def _divided(self, records, draws):
        rows, splits = [], []
        for record, draw in zip(records, draws, strict=True):
            split = 1 + int(draw * max(record.shape[1] - 1, 1))  # inside the content, never in the padding
            separator = np.array([[self.end], [0]], "int32")
            rows.append(np.concatenate([record[:, :split], separator, record[:, split:]], axis=1))
            splits.append(split + 2)  # behind [CLS], the source and [SEP]
        ids, _ = self.rows(rows)
        segments = ((np.arange(self.length) >= np.array(splits)[:, None]) & (ids != self.pad)).astype("int32")
        return self._shifted(ids, segments, segments == 1)
