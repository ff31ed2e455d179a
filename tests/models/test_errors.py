"""Bad input to the builders: each error names what is wrong, the rule and the remedy, and leaves nothing half done."""

import shutil

import keras
import numpy as np
import pytest

from bert4x.models import ELECTRA, CheckpointError, build_transformer_model, save_pretrained
from tests.models.reference_weights import arrays
from tests.models.tiny import CONFIG, IDS, SEGMENTS, build, checkpoint_of, run

# ---- options


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("bert", {"with_mml": True}, "'with_mml' is not an option of BERT. Did you mean 'with_mlm'?"),
        ("bert", {"max_postion": 9}, "Did you mean 'max_position'?"),
        ("nezha", {"with_discriminator": True}, "'with_discriminator' is not an option of NEZHA"),
        ("bert", {"model_typ": 1}, "Options: vocab_size, "),
        ("bret", {}, "unknown model 'bret'. Did you mean 'bert'? Models: bert, roberta, "),
        ("bert", {"application": "seq2seq"}, "application must be one of encoder, lm, unilm; got 'seq2seq'"),
        ("electra", {"application": "lm"}, "ELECTRA can be built as encoder; got application='lm'"),
        ("electra", {"application": "unilm"}, "For lm and unilm use a family such as bert"),
        ("electra", {"with_mlm": True, "with_discriminator": True}, "Build each with its own configuration"),
        ("electra", {"with_nsp": True}, "electra was trained without next sentence prediction"),
        ("nezha", {"custom_position_ids": True}, "its positions are offsets between tokens"),
        ("nezha", {"hierarchical_position": True}, "NEZHA has no position table"),
        ("nezha", {"attention_key_size": 6}, "attention_key_size must equal attention_head_size; got 6 and 4"),
        ("roformer", {"hierarchical_position": 0.4}, "RoFormer has no position table"),
        ("roformer", {"attention_key_size": 5}, "output_dim must be even; got 5"),
        ("roformer_v2", {"with_pool": True}, "with_pool and with_nsp are not available"),
        ("roformer_v2", {"with_nsp": True}, "with_pool and with_nsp are not available"),
        ("bert", {"application": "unilm", "segment_vocab_size": 0}, "got segment_vocab_size=0. Use 2."),
        ("bert", {"num_attention_heads": 5}, "multiple of num_attention_heads; got 12 and 5. Use 4 heads, or set"),
        ("bert", {"dropout_rate": 1.0}, r"dropout_rate must be in [0, 1); got 1.0"),
        ("bert", {"attention_dropout_rate": -0.1}, r"attention_dropout_rate must be in [0, 1)"),
        ("bert", {"attention_mask": "rows"}, "'full' (an input [B, T, T]) or 'keys' ([B, T]) or a Rule; got 'rows'"),
        ("bert", {"hierarchical_position": 0.5}, "hierarchical must be in (0, 1) and not 0.5"),
        ("bert", {"trainable": "Trnsformer"}, "matches no layer"),
        ("bert", {"hidden_act": "gelu_er"}, "gelu_er"),
        ("bert", {"vocab_size": None}, "BERT needs vocab_size: not in the configuration"),
    ],
)
def test_options(family, options, message):
    config = {name: value for name, value in {**CONFIG, **options}.items() if name in CONFIG}
    others = {name: value for name, value in options.items() if name not in CONFIG}
    with pytest.raises(ValueError) as error:
        build_transformer_model(config, model=family, **others)
    assert message in str(error.value)


def test_a_class_is_refused_the_same_applications_as_its_name():
    with pytest.raises(ValueError, match="can be built as encoder"):
        build_transformer_model(CONFIG, model=ELECTRA, application="unilm")


def test_two_builders_in_one_graph_need_a_prefix():
    left, right = build("bert").model, build("bert").model
    both = keras.layers.Concatenate()([left.output, right.output])
    with pytest.raises(ValueError, match='"Input-Token" is used 2 times'):
        keras.Model(left.inputs + right.inputs, both)


# ---- configurations


@pytest.mark.parametrize(
    ("text", "message"),
    [("{'vocab_size': 3}", "it is not JSON"), ("[1]", "it holds a list"), ("", "it is not JSON"), ("\x89PNG", "JSON")],
)
def test_config_that_is_no_json_object(text, message, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=message) as error:
        build_transformer_model(path)
    assert str(path) in str(error.value)


def test_absent_config(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.json"):
        build_transformer_model(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    ("config", "model", "message"),
    [
        ({"model_type": "roberta"}, None, "byte-level RoBERTa"),
        ({"model_type": "roberta"}, "roberta", "byte-level RoBERTa"),
        ({"model_type": "xlm-roberta"}, "bert", "not BERT-shaped"),
        ({"model_type": "deberta-v2"}, None, "'deberta-v2' of the configuration is none of ours"),
        ({"model_type": "albert"}, "bert", "contradicts the configuration.*use model='albert'"),
        ({"model_type": "bert"}, "nezha", "contradicts the configuration"),
        ({"model_type": "nezha"}, "roformer", "contradicts the configuration"),
        ({"model_type": "bert", "position_embedding_type": "relative_key"}, None, "must be 'absolute'; got 'relative_"),
    ],
)
def test_configurations_of_another_architecture(config, model, message):
    with pytest.raises(ValueError, match=message):
        build_transformer_model({**CONFIG, **config}, model=model)


# ---- checkpoints


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A directory with config.json, model.safetensors and a TensorFlow checkpoint."""
    folder = tmp_path_factory.mktemp("model")
    builder = build("bert")
    save_pretrained(builder, None, folder)
    builder.save_weights_as_checkpoint(folder / "bert_model.ckpt")
    return folder


def test_absent_checkpoint(folder):
    with pytest.raises(FileNotFoundError, match="did you mean .*bert_model.ckpt"):
        build_transformer_model(folder, folder / "bert_modle.ckpt")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        build_transformer_model(CONFIG, folder / "no" / "bert_model.ckpt")


@pytest.mark.parametrize("pattern", ["model.safetensors", "bert_model.ckpt.data-00000-*", "bert_model.ckpt.index"])
@pytest.mark.parametrize("kept", [0, 0.5, 0.99])
def test_truncated_checkpoint(folder, tmp_path, pattern, kept):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (path,) = tmp_path.glob(pattern)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    checkpoint = tmp_path / ("model.safetensors" if pattern == "model.safetensors" else "bert_model.ckpt")
    with pytest.raises(CheckpointError, match=checkpoint.name):
        build_transformer_model(CONFIG, checkpoint)


def test_all_mismatches_are_in_one_message_and_nothing_is_changed():
    """Two are missing and two of another shape; the rest would have fitted."""
    builder = build("bert", with_mlm=True)
    weights = checkpoint_of(build("bert", with_mlm=True))
    gone = ["bert/encoder/layer_0/output/dense/bias", "cls/predictions/output_bias"]
    for name in gone:
        del weights[name]
    weights["bert/embeddings/token_type_embeddings"] = np.zeros((16, 12), "float32")
    weights["bert/encoder/layer_1/intermediate/dense/kernel"] = np.zeros((20, 12), "float32")
    weights["bert/encoder/layer_2/output/dense/bias"] = np.zeros(12, "float32")
    weights["bert/pooler/dense/kernel/adam_m"] = np.zeros((12, 12), "float32")
    before = arrays(builder.model)
    with pytest.raises(CheckpointError, match="2 variables are missing, 2 have another shape") as error:
        builder.load_weights_from_checkpoint(weights)
    message = str(error.value)
    for name in gone:
        assert f"missing in the file: {name}" in message
    assert "token_type_embeddings is (16, 12), the model needs (2, 12)" in message
    assert "intermediate/dense/kernel is (20, 12), the model needs (12, 20)" in message
    assert "unused in the file: bert/encoder/layer_2/output/dense/bias" in message
    assert "adam_m" not in message and "with_mlm" in message and "ignore_invalid_weights" in message
    after = arrays(builder.model)
    for path, array in before.items():
        np.testing.assert_array_equal(after[path], array, err_msg=path)


@pytest.mark.parametrize(
    ("wanted", "options"),
    [
        ("cls/seq_relationship/output_weights", {"with_nsp": True}),
        ("cls/predictions/output_bias", {"with_mlm": True}),
        ("bert/encoder/layer_2/attention/self/query/kernel", {"num_hidden_layers": 3}),
    ],
)
def test_weights_that_the_file_lacks(wanted, options):
    with pytest.raises(CheckpointError, match=f"missing in the file: {wanted}"):
        build("bert", checkpoint=checkpoint_of(build("bert")), **options)


def test_a_file_of_another_family_is_refused():
    weights = checkpoint_of(build("bert", embedding_size=8))
    for family in ("albert", "electra"):
        with pytest.raises(CheckpointError, match="missing in the file"):
            build(family, checkpoint=weights, embedding_size=8)


def test_empty_dict_of_weights():
    with pytest.raises(CheckpointError, match="missing in the file"):
        build("bert", checkpoint={})


# ---- ids


@pytest.mark.parametrize("check_ids", [False, True])
@pytest.mark.parametrize("bad", [13, -1])
def test_ids_out_of_range(check_ids, bad):
    """TensorFlow and torch raise by themselves for ids beyond the table; JAX gives NaN; check_ids raises everywhere."""
    ids = IDS.copy()
    ids[0, 1] = bad
    model = build("bert", check_ids=check_ids).model
    backend = keras.backend.backend()
    if check_ids or (backend != "jax" and bad > 0):
        with pytest.raises(Exception) as error:
            np.asarray(keras.ops.convert_to_numpy(model([ids, SEGMENTS])))
        assert not check_ids or "[0, 13)" in str(error.value)
        segments = SEGMENTS.copy()
        segments[0, 0] = 2
        with pytest.raises(Exception):  # noqa: B017  the backends' own errors have no common class
            np.asarray(keras.ops.convert_to_numpy(model([IDS, segments])))
    elif backend == "jax" and bad > 0:
        assert np.isnan(run(model)[0]).sum() == 0
        assert np.isnan(keras.ops.convert_to_numpy(model([ids, SEGMENTS]))).any()


def test_ids_are_checked_inside_predict():
    ids = IDS.copy()
    ids[1, 1] = 13
    model = build("bert", check_ids=True).model
    with pytest.raises(Exception, match="13"):
        model.predict([ids, SEGMENTS], verbose=0)
