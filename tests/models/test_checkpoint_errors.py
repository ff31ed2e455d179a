"""What readers say of checkpoints that are absent, damaged, incomplete or not checkpoints at all."""

import json
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from bert4x.models import tensor_file
from bert4x.models.checkpoint import CheckpointError, open_checkpoint, write_tensorflow
from tests.models.checkpoint_files import as_items, save_tensorflow


@pytest.fixture(scope="module")
def tf():
    return pytest.importorskip("tensorflow")


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def test_absent_paths_tell_what_is_there(tmp_path):
    save_file({"a": np.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(FileNotFoundError, match="did you mean model.safetensors.*holds model.safetensors"):
        open_checkpoint(tmp_path / "modle.safetensors")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        open_checkpoint(tmp_path / "nowhere" / "bert_model.ckpt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds nothing"):
        open_checkpoint(tmp_path / "empty")
    (tmp_path / "empty" / "tf_model.h5").touch()
    with pytest.raises(FileNotFoundError, match="holds tf_model.h5"):
        open_checkpoint(tmp_path / "empty")


def test_unknown_suffix_and_type(tmp_path):
    for name, hint in (("w.weights.h5", "load_weights"), ("w.npz", ".safetensors")):
        (tmp_path / name).touch()
        with pytest.raises(CheckpointError, match=hint):
            open_checkpoint(tmp_path / name)
    with pytest.raises(TypeError):
        open_checkpoint(None)


def test_unknown_variable_names_near_ones():
    checkpoint = open_checkpoint({"encoder.weight": np.zeros(2)})
    for ask in (checkpoint.read, checkpoint.shape, checkpoint.dtype):
        with pytest.raises(CheckpointError, match="no 'encoder.weigth'; near matches: encoder.weight"):
            ask("encoder.weigth")
    with pytest.raises(CheckpointError, match="first names: encoder.weight"):
        checkpoint.read("x")
    assert "encoder.weight" in checkpoint and "x" not in checkpoint


def test_bad_rows(tmp_path):
    save_file({"a": np.zeros((3, 2)), "s": np.array(1.0)}, tmp_path / "m.safetensors")
    for source in (tmp_path / "m.safetensors", {"a": np.zeros((3, 2)), "s": np.array(1.0)}):
        checkpoint = open_checkpoint(source)
        for rows in ([3], [-1]):
            with pytest.raises(IndexError, match="rows 0 to 2"):
                checkpoint.read("a", rows)
        for rows in ([0.5], [True, False, True], 1, [[0]]):
            with pytest.raises(TypeError, match="flat list of integers"):
                checkpoint.read("a", rows)
        with pytest.raises(IndexError, match="scalar"):
            checkpoint.read("s", [0])


def test_permission_error_passes(tmp_path, monkeypatch):
    def barred(path, *args, **options):
        raise PermissionError(13, "Permission denied", str(path))

    save_file({"a": np.zeros(1)}, tmp_path / "m.safetensors")
    monkeypatch.setattr(tensor_file, "open", barred, raising=False)
    with pytest.raises(PermissionError):
        open_checkpoint(tmp_path / "m.safetensors")


@pytest.mark.parametrize("library, name", [("torch", "x.bin"), ("tensorflow", "x.index")])
def test_missing_library_is_named_with_its_pip_line(tmp_path, monkeypatch, library, name):
    (tmp_path / name).touch()
    (tmp_path / "x.data-00000-of-00001").touch()
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match="pip install"):
        open_checkpoint(tmp_path / name)


def flip_byte(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 0xFF
    path.write_bytes(data)


def write_header(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_truncated_safetensors(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"a": np.ones((50, 3)), "b": np.ones(4)}, path)
    whole = path.read_bytes()
    for size in (0, 5, 8, 60, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="m.safetensors"):
            open_checkpoint(path)
    path.write_bytes(whole)
    checkpoint = open_checkpoint(path)
    path.write_bytes(whole[:-10])  # while it is open
    last = "a" if checkpoint._offsets["a"] else "b"
    for rows in (None, [0, len(np.ones(checkpoint.shape(last))) - 1]):
        with pytest.raises(CheckpointError, match=f"ends inside {last}"):
            checkpoint.read(last, rows)


@pytest.mark.parametrize(
    "header",
    [
        b"not json", b"\xff\xfe", b"[1, 2]", b"[" * 20_000,
        {"a": 3}, {"a": {"dtype": "F32"}}, {"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}},
        {"a": {"dtype": "F32", "shape": ["1"], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
    ],
)  # fmt: skip
def test_corrupt_safetensors_header(tmp_path, header):
    write_header(tmp_path / "m.safetensors", header, b"1234")
    with pytest.raises(CheckpointError, match="m.safetensors"):
        open_checkpoint(tmp_path / "m.safetensors")


def test_header_length_beyond_the_file(tmp_path):
    (tmp_path / "m.safetensors").write_bytes((2**63).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="9223372036854775808 of 10 bytes"):
        open_checkpoint(tmp_path / "m.safetensors")


def test_damaged_tensorflow_checkpoint(tmp_path, tf):
    prefix, index, data = (tmp_path / f"m{suffix}" for suffix in ("", ".index", ".data-00000-of-00001"))
    save_tensorflow(tf, prefix, {"a": np.ones((100, 10)), "b": np.ones(3)})
    whole = data.read_bytes()
    flip_byte(data, 100)
    with pytest.raises(CheckpointError, match="variable a is damaged"):
        open_checkpoint(prefix).read("a")
    data.write_bytes(whole[:1000])
    for rows in (None, [0]):
        with pytest.raises(CheckpointError, match="variable a is damaged"):
            open_checkpoint(prefix).read("a", rows)
    data.unlink()
    with pytest.raises(CheckpointError, match="m.index is there, but .*missing: .*m.data-00000-of-00001"):
        open_checkpoint(prefix)
    data.write_bytes(whole)
    index.write_bytes(b"garbage" * 20)
    with pytest.raises(CheckpointError, match="m is damaged"):
        open_checkpoint(prefix)
    index.unlink()
    with pytest.raises(CheckpointError, match="m.index is missing"):
        open_checkpoint(prefix)


def test_missing_second_data_file(tmp_path, tf):
    write_tensorflow(tmp_path / "m", as_items({"a": np.ones(10), "b": np.ones(10)}))
    (tmp_path / "m.data-00001-of-00002").unlink()
    with pytest.raises(CheckpointError, match="missing: .*m.data-00001-of-00002"):
        open_checkpoint(tmp_path / "m")


class Evil:
    """Would run code if it were unpickled freely."""

    def __reduce__(self):
        return os.mkdir, ("evil",)


def test_torch_files_that_are_no_state_dict(tmp_path, torch, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.zeros(3000)}, "whole.bin")
    torch.save({"w": Evil()}, "evil.bin")
    torch.save(torch.nn.Linear(2, 2), "module.bin")
    torch.save({"epoch": 3}, "numbers.bin")
    torch.save([torch.zeros(2)], "list.bin")
    contents = {
        "empty.bin": b"", "garbage.bin": b"garbage" * 20, "zip.bin": b"PK\x03\x04garbage",
        "pickle.bin": pickle.dumps(3), "cut.bin": Path("whole.bin").read_bytes()[:5000],
    }  # fmt: skip
    for name, content in contents.items():
        Path(name).write_bytes(content)
    for name in [*contents, "evil.bin", "module.bin", "numbers.bin", "list.bin"]:
        with pytest.raises(CheckpointError, match=name):
            open_checkpoint(name)
    assert not Path("evil").exists()
