"""Entities and words of a text and what they are tagged with: column files, tags of tokens, longest matches."""

import collections

from bert4x.snippets.files import open


def read_entities(path):
    """Return [(text, [(start, end, type)])] of a file with one `character tag` per line, a blank line between texts.

    Args:
        path: file, which may be zipped. Tags are O, B-PER, I-PER ..., or BMES: B-PER, M-PER, E-PER, S-PER. A tag that
            continues nothing begins an entity.
    Returns: half-open ranges of characters.
    """
    with open(path) as file:
        blocks = [block.splitlines() for block in file.read().split("\n\n") if block.strip()]
    return [_record([line.rsplit(maxsplit=1) for line in block if line.strip()]) for block in blocks]


def _record(rows):
    entities = []
    for i, (_, tag) in enumerate(rows):
        prefix, _, kind = tag.partition("-")
        if prefix in ("I", "M", "E") and entities and entities[-1][1:] == [i, kind]:
            entities[-1][1] = i + 1
        elif prefix != "O":
            entities.append([i, i + 1, kind])
    return "".join(row[0] for row in rows), [tuple(entity) for entity in entities]


def entities_to_tags(entities, spans, types):
    """Return a tag per token: 0 outside, 2k + 1 begins and 2k + 2 continues an entity of type k.

    An entity is left out if its type is unknown, if it was cut off, or begins or ends inside of a token.

    Args:
        entities: (start, end, type), half-open ranges of characters that do not overlap.
        spans: the character range of each token, None for special ones, as `encode(..., offsets=True)` gives them.
        types: list of the types.
    """
    starts = {span[0]: i for i, span in enumerate(spans) if span}
    ends = {span[1]: i for i, span in enumerate(spans) if span}
    tags = [0] * len(spans)
    for start, end, kind in entities:
        if start in starts and end in ends and kind in types:
            first, last, number = starts[start], ends[end], types.index(kind)
            tags[first : last + 1] = [2 * number + 1] + [2 * number + 2] * (last - first)
    return tags


def tags_to_entities(tags, spans, types):
    """Return the entities (start, end, type) that tags mean, the inverse of `entities_to_tags`.

    A tag that continues nothing, or another type than that of the tag before, is no part of an entity. Special tokens
    have no tag.
    """
    entities, opened = [], 0
    for tag, span in zip(tags, spans, strict=True):
        tag = int(tag) if span else 0
        if tag % 2:
            entities.append([*span, types[tag // 2]])
            opened = tag + 1
        elif tag and tag == opened:
            entities[-1][1] = span[1]
        else:
            opened = 0
    return [tuple(entity) for entity in entities]


def longest_match(text, words, longest=None):
    """Return half-open ranges of the words found from left to right, the longest at each place, without overlap.

    Args:
        text: str.
        words: set or dict of str.
        longest: length of the longest word to look for, in characters; that of the longest word if None.
    """
    longest = longest or max(map(len, words), default=0)
    found, start = [], 0
    while start < len(text):
        ends = range(min(start + longest, len(text)), start, -1)
        end = next((end for end in ends if text[start:end] in words), start)
        if end > start:
            found.append((start, end))
        start = max(end, start + 1)
    return found


def gazetteer(records, texts):
    """Return, for each text, the entities of the records found by the longest match: the baseline of a model.

    Args:
        records: (text, [(start, end, type)]); of several types of one name the commonest is taken.
        texts: where to look.
    """
    counts = collections.defaultdict(collections.Counter)
    for text, entities in records:
        for start, end, kind in entities:
            counts[text[start:end]][kind] += 1
    kinds = {name: found.most_common(1)[0][0] for name, found in counts.items()}
    longest = max(map(len, kinds), default=0)
    return [[(*span, kinds[text[slice(*span)]]) for span in longest_match(text, kinds, longest)] for text in texts]


def longest_words(text, words, longest=None):
    """Return the text cut into words by `longest_match`; a character that is in none of them is its own word."""
    inside = {i for start, end in longest_match(text, words, longest) for i in range(start + 1, end)}
    starts = [i for i in range(len(text)) if i not in inside]
    return [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]


def words_to_tags(words, spans):
    """Return a tag per token: 0 a word of its own, 1 begins, 2 is inside of, 3 ends a word; 0 for special tokens.

    Args:
        words: the words of the text, in order; together they are the text.
        spans: the character range of each token, None for special ones.
    """
    edges, end = {0}, 0
    for word in words:
        end += len(word)
        edges.add(end)
    names = {(True, True): 0, (True, False): 1, (False, False): 2, (False, True): 3}
    return [names[span[0] in edges, span[1] in edges] if span else 0 for span in spans]


def tags_to_words(text, tags, spans):
    """Return the words that tags mean: one begins with the text and at each token with the tag 0 or 1."""
    starts = {0} | {span[0] for tag, span in zip(tags, spans, strict=True) if span and tag in (0, 1)}
    starts = sorted(starts)
    return [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]
