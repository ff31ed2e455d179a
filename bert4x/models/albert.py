"""ALBERT: one block's weights serve all blocks; and ALBERT unshared, which starts from them."""

import re

from bert4x.models.bert import BERT
from bert4x.models.weights import dense, inside, norm


class ALBERT(BERT):
    """BERT with factorised embeddings and shared blocks (arXiv:1909.11942).

    Block i runs the inner blocks of group floor(i * num_hidden_groups / num_hidden_layers).
    """

    model_type = "albert"
    options = {"num_hidden_groups": 1, "inner_group_num": 1, "embedding_mapping": None}
    gelu = {"google": "gelu_tanh", "huggingface": "gelu_erf"}
    fallback_names = {
        "predictions.bias": ("predictions.decoder.bias",),
        "embeddings.word_embeddings.weight": ("predictions.decoder.weight",),
    }
    huggingface_rules = (
        (r"transformer/group_(\d+)/inner_group_(\d+)", r"albert_layer_groups.\1.albert_layers.\2"),
        (r"encoder/layer_(\d+)", r"encoder/albert_layer_groups.\1.albert_layers.0"),  # unshared: a group per block
        (r"attention_1/self/|attention/self/", "attention/"),
        (r"attention_1/output/dense|attention/output/dense", "attention/dense"),
        (r"(albert_layers\.\d+)/LayerNorm/|attention/output/LayerNorm/", r"\1/attention/LayerNorm/"),
        (r"ffn_1/intermediate/output/dense|(?<=\d)/output/dense", "/ffn_output"),
        (r"ffn_1/intermediate/dense|(?<=\d)/intermediate/dense", "/ffn"),
        (r"/LayerNorm_1/|(?<=\d)/output/LayerNorm/", "/full_layer_layer_norm/"),
        (r"//", "/"),
        (r"^bert/pooler/dense", "bert/pooler"),
        (r"^bert/", "albert/"),
        (r"^cls/predictions/(transform/)?", "predictions/"),
        (r"^cls/seq_relationship/output_weights", "sop_classifier/classifier/weight"),
        (r"^cls/seq_relationship/output_bias", "sop_classifier/classifier/bias"),
        (r"^predictions/output_bias", "predictions/bias"),
    )

    @classmethod
    def adapt(cls, options, flavour):
        if flavour == "huggingface":  # their ALBERT maps E -> D also where the two are equal
            options = {"embedding_mapping": True, **options}
        return super().adapt(options, flavour)

    def pretrained_extras(self):
        return {"embedding_mapping": bool(self.embedding_mapping) or self.embedding_size != self.hidden_size}

    def map_embeddings(self, x):
        if self.embedding_mapping:
            return self.dense(x, "Embedding-Mapping", self.hidden_size)
        return super().map_embeddings(x)

    @property
    def num_blocks(self):
        return self.num_hidden_layers * self.inner_group_num

    def place(self, index):
        """(group, inner block) whose weights block `index` runs."""
        layer, inner = divmod(index, self.inner_group_num)
        return layer * self.num_hidden_groups // self.num_hidden_layers, inner

    def part(self, index, kind):
        if self.num_hidden_groups == self.inner_group_num == 1:
            return f"Transformer-{kind}"
        group, inner = self.place(index)
        return f"Transformer-Group-{group}-{inner}-{kind}"

    def block_table(self, index, block):
        """Rows of block `index`; the file holds one block per group and inner block, so `block` is not used."""
        group, inner = self.place(index)
        block = f"bert/encoder/transformer/group_{group}/inner_group_{inner}"
        attention, feed_forward = self.part(index, "MultiHeadSelfAttention"), self.part(index, "FeedForward")
        return {
            attention: inside("query", dense(f"{block}/attention_1/self/query"))
            | inside("key", dense(f"{block}/attention_1/self/key"))
            | inside("value", dense(f"{block}/attention_1/self/value"))
            | inside("out", dense(f"{block}/attention_1/output/dense")),
            f"{attention}-Norm": norm(f"{block}/LayerNorm"),
            feed_forward: self.inner_table(f"{block}/ffn_1/intermediate/dense")
            | inside("out", dense(f"{block}/ffn_1/intermediate/output/dense")),
            f"{feed_forward}-Norm": norm(f"{block}/LayerNorm_1"),
        }


class ALBERTUnshared(ALBERT):
    """ALBERT whose blocks own their weights, each started from the shared block of an ALBERT checkpoint.

    Saved under BERT's names (Google naming), or as an ALBERT with one group per block (HuggingFace naming).
    """

    def part(self, index, kind):
        return f"Transformer-{index}-{kind}"

    def block_table(self, index, block):
        return BERT.block_table(self, index, block)

    def pretrained_extras(self):
        groups = {"num_hidden_layers": self.num_blocks, "num_hidden_groups": self.num_blocks, "inner_group_num": 1}
        return {**super().pretrained_extras(), **groups}

    def reading_table(self, checkpoint):
        table = self.weight_table()
        for index in range(self.num_blocks):
            if not self._has_own_block(checkpoint, index):
                table |= ALBERT.block_table(self, index, None)
        return table

    def _has_own_block(self, checkpoint, index):
        if checkpoint.naming == "google":
            return f"bert/encoder/layer_{index}/output/dense/kernel" in checkpoint.names
        groups = [re.search(r"albert_layer_groups\.(\d+)\.", name) for name in checkpoint.names]
        # Any other number of groups than ALBERT's; a block that the file lacks is then an error.
        return len({match[1] for match in groups if match}) != self.num_hidden_groups
