"""SpTokenizer on the three published models."""

import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from bert4x.tokenizers import SpTokenizer
from tests.tokenizers.oracle import HARD, random_texts

sentencepiece = pytest.importorskip("sentencepiece")

MODELS = {
    "cpm_chinese_vocab.model": {"token_start": None, "token_end": None},
    "mt5_cn_sentencepiece.model": {"token_start": None, "token_end": "</s>"},
    "albert_en_30k_spiece.model": {},
}
WELL_FORMED = [text for text in HARD + random_texts(300, seed=6) if not any(0xD800 <= ord(c) < 0xE000 for c in text)]


@pytest.fixture(scope="module", params=MODELS)
def path(request, shared_data):
    return shared_data / "vocabs" / request.param


@pytest.fixture(scope="module")
def tokenizer(path):
    return SpTokenizer(path, **MODELS[path.name])


@pytest.fixture(scope="module")
def cpm_path(shared_data):
    return shared_data / "vocabs" / "cpm_chinese_vocab.model"


def test_ids_are_those_of_the_model(path, tokenizer):
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    lead = [] if tokenizer._token_start is None else [tokenizer._token_start_id]
    tail = [] if tokenizer._token_end is None else [tokenizer._token_end_id]
    expected = [lead + model.encode_as_ids(text) + tail for text in WELL_FORMED]
    assert [tokenizer.encode(text)[0] for text in WELL_FORMED] == expected
    ids, segments = tokenizer.encode_batch(WELL_FORMED)
    for row, wanted in zip(ids.tolist(), expected, strict=True):
        assert row == wanted + [tokenizer._token_pad_id] * (len(row) - len(wanted))
    assert not segments.any()


def test_special_ids(shared_data):
    vocabs = shared_data / "vocabs"
    albert = SpTokenizer(vocabs / "albert_en_30k_spiece.model")
    names = ("_token_pad_id", "_token_unk_id", "_token_start_id", "_token_end_id", "_token_mask_id", "_vocab_size")
    assert [getattr(albert, name) for name in names] == [0, 1, 2, 3, 4, 30000]
    t5 = SpTokenizer(vocabs / "mt5_cn_sentencepiece.model", token_start=None, token_end="</s>")
    assert [getattr(t5, name) for name in names] == [0, 2, None, 1, None, 32596]
    cpm = SpTokenizer(vocabs / "cpm_chinese_vocab.model", token_start=None, token_end=None)
    assert [getattr(cpm, name) for name in names] == [5, 0, None, None, 6, 30000]
    with pytest.raises(ValueError, match="token_start=None"):
        SpTokenizer(vocabs / "mt5_cn_sentencepiece.model")


def test_cpm_example_of_the_specification(cpm_path):
    words = "今天 天气 ▂ 很 好 ▃ a"
    tokenizer = SpTokenizer(cpm_path, token_start=None, token_end=None)
    assert tokenizer.encode(words)[0] == [837, 4588, 8, 10, 46, 63, 8, 3, 1147]
    names = ["<unk>", "<s>", "</s>", "▃", "<sep>", "<pad>", "<mask>", "<eod>", "▁", ",", "▂"]
    assert tokenizer.tokens_to_ids(names) == list(range(11))

    def cut(text):
        table = {"今天天气 很好\na": ["今天", "天气", " ", "很", "好", "\n", "a"]}
        return [word.replace(" ", "▂").replace("\n", "▃") for word in table[text]]

    text = "今天天气 很好\na"
    tokenizer = SpTokenizer(cpm_path, token_start=None, token_end=None, pre_tokenize=cut)
    ids, _, spans = tokenizer.encode(text, offsets=True)
    assert ids == [837, 4588, 8, 10, 46, 63, 8, 3, 1147]
    assert [span and text[slice(*span)] for span in spans] == ["今天", "天气", None, " ", "很", "好", None, "\n", "a"]
    assert tokenizer.decode(ids).replace(" ", "").replace("▂", " ").replace("▃", "\n") == text


def test_token_translate(cpm_path):
    """As with the older CPM file, where a piece of another name stands for a newline."""
    tokenizer = SpTokenizer(cpm_path, token_start=None, token_end=None, token_translate={"▃": "<eod>"})
    ids, _, spans = tokenizer.encode("a▃a", offsets=True)
    assert tokenizer.ids_to_tokens(ids) == ["▁a", "<eod>", "a"] and spans == [(0, 1), (1, 2), (2, 3)]
    assert tokenizer.decode(ids) == "a▃a"


def test_a_file_of_another_kind_is_named(tmp_path):
    path = tmp_path / "spiece.model"
    path.write_text("[PAD]\n[UNK]\n", encoding="utf-8")
    with pytest.raises(ValueError, match="spiece.model is no SentencePiece model"):
        SpTokenizer(path)


def test_decode_takes_numpy_and_ids_beyond_the_model(tokenizer):
    text = "hello world 123"
    ids, _ = tokenizer.encode_batch([text, ""])
    assert tokenizer.decode(ids[0]) == tokenizer.decode(ids[0].tolist()) == text
    assert tokenizer.decode(np.append(ids[0], [tokenizer._vocab_size, 250099])) == text
    assert tokenizer.id_to_token(np.int64(tokenizer._vocab_size)) == "" and tokenizer.decode([]) == ""
    assert tokenizer.ids_to_tokens(ids[0][:3]) == tokenizer.tokenize(text)[:3]
    assert tokenizer.decode(None, tokens=tokenizer.tokenize(text)) == text


def test_byte_pieces(shared_data):
    tokenizer = SpTokenizer(shared_data / "vocabs" / "mt5_cn_sentencepiece.model", token_start=None, token_end="</s>")
    text = "a𠀀b"
    ids, _, spans = tokenizer.encode(text, offsets=True)
    assert [span for span in spans if span] == [(0, 1), (1, 2), (2, 3)] and tokenizer.decode(ids) == text


def test_offsets(tokenizer):
    """A span holds what its piece says, up to the model's own normalisation; spans come in order."""
    normalize = tokenizer._sp_model.normalize
    found = 0
    for text in ["Hello  world, ２０ ﬁne Cafe\u0301!", "今天天气很好。 a", *WELL_FORMED]:
        spans = tokenizer.encode(text, offsets=True)[2]
        pieces = tokenizer.tokenize(text)
        assert len(spans) == len(pieces)
        kept = [span for span in spans if span]
        assert all(0 <= start < end <= len(text) for start, end in kept)
        assert [start for start, _ in kept] == sorted(start for start, _ in kept)
        for piece, span in zip(pieces, spans, strict=True):
            if span and span[1] - span[0] == len(tokenizer.stem(piece)) and not piece.startswith("<0x"):
                found += normalize(text[slice(*span)]).replace("▁", "") == tokenizer.stem(piece)
    assert found > 1000


def test_offsets_by_hand(shared_data):
    tokenizer = SpTokenizer(shared_data / "vocabs" / "albert_en_30k_spiece.model")
    text = " new  york, ﬁne"
    spans = tokenizer.encode(text, offsets=True)[2]
    assert [text[slice(*span)] for span in spans if span] == ["new", "york", ",", "ﬁne"]
    assert tokenizer.rematch(text, tokenizer.tokenize(text))[1:3] == [[1, 2, 3], [6, 7, 8, 9]]


def test_truncation_and_pairs(shared_data):
    tokenizer = SpTokenizer(shared_data / "vocabs" / "albert_en_30k_spiece.model")
    ids, segments = tokenizer.encode("new york is big", "a b", maxlen=7)
    assert tokenizer.ids_to_tokens(ids) == "[CLS] ▁new ▁york [SEP] ▁a ▁b [SEP]".split()
    assert segments == [0, 0, 0, 0, 1, 1, 1]
    assert tokenizer.tokenize("new york is big", maxlen=4) == "[CLS] ▁new ▁york [SEP]".split()


def test_pickle_directory_and_threads(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path)
    expected = [tokenizer.encode(text, offsets=True) for text in WELL_FORMED[:100]]
    for copy in (pickle.loads(pickle.dumps(tokenizer)), SpTokenizer(tmp_path)):
        assert [copy.encode(text, offsets=True) for text in WELL_FORMED[:100]] == expected
    with ThreadPoolExecutor(4) as pool:
        rows = pool.map(lambda text: tokenizer.encode(text, offsets=True), WELL_FORMED[:100])
        assert list(rows) == expected
    (tmp_path / "other.model").write_bytes(b"")
    with pytest.raises(ValueError, match="one .model file"):
        SpTokenizer(tmp_path)


def test_importing_and_using_wordpiece_imports_neither_keras_nor_sentencepiece():
    code = (
        "import sys, bert4x.tokenizers as t; t.Tokenizer({'[UNK]': 0, '[CLS]': 1, '[SEP]': 2}, token_pad=None,"
        " token_mask=None).encode_batch(['a']);"
        "print({'keras', 'tensorflow', 'jax', 'torch', 'sentencepiece', 'tokenizers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0 and done.stdout == "set()\n", done.stdout + done.stderr
