"""CPM-LM: shards of any number are joined as they were cut, and damage is told."""

import shutil

import numpy as np
import pytest

from tests.converters.helpers import assert_same_outputs, assert_same_weights, convert, outputs

torch = pytest.importorskip("torch")

LAYERS, WIDTH, INNER, VOCAB, POSITIONS, HEADS = 2, 12, 36, 31, 8, 2
CONFIG = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
    "max_position_embeddings": POSITIONS,
    "hidden_act": "gelu",
}
# CPM's name in a block -> ours
DENSE = {
    "attention.dense": "attention/output/dense",
    "mlp.dense_h_to_4h": "intermediate/dense",
    "mlp.dense_4h_to_h": "output/dense",
}
NORMS = {"input_layernorm": "attention/input/LayerNorm", "post_attention_layernorm": "input/LayerNorm"}


def gpt2_weights():
    """A GPT2 in Google's names, with numbers that float16 holds exactly."""
    random = np.random.default_rng(0)

    def draw(*shape):
        return random.normal(size=shape, scale=0.3).astype("float16").astype("float32")

    weights = {"gpt/embeddings/word_embeddings": draw(VOCAB, WIDTH)}
    weights |= {"gpt/embeddings/position_embeddings": draw(POSITIONS, WIDTH)}
    weights |= {"gpt/output/LayerNorm/beta": draw(WIDTH), "gpt/output/LayerNorm/gamma": draw(WIDTH)}
    shapes = {"attention/output/dense": (WIDTH, WIDTH), "intermediate/dense": (WIDTH, INNER)}
    shapes |= {"output/dense": (INNER, WIDTH)}
    shapes |= {f"attention/self/{name}": (WIDTH, WIDTH) for name in ("query", "key", "value")}
    for block in (f"gpt/transformer/layer_{index}" for index in range(LAYERS)):
        for name, shape in shapes.items():
            weights |= {f"{block}/{name}/kernel": draw(*shape), f"{block}/{name}/bias": draw(shape[1])}
        for name in NORMS.values():
            weights |= {f"{block}/{name}/beta": draw(WIDTH), f"{block}/{name}/gamma": draw(WIDTH)}
    return weights


def cut(weights, rank, count):
    """Shard `rank` of a GPT2, as a model-parallel run cuts it: heads, inner features and tokens are divided."""

    def part(array, axis):
        return np.split(array, count, axis=axis)[rank]

    padding = -VOCAB % count
    table = np.concatenate([weights["gpt/embeddings/word_embeddings"], np.full((padding, WIDTH), 9, "float32")])
    shard = {"word_embeddings.weight": part(table, 0)}
    shard |= {"position_embeddings.weight": weights["gpt/embeddings/position_embeddings"]}
    shard |= {"transformer.final_layernorm.weight": weights["gpt/output/LayerNorm/gamma"]}
    shard |= {"transformer.final_layernorm.bias": weights["gpt/output/LayerNorm/beta"]}
    for index in range(LAYERS):
        ours, theirs = f"gpt/transformer/layer_{index}", f"transformer.layers.{index}"
        for kind, axis in (("kernel", 1), ("bias", 0)):
            fused = [part(weights[f"{ours}/attention/self/{n}/{kind}"], axis) for n in ("query", "key", "value")]
            name = {"kernel": "weight", "bias": "bias"}[kind]
            shard[f"{theirs}.attention.query_key_value.{name}"] = np.concatenate(fused, axis=-1).T
        for name, mine in DENSE.items():
            wide = name == "mlp.dense_h_to_4h"
            shard[f"{theirs}.{name}.weight"] = part(weights[f"{ours}/{mine}/kernel"], 1 if wide else 0).T
            bias = weights[f"{ours}/{mine}/bias"]
            shard[f"{theirs}.{name}.bias"] = part(bias, 0) if wide else bias
        for name, mine in NORMS.items():
            shard[f"{theirs}.{name}.weight"] = weights[f"{ours}/{mine}/gamma"]
            shard[f"{theirs}.{name}.bias"] = weights[f"{ours}/{mine}/beta"]
    return {name: torch.from_numpy(np.ascontiguousarray(array)).half() for name, array in shard.items()}


def write_shards(folder, weights, count):
    """A release: the counter of iterations, and the shards in the iteration's folder."""
    (folder / "80000").mkdir(parents=True)
    (folder / "latest_checkpointed_iteration.txt").write_text("80000\n", encoding="utf-8")
    for rank in range(count):
        torch.save({"module": cut(weights, rank, count)}, folder / "80000" / f"mp_rank_{rank:02d}_model_states.pt")
    config = folder / "cpm.json"
    config.write_text(str(CONFIG).replace("'", '"'), encoding="utf-8")
    return folder, config


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("naming", ["google", "huggingface"])
def test_shards_are_joined(count, naming, tmp_path, tolerance):
    weights = gpt2_weights()
    source, config = write_shards(tmp_path / "cpm", weights, count)
    convert("cpm_lm", source, tmp_path / "out", "--config", str(config), "--to", naming, "--dtype", "float32")
    if naming == "google":
        assert_same_weights(tmp_path / "out", weights)
    wanted = outputs(CONFIG, "cpm", weights)
    assert_same_outputs(outputs(tmp_path / "out", "cpm"), wanted, tolerance)


def test_folder_of_the_shards_and_old_torch_files(tmp_path):
    """The iteration's folder is a source too, and so are files from before torch 1.6."""
    weights = gpt2_weights()
    source, config = write_shards(tmp_path / "cpm", weights, 2)
    for rank in range(2):
        path = source / "80000" / f"mp_rank_{rank:02d}_model_states.pt"
        torch.save({"module": cut(weights, rank, 2)}, path, _use_new_zipfile_serialization=False)
    convert("cpm_lm", source / "80000", tmp_path / "out", "--config", str(config))
    assert_same_weights(tmp_path / "out", weights)


def test_half_stays_half(tmp_path):
    from bert4x.models import open_checkpoint

    source, config = write_shards(tmp_path / "cpm", gpt2_weights(), 2)
    convert("cpm_lm", source, tmp_path / "out", "--config", str(config), "--to", "huggingface")
    with open_checkpoint(tmp_path / "out") as checkpoint:
        assert {checkpoint.dtype(name) for name in checkpoint.names} == {"float16"}


def test_random_model_of_any_size(tmp_path):
    from scripts.convert_checkpoints import make_random_cpm

    sizes = {"layers": 1, "width": 64, "inner": 96, "vocab": 50, "positions": 8, "shards": 4}
    make_random_cpm.main([str(tmp_path / "cpm"), *(f"--{name}={value}" for name, value in sizes.items())])
    convert("cpm_lm", tmp_path / "cpm", tmp_path / "out", "--to", "huggingface")
    assert outputs(tmp_path / "out", "cpm").shape == (2, 6, 52)


def damaged(tmp_path, count=2):
    source, config = write_shards(tmp_path / "cpm", gpt2_weights(), count)
    return source, lambda: convert("cpm_lm", source, tmp_path / "out", "--config", str(config))


def test_missing_shard(tmp_path):
    source, run = damaged(tmp_path, 3)
    (source / "80000" / "mp_rank_01_model_states.pt").unlink()
    with pytest.raises(FileNotFoundError, match="mp_rank_01_model_states.pt"):
        run()
    assert not (tmp_path / "out").exists()


def test_too_few_and_too_many_shards(tmp_path):
    """The last shard missing shows only in the shapes."""
    source, run = damaged(tmp_path, 3)
    last = source / "80000" / "mp_rank_02_model_states.pt"
    shutil.copy(last, last.with_name("mp_rank_03_model_states.pt"))
    with pytest.raises(ValueError, match="has 4 shards; the shapes say 3"):
        run()
    last.with_name("mp_rank_03_model_states.pt").unlink()
    last.unlink()
    with pytest.raises(ValueError, match="has 2 shards; the shapes say 3"):
        run()


def test_shards_of_different_models(tmp_path):
    source, run = damaged(tmp_path)
    path = source / "80000" / "mp_rank_01_model_states.pt"
    torch.save({"module": cut(gpt2_weights(), 0, 1)}, path)
    with pytest.raises(ValueError, match="not shards of one model"):
        run()


def test_unknown_variable_in_a_shard(tmp_path):
    source, run = damaged(tmp_path, 1)
    path = source / "80000" / "mp_rank_00_model_states.pt"
    torch.save({"module": cut(gpt2_weights(), 0, 1) | {"transformer.strange": torch.zeros(3)}}, path)
    with pytest.raises(ValueError, match=r"unknown \(1\): transformer.strange"):
        run()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_inference_in_half_precision(dtype, tmp_path, tolerances):
    """The whole model in two bytes per weight computes what it computes in float32, as far as the type allows."""
    source, config = write_shards(tmp_path / "cpm", gpt2_weights(), 2)
    convert("cpm_lm", source, tmp_path / "out", "--config", str(config), "--to", "huggingface")
    wanted = outputs(tmp_path / "out", "cpm")
    assert_same_outputs(outputs(tmp_path / "out", "cpm", dtype=dtype), wanted, tolerances[dtype] * wanted.max())
