"""How extensions sit on an optimizer: one class that runs them in the canonical order, whatever the order of calls."""

import inspect
import re
import warnings

from bert4x.backend import keras, ops
from bert4x.optimizers.base import Optimizer, base_rate, densified, start_step, variable_path


class Extension:
    """One change of an update; a subclass overrides the hooks it needs and is listed in `parts.ORDER`.

    The options of the constructor become options of the extended optimizer. All state is in variables of the
    optimizer, made in `build`; nothing else may change during training.
    """

    row_wise = False  # whether it treats each row of a variable by itself
    mixins = ()  # classes with methods for the extended optimizer

    @classmethod
    def options(cls):
        """Names of the constructor's arguments."""
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    def get_config(self):
        """Arguments of the constructor."""
        return {name: getattr(self, name) for name in self.options()}

    def base_options(self):
        """Arguments for the constructor of the base optimizer."""
        return {}

    def build(self, optimizer, variables):
        """Match patterns and make state."""

    def gradient(self, gradient, step):
        """The gradient that the base optimizer gets; `step.gradient` stays as it was."""
        return gradient

    def delta(self, delta, step):
        """Change of the variable, from that of the base optimizer and the extensions before."""
        return delta

    def multiplier(self, updates):
        """Factor of the learning rate of all variables."""
        return 1.0

    def weights(self, weights, step):
        """The variable after the update."""
        return weights


class Extended:
    """Mixin of all extended optimizers: runs the base, then each extension's hooks in turn."""

    base_class = None  # the optimizer class without extensions
    extensions = ()  # Extension classes in the canonical order

    def __init__(self, *args, **options):
        parts = [_take_part(extension, options) for extension in self.extensions]
        for part in parts:
            options = {**options, **_checked(part.base_options(), options)}
        super().__init__(*args, **options)
        self._parts = tuple(parts)

    def build(self, variables):
        """Create the state of the base and of the extensions."""
        if self.built:
            return
        super().build(variables)
        for part in self._parts:
            part.build(self, variables)

    def apply(self, grads, trainable_variables=None):
        """Update the variables; see `keras.optimizers.Optimizer.apply`."""
        if trainable_variables is not None:
            trainable_variables = list(trainable_variables)
            if not self.built:  # now, since which gradients stay slices depends on matched patterns
                with keras.name_scope(self.name):
                    self.build(trainable_variables)
        super().apply(densified(self, grads, trainable_variables, self._sparse_indices()), trainable_variables)

    def update_step(self, gradient, variable, learning_rate):
        """Update one variable."""
        step = start_step(self, gradient, variable, learning_rate)
        changed = step.gradient
        for part in self._parts:
            changed = part.gradient(changed, step)
        delta = self._base_delta(changed, variable, step)
        for part in self._parts:
            delta = part.delta(delta, step)
        weights = step.before + delta
        for part in self._parts:
            weights = part.weights(weights, step)
        step.write(variable, weights)

    def _base_delta(self, gradient, variable, step):
        """What the base optimizer would add to the variable."""
        if isinstance(self, Optimizer):
            return self.propose(step.with_gradient(gradient))
        super().update_step(gradient, variable, step.rate)
        return ops.cast(ops.convert_to_tensor(variable), step.before.dtype) - step.before

    def _sparse_indices(self):
        """Indices of the variables of which only the rows in TensorFlow's slices need be touched."""
        whole = (
            self.gradient_accumulation_steps, self.clipnorm, self.clipvalue, self.global_clipnorm,
            self.loss_scale_factor, self.weight_decay,
        )
        row_wise = getattr(self, "row_wise", False) and all(part.row_wise for part in self._parts)
        if not row_wise or any(option is not None for option in whole):
            return ()
        return set().union(*(getattr(part, "frozen", ()) for part in self._parts))

    def effective_learning_rate(self):
        """Learning rate of the coming update with the multipliers of all extensions that hold for every variable."""
        rate = ops.convert_to_tensor(base_rate(self, self.learning_rate))
        for part in self._parts:
            rate = rate * ops.cast(part.multiplier(self.iterations), rate.dtype)
        return rate

    def get_config(self):
        """Arguments of the constructor, and what `from_config` needs to make the class again."""
        config = super().get_config()
        for part in self._parts:
            config.update(dict.fromkeys(part.base_options()), **part.get_config())
        config["extended"] = {
            "base": keras.saving.get_registered_name(self.base_class),
            "extensions": [extension.__name__ for extension in self.extensions],
            "name": type(self).__name__,
        }
        return config

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Make the optimizer, in a process that may not have called the factories."""
        config = dict(config)
        target = _class_from(config.pop("extended", None), cls, custom_objects)
        return super(Extended, target).from_config(config, custom_objects=custom_objects)


def _take_part(extension, options):
    """The extension with its options, which are taken out of `options`."""
    return extension(**{name: options.pop(name) for name in extension.options() if name in options})


def _checked(base_options, options):
    """Options an extension sets in the base, after checking that the user did not."""
    for name in base_options:
        if options.get(name):
            raise ValueError(
                f"{name} must not be given to an optimizer whose extension sets it; got {options[name]!r}. Use the "
                "extension's option, or a class without that extension."
            )
    return base_options


def _class_from(facts, cls, custom_objects):
    """The class that the `extended` entry of a config describes; `cls` itself where it fits."""
    from bert4x.optimizers.parts import ORDER  # lazily, since it imports this module

    names = [extension.__name__ for extension in cls.extensions]
    if facts is None:
        return cls
    base = _optimizer_class(facts["base"], custom_objects)
    if cls.base_class is base and names == facts["extensions"]:
        return cls
    known = {extension.__name__: extension for extension in ORDER}
    for name in facts["extensions"]:
        base = extend(base, known[name], ORDER, facts["name"])
    return base


def _optimizer_class(name, custom_objects):
    found = keras.saving.get_registered_object(name, custom_objects=custom_objects)
    found = found or getattr(keras.optimizers, name, None)
    if found is None:
        raise ValueError(
            f"The base of an extended optimizer must be an optimizer of Keras or a registered class; got {name!r}. "
            "Import the module that registers it (keras.saving.register_keras_serializable) before loading."
        )
    return found


def extend(base, extension, order, name=None):
    """Class of the optimizer `base` with one more extension.

    It is a subclass of `base`, not a wrapper of an instance: on torch an instance of Keras' own class would be a fused
    optimizer, which never calls `update_step`.

    Args:
        base: an optimizer class, of Keras or of bert4x, extended or not.
        extension: a subclass of `Extension`.
        order: all extensions, in the order in which they act.
        name: name of the class, else e.g. "ExtendedAdam".
    Raises:
        TypeError if `base` is not an optimizer class; ValueError if it has the extension already.
    """
    if not (isinstance(base, type) and issubclass(base, keras.optimizers.Optimizer)):
        raise TypeError(f"An extension needs an optimizer class, e.g. bert4x.optimizers.Adam; got {base!r}.")
    present = getattr(base, "extensions", ())
    if extension in present:
        raise ValueError(
            f"An optimizer may have each extension once; {base.__name__} has {extension.__name__} already. "
            "Leave one of the two calls out."
        )
    namespace = {
        "__module__": __name__,
        "__doc__": f"{base.__name__} with the extension {extension.__name__}.",
        "base_class": getattr(base, "base_class", base),
        "extensions": tuple(sorted((*present, extension), key=order.index)),
    }
    bases = (*extension.mixins, *(() if present else (Extended,)), base)
    made = type(name or f"Extended{namespace['base_class'].__name__}", bases, namespace)
    return keras.saving.register_keras_serializable(package="bert4x", name="ExtendedOptimizer")(made)


# The entry that `load_model` finds; every class made later registers under the same name.
keras.saving.register_keras_serializable(package="bert4x", name="ExtendedOptimizer")(Extended)


def as_list(patterns, option):
    """The patterns as a list, after checking that they are not one string, whose letters would be patterns."""
    if isinstance(patterns, str):
        raise TypeError(f"{option} must be a list of patterns; got {patterns!r}. Write [{patterns!r}].")
    return list(patterns or ())


def matching(patterns, variables, option):
    """Indices of the variables in whose path one of the patterns is found; warns of a pattern that is in none."""
    paths = [variable_path(variable) for variable in variables]
    for pattern in patterns:
        if not any(re.search(pattern, path) for path in paths):
            warnings.warn(f"{option}: {pattern!r} is in no variable's path, e.g. {paths[0]!r}.", stacklevel=2)
    return {index for index, path in enumerate(paths) if any(re.search(pattern, path) for pattern in patterns)}
