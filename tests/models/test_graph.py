"""The graph that users take apart: layer names, inputs, cutting, sharing, freezing, remat."""

import keras
import numpy as np
import pytest
from keras import ops

from bert4x.backend import search_layer
from bert4x.models import build_transformer_model, set_trainable
from tests.layers.helpers import gradients
from tests.models.reference_weights import to_numpy
from tests.models.tiny import CONFIG, IDS, LENGTH, PAIRS, REAL, SEGMENTS, build, checkpoint_of, run

BLOCK = [
    "MultiHeadSelfAttention", "MultiHeadSelfAttention-Dropout", "MultiHeadSelfAttention-Add",
    "MultiHeadSelfAttention-Norm", "FeedForward", "FeedForward-Dropout", "FeedForward-Add", "FeedForward-Norm",
]
POSITIONS = {
    "nezha": ["Embedding-Relative-Position"],
    "roformer": ["Embedding-Rotary-Position"],
    "roformer_v2": ["Embedding-Rotary-Position"],
}
MASKS = {"encoder": [], "lm": ["Attention-LM-Mask"], "unilm": ["Attention-UniLM-Mask"]}


def names_of(family, application, depth=2):
    """The layer names of models.md section 5 for a model with all of BERT's heads, dropout and a mapping."""
    names = ["Input-Token", "Input-Segment", "Embedding-Token", "Embedding-Segment", "Embedding-Token-Segment"]
    names += POSITIONS.get(family, ["Embedding-Position"])
    names += ["Embedding-Norm", "Embedding-Dropout", "Embedding-Mapping", *MASKS[application]]
    blocks = ["Transformer"] if family == "albert" else [f"Transformer-{i}" for i in range(depth)]
    names += [f"{block}-{part}" for block in blocks for part in BLOCK]
    if family == "roformer_v2":
        return names + ["Output-Mapping", "MLM-Activation"]
    names += ["Pooler", "MLM-Dense", "MLM-Norm", "MLM-Bias", "MLM-Activation"]
    return names + ([] if family == "electra" else ["Pooler-Dense", "NSP-Proba"])


@pytest.mark.parametrize(("family", "application"), PAIRS)
def test_layer_names(family, application):
    heads = {"electra": {"with_pool": True}, "roformer_v2": {}}.get(family, {"with_nsp": True})
    builder = build(family, application, with_mlm=True, embedding_size=8, dropout_rate=0.1, **heads)
    assert sorted(layer.name for layer in builder.model.layers) == sorted(names_of(family, application))
    assert set(builder.layers) == {name for name in names_of(family, application) if not name.startswith("Input")}


def test_names_of_the_discriminator_and_of_further_inputs():
    names = {layer.name for layer in build("electra", with_discriminator=True).model.layers}
    assert {"Discriminator-Dense", "Discriminator-Prediction"} <= names
    builder = build("bert", custom_position_ids=True, attention_mask=True)
    assert [t.name for t in builder.model.inputs] == [
        "Input-Token", "Input-Segment", "Input-Position", "Input-Attention-Mask"
    ]


def test_weight_order_of_layers():
    """models.md section 5: what `get_layer(name).get_weights()` returns."""
    builder = build("bert", with_mlm=True, embedding_size=8, hidden_act=["gelu", "linear"])
    attention = [f"{part}/{role}" for part in ("query", "key", "value", "out") for role in ("kernel", "bias")]
    feed_forward = [f"{part}/{role}" for part in ("inner_0", "inner_1", "out") for role in ("kernel", "bias")]
    wanted = {
        "Embedding-Token": ["embeddings"],
        "Embedding-Norm": ["beta", "gamma"],
        "Embedding-Mapping": ["kernel", "bias"],
        "Transformer-1-MultiHeadSelfAttention": attention,
        "Transformer-1-MultiHeadSelfAttention-Norm": ["beta", "gamma"],
        "Transformer-1-FeedForward": feed_forward,
        "MLM-Bias": ["beta"],
    }
    for name, paths in wanted.items():
        assert [v.path.split("/", 1)[1] for v in builder.model.get_layer(name).weights] == paths


# ---- inputs


@pytest.mark.parametrize("dtype", ["int32", "int64", "float32", "list"])
def test_inputs_as_list_or_dict_of_any_numbers(dtype, tolerance):
    builder = build("bert", with_mlm="linear")
    wanted = run(builder)[0]
    ids, segments = (a.tolist() if dtype == "list" else a.astype(dtype) for a in (IDS, SEGMENTS))
    if dtype == "list":
        ids, segments = ops.convert_to_tensor(ids), ops.convert_to_tensor(segments)
    forms = [ids, segments], (ids, segments), {"Input-Token": ids, "Input-Segment": segments}
    for form in forms:
        np.testing.assert_allclose(to_numpy(builder.model(form)), wanted, rtol=0, atol=tolerance)
    if dtype != "list":
        got = builder.model.predict(forms[2], verbose=0)
        np.testing.assert_allclose(got, wanted, rtol=0, atol=10 * tolerance)
    assert {t.dtype for t in builder.model.inputs} == {"int32"}


def test_one_input_is_passed_alone(tolerance):
    builder = build("bert", segment_vocab_size=0)
    assert builder.model.input.name == "Input-Token"
    np.testing.assert_allclose(builder.model.predict(IDS, verbose=0), run(builder)[0], rtol=0, atol=10 * tolerance)


def test_sequence_length():
    """A fixed length in every shape; another one is refused."""
    builder = build("bert", sequence_length=LENGTH, with_mlm=True, attention_mask=True)
    assert [tuple(t.shape) for t in builder.model.inputs] == [(None, LENGTH)] * 2 + [(None, LENGTH, LENGTH)]
    assert builder.model.output.shape == (None, LENGTH, 13)
    with pytest.raises(ValueError, match="shape"):
        builder.model([IDS[:, :3], SEGMENTS[:, :3], np.ones((2, 3, 3), "int32")])


def test_positions_end_with_the_table():
    with pytest.raises(ValueError, match="covers 4 positions; got a sequence of 5"):
        run(build("bert", max_position=4))


# ---- taking the graph apart


def test_cut_at_any_layer():
    """`get_layer(name).output` of every layer; attention gives o, and its keys and values."""
    builder = build("bert", with_mlm=True, with_pool=True, dropout_rate=0.1)
    model = builder.model
    for layer in model.layers:
        output = layer.output[0] if layer.name.endswith("SelfAttention") else layer.output
        cut = keras.Model(model.inputs, output)
        assert to_numpy(cut([IDS, SEGMENTS])).shape[0] == 2
    o, k, v = model.get_layer("Transformer-0-MultiHeadSelfAttention").output
    assert o.shape == (None, None, 12) and k.shape == v.shape == (None, None, 3, 4)
    assert search_layer(model.output[0], "Embedding-Token") is builder.layers["Embedding-Token"]


def test_hidden_states_of_blocks_are_outputs_of_named_layers(tolerance):
    builder = build("bert", output_hidden_states=True)
    states = run(builder)[1:]
    for i, state in enumerate(states[1:]):
        cut = keras.Model(builder.model.inputs, builder.model.get_layer(f"Transformer-{i}-FeedForward-Norm").output)
        np.testing.assert_allclose(to_numpy(cut([IDS, SEGMENTS])), state, rtol=0, atol=tolerance)


def test_a_users_layers_on_top_see_the_mask(tolerance):
    """Keras' own pooling honours the mask of the hidden states, also from a model used as a layer."""
    builder = build("bert")
    pooled = keras.layers.GlobalAveragePooling1D()
    flat = keras.Model(builder.model.inputs, pooled(builder.model.output))
    inputs = [keras.Input((None,), dtype="int32") for _ in range(2)]
    nested = keras.Model(inputs, pooled(builder.model(inputs)))
    states = run(builder)[0]
    wanted = [row[keep].mean(0) for row, keep in zip(states, REAL, strict=True)]
    for model in (flat, nested):
        np.testing.assert_allclose(to_numpy(model([IDS, SEGMENTS])), wanted, rtol=0, atol=tolerance)


def test_two_models_in_one_graph(tolerance):
    """Two encoders side by side; the prefix is part of layer names only, not of checkpoint names."""
    weights = checkpoint_of(build("bert"))
    left, right = (build("bert", checkpoint=weights, prefix=prefix, name=f"{prefix}encoder") for prefix in ("L-", "R-"))
    assert right.model.name == "R-encoder"
    assert all(layer.name.startswith("L-") for layer in left.model.layers)
    assert set(checkpoint_of(right)) == set(weights)
    assert "Embedding-Token" in right.layers
    joined = keras.layers.Concatenate()([left.model.output, right.model.output])
    model = keras.Model(left.model.inputs + right.model.inputs, joined)
    output = to_numpy(model([IDS, SEGMENTS, IDS, SEGMENTS]))
    np.testing.assert_allclose(output[..., :12], output[..., 12:], rtol=0, atol=tolerance)


def test_layers_are_shared():
    """A second builder on the same layer objects: an encoder and a language model with one set of weights."""
    first = build("bert")
    second = build_transformer_model(
        CONFIG, model="bert", application="lm", return_keras_model=False, layers=first.layers, with_mlm="linear"
    )
    for name, layer in first.layers.items():
        assert second.layers[name] is layer
    first.layers["Transformer-0-FeedForward"].out.bias.assign(np.ones(12))
    assert (to_numpy(second.layers["Transformer-0-FeedForward"].out.bias) == 1).all()
    own = {v.path for v in second.model.weights} - {v.path for v in first.model.weights}
    assert {path.split("/")[0] for path in own} == {"MLM-Dense", "MLM-Norm", "MLM-Bias"}
    assert np.isfinite(run(second)[0]).all()


def test_weights_are_loaded_into_shared_layers():
    """The second builder's checkpoint fills the layers of both."""
    weights = checkpoint_of(build("bert", with_mlm=True))
    first = build("bert")
    second = build("bert", checkpoint=weights, layers=first.layers, with_mlm=True)
    assert second.load_report.initialized == second.load_report.missing == []
    np.testing.assert_array_equal(
        to_numpy(first.layers["Embedding-Token"].embeddings), weights["bert/embeddings/word_embeddings"]
    )


# ---- training


def test_dropout_layers():
    """Absent at rate 0; otherwise they act in training only, and so does dropout inside attention."""
    names = {layer.name for layer in build("bert").model.layers}
    assert not any("Dropout" in name for name in names)
    for options in ({"dropout_rate": 0.5}, {"attention_dropout_rate": 0.5}):
        builder = build("bert", **options)
        assert ("Embedding-Dropout" in builder.layers) == ("dropout_rate" in options)
        still = [to_numpy(builder.model([IDS, SEGMENTS])) for _ in range(2)]
        moved = [to_numpy(builder.model([IDS, SEGMENTS], training=True)) for _ in range(2)]
        np.testing.assert_array_equal(*still)
        assert np.abs(moved[0] - still[0]).max() > 1e-2 and np.abs(moved[0] - moved[1]).max() > 1e-2


@pytest.mark.parametrize("family", ["bert", "albert", "nezha", "roformer"])
def test_remat_gradients(family, tolerances):
    """Recomputed in the backward pass: the same gradients for every weight."""
    plain = build(family, "lm", with_mlm="linear")
    again = build(family, "lm", checkpoint_of(plain), with_mlm="linear", remat=True)
    assert again.layers[again.part(0, "FeedForward")].remat
    found = [
        gradients(b.model, lambda model=b.model: ops.sum(ops.square(model([IDS, SEGMENTS]))) / 100)
        for b in (plain, again)
    ]
    for path, gradient in found[0].items():
        np.testing.assert_allclose(found[1][path], gradient, rtol=1e-4, atol=tolerances["gradient"], err_msg=path)
        assert np.abs(gradient).max() > 0 or path.endswith("key/bias")


def test_fused_attention():
    """Passed on to every attention layer; outputs are in test_options."""
    for choice in (True, False, None):
        builder = build("bert", fused_attention=choice)
        assert builder.layers["Transformer-1-MultiHeadSelfAttention"].fused is choice


def test_trainable_patterns():
    model = build_transformer_model(CONFIG, model="bert", trainable=[r"Transformer-1-", "Norm$"])
    trained = {v.path.split("/")[0] for v in model.trainable_variables}
    assert trained == {
        "Embedding-Norm", "Transformer-0-MultiHeadSelfAttention-Norm", "Transformer-0-FeedForward-Norm",
        "Transformer-1-MultiHeadSelfAttention", "Transformer-1-MultiHeadSelfAttention-Norm",
        "Transformer-1-FeedForward", "Transformer-1-FeedForward-Norm",
    }
    assert build_transformer_model(CONFIG, model="bert", trainable=False).trainable_variables == []
    set_trainable(model, True)
    assert len(model.trainable_variables) == len(model.weights)
    with pytest.raises(ValueError, match="'Trnasformer' of `trainable` matches no layer"):
        build_transformer_model(CONFIG, model="bert", trainable="Trnasformer")


def test_frozen_layers_are_loaded_all_the_same():
    """bert4keras loaded nothing into them, without a word."""
    weights = checkpoint_of(build("bert"))
    model = build_transformer_model(CONFIG, weights, "bert", trainable=False)
    assert set(model.builder.load_report.loaded) == set(weights)
    for name, array in checkpoint_of(model.builder).items():
        np.testing.assert_array_equal(array, weights[name])


def test_lora_trains_query_and_value_only(tolerance):
    plain = build("bert", with_mlm="linear")
    builder = build("bert", checkpoint=checkpoint_of(plain), with_mlm="linear", lora_rank=2)
    np.testing.assert_allclose(run(builder)[0], run(plain)[0], rtol=0, atol=tolerance)  # B starts at zero
    trained = {v.path.split("/", 1)[1] for v in builder.model.trainable_variables}
    assert trained == {
        f"{part}/{name}" for part in ("query", "value") for name in ("bias", "lora_kernel_a", "lora_kernel_b")
    }
    assert builder.layers["Transformer-0-MultiHeadSelfAttention"].query.lora_kernel_a.shape == (12, 2)
