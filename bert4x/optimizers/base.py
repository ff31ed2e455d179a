"""The base of our optimizers: named slots per variable and one formula for the direction of an update."""

import dataclasses
import math
from typing import Any

from bert4x.backend import keras, ops, runtime

register = keras.saving.register_keras_serializable(package="bert4x")


@dataclasses.dataclass
class Step:
    """What is known in one update of one variable x.

    Args:
        index: place of the variable in the list the optimizer was built with.
        updates: updates made before this one, integer scalar tensor.
        rate: learning rate before any extension, scalar tensor.
        gradient: mean gradient g, after accumulation, unscaling and clipping.
        before: x before the update.
        rows: None, or the indices of the rows of x that `gradient` and `before` hold.
        optimizer: the optimizer that makes it.
        notes: what an extension keeps from one of its hooks to the next.
    """

    index: int
    updates: Any
    rate: Any
    gradient: Any
    before: Any
    rows: Any = None
    optimizer: Any = None
    notes: dict = dataclasses.field(default_factory=dict)

    def time(self):
        """Number t = 1, 2, ... of this update, in the dtype of the arithmetic."""
        return ops.cast(self.updates + 1, self.before.dtype)

    def with_gradient(self, gradient):
        """The same step with another gradient."""
        return dataclasses.replace(self, gradient=gradient)

    def write(self, variable, values):
        """Assign values to a variable or slot, to the rows of this step if it has any."""
        values = ops.cast(values, variable.dtype)
        self.optimizer.assign(variable, values if self.rows is None else runtime.row_slices(values, self.rows))


class Optimizer(keras.optimizers.Optimizer):
    """Optimizer defined by the shapes of its slots and a direction h:  x <- x - rate * h.

    Arithmetic and slots are in the variable's dtype, in float32 for variables of 16 bits. Gradients that TensorFlow
    gives as slices are summed first. Time is counted in updates, also under gradient accumulation.

    Args: those of `keras.optimizers.Optimizer`.
    """

    row_wise = False  # whether the direction of a row depends on that row alone

    def slot_shapes(self, shape):
        """Shapes of the state of one variable: dict {name of the slot: shape}."""
        raise NotImplementedError

    def direction(self, step, slots):
        """Direction h and the new values of the slots, from their values in `slots` (dict by name)."""
        raise NotImplementedError

    def build(self, variables):
        """Create the slots, all zeros."""
        if self.built:
            return
        super().build(variables)
        self._slots = [
            {name: add_slot(self, variable, name, shape) for name, shape in self.slot_shapes(variable.shape).items()}
            for variable in variables
        ]

    def apply(self, grads, trainable_variables=None):
        """Update the variables; see `keras.optimizers.Optimizer.apply`."""
        super().apply(densified(self, grads, trainable_variables, self._sparse_indices()), trainable_variables)

    def _sparse_indices(self):
        """Indices of the variables whose gradients may stay slices; extensions override it."""
        return ()

    def update_step(self, gradient, variable, learning_rate):
        """Update one variable."""
        step = start_step(self, gradient, variable, learning_rate)
        step.write(variable, step.before + self.propose(step))

    def propose(self, step):
        """Store the new slots and return  - rate * h,  which is still to be added to the variable."""
        slots = self._slots[step.index]
        direction, values = self.direction(step, {name: read(slot, step.rows) for name, slot in slots.items()})
        for name, value in values.items():
            step.write(slots[name], value)
        return -step.rate * direction

    def effective_learning_rate(self):
        """Learning rate of the coming update, a float scalar."""
        return base_rate(self, self.learning_rate)


def arithmetic_dtype(variable):
    """The variable's dtype, but float32 for 16 bits."""
    dtype = keras.backend.standardize_dtype(variable.dtype)
    return "float32" if dtype in ("float16", "bfloat16") else dtype


def variable_path(variable):
    """Path of a Keras variable such as 'Embedding-Token/embeddings', or the name of one of the backend's own."""
    return getattr(variable, "path", None) or variable.name


def add_slot(optimizer, variable, name, shape=None):
    """Add a zero variable to the optimizer's state; it has the shape of `variable` unless another is given."""
    layout = getattr(variable, "_layout", None) if shape is None else None
    return optimizer.add_variable(
        shape=tuple(variable.shape) if shape is None else tuple(shape),
        dtype=arithmetic_dtype(variable),
        layout=layout,
        name=f"{variable_path(variable).replace('/', '_').replace(':', '_')}_{name}",
    )


def read(variable, rows=None):
    """Values of a variable as they are now, or of some of its rows; a later assignment does not change them."""
    # A copy: otherwise TensorFlow and torch hand out the variable's own memory.
    values = ops.copy(variable) if rows is None else runtime.take_rows(variable, rows)
    return ops.stop_gradient(values)


# Lists with one entry per variable that are not moments.
_NOT_MOMENTS = {"_variables", "_trainable_variables", "_accumulated_gradients", "_model_variables_moving_average"}


def slots_like(optimizer, index):
    """The slots of one variable, which must all have its shape.

    Keras' optimizers keep each kind of slot in a list, one entry per variable, as an attribute.

    Raises: ValueError if a slot has another shape, as AdaFactor's have: its rows are not those of the variable.
    """
    if isinstance(optimizer, Optimizer):
        slots = list(optimizer._slots[index].values())
    else:
        slots = _slots_in_attributes(optimizer, index)
    shape = tuple(optimizer._trainable_variables[index].shape)
    if any(tuple(slot.shape) != shape for slot in slots):
        raise ValueError(
            f"freeze_moments=True needs state of the variable's shape {shape}; {optimizer.name} keeps "
            f"{[tuple(slot.shape) for slot in slots]}. Use freeze_moments=False, or another optimizer."
        )
    return slots


def _slots_in_attributes(optimizer, index):
    known = {id(variable) for variable in optimizer.variables}
    lists = [
        value for name, value in vars(optimizer).items()
        if name not in _NOT_MOMENTS and isinstance(value, list) and len(value) == len(optimizer._trainable_variables)
    ]
    return [value[index] for value in lists if all(id(slot) in known for slot in value)]


def start_step(optimizer, gradient, variable, learning_rate):
    """The `Step` of one variable; a gradient that is still TensorFlow's slices becomes rows."""
    dtype = arithmetic_dtype(variable)
    rows, gradient = runtime.gradient_rows(gradient)
    return Step(
        index=optimizer._get_variable_index(variable),
        updates=optimizer.iterations,
        rate=ops.cast(base_rate(optimizer, learning_rate), dtype),
        gradient=ops.cast(gradient, dtype),
        before=ops.cast(read(variable, rows), dtype),
        rows=rows,
        optimizer=optimizer,
    )


def base_rate(optimizer, learning_rate):
    """The given rate, or that of the optimizer's schedule.

    Keras asks a schedule for the rate at the number of micro-batches; it must be that of updates.
    """
    schedule = optimizer._learning_rate
    if isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
        return schedule(optimizer.iterations)
    return learning_rate


def densified(optimizer, gradients, variables, keep_rows=()):
    """Gradients without TensorFlow's slices, except for the variables whose indices are in `keep_rows`."""
    if variables is None:
        variables = optimizer._trainable_variables
    if len(gradients) != len(variables):
        return gradients  # Keras raises the error
    return [
        gradient if keep_rows and optimizer._get_variable_index(variable) in keep_rows
        else runtime.dense_gradient(gradient, variable)
        for gradient, variable in zip(gradients, variables, strict=True)
    ]


def one_minus_power(beta, t):
    """1 - beta^t without cancellation; in float32 the plain formula is wrong by 5e-5 of its value at t = 1."""
    return -ops.expm1(t * math.log(beta)) if beta > 0 else ops.ones_like(t)


def mean(x, axes):
    """Mean over some axes, which stay with size 1."""
    # Not ops.mean: on torch it computes in float32, also for float64.
    return ops.sum(x, axis=tuple(axes), keepdims=True) / math.prod(x.shape[axis] for axis in axes)


def at_least(x, floor):
    """max(x, floor), for a number `floor`."""
    # Not ops.maximum: on torch it makes float32 of float64.
    return ops.where(x > floor, x, ops.full_like(x, floor))


def root_mean_square(x):
    """sqrt(mean(x^2)) over the whole tensor."""
    return ops.sqrt(ops.sum(ops.square(x)) / math.prod(x.shape))
