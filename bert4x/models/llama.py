"""Decoders of LLaMA's shape: LLaMA, Mistral, Qwen2."""

import numpy as np

from bert4x.layers import CausalMask, SinusoidalPositionEmbedding
from bert4x.models.applications import LanguageModel
from bert4x.models.base import Transformer
from bert4x.models.blocks import pre_norm
from bert4x.models.checkpoint import CheckpointError
from bert4x.models.weights import Source, dense, has_own_head, inside


class LLaMA(LanguageModel, Transformer):
    """Causal decoder: RMS norms before the sublayers, rotary positions, grouped queries, SwiGLU (arXiv:2302.13971).

    Outputs: token probabilities [B, T, V], or what `final_activation` names.

    Args (besides those of `Transformer`):
        num_key_value_heads: heads of keys and values; num_attention_heads if absent (arXiv:2305.13245).
        use_qkv_bias: biases of query, key and value (Qwen2).
        use_out_bias: a bias of the attention's output too (LLaMA files with attention_bias).
        rope_theta: base of the rotary positions.
        rope_scaling: None, or a dict of HuggingFace's with rope_type 'linear' or 'llama3'; see `rate_scales`.
        sliding_window: each token sees itself and the sliding_window - 1 before it (Mistral); None: all.
        tie_word_embeddings: the output head is the token table. Weights that have a head of their own decide otherwise.
        attention_mask: "keys" (an input [B, T]) serves padding on the left: only differences of positions count here.
    Masks: id 0 is an ordinary token (mask_zero=False); the mask is causal, so padding on the right changes no real
        position.
    """

    model_type = "llama"
    applications = ("encoder", "lm")
    options = {
        "final_activation": "softmax",
        "layer_norm_eps": 1e-6,
        "mask_zero": False,
        "num_key_value_heads": None,
        "use_qkv_bias": False,
        "use_out_bias": False,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "sliding_window": None,
        "tie_word_embeddings": False,
    }
    pretrained_keys = {
        "layer_norm_eps": "rms_norm_eps",
        "attention_head_size": "head_dim",
        "attention_dropout_rate": "attention_dropout",
        "embedding_size": None,
    }
    use_bias = False
    attention_position = "rotary_half"
    residual = staticmethod(pre_norm)

    @classmethod
    def adapt(cls, options, flavour):
        if options.get("mlp_bias") or options.get("partial_rotary_factor", 1) != 1:
            raise CheckpointError("mlp_bias must be false and partial_rotary_factor 1; the configuration differs")
        biases = {"use_qkv_bias": options.get("attention_bias"), "use_out_bias": options.get("attention_bias")}
        options = {**biases, **options, **cls._rope(options), "sliding_window": cls._window(options)}
        return super().adapt(options, flavour)

    @staticmethod
    def _rope(options):
        """rope_theta and rope_scaling of a configuration, which has them in one dict, new, or apart, old."""
        rope = dict(options.get("rope_parameters") or options.get("rope_scaling") or {})
        theta, kind = rope.pop("rope_theta", options.get("rope_theta")), rope.pop("type", "default")
        rope = {"rope_type": kind, **rope}
        return {"rope_theta": theta, "rope_scaling": rope if rope["rope_type"] != "default" else None}

    @staticmethod
    def _window(options):
        """The sliding window of a configuration, which Qwen2's files name even where it is off."""
        if options.get("model_type") == "qwen2":
            if not options.get("use_sliding_window"):
                return None
            if options.get("max_window_layers", 28):
                raise CheckpointError("max_window_layers must be 0: all blocks have the sliding window here, or none")
        return options.get("sliding_window")

    @classmethod
    def recognise(cls, options, checkpoint):
        if options.get("tie_word_embeddings") and has_own_head(checkpoint, ["model.embed_tokens.weight"]):
            return {**options, "tie_word_embeddings": False}
        return options

    def _complete_options(self):
        self.refuse("embedding_size", why="the token table has width hidden_size")
        super()._complete_options()
        if not isinstance(self.hidden_act, list):
            self.hidden_act = [self.hidden_act, "linear"]
        if self.rope_scaling:
            rate_scales(self.attention_key_size, self.rope_theta, self.rope_scaling)  # raises for unknown kinds
        if self.use_out_bias and not self.use_qkv_bias:
            raise ValueError("use_out_bias needs use_qkv_bias: the biases are those of all four projections")
        if self.num_attention_heads % (self.num_key_value_heads or 1):
            raise ValueError(
                "num_attention_heads must be a multiple of num_key_value_heads; got "
                f"{self.num_attention_heads} and {self.num_key_value_heads}"
            )

    def application_mask(self, inputs, walk):
        return self.layer("Attention-LM-Mask", CausalMask, window=self.sliding_window)(inputs["token"], **walk.slots())

    def norm(self, x, name, walk):
        return super().norm(x, name, walk, zero_mean=False, offset=False)

    def attention_options(self):
        return {
            **super().attention_options(),
            "key_value_heads": self.num_key_value_heads,
            "use_bias": self.use_out_bias or ("qkv" if self.use_qkv_bias else False),
        }

    def get_inputs(self):
        return {"token": self.input("Input-Token"), **self.attention_mask_input()}

    def embed(self, inputs, walk):
        return self.token_embedding(inputs["token"])

    def position_term(self, x, inputs, walk):
        layer = self.layer(
            "Embedding-Rotary-Position",
            SinusoidalPositionEmbedding,
            output_dim=self.attention_key_size,
            base=self.rope_theta,
            scales=self.rope_scaling and rate_scales(self.attention_key_size, self.rope_theta, self.rope_scaling),
            merge_mode="zero",
        )
        return layer([x, inputs["position"]] if "position" in inputs else x)

    def head(self, x, walk):
        x = self.norm(x, "Output-Norm", walk)
        logits = self.token_embedding(x, mode="dense") if self.tie_word_embeddings else self.lm_head(x)
        return [self.activation(logits, "LM-Activation", self.final_activation, walk)]

    def lm_head(self, x):
        """The untied output layer, [B, T, V]."""
        return self.dense(x, "LM-Head", self.vocab_size)

    def pretrained_extras(self):
        activation, scaling = self.hidden_act[0], self.rope_scaling or {"rope_type": "default"}
        names = {"gelu_tanh": "gelu_pytorch_tanh", "gelu_erf": "gelu"}
        return {
            **self._pretrained_kind(),
            "hidden_act": names.get(activation, activation),
            "num_key_value_heads": self.num_key_value_heads or self.num_attention_heads,
            "rope_parameters": {**scaling, "rope_theta": self.rope_theta},
            # what transformers before version 5 reads
            "rope_theta": self.rope_theta,
            **({"rope_scaling": {**scaling, "rope_theta": self.rope_theta}} if self.rope_scaling else {}),
            "tie_word_embeddings": self.tie_word_embeddings,
        }

    def _pretrained_kind(self):
        """The architecture of transformers that has this model's biases and window."""
        window = self.sliding_window
        if self.use_out_bias and window:
            raise ValueError("transformers has no architecture with use_out_bias and sliding_window: use model.save")
        if self.use_qkv_bias and not self.use_out_bias:
            return {
                "model_type": "qwen2",
                "use_sliding_window": bool(window),
                "sliding_window": window,
                "max_window_layers": 0 if window else self.num_hidden_layers,
            }
        if window:
            return {"model_type": "mistral", "sliding_window": window}
        return {"model_type": "llama", "attention_bias": self.use_out_bias}

    def weight_table(self):
        table = {
            "Embedding-Token": {"embeddings": Source("model/embed_tokens/weight", rows="token")},
            "Output-Norm": {"gamma": "model/norm/gamma"},
            "LM-Head": {"kernel": Source("lm_head/kernel", rows="column")},
        }
        for index in range(self.num_blocks):
            table |= self.block_table(index, f"model/layers/{index}")
        return table

    def block_table(self, index, block):
        """The weight table's rows of block `index`, whose names in the file start with `block`."""
        attention, feed_forward = self.part(index, "MultiHeadSelfAttention"), self.part(index, "FeedForward")
        parts = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}
        out = dense(f"{block}/self_attn/o_proj")
        rows = inside("out", out if self.use_out_bias else {"kernel": out["kernel"]})
        for part, name in parts.items():
            row = dense(f"{block}/self_attn/{name}")
            rows |= inside(part, row if self.use_qkv_bias else {"kernel": row["kernel"]})
        return {
            attention: rows,
            f"{attention}-Norm": {"gamma": f"{block}/input_layernorm/gamma"},
            feed_forward: {
                "inner_0/kernel": f"{block}/mlp/gate_proj/kernel",
                "inner_1/kernel": f"{block}/mlp/up_proj/kernel",
                "out/kernel": f"{block}/mlp/down_proj/kernel",
            },
            f"{feed_forward}-Norm": {"gamma": f"{block}/post_attention_layernorm/gamma"},
        }


def rate_scales(size, theta, scaling):
    """What `rope_scaling` multiplies the size / 2 rates theta^(-2i/size) of rotation with, so that far positions fit.

    linear: 1 / factor. llama3: 1 for waves shorter than P / high_freq_factor tokens, 1 / factor for those longer than
    P / low_freq_factor, between them a mixture, linear in P / wavelength; P is original_max_position_embeddings.

    Source: arXiv:2306.15595 (linear); arXiv:2407.21783 section 3.4 (llama3).
    """
    kind, numbers = scaling.get("rope_type", scaling.get("type")), ("factor",)
    if kind == "llama3":
        numbers += ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    lacking = [name for name in numbers if not scaling.get(name)]
    if kind not in ("linear", "llama3") or lacking or scaling.get("partial_rotary_factor", 1) != 1:
        raise CheckpointError(f"rope_type must be 'default', 'linear' or 'llama3', with its numbers; got {scaling}")
    factor = scaling["factor"]
    if kind == "linear":
        return [1 / factor] * (size // 2)
    low, high, length = (scaling[name] for name in numbers[1:])
    waves = 2 * np.pi * float(theta) ** (np.arange(0, size, 2) / size)
    kept = np.clip((length / waves - low) / (high - low), 0, 1)
    return (kept + (1 - kept) / factor).tolist()
