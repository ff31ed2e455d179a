"""Finding layers in a functional graph."""

import keras


def search_layer(inputs, name, exclude_from=None):
    """Find a layer by name, from a model, a layer or a tensor; nested models are searched too.

    Args:
        inputs: Keras model, layer, or symbolic tensor of a functional graph.
        name: layer name.
        exclude_from: set of objects already visited (for callers that search several times).
    Returns: the layer, or None if it is not there.
    """
    seen = set() if exclude_from is None else exclude_from
    stack = [inputs]
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, keras.layers.Layer):
            if node.name == name:
                return node
            stack.extend(reversed(_children(node)))
        elif not isinstance(node, keras.Operation):  # masks are made by bare operations
            stack.extend(_producers(node))
    return None


def walk_layers(layer):
    """A layer and all layers inside it."""
    yield layer
    for inner in _children(layer):
        yield from walk_layers(inner)


def _children(layer):
    """Layers inside a layer or model, in order of creation, those in its lists and dicts included."""
    if isinstance(layer, keras.Model):
        return list(layer.layers)
    # Private, but the only place that knows them on every backend: on torch they are no plain attributes.
    return list(layer._flatten_layers(include_self=False, recursive=False))


def _producers(tensor):
    """The layer that made a symbolic tensor and the tensors which that call consumed."""
    history = getattr(tensor, "_keras_history", None)
    if history is None:
        raise TypeError(
            f"search_layer takes a Keras model, layer or symbolic tensor; got {type(tensor).__name__}. "
            "Pass model or model.output."
        )
    operation, node_index, _ = history
    node = operation._inbound_nodes[node_index]
    return [*node.input_tensors, operation]
