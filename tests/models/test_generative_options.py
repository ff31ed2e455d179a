"""Generative families: masks, causality, and what their options do."""

import keras
import numpy as np
import pytest

from bert4x.models import build_transformer_model
from tests.models.generative import (
    DECODERS,
    IDS,
    REAL,
    ROWS,
    T5,
    TARGETS,
    build,
    google_weights,
    inputs,
    run,
)
from tests.models.reference_weights import to_numpy


def close(tolerance):
    """How two results that should be equal are compared."""
    return {"rtol": 0, "atol": tolerance}


@pytest.mark.parametrize("application", ["encoder", "lm"])
@pytest.mark.parametrize("row", DECODERS)
def test_causal_by_nature(row, application, tolerance):
    """A token changes what stands at its place and behind it, nothing before; `lm` is no other model."""
    builder = build(row, application=application)
    before = run(builder)[0]
    changed = IDS.copy()
    changed[0, 2] = 10
    after = run(builder, ids=changed)[0]
    np.testing.assert_allclose(after[:2], before[:2], **close(tolerance))
    assert np.abs(after[2:] - before[2:]).max(-1).min() > 1e-3


@pytest.mark.parametrize("row", T5)
def test_decoder_of_t5_is_causal_and_its_encoder_is_not(row, tolerance):
    builder = build(row)
    before = run(builder)[0]
    targets, ids = TARGETS.copy(), IDS.copy()
    targets[0, 2] = ids[0, 4] = 10
    after = run(builder, targets=targets)[0]
    np.testing.assert_allclose(after[:2], before[:2], **close(tolerance))
    assert np.abs(after[2:] - before[2:]).max(-1).min() > 1e-3
    assert np.abs(run(builder, ids=ids)[0] - before).max(-1).min() > 1e-3


@pytest.mark.parametrize("row", ROWS)
def test_padding_on_the_right_does_not_matter(row, tolerance):
    """Real positions of a padded row equal those of the row alone; T5's targets see no padded source."""
    builder = build(row)
    together, real = run(builder)[1:], slice(None) if "t5" in row else slice(3)
    alone = run(builder, ids=IDS[1:, :3], targets=TARGETS[1:], segments=np.array([[1, 2, 2]], "int32"))
    np.testing.assert_allclose(together[:, real], alone[:, real], **close(tolerance))
    padded = run(builder, ids=np.pad(IDS, [(0, 0), (0, 3)])[1:], targets=TARGETS[1:],
                 segments=np.array([[1, 2, 2, 0, 0, 0, 0, 0]], "int32"))  # fmt: skip
    np.testing.assert_allclose(padded[:, real], together[:, real], **close(tolerance))


@pytest.mark.parametrize("row", T5)
class TestStandAloneDecoder:
    """[encoder states, target ids], where the states are padded."""

    def test_honours_the_mask_of_the_encoder_s_output(self, row, tolerance):
        builder = build(row)
        states = builder.encoder.model(inputs(builder.encoder.model))
        outputs = to_numpy(builder.decoder.model([states, keras.ops.convert_to_tensor(TARGETS)]))
        np.testing.assert_allclose(outputs, run(builder), **close(tolerance))

    def test_an_array_carries_no_mask(self, row):
        builder = build(row)
        states = to_numpy(builder.encoder.model(inputs(builder.encoder.model)))
        outputs = to_numpy(builder.decoder.model([states, TARGETS]))
        assert np.abs(outputs - run(builder))[1].max() > 1e-3

    @pytest.mark.parametrize("whole", [False, True])
    def test_takes_the_mask_as_an_input(self, row, whole, tolerance):
        """context_mask=True, on the decoder alone and on the decoder of the whole; also through predict."""
        builder = build(row, context_mask=whole)
        decoder = builder.decoder.model
        if not whole:
            model, config = ROWS[row]
            options = {"with_lm": "linear", "context_mask": True}
            decoder = build_transformer_model(config, google_weights(builder), f"{model}_decoder", **options)
        assert [tensor.name for tensor in decoder.inputs[::2]] == ["Input-Context", "Input-Context-Mask"]
        states = to_numpy(builder.encoder.model(inputs(builder.encoder.model)))
        np.testing.assert_allclose(to_numpy(decoder([states, TARGETS, REAL])), run(builder), **close(tolerance))
        predicted = decoder.predict([states, TARGETS, REAL], verbose=0)
        np.testing.assert_allclose(predicted, run(builder), **close(tolerance))

    def test_in_a_model_of_the_user(self, row, tolerance):
        """Encoder and decoder joined by hand: the mask finds its way."""
        builder = build(row)
        source, target = keras.Input((None,), dtype="int32"), keras.Input((None,), dtype="int32")
        model = keras.Model([source, target], builder.decoder.model([builder.encoder.model(source), target]))
        np.testing.assert_allclose(model.predict([IDS, TARGETS], verbose=0), run(builder), **close(tolerance))


def test_first_target_is_never_masked():
    """T5's targets start with id 0, the padding."""
    builder = build("t5.1.0")
    one = run(builder, targets=TARGETS[:, :1])
    assert np.abs(one[0] - one[1]).max() > 1e-3 and np.isfinite(one).all()


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


@pytest.mark.parametrize("row", ["gpt", "gpt2", "gpt2_ml", "cpm", "llama", "llama-tied"])
def test_final_activation(row, tolerance):
    logits = build(row)
    weights = google_weights(logits)
    probabilities = build(row, weights, final_activation="softmax")
    np.testing.assert_allclose(run(probabilities), softmax(run(logits)), **close(tolerance))
    model, config = ROWS[row]
    default = build_transformer_model(config, weights, model)
    np.testing.assert_array_equal(run(default), run(probabilities))
    other = build(row, weights, final_activation="tanh")
    np.testing.assert_allclose(run(other), np.tanh(run(logits)), **close(tolerance))


@pytest.mark.parametrize("row", T5)
def test_with_lm(row, tolerance):
    """True is the softmax, a name that activation, False the states of the decoder."""
    logits = build(row)
    weights = google_weights(logits)
    np.testing.assert_allclose(run(build(row, weights, with_lm=True)), softmax(run(logits)), **close(tolerance))
    states = run(build(row, weights, with_lm=False))
    assert states.shape == (*TARGETS.shape, 12)
    head = weights["shared/embedding"].T * 12**-0.5 if row == "t5.1.0" else weights["decoder/logits/kernel"]
    np.testing.assert_allclose(states @ head, run(logits), **close(tolerance))
    if row == "t5.1.0":
        unscaled = build(row, weights, scale_decoder_outputs=False)
        np.testing.assert_allclose(run(unscaled), run(logits) * 12**0.5, **close(tolerance))


def test_segments_of_speakers_are_rows_of_the_token_table(tolerance):
    """CDial-GPT: shared segments add their token's row; each segment id is a token id."""
    builder = build("gpt-shared-segments")
    assert [tensor.name for tensor in builder.inputs] == ["Input-Token", "Input-Segment"]
    weights = google_weights(builder)
    table, segments = weights["gpt/embeddings/word_embeddings"], np.array([[15, 15, 16, 16, 16]], "int32")
    states = builder.model.get_layer("Embedding-Position").output
    positions = weights["gpt/embeddings/position_embeddings"][:5]
    ours = to_numpy(keras.Model(builder.inputs, states)([IDS[:1], segments]))
    np.testing.assert_allclose(ours, (table[IDS[:1]] + table[segments] + positions), **close(tolerance))
    without = build("gpt-shared-segments", weights, segment_vocab_size=0)
    assert len(without.inputs) == 1


def test_unilm_of_gpt(tolerance):
    """Source tokens (segment 0) see each other both ways and no target, targets what precedes them."""
    builder = build("gpt-segments", application="unilm")
    segments = np.array([[0, 0, 0, 1, 1]], "int32")
    before = run(builder, ids=IDS[:1], segments=segments)[0]
    source, target = IDS[:1].copy(), IDS[:1].copy()
    source[0, 2], target[0, 3] = 10, 10
    after = run(builder, ids=source, segments=segments)[0]
    assert np.abs(after - before).max(-1).min() > 1e-3
    after = run(builder, ids=target, segments=segments)[0]
    np.testing.assert_allclose(after[:3], before[:3], **close(tolerance))
    assert np.abs(after - before)[3:].max(-1).min() > 1e-3


@pytest.mark.parametrize("row", ["llama", "llama-tied", "llama-qkv-biases"])
def test_llama_takes_padding_on_the_left(row, tolerance):
    """With a mask of the keys: rotary positions are differences."""
    builder = build(row, attention_mask="keys")
    right = run_masked(builder, IDS, REAL)[1, :3]
    left = run_masked(builder, np.roll(IDS[1:], 2, axis=1), np.roll(REAL[1:], 2, axis=1))[0, 2:]
    np.testing.assert_allclose(left, right, **close(tolerance))
    plain = build(row, google_weights(builder))
    np.testing.assert_allclose(run(plain)[1, :3], right, **close(tolerance))


def run_masked(builder, ids, mask):
    return to_numpy(builder.model([ids, mask.astype("int32")]))


def test_gpt2_takes_padding_on_the_left_with_positions(tolerance):
    builder = build("gpt2", attention_mask="keys", custom_position_ids=True)
    assert [tensor.name for tensor in builder.inputs] == ["Input-Token", "Input-Position", "Input-Attention-Mask"]
    positions = np.array([[0, 0, 0, 1, 2]], "int32")
    ids, mask = (np.roll(array[1:], 2, axis=1).astype("int32") for array in (IDS, REAL))
    left = to_numpy(builder.model([ids, positions, mask]))
    right = run(build("gpt2", google_weights(builder)))
    np.testing.assert_allclose(left[0, 2:], right[1, :3], **close(tolerance))


def test_attention_mask_of_llama(tolerance):
    """A full mask is ANDed to the causal one."""
    builder = build("llama", attention_mask=True)
    mask = np.broadcast_to(np.eye(5, dtype="int32"), (2, 5, 5))
    ours = to_numpy(builder.model([IDS, mask]))
    alone = [run(build("llama", google_weights(builder)), ids=IDS[:, i : i + 1]) for i in range(5)]
    np.testing.assert_allclose(ours, np.concatenate(alone, axis=1), **close(tolerance))


def test_sliding_window(tolerance):
    """Two blocks that see two tokens each: token 0 reaches token 2 and no further."""
    builder = build("llama-window")
    changed = IDS.copy()
    changed[0, 0] = 10
    difference = np.abs(run(builder, ids=changed) - run(builder))[0].max(-1)
    assert (difference[:3] > 1e-3).all() and (difference[3:] <= tolerance).all()
    wide = build("llama-window", google_weights(builder), sliding_window=5)
    plain = build("llama", google_weights(builder), num_key_value_heads=1)
    np.testing.assert_allclose(run(wide), run(plain), **close(tolerance))


@pytest.mark.parametrize("row", ROWS)
def test_hidden_states(row):
    """The first output, then h_0 ... h_L; of T5 those of the decoder."""
    builder = build(row, output_hidden_states=True)
    outputs = builder.model(inputs(builder.model))
    assert len(outputs) == 2 + builder.num_blocks and outputs[0].shape[-1] == 17
    assert {tuple(h.shape[1:]) for h in outputs[1:]} == {(4 if row in T5 else 5, builder.hidden_size)}
    np.testing.assert_array_equal(to_numpy(outputs[0]), run(build(row, google_weights(builder))))


@pytest.mark.parametrize("row", ["gpt2", "gpt2_ml", "t5.1.1", "llama"])
def test_conditional_norms(row, tolerance):
    """A condition changes nothing at first, and everything once its kernels are trained."""
    condition = keras.Input((3,), name="Condition")
    builder = build(row, layer_norm_cond=condition, additional_input_layers=condition)
    weights, values = google_weights(builder), np.ones((2, 3), "float32")
    loaded = build(row, weights, layer_norm_cond=condition, additional_input_layers=condition)
    assert loaded.inputs[-1] is condition

    def outputs(model):
        return to_numpy(model([*inputs_without_condition(model), values]))

    np.testing.assert_allclose(outputs(loaded.model), run(build(row, weights)), **close(tolerance))
    assert np.abs(outputs(builder.model) - outputs(loaded.model)).max() > 1e-3


def inputs_without_condition(model):
    named = {"Encoder-Input-Token": IDS, "Decoder-Input-Token": TARGETS, "Input-Token": IDS}
    return [named[tensor.name] for tensor in model.inputs if tensor.name in named]


def test_two_models_in_one_graph(tolerance):
    """A prefix renames the layers, and the same weights fill them."""
    for row in ("gpt2", "t5.1.1", "llama"):
        plain = build(row)
        other = build(row, google_weights(plain), prefix="other-", name="other")
        assert all(layer.name.startswith("other-") for layer in other.model.layers)
        arrays = [tensor for tensor in (IDS, TARGETS)][: len(other.inputs)]
        ours = to_numpy(other.model(arrays if len(arrays) > 1 else arrays[0]))
        np.testing.assert_allclose(ours, run(plain), **close(tolerance))
    assert build("t5.1.0", name="mine").encoder.model.name == "mine_Encoder"


def test_layers_of_t5_can_be_shared():
    """A decoder over the layers of another model has its weights."""
    first = build("t5.1.1")
    second = build("t5.1.1", {name: 0 * array for name, array in google_weights(first).items()}, layers=first.layers)
    assert run(first).max() == 0 and second.layers["Embedding-Token"] is first.layers["Embedding-Token"]


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_parts_of_t5(part, tolerance):
    """t5.1.1_encoder and t5.1.1_decoder read the same file as the whole."""
    builder = build("t5.1.1")
    options = {"with_lm": "linear"} if part == "decoder" else {}
    model = build_transformer_model(ROWS["t5.1.1"][1], google_weights(builder), f"t5.1.1_{part}", **options)
    states = builder.encoder.model(inputs(builder.encoder.model))
    if part == "encoder":
        ours, wanted = model(IDS), to_numpy(states)
    else:
        ours, wanted = model([states, keras.ops.convert_to_tensor(TARGETS)]), run(builder)
    np.testing.assert_allclose(to_numpy(ours), wanted, **close(tolerance))
