"""README.md does what it says: its Python blocks run, its commands name targets and files that exist."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest

from tests.conftest import ROOT

README = ROOT / "README.md"
# A fenced block, with the comment directly above it that says why it is not run.
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]+) -->\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.M | re.S
)

# Runs all blocks in one process, in order, each in its own namespace and folder, in which the examples are at hand as
# they are in a clone; a failure names its line.
RUNNER = """
import json, os, sys, tempfile
for line, code in json.load(sys.stdin):
    os.chdir(tempfile.mkdtemp(dir=sys.argv[1]))
    os.symlink(sys.argv[2], "examples")
    exec(compile("\\n" * line + code, "README.md", "exec"), {"__name__": "__main__"})
"""


def blocks(text, language):
    """The blocks in one language that are to be run: (line before the code, code)."""
    return [
        (text[: match.start("code")].count("\n"), match["code"])
        for match in BLOCK.finditer(text)
        if match["language"] == language and not match["reason"]
    ]


def run_python(text, folder):
    """Run the Python blocks of a page in a fresh process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", RUNNER, str(folder), str(ROOT / "examples")],
        input=json.dumps(blocks(text, "python")), env=environment, capture_output=True, text=True,
    )


def make_targets():
    """Names that stand before a colon in the Makefile."""
    return set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


def unknown_targets(words):
    """What a `make` or `python` command names that does not exist; other commands are not judged."""
    words = [word for word in words if not re.fullmatch(r"\w+=.*", word)]
    if words[:1] == ["make"]:
        return [word for word in words[1:] if not word.startswith("-") and word not in make_targets()]
    if words and re.fullmatch(r"(.*/)?python3?", words[0]):
        return [word for word in words[1:2] if word.endswith(".py") and not (ROOT / word).is_file()]
    return []


def commands(text):
    """Each command of the shell blocks, as words; a backslash joins lines."""
    for _, code in blocks(text, "bash"):
        for line in code.replace("\\\n", " ").splitlines():
            for command in re.split(r"&&|;|\|", line.partition(" #")[0]):
                yield shlex.split(command, comments=True)


@pytest.mark.example
def test_python_blocks_run(tmp_path):
    text = README.read_text(encoding="utf-8")
    if not blocks(text, "python"):
        pytest.skip("README.md has no Python block to run")
    done = run_python(text, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_commands_name_what_exists():
    for name in ("README.md", "README.zh.md", "CONTRIBUTING.md"):
        for words in commands((ROOT / name).read_text(encoding="utf-8")):
            assert not unknown_targets(words), f"{name}: {shlex.join(words)}"


PAGE = """
```python
value = 1
open("file.txt", "w", encoding="utf-8").close()
```
<!-- not run: it fails on purpose -->
```python
raise ValueError("not to be run")
```
```python
import os
assert "value" not in globals() and os.listdir() == ["examples"]
```
"""


def test_blocks_are_apart_and_marked_ones_are_left_out(tmp_path):
    done = run_python(PAGE, tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_failing_block_is_seen_with_its_line(tmp_path):
    done = run_python(PAGE + "```python\nraise KeyError\n```\n", tmp_path)
    assert done.returncode != 0
    assert f'"README.md", line {PAGE.count(chr(10)) + 2}' in done.stderr


def test_a_command_that_names_nothing_is_seen():
    page = "```bash\nKERAS_BACKEND=jax make test && make dinner\npython none.py --seed 1  # make no\n```\n"
    assert [unknown_targets(words) for words in commands(page)] == [[], ["dinner"], ["none.py"]]
