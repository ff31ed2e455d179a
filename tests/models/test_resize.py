"""Weights that change on the way in: fewer or more tokens, fewer positions, other widths, missing and wrong ones."""

import keras
import numpy as np
import pytest

from bert4x.models import CheckpointError, build_transformer_model, save_pretrained
from bert4x.models.resize import compound_rows, resize_array
from tests.models.reference_weights import to_numpy
from tests.models.tiny import CONFIG, FAMILIES, IDS, SEGMENTS, build, checkpoint_of, run

KEEP = [0, 5, 3, 12, 7, 1]
COMPOUND = [[0], [1, 4], ([2, 3, 3], [1, 2, 5])]  # ids of the table after KEEP
TABLE = {"electra": "electra/embeddings/word_embeddings"}
BIAS = {"electra": "generator_predictions/output_bias", "roformer_v2": None}


def wanted_rows(array):
    """Rows of a table, or entries of a bias, after KEEP and COMPOUND."""
    kept = array[KEEP]
    third = (1 * kept[2] + 2 * kept[3] + 5 * kept[3]) / 8
    return np.concatenate([kept, [kept[0], (kept[1] + kept[4]) / 2, third]])


@pytest.mark.parametrize("family", FAMILIES)
def test_keep_and_compound_tokens(family, tmp_path, tolerance):
    """The token table and the output bias alike, whatever the format of the file."""
    full = build(family, with_mlm="linear", embedding_size=8)
    weights = checkpoint_of(full)
    save_pretrained(full, None, tmp_path)
    options = {"keep_tokens": KEEP, "compound_tokens": COMPOUND, "with_mlm": "linear", "embedding_size": 8}
    for source in (weights, tmp_path):
        builder = build(family, checkpoint=source, **options)
        assert builder.vocab_size == 9
        got = checkpoint_of(builder)
        names = TABLE.get(family, "bert/embeddings/word_embeddings"), BIAS.get(family, "cls/predictions/output_bias")
        for name in names:
            if name is not None:
                np.testing.assert_allclose(got[name], wanted_rows(weights[name]), rtol=0, atol=tolerance)
    logits = to_numpy(builder.model([np.array([[1, 2, 3]]), np.zeros((1, 3), "int32")]))
    before = to_numpy(full.model([np.array([[KEEP[i] for i in (1, 2, 3)]]), np.zeros((1, 3), "int32")]))
    assert logits.shape == (1, 3, 9)
    np.testing.assert_allclose(logits[..., :6], before[..., KEEP], rtol=0, atol=tolerance)


def test_keep_all_tokens_changes_nothing():
    full = build("bert", with_mlm=True)
    weights = checkpoint_of(full)
    for ids in (list(range(13)), np.arange(13)):
        same = build("bert", checkpoint=weights, with_mlm=True, keep_tokens=ids)
        np.testing.assert_array_equal(run(same)[0], run(full)[0])


def test_keep_tokens_without_a_checkpoint():
    builder = build("bert", keep_tokens=KEEP, compound_tokens=COMPOUND)
    assert builder.layers["Embedding-Token"].input_dim == 9


def test_shrunk_models_are_saved_as_they_are(tmp_path):
    """config.json has the new size, and loading needs no options."""
    full = build("bert")
    small = build("bert", checkpoint=checkpoint_of(full), keep_tokens=KEEP, compound_tokens=COMPOUND)
    save_pretrained(small, None, tmp_path)
    again = build_transformer_model(tmp_path)
    ids = np.array([[1, 8, 6, 7]])
    np.testing.assert_array_equal(to_numpy(again([ids, ids % 2])), to_numpy(small.model([ids, ids % 2])))


@pytest.mark.parametrize("option", ["keep_tokens", "compound_tokens"])
def test_ids_that_the_file_does_not_have(option):
    weights = checkpoint_of(build("bert"))
    value = {"keep_tokens": [0, 1, 13], "compound_tokens": [[0], [1, 13]]}[option]
    with pytest.raises(ValueError, match=f"{option} .* 0 to 12; got .*13"):
        build("bert", checkpoint=weights, **{option: value})


def test_compound_rows_leave_other_tables_alone():
    table = np.arange(6.0).reshape(3, 2).astype("float32")
    assert compound_rows(table, None) is table
    got = compound_rows(table, [([0, 2], [3, 1])])
    np.testing.assert_array_equal(got[-1], [1.0, 2.0])
    assert got.dtype == "float32" and got.shape == (4, 2)


def test_max_position():
    """Fewer positions than the file: its first rows. More: an error that names both, unless they are derived."""
    full = build("bert")
    weights = checkpoint_of(full)
    short = build("bert", checkpoint=weights, max_position=6)
    np.testing.assert_array_equal(run(short)[0], run(full)[0])
    np.testing.assert_array_equal(
        to_numpy(short.layers["Embedding-Position"].embeddings), weights["bert/embeddings/position_embeddings"][:6]
    )
    with pytest.raises(CheckpointError, match=r"position_embeddings is \(8, 12\), the model needs \(20, 12\)"):
        build("bert", checkpoint=weights, max_position=20)
    long = build("bert", checkpoint=weights, hierarchical_position=True)
    ids = np.ones((1, 64), "int32")
    assert to_numpy(long.model([ids, 0 * ids])).shape == (1, 64, 12)


def test_the_first_layers_of_a_deeper_file(tolerance):
    """num_hidden_layers below the file's: the first ones, and the report names what was left."""
    deep = build("bert", output_hidden_states=True)
    shallow = build("bert", checkpoint=checkpoint_of(deep), num_hidden_layers=1)
    np.testing.assert_allclose(run(shallow)[0], run(deep)[2], rtol=0, atol=tolerance)
    assert all("layer_1" in name for name in shallow.load_report.unused)
    assert len(shallow.load_report.unused) == 16


# ---- other widths


def test_autoresize_weights(tolerance):
    """A wider model from a narrower file, by the rule of layers.md 2.1."""
    small = build("bert", with_mlm="linear")
    weights = checkpoint_of(small)
    wide = {"hidden_size": 18, "intermediate_size": 30, "with_mlm": "linear"}
    with pytest.raises(CheckpointError, match="the model needs"):
        build("bert", checkpoint=weights, **wide)
    builder = build("bert", checkpoint=weights, autoresize_weights=True, **wide)
    got = checkpoint_of(builder)
    table = "bert/embeddings/word_embeddings"
    np.testing.assert_allclose(np.linalg.norm(got[table]), np.linalg.norm(weights[table]), rtol=1e-5)
    query = "bert/encoder/layer_0/attention/self/query/kernel"
    scale = (18 / 12) ** 0.25
    np.testing.assert_allclose(np.linalg.norm(got[query]), scale * np.linalg.norm(weights[query]), rtol=1e-5)
    assert np.isfinite(run(builder)[0]).all()
    assert builder.load_report.initialized == []
    same = build("bert", checkpoint=weights, autoresize_weights=True, with_mlm="linear")
    np.testing.assert_allclose(run(same)[0], run(small)[0], rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("array", "shape", "wanted"),
    [
        ([1, 2, 3, 4], (8,), [1, 2, 1, 2, 3, 4, 3, 4]),  # pairs are repeated
        ([1, 2, 3, 4], (6,), [1, 2, 1, 2, 3, 4]),  # and cropped
        ([1, 2, 3, 4], (3,), [1, 2, 3]),  # what shrinks is cropped
        ([[1, 2], [3, 4]], (2, 4), [[1, 2, 1, 2], [3, 4, 3, 4]]),
    ],
)
def test_resize_array(array, shape, wanted, tolerance):
    array, wanted = np.array(array, "float32"), np.array(wanted, "float32")
    got = resize_array(array, shape)
    np.testing.assert_allclose(got, wanted * np.linalg.norm(array) / np.linalg.norm(wanted), rtol=0, atol=tolerance)
    assert got.dtype == "float32"


def test_resize_array_of_zeros_and_of_another_rank():
    np.testing.assert_array_equal(resize_array(np.zeros(3, "float32"), (5,)), np.zeros(5))
    with pytest.raises(ValueError, match="ranks differ"):
        resize_array(np.zeros((2, 2)), (4,))


# ---- missing and wrong ones


def test_ignore_invalid_weights():
    """Missing and wrongly shaped variables keep their random values, with one warning that lists them."""
    weights = checkpoint_of(build("bert", with_mlm=True))
    missing, wrong = "bert/encoder/layer_1/intermediate/dense/kernel", "cls/predictions/output_bias"
    weights[wrong] = np.ones(7, "float32")
    del weights[missing]
    with pytest.raises(CheckpointError):
        build("bert", checkpoint=weights, with_mlm=True)
    with pytest.warns(UserWarning) as caught:
        builder = build("bert", checkpoint=weights, with_mlm=True, ignore_invalid_weights=True)
    messages = [str(w.message) for w in caught if "keep their initial values" in str(w.message)]
    assert len(messages) == 1 and missing in messages[0] and wrong in messages[0]
    kernel = to_numpy(builder.layers["Transformer-1-FeedForward"].inner_0.kernel)
    assert 0.01 < kernel.std() < 0.03  # the initialiser's values, not the zeros that wait for a checkpoint
    other = to_numpy(builder.layers["Transformer-0-FeedForward"].inner_0.kernel)
    np.testing.assert_array_equal(other, weights[missing.replace("layer_1", "layer_0")])
    report = builder.load_report
    assert report.missing == [missing] and [row[0] for row in report.mismatched] == [wrong]
    assert {path.split("/")[0] for path in report.initialized} == {"Transformer-1-FeedForward", "MLM-Bias"}
    assert report.initialized_parameters == 12 * 20 + 13
    assert report.loaded_parameters == builder.model.count_params() - report.initialized_parameters


def test_new_conditions_are_initialised_when_a_checkpoint_is_loaded():
    """What the family adds to the file's weights is in the report, and random where it should be."""
    condition = keras.Input((3,))
    options = {"layer_norm_cond": condition, "additional_input_layers": [condition], "layer_norm_cond_hidden_size": 4}
    builder = build("bert", checkpoint=checkpoint_of(build("bert")), **options)
    norm = builder.layers["Embedding-Norm"]
    assert to_numpy(norm.hidden_dense.kernel).std() > 0.005
    assert (to_numpy(norm.gamma_dense.kernel) == 0).all()
    assert len(builder.load_report.initialized) == 5 * 3
    assert np.isfinite(to_numpy(builder.model([IDS, SEGMENTS, np.ones((2, 3), "float32")]))).all()


def test_config_of_a_resized_model_is_that_of_the_model():
    assert CONFIG["vocab_size"] == 13  # builders must not write into the dict they were given
    given = dict(CONFIG)
    build_transformer_model(given, keep_tokens=KEEP)
    assert given == CONFIG
