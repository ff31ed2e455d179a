"""ELECTRA: the discriminator and the generator of replaced-token detection."""

from bert4x.layers import FirstToken
from bert4x.models.bert import BERT
from bert4x.models.weights import Source, dense, norm


class ELECTRA(BERT):
    """BERT with factorised embeddings and heads of its own (arXiv:2003.10555).

    with_discriminator: the probability that each token was replaced, [B, T, 1] (True: sigmoid, or a name).
    with_mlm: the generator's token probabilities. The pooled vector is the hidden state of token 0, without weights.
    """

    model_type = "electra"
    applications = ("encoder",)
    options = {"with_discriminator": False}
    huggingface_rules = (
        (r"^generator/", "electra/"),
        (r"discriminator_predictions/dense_1", "discriminator_predictions/dense_prediction"),
        (r"^generator_predictions/output_bias", "generator_lm_head/bias"),
    )
    fallback_names = {"embeddings.word_embeddings.weight": ("generator_lm_head.weight",)}

    def _complete_options(self):
        super()._complete_options()
        if self.application != "encoder":
            raise ValueError(f"electra is an encoder; got application={self.application!r}. Use bert for lm and unilm.")
        if self.with_mlm and self.with_discriminator:
            raise ValueError(
                "with_mlm builds the generator and with_discriminator the discriminator, two networks of different "
                "size; got both. Build each with its own configuration."
            )
        if self.with_nsp:
            raise ValueError("electra was trained without next sentence prediction: with_nsp is not available")

    def head(self, x, walk):
        outputs = super().head(x, walk) if self.with_pool or self.with_mlm else []
        if self.with_discriminator:
            outputs.append(self.discriminate(x))
        return outputs or [x]

    @property
    def mlm_act(self):
        return self.gelu["google"]  # the generator's, whatever hidden_act says

    def pool(self, x):
        return self.layer("Pooler", FirstToken)(x)

    def discriminate(self, x):
        """Replaced or not, per token, [B, T, 1]."""
        x = self.dense(x, "Discriminator-Dense", self.hidden_size, self.hidden_act)
        activation = self.head_activation(self.with_discriminator, "sigmoid")
        return self.dense(x, "Discriminator-Prediction", 1, activation, dtype="float32")

    def weight_table(self):
        """BERT's table with electra/ for bert/; the generator's blocks stand under generator/."""
        body = "generator/" if self.with_mlm else "electra/"
        table = {}
        for layer, rows in super().weight_table().items():
            table[layer] = {path: _renamed(source, body) for path, source in rows.items()}
        return table

    def head_table(self):
        return {
            "Discriminator-Dense": dense("discriminator_predictions/dense"),
            "Discriminator-Prediction": dense("discriminator_predictions/dense_1"),
            "MLM-Dense": dense("generator_predictions/dense"),
            "MLM-Norm": norm("generator_predictions/LayerNorm"),
            "MLM-Bias": {"beta": Source("generator_predictions/output_bias", rows="token")},
        }


def _renamed(source, body):
    source = Source(source) if isinstance(source, str) else source
    name = source.name.replace("bert/embeddings/", "electra/embeddings/")
    name = name.replace("bert/encoder/embedding_hidden_mapping_in", f"{body}embeddings_project")
    return source._replace(name=name.replace("bert/", body))
