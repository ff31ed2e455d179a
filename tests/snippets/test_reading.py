"""Answers by vote over passages, characters with the vectors of their words, trees out of distances."""

import json

import numpy as np
import pytest

from bert4x.snippets import CharacterWords, build_tree, character_ids, extract_answers, tree_text


@pytest.fixture(scope="module")
def cases(shared_data):
    path = shared_data.parent / "spec" / "checks_layers.json"
    if not path.is_file():
        pytest.skip(f"no check values: {path} is not there")
    return json.loads(path.read_text(encoding="utf-8"))["cases"]


def test_vote_of_the_specification(cases):
    case = cases["reading_vote"]
    given, config = case["inputs"], case["config"]
    got = extract_answers(
        given["passages"], given["start"], given["end"], max_length=config["maxlen"], threshold=config["threshold"]
    )
    assert got == pytest.approx(case["outputs"]["scores"], abs=1e-8)
    assert list(got.values()) == sorted(got.values(), reverse=True)


def test_vote_over_three_passages():
    starts, ends = [[0.9, 0], [0.4, 0], [0.5, 0.2]], [[0, 0.8], [0, 0.5], [0.3, 0.6]]
    got = extract_answers(["ab", "ab", "ba"], starts, ends)
    assert got == pytest.approx({"ab": 0.290833, "ba": 0.069231, "b": 0.019565, "a": 0.012857}, abs=1e-6)
    assert list(got) == ["ab", "ba", "b", "a"]


def test_vote_cuts_what_is_behind_a_passage_and_what_is_too_long():
    assert extract_answers(["ab"], [[0, 0, 0.9]], [[0, 0, 0.9]]) == {}
    assert list(extract_answers(["abc"], [[0.9, 0, 0]], [[0, 0.9, 0.9]], max_length=2)) == ["ab"]
    assert extract_answers([], [], []) == {}


def test_tree_of_the_specification(cases):
    case = cases["tree_induction"]
    assert build_tree(case["inputs"]["distance"], case["inputs"]["tokens"]) == case["outputs"]["tree"]


def by_definition(d, tokens):
    """The tree as the specification defines it, by recursion."""
    if len(tokens) == 1:
        return tokens[0]
    i = int(np.argmax(d))
    last = i == len(tokens) - 1
    right = tokens[i] if last else [tokens[i], by_definition(d[i + 1 :], tokens[i + 1 :])]
    return right if i == 0 else [by_definition(d[:i], tokens[:i]), right]


def test_trees_are_those_of_the_definition():
    random = np.random.default_rng(0)
    for length in [1, 2, 3, 5, 9, 30] * 5:
        distances = random.integers(0, 5, length) / 4  # with ties
        words = [f"w{i}" for i in range(length)]
        assert build_tree(distances, words) == by_definition(distances, words)


@pytest.mark.parametrize("order", [1, -1])
def test_trees_of_long_inputs_need_no_recursion(order):
    depth, node = 0, build_tree(np.arange(50_000)[::order], range(50_000))
    while isinstance(node, list):
        node, depth = node[0 if order == 1 else 1], depth + 1
    assert depth == 49_999


def test_tree_as_text():
    assert tree_text(build_tree([0.1, 0.9, 0.3, 0.5, 0.2], list("abcde"))) == "(a (b (c (d e))))"
    assert tree_text(build_tree([0.3], ["word"])) == "word"


@pytest.mark.parametrize("given", [([], []), ([0.1], ["a", "b"])])
def test_tree_needs_a_distance_per_token(given):
    with pytest.raises(ValueError, match="one distance per token"):
        build_tree(*given)


def test_characters_carry_the_vectors_of_their_words():
    ids = character_ids(["aab", "ba", "c"], min_count=2)
    assert ids == {"a": 2, "b": 3}
    table = CharacterWords(ids, {"ab": [1.0, 2.0], "c": [3.0, 4.0]})
    numbers, vectors = table.encode(["ab", "xa", "c"])
    assert numbers.tolist() == [2, 3, 1, 2, 1]
    assert vectors.tolist() == [[1, 2], [1, 2], [0, 0], [0, 0], [3, 4]]
    numbers, vectors = table.encode_batch([["c"], ["ab", "a"]])
    assert numbers.tolist() == [[1, 0, 0], [2, 3, 2]] and vectors.shape == (2, 3, 2) and vectors.dtype == "float32"
    assert table.encode([])[1].shape == (0, 2)
    with pytest.raises(ValueError, match="at least one word"):
        CharacterWords(ids, {})
