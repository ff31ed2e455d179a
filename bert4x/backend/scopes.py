"""Running layers with other values in place of their variables: what needs Keras' scopes but no backend."""

import contextlib
import copy

import keras
import numpy as np
from keras import ops

# Private, without a public counterpart: what the layers now running have set for the layers inside them.
from keras.src.backend.common import global_state


@contextlib.contextmanager
def overridden(replacements, model):
    """Run a layer or model in the block with some of its variables replaced by tensors.

    Gradients flow to the tensors given and to the other variables. Works inside a running train step. When
    the block ends, what it assigned to other variables (dropout seeds, moving averages, metrics) is assigned
    to them, as constants. Losses from `add_loss` in the block are in `model.losses` there, and only there.

    Args:
        replacements: list of pairs (Keras variable, tensor of its shape). Not a dict: variables have no hash.
        model: the layer, model or list of them that runs in the block; they own the variables.
    Raises: ValueError for a variable that is not theirs, or a wrong shape.
    """
    variables = variables_of(model)
    replaced = {id(v): value for v, value in replacements}
    foreign = [v.path for v, _ in replacements if id(v) not in {id(own) for own in variables}]
    if foreign:
        raise ValueError(f"overridden needs variables of the model that runs in the block; got {foreign}")
    # All variables are mapped: JAX cannot reach an unmapped one from a nested scope, where the outer scope's
    # values are hidden.
    with keras_state(autocast_scope=None):  # values and dtypes as stored, not as the calling layer computes
        mapping = [(v, replaced.get(id(v), v.value)) for v in variables]
        scope = keras.StatelessScope(state_mapping=mapping, collect_losses=True)
    before = [scope.get_current_value(v) for v in variables]
    with scope, _own_losses(model):
        yield
    for variable, old in zip(variables, before, strict=True):
        new = scope.get_current_value(variable)
        if new is not old and id(variable) not in replaced:
            # Without stop_gradient a value that depends on x would leak out of JAX's trace.
            variable.assign(ops.stop_gradient(new))


@contextlib.contextmanager
def _own_losses(model):
    """Let the block's pass have `add_loss` losses of its own, and keep those of a pass in progress."""
    models = model if isinstance(model, (list, tuple)) else [model]
    layers = [layer for m in models for layer in m._flatten_layers()]
    # During a step TensorFlow and torch keep them in `_losses`, the JAX trainer in `_losses_override`.
    saved = [(layer._losses[:], layer._losses_override) for layer in layers]
    for layer in layers:
        layer._losses_override = []
    try:
        yield
    finally:
        for layer, (losses, override) in zip(layers, saved, strict=True):
            layer._losses[:], layer._losses_override = losses, override


@contextlib.contextmanager
def keras_state(**values):
    """Set attributes of Keras' global state for the block."""
    saved = {name: global_state.get_global_attribute(name) for name in values}
    for name, value in values.items():
        global_state.set_global_attribute(name, value)
    try:
        yield
    finally:
        for name, value in saved.items():
            global_state.set_global_attribute(name, value)


def differentiating_twice(wanted):
    """State for the block whether what it computes may be differentiated twice."""
    return keras_state(bert4x_second_derivative=bool(wanted))


def may_differentiate_twice():
    """What the innermost `differentiating_twice` says, False outside of all."""
    return bool(global_state.get_global_attribute("bert4x_second_derivative"))


@contextlib.contextmanager
def first_output(layer, change):
    """In the block, the first call of a layer returns change(output); what it returns later stays.

    The first only, since a token embedding is called again where its table serves as the output layer.

    Args:
        layer: built or unbuilt layer somewhere in the model that runs in the block.
        change: function of the output tensor; returns a tensor of the same shape.
    """
    plain = layer.__class__
    changes = [change]
    # A class of its own for the block, since one instance's `call` is to differ and not that of its class.
    layer.__class__ = type(plain.__name__, (_ChangedOutput, plain), {"_changes": changes})
    try:
        yield
    finally:
        layer.__class__ = plain


class _ChangedOutput:
    """Mixed into a layer's class by `first_output`."""

    def call(self, *args, **kwargs):
        output = super().call(*args, **kwargs)
        return self._changes.pop()(output) if self._changes else output


def value_or_none(variable):
    """Value of a variable; None inside a StatelessScope that does not have it, as JAX's training step is to layers."""
    scope = global_state.get_global_attribute("stateless_scope")
    return variable.value if scope is None else scope.get_current_value(variable)


class Replay:
    """A function that uses a layer's variables, made pure: the same arguments give the same result each time.

    Call it with `values`, or other tensors for the layer's variables, and the arguments of the function.

    Args:
        layer: built layer; it may draw from its seeds but not assign its weights.
        function: function of tensors.
    """

    def __init__(self, layer, function):
        self.layer, self.function, self.variables = layer, function, layer.variables
        self._draws = {}
        # A replay runs outside of all layers, and must find `training` and the dtype as they are now.
        names = ("autocast_scope", "current_call_ctx")
        # Copied, since Keras writes into the call context whenever a layer is given `training`.
        self._state = {name: copy.copy(global_state.get_global_attribute(name)) for name in names}
        with keras_state(autocast_scope=None):
            self.values = [_snapshot(v) for v in self.variables]

    def __call__(self, values, *tensors):
        self._draws.clear()
        with keras_state(autocast_scope=None):
            scope = _CountingScope(zip(self.variables, values, strict=True), self._draws)
        with scope, keras_state(**self._state):
            return self.function(*tensors)

    def advance_seeds(self):
        """Draw from the layer's seeds as often as the last call drew from its copies of them."""
        for variable in (v for v in self.variables if id(v) in self._draws):
            if any(variable is weight for weight in self.layer.weights):
                raise ValueError(f"a rematerialized call must not assign weights; got {variable.path}")
            step = ops.convert_to_tensor(np.array([0, self._draws[id(variable)]]), dtype=variable.dtype)
            variable.assign(variable.value + step)


def _snapshot(variable):
    """Value of a variable; of a seed a copy, since it is advanced in place before the backward pass."""
    return variable.value * 1 if "int" in variable.dtype else ops.convert_to_tensor(variable.value)


class _CountingScope(keras.StatelessScope):
    """A StatelessScope that counts the assignments to each variable."""

    def __init__(self, state_mapping, counts):
        super().__init__(state_mapping=state_mapping)
        self.counts = counts

    def add_update(self, update):
        """Count and store one assignment."""
        self.counts[id(update[0])] = self.counts.get(id(update[0]), 0) + 1
        super().add_update(update)


def variables_of(model):
    """All variables of a layer, a model or a list of them, with seed and metric state, each once."""
    layers = [] if model is None else model if isinstance(model, (list, tuple)) else [model]
    found = [v for layer in layers for v in (*layer.variables, *layer.metrics_variables)]
    return list({id(v): v for v in found}.values())
