"""Speculative decoding writes exactly what the target alone writes, in fewer passes where the draft is good."""

import numpy as np
import pytest

from bert4x.backend import runtime
from bert4x.models import build_transformer_model
from bert4x.snippets import Generator, SpeculativeGenerator
from tests.models import generative
from tests.models.reference_weights import randomize

CONFIG = {**generative.TABLE, "max_position": 40}
PROMPT = [5, 3, 8, 4, 9]


def build(name="gpt2", scale=3, **options):
    model = build_transformer_model(None, None, name, "lm", **{**CONFIG, **options})
    randomize(model)
    model.set_weights([scale * w for w in model.get_weights()])
    return model


@pytest.fixture(scope="module")
def target():
    return build()


@pytest.mark.parametrize("draft_tokens", [1, 4])
@pytest.mark.parametrize("end_id", [None, "third"])
def test_equals_greedy_generation(target, draft_tokens, end_id):
    (want,) = Generator(target).generate([PROMPT], 20)
    end_id = want[2] if end_id else None
    (want,) = Generator(target, end_id).generate([PROMPT], 20)
    draft = build(num_hidden_layers=1, scale=2)
    speculative = SpeculativeGenerator(target, draft, end_id, draft_tokens=draft_tokens)
    assert speculative.generate(PROMPT, 20) == want
    assert len(set(want)) > 1 and 1 < speculative.passes <= len(want)


def test_a_perfect_draft_saves_passes(target):
    speculative = SpeculativeGenerator(target, target, draft_tokens=4)
    (want,) = Generator(target).generate([PROMPT], 21)
    assert speculative.generate(PROMPT, 21) == want
    assert speculative.passes == 1 + 20 // 5
    assert speculative.generate(PROMPT[:2], 0) == []


def test_the_draft_reads_each_token_once(target, monkeypatch):
    """A perfect draft reads all but the last two tokens, one or two at a time: few shapes to compile."""
    speculative, counts = SpeculativeGenerator(target, target, draft_tokens=4), []
    write = speculative._draft.write
    monkeypatch.setattr(speculative._draft, "write", lambda *given: counts.append(len(given[0])) or write(*given))
    assert len(speculative.generate(PROMPT, 21)) == 21
    assert set(counts) == {1, 2} and sum(counts) == 19


def test_different_vocabularies(target):
    with pytest.raises(ValueError, match="same vocabulary; got 17 and 18"):
        SpeculativeGenerator(target, build(vocab_size=18))


def test_the_step_of_nan_is_named():
    model = build()
    table = next(w for w in model.trainable_weights if "Position" in w.path)
    table.assign(np.where(np.arange(40)[:, None] == 7, np.nan, runtime.to_numpy(table)))
    speculative = SpeculativeGenerator(model, model)
    assert len(speculative.generate(PROMPT, 3)) == 3
    with pytest.raises(ValueError, match="step 3 .from 0. have NaN"):
        speculative.generate(PROMPT, 9)


def test_wrong_models_and_ids(target):
    with pytest.raises(TypeError, match="models of build_transformer_model; got object"):
        SpeculativeGenerator(target, object())
    t5 = build_transformer_model(None, None, "t5.1.1", **generative.GATED)
    with pytest.raises(ValueError, match="tokens, segments and positions only.*needs context_.*Use Generator"):
        SpeculativeGenerator(t5, t5)
    with pytest.raises(ValueError, match="end_id must be an integer of at least 0; got 'a'"):
        SpeculativeGenerator(target, target, "a")
    speculative = SpeculativeGenerator(target, target)
    with pytest.raises(ValueError, match="below the vocabulary of 17; prompt 0 has 17 to 17"):
        speculative.generate([17], 3)
    with pytest.raises(ValueError, match="prompt 0 is"):
        speculative.generate([[3, 4], [5]], 3)
