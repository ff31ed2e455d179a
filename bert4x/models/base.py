"""The builder: named layers, options, the walk over the graph, loading and saving. Families override its hooks."""

import functools
import math
import re

from bert4x.backend import get_activation, keras
from bert4x.layers import (
    Add,
    AttentionMask,
    CombinedMask,
    Embedding,
    FeedForward,
    LayerNormalization,
    Rule,
    TruncatedNormal,
)
from bert4x.models import step, weights
from bert4x.models.attention import SelfAttention
from bert4x.models.blocks import Pass, post_norm
from bert4x.models.checkpoint import open_checkpoint, write_safetensors, write_tensorflow


class Transformer(SelfAttention):
    """Builds one Keras functional model out of named layers.

    Hooks that families override: `part`, `get_inputs`, `embed`, `attention_position`, `application_mask`, `residual`,
    `head`, `weight_table`.

    Attributes: the options; model, inputs, outputs, layers {name without prefix: layer}, initializer, load_report.
    """

    application = "encoder"
    next_segment = None  # of generated tokens: that of the last token before them, unless an application says otherwise
    model_type = None  # the family's name in config.json
    use_bias = True
    attention_position = None
    residual = staticmethod(post_norm)
    pretrained_keys = {}  # option -> its key in this family's config.json where that differs; None: it has none
    huggingface_rules = ()
    huggingface_transposes = True  # their Linear weights are (out, in); GPT's modules are not
    fallback_names = {}

    def __init__(self, **options):
        super().__init__(**options)
        self.layers = dict(self.layers or {})
        self.model = self.load_report = None
        self.inputs = self.outputs = None
        self._deferred = False

    # ---- layers ----------------------------------------------------------------------------------------------

    @property
    def initializer(self):
        """A fresh initialiser for one kernel or table; also for layers that users put on top."""
        initializer = self.make_initializer()
        initializer.deferred = self._deferred
        return initializer

    def make_initializer(self):
        """The family's initialiser."""
        return TruncatedNormal(stddev=self.initializer_range)

    def layer(self, name, kind, **arguments):
        """The layer of this name: the existing one, or a new `kind(**arguments)`."""
        if name not in self.layers:
            self.layers[name] = kind(name=f"{self.prefix}{name}", **{"dtype": self.dtype, **arguments})
        return self.layers[name]

    def add(self, tensors, name):
        """Sum of tensors."""
        return self.layer(name, Add)(tensors)

    def dropout(self, x, name):
        """Dropout at the configured rate; absent at rate 0."""
        if not self.dropout_rate:
            return x
        return self.layer(name, keras.layers.Dropout, rate=self.dropout_rate)(x)

    def norm(self, x, name, walk, **arguments):
        """Layer norm, conditional if the walk has a condition."""
        arguments = {"epsilon": self.layer_norm_eps, **arguments}
        if walk.condition is None:
            return self.layer(name, LayerNormalization, **arguments)(x)
        arguments |= {
            "conditional": True,
            "hidden_units": self.layer_norm_cond_hidden_size,
            "hidden_activation": self.layer_norm_cond_hidden_act,
            "hidden_initializer": self.initializer,
        }
        return self.layer(name, LayerNormalization, **arguments)([x, walk.condition])

    def dense(self, x, name, units, activation="linear", **arguments):
        """A Dense layer with the model's initialiser; of a list of activations (a gated feed-forward's) the first."""
        activation = activation[0] if isinstance(activation, (list, tuple)) else activation
        arguments = {"kernel_initializer": self.initializer, "use_bias": self.use_bias, **arguments}
        return self.layer(name, keras.layers.Dense, units=units, activation=get_activation(activation), **arguments)(x)

    def activation(self, x, name, activation, walk):
        """An output activation, computed in float32. A decoding step needs the logits: it has none."""
        if walk.is_step:
            name, activation = "Step-Logits", "linear"
        return self.layer(name, keras.layers.Activation, activation=get_activation(activation), dtype="float32")(x)

    @property
    def token_embedding(self):
        """The token table, which the output head uses too."""
        return self.layer(
            "Embedding-Token",
            Embedding,
            input_dim=self.vocab_size,
            output_dim=self.embedding_size,
            embeddings_initializer=self.initializer,
            mask_zero=self.mask_zero,
            check_ids=self.check_ids,
        )

    # ---- hooks -----------------------------------------------------------------------------------------------

    def part(self, index, kind):
        """Layer name of a part of block `index`."""
        return f"Transformer-{index}-{kind}"

    @property
    def num_blocks(self):
        """Number of blocks that a walk goes through."""
        return self.num_hidden_layers

    def get_inputs(self):
        """The model's inputs, {role: tensor}, in order."""
        raise NotImplementedError(f"{type(self).__name__} must define get_inputs")

    def embed(self, inputs, walk):
        """Token ids and the like -> the first hidden states [B, T, D]."""
        raise NotImplementedError(f"{type(self).__name__} must define embed")

    def application_mask(self, inputs, walk):
        """Boolean mask [B or 1, T, S] of the application, or None."""
        return None

    def position_term(self, x, inputs, walk):
        """The tensor that `attention_position` needs, or None."""
        return None

    def head(self, x, walk):
        """Last hidden states -> output tensors, a list."""
        return [x]

    def weight_table(self):
        """Layer name -> {variable inside it: name in a file}; see `bert4x.models.weights`."""
        raise NotImplementedError(f"{type(self).__name__} must define weight_table")

    def pretrained_extras(self):
        """Keys of config.json that are not an option of ours under another name."""
        return {}

    def reading_table(self, checkpoint):
        """The table for reading this checkpoint; families whose files come in two layouts choose here."""
        return self.weight_table()

    # ---- the walk --------------------------------------------------------------------------------------------

    def input(self, name, shape=None, dtype="int32"):
        """An input layer; shape defaults to one number per token."""
        shape = (self.sequence_length,) if shape is None else shape
        return keras.Input(shape=shape, dtype=dtype, name=f"{self.prefix}{name}")

    def forward(self, inputs, walk):
        """Walk through the graph once: embeddings, blocks, head. Returns the list of outputs."""
        outputs = self.head(self.body(inputs, walk), walk)
        return outputs + walk.hidden_states if self.output_hidden_states else outputs

    def body(self, inputs, walk):
        """Embeddings and blocks: the last hidden states [B, T, D]."""
        x = self.embed(inputs, walk)
        walk.hidden_states.append(x)
        walk.masks = self._masks(inputs, walk)
        walk.position = self.position_term(x, inputs, walk)
        for index in range(self.num_blocks):
            x = self.block(x, index, walk)
            walk.hidden_states.append(x)
        return x

    def attention_mask_input(self):
        """The inputs that the option attention_mask asks for, {role: tensor}."""
        if not self.attention_mask:
            return {}
        if isinstance(self.attention_mask, Rule):
            roles = sorted(set(self.attention_mask.roles) - {"token", "segment"})
            return {role: self.input(f"Input-{role.capitalize()}") for role in roles}
        return {"attention_mask": self.input("Input-Attention-Mask", self.attention_mask_shape)}

    @property
    def attention_mask_shape(self):
        """Shape of the input that attention_mask asks for: [T, T] per sample, or [T] for 'keys'."""
        length = self.sequence_length
        shapes = {True: (length, length), "full": (length, length), "keys": (length,)}
        if self.attention_mask not in shapes:
            raise ValueError(
                f"attention_mask must be True or 'full' (an input [B, T, T]) or 'keys' ([B, T]) or a Rule; "
                f"got {self.attention_mask!r}"
            )
        return shapes[self.attention_mask]

    def _masks(self, inputs, walk):
        masks = [self.application_mask(inputs, walk), self._rule_mask(inputs), inputs.get("attention_mask")]
        masks = [mask for mask in masks if mask is not None]
        if not masks or (len(masks) == 1 and "attention_mask" not in inputs):
            return masks
        return [self.layer("Attention-Combined-Mask", CombinedMask)(masks)]

    def _rule_mask(self, inputs):
        """The mask of the rule that the option attention_mask is, or None."""
        if not isinstance(self.attention_mask, Rule):
            return None
        roles = {role: inputs.get(role) for role in self.attention_mask.roles or ("token",)}
        if "segment" in roles and roles["segment"] is None:
            raise ValueError(f"the rule {self.attention_mask} reads segment ids, and this model has no such input")
        return self.layer("Attention-Rule-Mask", AttentionMask, rule=self.attention_mask)(roles)

    def block(self, x, index, walk):
        """One block: its sublayers, each with its residual connection."""
        for kind, sublayer in self.sublayers():
            name = self.part(index, kind)
            x = self.residual(self, x, name, functools.partial(sublayer, name=name, walk=walk), walk)
        return x

    def sublayers(self):
        """The parts of a block, [(kind, function of x, name and walk)]."""
        return [("MultiHeadSelfAttention", self.attention), ("FeedForward", self.feed_forward)]

    def feed_forward(self, x, name, walk):
        """The position-wise layer."""
        return self.layer(name, FeedForward, **self.feed_forward_options())(x)

    def feed_forward_options(self):
        """Arguments of every feed-forward layer."""
        return {
            "units": self.intermediate_size,
            "activation": self.hidden_act,
            "use_bias": self.use_bias,
            "kernel_initializer": self.initializer,
            "remat": self.remat,
        }

    def build(self, *, deferred=False):
        """Wire the model.

        Args:
            deferred: skip the random initialisation; a checkpoint is loaded next.
        """
        if self.model is not None:
            return self.model
        roles = self.get_inputs()
        self.inputs = [*roles.values(), *self.additional_inputs()]
        self._deferred = deferred
        self.outputs = self.forward(roles, Pass(condition=self.layer_norm_cond))
        self._deferred = False
        unknown = [name for name in self.attention_caches or {} if name not in self.layers]
        if unknown:
            raise ValueError(f"attention_caches name layers that this model lacks: {', '.join(unknown)}")
        outputs = self.outputs[0] if len(self.outputs) == 1 else self.outputs
        inputs = self.inputs[0] if len(self.inputs) == 1 else self.inputs
        try:
            self.model = keras.Model(inputs, outputs, name=self.name)
        except ValueError as error:
            if "not connected" not in str(error):
                raise
            raise ValueError(
                "the model needs a tensor that is none of its inputs: pass the Input of layer_norm_cond in "
                "additional_input_layers too"
            ) from error
        self.model.builder = self
        return self.model

    def build_step(self, max_length=None, *, last_only=False):
        """The graph of one decoding step, of the same layers; see `bert4x.models.step.build_step`."""
        return step.build_step(self, max_length, last_only=last_only)

    def build_context(self):
        """For a decoder: encoder inputs -> keys and values of its cross-attention. None: there is no encoder."""
        return None

    def step_inputs(self):
        """The inputs of a decoding step besides caches and slots, {role: tensor}."""
        return {role: keras.Input((None,), dtype=x.dtype, name=role) for role, x in self.get_inputs().items()}

    @property
    def compute_dtype(self):
        """The compute dtype of the layers."""
        return keras.dtype_policies.get(self.dtype).compute_dtype

    @property
    def output(self):
        """The output of the model: one tensor, or a list."""
        return self.model.output

    def additional_inputs(self):
        extra = self.additional_input_layers
        if extra is None:
            return []
        extra = extra if isinstance(extra, (list, tuple)) else [extra]
        return [layer.output if isinstance(layer, keras.layers.Layer) else layer for layer in extra]

    # ---- weights ---------------------------------------------------------------------------------------------

    def rescaled(self, path, resized, original):
        """Keep the size of scaled scores when the key width changes: q and k times (new / old)^(1/4)."""
        if re.match(r"(query|key)/", path):
            return resized * math.pow(resized.shape[-1] / original.shape[-1], 0.25)
        return resized

    def load_weights_from_checkpoint(self, checkpoint, mapping=None):
        """Load weights; any format and naming that `open_checkpoint` reads.

        Args:
            checkpoint: path, or dict name -> array.
            mapping: another weight table than the family's.
        Returns: the LoadReport, also kept as `load_report`.
        Raises: CheckpointError listing all that is missing or has another shape; then nothing was changed.
        """
        with open_checkpoint(checkpoint) as opened:
            self.load_report = weights.load_weights(
                self,
                opened,
                table=mapping,
                tolerant=self.ignore_invalid_weights,
                resize=self.autoresize_weights,
            )
        return self.load_report

    def save_weights_as_checkpoint(self, filename, mapping=None, dtype=None):
        """Write the weights: a name ending in .safetensors gives HuggingFace naming, any other a TensorFlow checkpoint.

        Args:
            filename: path of the file, or prefix of the TensorFlow checkpoint.
            mapping: another weight table than the family's.
            dtype: dtype in the file; float32 by default.
        """
        huggingface = str(filename).endswith(".safetensors")
        if str(filename).endswith((".bin", ".pt", ".pth", ".h5", ".keras")):
            raise ValueError(
                "a checkpoint is written as NAME.safetensors or as a TensorFlow checkpoint (a name such as NAME.ckpt); "
                f"got {filename}. Keras files are written by model.save and model.save_weights."
            )
        naming = "huggingface" if huggingface else "google"
        items = weights.weight_items(self, naming, table=mapping, dtype=dtype)
        (write_safetensors if huggingface else write_tensorflow)(filename, items)
