"""Finding layers in a functional graph, and calling part of it again."""

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


def graph_nodes(tensors):
    """All calls of layers and operations that lead to symbolic tensors, as Keras' nodes, each after those it needs."""
    nodes, seen, stack = [], set(), [(_node(tensor), False) for tensor in keras.tree.flatten(tensors)]
    while stack:
        node, complete = stack.pop()
        if complete:
            nodes.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack.extend((_node(tensor), False) for tensor in node.input_tensors)
    return nodes


def rewired(tensors, replacements):
    """Symbolic tensors as they are with others in place of some that they are made of.

    The layers in between are called again, with the weights and the masks that they have; all else stays.

    Args:
        tensors: list of symbolic tensors.
        replacements: list of pairs (symbolic tensor, the one to take its place).
    """
    new = {id(old): tensor for old, tensor in replacements}
    for node in graph_nodes(tensors):
        if any(id(tensor) in new for tensor in node.input_tensors):
            args, kwargs = node.arguments.convert(lambda x: new.get(id(x), x))
            outputs = keras.tree.flatten(node.operation(*args, **kwargs))
            for old, tensor in zip(node.output_tensors, outputs, strict=True):
                new.setdefault(id(old), tensor)
    return [new.get(id(tensor), tensor) for tensor in tensors]


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
    node = _node(tensor)
    return [*node.input_tensors, node.operation]


def _node(tensor):
    """The call that made a symbolic tensor."""
    history = getattr(tensor, "_keras_history", None)
    if history is None:
        raise TypeError(
            f"search_layer takes a Keras model, layer or symbolic tensor; got {type(tensor).__name__}. "
            "Pass model or model.output."
        )
    operation, node_index, _ = history
    return operation._inbound_nodes[node_index]
