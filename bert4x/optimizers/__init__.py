"""Optimizers and their extensions. Importing this package registers them, so that `load_model` finds them."""

from bert4x.backend import piecewise_linear
from bert4x.optimizers.adafactor import AdaFactor
from bert4x.optimizers.adam import Adam, Lion
from bert4x.optimizers.adax import AdaX, AdaXW
from bert4x.optimizers.averaging import EvaluateWithEMA, ema_weights
from bert4x.optimizers.base import Optimizer
from bert4x.optimizers.extensions import (
    extend_with_exponential_moving_average,
    extend_with_exponential_moving_average_v2,
    extend_with_gradient_accumulation,
    extend_with_gradient_accumulation_v2,
    extend_with_gradient_centralization,
    extend_with_layer_adaptation,
    extend_with_layer_adaptation_v2,
    extend_with_lazy_optimization,
    extend_with_lazy_optimization_v2,
    extend_with_lookahead,
    extend_with_lookahead_v2,
    extend_with_parameter_wise_lr,
    extend_with_parameter_wise_lr_v2,
    extend_with_piecewise_linear_lr,
    extend_with_piecewise_linear_lr_v2,
    extend_with_weight_decay,
    extend_with_weight_decay_v2,
)
from bert4x.optimizers.schedules import RelativeStep, layer_wise_lr_decay

AdaFactorBase = AdaFactorV1 = AdaFactorV2 = AdaFactor  # bert4keras' names
LionV2 = Lion

__all__ = [
    "AdaFactor",
    "AdaFactorBase",
    "AdaFactorV1",
    "AdaFactorV2",
    "AdaX",
    "AdaXW",
    "Adam",
    "EvaluateWithEMA",
    "Lion",
    "LionV2",
    "Optimizer",
    "RelativeStep",
    "ema_weights",
    "extend_with_exponential_moving_average",
    "extend_with_exponential_moving_average_v2",
    "extend_with_gradient_accumulation",
    "extend_with_gradient_accumulation_v2",
    "extend_with_gradient_centralization",
    "extend_with_layer_adaptation",
    "extend_with_layer_adaptation_v2",
    "extend_with_lazy_optimization",
    "extend_with_lazy_optimization_v2",
    "extend_with_lookahead",
    "extend_with_lookahead_v2",
    "extend_with_parameter_wise_lr",
    "extend_with_parameter_wise_lr_v2",
    "extend_with_piecewise_linear_lr",
    "extend_with_piecewise_linear_lr_v2",
    "extend_with_weight_decay",
    "extend_with_weight_decay_v2",
    "layer_wise_lr_decay",
    "piecewise_linear",
]
