"""What importing the package costs and pulls in, and the runner `python -m tests`."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest

import bert4x
from tests.conftest import ROOT

PACKAGES = sorted(f"bert4x.{init.parent.name}" for init in (ROOT / "bert4x").glob("*/__init__.py"))
HEAVY = {"numpy", "keras", "tensorflow", "jax", "torch", "h5py", "safetensors", "sentencepiece", "tqdm"}


def python(*arguments, path="", backend=None):
    """Run a fresh interpreter at the root of the repository, with one more folder on its path."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(path)])}
    if backend:
        environment["KERAS_BACKEND"] = backend
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def run_suite(name):
    """`python -m tests` on this run's backend, with only the test of this file called `name`."""
    return python("-m", "tests", os.environ["KERAS_BACKEND"], "--", "tests/test_package.py", "-k", name)


def loaded_by(modules, backend=None):
    """The heavy modules in memory after importing `modules` in a fresh interpreter."""
    done = python("-c", f"import sys, {', '.join(modules)}; print(*sys.modules)", backend=backend)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split()) & HEAVY


def seconds_to_import(module, path):
    """Time of one import: the smallest of five fresh interpreters, since noise only ever adds."""
    code = f"import time; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"
    return min(float(python("-c", code, path=path).stdout) for _ in range(5))


def test_version():
    assert bert4x.__all__ == ["__version__"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", bert4x.__version__)


def test_import_loads_nothing_heavy():
    assert loaded_by(["bert4x"]) == set()


def test_import_takes_less_than_a_tenth_of_a_second(tmp_path):
    (tmp_path / "empty_module.py").write_text("", encoding="utf-8")
    assert seconds_to_import("bert4x", tmp_path) - seconds_to_import("empty_module", tmp_path) < 0.1


@pytest.mark.skipif("bert4x.tokenizers" not in PACKAGES, reason="bert4x.tokenizers is not written yet")
def test_tokenizers_load_without_keras():
    assert loaded_by(["bert4x.tokenizers"]) & {"keras", "tensorflow", "jax", "torch"} == set()


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_package_loads_without_tensorflow_on(backend):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed here")
    assert "tensorflow" not in loaded_by(PACKAGES, backend)


def test_runner_counts_tests_and_ends_with_the_plain_line():
    done = run_suite("test_version")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "1 passed, 0 failed, 0 skipped"


def test_runner_fails_when_a_backend_ran_no_test():
    done = run_suite("no_such_test")
    assert done.returncode != 0
    assert "pytest ended with code 5" in done.stdout


def test_runner_rejects_an_unknown_backend():
    done = python("-m", "tests", "theano")
    assert done.returncode != 0
    assert "backends are tensorflow, jax, torch; got theano" in done.stderr
