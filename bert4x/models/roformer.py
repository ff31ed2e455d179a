"""RoFormer and RoFormerV2: BERT with rotary positions."""

from bert4x.layers import DepthScaledNormal, SinusoidalPositionEmbedding
from bert4x.models.bert import BERT
from bert4x.models.weights import Source


class RoFormer(BERT):
    """BERT with rotary positions inside attention (arXiv:2104.09864)."""

    model_type = "roformer"
    huggingface_rules = (
        (r"^bert/encoder/embedding_hidden_mapping_in", "roformer/embeddings_project"),
        (r"^bert/", "roformer/"),
    )
    learned_position = False
    attention_position = "rotary"

    def position_term(self, x, inputs, walk):
        layer = self.layer(
            "Embedding-Rotary-Position",
            SinusoidalPositionEmbedding,
            output_dim=self.attention_key_size,
            merge_mode="zero",
            custom_position_ids="position" in inputs,
        )
        return layer([x, inputs["position"]] if "position" in inputs else x)


class RoFormerV2(RoFormer):
    """RoFormer without biases, with weightless RMS norms, and dropout before the first norm."""

    model_type = "roformer_v2"  # ours alone: transformers has no such family
    options = {"layer_norm_eps": 1e-7}
    use_bias = False

    def _complete_options(self):
        super()._complete_options()
        if self.with_pool:
            raise ValueError("roformer_v2 was trained without a pooler: with_pool and with_nsp are not available")

    def make_initializer(self):
        return DepthScaledNormal(depth=self.num_hidden_layers, vocab_size=self.vocab_size)

    def norm(self, x, name, walk):
        # No weights; with a condition the constants 1 and 0, to which it adds.
        scale, offset = (False, False) if walk.condition is None else (1, 0)
        return super().norm(x, name, walk, zero_mean=False, scale=scale, offset=offset)

    def embed(self, inputs, walk):
        x = self.dropout(self.sum_embeddings(inputs), "Embedding-Dropout")
        return self.map_embeddings(self.norm(x, "Embedding-Norm", walk))

    def mlm(self, x, walk):
        if self.embedding_size != self.hidden_size:
            x = self.dense(x, "Output-Mapping", self.embedding_size)
        x = self.token_embedding(x, mode="dense")
        return self.activation(x, "MLM-Activation", self.head_activation(self.with_mlm, "softmax"), walk)

    def weight_table(self):
        table = super().weight_table()
        table["Output-Mapping"] = {"kernel": Source("bert/encoder/embedding_hidden_mapping_out/kernel")}
        ours = ("kernel", "embeddings")
        return {
            layer: {path: source for path, source in rows.items() if path.endswith(ours)}
            for layer, rows in table.items()
        }
