"""Decoders of LLaMA's shape: LLaMA, Mistral, Qwen2."""

from bert4x.layers import SinusoidalPositionEmbedding
from bert4x.models.applications import LanguageModel
from bert4x.models.base import Transformer
from bert4x.models.blocks import pre_norm
from bert4x.models.weights import Source, dense, inside


class LLaMA(LanguageModel, Transformer):
    """Causal decoder: RMS norms before the sublayers, rotary positions, grouped queries, SwiGLU (arXiv:2302.13971).

    Outputs: token probabilities [B, T, V], or what `final_activation` names.

    Args (besides those of `Transformer`):
        num_key_value_heads: heads of keys and values; num_attention_heads if absent (arXiv:2305.13245).
        use_qkv_bias: biases of query, key and value (Qwen2).
        rope_theta: base of the rotary positions.
        tie_word_embeddings: the output head is the token table.
    """

    model_type = "llama"
    applications = ("encoder", "lm")
    options = {
        "final_activation": "softmax",
        "layer_norm_eps": 1e-6,
        "mask_zero": False,
        "num_key_value_heads": None,
        "use_qkv_bias": False,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    }
    pretrained_keys = {"layer_norm_eps": "rms_norm_eps", "embedding_size": None, "dropout_rate": None}
    use_bias = False
    attention_position = "rotary_half"
    residual = staticmethod(pre_norm)

    @classmethod
    def adapt(cls, options, flavour):
        rope = options.get("rope_parameters") or options.get("rope_scaling") or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise ValueError(f"rope_type must be 'default'; got {kind!r} in the configuration, whose positions we lack")
        if options.get("use_sliding_window") or options.get("mlp_bias"):
            raise ValueError("use_sliding_window and mlp_bias must be false; the configuration sets one of them")
        options = {"rope_theta": rope.get("rope_theta"), "use_qkv_bias": options.get("attention_bias"), **options}
        return super().adapt(options, flavour)

    def _complete_options(self):
        super()._complete_options()
        if not isinstance(self.hidden_act, list):
            self.hidden_act = [self.hidden_act, "linear"]

    def norm(self, x, name, walk):
        return super().norm(x, name, walk, zero_mean=False, offset=False)

    def attention_options(self):
        return {
            **super().attention_options(),
            "key_value_heads": self.num_key_value_heads,
            "use_bias": "qkv" if self.use_qkv_bias else False,
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
            merge_mode="zero",
        )
        return layer(x)

    def head(self, x, walk):
        x = self.norm(x, "Output-Norm", walk)
        logits = self.token_embedding(x, mode="dense") if self.tie_word_embeddings else self.lm_head(x)
        return [self.activation(logits, "LM-Activation", self.final_activation)]

    def lm_head(self, x):
        """The untied output layer, [B, T, V]."""
        return self.dense(x, "LM-Head", self.vocab_size)

    def pretrained_extras(self):
        kind = "qwen2" if self.use_qkv_bias else "llama"
        names = ("num_key_value_heads", "rope_theta", "tie_word_embeddings")
        return {
            "model_type": kind,
            **{name: getattr(self, name) for name in names if getattr(self, name) is not None},
            "hidden_act": self.hidden_act[0],
        }

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
        rows = {"out/kernel": f"{block}/self_attn/o_proj/kernel"}
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
