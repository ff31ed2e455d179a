"""`open` with its line index, gzip and UTF-8, and the conversions of strings."""

import gzip
import importlib
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert4x.snippets import (
    convert_to_str,
    convert_to_unicode,
    find_splits,
    is_string,
    lowercase_and_normalize,
    open,
    string_matching,
    strQ2B,
)

LINES = ["第一行\n", "\n", "third\n", "没有换行"]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_bytes("".join(LINES).encode("utf-8"))
    return path


def test_plain_reading_and_writing(path, tmp_path):
    with open(path) as file:
        assert list(file) == LINES
    with open(str(tmp_path / "new.txt"), "w") as file:
        file.write("汉字\n")
    assert (tmp_path / "new.txt").read_bytes() == "汉字\n".encode()
    with open(path, "rb") as file:
        assert file.readline() == "第一行\n".encode()
    with open(path) as file:
        assert file.read() == "".join(LINES)
        assert next(file, None) is None


def test_lines_by_number(path):
    with open(path, indexable=True) as file:
        assert len(file) == 4
        assert [file[i] for i in range(4)] == list(file) == list(file) == LINES
        assert file[-1] == LINES[-1] and file[1:3] == LINES[1:3]
        with pytest.raises(IndexError):
            file[4]
        with pytest.raises(IndexError):
            file[-5]


def test_indexed_lines_from_threads(tmp_path):
    path = tmp_path / "many.txt"
    path.write_text("".join(f"{i}\n" for i in range(2000)), encoding="utf-8")
    wrong = []
    with open(path, indexable=True) as file:
        def read():
            wrong.extend(i for i in range(2000) if file[i] != f"{i}\n")
        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_line_ends_and_empty_file(tmp_path):
    path = tmp_path / "dos.txt"
    path.write_bytes(b"a\r\nb\r\n")
    with open(path) as plain, open(path, indexable=True) as indexed:
        assert list(plain) == list(indexed) == ["a\n", "b\n"]
    path.write_bytes(b"")
    with open(path, indexable=True) as file:
        assert len(file) == 0 and list(file) == [] and file


def test_gzip(tmp_path):
    path = tmp_path / "lines.txt.gz"
    with open(path, "w") as file:
        file.write("".join(LINES))
    with gzip.open(path, "rt", encoding="utf-8") as file:
        assert list(file) == LINES
    with open(path) as file:
        assert list(file) == LINES


def test_open_errors(path, tmp_path):
    with pytest.raises(FileNotFoundError):
        open(tmp_path / "absent.txt")
    with pytest.raises(ValueError, match="uncompressed"):
        open(tmp_path / "lines.txt.gz", indexable=True)
    with pytest.raises(ValueError, match="reading"):
        open(path, "w", indexable=True)
    with open(path) as file, pytest.raises(TypeError, match="indexable=True"):
        file[0]
    path.write_bytes("汉".encode("gbk"))
    with open(path) as file, pytest.raises(UnicodeDecodeError):
        file.read()
    with open(path, encoding="gbk") as file:
        assert file.read() == "汉"
    with open(path, errors="ignore") as file:
        file.read()


def test_strings():
    assert is_string("a") and not is_string(b"a")
    assert convert_to_unicode("汉".encode()) == convert_to_str("汉") == "汉"
    assert convert_to_str("汉".encode("gbk"), "gbk") == "汉"
    with pytest.raises(TypeError, match="got int"):
        convert_to_unicode(3)
    assert string_matching("Transformer-0-MultiHeadSelfAttention-Norm", ["Norm", "bias"])
    assert not string_matching("dense/kernel", ["Norm", "bias$"])
    assert lowercase_and_normalize("Crème Brûlée") == "creme brulee"


def test_half_width():
    assert strQ2B("ＡＢＣ，　１２！～") == "ABC, 12!~"
    assert strQ2B("。《汉字》￥") == "。《汉字》￥"


@given(st.text())
def test_half_width_keeps_the_length_and_is_idempotent(text):
    assert len(strQ2B(text)) == len(text)
    assert strQ2B(strQ2B(text)) == strQ2B(text)


def test_the_package_is_light_and_complete():
    code = "import bert4x.snippets, sys; sys.exit('keras' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    package = importlib.import_module("bert4x.snippets")
    assert len(set(package.__all__)) == len(package.__all__)
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError):
        package.absent  # noqa: B018


def test_find_splits(tmp_path):
    for name in ("a.train.tsv.gz", "a.dev.tsv.gz", "b.valid.tsv", "b.test.tsv", "notes.txt"):
        (tmp_path / name).touch()
    found = find_splits(tmp_path / "a")
    assert found == [str(tmp_path / "a.train.tsv.gz"), str(tmp_path / "a.dev.tsv.gz"), None]
    found = find_splits(tmp_path / "b", ("dev|valid", "test"))
    assert found == [str(tmp_path / "b.valid.tsv"), str(tmp_path / "b.test.tsv")]
    with pytest.raises(FileNotFoundError, match="must hold files named train, dev.valid, test"):
        find_splits(tmp_path / "c")
