"""Run the suite once per backend, each in its own process.

Usage: python -m tests [backend ...] [-- pytest arguments]
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

BACKENDS = ("tensorflow", "jax", "torch")
ROOT = Path(__file__).resolve().parents[1]


def parse(arguments):
    """Split the command line at `--` into backends (default: all three) and arguments for pytest."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    backends, pytest_arguments = arguments[:split], arguments[split + 1 :]
    for name in backends:
        if name not in BACKENDS:
            sys.exit(f"backends are {', '.join(BACKENDS)}; got {name}. Arguments for pytest go after --")
    return backends or BACKENDS, pytest_arguments


def counts(report):
    """Passed, failed and skipped tests of a JUnit report; errors count as failures."""
    suite = ElementTree.parse(report).getroot().find("testsuite")
    number = {key: int(suite.get(key)) for key in ("tests", "failures", "errors", "skipped")}
    failed = number["failures"] + number["errors"]
    return number["tests"] - failed - number["skipped"], failed, number["skipped"]


def run(backend, pytest_arguments):
    """One run of pytest; returns (backend, passed, failed, skipped, seconds, exit code)."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", f"--junitxml={report}", *pytest_arguments]
        code = subprocess.run(command, cwd=ROOT, env={**os.environ, "KERAS_BACKEND": backend}).returncode
        # A run that crashed leaves no report; its exit code still fails the whole.
        result = counts(report) if report.exists() else (0, 0, 0)
    return backend, *result, time.perf_counter() - started, code


def main(arguments):
    """Run the backends, print one table, and return 0 only if every run passed."""
    backends, pytest_arguments = parse(arguments)
    missing = [name for name in backends if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"not installed here: {', '.join(missing)}. Install it, or name the backends to run: "
                 "python -m tests tensorflow")
    rows = [run(backend, pytest_arguments) for backend in backends]
    print(f"\n{'backend':<12}{'passed':>8}{'failed':>8}{'skipped':>9}{'seconds':>9}")
    for backend, passed, failed, skipped, seconds, code in rows:
        remark = "" if code in (0, 1) else f"  pytest ended with code {code}"
        print(f"{backend:<12}{passed:>8}{failed:>8}{skipped:>9}{seconds:>9.0f}{remark}")
    passed, failed, skipped = (sum(row[column] for row in rows) for column in (1, 2, 3))
    print(f"\n{passed} passed, {failed} failed, {skipped} skipped")
    return int(any(row[5] for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
