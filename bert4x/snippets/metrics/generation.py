"""Scores of generated Chinese text: ROUGE and BLEU over characters."""

import collections
import math

from bert4x.snippets.search import longest_common_subsequence


def generation_score(references, hypotheses, *, compatible=False):
    """Return {"rouge-1", "rouge-2", "rouge-l", "bleu"} in [0, 1], averaged over all texts.

    Args:
        references, hypotheses: lists of str or of token lists; one reference per hypothesis.
        compatible: compute ROUGE-L as the `rouge` package does; see `rouge_l`.
    """
    pairs = list(zip(references, hypotheses, strict=True))
    if not pairs:
        raise ValueError("there must be at least one text; got none.")
    metrics = {
        "rouge-1": lambda *pair: rouge_n(*pair, n=1),
        "rouge-2": lambda *pair: rouge_n(*pair, n=2),
        "rouge-l": lambda *pair: rouge_l(*pair, compatible=compatible),
        "bleu": bleu,
    }
    return {name: sum(metric(*pair) for pair in pairs) / len(pairs) for name, metric in metrics.items()}


def rouge_n(reference, hypothesis, *, n):
    """Return the F measure 2 P R / (P + R + 1e-8) of the sets of n-grams; each n-gram counts once.

    Args:
        reference, hypothesis: str (characters are the tokens, in lower case) or list of tokens.
        n: length of an n-gram, in tokens.
    """
    expected, given = set(_ngrams(_tokens(reference), n)), set(_ngrams(_tokens(hypothesis), n))
    common = len(expected & given)
    return _f_measure(common, len(given), len(expected))


def rouge_l(reference, hypothesis, *, compatible=False):
    """Return the F measure of the longest common subsequence: P = LCS / |hypothesis|, R = LCS / |reference|.

    Args:
        reference, hypothesis: str (characters are the tokens, in lower case) or list of tokens.
        compatible: like the `rouge` package, take the sizes of the *sets* of tokens. (That package also
            splits sentences at ".", which this does not.)
    """
    expected, given = _tokens(reference), _tokens(hypothesis)
    _, pairs = longest_common_subsequence(expected, given)
    if compatible:
        return _f_measure(len({expected[i] for i, _ in pairs}), len(set(given)), len(set(expected)))
    return _f_measure(len(pairs), len(given), len(expected))


def _f_measure(common, given, expected):
    if not common:
        return 0.0
    precision, recall = common / given, common / expected
    return 2 * precision * recall / (precision + recall + 1e-8)


def bleu(reference, hypothesis):
    """Return BLEU-4 of one text: exp(mean of ln p_n), n = 1 ... 4, times exp(1 - r / h) if h <= r.

    p_n counts n-grams up to their number in the reference; a numerator of 0 becomes 0.1 (0 for n = 1: the
    result is 0), denominators are at least 1.

    Args:
        reference, hypothesis: str (characters are the tokens, in lower case) or list of tokens.
    """
    expected, given = _tokens(reference), _tokens(hypothesis)
    logs = 0.0
    for n in range(1, 5):
        counts = collections.Counter(_ngrams(given, n))
        correct = sum((counts & collections.Counter(_ngrams(expected, n))).values())
        if n == 1 and not correct:
            return 0.0
        logs += math.log((correct or 0.1) / max(sum(counts.values()), 1)) / 4
    penalty = math.exp(1 - len(expected) / len(given)) if len(given) <= len(expected) else 1.0
    return penalty * math.exp(logs)


def _tokens(text):
    return list(text.lower()) if isinstance(text, str) else list(text)


def _ngrams(tokens, n):
    return zip(*(tokens[i:] for i in range(n)), strict=False)
