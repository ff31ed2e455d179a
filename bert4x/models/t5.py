"""T5, T5.1.1 and mT5: encoder, decoder, and the two in one model."""

import re

from bert4x.backend import keras
from bert4x.layers import CausalMask, MultiHeadAttention, RelativePositionEmbeddingT5, ScaleOffset
from bert4x.models.base import Transformer
from bert4x.models.blocks import Pass, pre_norm
from bert4x.models.checkpoint import CheckpointError
from bert4x.models.weights import Source, has_own_head, inside

VERSIONS = ("t5.1.0", "t5.1.1", "mt5.1.1")
# Our activation -> its name in HuggingFace's feed_forward_proj, without and with a gate.
_ACTIVATIONS = {
    False: {"gelu_erf": "gelu", "gelu_tanh": "gelu_new"},
    True: {"gelu_erf": "gelu_python", "gelu_tanh": "gelu"},
}


class T5Base(Transformer):
    """What T5's two stacks share: RMS norms before the sublayers, unscaled attention, bucketed positions, no biases.

    t5.1.0 has a plain feed-forward layer and a tied head, t5.1.1 and mt5.1.1 a gated one and a head of their own.
    scale_decoder_outputs: a tied head takes the states times D^-0.5.
    Source: arXiv:1910.10683, 2010.11934.
    """

    model_type = "t5"
    applications = ("encoder",)
    options = {
        "version": None,
        "scale_decoder_outputs": True,
        "layer_norm_eps": 1e-6,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
    }
    pretrained_keys = {
        "hidden_size": "d_model",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "attention_head_size": "d_kv",
        "intermediate_size": "d_ff",
        "dropout_rate": "dropout_rate",
        "layer_norm_eps": "layer_norm_epsilon",
        "initializer_range": None,
        "embedding_size": None,
        "hidden_act": None,
        "num_decoder_layers": "num_decoder_layers",
        "relative_attention_num_buckets": "relative_attention_num_buckets",
        "relative_attention_max_distance": "relative_attention_max_distance",
    }
    stack = None
    suffix = ""  # of the names in FAMILIES
    use_bias = False
    attention_position = "t5_relative"
    residual = staticmethod(pre_norm)
    gelu = {"google": "gelu_tanh", "huggingface": "gelu_tanh"}
    huggingface_rules = (
        (r"^decoder/logits/kernel", "lm_head/kernel"),
        (r"^shared/embedding", "shared/weight"),
        (r"block_0*(\d+)/layer_0*(\d+)", r"block/\1/layer/\2"),
        (r"rms_norm/scale$", "layer_norm/scale"),
        (r"^(encoder|decoder)/layer_norm/scale$", r"\1/final_layer_norm/scale"),
        (r"(scale|relative_attention_bias|/[qkvo])$", r"\1/weight"),
        (r"scale/weight", "weight"),
    )
    fallback_names = {"shared.weight": ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")}

    @classmethod
    def adapt(cls, options, flavour):
        projection = options.get("feed_forward_proj")
        if projection is not None:
            gated, _, name = projection.rpartition("-")
            name = {theirs: ours for ours, theirs in _ACTIVATIONS[bool(gated)].items()}.get(name, name)
            scaled = options.get("model_type") != "mt5" and options.get("tie_word_embeddings") is not False
            options = {"hidden_act": [name, "linear"] if gated else name, "scale_decoder_outputs": scaled, **options}
        if flavour == "huggingface":
            mt5 = options.get("model_type") == "mt5" and cls.known_options()["version"] is None
            version = "mt5.1.1" if mt5 else None
            rate = options.get("dropout_rate")  # one for all dropouts
            options = {"attention_dropout_rate": rate, "version": version, **options}
        return super().adapt(options, flavour)

    @classmethod
    def recognise(cls, options, checkpoint):
        """The version that the weights are of; a contradicting one is an error."""
        preset, found, plain = cls.known_options()["version"], recognise_version(checkpoint), "t5.1.0"
        given = options.get("version") or preset
        if given == "mt5.1.1" and preset is None and found == plain and isinstance(options.get("hidden_act"), list):
            given = None  # transformers may tie the head of an mT5, which then is a gated T5
        if given is not None and (given == plain) != (found == plain):
            raise ValueError(
                f"the weights of {checkpoint.source} are of {found}, not {given}: {plain} has a tied head, "
                f"the others a head of their own. Use model={found + cls.suffix!r}."
            )
        return {**options, "version": found if given is None or checkpoint.naming == "google" else given}

    def _complete_options(self):
        self.refuse("embedding_size", why="the token table has width hidden_size")
        self.refuse("attention_mask", why="padding is id 0, or what context_mask says")
        super()._complete_options()
        if self.version is None:
            self.version = "t5.1.1" if isinstance(self.hidden_act, list) else "t5.1.0"
        if self.version not in VERSIONS:
            raise ValueError(f"version must be one of {', '.join(VERSIONS)}; got {self.version!r}")

    def pretrained_extras(self):
        gated = isinstance(self.hidden_act, list)
        name = self.hidden_act[0] if gated else self.hidden_act
        name = _ACTIVATIONS[gated].get(name, name)
        return {
            "model_type": "mt5" if self.version == "mt5.1.1" else "t5",
            "feed_forward_proj": f"gated-{name}" if gated else name,
            "tie_word_embeddings": self.version == "t5.1.0",
            "scale_decoder_outputs": self.version == "t5.1.0" and self.scale_decoder_outputs,
        }

    def part(self, index, kind):
        return f"{self.stack}-Transformer-{index}-{kind}"

    def norm(self, x, name, walk):
        return super().norm(x, name, walk, zero_mean=False, offset=False)

    def attention_options(self):
        return {**super().attention_options(), "attention_scale": False}

    def feed_forward_options(self):
        return {**super().feed_forward_options(), "dropout": self.dropout_rate}

    def embed(self, inputs, walk):
        return self.dropout(self.token_embedding(inputs["token"]), f"{self.stack}-Embedding-Dropout")

    def position_term(self, x, inputs, walk):
        layer = self.layer(
            f"{self.stack}-Embedding-Relative-Position",
            RelativePositionEmbeddingT5,
            input_dim=self.relative_attention_num_buckets,
            output_dim=self.score_heads,
            max_distance=self.relative_attention_max_distance,
            bidirectional=self.stack == "Encoder",
            embeddings_initializer=self.initializer,
        )
        return walk.offsets(layer, x)

    def finish(self, x, walk):
        """The norm after the last block."""
        return self.dropout(self.norm(x, f"{self.stack}-Output-Norm", walk), f"{self.stack}-Output-Dropout")

    def stack_table(self, sublayers):
        """Weight table of a stack; sublayers: [(kind, name in the file)] in the order of a block."""
        root = self.stack.lower()
        first = f"{root}/block_000/layer_000"
        final = "rms_norm" if self.version == "mt5.1.1" else "final_layer_norm"
        table = {
            "Embedding-Token": {"embeddings": Source("shared/embedding", rows="token")},
            f"{self.stack}-Embedding-Relative-Position": {
                "embeddings": Source(f"{first}/SelfAttention/relative_attention_bias", transpose=True)
            },
            f"{self.stack}-Output-Norm": {"gamma": f"{root}/{final}/scale"},
        }
        for index in range(self.num_blocks):
            for position, (kind, name) in enumerate(sublayers):
                table |= self.sublayer_table(index, kind, name, f"{root}/block_{index:03d}/layer_{position:03d}")
        return table

    def sublayer_table(self, index, kind, name, place):
        """Weight table of one sublayer and its norm."""
        norm = "rms_norm" if self.version == "mt5.1.1" else "layer_norm"
        if kind == "FeedForward":
            names = ["wi_0", "wi_1"] if isinstance(self.hidden_act, list) else ["wi"]
            rows = {f"inner_{i}/kernel": f"{place}/{name}/{wi}/kernel" for i, wi in enumerate(names)}
            rows |= inside("out", {"kernel": f"{place}/{name}/wo/kernel"})
        else:
            parts = {"query": "q", "key": "k", "value": "v", "out": "o"}
            rows = {f"{part}/kernel": f"{place}/{name}/{letter}" for part, letter in parts.items()}
        layer = self.part(index, kind)
        return {layer: rows, f"{layer}-Norm": {"gamma": f"{place}/{norm}/scale"}}


class T5Encoder(T5Base):
    """T5's encoder: token ids [B, S] -> [B, S, D]."""

    stack, suffix = "Encoder", "_encoder"

    def get_inputs(self):
        return {"token": self.input("Encoder-Input-Token")}

    def head(self, x, walk):
        return [self.finish(x, walk)]

    def weight_table(self):
        return self.stack_table([("MultiHeadSelfAttention", "SelfAttention"), ("FeedForward", "DenseReluDense")])


class T5Decoder(T5Base):
    """T5's decoder: encoder states [B, S, D], token ids [B, T] -> token probabilities [B, T, V].

    Args (besides those of `T5Base`):
        with_lm: True (softmax), an activation's name, or False for the hidden states.
        context_mask: a third input bool [B, S] says which encoder states are not padding. The mask that an encoder's
            output carries is honoured anyway; an array carries none.
        num_decoder_layers: number of blocks; num_hidden_layers if absent.
    """

    options = {"with_lm": True, "context_mask": False, "num_decoder_layers": None}
    stack, suffix = "Decoder", "_decoder"

    @property
    def num_blocks(self):
        return self.num_decoder_layers or self.num_hidden_layers

    def build(self, *, deferred=False):
        super().build(deferred=deferred)
        # Else Keras warns that the mask of the encoder's output is lost, which it is not. (A loaded .keras file warns.)
        self.model.supports_masking = True
        return self.model

    def get_inputs(self):
        inputs = {
            "context": self.input("Input-Context", (self.sequence_length, self.hidden_size), self.compute_dtype),
            "token": self.input("Decoder-Input-Token"),
        }
        if self.context_mask:
            inputs["context_mask"] = self.input("Input-Context-Mask", dtype="bool")
        return inputs

    def step_inputs(self):
        token = keras.Input((None,), dtype="int32", name="token")
        return {"token": token, "context_mask": keras.Input((None,), dtype="bool", name="context_mask")}

    def build_context(self):
        """Encoder states [B, C, D] -> {context_key_i, context_value_i}, of the cross-attention of each block i."""
        return self.context_graph(self.inputs[0], self.inputs[0])

    def context_graph(self, source, states):
        """Model from `source`, of which the encoder states are made, to the keys and values of cross-attention."""
        made = {}
        for index in range(self.num_blocks):
            layer = self.layers[self.part(index, "MultiHeadCrossAttention")]
            # One query, since only the keys and values are wanted.
            _, (key, value), *_ = layer([states[:, :1], states, states])
            made |= {f"context_key_{index}": key, f"context_value_{index}": value}
        return keras.Model(source, made, name=f"{self.model.name}_context")

    def application_mask(self, inputs, walk):
        return self.layer("Decoder-Attention-LM-Mask", CausalMask)(inputs["token"], **walk.slots())

    def body(self, inputs, walk):
        walk.context = inputs.get("context")
        walk.context_masks = [inputs["context_mask"]] if "context_mask" in inputs else []
        return super().body(inputs, walk)

    def sublayers(self):
        attention, feed_forward = super().sublayers()
        return [attention, ("MultiHeadCrossAttention", self.cross_attention), feed_forward]

    def cross_attention(self, x, name, walk):
        """Attention of the decoder's states to the encoder's, without positions."""
        layer = self.layer(name, MultiHeadAttention, **self.attention_options())
        masks = [mask[:, None, :] for mask in walk.context_masks]
        context = x if walk.is_step else walk.context  # whose keys and values the step graph is given
        o, *_ = layer([x, context, context, *masks], a_bias=len(masks) or None, **walk.context_cache())
        return o

    def head(self, x, walk):
        x = self.finish(x, walk)
        if not self.with_lm:
            return [x]
        if self.version == "t5.1.0":
            scale = self.hidden_size**-0.5 if self.scale_decoder_outputs else 1.0
            x = self.layer("Decoder-Output-Scale", ScaleOffset, scale=scale, offset=False)(x)
            x = self.token_embedding(x, mode="dense")
        else:
            x = self.dense(x, "Decoder-Output-LM", self.vocab_size)
        activation = "softmax" if self.with_lm is True else self.with_lm
        return [self.activation(x, "Decoder-Output-LM-Activation", activation, walk)]

    def weight_table(self):
        sublayers = [
            ("MultiHeadSelfAttention", "SelfAttention"),
            ("MultiHeadCrossAttention", "EncDecAttention"),
            ("FeedForward", "DenseReluDense"),
        ]
        head = {"Decoder-Output-LM": {"kernel": Source("decoder/logits/kernel", rows="column")}}
        return self.stack_table(sublayers) | head


class T5(T5Decoder):
    """Encoder and decoder in one model: [encoder ids [B, S], decoder ids [B, T]] -> [B, T, V].

    context_mask and output_hidden_states concern the decoder; the latter's states follow the probabilities.

    Attributes: encoder, decoder: builders of the two parts, which share all layers with this model.
    """

    suffix = ""

    @classmethod
    def recognise(cls, options, checkpoint):
        held = [part for part in ("encoder", "decoder") if any(name.startswith(part) for name in checkpoint.names)]
        if len(held) == 1 and not options.get("ignore_invalid_weights"):
            raise CheckpointError(f"{checkpoint.source} holds the {held[0]} of a T5 alone. Use model='t5_{held[0]}'.")
        return super().recognise(options, checkpoint)

    def build(self, *, deferred=False):
        if self.model is not None:
            return self.model
        self.encoder = self._stack(T5Encoder, layers=self.layers)
        self.encoder.build(deferred=deferred)
        self.decoder = self._stack(T5Decoder, layers=self.encoder.layers)
        self.decoder.build(deferred=deferred)
        self.layers = self.decoder.layers
        source, token = self.encoder.inputs[0], self.decoder.inputs[1]
        self.inputs = [source, token, *self.additional_inputs()]
        roles = {"context": self.encoder.outputs[0], "token": token}
        self.outputs = self.decoder.forward(roles, Pass(condition=self.layer_norm_cond))
        outputs = self.outputs[0] if len(self.outputs) == 1 else self.outputs
        self.model = keras.Model(self.inputs, outputs, name=self.name)
        self.model.builder = self
        return self.model

    def build_context(self):
        """Encoder ids [B, C] -> {context_key_i, context_value_i}, of the cross-attention of each block i."""
        return self.context_graph(self.encoder.inputs[0], self.encoder.outputs[0])

    def _stack(self, family, **options):
        """One of the two parts, not built yet."""
        known = family.known_options().keys() | set(family.required)
        known -= {"name", "layers", "keep_tokens", "compound_tokens"}
        options |= {name: getattr(self, name) for name in known}
        options["name"] = f"{self.name}_{family.stack}" if self.name else None
        return family(**options)

    def weight_table(self):
        return self._stack(T5Encoder).weight_table() | self._stack(T5Decoder).weight_table()


def recognise_version(checkpoint):
    """Which version a checkpoint holds: by the head of the decoder, or in a file of an encoder by the inner kernels."""
    names = checkpoint.names
    if any("rms_norm" in name for name in names):
        return "mt5.1.1"
    if not any(name.startswith("decoder") for name in names):
        return "t5.1.1" if any(re.search(r"\bwi_0\b", name) for name in names) else "t5.1.0"
    tables = [name for names in T5Base.fallback_names.items() for name in (names[0], *names[1])]
    return "t5.1.1" if "decoder/logits/kernel" in names or has_own_head(checkpoint, tables) else "t5.1.0"


def variants(family, suffix):
    """{model name: class} for the versions of a T5 class."""
    named = {f"{version}{suffix}": {"version": version} for version in VERSIONS}
    classes = {name: type(family.__name__, (family,), {"options": preset}) for name, preset in named.items()}
    return {f"t5{suffix}": family, **classes}
