"""Variables that wait for a checkpoint, and what becomes of those that none fills."""


def raw_variable(layer, name):
    """The variable behind `layer.<name>`: Keras' kernel and embeddings are properties that merge LoRA."""
    return getattr(layer, f"_{name}") if hasattr(layer, f"_{name}") else getattr(layer, name)


def settle(layers, filled):
    """Give every variable that was built deferred, and is not in `filled`, its random values.

    Args:
        layers: iterable of layers, nested ones included.
        filled: ids of the variables that a checkpoint has filled.
    """
    for layer in layers:
        for role in ("kernel", "embeddings"):
            initializer = getattr(layer, f"{role}_initializer", None)
            if not getattr(initializer, "deferred", False):
                continue
            initializer.deferred = False
            if not hasattr(layer, role):  # attention and feed-forward only hand the initialiser to their Dense layers
                continue
            variable = raw_variable(layer, role)
            if id(variable) not in filled:
                variable.assign(initializer(variable.shape, variable.dtype))
