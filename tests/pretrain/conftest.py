"""A small made-up corpus, its vocabulary and its shards."""

import json

import numpy as np
import prepare
import pytest
import vocabulary

from bert4x.tokenizers import Tokenizer, save_vocab

WORDS = "今天 天气 很 好 我们 图书馆 去 看书 的 朋友 喜欢 北京 烤鸭 bert 2024".split()


def made_up_documents(count, seed=0):
    """Documents of one to four sentences, of words drawn at random."""
    rng = np.random.default_rng(seed)

    def sentence():
        words = [WORDS[i] for i in rng.integers(len(WORDS), size=rng.integers(3, 12))]
        words.insert(len(words) // 2, "，")
        return " ".join(words).replace(" ，", "，") + "。"

    return ["".join(sentence() for _ in range(rng.integers(1, 5))) for _ in range(count)]


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in made_up_documents(150)]
    (folder / "a.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "b.txt").write_text("\n\n".join(made_up_documents(50, seed=1)), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def vocab_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    save_vocab(path, vocabulary.build_vocabulary(made_up_documents(200), 120, pieces=40))
    return path


@pytest.fixture(scope="session")
def tokenizer(vocab_file):
    return Tokenizer(str(vocab_file), do_lower_case=True)


@pytest.fixture(scope="session")
def shards(corpus_folder, vocab_file, tmp_path_factory):
    """A folder with two training shards and a held-out one, rows of 24 tokens."""
    folder = tmp_path_factory.mktemp("shards")
    options = {"length": 24, "shards": 2, "segmenter": "none", "held_out": 0.1, "workers": 1}
    prepare.prepare([corpus_folder], vocab_file, folder, **options)
    return folder
