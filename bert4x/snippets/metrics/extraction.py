"""Scores of information extraction: triples (DuIE) and event arguments (DuEE)."""

from bert4x.snippets.metrics.counts import overlap, score


def triple_score(gold, predicted, aliases=None):
    """Return precision, recall and F1 of triples as DuIE 2.0's scorer counts them (without rounding).

    Slots are compared in lower case and without one pair of 《》 around them. A prediction is right if some
    gold triple has its predicate, its subject or an alias of it, and the same slots of the object with equal
    or alias values. Duplicates count once. A text without a prediction counts as an empty one; predictions
    for texts that are not in gold are ignored. With string objects and no aliases this is SKE2019's set
    intersection.

    Args:
        gold, predicted: dict from text to triples (subject, predicate, object); the object is a str or a dict
            from slot name to str.
        aliases: dict from a name to its other names, or None.
    """
    aliases = {_plain(name): {_plain(other) for other in others} for name, others in (aliases or {}).items()}
    correct = correct_gold = predictions = total = 0
    for text, triples in gold.items():
        expected = _distinct(triples, aliases)
        given = _distinct(predicted.get(text, ()), aliases)
        predictions += len(given)
        total += len(expected)
        correct += sum(any(_same(triple, other, aliases) for other in expected) for triple in given)
        correct_gold += sum(any(_same(triple, other, aliases) for other in given) for triple in expected)
    return score(correct, predictions, total, correct_gold)


def _plain(name):
    name = name.lower()
    return name[1:-1] if len(name) > 1 and name.startswith("《") and name.endswith("》") else name


def _distinct(triples, aliases):
    """Return normalised triples without those that equal an earlier one."""
    distinct = []
    for subject, predicate, slots in triples:
        slots = slots if isinstance(slots, dict) else {"@value": slots}
        triple = (_plain(subject), predicate, {slot: _plain(value) for slot, value in slots.items()})
        if not any(_same(triple, other, aliases) for other in distinct):
            distinct.append(triple)
    return distinct


def _same(first, second, aliases):
    """Tell whether two normalised triples are equal up to aliases."""
    return (
        first[1] == second[1]
        and _is_alias(first[0], second[0], aliases)
        and first[2].keys() == second[2].keys()
        and all(_is_alias(value, second[2][slot], aliases) for slot, value in first[2].items())
    )


def _is_alias(first, second, aliases):
    return first == second or first in aliases.get(second, ()) or second in aliases.get(first, ())


def argument_score(gold, predicted):
    """Return precision, recall and F1 of event arguments as in DuEE 1.0.

    A pair of arguments with the same event type and role scores the F1 of their characters, 2 c / (|p| +
    |g|), c the size of the multiset intersection in lower case; other pairs score 0. Within a text each
    argument is used once, best pairs first. P = sum of scores / predictions, R = sum of scores / gold
    arguments.

    Args:
        gold, predicted: for each text the arguments (event type, role, argument); in gold the last may be a
            list of equally good forms.
    """
    total_score = predictions = total = 0
    for expected, given in zip(gold, predicted, strict=True):
        expected, given = list(expected), list(given)
        predictions += len(given)
        total += len(expected)
        total_score += _assigned(expected, given)
    return score(total_score, predictions, total)


def _assigned(expected, given):
    """Return the sum of scores when each gold argument and each prediction is used once, best pairs first."""
    pairs = [
        (argument_similarity(argument[2], other[2]), i, j)
        for i, argument in enumerate(expected) for j, other in enumerate(given) if argument[:2] == other[:2]
    ]
    used_gold, used_given, result = set(), set(), 0.0
    for value, i, j in sorted(pairs, key=lambda pair: (-pair[0], pair[1:])):
        if i not in used_gold and j not in used_given:
            used_gold.add(i)
            used_given.add(j)
            result += value
    return result


def argument_similarity(gold, predicted):
    """Return the F1 of the characters of two arguments in lower case; the best of several gold forms."""
    forms = [gold] if isinstance(gold, str) else gold
    predicted = predicted.lower()
    return max(
        2 * overlap(form.lower(), predicted) / (len(form) + len(predicted)) if form or predicted else 0.0
        for form in forms
    )
