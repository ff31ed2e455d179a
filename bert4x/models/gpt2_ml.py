"""GPT2-ML: a decoder of Grover's shape, neither GPT nor GPT2."""

from bert4x.models.gpt import GPT, without_segments
from bert4x.models.weights import Source, dense, inside, norm


class GPT2_ML(GPT):  # noqa: N801  the name its users know
    """Causal decoder with two norms around the feed-forward layer and none before attention (arXiv:1905.12616).

    Block: x = x + Att(x);  y = Norm0(x);  x = Norm1(x + FFN(y)).
    """

    applications = ("encoder", "lm")
    model_type = "gpt2_ml"  # ours alone: transformers has no such family
    gelu = {"google": "gelu_erf", "huggingface": "gelu_erf"}
    activation_names = {}
    huggingface_transposes = True
    huggingface_rules = ()

    @classmethod
    def adapt(cls, options, flavour):
        return super().adapt({"mask_zero": True, **without_segments(options)}, flavour)

    def _complete_options(self):
        super()._complete_options()
        self.refuse("shared_segment_embeddings", "segment_vocab_size", why="it has no segments")

    def embed(self, inputs, walk):
        x = self.norm(self.sum_embeddings(inputs), "Embedding-Norm", walk)
        return self.dropout(x, "Embedding-Dropout")

    def block(self, x, index, walk):
        attention, feed_forward = self.part(index, "MultiHeadSelfAttention"), self.part(index, "FeedForward")
        y = self.dropout(self.attention(x, attention, walk), f"{attention}-Dropout")
        x = self.add([x, y], f"{attention}-Add")
        y = self.norm(x, f"{feed_forward}-Norm-0", walk)
        y = self.dropout(self.feed_forward(y, feed_forward, walk), f"{feed_forward}-Dropout")
        return self.norm(self.add([x, y], f"{feed_forward}-Add"), f"{feed_forward}-Norm-1", walk)

    def weight_table(self):
        table = {
            "Embedding-Token": {"embeddings": Source("newslm/embeddings/word_embed", rows="token")},
            "Embedding-Position": {"embeddings": Source("newslm/embeddings/pos_embed", rows="position")},
            "Embedding-Norm": norm("newslm/embeddings/LayerNorm_embed_norm"),
        }
        for index in range(self.num_blocks):
            table |= self.block_table(index, f"newslm/layer{index:02d}")
        return table

    def block_table(self, index, block):
        attention, feed_forward = self.part(index, "MultiHeadSelfAttention"), self.part(index, "FeedForward")
        return {
            attention: inside("query", dense(f"{block}/query_layer"))
            | inside("key", dense(f"{block}/key_layer"))
            | inside("value", dense(f"{block}/value_layer"))
            | inside("out", dense(f"{block}/context_projection_layer")),
            f"{feed_forward}-Norm-0": norm(f"{block}/LayerNorm_mlp_ln0"),
            feed_forward: inside("inner_0", dense(f"{block}/intermediate")) | inside("out", dense(f"{block}/output")),
            f"{feed_forward}-Norm-1": norm(f"{block}/LayerNorm_mlp_ln1"),
        }
