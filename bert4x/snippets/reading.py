"""Extractive reading: characters with the vectors of their words, answers by vote over passages."""

import collections

import numpy as np

from bert4x.snippets.padding import sequence_padding


def character_ids(texts, min_count=16):
    """Ids of the characters that occur at least `min_count` times, the most frequent first: from 2, as 0 is padding
    and 1 an unknown character."""
    counts = collections.Counter(character for text in texts for character in text)
    kept = sorted((c for c, count in counts.items() if count >= min_count), key=lambda c: (-counts[c], c))
    return {character: i for i, character in enumerate(kept, 2)}


class CharacterWords:
    """Segmented texts as arrays for `bert4x.layers.CharacterWordEmbedding`.

    Each character gets its id and the vector of the word that it is part of: 1 for an unknown character, zeros for an
    unknown word.

    Args:
        characters: dict from character to id, see `character_ids`.
        vectors: dict from word to its vector; all of one length W.
    Raises: ValueError if there is no vector.
    """

    def __init__(self, characters, vectors):
        if not vectors:
            raise ValueError("vectors must hold at least one word, whose length is that of unknown words; got none.")
        self.characters, self.vectors = characters, vectors
        self.unknown = np.zeros(len(next(iter(vectors.values()))), "float32")

    def encode(self, words):
        """The words of one text -> ids [T], vectors [T, W], for its T characters."""
        ids = [self.characters.get(character, 1) for word in words for character in word]
        rows = [self.vectors.get(word, self.unknown) for word in words for _ in word]
        return np.array(ids, "int32"), np.array(rows, "float32").reshape(len(ids), len(self.unknown))

    def encode_batch(self, texts, length=None):
        """The words of B texts -> ids int32 [B, T], vectors [B, T, W], padded (or cut) to `length`."""
        ids, vectors = zip(*(self.encode(words) for words in texts), strict=True)
        return sequence_padding(ids, length), sequence_padding(vectors, length)


def extract_answers(passages, starts, ends, *, max_length=12, threshold=0.1):
    """Score the answers that pieces of several passages give to one question.

    In a passage each piece p[i..j] with s_i and e_j above the threshold and at most `max_length` characters is a
    candidate; its score v is the largest s_i e_j over its occurrences. Over the passages that have it,
    score = sum v^2 / (1 + sum v), which favours agreement and high scores together.

    Args:
        passages: list of str.
        starts, ends: for each passage the probabilities that an answer starts or ends at each character; what is
            behind its last character is not looked at.
        max_length: longest answer, in characters.
        threshold: in [0, 1).
    Returns: dict from answer to score, the best first; empty if there is no candidate.
    Source: kexue.fm archives 5409.
    """
    votes = collections.defaultdict(list)
    for passage, start, end in zip(passages, starts, ends, strict=True):
        for answer, score in _pieces(passage, np.asarray(start), np.asarray(end), max_length, threshold).items():
            votes[answer].append(score)
    scores = {answer: sum(v * v for v in values) / (1 + sum(values)) for answer, values in votes.items()}
    return dict(sorted(scores.items(), key=lambda item: -item[1]))


def _pieces(passage, start, end, max_length, threshold):
    """The candidates of one passage with their best scores."""
    best = {}
    for i in np.flatnonzero(start[: len(passage)] > threshold):
        for j in i + np.flatnonzero(end[i : min(i + max_length, len(passage))] > threshold):
            answer = passage[i : j + 1]
            best[answer] = max(best.get(answer, 0.0), float(start[i]) * float(end[j]))
    return best
