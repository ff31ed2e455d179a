"""Configurations: both spellings, files and directories, families' defaults, what 'gelu' means, published files."""

import json

import pytest

from bert4x.backend import set_gelu
from bert4x.models import BERT, FAMILIES, build_transformer_model, extend_with_language_model
from bert4x.models.config import HUGGINGFACE_DEFAULTS, read_config
from tests.models.tiny import CONFIG

GOOGLE = {
    "attention_probs_dropout_prob": 0.2,
    "directionality": "bidi",
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.3,
    "hidden_size": 12,
    "initializer_range": 0.05,
    "intermediate_size": 20,
    "max_position_embeddings": 9,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "pooler_fc_size": 768,
    "type_vocab_size": 3,
    "vocab_size": 13,
}
READ = {
    "attention_dropout_rate": 0.2,
    "dropout_rate": 0.3,
    "initializer_range": 0.05,
    "max_position": 9,
    "segment_vocab_size": 3,
    "num_attention_heads": 3,
}


def construct(config, model=None, **options):
    """A builder that is not built: its options as attributes."""
    read, file_model, flavour, _ = read_config(config)
    family = FAMILIES[model or file_model or "bert"]
    return family(**{**family.adapt(read, flavour), **options})


def build(config, model=None, **options):
    return build_transformer_model(config, model=model, return_keras_model=False, **options)


def write(path, config):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


def test_a_config_may_be_a_dict_a_file_or_a_directory(tmp_path):
    file = write(tmp_path / "a" / "anything.json", GOOGLE)
    write(tmp_path / "b" / "bert_config.json", GOOGLE)
    write(tmp_path / "c" / "config.json", GOOGLE)
    write(tmp_path / "c" / "bert_config.json", {**GOOGLE, "vocab_size": 99})
    for source in (GOOGLE, file, str(file), tmp_path / "b", str(tmp_path / "c")):
        builder = build(source)
        assert {name: getattr(builder, name) for name in READ} == READ
        assert builder.vocab_size == 13
    with pytest.raises(FileNotFoundError, match="holds no config.json or bert_config.json; it holds .*anything.json"):
        build(tmp_path / "a")


def test_everything_may_be_given_as_arguments():
    model = build_transformer_model(**{**CONFIG, "hidden_act": "relu"}, model="roformer", with_mlm=True)
    assert model.output.shape == (None, None, 13)


def test_arguments_override_the_file_in_either_spelling():
    assert build(GOOGLE, dropout_rate=0.0).dropout_rate == 0
    assert build(GOOGLE, hidden_dropout_prob=0.0).dropout_rate == 0
    assert build(GOOGLE, max_position_embeddings=7).max_position == 7
    assert build(GOOGLE, max_position=7).max_position == 7
    with pytest.raises(ValueError, match="max_position was given twice: 7, and 8 under its other name"):
        build(GOOGLE, max_position=7, max_position_embeddings=8)


def test_none_means_the_default():
    """As in old scripts, which passed dropout_rate=None; a null in a file is an absent key."""
    builder = build({**GOOGLE, "hidden_dropout_prob": None, "embedding_size": None})
    assert builder.dropout_rate == 0 and builder.embedding_size == 12
    assert build(GOOGLE, dropout_rate=None).dropout_rate in (0, 0.3)


def test_keys_of_a_file_that_mean_something_else_there_are_ignored():
    """HuggingFace files have a dtype, a prefix and dozens of others."""
    config = {**GOOGLE, "model_type": "bert", "dtype": "float16", "prefix": "x", "torch_dtype": "float16", "layers": 3}
    builder = build({**config, "with_mml": True, "output_hidden_states": True, "attention_mask": True})
    assert builder.dtype is None and builder.prefix == "" and len(builder.model.outputs) == 1
    assert len(builder.model.inputs) == 2


@pytest.mark.parametrize("model_type", ["bert", "albert", "electra", "nezha", "roformer"])
def test_huggingface_files_leave_out_what_equals_their_defaults(model_type):
    """models.md 2.2: the defaults of the right family, not BERT's; Google's files have no such defaults."""
    wanted = {
        "bert": (30522, 768, 12, 12, 3072, 768, 512, 0.1),
        "electra": (30522, 256, 12, 4, 1024, 128, 512, 0.1),
        "albert": (30000, 4096, 12, 64, 16384, 128, 512, 0.0),
        "roformer": (50000, 768, 12, 12, 3072, 768, 1536, 0.1),
        "nezha": (21128, 768, 12, 12, 3072, 768, 512, 0.1),
    }
    builder = construct({"model_type": model_type})
    sizes = "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size embedding_size".split()
    names = [*sizes, "max_position", "dropout_rate"]
    assert tuple(getattr(builder, name) for name in names) == wanted[model_type]
    assert model_type in HUGGINGFACE_DEFAULTS
    with pytest.raises(ValueError, match="needs vocab_size, hidden_size, num_hidden_layers, num_attention_heads"):
        build({"type_vocab_size": 2}, model_type)


def test_albert_maps_equal_widths_in_huggingface_files():
    """Their ALBERT has the map E -> H always, Google's only where the two differ; embedding_mapping says it."""
    same = {**GOOGLE, "embedding_size": 12}
    assert "Embedding-Mapping" not in build(same, "albert").layers
    assert "Embedding-Mapping" in build({**same, "model_type": "albert"}).layers
    assert "Embedding-Mapping" in build(same, "albert", embedding_mapping=True).layers
    assert "Embedding-Mapping" not in build({**same, "model_type": "albert", "embedding_mapping": False}).layers


# ---- which family


@pytest.mark.parametrize(
    ("model_type", "model", "family"),
    [
        (None, None, "bert"),
        (None, "roberta", "bert"),
        (None, "NEZHA", "nezha"),
        ("bert", None, "bert"),
        ("bert", "roberta", "bert"),
        ("albert", None, "albert"),
        ("albert", "albert_unshared", "albert_unshared"),
        ("roformer", "roformer_v2", "roformer_v2"),
        ("roformer_v2", None, "roformer_v2"),
        ("electra", "electra", "electra"),
    ],
)
def test_family(model_type, model, family):
    config = {**GOOGLE, **({"model_type": model_type} if model_type else {})}
    assert type(build(config, model)) is FAMILIES[family]


def test_a_family_may_be_a_class_of_the_users():
    class Mine(BERT):
        """BERT with another number of blocks."""

        options = {"skip": 0}

        @property
        def num_blocks(self):
            return self.num_hidden_layers - self.skip

    assert "Transformer-1-FeedForward" not in build(GOOGLE, Mine, skip=1).layers
    model = build_transformer_model(GOOGLE, model=Mine, application="lm")
    assert "Attention-LM-Mask" in [layer.name for layer in model.layers]
    assert model.output.shape[-1] == 13
    again = build(GOOGLE, extend_with_language_model(BERT))
    assert "Attention-LM-Mask" in again.layers


# ---- what 'gelu' means

COLUMN = {  # family: (in Google's files, in HuggingFace's): models.md section 3 and decision 9
    "bert": ("gelu_erf", "gelu_erf"),
    "albert": ("gelu_tanh", "gelu_erf"),
    "albert_unshared": ("gelu_tanh", "gelu_erf"),
    "nezha": ("gelu_tanh", "gelu_erf"),
    "electra": ("gelu_erf", "gelu_erf"),
    "roformer": ("gelu_erf", "gelu_erf"),
    "roformer_v2": ("gelu_erf", "gelu_erf"),
}
MODEL_TYPE = {"albert_unshared": "albert", "roformer_v2": "roformer"}


@pytest.fixture
def gelu():
    """Set the global switch, and set it back."""
    yield set_gelu
    set_gelu(None)


@pytest.mark.parametrize("family", COLUMN)
def test_gelu_of_each_family(family, gelu):
    google, huggingface = GOOGLE, {**GOOGLE, "model_type": MODEL_TYPE.get(family, family)}
    assert (construct(google, family).hidden_act, construct(huggingface, family).hidden_act) == COLUMN[family]
    for switch in ("erf", "tanh"):
        gelu(switch)
        assert construct(google, family).hidden_act == f"gelu_{switch}"
        assert construct({**google, "hidden_act": "gelu_new"}, family).hidden_act == "gelu_tanh"  # explicit names win
        gated = construct({**google, "hidden_act": ["gelu", "linear"]}, family)
        assert gated.hidden_act == [f"gelu_{switch}", "linear"]


def test_gelu_as_an_argument_follows_the_same_rule(gelu):
    assert build(GOOGLE, "nezha", hidden_act="gelu").hidden_act == "gelu_tanh"
    gelu("erf")
    assert build(GOOGLE, "nezha", hidden_act="gelu").hidden_act == "gelu_erf"
    with pytest.raises(ValueError, match="'erf', 'tanh' or None; got 'new'"):
        gelu("new")


# ---- published files

PUBLISHED = {  # file: (family, vocabulary, E, H, layers, heads, I)
    "albert_base_en_30k": ("albert", 30000, 128, 768, 12, 12, 3072),
    "albert_base_zh": ("albert", 21128, 128, 768, 12, 12, 3072),
    "albert_large_zh": ("albert", 21128, 128, 1024, 24, 16, 4096),
    "albert_small_google_zh": ("albert", 21128, 128, 384, 6, 12, 1536),
    "albert_tiny_google_zh": ("albert", 21128, 128, 312, 4, 12, 1248),
    "albert_tiny_zh": ("albert", 21128, 128, 312, 4, 12, 1248),
    "albert_xlarge_zh": ("albert", 21128, 128, 2048, 24, 32, 8192),
    "albert_xxlarge_zh": ("albert", 21128, 128, 4096, 12, 64, 16384),
    "bert_base_chinese": ("bert", 21128, 768, 768, 12, 12, 3072),
    "bert_base_uncased_en": ("bert", 30522, 768, 768, 12, 12, 3072),
    "bert_large_en": ("bert", 30522, 1024, 1024, 24, 16, 4096),
    "electra_base_discriminator_zh": ("electra", 21128, 768, 768, 12, 12, 3072),
    "electra_base_generator_zh": ("electra", 21128, 768, 192, 12, 3, 768),
    "electra_large_discriminator_zh": ("electra", 21128, 1024, 1024, 24, 16, 4096),
    "electra_small_discriminator_zh": ("electra", 21128, 128, 256, 12, 4, 1024),
    "electra_small_generator_zh": ("electra", 21128, 128, 64, 12, 1, 256),
    "nezha_base_zh": ("nezha", 21128, 768, 768, 12, 12, 3072),
    "nezha_base_zh_tf": ("nezha", 21128, 768, 768, 12, 12, 3072),
    "roberta_wwm_ext_base_zh": ("roberta", 21128, 768, 768, 12, 12, 3072),
    "roberta_wwm_ext_large_zh": ("roberta", 21128, 1024, 1024, 24, 16, 4096),
}
OTHER_FAMILIES = {"cdial_gpt", "cpm_lm_large", "gpt2_chinese_small", "gpt2_ml_base", "gpt2_ml_large", "gpt2_ml_mega",
                  "mt5_small"}  # fmt: skip


def test_all_published_files_are_here(shared_data):
    files = {path.stem for path in (shared_data / "configs").glob("*.json")}
    assert files == set(PUBLISHED) | OTHER_FAMILIES


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_file(name, shared_data):
    """Read as its publisher meant it, and built with one block and few tokens (the widest are only read)."""
    family, *sizes = PUBLISHED[name]
    path = shared_data / "configs" / f"{name}.json"
    builder = construct(path, family)
    names = "vocab_size embedding_size hidden_size num_hidden_layers num_attention_heads intermediate_size".split()
    assert [getattr(builder, option) for option in names] == sizes
    assert (builder.max_position, builder.segment_vocab_size) == (512, 2)
    flavour = "model_type" in path.read_text("utf-8")
    assert builder.hidden_act == COLUMN["bert" if family == "roberta" else family][flavour]
    _, narrow, wide, _, _, inner = sizes
    if wide > 768:
        return
    model = build_transformer_model(path, model=family, vocab_size=20, num_hidden_layers=1)
    positions = 0 if family == "nezha" else 512 * narrow
    embeddings = (20 + 2 + 2) * narrow + positions + ((narrow + 1) * wide if narrow != wide else 0)
    block = 4 * (wide + 1) * wide + 2 * wide * inner + inner + wide + 4 * wide
    assert sum(_size(v) for v in model.trainable_variables) == embeddings + block


def _size(variable):
    size = 1
    for n in variable.shape:
        size *= n
    return size
