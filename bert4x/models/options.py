"""Keyword arguments of the builders: their names and defaults, where they come from, what must fit together."""

import difflib
import numbers

from bert4x.backend import get_gelu


class Options:
    """Keyword arguments as attributes. `options` lists each with its default; a subclass adds its own.

    Raises: ValueError for an unknown name (with the nearest one), a missing size, or values that do not fit.
    """

    applications = ("encoder", "lm", "unilm")
    required = (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "hidden_act",
    )
    options = {
        "attention_head_size": None,
        "attention_key_size": None,
        "embedding_size": None,
        "dropout_rate": 0.0,
        "attention_dropout_rate": 0.0,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "mask_zero": True,
        "sequence_length": None,
        "keep_tokens": None,
        "compound_tokens": None,
        "residual_attention_scores": False,
        "layer_norm_cond": None,
        "layer_norm_cond_hidden_size": None,
        "layer_norm_cond_hidden_act": "linear",
        "additional_input_layers": None,
        "attention_mask": False,
        "attention_caches": None,
        "output_hidden_states": False,
        "fused_attention": None,
        "remat": False,
        "check_ids": False,
        "dtype": None,
        "ignore_invalid_weights": False,
        "autoresize_weights": False,
        "layers": None,
        "prefix": "",
        "name": None,
    }
    # Options about one use of a model rather than its shape; a key of a configuration file never sets them
    # (HuggingFace files have a `dtype` and a `prefix` of other meanings).
    not_in_files = {"dtype", "prefix", "name", "layers", "attention_mask", "attention_caches", "remat"}
    not_in_files |= {"output_hidden_states"}
    gelu = {"google": "gelu_erf", "huggingface": "gelu_erf"}  # what 'gelu' means in this family's files

    def __init__(self, **options):
        known = self.known_options()
        for name in options:
            if name not in known and name not in self.required:
                raise ValueError(self._unknown_option(name))
        missing = [name for name in self.required if options.get(name) is None]
        if missing:
            raise ValueError(f"{type(self).__name__} needs {', '.join(missing)}: not in the configuration. Pass them.")
        for name, default in {**dict.fromkeys(self.required), **known}.items():
            setattr(self, name, default if options.get(name) is None else options[name])
        self._complete_options()

    @classmethod
    def known_options(cls):
        """Every optional keyword argument of this family with its default."""
        merged = {}
        for base in reversed(cls.__mro__):
            merged.update(vars(base).get("options", {}))
        return merged

    @classmethod
    def _unknown_option(cls, name):
        near = difflib.get_close_matches(name, [*cls.required, *cls.known_options()], n=1)
        return (
            f"{name!r} is not an option of {cls.__name__}."
            + (f" Did you mean {near[0]!r}?" if near else "")
            + f" Options: {', '.join([*cls.required, *sorted(cls.known_options())])}."
        )

    @classmethod
    def resolve_activation(cls, activation, flavour="google"):
        """Replace the bare string 'gelu' by the one this family's files mean, unless `set_gelu` was called."""
        if isinstance(activation, (list, tuple)):
            return [cls.resolve_activation(name, flavour) for name in activation]
        if activation == "gelu":
            return f"gelu_{get_gelu()}" if get_gelu() else cls.gelu[flavour]
        return "gelu_tanh" if activation in ("gelu_new", "gelu_pytorch_tanh") else activation

    @classmethod
    def recognise(cls, options, checkpoint):
        """Options completed by what the weights show; `checkpoint` is open."""
        return options

    @classmethod
    def adapt(cls, options, flavour):
        """Options as read from a file of the given flavour -> options for the constructor."""
        known = cls.known_options().keys() - cls.not_in_files | set(cls.required)
        options = {name: value for name, value in options.items() if name in known}
        if "hidden_act" in options:
            options["hidden_act"] = cls.resolve_activation(options["hidden_act"], flavour)
        return options

    def _complete_options(self):
        """Derive what depends on other options, and check what must fit together."""
        self._check_sizes()
        self.hidden_act = self.resolve_activation(self.hidden_act)
        if self.keep_tokens is not None:
            self.keep_tokens = [int(token) for token in self.keep_tokens]
            self.vocab_size = len(self.keep_tokens)
        self.vocab_size += len(self.compound_tokens or ())
        if not self.attention_head_size and self.hidden_size % self.num_attention_heads:
            fitting = [n for n in range(1, self.num_attention_heads + 1) if self.hidden_size % n == 0]
            raise ValueError(
                "hidden_size must be a multiple of num_attention_heads; got "
                f"{self.hidden_size} and {self.num_attention_heads}. "
                f"Use {fitting[-1]} heads, or set attention_head_size."
            )
        self.attention_head_size = self.attention_head_size or self.hidden_size // self.num_attention_heads
        self.attention_key_size = self.attention_key_size or self.attention_head_size
        self.embedding_size = self.embedding_size or self.hidden_size
        for name in ("dropout_rate", "attention_dropout_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1); got {getattr(self, name)}")

    def _check_sizes(self):
        sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        for name in sizes:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1; got {value!r}")
        if self.keep_tokens is not None and not len(self.keep_tokens):
            raise ValueError("keep_tokens must name at least one token; got an empty list. Leave it out to keep all.")
        for item in self.compound_tokens or ():
            ids = item[0] if isinstance(item, tuple) else item
            if not isinstance(ids, (list, tuple)) or not ids:
                raise ValueError(f"compound_tokens must be lists of ids or pairs (ids, weights); one is {item!r}")

    def refuse(self, *names, why):
        """Raise ValueError if one of these options, which the family cannot have, is set."""
        for name in names:
            value = getattr(self, name)
            if value and not (name == "embedding_size" and value == self.hidden_size):
                raise ValueError(f"{name} is not available for {type(self).__name__}: {why}; got {value!r}")
