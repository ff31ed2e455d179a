"""Converters of one source each: what they rename, leave out, exchange or split."""

import json

import numpy as np
import pytest

from tests.converters.helpers import (
    LOGITS,
    OPTIONS,
    assert_same_outputs,
    assert_same_weights,
    convert,
    held,
    items,
    outputs,
    spec_cases,
    write_google,
    write_huggingface,
    write_json,
    write_tensorflow,
)

RANDOM = np.random.default_rng(3)
T5_CONFIG = {"vocab_size": 13, "hidden_size": 8, "num_hidden_layers": 2, "num_decoder_layers": 2}
T5_CONFIG |= {"num_attention_heads": 2, "attention_head_size": 3, "intermediate_size": 12}


@pytest.fixture(scope="module")
def cases(shared_data):
    return spec_cases(shared_data)


def random(*shape):
    return RANDOM.normal(size=shape).astype("float32")


def with_slots(weights, *endings):
    """The weights with optimizer slots beside each, and a step counter."""
    slots = {name + ending: np.zeros_like(array) for name, array in weights.items() for ending in endings}
    return {**weights, **slots, "global_step": np.array(7, "int64")}


def check_google(program, source, case, tmp_path, tolerance, *arguments, model=None):
    """Convert to Google's names: exactly the weights of the case, and the outputs that they give."""
    convert(program, source, tmp_path / "out", *arguments)
    assert_same_weights(tmp_path / "out", case["weights"])
    options = OPTIONS.get(model, {})
    wanted = outputs(case["config"], model, case["weights"], **options)
    assert_same_outputs(outputs(tmp_path / "out", model, **options), wanted, tolerance)


@pytest.mark.parametrize("hub", [False, True], ids=["tf1", "tf-hub"])
def test_albert(cases, hub, tmp_path, tolerance):
    case, folder = cases["albert"], tmp_path / "source"
    folder.mkdir()
    write_json(folder / "albert_config.json", case["config"])
    if hub:
        module = {f"module/{name}": array for name, array in case["weights"].items()}
        write_tensorflow(folder / "variables" / "variables", items(module))
    else:
        write_tensorflow(folder / "model.ckpt-best", items(with_slots(case["weights"], "/lamb_m", "/adam_v")))
    check_google("albert", folder, case, tmp_path, tolerance, model="albert")


def test_early_albert_zh_is_refused(cases, tmp_path):
    weights = {**cases["albert"]["weights"], "bert/embeddings/word_embeddings_2": random(6, 8)}
    with pytest.raises(ValueError, match="_google"):
        convert("albert", write_google(tmp_path / "zh", cases["albert"]["config"], weights), tmp_path / "out")


def test_nezha(cases, tmp_path, tolerance):
    """Huawei's files hold a position table and Adam's slots; their PyTorch ones are named as BERT's."""
    case = cases["nezha"]
    extra = {"bert/embeddings/position_embeddings": random(10, 8)}
    source = write_google(tmp_path / "tf", case["config"], with_slots(case["weights"] | extra, "/adam_m", "/adam_v"))
    check_google("nezha", source, case, tmp_path, tolerance, model="nezha")

    convert("nezha", source, tmp_path / "hf", "--to", "huggingface")
    torch_names = {name.replace("nezha.", "bert.", 1): array for name, array in held(tmp_path / "hf").items()}
    torch_names["bert.encoder.layer.0.attention.self.relative_positions_encoding.positions_encoding"] = random(9, 4)
    source = write_huggingface(tmp_path / "torch", case["config"], torch_names)
    convert("nezha", source, tmp_path / "again")
    assert_same_weights(tmp_path / "again", case["weights"])


def test_nezha_gen(cases, tmp_path, tolerance):
    """A BERT with absolute positions and without segments, run as a language model."""
    case = cases["bert"]
    weights = {name: array for name, array in case["weights"].items() if "seq_relationship" not in name}
    source = write_google(tmp_path / "gen", case["config"], weights)
    convert("nezha", source, tmp_path / "out", "--gen")
    del weights["bert/embeddings/token_type_embeddings"]
    assert_same_weights(tmp_path / "out", weights)
    wanted = outputs({**case["config"], "type_vocab_size": 0}, "bert", weights, application="lm", **LOGITS)
    assert_same_outputs(outputs(tmp_path / "out", "bert", application="lm", **LOGITS), wanted, tolerance)


def test_roformer(cases, tmp_path, tolerance):
    case = cases["roformer"]
    convert("roformer", write_google(tmp_path / "tf", **files(case)), tmp_path / "hf", "--to", "huggingface")
    weights = held(tmp_path / "hf") | {"roformer.encoder.embed_positions.weight": random(10, 4)}
    config = json.loads((tmp_path / "hf" / "config.json").read_text(encoding="utf-8"))
    source = write_huggingface(tmp_path / "source", config, weights)
    check_google("roformer", source, case, tmp_path, tolerance, model="roformer")


def test_roformer_v2(cases, tmp_path, tolerance):
    source = write_google(tmp_path / "source", **files(cases["roformer_v2"]))
    check_google("roformer", source, cases["roformer_v2"], tmp_path, tolerance, "--v2", model="roformer_v2")


def files(case):
    return {"config": case["config"], "weights": case["weights"]}


def test_gpt2_ml(cases, tmp_path, tolerance):
    case = cases["gpt2_ml"]
    source = write_google(tmp_path / "ml", case["config"], with_slots(case["weights"], "/adafactor_v", "/adafactor_vr"))
    check_google("gpt2_ml", source, case, tmp_path, tolerance, model="gpt2_ml")


@pytest.mark.parametrize("name", ["t5.1.0", "t5.1.1", "mt5.1.1"])
def test_t5_of_mesh(cases, name, tmp_path, tolerance):
    """No JSON, Adafactor's slots, and a table that nothing reads; sizes come from the weights."""
    case, folder = cases[name], tmp_path / "mesh"
    unused = {"decoder/block_000/layer_001/EncDecAttention/relative_attention_bias": random(2, 32)}
    slots = with_slots(case["weights"] | unused, "_slot_v", "_slot_vr", "_slot_vc", "_slot_m")
    write_tensorflow(folder / "model.ckpt-1000000", items(slots))
    check_google("t5", folder, case, tmp_path, tolerance, model="t5")
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert {key: config[key] for key in T5_CONFIG} == T5_CONFIG

    convert("t5", folder, tmp_path / "hf", "--to", "huggingface")
    assert_same_outputs(outputs(tmp_path / "hf"), outputs(tmp_path / "out", "t5"), tolerance)
    convert("t5", tmp_path / "hf", tmp_path / "back", "--model", name)
    assert_same_weights(tmp_path / "back", case["weights"])


def test_electra_is_split(cases, tmp_path, tolerance):
    """One pretraining checkpoint, two networks of different size over the same embeddings."""
    case = cases["electra"]
    config, generator = case["config"], generator_weights(case["weights"])
    source = write_google(tmp_path / "both", config, with_slots(case["weights"] | generator, "/adam_m"))
    convert("electra", source, tmp_path / "out", "--part", "discriminator")
    assert_same_weights(tmp_path / "out", case["weights"])

    convert("electra", source, tmp_path / "generator", "--part", "generator", "--to", "huggingface")
    small = config | {"hidden_size": 4, "num_attention_heads": 1, "intermediate_size": 16}
    assert_same_outputs(
        outputs(tmp_path / "generator", **LOGITS),
        outputs(small, "electra", case["weights"] | generator, **LOGITS),
        tolerance,
    )
    with pytest.raises(ValueError, match="--part"):
        convert("electra", source, tmp_path / "unclear")


def generator_weights(discriminator):
    """A generator of half the width for the same embeddings."""
    sizes = {8: 4, 12: 16, 6: 6}
    bodies = ("electra/encoder", "electra/embeddings_project")
    weights = {
        name.replace("electra/", "generator/"): random(*(sizes[n] for n in array.shape))
        for name, array in discriminator.items()
        if name.startswith(bodies)
    }
    weights["generator/embeddings_project/kernel"] = random(6, 4)
    weights |= {"generator_predictions/dense/kernel": random(4, 6), "generator_predictions/dense/bias": random(6)}
    weights |= {f"generator_predictions/LayerNorm/{name}": random(6) for name in ("beta", "gamma")}
    return weights | {"generator_predictions/output_bias": random(13)}


def test_cdial_gpt(cases, tmp_path, tolerance):
    """Rows 0 and 1 change places, in the table and in the vocabulary: [PAD] becomes id 0."""
    torch = pytest.importorskip("torch")
    case = cases["gpt"]
    convert("huggingface_google", write_google(tmp_path / "tf", **files(case)), tmp_path / "hf",
            "--to", "huggingface", "--model", "gpt")  # fmt: skip
    weights = {name: torch.from_numpy(array) for name, array in held(tmp_path / "hf").items()}
    weights |= {"lm_head.weight": weights["transformer.tokens_embed.weight"]}
    weights |= {"transformer.h.0.attn.bias": torch.ones(1, 1, 10, 10)}
    source = tmp_path / "source"
    source.mkdir()
    torch.save(weights, source / "pytorch_model.bin")
    (source / "config.json").write_bytes((tmp_path / "hf" / "config.json").read_bytes())
    tokens = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", *"abcdefghi"]
    (source / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    convert("cdial_gpt", source, tmp_path / "out")

    order = [1, 0, *range(2, 13)]
    wanted = dict(case["weights"])
    wanted["gpt/embeddings/word_embeddings"] = wanted["gpt/embeddings/word_embeddings"][order]
    assert_same_weights(tmp_path / "out", wanted)
    lines = (tmp_path / "out" / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert lines == [tokens[i] for i in order]
    assert json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))["mask_zero"] is True
    # token 1 is drawn as an input too: it is [CLS] now, and has the probabilities of id 0 in the source
    ours = outputs(tmp_path / "out", "gpt")
    assert_same_outputs(ours, outputs(case["config"], "gpt", wanted), tolerance)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_llama_in_another_dtype_and_shards(dtype, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=17, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "hf")
    convert("llama", tmp_path / "hf", tmp_path / "out", "--dtype", dtype, "--max-shard-gb", "0.000001")
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert (config["model_type"], config["dtype"]) == ("llama", dtype)
    assert_same_outputs(outputs(tmp_path / "out"), outputs(tmp_path / "hf"), 1e-2)
