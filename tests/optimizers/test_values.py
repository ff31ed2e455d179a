"""The check values of the specification."""

import numpy as np
import pytest

from bert4x import optimizers as o
from bert4x.backend import ops
from tests.optimizers.golden import VALUES
from tests.optimizers.problems import (
    EMBEDDINGS,
    START,
    apply_all,
    assert_near,
    dense_gradients,
    make_variables,
    row_gradients,
    run,
    values,
)

pytestmark = pytest.mark.usefixtures("float64")

SCHEDULE = {2: 1.0, 4: 0.1}
TESTED = {"adam", "adam_no_bias_correction", "adam_ema0.9", "adafactor_3d_3steps", "lazy", "accumulation_regression",
          "combined_12_micro_steps"}


def extended(base, *extensions):
    for extension in extensions:
        base = getattr(o, f"extend_with_{extension}")(base)
    return base


def lamb(**options):
    cls = extended(o.Adam, *(["piecewise_linear_lr"] if "lr_schedule" in options else []),
                   "layer_adaptation", "weight_decay")
    return cls(0.01, bias_correction=False, weight_decay_rate=0.01, **options)


NO_BIAS = {"exclude_from_weight_decay": ["bias"], "exclude_from_layer_adaptation": ["bias"]}
ROWS = {
    "adax": lambda: o.AdaX(0.01),
    "lion_lr3e-4": lambda: o.Lion(),
    "adafactor_unfactored_lr0.01": lambda: o.AdaFactor(0.01),
    "adafactor_factored_min2_lr0.01": lambda: o.AdaFactor(0.01, min_dim_size_to_factor=2),
    "adafactor_factored_min2_lrNone_beta1_0.9":
        lambda: o.AdaFactor(None, 0.9, min_dim_size_to_factor=2),
    "adafactor_factored_min2_lrNone_no_param_scale":
        lambda: o.AdaFactor(None, multiply_by_parameter_scale=False, min_dim_size_to_factor=2),
    "adafactor_factored_min2_exclude_bias_from_scale_lr0.01":
        lambda: o.AdaFactor(0.01, min_dim_size_to_factor=2, exclude_from_parameter_scale=["bias"]),
    "adam_weight_decay_0.01_excl_bias":
        lambda: extended(o.Adam, "weight_decay")(0.01, exclude_from_weight_decay=["bias"]),
    "lamb_nobc_wd0.01_excl_bias": lambda: lamb(**NO_BIAS),
    "lamb_nobc_wd0.01_no_exclusions": lambda: lamb(),
    "adam_schedule_2_1_4_0.1": lambda: extended(o.Adam, "piecewise_linear_lr")(0.01, lr_schedule=SCHEDULE),
    "lamb_schedule": lambda: lamb(lr_schedule=SCHEDULE, **NO_BIAS),
    "adam_paramwise_kernel2_bias0.1":
        lambda: extended(o.Adam, "parameter_wise_lr")(0.01, paramwise_lr_schedule={"kernel": 2, "bias": 0.1}),
    "adam_lookahead_k2_a0.5":
        lambda: extended(o.Adam, "lookahead")(0.01, steps_per_slow_update=2, slow_step_size=0.5),
}


def test_every_value_is_tested():
    assert set(VALUES) == set(ROWS) | TESTED


@pytest.mark.parametrize("key", ROWS)
def test_value(key):
    wanted = VALUES[key].get("step5", VALUES[key])
    assert_near(run(ROWS[key]()), wanted, 1e-9)
    if "step1" in VALUES[key]:
        assert_near(run(ROWS[key](), calls=1), VALUES[key]["step1"], 1e-9)


@pytest.mark.parametrize("key, correct", [("adam", True), ("adam_no_bias_correction", False)])
def test_adam(key, correct):
    for step in (1, 5):
        got = run(o.Adam(0.01, bias_correction=correct), calls=step)
        assert_near(got, VALUES[key][f"step{step}"], 1e-9)


def test_adafactor_of_three_axes():
    wanted, (i, j, k) = VALUES["adafactor_3d_3steps"], np.indices((4, 2, 3))
    start = {"some/cube": 0.1 * (i - 1.5) + 0.2 * j - 0.05 * k}
    optimizer = o.AdaFactor(0.01, min_dim_size_to_factor=2)
    got = run(optimizer, start, lambda t: {"some/cube": 0.1 * np.sin(t + i + 2 * j + 3 * k)}, 3)["some/cube"]
    assert list(optimizer.factored_axes((4, 2, 3))) == wanted["axes_largest_second"]
    assert [list(v.shape) for v in optimizer.variables if len(v.shape) == 3] == wanted["slot_shapes"]
    np.testing.assert_allclose(start["some/cube"].sum(), wanted["x0_sum"])
    np.testing.assert_allclose([got.sum(), np.abs(got).sum()], [wanted["x_sum"], wanted["x_abs_sum"]], atol=1e-9)
    np.testing.assert_allclose(got.ravel()[:6], wanted["x_flat_first6"], rtol=0, atol=1e-9)


def test_average():
    wanted = VALUES["adam_ema0.9"]
    optimizer = extended(o.Adam, "exponential_moving_average")(0.01, ema_momentum=0.9)
    variables = make_variables(START)
    apply_all(optimizer, variables, dense_gradients)
    before = values(variables)
    optimizer.apply_ema_weights(bias_correction=False)
    assert_near(values(variables), wanted["raw"], 1e-9)
    optimizer.apply_ema_weights()
    assert_near(values(variables), wanted["bias_corrected"], 1e-9)
    optimizer.reset_old_weights()
    assert_near(values(variables), before, 0)


def test_all_at_once_in_micro_steps():
    wanted = VALUES["combined_12_micro_steps"]
    cls = extended(
        o.Adam, "exponential_moving_average", "lookahead", "layer_adaptation", "gradient_accumulation",
        "parameter_wise_lr", "weight_decay", "piecewise_linear_lr",
    )
    optimizer = cls(
        0.01, bias_correction=False, grad_accum_steps=2, weight_decay_rate=0.01, lr_schedule=SCHEDULE,
        paramwise_lr_schedule={"kernel": 0.5}, steps_per_slow_update=3, slow_step_size=0.5, ema_momentum=0.9, **NO_BIAS,
    )
    assert_near(run(optimizer, calls=12), wanted["weights"], 1e-9)
    state = {v.name: ops.convert_to_numpy(v) for v in optimizer.variables}
    for kind, suffix in (("slow", "slow"), ("ema_raw", "average")):
        assert_near({p: state[f"{p.replace('/', '_')}_{suffix}"] for p in START}, wanted[kind], 1e-9)
    assert int(optimizer.iterations) == 6


@pytest.mark.parametrize("key, options", [
    ("plain", {}),
    ("lazy", {"include_in_lazy_optimization": ["emb"]}),
    ("lazy_wd_0.01", {"include_in_lazy_optimization": ["emb"], "weight_decay_rate": 0.01}),
    ("freeze_moments_variant", {"include_in_lazy_optimization": ["emb"], "freeze_moments": True}),
])
def test_lazy(key, options):
    cls = extended(o.Adam, "lazy_optimization", *(["weight_decay"] if "weight_decay_rate" in options else []))
    got = run(cls(0.01, **options), EMBEDDINGS, row_gradients)
    assert_near(got, VALUES["lazy"][key], 1e-9)
    if key != "plain":
        np.testing.assert_array_equal(got["emb/embeddings"][3], EMBEDDINGS["emb/embeddings"][3])


def regression(optimizer, rows, epochs=2):
    """Linear regression on 8 rows in batches of `rows`."""
    i, j = np.indices((8, 2))
    x, y = np.sin(1 + i + 2 * j), 0.5 * np.cos(np.arange(8))
    w, c = variables = make_variables({"a/w": np.array([0.3, -0.2]), "a/c": np.array(0.1)})
    for start in list(range(0, 8, rows)) * epochs:
        batch, target = x[start : start + rows], y[start : start + rows]
        error = batch @ ops.convert_to_numpy(w) + ops.convert_to_numpy(c) - target
        gradients = [2 * batch.T @ error / rows, 2 * error.mean()]
        optimizer.apply([ops.convert_to_tensor(g, dtype="float64") for g in gradients], variables)
    return {"w": np.array(ops.convert_to_numpy(w)), "c": np.array(ops.convert_to_numpy(c))}


@pytest.mark.parametrize("key, options", [("adam", {}), ("adam_with_schedule_2_1_4_05", {2: 1.0, 4: 0.5})])
def test_accumulation_is_one_large_batch(key, options):
    names, options = (["piecewise_linear_lr"], {"lr_schedule": options}) if options else ([], {})
    small = regression(extended(o.Adam, *names, "gradient_accumulation")(0.05, grad_accum_steps=2, **options), 2)
    large = regression(extended(o.Adam, *names)(0.05, **options), 4)
    assert_near(small, VALUES["accumulation_regression"][key], 1e-9)
    assert_near(small, large, 1e-12)


@pytest.mark.parametrize("steps", [None, 1])
def test_without_accumulation(steps):
    cls = o.Adam if steps is None else extended(o.Adam, "gradient_accumulation")
    options = {} if steps is None else {"grad_accum_steps": 1}
    got = regression(cls(0.05, **options), 2)
    assert_near(got, VALUES["accumulation_regression"]["single_small_batch_no_accum"], 1e-9)
