"""SpTokenizer as T5 uses it: the cut vocabulary of mT5 with its keep_tokens, and a model trained here."""

import io
import json

import numpy as np
import pytest

from bert4x.tokenizers import SpTokenizer

sentencepiece = pytest.importorskip("sentencepiece")

SENTINELS = 100


def t5(path):
    return SpTokenizer(path, token_start=None, token_end="</s>")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A model in T5's layout: <pad> 0, </s> 1, <unk> 2, no start token; the sentinels lie beyond it."""
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat", "a dog and a cat", "hello world"] * 10), model_writer=file,
        vocab_size=60, hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2)
    path = tmp_path_factory.mktemp("t5") / "spiece.model"
    path.write_bytes(file.getvalue())
    return path


def test_a_trained_model(small):
    tokenizer = t5(small)
    assert (tokenizer._token_pad_id, tokenizer._token_end_id, tokenizer._token_unk_id) == (0, 1, 2)
    model = sentencepiece.SentencePieceProcessor(model_file=str(small))
    ids, segments = tokenizer.encode("the cat sat")
    assert ids == [*model.encode_as_ids("the cat sat"), 1] and segments == [0] * len(ids)
    text = "hello  Zat"
    ids, _, spans = tokenizer.encode(text, offsets=True)
    assert tokenizer._token_unk_id in ids and spans[-1] is None
    assert "".join(text[slice(*span)] for span in spans if span) == "helloZat"
    rows, _ = tokenizer.encode_batch(["the cat", "a"])
    short = [*model.encode_as_ids("a"), 1]
    assert rows[1].tolist() == short + [0] * (rows.shape[1] - len(short))
    # What a decoder gives: the start id 0, the text, </s>, and rows beyond the file.
    outputs = np.array([0, *model.encode_as_ids("the cat"), 1, tokenizer._vocab_size + SENTINELS])
    assert tokenizer.decode(outputs) == "the cat"


def test_keep_tokens_of_the_cut_mt5_vocabulary(shared_data):
    tokenizer = t5(shared_data / "vocabs" / "mt5_cn_sentencepiece.model")
    path = shared_data / "vocabs" / "mt5_cn_keep_tokens.json"
    keep_tokens = json.loads(path.read_text(encoding="utf-8"))
    # Piece i of the cut file is row keep_tokens[i] of the full table; two more rows are kept than there are pieces.
    assert len(keep_tokens) == tokenizer._vocab_size + 2 == len(set(keep_tokens)) and max(keep_tokens) < 250112
    assert keep_tokens[:3] == [0, 1, 2] and tokenizer.ids_to_tokens([0, 1, 2]) == ["<pad>", "</s>", "<unk>"]
    for k in range(SENTINELS):
        assert keep_tokens[tokenizer.token_to_id(f"▁<extra_id_{k}>")] == 250099 - k
    text = "中国的首都是北京。"
    ids, _ = tokenizer.encode(text)
    assert ids[-1] == 1 and tokenizer._token_unk_id not in ids
    # A model with these rows may predict the last two, which are no text.
    assert tokenizer.decode([0, *ids, len(keep_tokens) - 2, len(keep_tokens) - 1]) == text


def test_the_english_albert_model(shared_data):
    tokenizer = SpTokenizer(shared_data / "vocabs" / "albert_en_30k_spiece.model")
    ids, segments = tokenizer.encode("hello world", "it works", maxlen=np.int64(16))
    assert tokenizer.ids_to_tokens(np.array(ids))[:3] == ["[CLS]", "▁hello", "▁world"]
    assert ids.count(3) == 2 and segments[-1] == 1
    assert tokenizer.decode(np.array(ids)) == "hello world it works"
