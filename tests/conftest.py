"""What every test shares: the backend, the data folder, the seed, the markers and all tolerances."""

import importlib.util
import os
import random
import sys
from pathlib import Path

import hypothesis
import pytest

# Both must be set before the first test module imports Keras; this file never imports it, so that tests of
# the tokenizers alone stay free of a backend.
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Nearly every test compiles something that it runs once: most of XLA's time would go into optimising that. By a third
# less time on JAX. (Subprocesses inherit it.)
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")

ROOT = Path(__file__).resolve().parents[1]

# Absolute tolerances. float32 is the rule for the outputs of a model.
TOLERANCES = {
    "float32": 1e-5,
    "float16": 5e-3,  # 10 bits of fraction
    "bfloat16": 5e-2,  # 7 bits of fraction
    "gradient": 1e-4,  # sums over batch and time of float32 products
    "golden": 1e-4,  # the numbers of the specification are printed with few digits
}

# A first example compiles graphs for seconds, which a deadline would report as a flaky test. CI draws the
# same examples every time; a developer's run keeps looking for new ones.
hypothesis.settings.register_profile("bert4x", deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("bert4x")


def pytest_report_header():
    """Name the backend at the top of every run."""
    return f"keras backend: {os.environ['KERAS_BACKEND']}"


def pytest_collection_modifyitems(items):
    """Skip parity tests, saying why, where the other library is not installed."""
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        skip = pytest.mark.skip(reason=f"parity needs {' and '.join(missing)}, not installed here")
        for item in items:
            if "parity" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def seed():
    """Start each test from the same random state, on whatever the tests have imported so far."""
    if "keras" in sys.modules:
        sys.modules["keras"].utils.set_random_seed(0)
    else:
        random.seed(0)
    return 0


@pytest.fixture(scope="session")
def shared_data():
    """The folder with the project's real data, which lies beside a checkout but is not part of it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no shared data: {folder} is not there")
    return folder


@pytest.fixture(scope="session")
def tolerances():
    """Absolute tolerances by what is compared: a float type, `gradient` or `golden`."""
    return dict(TOLERANCES)


@pytest.fixture(scope="session")
def tolerance():
    """Absolute tolerance for comparing float32 outputs."""
    return TOLERANCES["float32"]
