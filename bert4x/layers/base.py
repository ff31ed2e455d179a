"""The base of our layers: masks pass through; Dense layers inside keep their quantisation, LoRA and freezing."""

from bert4x.backend import keras

register = keras.saving.register_keras_serializable(package="bert4x")


class Layer(keras.layers.Layer):
    """A Keras layer that hands the mask of its (first) input on, and may hold Dense layers.

    `add_dense(name, ...)` creates the inner layer as the attribute `name`. What quantisation, LoRA and freezing change
    in it is written to the configuration, so that a saved model is rebuilt as it was (Keras does this only for layers
    at the top of a model).
    """

    def __init__(self, *, sublayers=None, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self._sublayer_overrides = sublayers or {}
        self._dense_names = []

    def add_dense(self, name, units, shape, **kwargs):
        """Create and build `self.<name> = Dense(units, ...)`, in the state that a saved configuration names.

        Args:
            shape: shape of its input.
        """
        return self.add_sublayer(name, keras.layers.Dense, units, shape=shape, **kwargs)

    def add_sublayer(self, name, layer_class, *args, shape, **kwargs):
        """`add_dense` for another class: `self.<name> = layer_class(*args, ...)`; Keras must quantise it, too."""
        overrides = self._sublayer_overrides.get(name, {})
        if "kernel_initializer" in kwargs:
            # An initialiser gives the same values at each call, so each kernel gets its own.
            kwargs["kernel_initializer"] = keras.initializers.get(kwargs["kernel_initializer"]).clone()
        own = {"dtype": self.dtype_policy, "trainable": self.trainable}
        layer = layer_class(*args, name=name, **{**own, **kwargs, **overrides})
        self._dense_names.append(name)
        setattr(self, name, layer)
        layer.build(shape)
        layer.lora_alpha = overrides.get("lora_alpha", layer.lora_alpha)  # Keras' build takes the rank for it

    def compute_mask(self, inputs, mask=None):
        return mask[0] if isinstance(mask, (list, tuple)) else mask

    def get_config(self):
        config = super().get_config()
        overrides = {name: self._overrides(getattr(self, name)) for name in self._dense_names}
        if any(overrides.values()):
            config["sublayers"] = {name: changed for name, changed in overrides.items() if changed}
        return config

    def _overrides(self, dense):
        changed = {}
        if dense.trainable != self.trainable:
            changed["trainable"] = dense.trainable
        if dense.dtype_policy != self.dtype_policy:
            changed["dtype"] = keras.dtype_policies.serialize(dense.dtype_policy)
        if dense.lora_rank:
            changed["lora_rank"], changed["lora_alpha"] = dense.lora_rank, dense.lora_alpha
        return changed
