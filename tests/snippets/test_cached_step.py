"""The cached step in the decoder that users know: the same results as passes over the whole sequence."""

import numpy as np
import pytest

from bert4x.backend import keras, runtime
from bert4x.models import build_transformer_model
from bert4x.snippets import AutoRegressiveDecoder
from bert4x.snippets.cached_step import CachedStep
from tests.models import generative, tiny
from tests.models.reference_weights import randomize

CONFIGS = {
    "gpt2": ("lm", {**generative.TABLE, "max_position": 64}),
    "bert": ("unilm", {**tiny.CONFIG, "max_position": 64, "vocab_size": 17}),
    "t5.1.1": ("encoder", generative.GATED),
}
PROMPT, SEGMENTS = np.array([5, 3, 8, 4]), np.zeros(4, "int32")


class Decoder(AutoRegressiveDecoder):
    """One decoder for the three kinds of models; `by` is last_token or cached_step."""

    def __init__(self, model, by, **options):
        super().__init__(**options)
        self.model, self.by = model, by

    @AutoRegressiveDecoder.wraps(default_rtype="probas")
    def predict(self, inputs, output_ids, states):
        p = getattr(self, self.by)(self.model).predict(self.arrays(inputs, output_ids))
        return runtime.to_numpy(keras.ops.softmax(p)) if self.by == "cached_step" else p

    def arrays(self, inputs, output_ids):
        if len(self.model.inputs) == 1:
            return np.concatenate([inputs[0], output_ids], axis=1)
        if "Encoder" in self.model.inputs[0].name:
            return [inputs[0], output_ids]
        segments = np.concatenate([inputs[1], np.ones_like(output_ids)], axis=1)
        return [np.concatenate([inputs[0], output_ids], axis=1), segments]


@pytest.fixture(scope="module", params=CONFIGS)
def model(request):
    application, config = CONFIGS[request.param]
    model = build_transformer_model(None, None, request.param, application, **config)
    randomize(model)
    model.set_weights([3 * w for w in model.get_weights()])  # so that the outputs vary
    return model


def decoders(model):
    start = 0 if "Encoder" in model.inputs[0].name else None
    return [Decoder(model, by, start_id=start, end_id=2, maxlen=9) for by in ("last_token", "cached_step")]


def inputs_of(model):
    return [PROMPT] if len(model.inputs) == 1 or "Encoder" in model.inputs[0].name else [PROMPT, SEGMENTS]


def test_searches_give_the_same(model):
    slow, fast = decoders(model)
    inputs = inputs_of(model)
    for topk in (1, 3):
        assert slow.beam_search(inputs, topk).tolist() == fast.beam_search(inputs, topk).tolist()
    options = {"n": 4, "topk": 6, "seed": 7}
    slow, fast = slow.random_sample(inputs, **options), fast.random_sample(inputs, **options)
    assert [x.tolist() for x in slow] == [x.tolist() for x in fast]
    assert len({tuple(x) for x in fast}) > 1


def test_a_step_costs_one_token(model, monkeypatch):
    slow, fast = decoders(model)
    step, lengths = fast.cached_step(model), []
    called = CachedStep._called

    def counted(self, fed, *rest):
        lengths.append(fed["token"].shape[1])
        return called(self, fed, *rest)

    monkeypatch.setattr(CachedStep, "_called", counted)
    fast.beam_search(inputs_of(model), 3)
    assert lengths[0] == 16 and set(lengths[1:]) == {1}
    assert step is fast.cached_step(model)


def test_other_rows_begin_anew_and_caches_grow(tolerance):
    model = build_transformer_model(None, None, "llama", "lm", **{**generative.LLAMA, "final_activation": "linear"})
    randomize(model)
    step, ids = CachedStep(model), np.random.default_rng(0).integers(1, 17, (2, 60))
    wanted = runtime.to_numpy(model(ids))  # no token sees those after it
    for length in (3, 4, 5, 30, 31, *range(32, 60)):
        np.testing.assert_allclose(step.predict(ids[:, :length]), wanted[:, length - 1], atol=tolerance)
    np.testing.assert_allclose(step.predict(ids[:1, :7]), wanted[:1, 6], atol=tolerance)


def test_a_source_that_grows_is_read_anew(tolerance):
    application, config = CONFIGS["bert"]
    model = build_transformer_model(None, None, "bert", application, **{**config, "with_mlm": "linear"})
    randomize(model)
    step, ids = CachedStep(model), np.array([[5, 3, 8, 4, 6]])
    for segments in ([0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0, 1]):
        arrays = [ids[:, : len(segments)], np.array([segments])]
        np.testing.assert_allclose(step.predict(arrays), runtime.to_numpy(model(arrays))[:, -1], atol=tolerance)


def test_a_new_search_sees_new_weights(tolerance):
    """The same source again, after training: the encoder's states are not those of the last search."""
    application, config = CONFIGS["t5.1.1"]
    model = build_transformer_model(None, None, "t5.1.1", application, **{**config, "with_lm": "linear"})
    step, arrays, seen = CachedStep(model), [PROMPT[None], np.array([[0]])], []
    for seed in (0, 1):
        randomize(model, seed)
        seen.append(runtime.to_numpy(model(arrays))[:, -1])
        np.testing.assert_allclose(step.predict(arrays), seen[-1], atol=tolerance)
    assert np.abs(seen[0] - seen[1]).max() > 0.01


def test_wrong_inputs():
    model = build_transformer_model(None, None, "gpt2", "lm", **{**generative.TABLE, "max_position": 8})
    step = CachedStep(model)
    for inputs, message in (
        ([np.zeros((1, 3)), np.zeros((1, 3))], r"takes the inputs \['Input-Token'\]; got 2 arrays"),
        (np.zeros((1, 0)), "at least one token; got none"),
        (np.zeros((1, 9)), "a table of 8 positions; got sequences of 9 tokens"),
        (np.full((1, 3), 17), "below 17; got 17 to 17"),
    ):
        with pytest.raises(ValueError, match=message):
            step.predict(inputs)


def test_what_has_no_step():
    x = keras.Input((None,), dtype="int32")
    with pytest.raises(TypeError, match="as it was built; else use last_token"):
        CachedStep(keras.Model(x, keras.layers.Embedding(3, 3)(x)))
    model = build_transformer_model(None, None, "gpt2", "lm", **generative.TABLE)
    with pytest.raises(ValueError, match="at least one token"):
        CachedStep(model).predict(np.zeros((1, 0)))
