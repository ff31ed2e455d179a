"""BERT, and what its relatives share with it: inputs, embeddings, pooler, NSP and MLM heads."""

import warnings

from bert4x.layers import Embedding, FirstToken, PositionEmbedding, ScaleOffset
from bert4x.models.base import Transformer
from bert4x.models.checkpoint import CheckpointError
from bert4x.models.weights import Source, dense, has_own_head, inside, norm


class BERT(Transformer):
    """Bidirectional encoder with post-norm blocks (arXiv:1810.04805).

    Outputs: the last hidden states [B, T, D]; or [pooled [B, D] or NSP probabilities [B, 2], MLM [B, T, V]], those of
    them that the options with_pool, with_nsp, with_mlm ask for.
    """

    model_type = "bert"
    options = {
        "max_position": 512,
        "segment_vocab_size": 2,
        "with_pool": False,
        "with_nsp": False,
        "with_mlm": None,
        "hierarchical_position": None,
        "custom_position_ids": False,
        "shared_segment_embeddings": False,
    }
    application = "encoder"
    learned_position = True
    fallback_names = {
        "cls.predictions.bias": ("cls.predictions.decoder.bias",),
        "embeddings.word_embeddings.weight": ("cls.predictions.decoder.weight",),
    }

    @classmethod
    def adapt(cls, options, flavour):
        if options.get("is_decoder") and cls.application == "encoder":
            warnings.warn(
                "the configuration says is_decoder: each token saw only those before it in training. This model lets "
                "it see all; pass application='lm' for the causal mask.",
                stacklevel=3,
            )
        return super().adapt(options, flavour)

    @classmethod
    def recognise(cls, options, checkpoint):
        for table, (head, *_) in cls.fallback_names.items():
            wanted = options.get("with_mlm") or cls.application != "encoder"
            if wanted and table.endswith("embeddings.weight") and has_own_head(checkpoint, [table], head):
                raise CheckpointError(
                    f"{checkpoint.source} has an output head ({head}) that differs from the token table; "
                    f"{cls.__name__} ties the two. Build the model without with_mlm."
                )
        return options

    def _complete_options(self):
        super()._complete_options()
        if self.with_mlm is None:
            self.with_mlm = self.application != "encoder"
        if self.application == "unilm" and not self.segment_vocab_size:
            raise ValueError("unilm needs segment ids to tell source from target; got segment_vocab_size=0. Use 2.")
        if self.hierarchical_position and not self.learned_position:
            raise ValueError(f"{type(self).__name__} has no position table that hierarchical_position could stretch")
        if self.with_nsp:
            self.with_pool = self.with_pool or True

    def get_inputs(self):
        inputs = {"token": self.input("Input-Token")}
        if self.segment_vocab_size:
            inputs["segment"] = self.input("Input-Segment")
        if self.custom_position_ids:
            inputs["position"] = self.input("Input-Position")
        return inputs | self.attention_mask_input()

    def embed(self, inputs, walk):
        x = self.sum_embeddings(inputs)
        x = self.norm(x, "Embedding-Norm", walk)
        x = self.dropout(x, "Embedding-Dropout")
        return self.map_embeddings(x)

    def sum_embeddings(self, inputs):
        """Token + segment + position vectors, [B, T, E]."""
        x = self.token_embedding(inputs["token"])
        if "segment" in inputs:
            x = self.add([x, self.segment_embedding(inputs["segment"])], "Embedding-Token-Segment")
        if not self.learned_position:
            return x
        position = self.layer(
            "Embedding-Position",
            PositionEmbedding,
            input_dim=self.max_position,
            output_dim=self.embedding_size,
            hierarchical=self.hierarchical_position,
            custom_position_ids="position" in inputs,
            embeddings_initializer=self.initializer,
        )
        return position([x, inputs["position"]] if "position" in inputs else x)

    @property
    def segment_embedding(self):
        """The segment table; the token table if `shared_segment_embeddings`."""
        if self.shared_segment_embeddings:
            return self.token_embedding
        return self.layer(
            "Embedding-Segment",
            Embedding,
            input_dim=self.segment_vocab_size,
            output_dim=self.embedding_size,
            embeddings_initializer=self.initializer,
            check_ids=self.check_ids,
        )

    @property
    def position_limit(self):
        limits = [super().position_limit, None if self.custom_position_ids else self.position_rows]
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def position_rows(self):
        """Rows of the position table, whether its ids are given or counted; None without a table."""
        if not self.learned_position:
            return None
        return self.max_position**2 if self.hierarchical_position else self.max_position

    def map_embeddings(self, x):
        """E -> D where the two differ."""
        if self.embedding_size == self.hidden_size:
            return x
        return self.dense(x, "Embedding-Mapping", self.hidden_size)

    def head(self, x, walk):
        outputs = []
        if self.with_pool:
            pooled = self.pool(x)
            if self.with_nsp:
                pooled = self.dense(pooled, "NSP-Proba", 2, "softmax", dtype="float32")
            outputs.append(pooled)
        if self.with_mlm:
            outputs.append(self.mlm(x, walk))
        return outputs or [x]

    def pool(self, x):
        """act(W x_0 + b), [B, D]; tanh unless with_pool names another activation."""
        x = self.layer("Pooler", FirstToken)(x)
        return self.dense(x, "Pooler-Dense", self.hidden_size, self.head_activation(self.with_pool, "tanh"))

    def mlm(self, x, walk):
        """Token probabilities (or what with_mlm names) from the tied table, [B, T, V]."""
        x = self.dense(x, "MLM-Dense", self.embedding_size, self.mlm_act)
        x = self.norm(x, "MLM-Norm", walk)
        x = self.token_embedding(x, mode="dense")
        x = self.layer("MLM-Bias", ScaleOffset, scale=False)(x)
        return self.activation(x, "MLM-Activation", self.head_activation(self.with_mlm, "softmax"), walk)

    @property
    def mlm_act(self):
        """Activation of the MLM head's transform."""
        return self.hidden_act

    @staticmethod
    def head_activation(option, default):
        """`True` means the default, a string is the activation's name."""
        return default if option is True else option

    def weight_table(self):
        table = self.head_table() | {
            "Embedding-Token": {"embeddings": Source("bert/embeddings/word_embeddings", rows="token")},
            "Embedding-Segment": {"embeddings": "bert/embeddings/token_type_embeddings"},
            "Embedding-Position": {"embeddings": Source("bert/embeddings/position_embeddings", rows="position")},
            "Embedding-Norm": norm("bert/embeddings/LayerNorm"),
            "Embedding-Mapping": dense("bert/encoder/embedding_hidden_mapping_in"),
        }
        for index in range(self.num_blocks):
            table |= self.block_table(index, f"bert/encoder/layer_{index}")
        return table

    def head_table(self):
        """The heads' rows of the weight table."""
        return {
            "Pooler-Dense": dense("bert/pooler/dense"),
            "NSP-Proba": {
                "kernel": Source("cls/seq_relationship/output_weights", transpose=True),
                "bias": "cls/seq_relationship/output_bias",
            },
            "MLM-Dense": dense("cls/predictions/transform/dense"),
            "MLM-Norm": norm("cls/predictions/transform/LayerNorm"),
            "MLM-Bias": {"beta": Source("cls/predictions/output_bias", rows="token")},
        }

    def inner_table(self, name):
        """Rows of a feed-forward layer's inner maps: `name`, and name_1 ... where `hidden_act` is a list (gated)."""
        count = len(self.hidden_act) if isinstance(self.hidden_act, (list, tuple)) else 1
        names = [f"{name}_{i}" if i else name for i in range(count)]
        return {path: row for i in range(count) for path, row in inside(f"inner_{i}", dense(names[i])).items()}

    def block_table(self, index, block):
        """The weight table's rows of block `index`, whose names in the file start with `block`."""
        attention, feed_forward = self.part(index, "MultiHeadSelfAttention"), self.part(index, "FeedForward")
        return {
            attention: inside("query", dense(f"{block}/attention/self/query"))
            | inside("key", dense(f"{block}/attention/self/key"))
            | inside("value", dense(f"{block}/attention/self/value"))
            | inside("out", dense(f"{block}/attention/output/dense")),
            f"{attention}-Norm": norm(f"{block}/attention/output/LayerNorm"),
            feed_forward: self.inner_table(f"{block}/intermediate/dense")
            | inside("out", dense(f"{block}/output/dense")),
            f"{feed_forward}-Norm": norm(f"{block}/output/LayerNorm"),
        }
