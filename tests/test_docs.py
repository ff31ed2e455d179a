"""The pages in docs/ do what they say: their Python blocks run."""

import pytest

from tests.conftest import ROOT
from tests.test_readme import blocks, commands, run_python, unknown_targets

PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_of_the_page_run(page, tmp_path):
    text = page.read_text(encoding="utf-8")
    assert blocks(text, "python")
    done = run_python(text, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not [words for words in commands(text) if unknown_targets(words)]


def test_readme_links_every_page():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert PAGES and all(f"](docs/{page.name})" in readme for page in PAGES)
