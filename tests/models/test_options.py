"""Options that change what a model computes, in every family and application, against the NumPy reference."""

import ast
from pathlib import Path

import keras
import numpy as np
import pytest

from bert4x import models
from tests.models.reference_weights import to_numpy
from tests.models.tiny import FAMILIES, IDS, LENGTH, PAIRS, REAL, SEGMENTS, build, checkpoint_of, expected, run
from tests.reference import layers as reference

# Each option and the test that it has, in this file or the one named. An option without a row fails a test.
COVERED = {
    "attention_head_size": "test_hidden_states_equal_the_reference",
    "attention_key_size": "test_hidden_states_equal_the_reference",
    "embedding_size": "test_hidden_states_equal_the_reference",
    "residual_attention_scores": "test_hidden_states_equal_the_reference",
    "hierarchical_position": "test_hidden_states_equal_the_reference",
    "custom_position_ids": "test_custom_position_ids",
    "segment_vocab_size": "test_hidden_states_equal_the_reference",
    "shared_segment_embeddings": "test_hidden_states_equal_the_reference",
    "layer_norm_eps": "test_norm_epsilon",
    "layer_norm_cond": "test_condition",
    "layer_norm_cond_hidden_size": "test_condition",
    "layer_norm_cond_hidden_act": "test_condition",
    "additional_input_layers": "test_condition",
    "attention_variant": "test_attention_variants.py::test_pretrained_weights_with_a_synthesizer",
    "attention_settings": "test_attention_variants.py::test_pretrained_weights_with_a_synthesizer",
    "attention_mask": "test_attention_mask",
    "attention_caches": "test_recognised.py::test_attention_caches",
    "output_hidden_states": "test_hidden_states_equal_the_reference",
    "mask_zero": "test_mask_zero",
    "max_relative_position": "test_max_relative_position",
    "num_hidden_groups": "test_albert_groups",
    "inner_group_num": "test_albert_groups",
    "embedding_mapping": "test_config.py::test_albert_maps_equal_widths_in_huggingface_files",
    "with_pool": "test_heads.py::test_heads_and_their_order",
    "with_nsp": "test_heads.py::test_heads_and_their_order",
    "with_mlm": "test_heads.py::test_heads_and_their_order",
    "with_discriminator": "test_heads.py::test_discriminator",
    "initializer_range": "test_values.py::test_initial_values",
    "dropout_rate": "test_graph.py::test_dropout_layers",
    "attention_dropout_rate": "test_graph.py::test_dropout_layers",
    "sequence_length": "test_graph.py::test_sequence_length",
    "layers": "test_graph.py::test_layers_are_shared",
    "prefix": "test_graph.py::test_two_models_in_one_graph",
    "name": "test_graph.py::test_two_models_in_one_graph",
    "fused_attention": "test_graph.py::test_fused_attention",
    "remat": "test_graph.py::test_remat_gradients",
    "check_ids": "test_errors.py::test_ids_out_of_range",
    "dtype": "test_values.py::test_mixed_precision",
    "max_position": "test_resize.py::test_max_position",
    "keep_tokens": "test_resize.py::test_keep_and_compound_tokens",
    "compound_tokens": "test_resize.py::test_keep_and_compound_tokens",
    "autoresize_weights": "test_resize.py::test_autoresize_weights",
    "ignore_invalid_weights": "test_resize.py::test_ignore_invalid_weights",
    # arguments of build_transformer_model itself
    "trainable": "test_graph.py::test_trainable_patterns",
    "lora_rank": "test_graph.py::test_lora_trains_query_and_value_only",
}


def test_every_option_is_covered():
    known = {name for family in FAMILIES for name in models.FAMILIES[family].known_options()}
    assert known | {"trainable", "lora_rank"} == set(COVERED)


@pytest.mark.parametrize("option", COVERED)
def test_the_named_test_uses_the_option(option):
    file, _, test = COVERED[option].rpartition("::")
    source = (Path(__file__).parent / (file or "test_options.py")).read_text(encoding="utf-8")
    function = next(node for node in ast.parse(source).body if getattr(node, "name", None) == test)
    text = ast.get_source_segment(source, function)
    text += "".join(ast.get_source_segment(source, decorator) for decorator in function.decorator_list)
    assert option in text or option in str([VARIANTS, FAMILY_VARIANTS, HIDDEN])


# Options -> what the reference is told besides.
VARIANTS = {
    "plain": ({}, {}),
    "head sizes": ({"attention_head_size": 5, "attention_key_size": 6}, {}),
    "embedding_size": ({"embedding_size": 8}, {}),
    "residual scores": ({"residual_attention_scores": True}, {}),
    "hierarchical": ({"hierarchical_position": True, "max_position": 3}, {"hierarchical": 0.4}),
    "hierarchical alpha": ({"hierarchical_position": 0.3, "max_position": 3}, {"hierarchical": 0.3}),
    "no segments": ({"segment_vocab_size": 0}, {}),
    "shared segments": ({"shared_segment_embeddings": True}, {"shared_segments": True}),
    "activation": ({"hidden_act": "relu"}, {"activation": reference.relu}),
    "fused": ({"fused_attention": True}, {}),
    "remat": ({"remat": True}, {}),
}
ROWS = [("bert", application, variant) for variant in VARIANTS for application in ("encoder", "lm", "unilm")]
ROWS = [row for row in ROWS if row[1:] != ("unilm", "no segments")]

# One set of options that can go together, for every other family.
FAMILY_VARIANTS = {
    "albert": {"embedding_size": 8, "residual_attention_scores": True, "attention_head_size": 6},
    "albert_unshared": {"embedding_size": 8, "residual_attention_scores": True, "attention_key_size": 6},
    "nezha": {"residual_attention_scores": True, "embedding_size": 8, "attention_head_size": 6},
    "electra": {"embedding_size": 8, "residual_attention_scores": True, "attention_key_size": 6},
    "roformer": {"residual_attention_scores": True, "embedding_size": 8, "attention_key_size": 6},
    "roformer_v2": {"residual_attention_scores": True, "embedding_size": 8, "attention_key_size": 6},
}


def assert_states(builder, states, atol, **told):
    """Compare at real positions: models may compute anything at padded ones, but nothing that is not a number."""
    wanted = expected(builder, **told)
    assert len(states) == len(wanted)
    for ours, theirs in zip(states, wanted, strict=True):
        assert np.isfinite(ours).all()
        np.testing.assert_allclose(ours[REAL], theirs[REAL], rtol=0, atol=atol)


@pytest.mark.parametrize(("family", "application", "variant"), ROWS)
def test_hidden_states_equal_the_reference(family, application, variant, tolerance):
    options, told = VARIANTS[variant]
    builder = build(family, application, output_hidden_states=True, with_mlm=False, **options)
    assert_states(builder, run(builder)[1:], tolerance, **told)


@pytest.mark.parametrize(("family", "application"), [pair for pair in PAIRS if pair[0] != "bert"])
def test_families_equal_the_reference(family, application, tolerance):
    """Plain, and with all the options that can go together."""
    for options in ({}, FAMILY_VARIANTS[family]):
        builder = build(family, application, output_hidden_states=True, with_mlm=False, **options)
        assert_states(builder, run(builder)[1:], tolerance)


@pytest.mark.parametrize("family", ["bert", "albert", "electra", "roformer", "roformer_v2"])
@pytest.mark.parametrize("segments", [0, 2])
def test_custom_position_ids(family, segments, tolerance):
    """With and without segments, where the position input has another place."""
    positions = np.array([[4, 3, 2, 1, 0], [0, 2, 5, 0, 0]], "int32")
    builder = build(
        family, custom_position_ids=True, segment_vocab_size=segments, output_hidden_states=True, max_position=6
    )
    assert builder.model.inputs[-1].name == "Input-Position"
    assert_states(builder, run(builder, positions)[1:], tolerance, positions=positions)


def test_custom_positions_reach_beyond_the_table_with_hierarchy(tolerance):
    positions = np.array([[0, 8, 2, 5, 1], [7, 2, 5, 0, 0]], "int32")
    builder = build(
        "bert", custom_position_ids=True, hierarchical_position=0.3, max_position=3, output_hidden_states=True
    )
    assert_states(builder, run(builder, positions)[1:], tolerance, positions=positions, hierarchical=0.3)


@pytest.mark.parametrize("family", FAMILIES)
def test_norm_epsilon(family):
    defaults = {"roformer_v2": 1e-7}
    for options, epsilon in (({}, defaults.get(family, 1e-12)), ({"layer_norm_eps": 1e-5}, 1e-5)):
        builder = build(family, with_mlm=True, **options)
        found = {layer.epsilon for layer in builder.layers.values() if layer.name.endswith("-Norm")}
        assert found == {epsilon}


HIDDEN = {"layer_norm_cond_hidden_size": 4, "layer_norm_cond_hidden_act": "tanh"}
CONDITIONS = [(family, {}, (3,)) for family in FAMILIES]
CONDITIONS += [("bert", {}, (None, 3)), ("bert", HIDDEN, (3,)), ("albert", HIDDEN, (None, 3))]


@pytest.mark.parametrize(("family", "hidden", "shape"), CONDITIONS)
def test_condition(family, hidden, shape, tolerance):
    """Fresh conditions change nothing; trained ones act through every norm."""
    plain = build(family, with_mlm="linear")
    condition = keras.Input(shape, name="condition")
    options = {"layer_norm_cond": condition, "additional_input_layers": condition, "with_mlm": "linear", **hidden}
    builder = build(family, checkpoint=checkpoint_of(plain), **options)
    assert [t.name for t in builder.model.inputs][-1] == "condition"
    sizes = [2, *(LENGTH if n is None else n for n in shape)]
    given = np.random.default_rng(0).standard_normal(sizes).astype("float32")
    np.testing.assert_allclose(run(builder, given)[0], run(plain)[0], rtol=0, atol=tolerance)
    norms = [layer for layer in builder.layers.values() if layer.name.endswith("-Norm")]
    for layer in norms:
        before = run(builder, given)[0]
        layer.gamma_dense.kernel.assign(0.1 * np.ones(layer.gamma_dense.kernel.shape))
        layer.beta_dense.kernel.assign(0.1 * np.ones(layer.beta_dense.kernel.shape))
        assert np.abs(run(builder, given)[0] - before).max() > 1e-4, layer.name
    if hidden:
        assert norms[0].hidden_activation is keras.activations.tanh
        assert len({float(to_numpy(layer.hidden_dense.kernel)[0, 0]) for layer in norms}) == len(norms)
    assert np.abs(run(builder, given)[0] - run(builder, -given)[0]).max() > 1e-2


@pytest.mark.parametrize("application", ["encoder", "lm", "unilm"])
@pytest.mark.parametrize("kind", [True, "full", "keys"], ids=str)
def test_attention_mask(application, kind, tolerance):
    """A further mask [B, T, T] or [B, T], ANDed with the padding and the application's."""
    builder = build("bert", application, attention_mask=kind, output_hidden_states=True, with_mlm=False)
    random = np.random.default_rng(0)
    mask = random.random((2, LENGTH) if kind == "keys" else (2, LENGTH, LENGTH)) < 0.7
    mask[..., 0] = True
    wide = mask[:, None, None] if kind == "keys" else mask[:, None]
    for dtype in ("int32", "float32", "bool"):
        assert_states(builder, run(builder, mask.astype(dtype))[1:], tolerance, mask=wide)
    everything = run(builder, np.ones_like(mask))
    plain = build("bert", application, checkpoint_of(builder), output_hidden_states=True, with_mlm=False)
    np.testing.assert_allclose(everything[0][REAL], run(plain)[0][REAL], rtol=0, atol=tolerance)


def test_attention_mask_may_leave_nothing():
    """A row without any allowed key is finite."""
    builder = build("bert", attention_mask=True)
    assert np.isfinite(run(builder, np.zeros((2, LENGTH, LENGTH), "int32"))[0]).all()


def test_mask_zero():
    """False: id 0 is an ordinary token."""
    builder = build("bert", segment_vocab_size=0, mask_zero=False)
    other = IDS.copy()
    other[1, 4] = 6
    assert np.abs(run(builder)[0][1, 0] - to_numpy(builder.model(other))[1, 0]).max() > 1e-3


def test_max_relative_position():
    """Offsets beyond the limit are one and the same; the table is fixed and has 2 M + 1 rows."""
    tables = {}
    for limit in (2, 64):
        builder = build("nezha", max_relative_position=limit)
        layer = builder.layers["Embedding-Relative-Position"]
        tables[limit] = to_numpy(layer.embeddings)
        assert layer.trainable_variables == []
        assert tables[limit].shape == (2 * limit + 1, 4)
        np.testing.assert_allclose(tables[limit], reference.sinusoidal(range(2 * limit + 1), 4), atol=1e-6)


@pytest.mark.parametrize("groups, inner", [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_albert_groups(groups, inner, tolerance):
    """Block i runs group floor(i groups / layers); the names count the groups only where there are several."""
    options = {"num_hidden_groups": groups, "inner_group_num": inner, "num_hidden_layers": 4}
    builder = build("albert", output_hidden_states=True, **options)
    names = [name for name in builder.layers if name.endswith("MultiHeadSelfAttention")]
    assert len(names) == groups * inner
    assert names[0] == ("Transformer-MultiHeadSelfAttention" if groups == inner == 1 else
                        "Transformer-Group-0-0-MultiHeadSelfAttention")
    states = run(builder)[1:]
    assert len(states) == 4 * inner + 1
    unshared = build("albert_unshared", checkpoint=checkpoint_of(builder), output_hidden_states=True, **options)
    for ours, theirs in zip(run(unshared)[1:], states, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


# ---- what must not depend on what


@pytest.mark.parametrize(("family", "application"), PAIRS)
def test_padding_does_not_matter(family, application, tolerance):
    builder = build(family, application, with_mlm="linear")
    longer = [np.pad(a, ((0, 0), (0, 3))) for a in (IDS, SEGMENTS)]
    outputs = to_numpy(builder.model(longer))
    np.testing.assert_allclose(outputs[:, :LENGTH][REAL], run(builder)[0][REAL], rtol=0, atol=tolerance)


@pytest.mark.parametrize(("family", "application"), [pair for pair in PAIRS if pair[1] != "encoder"])
def test_what_a_token_may_see(family, application):
    """Change each token in turn: lm - nothing before it moves; unilm - the target moves neither source nor its past."""
    builder = build(family, application, with_mlm="linear")
    segments = np.array([[0, 0, 1, 1, 1]], "int32")
    ids = IDS[:1]
    before = to_numpy(builder.model([ids, segments]))[0]
    for j in range(LENGTH):
        changed = ids.copy()
        changed[0, j] = 11
        moved = np.abs(to_numpy(builder.model([changed, segments]))[0] - before).max(-1) > 1e-6
        sees = np.tri(LENGTH, dtype=bool)
        if application == "unilm":
            sees = reference.unilm(segments)[0]
        np.testing.assert_array_equal(moved, sees[:, j])


@pytest.mark.parametrize("family", ["bert", "albert", "roformer_v2"])
def test_gated_feed_forward(family, tmp_path):
    """`hidden_act` as a list: every inner map is written and read, in both namings; heads use the first."""
    options = {"hidden_act": ["gelu_tanh", "linear"], "with_mlm": True, "embedding_size": 8}
    builder = build(family, **options)
    wanted = run(builder)[0]
    models.save_pretrained(builder, None, tmp_path)
    again = models.build_transformer_model(tmp_path, model=family, with_mlm=True)
    assert again.builder.load_report.initialized == []
    np.testing.assert_array_equal(run(again)[0], wanted)
    np.testing.assert_array_equal(run(build(family, checkpoint=checkpoint_of(builder), **options))[0], wanted)
