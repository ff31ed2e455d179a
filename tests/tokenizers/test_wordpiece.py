"""Ids and tokens of WordPiece against the literal oracle, and what a tokenizer object must stand."""

import gzip
import pickle
import random
import threading
import unicodedata
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from bert4x.tokenizers import Tokenizer, wordpiece
from bert4x.tokenizers.text import _FOLDED, ALONE, RUNS, Memo
from tests.tokenizers import oracle
from tests.tokenizers.oracle import HARD, SMALL_VOCAB, random_texts


def content(tokenizer, text):
    return tokenizer.encode(text)[0][1:-1]


def batch_rows(tokenizer, texts):
    ids, _ = tokenizer.encode_batch(texts)
    pad, end = tokenizer._token_pad_id, tokenizer._token_end_id
    rows = []
    for row in ids.tolist():
        while row[-1] == pad and row[-1] != end:
            row.pop()
        rows.append(row[1:-1])
    return rows


def test_ids_equal_the_oracle_on_hard_texts(any_tokenizer):
    expected = [oracle.ids(text, any_tokenizer._token_dict, any_tokenizer._do_lower_case) for text in HARD]
    assert [content(any_tokenizer, text) for text in HARD] == expected
    assert batch_rows(any_tokenizer, HARD) == expected


def test_ids_equal_the_oracle_on_random_strings(any_tokenizer):
    texts = random_texts(20_000)
    if any_tokenizer._vocab_size < 20_000:
        texts = texts[::5]
    vocab, lower = any_tokenizer._token_dict, any_tokenizer._do_lower_case
    for text, row in zip(texts, batch_rows(any_tokenizer, texts), strict=True):
        words = oracle.tokens(text, vocab, lower)
        assert any_tokenizer.tokenize(text)[1:-1] == words, repr(text)
        assert row == [vocab.get(word, vocab["[UNK]"]) for word in words], repr(text)
    assert [content(any_tokenizer, text) for text in texts[:500]] == batch_rows(any_tokenizer, texts[:500])


def test_ids_equal_the_oracle_on_real_reviews(any_tokenizer, shared_data):
    with gzip.open(shared_data / "sentiment" / "sentiment.test.tsv.gz", "rt", encoding="utf-8") as file:
        texts = [line.rsplit("\t", 1)[0] for line in file][:400]
    vocab, lower = any_tokenizer._token_dict, any_tokenizer._do_lower_case
    assert batch_rows(any_tokenizer, texts) == [oracle.ids(text, vocab, lower) for text in texts]


@pytest.mark.parametrize("lower", [True, False])
def test_googles_order_of_steps_gives_the_same_words(lower):
    """Google folds word by word after cleaning; that can matter only to a capital sigma or reordered marks beside a
    dropped character."""
    for text in HARD + random_texts(20_000, seed=1):
        if oracle.google_words(text, lower) != oracle.words(text, lower):
            assert lower and ("Σ" in text or any(_FOLDED[ord(c)] == "\0" for c in text)), repr(text)
            assert oracle.google_words(oracle.clean(text), lower) == oracle.words(oracle.clean(text), lower)


def test_every_code_point_is_treated_as_the_oracle_does():
    source = random.Random(0)
    for code in range(0x110000):
        # A million code points are private or unassigned and behave alike: a sample of them will do.
        if unicodedata.category(chr(code)) in ("Co", "Cn") and source.random() > 0.02:
            continue
        text = f"x{chr(code)}y"
        for lower in (True, False):
            if wordpiece.space_out(text, lower).split() != oracle.words(text, lower):
                pytest.fail(f"U+{code:04X}, lower {lower}: {wordpiece.space_out(text, lower).split()}")


def test_characters_that_stand_alone_do_so():
    assert all(_FOLDED[ord(c)] == f" {c} " and wordpiece.space_out(c, False) == f" {c} " for c in ALONE)
    assert RUNS.split(ALONE + " ") == [ALONE + " "]
    assert RUNS.split("我ab c\u3000😀，d") == ["我", "ab", " ", "c\u3000😀", "，", "d", ""]


@pytest.mark.parametrize("text, expected", [
    ("unaffable", "un ##aff ##able"),
    ("Café", "cafe"),
    ("我爱北京2020年", "我 爱 北 京 20 ##20 年"),
    ("abc abd", "a ##b ##c abd"),
    ("un\u200baffable", "un ##aff ##able"),
    ("hello\u3000world\u00a0hello", "hello world hello"),
    ("it's", "it ' s"),
    ("[MASK]", "[ mask ]"),
    ("", ""),
])
def test_examples_of_the_specification(small, text, expected):
    assert small.tokenize(text) == ["[CLS]", *expected.split(), "[SEP]"]


def test_an_unknown_word_keeps_its_text_and_gets_the_unknown_id(small):
    tokens = small.tokenize("abd Übung " + "a" * 201)
    assert tokens[1:-1] == ["abd", "ubung", "a" * 201]
    assert small.tokens_to_ids(tokens)[1:-1] == [small._token_unk_id] * 3
    assert small._word_maxlen == 200 and Tokenizer(SMALL_VOCAB, word_maxlen=2).tokenize("abc")[1:-1] == ["abc"]


def test_attributes_of_old_scripts(chinese):
    assert chinese._token_dict["我"] == 2769 and chinese._token_dict_inv[2769] == "我"
    assert (chinese._token_pad_id, chinese._token_unk_id, chinese._token_start_id) == (0, 100, 101)
    assert (chinese._token_end_id, chinese._token_mask_id, chinese._vocab_size) == (102, 103, 21128)
    assert chinese.token_to_id("。") == 511 and chinese.id_to_token(511) == "。"
    assert chinese.tokens_to_ids(["我", "nope!"]) == [2769, 100]
    assert chinese.ids_to_tokens([2769, 100]) == ["我", "[UNK]"]
    with pytest.raises(ValueError, match="below 21128; got 30000"):
        chinese.ids_to_tokens([30000])


def test_special_tokens_in_a_text_are_kept_whole_if_asked():
    tokenizer = Tokenizer(SMALL_VOCAB, do_lower_case=True, special_tokens=True)
    assert tokenizer.tokenize("Hello[MASK][SEP] [mask] a")[1:-1] == "hello [MASK] [SEP] [ mask ] a".split()
    ids, _, spans = tokenizer.encode("Hello[MASK] a", offsets=True)
    assert ids == tokenizer.tokens_to_ids("[CLS] hello [MASK] a [SEP]".split())
    assert spans == [None, (0, 5), (5, 11), (12, 13), None]
    assert tokenizer.encode_batch(["Hello[MASK] a"])[0].tolist() == [ids]
    assert Tokenizer(SMALL_VOCAB, special_tokens=["[MASK]"]).tokenize("[MASK][SEP]")[1:3] == ["[MASK]", "["]
    with pytest.raises(ValueError, match="lacks"):
        Tokenizer(SMALL_VOCAB, special_tokens=["<nope>"])


def test_pre_tokenize_keeps_words_of_the_vocabulary_whole():
    vocab = {**SMALL_VOCAB, "北京": 100}
    tokenizer = Tokenizer(vocab, True, pre_tokenize=lambda text: text.replace("北京", " 北京 ").split(" "))
    assert tokenizer.tokenize("我爱北京Unaffable")[1:-1] == "我 爱 北京 un ##aff ##able".split()
    assert tokenizer.encode("爱北京UN", offsets=True)[2] == [None, (0, 1), (1, 3), (3, 5), None]
    assert tokenizer.encode_batch(["爱北京"])[0].tolist() == [[2, vocab["爱"], 100, 3]]


def test_token_translate_is_applied_and_inverted():
    tokenizer = Tokenizer(SMALL_VOCAB, token_translate={"hello": "[MASK]"})
    assert tokenizer.tokenize("hello world")[1:-1] == ["[MASK]", "world"]
    assert tokenizer.encode("hello")[0] == [2, 4, 3] and tokenizer.encode_batch(["hello"])[0].tolist() == [[2, 4, 3]]
    assert tokenizer.decode([2, 4, 9, 3]) == "hello world"
    assert tokenizer.rematch("a hello", ["a", "[MASK]"]) == [[0], [2, 3, 4, 5, 6]]
    swapped = Tokenizer(SMALL_VOCAB, token_translate={"我": "爱"})
    assert swapped.encode_batch(["我"])[0].tolist() == [swapped.encode("我")[0]] == [[2, SMALL_VOCAB["爱"], 3]]


def test_without_start_and_end():
    tokenizer = Tokenizer(SMALL_VOCAB, token_start=None, token_end=None)
    assert tokenizer.tokenize("a b") == ["a", "b"] and tokenizer._token_end_id is None
    assert tokenizer.encode("a b", "c", offsets=True) == (
        tokenizer.tokens_to_ids(["a", "b", "c"]), [0, 0, 1], [(0, 1), (2, 3), (0, 1)])


@pytest.mark.parametrize("text, expected", [
    ("hello , world . 我 爱 unaffable", "hello, world. 我爱unaffable"),
    ("a ! b", "a! b"),
    ("( a ) 《 我 》 “ 北 ”", "(a) 《我》“北”"),
    ("it ' s 20 . 20", "it's 20.20"),
])
def test_decode(small, text, expected):
    tokens = ["[CLS]", *small._pieces(text), "[SEP]", "[PAD]"]
    assert small.decode(None, tokens) == expected


def test_decode_of_ids(small):
    ids, _ = small.encode_batch(["我爱北京2020年 unaffable!", "a"])
    assert small.decode(ids[0]) == "我爱北京2020年unaffable!" and small.decode(np.array(ids[1])) == "a"
    assert small.decode([]) == ""


def test_pickle_keeps_everything_but_the_memos(chinese):
    copy = pickle.loads(pickle.dumps(chinese))
    texts = HARD + random_texts(200)
    assert copy._run_ids == {} and copy._alone is None
    assert (copy.encode_batch(texts)[0] == chinese.encode_batch(texts)[0]).all()
    assert copy.encode("Café", offsets=True) == chinese.encode("Café", offsets=True)


def test_threads_get_the_right_ids(monkeypatch, shared_data):
    monkeypatch.setattr(wordpiece, "MEMO_SIZE", 16)  # so that the threads empty the tables under each other
    tokenizer = Tokenizer(shared_data / "vocabs" / "bert_chinese_vocab.txt", do_lower_case=True)
    texts = random_texts(400, seed=2)
    expected = [oracle.ids(text, tokenizer._token_dict, True) for text in texts]
    barrier = threading.Barrier(4)

    def run(_):
        barrier.wait()
        return [content(tokenizer, text) for text in texts], batch_rows(tokenizer, texts)

    with ThreadPoolExecutor(4) as pool:
        for singles, batch in pool.map(run, range(4)):
            assert singles == expected and batch == expected


def test_the_memo_is_bounded(monkeypatch):
    monkeypatch.setattr(wordpiece, "MEMO_SIZE", 100)
    tokenizer = Tokenizer(SMALL_VOCAB)
    texts = [f"x{i} " + "y" * (i % 60) for i in range(1000)]
    tokenizer.encode_batch(texts)
    for text in texts:
        tokenizer.tokenize(text)
        tokenizer.encode(text)
    for memo in (tokenizer._word_pieces, tokenizer._word_ids, tokenizer._run_ids):
        assert 0 < len(memo) <= 100 and max(map(len, memo)) <= wordpiece.MEMO_LONGEST
    calls = []
    memo = Memo(lambda key: calls.append(key) or key, 2)
    assert [memo[key] for key in (1, 1, 2, 3, 1)] == [1, 1, 2, 3, 1] and calls == [1, 2, 3, 1] and len(memo) == 2


def test_missing_special_tokens_are_reported():
    lacking = {token: i for token, i in SMALL_VOCAB.items() if token not in ("[MASK]", "[PAD]")}
    with pytest.warns(UserWarning, match=r"lacks \[PAD\] and \[MASK\]"):
        tokenizer = Tokenizer(lacking)
    assert tokenizer._token_mask_id is None and tokenizer.encode_batch(["a", "a b"])[0][0, -1] == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Tokenizer(lacking, token_mask=None, token_pad=None)
    for name, option in (("[UNK]", "token_unk="), ("[CLS]", "token_start=None"), ("[SEP]", "token_end=None")):
        lacking = {token: i for token, i in SMALL_VOCAB.items() if token != name}
        with pytest.raises(ValueError, match=option):
            Tokenizer(lacking)
    with pytest.raises(TypeError, match="max_length"):
        Tokenizer(SMALL_VOCAB, max_length=3)
