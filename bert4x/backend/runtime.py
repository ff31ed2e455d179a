"""The only file that names TensorFlow, JAX or torch: the few primitives on which the rest is written once."""

import contextlib

import keras
import numpy as np
from keras import ops, tree

from bert4x.backend.batches import as_tuples, conform
from bert4x.backend.memory import reuse_freed_memory
from bert4x.backend.scopes import (  # noqa: F401  `overridden` is offered here
    Replay,
    differentiating_twice,
    may_differentiate_twice,
    overridden,
    variables_of,
)

_BACKEND = keras.backend.backend()
# Only the backend in use is imported; Keras has loaded it already.
if _BACKEND == "tensorflow":
    import tensorflow as tf
elif _BACKEND == "jax":
    import jax
elif _BACKEND == "torch":
    import torch
    import torch.utils.checkpoint
else:
    raise ImportError(
        f"bert4x runs on tensorflow, jax or torch; got the Keras backend {_BACKEND!r}. "
        "Set KERAS_BACKEND before the first import."
    )


_ASSIGNED_BYTES = 2**20  # what `assign` copies at a time


def backend():
    """Name of the Keras backend in use: 'tensorflow', 'jax' or 'torch'."""
    return _BACKEND


def to_numpy(x):
    """Copy a tensor, a Keras variable or an array-like to a NumPy array (bfloat16 stays bfloat16)."""
    return ops.convert_to_numpy(x)


def assign(variable, array):
    """Give a Keras variable the values of a numpy array without a second copy of it where the backend can.

    TensorFlow copies a numpy array before it uses it, so a large one goes in by rows. The raw operation writes them in
    place; `variable[a:b].assign` reads the variable first and so copies all of it.
    """
    if _BACKEND != "tensorflow" or array.nbytes <= _ASSIGNED_BYTES or array.ndim == 0:
        variable.assign(array)
        return
    step = max(1, _ASSIGNED_BYTES // array[0].nbytes)
    for start in range(0, len(array), step):
        rows = tf.cast(array[start : start + step], variable.dtype)
        end = start + len(array[start : start + step])
        tf.raw_ops.ResourceStridedSliceAssign(
            ref=variable.value.handle, begin=[start], end=[end], strides=[1], value=rows
        )


def gpu_count():
    """Number of GPUs that the backend can use."""
    if _BACKEND == "tensorflow":
        return len(tf.config.list_physical_devices("GPU"))
    if _BACKEND == "jax":
        return sum(device.platform == "gpu" for device in jax.devices())
    return torch.cuda.device_count()


def fused_attention_available():
    """True where `ops.dot_product_attention` is worth using: on torch, and on any GPU (decision 16).

    Not inside of a `value_and_grad` whose results may be differentiated: fused kernels have no second derivative.
    """
    return not may_differentiate_twice() and (_BACKEND == "torch" or gpu_count() > 0)


def jit(function, *, model=None, xla=False):
    """Compile an inference function of tensors for repeated calls; it sees weights that are set later.

    TensorFlow: a graph for free shapes (with XLA one per shape). JAX: `jax.jit`, one program per shape, with the
    weights as arguments; assignments to variables inside (dropout seeds) are lost. torch: eager. The results have no
    gradients, but `value_and_grad` may be used inside.

    Args:
        function: function of tensors or of structures of tensors; or a model or layer, which then runs with
            training=False. Anything else it needs is fixed by a closure.
        model: layer, model or list of them whose variables `function` reads; needed for a function.
        xla: compile with XLA on TensorFlow. Each new shape costs seconds, so for few shapes and many calls.
    Returns: function(*tensors). Arrays and numbers become tensors; None stays.
    """
    if isinstance(function, keras.Layer):
        function, model = _inference_call(function), function
    compiled = {"tensorflow": _tf_jit, "jax": _jax_jit, "torch": _torch_jit}[_BACKEND](function, model, xla)

    def call(*tensors):
        return compiled(*tree.map_structure(lambda x: None if x is None else ops.convert_to_tensor(x), tensors))

    return call


def _inference_call(layer):
    return lambda *tensors: layer(tensors[0] if len(tensors) == 1 else list(tensors), training=False)


def _tf_jit(function, model, xla):
    # XLA needs static shapes. Without it a graph for free shapes is as fast on CPU, is traced two or three times
    # instead of once per length, and spares the user TensorFlow's warning about tracing.
    graphs = {}

    def call(*tensors):
        # A graph is for the variables that it was traced with; LoRA and int8 put others into the model.
        key = tuple(id(v) for v in variables_of(model))
        if key not in graphs:
            graphs.clear()
            graphs[key] = tf.function(function, jit_compile=xla, reduce_retracing=not xla, autograph=False)
        return graphs[key](*tensors)

    return call


def _jax_jit(function, model, xla):
    @jax.jit
    def stateless(values, tensors):
        with keras.StatelessScope(state_mapping=zip(variables_of(model), values, strict=True)):
            return function(*tensors)

    return lambda *tensors: stateless([v.value for v in variables_of(model)], tensors)


def _torch_jit(function, model, xla):
    return torch.no_grad()(function)  # not inference_mode, in which nothing can be differentiated


def value_and_grad(function, x, *, differentiable=True, has_aux=False):
    """Value of a scalar function at x and its dense gradient there; may be nested and used in a train step.

    Args:
        function: takes x (same structure), returns a scalar tensor.
        x: tensor, Keras variable, or structure of them. What the function reads elsewhere is constant: to
            differentiate by a weight, pass its value as x and put it in place with `overridden`.
        differentiable: False makes both results constants, which saves time and memory on torch.
        has_aux: the function returns (value, further tensors), and so does this function for the value.
    Returns: (value, gradient); the gradient is zero where the function does not depend on x.
    """
    x = tree.map_structure(ops.convert_to_tensor, x)
    run = {"tensorflow": _tf_value_and_grad, "jax": _jax_value_and_grad, "torch": _torch_value_and_grad}
    with differentiating_twice(differentiable or may_differentiate_twice()):
        (value, aux), gradient = run[_BACKEND](function if has_aux else _with_no_aux(function), x, differentiable)
    result = ((value, aux) if has_aux else value), gradient
    return result if differentiable else tree.map_structure(ops.stop_gradient, result)


def _with_no_aux(function):
    return lambda x: (function(x), ())


def _tf_value_and_grad(function, x, differentiable):
    # The copy is what the function sees, so that watching it touches no variable.
    x = tree.map_structure(tf.identity, x)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(tree.flatten(x))
        value, aux = function(x)
    # A part of x that the function does not use gets zeros.
    gradient = tape.gradient(value, x, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return (value, aux), tree.map_structure(_dense, gradient, x)


def _dense(gradient, x):
    if isinstance(gradient, tf.IndexedSlices):  # a gather's gradient: sum the rows that occur several times
        return tf.math.unsorted_segment_sum(gradient.values, gradient.indices, tf.shape(x)[0])
    return gradient


def _jax_value_and_grad(function, x, differentiable):
    return jax.value_and_grad(function, has_aux=True)(x)


def _torch_value_and_grad(function, x, differentiable):
    with torch.enable_grad():
        # A tensor that is being differentiated already (a weight, an outer call's x) must stay connected.
        x = tree.map_structure(lambda t: t if t.requires_grad and differentiable else t.detach().requires_grad_(), x)
        value, aux = function(x)
        if not value.requires_grad:  # a constant function
            return (value, aux), tree.map_structure(torch.zeros_like, x)
        gradient = torch.autograd.grad(
            value, tree.flatten(x), create_graph=differentiable, allow_unused=True, materialize_grads=True
        )
    return (value, aux), tree.pack_sequence_as(x, gradient)


def with_gradient(function):
    """Decorator for a function of tensors that returns (value, gradient of it), where autodiff would be slow.

    gradient(upstream) returns the gradients of the arguments; it may be differentiated again. torch, which runs a
    loop's backward pass as fast as any other loop, differentiates the function itself.
    """
    if _BACKEND == "torch":  # Keras' form for torch has no second derivative
        return lambda *tensors: function(*tensors)[0]
    return ops.custom_gradient(function)


def train_step(model, loss_and_outputs, *arguments):
    """The `train_step` of a Keras model, with other words for its forward pass and loss.

    Loss scaling, optimizer, loss tracker and metrics are as in Keras' own step. For a class that overrides it:

        def train_step(self, *arguments):
            return runtime.train_step(self, self.my_loss, *arguments)

    Args:
        model: compiled model.
        loss_and_outputs: function (x, y, sample_weight) -> (scalar loss, outputs for the metrics). It may run the model
            any number of times, each in an `overridden` block, so that losses of layers are those of that pass.
        arguments: what Keras passes: on JAX (state, batch), else (batch,).
    """
    step = {"tensorflow": _tf_train_step, "jax": _jax_train_step, "torch": _torch_train_step}
    return step[_BACKEND](model, loss_and_outputs, *arguments)


def _batch_size(x):
    return ops.shape(next(part for part in tree.flatten(x) if part is not None))[0]


def _tf_train_step(model, loss_and_outputs, batch):
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
    with tf.GradientTape() as tape:
        loss, outputs = loss_and_outputs(x, y, sample_weight)
        scaled = model.optimizer.scale_loss(loss)
    weights = model.trainable_weights
    model.optimizer.apply_gradients(zip(tape.gradient(scaled, weights), weights, strict=True))
    # Keras has divided the loss by the number of replicas, whose gradients are added.
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    model._loss_tracker.update_state(loss * replicas, sample_weight=_batch_size(x))
    return model.compute_metrics(x, y, outputs, sample_weight)


def _jax_train_step(model, loss_and_outputs, state, batch):
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
    kept = [*model.non_trainable_variables, *model.metrics_variables]
    variables = [*model.trainable_variables, *model.non_trainable_variables, *model.optimizer.variables]
    variables += model.metrics_variables
    trainable, *others, metrics = state

    def scaled_loss(trainable):
        values = [*trainable, *(value for part in (*others, metrics) for value in part)]
        with keras.StatelessScope(state_mapping=zip(variables, values, strict=True)) as scope:
            loss, outputs = loss_and_outputs(x, y, sample_weight)
            scaled = model.optimizer.scale_loss(loss)
        return scaled, (loss, outputs, [scope.get_current_value(v) for v in kept])

    gradients, (loss, outputs, values) = jax.grad(scaled_loss, has_aux=True)(trainable)
    trainable, optimizer = model.optimizer.stateless_apply(others[1], gradients, trainable)
    split = len(model.non_trainable_variables)
    logs, metrics = model._update_metrics_variables(values[split:], loss, x, y, outputs, sample_weight)
    return logs, (trainable, values[:split], optimizer, metrics)


def _torch_train_step(model, loss_and_outputs, batch):
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
    weights = model.trainable_weights
    loss, outputs = loss_and_outputs(x, y, sample_weight)
    scaled = model.optimizer.scale_loss(loss)
    gradients = torch.autograd.grad(scaled, [v.value for v in weights], allow_unused=True)
    with torch.no_grad():
        model.optimizer.apply(list(gradients), weights)
    model._loss_tracker.update_state(loss.detach(), sample_weight=_batch_size(x))
    return model.compute_metrics(x, y, outputs, sample_weight)


def standard_normal(shape, seed, step):
    """Normal noise, float32, that depends on the two integers only and needs no seed variable.

    Args:
        shape: of the result; may hold tensors on TensorFlow.
        seed: Python integer.
        step: integer tensor or number; another step gives other noise.
    """
    if _BACKEND == "tensorflow":
        return tf.random.stateless_normal(shape, [seed, tf.cast(step, "int32")])
    if _BACKEND == "jax":
        return jax.random.normal(jax.random.fold_in(jax.random.key(seed), step), shape)
    device = ops.convert_to_tensor(step).device
    mixed = np.random.SeedSequence([seed, int(step)]).generate_state(1)[0]  # torch's CPU generator takes 32 bits
    generator = torch.Generator(device).manual_seed(int(mixed))
    return torch.randn(tuple(shape), generator=generator, device=device)


def dense_gradient(gradient, variable):
    """The gradient of a variable as one tensor: TensorFlow's slices are summed where rows repeat; None stays."""
    if _BACKEND == "tensorflow" and gradient is not None:
        gradient = _dense(gradient, variable)
        # Where the length of the batch is not known, that of a kernel's gradient is not inferred.
        gradient.set_shape(variable.shape)
    return gradient


def gradient_rows(gradient):
    """(rows, values) of a gradient: of TensorFlow's slices the row indices, each row's sum beside every mention of
    it; (None, gradient) of a dense one."""
    if _BACKEND != "tensorflow" or not isinstance(gradient, tf.IndexedSlices):
        return None, gradient
    # By sorting, so that all shapes are static as XLA needs them (tf.unique has none).
    order = tf.argsort(gradient.indices)
    rows, values = tf.gather(gradient.indices, order), tf.gather(gradient.values, order)
    is_new = tf.concat([tf.zeros_like(rows[:1]), tf.cast(rows[1:] != rows[:-1], rows.dtype)], axis=0)
    segments = tf.cumsum(is_new)
    return rows, tf.gather(tf.math.unsorted_segment_sum(values, segments, tf.size(rows)), segments)


def take_rows(variable, rows):
    """Some rows of a variable, on TensorFlow, without reading the others as `ops.take` does."""
    return tf.gather(variable.value if isinstance(variable, keras.Variable) else variable, rows)


def look_up(table, ids):
    """Rows of a table, a variable, by integer ids [...]; ids below 0 count from its end, as in `ops.take`."""
    if _BACKEND != "tensorflow":
        return ops.take(table, ids, axis=0)
    return take_rows(table, tf.where(ids < 0, ids + table.shape[0], ids))


def row_slices(values, rows):
    """What an optimizer's `assign` takes to overwrite only some rows of a variable, on TensorFlow.

    Rows may repeat if their values do.
    """
    return tf.IndexedSlices(values, rows)


def rematerialized(layer, function, *tensors):
    """function(*tensors), whose intermediate results are not kept but computed again in the backward pass.

    Dropout masks are the same both times. Second derivatives: JAX and torch only.

    Args:
        layer: the built layer whose variables, seeds included, `function` uses. It must not assign others
            (no batch normalisation) and `add_loss` inside is lost.
        function: returns a tensor or a structure of them. Every tensor that needs a gradient is an argument;
            masks and integers may come by closure.
        tensors: float tensors.
    """
    replay = Replay(layer, function)
    run = {"tensorflow": _tf_remat, "jax": _jax_remat, "torch": _torch_remat}[_BACKEND]
    outputs = run(replay, replay.values, tensors)
    replay.advance_seeds()
    return outputs


def _tf_remat(body, values, tensors):
    # recompute_grad makes arithmetic with each argument, so that integers (seeds) go by closure.
    floats = [i for i, v in enumerate(values) if v.dtype.is_floating]

    @tf.recompute_grad
    def run(weights, *tensors):
        filled = list(values)
        for i, weight in zip(floats, weights, strict=True):
            filled[i] = weight
        return body(filled, *tensors)

    return run([tf.identity(values[i]) for i in floats], *tensors)


def _jax_remat(body, values, tensors):
    return jax.checkpoint(body)(values, *tensors)


def _torch_remat(body, values, tensors):
    return torch.utils.checkpoint.checkpoint(body, values, *tensors, use_reentrant=False)


def check_ids(ids, limit, name):
    """Return integer ids unchanged, after checking that each is in [0, limit).

    Eager tensors: ValueError at once. In a TensorFlow graph InvalidArgumentError when it runs (XLA drops the
    check). Under JAX's jit a host callback stops the computation with a JaxRuntimeError that quotes the message; after
    an error inside fit or predict Keras' JAX trainer has let go of the model's weights, so build the model again.

    Args:
        ids: integer tensor of any shape.
        limit: number of rows of the table that the ids address.
        name: what the ids are, for the message.
    """
    if _BACKEND == "tensorflow" and not isinstance(ids, keras.KerasTensor) and not tf.executing_eagerly():
        return _tf_check_ids(ids, limit, name)
    if _BACKEND == "jax" and isinstance(ids, jax.core.Tracer):
        jax.debug.callback(lambda values: _check_array(np.asarray(values), limit, name), ids)
    elif not isinstance(ids, keras.KerasTensor) and str(getattr(ids, "device", "")) != "meta":
        _check_array(to_numpy(ids), limit, name)
    return ids


def _tf_check_ids(ids, limit, name):
    message = f"{name} must be in [0, {limit})"
    limit = tf.cast(limit, ids.dtype)
    checks = [tf.debugging.assert_non_negative(ids, message), tf.debugging.assert_less(ids, limit, message)]
    with tf.control_dependencies(checks):
        return tf.identity(ids)


def _check_array(ids, limit, name):
    if ids.size and (ids.min() < 0 or ids.max() >= limit):
        raise ValueError(
            f"{name} must be in [0, {limit}); got values from {ids.min()} to {ids.max()}. "
            "Do the vocabulary and the model belong together?"
        )


def dataset_from_generator(make_iterator, example_batch):
    """What `fit`, `evaluate` and `predict` take, from batches of any lengths.

    TensorFlow: a tf.data.Dataset in which every axis is free (Keras fixes the axes that are equal in its
    first two batches) and lists are tuples (TensorFlow rejects lists). JAX and torch: a generator, which ends
    with the iterator; so for several epochs the iterator must be endless and `steps_per_epoch` given. Keras
    warns in `fit` unless `shuffle=False` says that the order is yours.

    Args:
        make_iterator: function without arguments that returns an iterator over batches. A batch is (x,),
            (x, y) or (x, y, w); x is an array, or a list, tuple or dict of arrays; y and w may be None.
        example_batch: one batch, for structure, ranks and dtypes. Later batches are cast to these dtypes.
    Raises: ValueError for a batch of another structure, TypeError for float values where integers were.
    """
    example = as_tuples(example_batch)
    if _BACKEND == "tensorflow":
        return _tf_dataset(make_iterator, example)
    return (conform(batch, example) for batch in make_iterator())


def _tf_dataset(make_iterator, example):
    leaves = tree.flatten(example)
    signature = tuple(tf.TensorSpec([None] * a.ndim, a.dtype) for a in leaves if a is not None)

    def flat_batches():
        reuse_freed_memory()  # here, because the data set has changed it when its first batch is asked for
        for batch in make_iterator():
            yield tuple(a for a in tree.flatten(conform(batch, example)) if a is not None)

    def packed(*arrays):
        arrays = iter(arrays)
        return tree.pack_sequence_as(example, [None if a is None else next(arrays) for a in leaves])

    dataset = tf.data.Dataset.from_generator(flat_batches, output_signature=signature)
    # There is nothing to tune, and on 2 cores every other `fit` stood still until the tuner's next turn, which comes 10
    # ms, 20 ms, 40 ms and so on after its start, up to a minute apart: 8 steps took 5.1 s instead of 2.4 s.
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.map(packed).prefetch(2).with_options(options)


def data_parallel(active=True):
    """Context in which a model is built and compiled so that `fit` divides each batch among all devices.

    TensorFlow: a `MirroredStrategy`. JAX: Keras' `DataParallel` distribution, which stays set. With one device, or
    without `active`, nothing changes.

    Raises: ValueError on torch, whose trainer in Keras uses one device.
    """
    if not active:
        return contextlib.nullcontext()
    if _BACKEND == "torch":
        raise ValueError("data_parallel needs the tensorflow or jax backend; Keras runs torch on one device.")
    if _BACKEND == "tensorflow":
        several = len(tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")) > 1
        return tf.distribute.MirroredStrategy().scope() if several else contextlib.nullcontext()
    if len(jax.devices()) > 1:
        keras.distribution.set_distribution(keras.distribution.DataParallel())
    return contextlib.nullcontext()


def random_state():
    """State of the backend's own random generators, as a dict of uint8 arrays; empty but on torch.

    Keras' seed generators are not in it: they are variables of their layers.
    """
    if _BACKEND != "torch":
        return {}
    states = {f"cuda{i}": torch.cuda.get_rng_state(i) for i in range(gpu_count())}
    return {name: state.numpy().copy() for name, state in {"cpu": torch.get_rng_state(), **states}.items()}


def set_random_state(state):
    """Restore what `random_state` returned; the state of a device that is not there is left out."""
    if _BACKEND != "torch":
        return
    torch.set_rng_state(torch.from_numpy(state["cpu"].copy()))
    for i in range(gpu_count()):
        if f"cuda{i}" in state:
            torch.cuda.set_rng_state(torch.from_numpy(state[f"cuda{i}"].copy()), i)
