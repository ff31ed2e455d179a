"""Writers of checkpoints: bit-equal, read by other libraries, sharded, and safe when they fail."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bert4x.models.checkpoint import open_checkpoint, write_safetensors, write_tensorflow
from tests.models.checkpoint_files import as_items, assert_holds, assert_same, make_arrays


@pytest.fixture(scope="module")
def tf():
    return pytest.importorskip("tensorflow")


def test_written_safetensors_are_read_by_the_safetensors_library(tmp_path):
    path = write_safetensors(tmp_path / "new" / "model.safetensors", as_items(make_arrays()))
    assert_holds(open_checkpoint(path), make_arrays())
    for name, array in load_file(path).items():
        assert_same(array, make_arrays()[name])
    data = Path(path).read_bytes()
    size = int.from_bytes(data[:8], "little")
    assert size % 8 == 0
    assert json.loads(data[8 : 8 + size])["__metadata__"] == {"format": "pt"}


def test_written_shards(tmp_path):
    arrays = make_arrays()
    path = write_safetensors(tmp_path / "model.safetensors", as_items(arrays), max_shard_bytes=100)
    assert path.endswith("model.safetensors.index.json")
    shards = sorted(tmp_path.glob("*.safetensors"))
    count = len(shards)
    names = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    assert count > 2 and [shard.name for shard in shards] == names
    for shard in shards:
        held = load_file(shard)
        assert len(held) == 1 or sum(array.nbytes for array in held.values()) <= 100
    assert_holds(open_checkpoint(tmp_path), arrays)
    index = json.loads(Path(path).read_text(encoding="utf-8"))
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in arrays.values())


def test_overwriting_removes_files_of_the_older_checkpoint_only(tmp_path):
    (tmp_path / "other-00001-of-00002.safetensors").touch()
    sizes = (None, 100, 300, None)
    for value, limit in enumerate(sizes):
        arrays = {name: np.full(20, value, "float32") for name in "abcdefgh"}
        write_safetensors(tmp_path / "model.safetensors", as_items(arrays), max_shard_bytes=limit)
        assert_holds(open_checkpoint(tmp_path), arrays)
    assert sorted(os.listdir(tmp_path)) == ["model.safetensors", "other-00001-of-00002.safetensors"]


def test_written_tensorflow_checkpoint_is_read_by_tensorflow(tmp_path, tf):
    arrays = {name.replace(".", "/"): array for name, array in make_arrays().items()}
    prefix = tmp_path / "new" / "bert_model.ckpt"
    write_tensorflow(prefix, as_items(arrays))
    assert_holds(open_checkpoint(prefix), arrays)
    reader = tf.train.load_checkpoint(str(prefix))
    for name, array in arrays.items():
        assert_same(np.asarray(reader.get_tensor(name)), array)
    first = arrays["bert/table"] + 1
    write_tensorflow(prefix, as_items({"bert/table": first}))  # fewer parts: the older data files go
    files = sorted(os.listdir(prefix.parent))
    assert files == ["bert_model.ckpt.data-00000-of-00001", "bert_model.ckpt.index"]
    assert_holds(open_checkpoint(prefix), {"bert/table": first})


def test_bfloat16_is_written_to_tensorflow(tmp_path, tf):
    write_tensorflow(tmp_path / "m", [("w", (2,), "bfloat16", lambda: np.array([1.5, 0.1], "float32"))])
    tensor = tf.train.load_checkpoint(str(tmp_path / "m")).get_tensor("w")
    assert tensor.dtype.name == "bfloat16"
    np.testing.assert_array_equal(tensor, tf.cast(tf.constant([1.5, 0.1]), tf.bfloat16).numpy())


@pytest.mark.parametrize("write", [write_safetensors, write_tensorflow])
def test_failed_write_leaves_the_older_files_and_no_litter(tmp_path, request, write):
    if write is write_tensorflow:
        request.getfixturevalue("tf")
    old = {"a": np.ones(4, "float32"), "b": np.zeros(4, "float32")}
    write(tmp_path / "m.safetensors", as_items(old))
    before = sorted(os.listdir(tmp_path))

    def fail():
        raise RuntimeError("no more")

    bad = [("b", (4,), "float32", fail), ("b", (5,), "float32", lambda: old["b"])]
    for item, error in zip(bad, (RuntimeError, ValueError), strict=True):
        with pytest.raises(error):
            write(tmp_path / "m.safetensors", [("a", (4,), "float32", lambda: old["b"]), item])
    with pytest.raises(RuntimeError, match="no more"):
        write(tmp_path / "new", [("b", (4,), "float32", fail)])
    assert sorted(os.listdir(tmp_path)) == before
    assert_holds(open_checkpoint(tmp_path / "m.safetensors"), old)


@pytest.mark.parametrize("write", [write_safetensors, write_tensorflow])
def test_writers_check_their_items(tmp_path, request, write):
    if write is write_tensorflow:
        request.getfixturevalue("tf")
    item = ("a", (2,), "float32", lambda: np.ones(2, "float32"))
    with pytest.raises(ValueError, match="a comes twice"):
        write(tmp_path / "m", [item, item])
    with pytest.raises(ValueError, match="nothing to write"):
        write(tmp_path / "m", [])
    with pytest.raises(ValueError, match="dtype complex64"):
        write(tmp_path / "m", [("a", (2,), "complex64", item[3])])
    with pytest.raises(TypeError, match="int32"):
        write(tmp_path / "m", [("a", (2,), "int32", item[3])])
    assert os.listdir(tmp_path) == []


def test_read_and_write_the_same_file(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file(make_arrays(), path)
    checkpoint = open_checkpoint(path)
    items = [
        (name, checkpoint.shape(name), checkpoint.dtype(name), lambda name=name: checkpoint.read(name))
        for name in checkpoint.names
    ]
    write_safetensors(path, items)
    assert_holds(open_checkpoint(path), make_arrays())
