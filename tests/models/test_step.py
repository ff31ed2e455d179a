"""The graph of one decoding step: prefill and steps give what the full graph gives, for every family and use."""

import numpy as np
import pytest

from bert4x.backend import keras, ops, runtime
from bert4x.layers import SlotPositions
from bert4x.models import build_transformer_model
from tests.models import generative, tiny
from tests.models.reference_weights import randomize

LENGTHS = (6, 4)  # tokens of the two rows
PROMPT = 4  # slots of the prefill: all of the second row
CONDITION = {"layer_norm_cond_hidden_size": 3, "layer_norm_cond_hidden_act": "relu"}
LINEAR = {"lm": {"final_activation": "linear"}, "t5": {"with_lm": "linear"}, "bert": {"with_mlm": "linear"}}
BERT = {**tiny.CONFIG, "vocab_size": 17}
SYNTHESIZER = {"attention_variant": "synthesizer", "attention_settings": {"mode": ["dense", "random", "dot"]}}
RANDOM = {"attention_variant": "synthesizer", "attention_settings": {"mode": "factorized_random", "max_length": 8}}
HIERARCHICAL = {**BERT, "hierarchical_position": True, "max_position": 3}

# row -> (model, application, configuration and options)
ROWS = {f"{family} {use}": (family, use, {**BERT, **LINEAR["bert"]}) for family, use in tiny.PAIRS if use != "encoder"}
ROWS |= {
    row: (model, "encoder" if "t5" in row else "lm", {**config, **LINEAR["t5" if "t5" in row else "lm"]})
    for row, (model, config) in generative.ROWS.items()
}
ROWS |= {
    "gpt unilm": ("gpt", "unilm", {**generative.TABLE, "segment_vocab_size": 2, **LINEAR["lm"]}),
    "bert lm, positions given": ("bert", "lm", {**BERT, **LINEAR["bert"], "custom_position_ids": True}),
    "roformer unilm, positions given": ("roformer", "unilm", {**BERT, **LINEAR["bert"], "custom_position_ids": True}),
    "bert unilm, hierarchical": ("bert", "unilm", {**HIERARCHICAL, **LINEAR["bert"]}),
    "nezha lm, residual scores": ("nezha", "lm", {**BERT, **LINEAR["bert"], "residual_attention_scores": True}),
    "bert lm, pooled too": ("bert", "lm", {**BERT, **LINEAR["bert"], "with_pool": True, "output_hidden_states": True}),
    "bert lm, no segments": ("bert", "lm", {**BERT, **LINEAR["bert"], "segment_vocab_size": 0}),
    "gpt2 fixed length": ("gpt2", "lm", {**generative.TABLE, **LINEAR["lm"], "sequence_length": 6}),
    "bert unilm, key size": ("bert", "unilm", {**BERT, **LINEAR["bert"], "attention_key_size": 7}),
    "bert unilm, condition": ("bert", "unilm", {**BERT, **LINEAR["bert"], **CONDITION}),
    "t5.1.1_decoder": ("t5.1.1_decoder", "encoder", {**generative.GATED, **LINEAR["t5"], "context_mask": True}),
    "bert lm, talking heads": ("bert", "lm", {**BERT, **LINEAR["bert"], "attention_variant": "talking_heads"}),
    "bert unilm, synthesizer": ("bert", "unilm", {**BERT, **LINEAR["bert"], **SYNTHESIZER}),
    "nezha lm, synthesizer": ("nezha", "lm", {**BERT, **LINEAR["bert"], **SYNTHESIZER}),
    "gpt2 synthesizer": ("gpt2", "lm", {**generative.TABLE, **LINEAR["lm"], **RANDOM}),
    "t5 synthesizer": ("t5.1.1", "encoder", {**generative.GATED, **LINEAR["t5"], **RANDOM}),
    "bert lm, fused": ("bert", "lm", {**BERT, **LINEAR["bert"], "fused_attention": True}),
}


def build(row, **options):
    model, application, config = ROWS[row]
    if "condition" in row:
        condition = keras.Input((5,), name="Condition")
        options |= {"layer_norm_cond": condition, "additional_input_layers": condition}
    builder = build_transformer_model(None, None, model, application, False, **config, **options)
    randomize(builder.model)
    return builder


def data(builder):
    """Arrays of the two rows by role, right padded with 0."""
    random, length = np.random.default_rng(1), max(LENGTHS)
    real = np.arange(length) < np.array(LENGTHS)[:, None]
    shared = getattr(builder, "shared_segment_embeddings", False)
    segments = np.array([[0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 0, 0]])
    arrays = {
        "token": random.integers(1, 17, (2, length)),
        "segment": random.integers(1, 17, (2, length)) if shared else segments,
        "position": np.array([[0, 1, 2, 5, 6, 7], [0, 2, 3, 4, 0, 0]]),
    }
    return {role: (array * real).astype("int32") for role, array in arrays.items()}


def extra(builder):
    """What the model takes besides token, segment and position ids: conditions, encoder states or ids."""
    random = np.random.default_rng(2)
    if "Condition" in [x.name for x in builder.inputs]:
        return {"Condition": random.standard_normal((2, 5)).astype("float32")}
    if "Decoder" in type(builder).__name__:
        states = random.standard_normal((2, 3, 12)).astype("float32")
        return {"Input-Context": states, "Input-Context-Mask": np.array([[True] * 3, [True, False, False]])}
    return {"Encoder-Input-Token": np.array([[3, 5, 1], [4, 0, 0]], "int32")} if hasattr(builder, "encoder") else {}


def full_logits(builder, arrays):
    names = {"Input-Token": "token", "Input-Segment": "segment", "Input-Position": "position"}
    names["Decoder-Input-Token"] = "token"
    inputs = {**extra(builder), **{name: arrays[role] for name, role in names.items()}}
    inputs = [inputs[x.name] for x in builder.inputs]
    outputs = builder.model(inputs if len(inputs) > 1 else inputs[0])
    outputs = outputs if isinstance(outputs, list) else [outputs]
    return next(runtime.to_numpy(x) for x in outputs if x.shape[-1] == builder.vocab_size)


def context_of(builder):
    """The inputs of a step that stay: conditions, or the keys and values of the encoder states."""
    graph, given = builder.build_context(), extra(builder)
    if graph is None:
        return given
    mask = given.get("Input-Context-Mask", given.get("Encoder-Input-Token", 0) != 0)
    return {"context_mask": mask, **graph(given.get("Input-Context", given.get("Encoder-Input-Token")))}


def run_steps(builder, arrays, step, slots):
    """Logits of all tokens, [2, 6, V]: a prefill of PROMPT slots, then token by token; padded on the left."""
    padding = np.array([PROMPT - min(n, PROMPT) for n in (PROMPT, 3)], "int32")
    context, got = context_of(builder), np.zeros((2, max(LENGTHS), builder.vocab_size))
    caches = [x for x in step.inputs if x.name.startswith(("key_", "value_"))]
    cache = {x.name: ops.zeros((2, slots, *x.shape[2:]), x.dtype) for x in caches}
    start = 0
    for count in (PROMPT, 1, 1):
        fed = np.arange(start, start + count)[None] - padding[:, None]  # which token is in which slot
        fed_arrays = {role: np.take_along_axis(array, np.clip(fed, 0, 5), 1) for role, array in arrays.items()}
        inputs = {role: array for role, array in fed_arrays.items() if role in step.input}
        feeds = {**inputs, **context, **cache, "start": np.int32(start), "padding": padding}
        made = step({name: ops.convert_to_tensor(x) for name, x in feeds.items()})
        logits = runtime.to_numpy(made.pop("logits"))
        cache, start = made, start + count
        for row in range(2):
            kept = (fed[row] >= 0) & (fed[row] < 6)
            got[row, fed[row][kept]] = logits[row][kept]
    return got


@pytest.mark.parametrize("row", ROWS)
def test_prefill_and_steps_equal_the_full_graph(row, tolerance):
    builder = build(row)
    arrays = data(builder)
    step = builder.build_step()
    want, got = full_logits(builder, arrays), run_steps(builder, arrays, step, slots=9)
    for i, length in enumerate(LENGTHS):
        np.testing.assert_allclose(got[i, :length], want[i, :length], atol=tolerance, rtol=0)
    assert np.abs(want).max() > 0.1


@pytest.mark.parametrize("row", ["bert unilm", "nezha lm", "gpt2", "llama-window", "t5.1.1"])
def test_half_precision(row):
    builder = build(row, dtype="mixed_bfloat16")
    arrays = data(builder)
    want, got = full_logits(builder, arrays), run_steps(builder, arrays, builder.build_step(), slots=9)
    for i, length in enumerate(LENGTHS):
        np.testing.assert_allclose(got[i, :length], want[i, :length], atol=0.05 * np.abs(want).max(), rtol=0)


def test_logits_of_the_last_token_only(tolerance):
    builder = build("bert unilm")
    inputs = {x.name: ops.zeros((2, 5, 3, 4)) for x in builder.build_step().inputs if "_" in x.name}
    arrays = {"token": [[0, 3, 4], [2, 5, 6]], "segment": np.zeros((2, 3)), "start": 0, "padding": [1, 0]}
    inputs |= {name: ops.convert_to_tensor(x, "int32") for name, x in arrays.items()}
    every, last = builder.build_step(5)(inputs)["logits"], builder.build_step(last_only=True)(inputs)["logits"]
    assert every.shape == (2, 3, 17) and last.shape == (2, 1, 17)
    np.testing.assert_allclose(runtime.to_numpy(last)[:, 0], runtime.to_numpy(every)[:, -1], atol=tolerance)
    assert "float32" in str(every.dtype)


def test_logits_come_before_the_activation(tolerance):
    config = {**generative.TABLE}
    builder = build_transformer_model(None, None, "gpt2", "lm", False, **config)  # softmax by default
    randomize(builder.model)
    arrays = data(builder)
    got = ops.softmax(ops.convert_to_tensor(run_steps(builder, arrays, builder.build_step(), 6)[:, :4]))
    np.testing.assert_allclose(runtime.to_numpy(got)[0], full_logits(builder, arrays)[0, :4], atol=tolerance)


def test_the_full_model_is_as_before():
    builder = build("bert lm")
    before = [layer.name for layer in builder.model.layers]
    builder.build_step()
    assert [layer.name for layer in builder.model.layers] == before
    assert builder.model.get_layer("Transformer-1-FeedForward-Norm").output is not None
    assert keras.Model.from_config(builder.model.get_config()).count_params() == builder.model.count_params()


@pytest.mark.parametrize(
    "model, application, options, message",
    [
        ("bert", "encoder", {}, "application='lm' or 'unilm'"),
        ("electra", "encoder", {"with_mlm": True}, "an encoder does not generate"),
        ("bert", "lm", {"with_mlm": False}, "needs a head over the vocabulary"),
        ("gpt2", "lm", {"attention_mask": True}, "without attention_mask"),
        ("gpt2", "lm", {"max_length": 9}, "at most 8, the length of the position table; got 9"),
    ],
)
def test_what_cannot_generate(model, application, options, message):
    length = options.pop("max_length", None)
    builder = build_transformer_model(None, None, model, application, False, **{**tiny.CONFIG, **options})
    with pytest.raises(ValueError, match=message):
        builder.build_step(length)


def test_relative_positions_have_no_limit():
    assert build("nezha lm").build_step(1000).input["key_0"].shape == (None, 1000, 3, 4)


def test_slot_positions():
    got = SlotPositions()([ops.zeros((2, 3), "int32"), ops.convert_to_tensor(4), ops.convert_to_tensor([0, 5])])
    assert runtime.to_numpy(got).tolist() == [[4, 5, 6], [0, 0, 1]]
