"""Generative families in use: half precision, saved Keras models, int8, LoRA, training, recomputation."""

import subprocess
import sys

import keras
import numpy as np
import pytest

from bert4x.models import build_transformer_model, enable_lora
from tests.layers.helpers import quick_compilation
from tests.models.generative import DECODERS, IDS, REAL, ROWS, T5, TARGETS, build, google_weights, inputs, run
from tests.models.reference_weights import to_numpy

SOME = ["gpt2", "t5.1.1", "llama-qkv-biases"]


@pytest.mark.parametrize("row", ROWS)
def test_bfloat16(row, tolerances):
    """Finite, float32 logits near those of float32; relative to the largest logit."""
    full = build(row)
    half = build(row, google_weights(full), dtype="mixed_bfloat16")
    assert half.model.output.dtype == "float32" and half.model.layers[-2].compute_dtype == "bfloat16"
    ours, wanted = run(half), run(full)
    assert np.isfinite(ours).all()
    real = np.ones(wanted.shape[:2], bool) if row in T5 else REAL
    assert np.abs(ours - wanted)[real].max() <= tolerances["bfloat16"] * np.abs(wanted[real]).max()


@pytest.mark.parametrize("row", SOME)
def test_float16(row, tolerances):
    full = build(row)
    ours, wanted = run(build(row, google_weights(full), dtype="mixed_float16")), run(full)
    assert np.abs(ours - wanted)[:1].max() <= 2 * tolerances["float16"] * np.abs(wanted).max()


def test_keras_files_in_a_new_process(tmp_path, tolerance):
    """Every family saved as .keras and run by a process that only imports the layers."""
    for row in ROWS:
        builder = build(row)
        builder.model.save(tmp_path / f"{row}.keras")
        arrays = inputs(builder.model)
        arrays = arrays if isinstance(arrays, list) else [arrays]
        np.savez(tmp_path / f"{row}.npz", *map(to_numpy, arrays), outputs=run(builder))
    code = (
        "import sys, pathlib, numpy, keras\n"
        "import bert4x.layers, bert4x.models\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).glob('*.keras')):\n"
        "    model, file = keras.saving.load_model(path), numpy.load(path.with_suffix('.npz'))\n"
        "    arrays = [file[name] for name in file.files if name != 'outputs']\n"
        "    outputs = model(arrays if len(arrays) > 1 else arrays[0])\n"
        "    outputs = keras.ops.convert_to_numpy(outputs)\n"
        "    numpy.testing.assert_allclose(outputs, file['outputs'], rtol=0, atol=float(sys.argv[2]))\n"
        "    print(path.stem)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(tolerance)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(done.stdout.split()) == sorted(ROWS)


@pytest.mark.parametrize("row", SOME)
def test_int8(row, tmp_path):
    """Quantised near the original, saved and loaded equal; its float weights can no longer be written."""
    builder = build(row)
    wanted = run(builder)
    builder.model.quantize("int8")
    ours = run(builder)
    real = slice(None) if row in T5 else slice(1)
    assert 0 < np.abs(ours - wanted)[real].max() <= 0.1 * np.abs(wanted).max()
    builder.model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(run(loaded), ours, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="quantised to int8"):
        builder.save_weights_as_checkpoint(tmp_path / "model.safetensors")


@pytest.mark.parametrize("row", SOME)
def test_lora(row, tmp_path, tolerance):
    """Only query and value learn; the written file holds the merged kernels."""
    builder = build(row)
    before = run(builder)
    enable_lora(builder.model, 2)
    np.testing.assert_allclose(run(builder), before, rtol=0, atol=tolerance)
    blocks = sum("MultiHead" in layer.name and "Attention-" not in layer.name for layer in builder.model.layers)
    kernels = [v for v in builder.model.trainable_weights if "lora" in v.path]
    assert len(kernels) == 4 * blocks
    assert all("query" in v.path or "value" in v.path for v in builder.model.trainable_weights)
    random = np.random.default_rng(0)
    for variable in kernels:
        variable.assign(random.normal(size=variable.shape))
    builder.save_weights_as_checkpoint(tmp_path / "model.safetensors")
    merged = build(row, tmp_path / "model.safetensors")
    assert np.abs(run(merged) - before).max() > 1e-3
    np.testing.assert_allclose(run(merged), run(builder), rtol=0, atol=10 * tolerance)


@pytest.mark.parametrize(("row", "remat"), [("gpt2", False), ("gpt2", True), ("t5.1.0", True), ("llama-window", True)])
def test_training(row, remat):
    """A few steps of fit with dropout and masks, recomputed or not: the loss falls, every weight moves."""
    model = build(row, remat=remat, **({"with_lm": True} if row in T5 else {"final_activation": "softmax"})).model
    before = [to_numpy(weight) for weight in model.trainable_weights]
    model.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy", jit_compile=quick_compilation())
    arrays = [to_numpy(array) for array in inputs(model)] if row in T5 else IDS
    targets = (TARGETS if row in T5 else IDS) % 3 + 1
    losses = model.fit(arrays, targets, epochs=8, batch_size=2, verbose=0).history["loss"]
    assert losses[-1] < losses[0] and np.isfinite(losses).all()
    moved = [not np.array_equal(to_numpy(w), b) for w, b in zip(model.trainable_weights, before, strict=True)]
    assert np.mean(moved) > 0.95  # the biases of keys have no gradient


@pytest.mark.parametrize("row", SOME)
@pytest.mark.parametrize("options", [{"fused_attention": True}, {"remat": True}, {"check_ids": True}])
def test_ways_of_computing(row, options, tolerance):
    """Fused kernels, recomputation and checks of ids change no number."""
    plain = build(row, attention_dropout_rate=0.0)
    other = build(row, google_weights(plain), attention_dropout_rate=0.0, **options)
    np.testing.assert_allclose(run(other), run(plain), rtol=0, atol=tolerance)


def test_ids_out_of_range():
    with pytest.raises(Exception, match="17|out of range|indices"):
        run(build("llama", check_ids=True), ids=IDS + 20)


@pytest.mark.parametrize("row", SOME)
def test_a_length_that_is_fixed(row, tolerance):
    free = build(row)
    fixed = build(row, google_weights(free), sequence_length=5)
    assert {tensor.shape[1] for tensor in fixed.inputs} == {5}
    targets = np.pad(TARGETS, [(0, 0), (0, 1)])
    np.testing.assert_allclose(run(fixed, targets=targets), run(free, targets=targets), rtol=0, atol=tolerance)


def test_too_long_a_sequence():
    """GPT2's table has nine positions; LLaMA has no table."""
    with pytest.raises(ValueError, match="covers 9 positions; got a sequence of 10 tokens"):
        run(build("gpt2"), ids=np.ones((1, 10), "int32"))
    assert run(build("llama"), ids=np.ones((1, 40), "int32")).shape == (1, 40, 17)
    assert run(build("gpt2", hierarchical_position=True), ids=np.ones((1, 20), "int32")).shape == (1, 20, 17)


def test_a_longer_table_is_cut(tolerance):
    """The first positions of a checkpoint are taken; a longer table than the file's is an error."""
    builder = build("gpt2")
    short = build("gpt2", google_weights(builder), max_position=5)
    np.testing.assert_allclose(run(short), run(builder), rtol=0, atol=tolerance)
    with pytest.raises(ValueError, match="wrong shape: gpt/embeddings/position_embeddings"):
        build("gpt2", google_weights(builder), max_position=12)


def test_trainable_patterns():
    model, config = ROWS["t5.1.1"]
    frozen = build_transformer_model(config, model=model, trainable="Decoder")
    assert {v.path.split("-")[0] for v in frozen.trainable_weights} == {"Decoder"}
    assert set(DECODERS) | set(T5) == set(ROWS)
