"""Batches: what is masked, how often, whole words, and which token predicts which."""

import numpy as np
import objectives
import pytest
import records

T = 24


@pytest.fixture(scope="module")
def rows(shards):
    data = records.Shards(records.find_shards(shards, "train"))
    return [data[i] for i in range(len(data))]


def many(objective, rows, times=20):
    rng = np.random.default_rng(0)
    return [objective.batch(rows, rng) for _ in range(times)]


def spread(places, weights, values):
    """[B, P] at places -> [B, T], -1 elsewhere."""
    out = np.full((len(places), T), -1)
    for row, place, weight, value in zip(out, places, weights, values, strict=True):
        row[place[weight > 0]] = value[weight > 0]
    return out


def test_shares_of_masked_replaced_and_kept(rows, tokenizer):
    objective = objectives.MaskedWords(T, tokenizer, rate=0.2)
    plain = objective.rows(rows)[0]
    chosen = masked = kept = replaced = content = 0
    for (ids, segments, places), (targets,), (weights,) in many(objective, rows, 40):
        target = spread(places, weights, targets)
        at = target >= 0
        assert (target[at] == plain[at]).all() and (ids[~at] == plain[~at]).all() and not segments.any()
        chosen += at.sum()
        content += objective.is_ordinary[plain].sum()
        masked += (ids[at] == tokenizer._token_mask_id).sum()
        kept += (ids[at] == plain[at]).sum()
        replaced += ((ids[at] != plain[at]) & (ids[at] != tokenizer._token_mask_id)).sum()
        assert objective.is_ordinary[plain[at]].all()  # nothing special is predicted ...
        assert (objective.is_ordinary[ids] | (ids == tokenizer._token_mask_id) | (ids == plain)).all()  # ... or put in
    # Half a token a row more than the share is allowed for, since words that do not fit are left out; here all do.
    assert abs(chosen - 0.2 * content - 0.5 * 40 * len(rows)) < 0.01 * content
    assert abs(masked / chosen - 0.8) < 0.02
    assert abs(kept / chosen - 0.1) < 0.02 and abs(replaced / chosen - 0.1) < 0.02


def test_words_are_chosen_as_a_whole_and_anew_each_time(tokenizer):
    objective = objectives.MaskedWords(T, tokenizer, rate=0.3)
    rng = np.random.default_rng(0)
    ordinary = objective.ordinary
    record = np.array([rng.choice(ordinary, 21), [3, 0, 0, 1, 0, 1, 1, 2, 0, 0, 0, 1, 1, 0, 0, 1, 0, 1, 1, 0, 0]])
    word = np.cumsum(record[1] > 0)
    seen = set()
    for _ in range(200):
        ids, marks = objective.rows([record])
        at = objective.choose(ids, marks, rng)[0, 1:22]
        assert 0 < at.sum() <= objective.predictions
        assert all(at[word == number].all() or not at[word == number].any() for number in set(word))
        assert not objective.choose(ids, marks, rng)[0, [0, 22, 23]].any()
        seen.add(tuple(at))
    assert len(seen) > 50
    assert {number for at in seen for number in word[np.array(at)]} == set(word)  # every word has its turn


def test_some_rows_are_masked_token_by_token(tokenizer):
    objective = objectives.MaskedWords(T, tokenizer, rate=0.3, single_tokens=0.5)
    rng = np.random.default_rng(0)
    record = np.array([rng.choice(objective.ordinary, 20), [3, 0] * 10])  # words of two tokens
    chosen = objective.choose(*objective.rows([record] * 400), rng)[:, 1:21].reshape(400, 10, 2)
    halves = (chosen[..., 0] != chosen[..., 1]).any(axis=1)
    assert 0.4 < halves.mean() < 0.6


def test_sentence_order_exchanges_half_of_what_can_be(rows, tokenizer):
    objective = objectives.MaskedWords(T, tokenizer, rate=0.15, sentence_order=True)
    labels, usable = [], []
    for (ids, segments, places), (targets, order), (weights, has_order) in many(objective, rows, 20):
        target = spread(places, weights, targets)
        restored = np.where(target >= 0, target, ids)
        for i, record in enumerate(rows):
            content = restored[i][(restored[i] != tokenizer._token_pad_id)][1:-1]
            if not has_order[i]:
                assert order[i] == 0 and content.tolist() == record[0].tolist() and not segments[i].any()
                continue
            second = int(np.argmax(segments[i])) - 1  # in the content
            halves = content[: second - 1].tolist(), content[second:].tolist()
            assert content[second - 1] == tokenizer._token_end_id
            assert record[0].tolist() == (halves[1] + halves[0] if order[i] else halves[0] + halves[1])
            assert segments[i].sum() == len(halves[1]) + 1  # the last [SEP] too
        labels.append(order[has_order > 0])
        usable.append(has_order.mean())
    assert 0.45 < np.concatenate(labels).mean() < 0.55 and np.mean(usable) > 0.05


def test_next_tokens_are_shifted_by_one_and_padding_is_not_predicted(rows, tokenizer):
    (ids, segments), (targets,), (weights,) = objectives.NextToken(T, tokenizer).batch(rows, np.random.default_rng(0))
    assert (targets[:, :-1] == ids[:, 1:]).all() and not segments.any()
    assert weights.sum() == (ids[:, 1:] != tokenizer._token_pad_id).sum() and not weights[:, -1].any()


def test_unilm_predicts_the_target_or_masked_words_of_a_source(rows, tokenizer):
    objective = objectives.SourceToTarget(T, tokenizer, rate=0.2, bidirectional=0.5)
    sources = []
    for (ids, segments), (targets,), (weights,) in many(objective, rows, 10):
        is_source = ~segments.any(axis=1)
        sources.append(is_source.mean())
        real = ids != tokenizer._token_pad_id
        for row, segment, target, weight, length in zip(ids, segments, targets, weights, real.sum(axis=1), strict=True):
            if not segment.any():
                assert 0 < weight.sum() <= objective.masked.predictions and not weight[row == 0].any()
                continue
            first = int(np.argmax(segment))
            assert row[first - 1] == tokenizer._token_end_id and 2 <= first < length
            assert segment.tolist() == [0] * first + [1] * (length - first) + [0] * (T - length)
            assert (target[: T - 1] == row[1:]).all()
            assert np.flatnonzero(weight).tolist() == list(range(first - 1, length - 1))
    assert 0.4 < np.mean(sources) < 0.6


def test_a_rate_must_be_a_share(tokenizer):
    with pytest.raises(ValueError, match="between 0 and 1"):
        objectives.MaskedWords(T, tokenizer, rate=1.5)
    with pytest.raises(ValueError, match="single_tokens must be a share"):
        objectives.MaskedWords(T, tokenizer, single_tokens=50)
