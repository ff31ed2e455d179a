"""Vocabulary files and tokenizer directories: what is read, what is refused, what comes back."""

import json

import pytest

from bert4x.tokenizers import Tokenizer, character_vocab, load_vocab, save_vocab
from tests.tokenizers.oracle import HARD, SMALL, SMALL_VOCAB


def write(tmp_path, data):
    path = tmp_path / "vocab.txt"
    path.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8"))
    return path


@pytest.mark.parametrize("name, size, ids", [
    ("bert_chinese_vocab.txt", 21128, {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, "。": 511,
                                       "\u2028": 343, "##\u2028": 13502, "##😎": 21127}),
    ("bert_uncased_vocab.txt", 30522, {"[PAD]": 0, "[UNK]": 100, "[MASK]": 103, "##～": 30521}),
    ("gpt2_ml_clue_vocab.txt", 8021, {"[PAD]": 0, "[MASK]": 103, "。": 545, "▁": 1}),
    ("cdial_gpt_vocab.txt", 13088, {"[CLS]": 0, "[PAD]": 1, "[SEP]": 2, "[UNK]": 3, "，": 4, "的": 5}),
])
def test_published_vocabularies(shared_data, tmp_path, name, size, ids):
    path = shared_data / "vocabs" / name
    vocab = load_vocab(path)
    assert len(vocab) == size and list(vocab.values()) == list(range(size))
    assert {token: vocab.get(token) for token in ids} == ids
    save_vocab(tmp_path / "copy.txt", vocab)
    assert (tmp_path / "copy.txt").read_bytes() == path.read_bytes().removesuffix(b"\n") + b"\n"


def test_cdial_vocabulary_lacks_the_mask_token_and_says_so(shared_data):
    with pytest.warns(UserWarning, match=r"lacks \[MASK\]") as caught:
        tokenizer = Tokenizer(shared_data / "vocabs" / "cdial_gpt_vocab.txt")
    assert caught[0].filename == __file__
    assert tokenizer._token_pad_id == 1 and tokenizer._token_mask_id is None


def test_simplified_vocabulary(shared_data):
    path = shared_data / "vocabs" / "bert_chinese_vocab.txt"
    first = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    full = load_vocab(path)
    vocab, keep_tokens = load_vocab(path, simplified=True, startswith=first)
    assert len(vocab) == len(keep_tokens) == 13584  # also what bert4keras 0.11.5 gives
    assert keep_tokens[:6] == [0, 100, 101, 102, 106, 107]
    assert all(full[token] == keep_tokens[index] for token, index in vocab.items())
    assert "##我" not in vocab and "[unused1]" not in vocab and "我" in vocab and "##a" in vocab
    assert keep_tokens[4:] == sorted(keep_tokens[4:])
    with pytest.raises(ValueError, match=r"lacks \['<nope>'\]"):
        load_vocab(path, simplified=True, startswith=["<nope>"])
    same = Tokenizer(full, do_lower_case=True), Tokenizer(vocab, do_lower_case=True, token_mask=None)
    for text in ["我爱北京2020年, hello!", "Unaffable（完）"]:
        assert [keep_tokens[i] for i in same[1].encode(text)[0]] == same[0].encode(text)[0]


def test_line_endings_fields_and_byte_order_mark(tmp_path):
    assert load_vocab(write(tmp_path, "\ufeffa\r\n b 17\r\nc\td")) == {"a": 0, "b": 1, "c": 2}
    assert load_vocab(write(tmp_path, "a\u2028\n\u2028\n\u3000\n")) == {"a\u2028": 0, "\u2028": 1, "\u3000": 2}
    assert load_vocab(write(tmp_path, "我\n爱\n".encode("gbk")), encoding="gbk") == {"我": 0, "爱": 1}


@pytest.mark.parametrize("data, message", [
    ("a\nb\na\n", "line 3 repeats 'a' of line 1"),
    ("a\n\nb\n", "line 2 is blank"),
    ("a\n \t\nb\n", "line 2 is blank"),
    ("a\nb\n\n", "line 3 is blank"),
    ("a\n\n\nb\nb\n", r"line 2 is blank; line 3 is blank; line 5 repeats 'b' of line 4 \(3 in all\)"),
    (b"a\nb\n\xff\xfe\n", r"line 3 of .*vocab.txt is not"),
])
def test_damaged_files_are_refused_with_line_numbers(tmp_path, data, message):
    path = write(tmp_path, data)
    with pytest.raises(ValueError, match=message):
        load_vocab(path)
    with pytest.raises(ValueError, match=message):
        Tokenizer(path)


def test_a_damaged_file_may_be_accepted_without_moving_ids(tmp_path):
    assert load_vocab(write(tmp_path, "a\n\nb\na\nc\n"), strict=False) == {"a": 3, "b": 2, "c": 4}


def test_the_blank_token_of_transformers_can_be_written(tmp_path):
    vocab = {**SMALL_VOCAB, "": len(SMALL_VOCAB)}
    model = {"type": "WordPiece", "vocab": vocab}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model}), encoding="utf-8")
    Tokenizer(tmp_path).save_pretrained(tmp_path / "copy")
    assert Tokenizer(tmp_path / "copy")._token_dict == {**SMALL_VOCAB, "\u2028": len(SMALL_VOCAB)}


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_vocab(tmp_path / "none.txt")
    with pytest.raises(FileNotFoundError, match="vocab.txt"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize("vocab, message", [
    ({"a": 0, "b": 2}, "'b' has 2 in place of 1"), ({"a": 0, "": 1}, "got ''"), ({"a b": 0}, "got 'a b'"),
    ({"a\n": 0}, "one field"), ({"a": 0, "b": 0}, "each once"),
])
def test_what_cannot_be_written_is_refused(tmp_path, vocab, message):
    with pytest.raises(ValueError, match=message):
        save_vocab(tmp_path / "vocab.txt", vocab)
    assert not (tmp_path / "vocab.txt").exists()


def test_a_directory_gives_back_the_tokenizer(tmp_path):
    tokenizer = Tokenizer(SMALL_VOCAB, True, 7, special_tokens=True, token_start="[MASK]", token_end=None,
                          token_translate={"hello": "world"})
    tokenizer.save_pretrained(tmp_path / "new" / "folder")
    copy = Tokenizer(tmp_path / "new" / "folder")
    for text in HARD:
        assert copy.encode(text, offsets=True) == tokenizer.encode(text, offsets=True)
    assert copy._token_dict == SMALL_VOCAB and copy._token_end is None and copy._do_lower_case
    assert Tokenizer(tmp_path / "new" / "folder", do_lower_case=False)._do_lower_case is False


def test_a_pre_tokenizer_is_not_saved_and_that_is_said(tmp_path):
    with pytest.warns(UserWarning, match="pre_tokenize"):
        Tokenizer(SMALL_VOCAB, pre_tokenize=str.split).save_pretrained(tmp_path)


@pytest.mark.parametrize("config, expected", [
    (None, False), ({"do_lower_case": True}, True), ({"do_lower_case": False}, False), ({}, True),
    ({"do_lower_case": True, "strip_accents": True, "tokenize_chinese_chars": True}, True),
])
def test_settings_of_a_directory_of_others(tmp_path, config, expected):
    write(tmp_path, "\n".join(SMALL))
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert Tokenizer(tmp_path)._do_lower_case is expected
    assert Tokenizer(str(tmp_path), do_lower_case=not expected)._do_lower_case is not expected


def test_names_of_special_tokens_come_from_the_directory(tmp_path):
    write(tmp_path, "<p>\n<u>\n<s>\n</s>\n<m>\na")
    names = {"pad_token": "<p>", "unk_token": "<u>", "cls_token": "<s>", "mask_token": "<m>"}
    names["sep_token"] = {"content": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    assert Tokenizer(tmp_path).encode("a b")[0] == [2, 5, 1, 3]


@pytest.mark.parametrize("config", [{"do_lower_case": True, "strip_accents": False}, {"tokenize_chinese_chars": False}])
def test_another_pipeline_is_refused(tmp_path, config):
    write(tmp_path, "\n".join(SMALL))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match="says otherwise"):
        Tokenizer(tmp_path)


def test_tokenizer_json_without_vocab_txt(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"model": {"type": "WordPiece", "vocab": SMALL_VOCAB}}), encoding="utf-8")
    assert Tokenizer(tmp_path, do_lower_case=True)._token_dict == SMALL_VOCAB
    path.write_text(json.dumps({"model": {"type": "BPE", "vocab": {}}}), encoding="utf-8")
    with pytest.raises(ValueError, match="of type 'BPE'"):
        Tokenizer(tmp_path)


def test_character_vocab():
    vocab = character_vocab(["Aa b 中", "中ab 国"], min_count=2)
    assert list(vocab) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "中"]
    assert list(character_vocab(["aab"], limit=1, min_count=1)) == [*list(vocab)[:5], "a"]
    ids, _ = Tokenizer(vocab, do_lower_case=True, pre_tokenize=list).encode("A国")
    assert ids == [2, 5, 1, 3]
