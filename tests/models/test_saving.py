"""Models that users build on top: Keras files, int8, LoRA, checkpoints of them, the directory of one model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from bert4x.layers import GlobalAveragePooling1D
from bert4x.models import CheckpointError, build_transformer_model, enable_lora, load_weights, save_pretrained
from tests.conftest import ROOT
from tests.models.reference_weights import arrays, randomize, to_numpy
from tests.models.tiny import CONFIG, FAMILIES, IDS, SEGMENTS, build, checkpoint_of, run

VARIANTS = {family: {} for family in FAMILIES} | {
    "lm": {"application": "lm", "with_mlm": True},
    "unilm": {"application": "unilm", "with_mlm": "linear", "residual_attention_scores": True},
    "many options": {"attention_mask": True, "hierarchical_position": 0.3, "custom_position_ids": True, "remat": True},
}


def on_top(name):
    """A classifier on a model of ours, and its inputs."""
    builder = build(name if name in FAMILIES else "bert", dropout_rate=0.1, **VARIANTS[name])
    pooled = GlobalAveragePooling1D(name="mean")(builder.model.output)
    model = keras.Model(builder.model.inputs, keras.layers.Dense(3, name="classes")(pooled), name="classifier")
    randomize(model, seed=1)
    inputs = {"Input-Token": IDS, "Input-Segment": SEGMENTS}
    inputs["Input-Position"], inputs["Input-Attention-Mask"] = IDS % 8, np.ones((2, 5, 5), "int32")
    return model, [inputs[t.name] for t in model.inputs]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Every variant as .keras and .weights.h5, with its inputs and outputs."""
    folder = tmp_path_factory.mktemp("saved")
    for name in VARIANTS:
        model, inputs = on_top(name)
        model.save(folder / f"{name}.keras")
        model.save_weights(folder / f"{name}.weights.h5")
        np.savez(folder / f"{name}.npz", output=to_numpy(model(inputs)), **{f"i{k}": a for k, a in enumerate(inputs)})
    return folder


FRESH = """
import sys, pathlib, numpy as np
import bert4x.layers
import keras
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.keras")):
    model = keras.saving.load_model(path)
    held = np.load(path.with_suffix(".npz"))
    output = keras.ops.convert_to_numpy(model([held[f"i{k}"] for k in range(len(model.inputs))]))
    print(path.stem, np.array_equal(output, held["output"]))
assert "bert4x.models" not in sys.modules
"""


def python(script, *arguments):
    """Output lines of a fresh Python on the same backend."""
    result = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], cwd=ROOT, env=os.environ, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.splitlines()


def test_keras_files_load_in_a_fresh_process_with_the_layers_alone(saved):
    """`import bert4x.layers` is all that load_model needs (decision 3)."""
    assert python(FRESH, saved) == [f"{name} True" for name in sorted(VARIANTS)]


@pytest.mark.parametrize("name", VARIANTS)
def test_weight_files_fill_a_new_model(saved, name):
    model, inputs = on_top(name)
    randomize(model, seed=2)
    load_weights(model, saved / f"{name}.weights.h5")
    np.testing.assert_array_equal(to_numpy(model(inputs)), np.load(saved / f"{name}.npz")["output"])


@pytest.mark.parametrize("name", VARIANTS)
def test_no_lambda_in_our_graphs(saved, name):
    """A Lambda would be refused by Keras' safe mode. Nor is any layer anonymous: names come from the contract."""
    model = keras.saving.load_model(saved / f"{name}.keras")
    ours = [layer for layer in model.layers if layer.name not in ("mean", "classes")]
    assert not any(isinstance(layer, keras.layers.Lambda) for layer in ours)
    assert all(layer.name[0].isupper() for layer in ours), [layer.name for layer in ours]


def test_a_loaded_model_goes_on_training(saved, tmp_path):
    model = keras.saving.load_model(saved / "bert.keras")
    model.compile(optimizer="adam", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = arrays(model)
    model.fit([IDS, SEGMENTS], np.array([0, 1]), epochs=1, verbose=0)
    after = arrays(model)
    for path in ("classes/kernel", "Embedding-Token/embeddings", "Transformer-0-FeedForward/inner_0/kernel"):
        assert np.abs(after[path] - before[path]).max() > 0
    model.save(tmp_path / "again.keras")
    again = keras.saving.load_model(tmp_path / "again.keras")
    np.testing.assert_array_equal(to_numpy(again([IDS, SEGMENTS])), to_numpy(model([IDS, SEGMENTS])))


@pytest.mark.parametrize(
    ("method", "name", "advice"),
    [("save", "model.bin", r"\.keras"), ("save_weights", "model.h5", r"\.weights\.h5")],
)
def test_a_wrong_suffix_is_an_error_with_the_right_one(tmp_path, method, name, advice):
    with pytest.raises(ValueError, match=advice):
        getattr(build("bert").model, method)(tmp_path / name)


def test_keras_files_are_no_checkpoints_and_the_error_says_what_reads_them(saved):
    for suffix in (".keras", ".weights.h5"):
        with pytest.raises(CheckpointError, match="model.load_weights"):
            build_transformer_model(CONFIG, saved / f"bert{suffix}")


def test_load_weights_refuses_a_model_of_another_depth(tmp_path):
    """Keras itself takes the first layers of a deeper file without a word (decision 24)."""
    deep, shallow = build("bert", num_hidden_layers=3).model, build("bert").model
    deep.save_weights(tmp_path / "deep.weights.h5")
    before = arrays(shallow)
    with pytest.raises(CheckpointError, match="holds 53 variables and the model 37; nothing was loaded") as error:
        load_weights(shallow, tmp_path / "deep.weights.h5")
    assert "only in the model: nothing" in str(error.value)
    for path, array in arrays(shallow).items():
        np.testing.assert_array_equal(array, before[path])
    shallow.save_weights(tmp_path / "shallow.weights.h5")
    with pytest.raises(CheckpointError, match="only in the file: nothing"):
        load_weights(deep, tmp_path / "shallow.weights.h5")


def test_load_weights_of_a_compiled_model(tmp_path):
    """The optimizer's variables and the metrics' are neither demanded nor refused."""
    model = build("bert").model
    model.compile(optimizer="adam", loss="mse", metrics=["mae"])
    model.fit([IDS, SEGMENTS], np.zeros((2, 5, 12), "float32"), verbose=0)
    model.save_weights(tmp_path / "model.weights.h5")
    plain = build("bert").model
    load_weights(plain, tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(to_numpy(plain([IDS, SEGMENTS])), to_numpy(model([IDS, SEGMENTS])))
    plain.save_weights(tmp_path / "plain.weights.h5")
    load_weights(model, tmp_path / "plain.weights.h5")


# ---- int8 and LoRA


@pytest.mark.parametrize("family", ["bert", "albert", "roformer_v2"])
def test_quantised_models_save_and_load_equal(family, tmp_path):
    model = build(family, with_mlm="linear").model
    before = to_numpy(model([IDS, SEGMENTS]))
    model.quantize("int8")
    wanted = to_numpy(model([IDS, SEGMENTS]))
    assert 0 < np.abs(wanted - before).max() < 0.2 * np.abs(before).max()
    kinds = {v.path: v.dtype for v in model.variables}
    assert sum(kind == "int8" for kind in kinds.values()) >= 6
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(to_numpy(again([IDS, SEGMENTS])), wanted)
    assert {v.path: v.dtype for v in again.variables} == kinds
    with pytest.raises(ValueError, match="quantised to int8: a checkpoint holds float weights"):
        model.builder.save_weights_as_checkpoint(tmp_path / "model.safetensors")


def with_lora():
    """A model whose LoRA matrices are not zero, at another alpha than the rank."""
    builder = build("bert", with_mlm="linear")
    enable_lora(builder.model, 2, alpha=5)
    random = np.random.default_rng(0)
    for variable in builder.model.variables:
        if "lora" in variable.path:
            variable.assign(0.3 * random.standard_normal(variable.shape))
    return builder


def test_lora_models_save_and_load_equal(tmp_path, tolerance):
    """Keras merges the additions into the kernel it saves and starts new ones at zero."""
    builder = with_lora()
    wanted = run(builder)[0]
    builder.model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(to_numpy(again([IDS, SEGMENTS])), wanted, rtol=0, atol=tolerance)
    layer = again.get_layer("Transformer-0-MultiHeadSelfAttention")
    assert (layer.query.lora_rank, layer.query.lora_alpha, layer.key.lora_rank) == (2, 5, None)
    trained = {v.path for v in builder.model.trainable_variables}
    assert {v.path for v in again.trainable_variables} == trained


@pytest.mark.parametrize("file", ["model.safetensors", "bert_model.ckpt"])
def test_lora_is_merged_into_a_checkpoint(file, tmp_path, tolerance):
    builder = with_lora()
    builder.save_weights_as_checkpoint(tmp_path / file)
    plain = build("bert", checkpoint=tmp_path / file, with_mlm="linear")
    assert plain.load_report.unused == []
    np.testing.assert_allclose(run(plain)[0], run(builder)[0], rtol=0, atol=tolerance)


def test_enable_lora_twice_is_once():
    builder = with_lora()
    count = len(builder.model.variables)
    enable_lora(builder.model, 2)
    assert len(builder.model.variables) == count


def test_what_is_frozen_stays_frozen(tmp_path):
    """Also in the layers inside layers, whose state Keras does not keep by itself."""
    model = build_transformer_model(CONFIG, trainable=["Transformer-1-"])
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    trained = {v.path for v in model.trainable_variables}
    assert {v.path for v in again.trainable_variables} == trained
    again.get_layer("Transformer-0-FeedForward").trainable = True
    assert len(again.trainable_variables) == len(trained) + 4


# ---- one directory


@pytest.mark.parametrize("family", FAMILIES)
def test_directory_of_a_model(family, tmp_path):
    """config.json and model.safetensors are enough; the options of the shape come back."""
    shape = {"embedding_size": 8, "attention_head_size": 6, "layer_norm_eps": 1e-6, "hidden_act": "relu"}
    shape["max_position"] = 7
    builder = build(family, with_mlm=True, segment_vocab_size=3, **shape)
    save_pretrained(builder.model, None, tmp_path / "new" / "folder")
    config = json.loads((tmp_path / "new" / "folder" / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == ("albert" if family == "albert_unshared" else family)
    again = build_transformer_model(tmp_path / "new" / "folder", model=family, with_mlm=True, return_keras_model=False)
    for name in (*shape, "segment_vocab_size", "vocab_size", "num_attention_heads"):
        assert getattr(again, name) == getattr(builder, name), name
    np.testing.assert_array_equal(run(again)[0], run(builder)[0])


def test_directory_without_weights_and_without_wanting_them(tmp_path):
    builder = build("bert")
    save_pretrained(builder, None, tmp_path)
    fresh = build_transformer_model(tmp_path, checkpoint_path=False, return_keras_model=False)
    assert fresh.load_report is None
    (tmp_path / "model.safetensors").unlink()
    assert build_transformer_model(tmp_path, return_keras_model=False).load_report is None
    loaded = build_transformer_model(tmp_path, checkpoint_of(builder), return_keras_model=False)
    np.testing.assert_array_equal(run(loaded)[0], run(builder)[0])


def test_save_pretrained_refuses_what_is_not_ours(tmp_path):
    model, _ = on_top("bert")
    with pytest.raises(TypeError, match="made by build_transformer_model"):
        save_pretrained(model, None, tmp_path)


# ---- memory

MEMORY = r"""
import re, sys
from bert4x.models import build_transformer_model, open_checkpoint
config, path, tiny_config, tiny = eval(sys.argv[1]), sys.argv[2], eval(sys.argv[3]), sys.argv[4]
build_transformer_model(tiny_config, tiny)  # what the libraries need once does not count
def mebibytes(kind):  # not getrusage: its peak is that of the parent, if that was larger
    return int(re.search(kind + r":\s*(\d+)", open("/proc/self/status", encoding="utf-8").read())[1]) / 1024
before = mebibytes("VmRSS")
model = build_transformer_model(config, path)
print(mebibytes("VmHWM") - before, model.count_params() * 4 / 2**20)
"""


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".safetensors", ""], ids=["safetensors", "tensorflow"])
def test_loading_holds_three_copies_of_the_largest_tensor_at_most(suffix, tmp_path):
    """Peak of a fresh process that loads 340 MB, of which the token table is 41 MB (decision 23)."""
    if not Path("/proc/self/status").is_file():
        pytest.skip("the peak of a process's memory is read from /proc, which is not here")
    config = {**CONFIG, "vocab_size": 20000, "hidden_size": 512, "num_hidden_layers": 24, "intermediate_size": 2048,
              "num_attention_heads": 8}
    model = build_transformer_model(config)
    model.builder.save_weights_as_checkpoint(tmp_path / f"model{suffix}")
    del model
    build("bert").save_weights_as_checkpoint(tmp_path / f"tiny{suffix}")
    line = python(MEMORY, config, tmp_path / f"model{suffix}", CONFIG, tmp_path / f"tiny{suffix}")[-1]
    grown, size = map(float, line.split())
    largest = 20000 * 512 * 4 / 2**20
    assert grown < size + 3 * largest + 60, f"{grown:.0f} MiB for weights of {size:.0f} MiB"
