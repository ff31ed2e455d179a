"""Sources that do not fit, outputs that exist, and writing that is cut short: a clear message and nothing left."""

import importlib
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from bert4x.models import build_transformer_model, save_pretrained
from tests.conftest import ROOT
from tests.converters.helpers import convert, held, spec_cases, write_google, write_json

TARGET = ("--to", "huggingface", "--model", "bert")


@pytest.fixture
def bert(shared_data, tmp_path):
    """A tiny BERT: its case, the function that writes a changed one, and where the output would go."""
    case = spec_cases(shared_data)["bert"]

    def run(config=None, weights=None):
        source = write_google(tmp_path / "source", case["config"] | (config or {}), weights or case["weights"])
        convert("huggingface_google", source, tmp_path / "out", *TARGET)

    return SimpleNamespace(
        config=case["config"], weights=case["weights"], run=run, folder=tmp_path, output=tmp_path / "out"
    )


def assert_nothing_left(bert):
    assert sorted(path.name for path in bert.folder.iterdir()) == ["source"]


@pytest.mark.parametrize(("layers", "held_layers"), [(3, 2), (1, 2)])
def test_wrong_count_of_layers(bert, layers, held_layers):
    with pytest.raises(ValueError, match=f"says {layers}, the source holds {held_layers}") as error:
        bert.run({"num_hidden_layers": layers})
    assert f"layer_{min(layers, held_layers)}" in str(error.value)
    assert_nothing_left(bert)


def test_missing_and_unknown_variables_are_listed_together(bert):
    weights = {name: array for name, array in bert.weights.items() if not name.endswith("layer_1/output/dense/bias")}
    weights |= {"cls/strange/kernel": np.zeros((2, 2), "float32"), "cls/stranger": np.zeros(3, "float32")}
    with pytest.raises(ValueError) as error:
        bert.run(weights=weights)
    assert "missing (1): bert/encoder/layer_1/output/dense/bias" in str(error.value)
    assert "unknown (2): cls/strange/kernel, cls/stranger" in str(error.value)
    assert_nothing_left(bert)


def test_part_of_a_head_is_missing(bert):
    """A head may be absent, but not half of it."""
    weights = {name: array for name, array in bert.weights.items() if name != "bert/pooler/dense/bias"}
    with pytest.raises(ValueError, match=r"missing \(1\): bert/pooler/dense/bias"):
        bert.run(weights=weights)


def test_absent_heads_stay_absent(bert):
    bert.run(weights={name: array for name, array in bert.weights.items() if name.startswith("bert/")})
    assert not any(name.startswith("cls") for name in held(bert.output))


def test_configuration_of_another_size(bert):
    with pytest.raises(ValueError, match=r"word_embeddings \(13, 8\), the configuration asks for \(14, 8\)"):
        bert.run({"vocab_size": 14})


def test_configuration_with_other_segments(bert):
    with pytest.raises(ValueError, match=r"token_type_embeddings \(2, 8\), the configuration asks for \(4, 8\)"):
        bert.run({"type_vocab_size": 4})
    assert_nothing_left(bert)


def test_configuration_with_other_heads_of_keys(tmp_path):
    """Grouped queries: only the keys and values show how many there are."""
    config = {"model_type": "llama", "vocab_size": 13, "hidden_size": 8, "num_hidden_layers": 1, "hidden_act": "silu"}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 12}
    save_pretrained(build_transformer_model(config), None, tmp_path / "source")
    write_json(tmp_path / "config.json", config | {"num_key_value_heads": 4})
    with pytest.raises(ValueError, match=r"wrong shape \(2\): .*k_proj.weight \(4, 8\), .* asks for \(8, 8\)"):
        convert("llama", tmp_path / "source", tmp_path / "out", "--config", str(tmp_path / "config.json"))
    convert("llama", tmp_path / "source", tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "message"), [("[1, 2]", "holds a list"), ('{"a":', "not JSON"), ("{}", "needs vocab")]
)
def test_configuration_that_is_none(bert, text, message):
    source = write_google(bert.folder / "source", bert.config, bert.weights)
    (source / "bert_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        convert("huggingface_google", source, bert.output, *TARGET)
    assert_nothing_left(bert)


@pytest.mark.parametrize("options", [("--to", "google", "--max-shard-gb", "1"), ("--max-shard-gb", "0")])
def test_sizes_of_shards_that_cannot_be(bert, options, capsys):
    source = write_google(bert.folder / "source", bert.config, bert.weights)
    with pytest.raises((ValueError, SystemExit)) as error:
        convert("huggingface_google", source, bert.output, "--model", "bert", *options)
    assert "--max-shard-gb" in str(error.value) + capsys.readouterr().err
    assert_nothing_left(bert)


def test_ignore_unknown(bert):
    weights = bert.weights | {"classifier/kernel": np.zeros((2, 2), "float32")}
    source = write_google(bert.folder / "source", bert.config, weights)
    convert("huggingface_google", source, bert.output, *TARGET, "--ignore-unknown")
    assert not any("classifier" in name for name in held(bert.output))


def test_existing_output_is_kept(bert):
    bert.output.mkdir()
    (bert.output / "precious").touch()
    with pytest.raises(ValueError, match="exists already"):
        bert.run()
    assert [path.name for path in bert.output.iterdir()] == ["precious"]


@pytest.mark.parametrize("naming", ["google", "huggingface"])
def test_interrupted_write_leaves_nothing(bert, naming, monkeypatch):
    import matching

    calls, join = [], matching.join_parts

    def interrupted(parts):
        calls.append(parts)
        if len(calls) > 20:
            raise KeyboardInterrupt
        return join(parts)

    monkeypatch.setattr(matching, "join_parts", interrupted)
    monkeypatch.setattr(sys.modules[__name__], "TARGET", ("--to", naming, "--model", "bert"))
    with pytest.raises(KeyboardInterrupt):
        bert.run()
    assert len(calls) > 20
    assert_nothing_left(bert)


def test_check_sees_a_wrong_number(bert, monkeypatch):
    import matching

    join = matching.join_parts

    def wrong(parts):
        array = join(parts)
        return array + 1e-6 if parts[0][0].path == "query/kernel" else array

    monkeypatch.setattr(matching, "join_parts", wrong)
    with pytest.raises(ValueError, match="query/kernel"):
        bert.run()
    assert_nothing_left(bert)


def test_too_large_for_float16(bert):
    weights = bert.weights | {"bert/pooler/dense/kernel": bert.weights["bert/pooler/dense/kernel"] * 1e6}
    source = write_google(bert.folder / "source", bert.config, weights)
    with pytest.raises(ValueError, match="bert/pooler/dense/kernel has values up to .*, too large for float16"):
        convert("huggingface_google", source, bert.output, *TARGET, "--dtype", "float16")
    assert_nothing_left(bert)


def test_unclear_family_and_configuration(bert):
    source = write_google(bert.folder / "source", bert.config, bert.weights)
    with pytest.raises(ValueError, match="model_type"):
        convert("huggingface_google", source, bert.output)
    (source / "bert_config.json").unlink()
    for path in (source, source / "bert_model.ckpt"):
        with pytest.raises(ValueError, match="give --config"):
            convert("huggingface_google", path, bert.output)
    with pytest.raises(FileNotFoundError, match="sauce does not exist"):
        convert("huggingface_google", bert.folder / "sauce", bert.output)


PROGRAMS = sorted(
    path.stem
    for path in (ROOT / "scripts" / "convert_checkpoints").glob("*.py")
    if path.stem not in ("__init__", "conversion", "matching", "views")
)


def program(name, *arguments, **options):
    command = [sys.executable, "-m", f"scripts.convert_checkpoints.{name}", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_every_program_is_in_the_readme():
    text = (ROOT / "scripts" / "convert_checkpoints" / "README.md").read_text(encoding="utf-8")
    assert [name for name in PROGRAMS if f"scripts.convert_checkpoints.{name} " not in text] == []


@pytest.mark.parametrize("name", PROGRAMS)
def test_help(name, capsys):
    module = importlib.import_module(f"scripts.convert_checkpoints.{name}")
    with pytest.raises(SystemExit) as exit_:
        module.main(["--help"])
    assert exit_.value.code == 0
    help_ = capsys.readouterr().out
    assert module.__doc__.splitlines()[0] in help_ and f"scripts.convert_checkpoints.{name} " in help_


def test_as_a_program(bert, tmp_path):
    """Started by -m: a message without a traceback, exit status 1; a progress bar and status 0 where it succeeds."""
    source = write_google(bert.folder / "source", bert.config, bert.weights)
    process = program("huggingface_google", source, bert.output, *TARGET[:2])
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "error: the model" in errors and "Traceback" not in errors
    process = program("huggingface_google", source, bert.output, *TARGET, "--check")
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "checked" in out and "writing: 100%" in errors


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs SIGTERM")
def test_ended_program_leaves_nothing(tmp_path):
    from scripts.convert_checkpoints import make_random_cpm

    make_random_cpm.main([str(tmp_path / "source"), "--layers=8", "--width=512", "--inner=2048", "--positions=8"])
    process = program("cpm_lm", tmp_path / "source", tmp_path / "out")
    seen = ""
    while "1/" not in seen:  # until the first variables are written
        seen = seen[-20:] + process.stderr.read(1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 143
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
