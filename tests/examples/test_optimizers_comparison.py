"""The comparison of optimizers end to end, and that it leaves none out."""

import json

import pytest

from bert4x import optimizers
from tests.conftest import ROOT
from tests.examples.conftest import result, run

SCRIPT = "task_optimizers_comparison"
SAMPLE = ROOT / "examples" / "datasets" / "sentiment_sample.tsv"
TEXT = (ROOT / "examples" / f"{SCRIPT}.py").read_text(encoding="utf-8")
# Of optimizers: not one to use itself, and names of the same class.
OTHERS = {"Optimizer", "AdaFactorBase", "AdaFactorV1", "AdaFactorV2", "LionV2"}


def test_every_optimizer_and_every_extension_is_compared():
    classes = {name for name in optimizers.__all__ if isinstance(getattr(optimizers, name), type)}
    classes = {name for name in classes if issubclass(getattr(optimizers, name), optimizers.Optimizer)} - OTHERS
    assert classes == {"AdaFactor", "AdaX", "AdaXW", "Adam", "Lion"}
    assert all(f"optimizers.{name}(" in TEXT for name in classes)
    extensions = [name.removeprefix("extend_with_") for name in optimizers.__all__ if name.startswith("extend_with_")]
    extensions = [name for name in extensions if not name.endswith("_v2")]
    assert len(extensions) == 9 and all(f'"{name}"' in TEXT for name in extensions)


@pytest.mark.example
def test_learns_from_the_sample(tmp_path):
    pytest.importorskip("matplotlib")
    names = ["Adam", "average of weights"]
    short = ["--data", SAMPLE, "--max-length", 20, "--batch-size", 16, "--steps", 60]
    scores = result(run(SCRIPT, *short, "--only", *names, "--output", tmp_path))
    assert set(scores["accuracies"]) == set(names)
    assert scores["metric"] == min(scores["accuracies"].values()) > scores["baseline"] + 0.1
    curves = json.loads((tmp_path / "curves.json").read_text(encoding="utf-8"))
    assert all(len(curve) == 3 and curve[-1] < curve[0] for curve in curves.values())
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    # Same weights, batches and dropout: while the weights are averaged, training is Adam's.
    assert curves["average of weights"] == pytest.approx(curves["Adam"], rel=1e-4)


@pytest.mark.slow
def test_smoke_run_passes_on_real_reviews(shared_data, tmp_path):
    scores = result(run(SCRIPT, "--smoke", "--output", tmp_path))
    assert scores["metric"] > scores["baseline"] + 0.15 and len(scores["accuracies"]) == 16


@pytest.mark.slow
def test_all_run_and_differ(tmp_path):
    short = ["--data", SAMPLE, "--max-length", 20, "--batch-size", 8, "--steps", 40]
    scores = result(run(SCRIPT, *short, "--output", tmp_path))
    curves = json.loads((tmp_path / "curves.json").read_text(encoding="utf-8"))
    assert set(curves) == set(scores["accuracies"]) and len(curves) == 16
    # The average takes no part in training, and the decay of AdaXW is too small for so few steps.
    same = {"Adam", "average of weights", "AdaXW"}
    others = {name: curve for name, curve in curves.items() if name not in same}
    assert len({tuple(curve) for curve in others.values()}) == 13
