"""Finds the state that an optimizer keeps for one variable."""

from bert4x.optimizers.base import Optimizer

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
