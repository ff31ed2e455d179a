"""Integrated gradients: exact on a linear model, complete on BERT; and the pictures."""

import warnings

import keras
import numpy as np
import pytest
from keras import ops

from bert4x.models import build_transformer_model
from bert4x.snippets import integrated_gradients, save_attributions
from tests.snippets.test_adversarial_bert import CONFIG

IDS = np.array([[1, 2, 1], [4, 0, 3]], "int32")


def linear():
    """Sum of (row of the table) @ W over the tokens."""
    tokens = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(5, 3, name="Embedding-Token", embeddings_initializer="random_normal")(tokens)
    x = keras.layers.Dense(2, use_bias=False, name="Output")(x)
    return keras.Model(tokens, ops.sum(x, axis=1))


def test_a_linear_model_by_hand():
    model = linear()
    table, kernel = model.get_weights()
    found = integrated_gradients(model, IDS, target=1, steps=1)
    np.testing.assert_allclose(found.scores, (table @ kernel)[IDS, 1], atol=1e-6)  # equal tokens, each its own score
    np.testing.assert_allclose(found.delta, 0, atol=1e-6)
    np.testing.assert_allclose(found.values, model.predict(IDS, verbose=0)[:, 1], atol=1e-6)
    rows = integrated_gradients(model, IDS, target=[0, 1], baseline=2, steps=1)
    expected = ((table - table[2]) @ kernel)[IDS, np.array([[0], [1]])]
    np.testing.assert_allclose(rows.scores, expected, atol=1e-6)
    norms = integrated_gradients(model, IDS, target=lambda y: y[:, 0], reduction="norm", steps=1)
    np.testing.assert_allclose(norms.scores, np.linalg.norm(table * kernel[:, 0], axis=1)[IDS], atol=1e-6)


def test_attributions_of_bert_add_up():
    body = build_transformer_model(CONFIG)
    model = keras.Model(body.input, keras.layers.Dense(3, activation="softmax")(body.output[:, 0]))
    ids = np.array([[2, 7, 9, 7, 3, 0], [2, 11, 12, 13, 14, 3]], "int32")
    errors = []
    for steps in (10, 100):
        found = integrated_gradients(model, {"Input-Token": ids, "Input-Segment": np.zeros_like(ids)}, steps=steps)
        errors.append(np.abs(found.delta / (found.values - found.baselines)).max())
    assert errors[1] < 0.02 and errors[1] <= errors[0] + 1e-4
    np.testing.assert_allclose(found.values, model.predict([ids, np.zeros_like(ids)], verbose=0).max(axis=1), atol=1e-5)
    assert found.scores.shape == ids.shape
    ids, targets = ids[[0, 1, 0]], np.array([2, 0, 1])
    options = {"target": targets, "baseline": np.linspace(-0.1, 0.1, 3)[:, None, None], "steps": 5}
    whole = integrated_gradients(model, [ids, np.zeros_like(ids)], **options)
    parts = integrated_gradients(model, [ids, np.zeros_like(ids)], **options, batch_size=2)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(other, one, atol=1e-5)
    found = integrated_gradients(model, {"Input-Token": ids, "Input-Segment": np.zeros_like(ids)}, steps=3)
    assert found.scores[0, 5] == 0  # padding


def test_errors_of_integrated_gradients():
    tokens = keras.Input((None,), dtype="int32")
    model = keras.Model(tokens, keras.layers.Embedding(5, 3, name="Embedding-Token")(tokens))
    with pytest.raises(ValueError, match="one output"):
        integrated_gradients(model, IDS, target=0)
    with pytest.raises(ValueError, match="embedding layer; got 'Token'"):
        integrated_gradients(model, IDS, name="Token")
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        integrated_gradients(model, IDS, batch_size=0)
    with pytest.raises(ValueError, match="reduction"):
        integrated_gradients(model, IDS, reduction="mean")


def test_html_is_escaped_and_scaled(tmp_path):
    save_attributions(tmp_path / "a.html", ["[CLS]", "很", "<b>"], [9.0, 2.0, -1.0, 5.0], titles="1 & 2")
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;" in page and "<b>" not in page and "1 &amp; 2" in page and 'charset="utf-8"' in page
    assert "rgba(214,39,40,1.000)" in page and ">很<" in page  # special tokens and padding do not count
    assert "rgba(31,119,180,0.500)" in page
    with pytest.raises(ValueError, match="html"):
        save_attributions(tmp_path / "a.txt", ["a"], [1.0])
    with pytest.raises(ValueError, match="2 tokens and 1 scores"):
        save_attributions(tmp_path / "a.html", ["a", "b"], [1.0])
    with pytest.raises(ValueError, match="1 texts, 2 rows of scores and 1 titles"):
        save_attributions(tmp_path / "a.html", [["a"]], [[1.0], [2.0]])


def test_png_and_its_chinese(tmp_path):
    pytest.importorskip("matplotlib")
    save_attributions(tmp_path / "latin.png", [["good", "film"], ["bad"] * 30], [[1.0, 0.2], np.ones(30)])
    assert (tmp_path / "latin.png").read_bytes()[:4] == b"\x89PNG"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        save_attributions(tmp_path / "chinese.png", ["很", "好"], [1.0, 0.5])
    assert len(caught) <= 1  # none where a font is installed
    assert all("no font with Chinese characters" in str(warning.message) for warning in caught)
    assert (tmp_path / "chinese.png").exists()
