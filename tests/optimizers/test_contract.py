"""Base x extension x pair against NumPy, the order of calls, configs and errors."""

import itertools

import numpy as np
import pytest

from bert4x import optimizers as o
from bert4x.backend import keras, ops
from tests.optimizers.problems import (
    EMBEDDINGS,
    START,
    all_gradients,
    apply_all,
    assert_near,
    dense_gradients,
    make_variables,
    run,
    values,
)
from tests.optimizers.rows import BASES, EXTENSIONS, OTHERS, make, make_class, wanted

EVERYTHING = {**START, **EMBEDDINGS}
PAIRS = list(itertools.combinations(EXTENSIONS, 2))


def test_every_public_name_has_a_row():
    bases = {cls.__name__ for cls, *_ in BASES.values()}
    rows = bases | set(OTHERS) | {f"extend_with_{name}" for name in EXTENSIONS}
    old = {f"extend_with_{name}_v2" for name in EXTENSIONS}
    assert set(o.__all__) - old - rows == set()


def check(base, names, compiled=False):
    calls = 10 if "gradient_accumulation" in names else 5
    optimizer = make(base, names)
    variables = make_variables(EVERYTHING)
    apply_all(optimizer, variables, all_gradients, last=calls, compiled=compiled)
    gradients = [all_gradients(t) for t in range(1, calls + 1)]
    weights, averages = wanted(base, names, EVERYTHING, gradients)
    assert_near(values(variables), weights, BASES[base][3])
    assert int(optimizer.iterations) == 5
    if "exponential_moving_average" in names:
        state = {v.name: ops.convert_to_numpy(v) for v in optimizer.variables}
        got = {path: state[f"{path.replace('/', '_')}_average"] for path in EVERYTHING}
        assert_near(got, averages, BASES[base][3])


@pytest.mark.filterwarnings("ignore:Layer adaptation on AdaFactor")
@pytest.mark.parametrize("base", BASES)
def test_extensions_and_pairs(base, float64):
    check(base, [])
    for name in EXTENSIONS:
        check(base, [name])
    for number, pair in enumerate(PAIRS):
        check(base, pair[:: 1 - 2 * (number % 2)])


@pytest.mark.filterwarnings("ignore:Layer adaptation on AdaFactor")
@pytest.mark.parametrize("base", BASES)
def test_all_together(base, float64):
    check(base, list(EXTENSIONS))
    check(base, list(EXTENSIONS)[::-1])


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="JAX compiles in every test, torch in none")
@pytest.mark.filterwarnings("ignore:Layer adaptation on AdaFactor")
@pytest.mark.parametrize("base", BASES)
def test_compiled(base, float64):
    """Every extension and, of one base, every pair in a TensorFlow graph."""
    check(base, list(EXTENSIONS), compiled=True)
    for names in [[name] for name in EXTENSIONS] + (PAIRS if base == "Adam" else []):
        check(base, names, compiled=True)


@pytest.mark.parametrize("base", [name for name in BASES if name != "AdaFactor"])
def test_frozen_moments(base, float64):
    optimizer = make(base, ["lazy_optimization"], freeze_moments=True)
    variables = make_variables(EVERYTHING)
    apply_all(optimizer, variables, all_gradients)
    gradients = [all_gradients(t) for t in range(1, 6)]
    assert_near(values(variables), wanted(base, ["lazy_optimization"], EVERYTHING, gradients, freeze=True)[0],
                BASES[base][3])


def test_order_of_calls_is_immaterial():
    for pair in PAIRS:
        assert make_class("Adam", pair).extensions == make_class("Adam", pair[::-1]).extensions


@pytest.mark.parametrize("name", EXTENSIONS)
def test_twice_is_an_error(name):
    with pytest.raises(ValueError, match="already"):
        make_class("Adam", [name, name])


@pytest.mark.parametrize("base", BASES)
def test_config_makes_the_same_optimizer(base):
    optimizer = make(base, list(EXTENSIONS)[:3] + list(EXTENSIONS)[4:], clipnorm=1.0)
    config = keras.saving.serialize_keras_object(optimizer)
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == optimizer.get_config()
    assert (again.base_class, again.extensions) == (optimizer.base_class, optimizer.extensions)
    plain = make(base, [])
    assert type(plain).from_config(plain.get_config()).get_config() == plain.get_config()


def test_old_names():
    assert o.AdaFactorBase is o.AdaFactorV1 is o.AdaFactorV2 is o.AdaFactor and o.LionV2 is o.Lion
    for name in EXTENSIONS:
        if name != "gradient_centralization":  # bert4keras had none
            assert getattr(o, f"extend_with_{name}_v2") is getattr(o, f"extend_with_{name}")


def test_adaxw(float64):
    gradients = [dense_gradients(t) for t in range(1, 6)]
    weights, _ = wanted("AdaX", ["weight_decay"], START, gradients)
    assert_near(run(o.AdaXW(0.01, weight_decay_rate=0.25)), weights, 1e-12)


def test_subclasses_and_names():
    cls = o.extend_with_weight_decay(o.Adam, name="AdamW")
    assert cls.__name__ == "AdamW" and issubclass(cls, o.Adam)
    assert issubclass(o.extend_with_lookahead(cls), cls)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-6), ("bfloat16", 2e-2)])
def test_other_dtypes(dtype, tolerance):
    names = list(EXTENSIONS)
    optimizer, variables = make("Adam", names), make_variables(EVERYTHING, dtype)
    apply_all(optimizer, variables, all_gradients, last=10)
    gradients = [all_gradients(t) for t in range(1, 11)]
    got = {path: value.astype("float32") for path, value in values(variables).items()}
    assert_near(got, wanted("Adam", names, EVERYTHING, gradients)[0], tolerance)


def test_layer_adaptation_moves_by_the_rate(float64):
    """Decay is inside the ratio, the rate outside."""
    optimizer = make("Adam", ["weight_decay", "layer_adaptation"])
    got = run(optimizer, calls=1)
    for path, x in START.items():
        np.testing.assert_allclose(np.linalg.norm(got[path] - x), 0.01 * np.linalg.norm(x), rtol=1e-12)


def test_zero_rates_and_zero_weights(float64):
    names = ["weight_decay", "layer_adaptation"]
    assert_near(run(make_class("Adam", names)(0.0)), START, 0)
    zeros = {"dense/kernel": np.zeros((2, 3))}
    got = run(make("Adam", names), zeros, lambda t: {"dense/kernel": dense_gradients(t)["dense/kernel"]}, 1)
    assert np.isfinite(got["dense/kernel"]).all() and (got["dense/kernel"] != 0).all()


def test_weights_loaded_after_build_are_where_lookahead_starts(float64):
    optimizer, variables = make("Adam", ["lookahead"]), make_variables(START)
    optimizer.build(variables)
    for v in variables:
        v.assign(v + 1)
    apply_all(optimizer, variables, dense_gradients)
    moved = {path: x + 1 for path, x in START.items()}
    gradients = [dense_gradients(t) for t in range(1, 6)]
    assert_near(values(variables), wanted("Adam", ["lookahead"], moved, gradients)[0], 1e-12)


def test_keras_schedule_counts_updates(float64):
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.5, 0.125])
    seen = []
    optimizer = make_class("Adam", ["gradient_accumulation"])(schedule, grad_accum_steps=3)
    variables = make_variables(START)
    for t in range(1, 10):
        seen.append(float(optimizer.effective_learning_rate()))
        apply_all(optimizer, variables, dense_gradients, t, t)
    assert seen == [0.5] * 6 + [0.125] * 3


def test_effective_learning_rate():
    optimizer, variables, seen = make("Adam", ["piecewise_linear_lr"]), make_variables(START, "float32"), []
    for t in range(1, 7):
        seen.append(float(optimizer.effective_learning_rate()))
        apply_all(optimizer, variables, dense_gradients, t, t)
    np.testing.assert_allclose(seen, [0, 0.005, 0.01, 0.0075, 0.005, 0.005], rtol=1e-6)
    assert float(ops.convert_to_numpy(optimizer.learning_rate)) == np.float32(0.01)  # what callbacks may set


def test_clipping_is_of_the_mean_gradient(float64):
    def large(t):
        return {path: 1000 * g for path, g in dense_gradients(t).items()}

    mean = {path: sum(large(t)[path] for t in (1, 2)) / 2 for path in START}
    norm = np.sqrt(sum((g**2).sum() for g in mean.values()))
    cls = o.extend_with_gradient_accumulation(keras.optimizers.SGD)
    got = run(cls(0.5, global_clipnorm=1.0, grad_accum_steps=2), gradients=large, calls=2)
    assert_near(got, {path: x - 0.5 * mean[path] / norm for path, x in START.items()}, 1e-6)


def test_average_guards(float64):
    optimizer, variables = make("Adam", ["exponential_moving_average"]), make_variables(START)
    optimizer.build(variables)
    with pytest.raises(RuntimeError, match="before the first update"):
        optimizer.apply_ema_weights()
    with pytest.raises(RuntimeError, match="needs a call"):
        optimizer.reset_old_weights()
    apply_all(optimizer, variables, dense_gradients)
    before = values(variables)
    optimizer.apply_ema_weights()
    optimizer.apply_ema_weights()
    optimizer.reset_old_weights()
    assert_near(values(variables), before, 0)


def test_a_variable_without_gradient_keeps_its_value_in_the_average():
    optimizer, variables = make("Adam", ["exponential_moving_average"]), make_variables(START, "float32")
    gradients = dense_gradients(1)
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply([ops.convert_to_tensor(gradients["dense/kernel"], dtype="float32"), None], variables)
    optimizer.apply_ema_weights()
    np.testing.assert_array_equal(values(variables)["dense/bias"], START["dense/bias"].astype("float32"))


def test_warnings_and_errors():
    variables = make_variables(START, "float32")
    with pytest.warns(UserWarning, match="'Nrom' is in no variable's path"):
        make_class("Adam", ["weight_decay"])(0.01, exclude_from_weight_decay=["Nrom"]).build(variables)
    with pytest.warns(UserWarning, match="'Embeding' is in no variable's path"):
        make_class("Adam", ["parameter_wise_lr"])(0.01, paramwise_lr_schedule={"Embeding": 2}).build(variables)
    with pytest.warns(UserWarning, match="normalises twice"):
        make_class("AdaFactor", ["layer_adaptation"])(0.01).build(variables)
    with pytest.raises(TypeError, match="optimizer class"):
        o.extend_with_lookahead(o.Adam())
    with pytest.raises(TypeError, match="list of patterns"):
        make_class("Adam", ["weight_decay"])(0.01, exclude_from_weight_decay="bias")
    with pytest.raises(ValueError, match="not recognized"):
        make_class("Adam", ["weight_decay"])(0.01, weight_decay_rat=0.1)
    with pytest.raises(ValueError, match="must not be given"):
        make_class("Adam", ["gradient_accumulation"])(0.01, gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match="state of the variable's shape"):
        make("AdaFactor", ["lazy_optimization"], freeze_moments=True).build(make_variables(EMBEDDINGS, "float32"))


@pytest.mark.parametrize("name, options", [
    ("gradient_accumulation", {"grad_accum_steps": 0}),
    ("piecewise_linear_lr", {"lr_schedule": {}}),
    ("piecewise_linear_lr", {"lr_schedule": {-1: 1}}),
    ("piecewise_linear_lr", {"lr_schedule": {1: 1, "1": 2}}),
    ("lookahead", {"steps_per_slow_update": 0}),
    ("exponential_moving_average", {"ema_momentum": 1.0}),
])
def test_bad_options(name, options):
    with pytest.raises(ValueError, match="must"):
        make_class("Adam", [name])(0.01, **options)
