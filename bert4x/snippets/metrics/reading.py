"""Scores of reading comprehension: DuReader-robust, CMRC2018 and SogouQA."""

import re
import string
import unicodedata

from bert4x.snippets.files import strQ2B
from bert4x.snippets.metrics.counts import overlap
from bert4x.snippets.search import longest_common_substring

# The organisers' lists also hold a two-character ellipsis, which equals no single character: ellipses stay.
_DUREADER_REMOVED = str.maketrans("", "", ":_`，。：？！()“”；’《》·、,「」（）－～『』|")
_CMRC_MARKS = "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』"
_CMRC_REMOVED = str.maketrans("", "", _CMRC_MARKS)
_IDEOGRAPH = "\u4e00-\u9fa5"
_DUREADER_UNIT = re.compile(f"[{_IDEOGRAPH}=]|[^{_IDEOGRAPH}=]+")
# Latin runs approximate the English word tokenizer of the official script.
_CMRC_UNIT = re.compile(f"[{_IDEOGRAPH}]|[A-Za-z0-9]+|[^\\sA-Za-z0-9]")


def dureader_score(gold, predicted):
    """Return {"f1", "em"} in percent over all questions, as DuReader-robust's scorer (without rounding).

    F1 is built on the longest run of units that two answers share; both take the best of the gold answers.

    Args:
        gold: dict from question id to a list of answers.
        predicted: dict from question id to an answer; a missing one counts as wrong.
    """
    return _averaged(gold, predicted, dureader_f1, dureader_em)


def dureader_f1(answers, prediction):
    """Return F1 in [0, 1]: longest run L, P = L / |prediction|, R = L / |answer|, without punctuation."""
    return _best_run_f1(answers, prediction, _dureader_units)


def dureader_em(answers, prediction):
    """Return 1.0 if the prediction without punctuation, in lower case, equals an answer, else 0.0."""
    return float(any(_dureader_plain(answer) == _dureader_plain(prediction) for answer in answers))


def _dureader_plain(text):
    return text.lower().translate(_DUREADER_REMOVED)


def _dureader_units(text):
    """Return ideographs one by one and every other run of characters as one unit."""
    return _DUREADER_UNIT.findall(_dureader_plain(text))


def cmrc_score(gold, predicted):
    """Return {"f1", "em", "average"} in percent over all questions, as CMRC2018's scorer.

    Args:
        gold: dict from question id to a list of answers.
        predicted: dict from question id to an answer; a missing one counts as wrong.
    """
    result = _averaged(gold, predicted, cmrc_f1, cmrc_em)
    return {**result, "average": (result["f1"] + result["em"]) / 2}


def cmrc_f1(answers, prediction):
    """Return F1 in [0, 1] over ideographs and words, on their longest common run as in DuReader-robust."""
    return _best_run_f1(answers, prediction, _cmrc_units)


def cmrc_em(answers, prediction):
    """Return 1.0 if the prediction without punctuation, in lower case, equals an answer, else 0.0."""
    return float(any(_cmrc_plain(answer) == _cmrc_plain(prediction) for answer in answers))


def _cmrc_plain(text):
    return text.lower().strip().translate(_CMRC_REMOVED)


def _cmrc_units(text):
    return [unit for unit in _CMRC_UNIT.findall(text.lower().strip()) if unit not in _CMRC_MARKS]


def _best_run_f1(answers, prediction, units):
    """Return the best F1 over the answers."""
    return max(_run_f1(units(answer), units(prediction)) for answer in answers)


def _run_f1(answer, prediction):
    length = longest_common_substring(answer, prediction)[0]
    return 2 * length / (len(answer) + len(prediction)) if length else 0.0


def _averaged(gold, predicted, f1, em):
    if not gold:
        raise ValueError("gold must hold at least one question; got none.")
    scores = [
        (f1(answers, predicted[key]), em(answers, predicted[key])) if key in predicted else (0.0, 0.0)
        for key, answers in gold.items()
    ]
    return {
        "f1": 100 * sum(score[0] for score in scores) / len(scores),
        "em": 100 * sum(score[1] for score in scores) / len(scores),
    }


def sogou_score(gold, predicted):
    """Return {"accuracy", "f1", "final"} in [0, 1] over all questions, as in the SogouQA competition.

    Args:
        gold: dict from question id to a list of answers: the main answer, then its other forms.
        predicted: dict from question id to an answer; a missing one counts as empty.
    """
    if not gold:
        raise ValueError("gold must hold at least one question; got none.")
    pairs = [(answers, predicted.get(key, "")) for key, answers in gold.items()]
    accuracy = sum(sogou_accuracy(*pair) for pair in pairs) / len(pairs)
    f1 = sum(sogou_f1(*pair) for pair in pairs) / len(pairs)
    return {"accuracy": accuracy, "f1": f1, "final": (accuracy + f1) / 2}


def sogou_accuracy(answers, prediction):
    """Return 1.0 if the normalised prediction is an answer, or has the parts of the main answer, else 0.0.

    Parts are what stands between punctuation marks; their order does not matter.
    """
    plain = _sogou_plain(prediction)
    if not plain:
        return 0.0
    if plain in answers or plain in map(_sogou_plain, answers):
        return 1.0
    return float(_sogou_parts(prediction) == _sogou_parts(answers[0]))


def sogou_f1(answers, prediction):
    """Return the best F1 in [0, 1] over the answers, of the multisets of characters of normalised texts."""
    plain = _sogou_plain(prediction)
    best = 0.0
    for answer in map(_sogou_plain, answers):
        best = max(best, 2 * overlap(answer, plain) / max(len(answer) + len(plain), 1))
    return best


def _sogou_spaced(text):
    """Return half-width lower case with blanks for punctuation marks."""
    text = strQ2B(text).lower()
    return "".join(" " if _is_mark(character) else character for character in text)


def _is_mark(character):
    # Unicode's and ASCII's punctuation, in place of the list of 130 marks that the organiser shipped.
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def _sogou_plain(text):
    return "".join(_sogou_spaced(text).split())


def _sogou_parts(text):
    return set(_sogou_spaced(text).split())
