"""GPT2, in the layouts of HuggingFace, OpenAI and Google."""

from bert4x.models.blocks import pre_norm
from bert4x.models.checkpoint import CheckpointError
from bert4x.models.gpt import GPT, GPT_RULES, without_segments
from bert4x.models.weights import Source, inside, norm


class GPT2(GPT):
    """GPT with the norms before the sublayers and one at the end ("Language Models are Unsupervised...", 2019)."""

    model_type = "gpt2"
    applications = ("encoder", "lm")
    options = {"mask_zero": False}
    gelu = {"google": "gelu_tanh", "huggingface": "gelu_erf"}  # transformers calls the tanh form gelu_new
    pretrained_keys = {**GPT.pretrained_keys, "hidden_act": "activation_function"}
    activation_names = {"gelu_tanh": "gelu_new", "gelu_erf": "gelu"}
    residual = staticmethod(pre_norm)
    huggingface_rules = (
        (r"^gpt/embeddings/word_embeddings", "transformer/wte/weight"),
        (r"^gpt/embeddings/position_embeddings", "transformer/wpe/weight"),
        (r"^gpt/output/LayerNorm", "transformer/ln_f"),
        (r"^gpt/transformer/layer_(\d+)", r"transformer/h/\1"),
        (r"attention/input/LayerNorm", "ln_1"),
        (r"(?<=\d)/input/LayerNorm", "/ln_2"),
        *GPT_RULES,
    )

    @classmethod
    def adapt(cls, options, flavour):
        if options.get("scale_attn_by_inverse_layer_idx") or not options.get("scale_attn_weights", True):
            raise CheckpointError("scores must be divided by sqrt(K); the configuration's scale_attn_* say otherwise")
        return super().adapt(without_segments(options), flavour)

    def _complete_options(self):
        super()._complete_options()
        if not self.shared_segment_embeddings:
            self.refuse("segment_vocab_size", why="it has no table of segments, only shared_segment_embeddings")

    def head(self, x, walk):
        return super().head(self.norm(x, "Output-Norm", walk), walk)

    def weight_table(self):
        return super().weight_table() | {"Output-Norm": norm("gpt/output/LayerNorm")}

    def block_table(self, index, block):
        return super().block_table(index, block) | {
            f"{self.part(index, 'MultiHeadSelfAttention')}-Norm": norm(f"{block}/attention/input/LayerNorm"),
            f"{self.part(index, 'FeedForward')}-Norm": norm(f"{block}/input/LayerNorm"),
        }

    def reading_table(self, checkpoint):
        return self.openai_table() if "model/wte" in checkpoint.names else self.weight_table()

    def openai_table(self):
        """The layout of OpenAI's own TensorFlow files."""
        table = {
            "Embedding-Token": {"embeddings": Source("model/wte", rows="token")},
            "Embedding-Position": {"embeddings": Source("model/wpe", rows="position")},
            "Output-Norm": {"beta": "model/ln_f/b", "gamma": "model/ln_f/g"},
        }
        for index in range(self.num_blocks):
            table |= self.openai_block(index, f"model/h{index}")
        return table

    def openai_block(self, index, block):
        """One block of OpenAI's layout."""
        attention, feed_forward = self.part(index, "MultiHeadSelfAttention"), self.part(index, "FeedForward")
        rows = {}
        for part, name in enumerate(("query", "key", "value")):
            rows[f"{name}/kernel"] = Source(f"{block}/attn/c_attn/w", part=(part, 3))
            rows[f"{name}/bias"] = Source(f"{block}/attn/c_attn/b", part=(part, 3))
        return {
            attention: rows | inside("out", _convolution(f"{block}/attn/c_proj")),
            f"{attention}-Norm": {"beta": f"{block}/ln_1/b", "gamma": f"{block}/ln_1/g"},
            feed_forward: inside("inner_0", _convolution(f"{block}/mlp/c_fc"))
            | inside("out", _convolution(f"{block}/mlp/c_proj")),
            f"{feed_forward}-Norm": {"beta": f"{block}/ln_2/b", "gamma": f"{block}/ln_2/g"},
        }


def _convolution(prefix):
    return {"kernel": f"{prefix}/w", "bias": f"{prefix}/b"}
