"""The language model examples end to end, on tiny random checkpoints in the formats of the releases."""

import io
import json
import runpy
import sys

import numpy as np
import pytest

from bert4x.models import build_transformer_model, save_pretrained
from bert4x.snippets import AutoRegressiveDecoder, BadWords, Beam, Generator, Sample, set_seed
from bert4x.tokenizers import BpeTokenizer, CPMTokenizer, Tokenizer
from tests.conftest import ROOT
from tests.examples.conftest import run

pytestmark = pytest.mark.example

SIZE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "initializer_range": 0.5,
}
CHARACTERS = list("今天气不错双十一我们出去玩很好，。")
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS]
NEED_A_CHECKPOINT = ("gpt2_ml", "cpm_lm", "nezha_gen_gpt", "llama")


def run_here(monkeypatch, name, *flags):
    """Run an example in this process, which has imported everything already: for what needs no process of its own."""
    script = ROOT / "examples" / f"basic_language_model_{name}.py"
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, flags)])
    runpy.run_path(str(script))


def google_files(folder, config, **options):
    """Configuration, TensorFlow checkpoint and vocabulary as the releases have them, and the flags that name them."""
    pytest.importorskip("tensorflow", reason="writing a TensorFlow checkpoint needs TensorFlow")
    set_seed(1)
    model = build_transformer_model(config, **options)
    model.builder.save_weights_as_checkpoint(folder / "model.ckpt-100000")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "vocab.txt").write_text("\n".join(TOKENS) + "\n", encoding="utf-8")
    return ["--config", folder / "config.json", "--checkpoint", folder / "model.ckpt-100000",
            "--vocab", folder / "vocab.txt"]


class Plain(AutoRegressiveDecoder):
    """The decoder over `model.predict`, without compiled shapes and padding."""

    def __init__(self, model, *args, **options):
        super().__init__(*args, **options)
        self.model = model

    @AutoRegressiveDecoder.wraps()
    def predict(self, inputs, output_ids, states):
        return self.model.predict(np.concatenate([inputs[0], output_ids], axis=1), verbose=0)[:, -1]


def endings(output):
    """{beginning: [endings]} as printed."""
    found = {}
    for block in output.strip().split("\n\n"):
        text, *lines = block.splitlines()
        found[text] = [line.removeprefix("  ... ") for line in lines if line.startswith("  ... ")]
    return found


def expected_endings(model, tokenizer, texts, samples, maxlen):
    """What the scripts for GPT2-ML and NEZHA-GEN must print with seed 3 and two sentences."""
    decoder = Plain(model, None, tokenizer.token_to_id("。"), maxlen, banned_ids=range(5))
    set_seed(3)
    rows = [decoder.random_sample([tokenizer.encode(text)[0]], samples, topp=0.9, min_ends=2) for text in texts]
    return {text: [tokenizer.decode(ids) for ids in row] for text, row in zip(texts, rows, strict=True)}


SHORT = ["--max-length", 12, "--samples", 2, "--topp", 0.9, "--seed", 3]


def test_gpt2_ml(tmp_path):
    config = {"vocab_size": len(TOKENS), "hidden_act": "gelu", **SIZE}
    flags = google_files(tmp_path, config, model="gpt2_ml")
    texts = ["今天天气不错", "双十一，我们", "今天气不错" * 40]
    output = run("basic_language_model_gpt2_ml", *flags, *SHORT, *(x for text in texts for x in ("--text", text)))
    model = build_transformer_model(config, str(tmp_path / "model.ckpt-100000"), model="gpt2_ml")
    tokenizer = Tokenizer(tmp_path / "vocab.txt", do_lower_case=True, token_start=None, token_end=None)
    kept = [*texts[:2], texts[2][-52:]]  # 64 positions less the 12 to write
    expected = expected_endings(model, tokenizer, kept, 2, 12)
    assert list(endings(output)) == texts and list(endings(output).values()) == list(expected.values())
    assert all(0 < len(text) <= 12 and text.count("。") <= 2 for row in endings(output).values() for text in row)


def test_nezha_gen(tmp_path):
    config = {"vocab_size": len(TOKENS), "hidden_act": "gelu", "type_vocab_size": 2, **SIZE}
    flags = google_files(tmp_path, config, model="bert", application="lm", segment_vocab_size=0)
    # The folder alone is enough.
    output = run("basic_language_model_nezha_gen_gpt", "--checkpoint", flags[1].parent, *SHORT, "--text", "今天")
    options = {"model": "bert", "application": "lm", "segment_vocab_size": 0}
    model = build_transformer_model(config, str(tmp_path / "model.ckpt-100000"), **options)
    tokenizer = Tokenizer(tmp_path / "vocab.txt", do_lower_case=True, token_end=None)
    assert endings(output) == expected_endings(model, tokenizer, ["今天"], 2, 12)


def cpm_vocabulary(folder):
    """A SentencePiece model with CPM's first eleven pieces, trained here; the path of its file."""
    sentencepiece = pytest.importorskip("sentencepiece")
    file = io.BytesIO()
    sentences = ["大 小 冷 热 高 低 黑 白 - > 1 2 3 加 等于 , 长城 北京 今天 天气 很 好"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=file, vocab_size=60, hard_vocab_limit=False, minloglevel=2,
        unk_id=0, bos_id=1, eos_id=2, user_defined_symbols=["▃", "<sep>", "<pad>", "<mask>", "<eod>"])
    path = folder / "chinese_vocab.model"
    path.write_bytes(file.getvalue())
    return path


def test_cpm_lm(tmp_path):
    pytest.importorskip("jieba", reason='needs jieba: pip install "bert4x[cpm]"')
    tokenizer = CPMTokenizer(cpm_vocabulary(tmp_path))
    assert tokenizer.token_to_id("▃") == 3
    config = {"vocab_size": tokenizer._vocab_size, "hidden_act": "gelu", **SIZE}
    set_seed(1)
    model = build_transformer_model(config, model="cpm")
    prompts = ["大->小\n冷->热\n高->", "1加1等于2\n1加2等于", "今天天气 很好"]
    answers = []
    for prompt in prompts:
        ids = tokenizer.encode(prompt)[0]
        while len(ids) < len(tokenizer.encode(prompt)[0]) + 5:
            ids.append(int(model.predict(np.array([ids]), verbose=0)[0, -1].argmax()))
            if ids[-1] == 3:
                break
        answers.append(tokenizer.decode(ids[len(tokenizer.encode(prompt)[0]) :]).strip("\n"))
    tasks = [{"prompt": prompt, "answer": answer} for prompt, answer in zip(prompts, answers, strict=True)]
    tasks[1]["answer"] = "3?"
    (tmp_path / "tasks.json").write_text(json.dumps(tasks), encoding="utf-8")
    save_pretrained(model, tokenizer, tmp_path / "cpm")
    flags = ["--checkpoint", tmp_path / "cpm", "--data", tmp_path / "tasks.json", "--max-length", 5]
    lines = run("basic_language_model_cpm_lm", *flags).splitlines()
    last = [prompt.split("\n")[-1] + answer for prompt, answer in zip(prompts, answers, strict=True)]
    assert lines[:3] == [f"{last[0]}    (right)", f"{last[1]}    (wrong, not 3?)", f"{last[2]}    (right)"]
    assert lines[-1].startswith("Right to the letter: 2 of 3")


def test_cpm_lm_with_the_real_vocabulary_and_its_own_tasks(tmp_path, shared_data, monkeypatch, capsys):
    pytest.importorskip("jieba", reason='needs jieba: pip install "bert4x[cpm]"')
    config = {**SIZE, "vocab_size": 30000, "hidden_act": "gelu", "max_position_embeddings": 128}
    flags = google_files(tmp_path, config, model="cpm")
    flags[-1] = shared_data / "vocabs" / "cpm_chinese_vocab.model"
    run_here(monkeypatch, "cpm_lm", *flags, "--max-length", 2, "--beam", 2)
    lines = capsys.readouterr().out.splitlines()
    starts = ["高->", "黑->", "4加5等于", "3加3等于", "黄河流入渤海->", "杜甫是唐朝的诗人->"]
    assert all(line.startswith(text) for line, text in zip(lines, starts, strict=False))
    assert lines[-1].startswith("Right to the letter: ") and " of 6 " in lines[-1]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A Qwen2 folder: (folder, model, tokenizer)."""
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("llama")
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    # Only these letters are tokens, so that what a random model writes is printable.
    bpe.train_from_iterator(["the capital of France is Paris"] * 9, tokenizers.trainers.BpeTrainer(
        vocab_size=40, special_tokens=["<|endoftext|>"], show_progress=False))
    bpe.save(str(folder / "tokenizer.json"))
    tokenizer = BpeTokenizer(folder)
    set_seed(1)
    config = {**SIZE, "vocab_size": 50, "num_key_value_heads": 1, "hidden_act": "silu"}
    model = build_transformer_model(config, model="llama", use_qkv_bias=True)
    save_pretrained(model, tokenizer, folder)
    return folder, model, tokenizer


def test_llama_writes_what_is_likeliest(llama):
    folder, model, tokenizer = llama
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"] == "qwen2"
    text = "the capital of"
    ids = tokenizer.encode(text)[0]
    for _ in range(6):
        ids.append(int(model.predict(np.array([ids]), verbose=0)[0, -1, : tokenizer._vocab_size].argmax()))
        if ids[-1] == tokenizer.token_to_id("<|endoftext|>"):
            break
    output = run("basic_language_model_llama", "--checkpoint", folder, "--text", text, "--max-length", 6)
    written = tokenizer.decode(ids[len(tokenizer.encode(text)[0]) :])
    assert output.startswith(f"\n{text}\n  ... {written}\n")


def test_llama_draws(llama, monkeypatch, capsys):
    folder, model, tokenizer = llama
    flags = ["--samples", 3, "--topp", 0.9, "--temperature", 2.0, "--seed", 3, "--max-length", 5, "--text", "the"]
    run_here(monkeypatch, "llama", "--checkpoint", folder, *flags)
    output = capsys.readouterr().out
    set_seed(3)
    writer = Generator(model, tokenizer.token_to_id("<|endoftext|>"))
    never = BadWords([[i] for i in range(tokenizer._vocab_size, 50)])
    strategy = Sample(2.0, top_p=0.9)
    (samples,) = writer.generate([tokenizer.encode("the")[0]], 5, strategy=strategy, processors=[never], n=3)
    assert [f"  ... {tokenizer.decode(ids)}" for ids in samples] == output.strip().splitlines()[1:4]
    assert len(set(map(tuple, samples))) > 1


def test_gpt2(tmp_path, monkeypatch, capsys):
    names = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
    names |= {"max_position_embeddings": "n_positions"}
    config = {"model_type": "gpt2", "vocab_size": len(TOKENS), **{new: SIZE[old] for old, new in names.items()}}
    set_seed(1)
    tokenizer = Tokenizer({token: i for i, token in enumerate(TOKENS)}, do_lower_case=True)
    model = build_transformer_model(config, initializer_range=0.5)
    save_pretrained(model, tokenizer, tmp_path)
    texts = ["今天", "双十一，我们" * 20]
    flags = ["--max-length", 12, "--seed", 3, *(word for text in texts for word in ("--text", text))]
    run_here(monkeypatch, "gpt2", "--checkpoint", tmp_path, *flags)
    found = endings(capsys.readouterr().out)
    assert list(found)[:2] == texts
    for row in list(found.values())[:2]:
        assert len(set(row)) == 3 and all(0 < len(text) <= 12 and "[" not in text for text in row)
    # The best continuation of a beam, of what room the table of 64 positions leaves.
    run_here(monkeypatch, "gpt2", "--checkpoint", tmp_path, *flags, "--samples", 0)
    best = list(endings(capsys.readouterr().out).values())
    writer = Generator(model, tokenizer.token_to_id("[SEP]"))
    prompts = [tokenizer.encode(text, maxlen=53, truncate_from="left")[0][:-1] for text in texts]
    never = BadWords([[i] for i in (0, 1, 2, 4)])
    expected = [tokenizer.decode(ids).replace("[SEP]", "") for ids in writer.generate(
        prompts, 12, strategy=Beam(4), processors=[never])]
    assert [row[0] for row in best[:2]] == expected


def test_gpt2_comes_with_the_repository(monkeypatch, capsys):
    """Three endings of three beginnings; of the hotel's they say what people say of hotels."""
    run_here(monkeypatch, "gpt2")
    found = endings(capsys.readouterr().out)
    assert list(found)[:3] == ["这家酒店", "这本书", "中国"]
    for row in list(found.values())[:3]:
        assert len(set(row)) == 3 and all("[" not in text for text in row)
    assert any(word in "".join(found["这家酒店"]) for word in ("房间", "服务", "酒店", "早餐", "位置", "环境"))


@pytest.mark.parametrize("name", NEED_A_CHECKPOINT)
def test_without_a_checkpoint_they_say_what_is_needed(name, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_here(monkeypatch, name)
    out, errors = capsys.readouterr()
    assert stopped.value.code == 2 and not out
    message = errors.split("error: ")[1]
    assert "needs a checkpoint" in message and "--checkpoint" in message
    assert "https://" in message or "huggingface.co" in message
