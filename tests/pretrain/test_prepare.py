"""Corpus to shards: sentences, vocabulary, words, packing, and going on where a run stopped."""

import json

import corpus
import prepare
import pytest
import records
import sources
import vocabulary

from bert4x.tokenizers import Tokenizer
from tests.pretrain.conftest import made_up_documents


def test_sentences_keep_what_ends_them_and_lose_nothing():
    text = "他说：“走吧！”然后就走了。\n第二行没有句号\n真的？！是的。"
    assert corpus.sentences(text) == ["他说：“走吧！”", "然后就走了。", "第二行没有句号", "真的？！", "是的。"]
    assert corpus.clauses("他来了，又走了；真快：是的") == ["他来了，", "又走了；", "真快：", "是的"]
    for document in made_up_documents(20):
        parts = corpus.sentences(document)
        assert "".join(parts) == document
        assert all("".join(corpus.clauses(part)) == part for part in parts)


def test_documents_of_all_kinds_of_files(tmp_path):
    (tmp_path / "a.txt").write_text("一\n二\n\n\n三\n", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"text": "四"}\n', encoding="utf-8")
    (tmp_path / "c.md").write_text("no", encoding="utf-8")
    files = corpus.find_files([tmp_path])
    assert [corpus.read_documents(file) for file in files] == [["一\n二", "三"], ["四"]]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        corpus.find_files([tmp_path / "nowhere"])


def test_the_last_share_of_the_documents_is_held_out():
    train, held_out = corpus.split_held_out(list(range(100)), 0.02)
    assert (train, held_out) == (list(range(98)), [98, 99])
    assert corpus.split_held_out(["only"], 0.5) == (["only"], [])


def test_vocabulary_holds_characters_pieces_and_what_is_to_be_covered():
    texts = ["learning and learned 天天 好好", "learn 天 坏"] * 3
    vocab = vocabulary.build_vocabulary(texts, 200, pieces=60, cover=["鑫鑫", "森"])
    assert list(vocab)[:5] == list(vocabulary.SPECIAL)
    assert list(vocab.values()) == list(range(len(vocab)))
    assert {"天", "好", "坏", "鑫"} <= set(vocab) and "森" not in vocab
    assert {"learn", "l", "##l"} <= set(vocab)
    assert vocab == vocabulary.build_vocabulary(texts, 200, pieces=60, cover=["鑫鑫", "森"])
    tokenizer = Tokenizer(vocab, do_lower_case=True)
    assert tokenizer._token_unk_id not in tokenizer.encode("Learning 天")[0]


def test_without_the_tokenizers_package_frequent_words_are_whole(monkeypatch):
    monkeypatch.setattr(vocabulary.importlib.util, "find_spec", lambda name: None)
    vocab = vocabulary.build_vocabulary(["model model mode"], 100, pieces=30)
    assert "model" in vocab and "mode" not in vocab and "##e" in vocab


def test_a_word_of_the_segmenter_is_one_word(tokenizer):
    pytest.importorskip("jieba")
    ids, marks = prepare.tokenize_clause(tokenizer, "我们喜欢图书馆", prepare.words_of_jieba, records.SENTENCE)
    assert tokenizer.ids_to_tokens(ids) == list("我们喜欢图书馆")
    assert marks == [2, 0, 1, 0, 1, 0, 0]


def test_without_a_segmenter_only_pieces_belong_together(tokenizer):
    ids, marks = prepare.tokenize_clause(tokenizer, "好 20242024", prepare.words_of_tokens, records.DOCUMENT)
    pieces = tokenizer.ids_to_tokens(ids)
    assert marks == [3] + [0 if piece.startswith("##") else 1 for piece in pieces[1:]] and len(marks) > 2


def test_rows_are_full_of_clauses_and_hold_every_token_once(tokenizer):
    documents = [prepare.tokenize_document(tokenizer, text, prepare.words_of_tokens) for text in made_up_documents(30)]
    rows = list(prepare.pack(documents, 20, tokenizer._token_end_id))
    assert max(len(ids) for ids, _ in rows) <= 20 and sum(len(ids) for ids, _ in rows) > 12 * len(rows)
    tokens = [i for ids, _ in rows for i in ids if i != tokenizer._token_end_id]
    assert tokens == [i for document in documents for ids, _ in document for i in ids]
    marks = [mark for _, marks in rows for mark in marks]
    assert marks.count(records.DOCUMENT) == 30
    for ids, kinds in rows:  # between two documents of a row stands [SEP], nowhere else
        starts = [at for at, kind in enumerate(kinds) if kind == records.DOCUMENT and at]
        assert [at - 1 for at in starts] == [at for at, i in enumerate(ids) if i == tokenizer._token_end_id]


def test_a_clause_longer_than_a_row_is_continued(tokenizer):
    documents = [[(list(range(10, 35)), [3] + [1] * 24)]]
    rows = list(prepare.pack(documents, 10, tokenizer._token_end_id))
    assert [len(ids) for ids, _ in rows] == [10, 10, 5]


def test_a_second_run_writes_only_what_is_missing(shards, corpus_folder, vocab_file, tmp_path):
    options = {"length": 24, "shards": 2, "segmenter": "none", "held_out": 0.1, "workers": 2}
    prepare.prepare([corpus_folder], vocab_file, tmp_path, **options)
    files = {path.name: path.read_bytes() for path in tmp_path.glob("*.tfrecord")}
    assert files == {path.name: path.read_bytes() for path in shards.glob("*.tfrecord")}  # workers make no difference
    (tmp_path / "train-00001-of-00002.tfrecord").unlink()
    kept = tmp_path / "train-00000-of-00002.tfrecord"
    before = kept.stat()
    prepare.prepare([corpus_folder], vocab_file, tmp_path, **options)
    assert (kept.stat().st_ino, kept.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert files == {path.name: path.read_bytes() for path in tmp_path.glob("*.tfrecord")}
    with pytest.raises(ValueError, match="Use another folder"):
        prepare.prepare([corpus_folder], vocab_file, tmp_path, **options | {"length": 32})


def test_sources_are_licensed_and_nothing_of_a_test_part_is_in_them(shared_data, tmp_path):
    assert {licence.split()[0] for _, licence, _ in sources.SOURCES.values()} == {"MIT", "Apache-2.0", "CC"}
    rows = sources.write_corpus(shared_data, tmp_path, ["titles", "lccc", "weibo"])
    assert [name for name, *_ in rows] == ["titles", "lccc", "weibo"] and all(row[3] > 500 for row in rows)
    lines = (tmp_path / "weibo.jsonl").read_text(encoding="utf-8").splitlines()
    held_out = set(sources.read(shared_data, "ner/weibo.test.txt.gz", "tagged"))
    texts = [json.loads(line)["text"] for line in lines]
    assert len(texts) == rows[2][3] and not held_out & set(texts) and len(set(texts)) == len(texts)
