"""CPMTokenizer: the check values of the specification, both releases of the model file, with and without jieba."""

import io
import pickle
import subprocess
import sys

import numpy as np
import pytest

from bert4x.tokenizers import CPMTokenizer

sentencepiece = pytest.importorskip("sentencepiece")

TEXTS = [
    "今天天气 很好\na",
    "北京:中国\n巴黎:法国\n东京",
    " 前后都有空格 ",
    "\n\n两个换行\n",
    "the cat 猫",
    "",
]


def words(text):
    """A segmenter for tests: the words of the specification, else characters."""
    cut = []
    while text:
        word = next((word for word in ("今天", "天气", "北京", "中国") if text.startswith(word)), text[0])
        cut.append(word)
        text = text[len(word) :]
    return cut


@pytest.fixture(scope="module")
def new_path(shared_data):
    return shared_data / "vocabs" / "cpm_chinese_vocab.model"


@pytest.fixture(scope="module")
def old_path(new_path, tmp_path_factory):
    """The file as it was first released: piece 3 is a control piece called <cls>."""
    model = model_proto(new_path.read_bytes())
    model.pieces[3].piece, model.pieces[3].type = "<cls>", 3
    path = tmp_path_factory.mktemp("old") / "chinese_vocab.model"
    path.write_bytes(model.SerializeToString())
    return path


def model_proto(data):
    pb = pytest.importorskip("sentencepiece.sentencepiece_model_pb2", reason="needs protobuf", exc_type=ImportError)
    model = pb.ModelProto()
    model.ParseFromString(data)
    return model


@pytest.fixture(params=("new_path", "old_path"))
def path(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def jieba():
    return pytest.importorskip("jieba", reason='needs jieba: pip install "bert4x[cpm]"')


def test_the_example_of_the_specification(path):
    tokenizer = CPMTokenizer(path, pre_tokenize=words)
    text = "今天天气 很好\na"
    ids, segments, spans = tokenizer.encode(text, offsets=True)
    assert ids == [837, 4588, 8, 10, 46, 63, 8, 3, 1147] and segments == [0] * 9
    assert [span and text[slice(*span)] for span in spans] == ["今天", "天气", None, " ", "很", "好", None, "\n", "a"]
    assert tokenizer.decode(ids) == tokenizer.decode(np.array(ids)) == text
    assert tokenizer.rematch(text, tokenizer.tokenize(text)) == [[0, 1], [2, 3], [], [4], [5], [6], [], [7], [8]]


def test_special_ids(path):
    tokenizer = CPMTokenizer(path, pre_tokenize=words)
    names = ["<unk>", "<s>", "</s>", "<sep>", "<pad>", "<mask>", "<eod>", "▁", ",", "▂"]
    assert tokenizer.tokens_to_ids(names) == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10]
    assert tokenizer._token_pad_id == 5 and tokenizer._token_start is tokenizer._token_end is None
    assert tokenizer.encode("\n")[0][-1] == 3 and tokenizer.encode("a b")[0][-2] == 10
    ids, _ = tokenizer.encode_batch(["今天", "今天天气"])
    assert ids.tolist() == [[837, 5], [837, 4588]]


def test_both_files_give_the_same(new_path, old_path):
    new, old = (CPMTokenizer(path, pre_tokenize=words) for path in (new_path, old_path))
    for text in TEXTS:
        ids = new.encode(text)[0]
        assert old.encode(text, offsets=True)[0::2] == new.encode(text, offsets=True)[0::2]
        assert old.decode(ids) == new.decode(ids) == text


def test_a_newline_among_unknown_characters(path):
    """Without a segmenter; SentencePiece makes one piece of a run of characters that it lacks."""
    tokenizer = CPMTokenizer(path, pre_tokenize=None)
    assert tokenizer.encode("a☃\n\n☃b")[0] == [1147, 0, 3, 3, 0, 1720]
    assert tokenizer.encode_batch(["a☃\n\n☃b"])[0].tolist() == [[1147, 0, 3, 3, 0, 1720]]
    assert tokenizer.decode(tokenizer.encode("今天 天气\na")[0]) == "今天 天气\na"


def test_jieba_cuts_the_words(path, jieba):
    tokenizer = CPMTokenizer(path)
    for text in TEXTS:
        cut = [word.replace(" ", "▂").replace("\n", "▃") for word in jieba.lcut(text)]
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        expected = [3 if piece == "▃" else model.piece_to_id(piece) for piece in model.encode_as_pieces(" ".join(cut))]
        assert tokenizer.encode(text)[0] == expected
        assert tokenizer.decode(expected) == text


def test_pickle_and_directory(path, tmp_path):
    tokenizer = CPMTokenizer(path, pre_tokenize=words)
    tokenizer.save_pretrained(tmp_path)
    for copy in (pickle.loads(pickle.dumps(tokenizer)), CPMTokenizer(tmp_path, pre_tokenize=words)):
        assert [copy.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]
        assert copy.decode([837, 3, 10]) == tokenizer.decode([837, 3, 10]) == "今天\n "
    pickle.loads(pickle.dumps(CPMTokenizer(path)))  # jieba is asked for when a text comes


def test_without_jieba(tmp_path):
    """A model trained here, so that this runs without the shared data."""
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["今天 天气 很 好 ▂ ▃"] * 20), model_writer=file, vocab_size=24, hard_vocab_limit=False,
        user_defined_symbols=["▂", "▃"], minloglevel=2)
    path = tmp_path / "small.model"
    path.write_bytes(file.getvalue())
    code = (
        "import sys; sys.modules['jieba'] = None; from bert4x.tokenizers import CPMTokenizer\n"
        f"path = {str(path)!r}\n"
        "whole = CPMTokenizer(path, pre_tokenize=None)\n"
        "print(whole.decode(whole.encode('今天 很\\n好')[0]) == '今天 很\\n好')\n"
        "try: CPMTokenizer(path).encode('今天')\nexcept ImportError as error: print(error)"
    )
    command = [sys.executable, "-X", "utf8", "-c", code]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120)
    assert done.stdout.startswith("True\n"), done.stderr
    assert 'pip install "bert4x[cpm]"' in done.stdout and "pre_tokenize=None" in done.stdout
