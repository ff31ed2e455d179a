"""The form that all example scripts share."""

import re

import pytest

from tests.conftest import ROOT

SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
SECTIONS = ["Settings", "Data", "Model", "Training", "Evaluation"]
NO_TEXT = {"task_image_vq_vae"}
README = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script_has_the_common_form(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 200
    assert re.findall(r"^# ---- (\d)\. (\w+)", text, re.M) == [(str(i), name) for i, name in enumerate(SECTIONS, 1)]
    head = text.split('"""')[1]
    assert re.search(r"^Command: +python examples/" + path.name, head, re.M)
    assert re.search(r"^Score: ", head, re.M) and re.search(r"^Time: ", head, re.M)
    assert text.count("ArgumentParser(") == 1
    flags = ["--config", "--checkpoint", *(["--vocab"] if path.stem not in NO_TEXT else [])]
    assert all(f'"{flag}"' in text for flag in flags)


# The scripts that compare optimizers and attention, and that train a model on the spot only to show a head.
UNWATCHED = {"task_optimizers_comparison", "task_attention_variants", "task_long_text_sparse_attention"}
UNWATCHED |= {"basic_masked_language_model"}
TRAINING = [path for path in SCRIPTS if ".fit(" in path.read_text(encoding="utf-8") and path.stem not in UNWATCHED]


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_training_shows_the_effective_rate_and_can_be_resumed(path):
    text = path.read_text(encoding="utf-8")
    assert '"--resume"' in text
    # `Resume` last: it stores what the callbacks before it have decided.
    assert re.search(r"LearningRateLogger\(\), .*resume\]", text)
    assert re.search(r"Resume\(.+, fresh=not args.resume\)", text)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_readme_has_the_script(path):
    assert f"({path.name})" in README and f"python examples/{path.name}" in README


def test_readme_names_only_scripts_that_exist():
    named = set(re.findall(r"examples/(\w+\.py)", README)) | set(re.findall(r"\((\w+\.py)\)", README))
    assert named == {path.name for path in SCRIPTS}
