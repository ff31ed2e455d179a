"""The benchmark runs, says what it skips, and compares with a goal."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "benchmark" / "tokenization.py"


def test_the_benchmark_runs(shared_data):
    pytest.importorskip("tokenizers")
    command = [sys.executable, str(SCRIPT), "--data", str(shared_data), "--limit", "50", "--rounds", "3"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    assert "SKIPPED bert4keras" in done.stdout and "times as fast as rust (goal 3.0" in done.stdout


def test_without_data_it_says_so(tmp_path):
    command = [sys.executable, str(SCRIPT), "--data", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0 and done.stdout.startswith("SKIPPED: no data")
