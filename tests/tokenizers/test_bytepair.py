"""BpeTokenizer against the tokenizers library, on a small model trained here, and against transformers."""

import json
import pickle
import subprocess
import sys
import unicodedata
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from bert4x.tokenizers import BpeTokenizer
from tests.tokenizers.oracle import HARD, random_texts

tokenizers = pytest.importorskip("tokenizers")

END = "<|endoftext|>"
CORPUS = ["the cat sat on the mat, and the dog didn't", "hello world 2024", "今天天气很好。", "café naïve"] * 5
TEXTS = [text for text in HARD + random_texts(300, seed=9) if not any(0xD800 <= ord(c) < 0xE000 for c in text)]


def trained(specials=(END,)):
    """A byte-level BPE of some hundred tokens."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=380, special_tokens=list(specials), initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(CORPUS, trainer)
    return bpe


@pytest.fixture(scope="module")
def theirs():
    return trained()


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bpe")
    theirs.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def gpt2_folder(theirs, tmp_path_factory):
    """GPT2's two files."""
    folder = tmp_path_factory.mktemp("gpt2")
    theirs.model.save(str(folder))
    return folder


@pytest.fixture(scope="module", params=("json", "directory", "two files", "directory of two"))
def ours(request, folder, gpt2_folder):
    arguments = {
        "json": [folder / "tokenizer.json"],
        "directory": [folder],
        "two files": [gpt2_folder / "vocab.json", gpt2_folder / "merges.txt"],
        "directory of two": [gpt2_folder],
    }
    return BpeTokenizer(*arguments[request.param])


def test_ids_are_those_of_the_library(ours, theirs):
    expected = [theirs.encode(text).ids for text in TEXTS]
    assert [ours.encode(text)[0] for text in TEXTS] == expected
    ids, segments = ours.encode_batch(TEXTS)
    assert ids.dtype == np.int32 and not segments.any()
    for row, wanted in zip(ids.tolist(), expected, strict=True):
        assert row[: len(wanted)] == wanted and not any(row[len(wanted) :])


def test_any_text_comes_back(ours):
    for text in TEXTS:
        assert ours.decode(ours.encode(text)[0]) == text
    assert ours.decode(ours.encode_batch(TEXTS[:1])[0][0]) == TEXTS[0]


def test_special_tokens_in_a_text(ours):
    end = ours.token_to_id(END)
    ids = ours.encode(f"the cat{END} sat")[0]
    assert ids.count(end) == 1 and ours.decode(ids) == "the cat sat"
    assert ours.encode("<|endoftext|")[0].count(end) == 0
    assert ours.encode(END, offsets=True)[2] == [None]


def test_tokens_and_ids(ours, theirs):
    assert ours._vocab_size == theirs.get_vocab_size()
    assert ours.tokenize("the cat") == ["the", "Ġcat"]
    assert ours.tokens_to_ids(["the", "Ġcat"]) == ours.encode("the cat")[0]
    ids = np.array(ours.encode("the cat")[0] + [ours._vocab_size + 7])
    assert ours.ids_to_tokens(ids) == ["the", "Ġcat", ""] and ours.decode(ids) == "the cat"
    assert ours.decode(None, tokens=["the", "Ġcat"]) == "the cat"
    assert ours.stem("Ġcat") == "cat"
    assert ours.end_of_text == END
    with pytest.raises(ValueError, match="got 'no such token'"):
        ours.token_to_id("no such token")


def test_start_end_truncation_and_pairs(folder):
    ours = BpeTokenizer(folder, token_start=END, token_end=END, token_pad=END)
    end = ours.token_to_id(END)
    assert ours.tokenize("the cat sat", maxlen=4) == [END, "the", "Ġcat", END]
    ids, segments = ours.encode("the cat", "the cat", maxlen=6)
    assert ours.ids_to_tokens(ids) == [END, "the", END, "the", "Ġcat", END]
    assert segments == [0, 0, 0, 1, 1, 1]
    ids, _ = ours.encode_batch(["the cat", ""])
    assert ids[1].tolist() == [end] * 4


def test_offsets_by_hand(ours):
    text = "the  cat's\tcafé 今天𠀀\n"
    tokens, (_, _, spans) = ours.tokenize(text), ours.encode(text, offsets=True)
    found = [(ours.stem(token), text[slice(*span)]) for token, span in zip(tokens, spans, strict=True)]
    assert found[0] == ("the", "the") and ("cat", "cat") in found
    for stem, piece in found:
        if "\ufffd" in stem:
            assert len(piece) == 1 and ord(piece) > 127  # bytes of one character have its whole range
        elif stem:
            assert piece == stem
        else:
            assert piece.isspace() and piece
    positions = ours.rematch(text, tokens)
    assert positions == [list(range(*span)) for span in spans]
    assert set(sum(positions, [])) >= {i for i, c in enumerate(text) if not c.isspace()}


def test_offsets_cover_the_text(ours):
    for text in TEXTS:
        tokens, spans = ours.tokenize(text), ours.encode(text, offsets=True)[2]
        covered = set()
        for token, (start, end) in zip(tokens, spans, strict=True):
            assert 0 <= start < end <= len(text)
            assert "\ufffd" in ours.stem(token) or ours.stem(token) == text[start:end].strip()
            covered.update(range(start, end))
        assert {i for i, character in enumerate(text) if not character.isspace()} <= covered


def test_rematch_of_other_tokens(ours):
    text = "the cat sat on the mat"
    tokens = ours.tokenize(text)
    assert ours.rematch(text, tokens[:2]) == [[0, 1, 2], [4, 5, 6]]
    assert ours.rematch(text, ["the", "Ġno", "Ġthe"]) == [[0, 1, 2], [], [15, 16, 17]]
    assert ours.rematch(text, []) == []


def test_offsets_through_a_normalizer(tmp_path):
    """As Qwen2's file does, which composes accents."""
    bpe = trained()
    bpe.normalizer = tokenizers.normalizers.NFC()
    bpe.save(str(tmp_path / "tokenizer.json"))
    text = unicodedata.normalize("NFD", "the café")
    ids, _, spans = BpeTokenizer(tmp_path).encode(text, offsets=True)
    assert ids == bpe.encode("the café").ids and len(text) == 9
    assert spans[-1] == (4, 9)
    assert BpeTokenizer(tmp_path).encode(text + " the", offsets=True)[2][-2:] == [(4, 9), (10, 13)]


def test_lone_surrogates_count_as_replacement_characters(ours):
    assert ours.encode("a\ud83db")[0] == ours.encode("a\ufffdb")[0]
    ids, _ = ours.encode_batch(["a\ud83db"])
    assert ids[0].tolist() == ours.encode("a\ufffdb")[0]
    assert ours.encode("a\ud83db", offsets=True)[2][0] == (0, 1)


def test_pre_tokenize_and_token_translate(folder):
    text = "the cat the"
    ours = BpeTokenizer(folder, pre_tokenize=lambda text: text.split(), token_translate={"the": "cat"})
    plain = BpeTokenizer(folder)
    assert ours.tokenize(text) == ["cat", *plain.tokenize("cat"), "cat"]
    ids, _, spans = ours.encode(text, offsets=True)
    assert [text[slice(*span)] for span in spans][0] == "the" and spans[-1] == (8, 11)
    assert ids == ours.tokens_to_ids(ours.tokenize(text)) == ours.encode_batch([text])[0][0].tolist()
    assert ours.decode(None, tokens=["cat"]) == "the"


def template(bpe, single, tokens):
    names = [(token, bpe.token_to_id(token)) for token in tokens]
    return tokenizers.processors.TemplateProcessing(single=single, pair=f"{single} $B", special_tokens=names)


def test_the_file_says_which_tokens_are_added(tmp_path):
    bpe = trained(["<s>", "</s>", "<pad>"])
    bpe.post_processor = template(bpe, "<s> $A </s>", ["<s>", "</s>"])
    bpe.enable_padding(pad_token="<pad>", pad_id=bpe.token_to_id("<pad>"), length=50)
    bpe.enable_truncation(3)
    bpe.save(str(tmp_path / "tokenizer.json"))
    ours = BpeTokenizer(tmp_path / "tokenizer.json")
    text = "hello world, the cat"
    bpe.no_padding()
    bpe.no_truncation()
    assert ours.encode(text)[0] == bpe.encode(text).ids
    assert (ours._token_start, ours._token_end, ours._token_pad) == ("<s>", "</s>", "<pad>")
    assert BpeTokenizer(tmp_path, token_start=None).encode(text)[0] == bpe.encode(text).ids[1:]
    # A configuration beside it wins, as in transformers.
    config = {"add_bos_token": False, "add_eos_token": True, "eos_token": {"content": "<pad>"}, "unk_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    ours = BpeTokenizer(tmp_path)
    assert ours.tokenize("the") == ["the", "<pad>"] and ours.token_to_id("??") == bpe.token_to_id("</s>")
    assert BpeTokenizer(tmp_path / "tokenizer.json").tokenize("the") == ["<s>", "the", "</s>"]


def test_two_tokens_before_a_text_are_refused(tmp_path):
    bpe = trained(["<s>", "</s>"])
    bpe.post_processor = template(bpe, "<s> </s> $A", ["<s>", "</s>"])
    bpe.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="At most one token"):
        BpeTokenizer(tmp_path)


def test_pickle_directory_and_threads(tmp_path, ours):
    ours.save_pretrained(tmp_path)
    expected = [ours.encode(text, offsets=True) for text in TEXTS]
    for copy in (pickle.loads(pickle.dumps(ours)), BpeTokenizer(tmp_path)):
        assert [copy.encode(text, offsets=True) for text in TEXTS] == expected
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda text: ours.encode(text, offsets=True), TEXTS)) == expected


def test_saving_keeps_options_and_the_rest_of_the_configuration(tmp_path, folder):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (tmp_path / "old" / "tokenizer_config.json").write_text('{"chat_template": "x"}', encoding="utf-8")
    ours = BpeTokenizer(tmp_path / "old", token_end=END, token_translate={"the": "cat"})
    ours.save_pretrained(tmp_path / "new")
    copy = BpeTokenizer(tmp_path / "new")
    assert copy.encode("the dog")[0] == ours.encode("the dog")[0] and copy._token_end == END
    config = json.loads((tmp_path / "new" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["chat_template"] == "x" and config["eos_token"] == END and config["add_eos_token"]


def test_wrong_files(tmp_path, gpt2_folder):
    with pytest.raises(FileNotFoundError):
        BpeTokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(FileNotFoundError, match="must hold tokenizer.json, or vocab.json and merges.txt"):
        BpeTokenizer(tmp_path)
    words = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    words.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="has 'WordPiece'"):
        BpeTokenizer(tmp_path)
    with pytest.raises(ValueError, match="has None"):  # the merges were forgotten
        BpeTokenizer(gpt2_folder / "vocab.json")
    with pytest.raises(ValueError, match="has None"):
        BpeTokenizer(gpt2_folder / "merges.txt")
    (tmp_path / "spiece.model").write_bytes(b"\n\x0e\xc0\xff")
    with pytest.raises(ValueError, match="has None.*SpTokenizer .model files"):
        BpeTokenizer(tmp_path / "spiece.model")
    (tmp_path / "tokenizer.json").unlink()
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((gpt2_folder / name).read_bytes())
    config = tmp_path / "tokenizer_config.json"
    config.write_text('{"tokenizer_class": "Qwen2Tokenizer"}', encoding="utf-8")
    with pytest.raises(ValueError, match="Qwen2Tokenizer does it otherwise"):
        BpeTokenizer(tmp_path)
    with pytest.raises(ValueError, match="token_start must be in the vocabulary"):
        BpeTokenizer(gpt2_folder, token_start="[CLS]")


def test_without_the_library():
    code = (
        "import sys; sys.modules['tokenizers'] = None; from bert4x.tokenizers import BpeTokenizer\n"
        "try: BpeTokenizer('x')\nexcept ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", timeout=120)
    assert 'pip install "bert4x[bpe]"' in done.stdout, done.stderr


class TestParity:
    """Ids and texts of transformers' tokenizers, both ways through files."""

    pytestmark = pytest.mark.parity
    TEXTS = TEXTS + ["", f"a{END}b", "  two  spaces\n\nand\t\ttabs ", "I'LL don't 12345", "e\u0301"]

    @pytest.fixture(params=("gpt2", "qwen2", "llama3", "llama2"))
    def theirs(self, request):
        transformers = pytest.importorskip("transformers")
        bpe = trained([END, "<s>", "</s>", "<unk>"])
        model = json.loads(bpe.to_str())["model"]
        files = {"vocab": model["vocab"], "merges": [tuple(pair) for pair in model["merges"]]}
        if request.param == "gpt2":
            return transformers.GPT2Tokenizer(**files)
        if request.param == "qwen2":
            return transformers.Qwen2Tokenizer(**files)
        if request.param == "llama2":  # the pieces of SentencePiece, and bytes for what they lack
            specials = ["<unk>", "<s>", "</s>"]
            pieces = [*specials, *(f"<0x{i:02X}>" for i in range(256)), "▁", *"abcdehlot", "th", "▁th", "▁the", "▁c"]
            merges = [("t", "h"), ("▁", "th"), ("▁th", "e"), ("▁", "c")]
            vocab = {piece: i for i, piece in enumerate(pieces)}
            return transformers.LlamaTokenizer(vocab=vocab, merges=merges, add_bos_token=True)
        bpe.post_processor = tokenizers.processors.Sequence([
            tokenizers.processors.ByteLevel(trim_offsets=False), template(bpe, "<s> $A", ["<s>"])])
        return transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")

    def check(self, ours, theirs):
        rows = [theirs(text)["input_ids"] for text in self.TEXTS]
        assert [ours.encode(text)[0] for text in self.TEXTS] == rows
        options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        assert [ours.decode(row) for row in rows] == [theirs.decode(row, **options) for row in rows]

    def test_their_directory(self, tmp_path, theirs):
        theirs.save_pretrained(tmp_path)
        ours = BpeTokenizer(tmp_path)
        self.check(ours, theirs)
        assert ours.end_of_text == theirs.eos_token
        for name in ("pad", "unk"):
            assert getattr(ours, f"_token_{name}") == getattr(theirs, f"{name}_token")

    def test_our_directory(self, tmp_path, theirs):
        transformers = pytest.importorskip("transformers")
        theirs.save_pretrained(tmp_path / "theirs")
        ours = BpeTokenizer(tmp_path / "theirs")
        ours.save_pretrained(tmp_path / "ours")
        copy = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
        self.check(ours, copy)
        self.check(BpeTokenizer(tmp_path / "ours"), copy)

    def test_their_offsets(self, tmp_path, theirs):
        theirs.save_pretrained(tmp_path)
        ours = BpeTokenizer(tmp_path)
        for text in self.TEXTS:
            row = theirs(text, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
            spans = ours.encode(text, offsets=True)[2][ours._token_start is not None :]
            for span, (start, end) in zip(spans, row, strict=True):
                their_part = text[start:end].strip() or text[start:end]
                part = their_part if span is None else text[slice(*span)]
                # Accents that a normalizer composed count to their letter here.
                assert part.startswith(their_part) and all(map(unicodedata.combining, part[len(their_part) :]))

    def test_gpt2s_two_files(self, tmp_path):
        transformers = pytest.importorskip("transformers")
        trained().model.save(str(tmp_path))
        theirs = transformers.GPT2Tokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
        self.check(BpeTokenizer(tmp_path), theirs)
