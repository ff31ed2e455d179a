"""The contract tables: every optimizer, every extension, and the options under which the tests run them."""

from bert4x import optimizers as o
from bert4x.backend import keras
from tests.optimizers import reference

SCHEDULE = {2: 1.0, 4: 0.5}  # halves and quarters, exact in float32
PARAMWISE = {"dense": 2.0, "bias": 0.25}

# name: (class, options, NumPy direction, absolute tolerance after five updates in float64). Keras' own classes make
# float32 of their coefficients on TensorFlow.
BASES = {
    "Adam": (o.Adam, {}, reference.adam, 1e-12),
    "Adam without correction": (o.Adam, {"bias_correction": False}, reference.adam_without_correction, 1e-12),
    "AdaFactor": (o.AdaFactor, {"min_dim_size_to_factor": 2}, reference.adafactor, 1e-12),
    "AdaX": (o.AdaX, {}, reference.adax, 1e-12),
    "Lion": (o.Lion, {}, reference.lion, 1e-12),
    "keras.SGD": (keras.optimizers.SGD, {"momentum": 0.9}, reference.sgd, 1e-7),
    "keras.RMSprop": (keras.optimizers.RMSprop, {}, reference.rmsprop, 1e-7),
    "keras.Adam": (keras.optimizers.Adam, {}, reference.keras_adam, 1e-6),
}

# name after `extend_with_`: (options, the same for the reference)
EXTENSIONS = {
    "gradient_accumulation": ({"grad_accum_steps": 2}, {"accumulate": 2}),
    "gradient_centralization": ({}, {"centralize": True}),
    "weight_decay": ({"weight_decay_rate": 0.25}, {"decay": 0.25}),
    "layer_adaptation": ({}, {"adapt": True}),
    "piecewise_linear_lr": ({"lr_schedule": SCHEDULE}, {"schedule": SCHEDULE}),
    "parameter_wise_lr": ({"paramwise_lr_schedule": PARAMWISE}, {"paramwise": PARAMWISE}),
    "lazy_optimization": ({"include_in_lazy_optimization": ["emb"]}, {"lazy": True}),
    "lookahead": ({"steps_per_slow_update": 2, "slow_step_size": 0.5}, {"lookahead": (2, 0.5)}),
    "exponential_moving_average": ({"ema_momentum": 0.75}, {"ema": 0.75}),
}
# Public names without a row of their own, and the test that has them.
OTHERS = {
    "AdaXW": "test_adaxw", "Optimizer": "every row", "EvaluateWithEMA": "test_training", "ema_weights": "test_training",
    "RelativeStep": "test_values", "layer_wise_lr_decay": "test_layer_wise_decay", "piecewise_linear": "tests/backend",
    "AdaFactorBase": "test_old_names", "AdaFactorV1": "test_old_names", "AdaFactorV2": "test_old_names",
    "LionV2": "test_old_names",
}


def make_class(base, names):
    """The class with the named extensions, the first innermost."""
    made = BASES[base][0]
    for name in names:
        made = getattr(o, f"extend_with_{name}")(made)
    return made


def make(base, names, **options):
    """An optimizer with rate 0.01 and the rows' options."""
    for name in names:
        options = {**EXTENSIONS[name][0], **options}
    return make_class(base, names)(0.01, **{**BASES[base][1], **options})


def wanted(base, names, start, gradients, **on):
    """(weights, averages) by path as NumPy has them."""
    for name in names:
        on = {**EXTENSIONS[name][1], **on}
    lazy = on.pop("lazy", False)
    results = {
        path: reference.trajectory(
            BASES[base][2], x, [g[path] for g in gradients], path, lazy=lazy and path.startswith("emb"), **on
        )
        for path, x in start.items()
    }
    return tuple({path: result[part] for path, result in results.items()} for part in (0, 1))
