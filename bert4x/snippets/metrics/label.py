"""Scores of labels and spans: accuracy, entities, word segmentation."""

import collections

from bert4x.snippets.metrics.counts import score


def accuracy(gold, predicted):
    """Return the share of positions where two sequences of labels agree.

    Args:
        gold, predicted: labels, equally many, at least one.
    """
    gold, predicted = list(gold), list(predicted)
    if len(gold) != len(predicted) or not gold:
        raise ValueError(f"labels must be equally many, at least one; got {len(gold)} and {len(predicted)}.")
    return sum(a == b for a, b in zip(gold, predicted, strict=True)) / len(gold)


def majority_accuracy(labels):
    """Return the accuracy of always answering the most frequent label: the baseline of a classifier."""
    labels = list(labels)
    if not labels:
        raise ValueError("labels must hold at least one label; got none.")
    return max(collections.Counter(labels).values()) / len(labels)


def entity_score(gold, predicted):
    """Return precision, recall and F1 of entities, micro-averaged over all texts.

    An entity counts if start, end and type are right; a right span with a wrong type is one error on either
    side.

    Args:
        gold, predicted: for each text the entities, e.g. tuples (start, end, type); duplicates count once.
    """
    correct = predictions = total = 0
    for expected, given in zip(gold, predicted, strict=True):
        expected, given = set(expected), set(given)
        correct += len(expected & given)
        predictions += len(given)
        total += len(expected)
    return score(correct, predictions, total)


def segmentation_score(gold, predicted):
    """Return precision, recall and F1 of words, as in the SIGHAN 2005 bakeoff (without rounding).

    A word is right if the same characters are one word in the gold line.

    Args:
        gold, predicted: lines of words: str with (also full-width) blanks between them, or lists of words.
    Raises:
        ValueError if the lines differ in number or in their characters.
    """
    return entity_score(*_lines(gold, predicted))


def vocabulary_recalls(gold, predicted, vocabulary):
    """Return {"oov_rate", "oov_recall", "iv_recall"}: how known and unknown words fare.

    Args:
        gold, predicted: as for `segmentation_score`.
        vocabulary: the words of the training data.
    """
    vocabulary = set(vocabulary)
    found = {True: 0, False: 0}
    total = {True: 0, False: 0}
    for line, expected, given in zip(gold, *_lines(gold, predicted), strict=True):
        for word, span in zip(_words(line), sorted(expected), strict=True):
            known = word in vocabulary
            total[known] += 1
            found[known] += span in given
    return {
        "oov_rate": total[False] / max(sum(total.values()), 1),
        "oov_recall": found[False] / max(total[False], 1),
        "iv_recall": found[True] / max(total[True], 1),
    }


def _lines(gold, predicted):
    """Return the spans of all lines, after checking that the texts agree."""
    gold, predicted = [_words(line) for line in gold], [_words(line) for line in predicted]
    if len(gold) != len(predicted):
        raise ValueError(f"a prediction is needed for every line; got {len(predicted)} for {len(gold)}.")
    for number, (expected, given) in enumerate(zip(gold, predicted, strict=True)):
        if "".join(expected) != "".join(given):
            raise ValueError(f"line {number} must have the gold line's characters; got {''.join(given)!r}.")
    return [_spans(words) for words in gold], [_spans(words) for words in predicted]


def _words(line):
    return line.split() if isinstance(line, str) else [word for word in line if word]


def _spans(words):
    spans, start = set(), 0
    for word in words:
        spans.add((start, start + len(word)))
        start += len(word)
    return spans
