"""HuggingFace <-> Google: every family of the specification there and back, and files of transformers."""

import numpy as np
import pytest

from tests.converters.helpers import (
    OPTIONS,
    assert_same_outputs,
    assert_same_weights,
    convert,
    held,
    outputs,
    spec_cases,
    write_google,
)

FAMILIES = ("bert", "albert", "nezha", "roformer", "roformer_v2", "electra", "gpt", "gpt2", "gpt2_ml")
FAMILIES += ("t5.1.0", "t5.1.1", "mt5.1.1")

# transformers' class, configuration beside the sizes -> our family
THEIRS = {
    "bert": ("BertForPreTraining", {}),
    "albert": ("AlbertForPreTraining", {"embedding_size": 6}),
    "electra": ("ElectraForPreTraining", {"embedding_size": 6}),
    "electra-generator": ("ElectraForMaskedLM", {"embedding_size": 6}),
    "roformer": ("RoFormerForMaskedLM", {"embedding_size": 6}),
    "gpt": ("OpenAIGPTLMHeadModel", {}),
    "gpt2": ("GPT2LMHeadModel", {"bos_token_id": 0, "eos_token_id": 0}),
    "t5": ("T5ForConditionalGeneration", {"d_kv": 3}),
    "t5-gated": ("T5ForConditionalGeneration", {"d_kv": 3, "feed_forward_proj": "gated-gelu"}),
    "mt5.1.1": ("MT5ForConditionalGeneration", {"d_kv": 3}),
    "llama": ("LlamaForCausalLM", {"num_key_value_heads": 1}),
    "llama-qwen2": ("Qwen2ForCausalLM", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
}
SIZES = {
    "vocab_size": 17,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
# What only some configurations know; others would write it to config.json all the same.
SIZES_OF = {
    "gpt": {"n_positions": 10},
    "gpt2": {"n_positions": 10, "n_inner": 12},
    "t5": {"d_ff": 12},
    "mt5.1.1": {"d_ff": 12},
    "llama": {"intermediate_size": 12, "max_position_embeddings": 10},
}
BERT_SIZES = {"intermediate_size": 12, "max_position_embeddings": 10, "type_vocab_size": 2}


@pytest.fixture(scope="module")
def cases(shared_data):
    return spec_cases(shared_data)


@pytest.mark.parametrize("name", FAMILIES)
def test_there_and_back(cases, name, tmp_path, tolerance):
    case, options = cases[name], OPTIONS.get(name, {})
    google = write_google(tmp_path / "google", case["config"], case["weights"])
    (google / "vocab.txt").write_text("[PAD]\n", encoding="utf-8")
    convert("huggingface_google", google, tmp_path / "hf", "--to", "huggingface", "--model", name)
    convert("huggingface_google", tmp_path / "hf", tmp_path / "back", "--to", "google", "--model", name)

    assert not any("/" in variable for variable in held(tmp_path / "hf"))
    assert_same_weights(tmp_path / "back", case["weights"])
    assert (tmp_path / "back" / "vocab.txt").read_text(encoding="utf-8") == "[PAD]\n"
    wanted = outputs(google, name, **options)
    assert_same_outputs(outputs(tmp_path / "hf", **options), wanted, tolerance)
    assert_same_outputs(outputs(tmp_path / "back", name, **options), wanted, tolerance)


@pytest.mark.parity
@pytest.mark.parametrize("row", THEIRS)
def test_directory_of_transformers(row, tmp_path, tolerance):
    model = row.partition("-")[0]
    options = OPTIONS.get(model, {})
    options = {"with_mlm": "linear"} if row == "electra-generator" else options
    make_theirs(row).save_pretrained(tmp_path / "hf")
    program = {"electra": "electra", "llama": "llama", "t5": "t5", "mt5.1.1": "t5"}.get(model, "huggingface_google")
    convert(program, tmp_path / "hf", tmp_path / "google", "--to", "google")
    wanted = outputs(tmp_path / "hf", **options)
    assert_same_outputs(outputs(tmp_path / "google", model, **options), wanted, tolerance)
    if program == "huggingface_google":
        convert(program, tmp_path / "google", tmp_path / "back", "--to", "huggingface", "--model", model)
        assert_same_weights(tmp_path / "back", without_copies(held(tmp_path / "hf")))


def make_theirs(row):
    import torch
    import transformers

    name, changes = THEIRS[row]
    family = getattr(transformers, name)
    torch.manual_seed(0)
    sizes = SIZES | SIZES_OF.get(row, SIZES_OF.get(row.partition("-")[0], BERT_SIZES)) | changes
    model = family(family.config_class(**sizes)).eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if "embed_positions" not in path:  # RoFormer's fixed sines
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def without_copies(weights):
    """Their weights under the names that we write: buffers and tied copies apart, old prefixes as they are."""
    copies = ("decoder.weight", "decoder.bias", "embed_positions.weight", "position_ids", "lm_head.weight")
    return {name: array for name, array in weights.items() if not name.endswith(copies)}


@pytest.mark.parity
def test_openai_names(cases, tmp_path, tolerance):
    """OpenAI's own GPT2 files: model/h0/attn/c_attn/w of shape (1, H, 3H)."""
    case = cases["gpt2"]
    google = write_google(tmp_path / "openai", case["config"], openai_weights(case["weights"]))
    convert("huggingface_google", google, tmp_path / "google", "--model", "gpt2")
    assert_same_weights(tmp_path / "google", case["weights"])
    assert_same_outputs(outputs(tmp_path / "google", "gpt2"), outputs(google, "gpt2"), tolerance)


def openai_weights(weights):
    """The same weights in OpenAI's layout."""
    theirs = {"model/wte": weights["gpt/embeddings/word_embeddings"]}
    theirs["model/wpe"] = weights["gpt/embeddings/position_embeddings"]
    norms = {"attention/input/LayerNorm": "ln_1", "input/LayerNorm": "ln_2"}
    kernels = {"attention/output/dense": "attn/c_proj", "intermediate/dense": "mlp/c_fc", "output/dense": "mlp/c_proj"}
    for index in range(2):
        ours, block = f"gpt/transformer/layer_{index}", f"model/h{index}"
        for a, b in norms.items():
            theirs |= {f"{block}/{b}/b": weights[f"{ours}/{a}/beta"], f"{block}/{b}/g": weights[f"{ours}/{a}/gamma"]}
        for a, b in kernels.items():
            theirs[f"{block}/{b}/w"] = weights[f"{ours}/{a}/kernel"][None]
            theirs[f"{block}/{b}/b"] = weights[f"{ours}/{a}/bias"]
        for kind, letter in (("kernel", "w"), ("bias", "b")):
            parts = [weights[f"{ours}/attention/self/{part}/{kind}"] for part in ("query", "key", "value")]
            fused = np.concatenate(parts, axis=-1)
            theirs[f"{block}/attn/c_attn/{letter}"] = fused[None] if kind == "kernel" else fused
    theirs |= {"model/ln_f/b": weights["gpt/output/LayerNorm/beta"]}
    return theirs | {"model/ln_f/g": weights["gpt/output/LayerNorm/gamma"]}
