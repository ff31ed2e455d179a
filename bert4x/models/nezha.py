"""NEZHA: BERT with relative positions on keys and values."""

from bert4x.layers import RelativePositionEmbedding, Sinusoidal
from bert4x.models.bert import BERT


class NEZHA(BERT):
    """BERT with fixed sinusoidal vectors of clipped offsets inside attention (arXiv:1909.00204)."""

    model_type = "nezha"
    options = {"max_relative_position": 64}
    gelu = {"google": "gelu_tanh", "huggingface": "gelu_erf"}
    huggingface_rules = ((r"^bert/", "nezha/"),)
    learned_position = False
    attention_position = "typical_relative"

    def _complete_options(self):
        super()._complete_options()
        if self.custom_position_ids:
            raise ValueError("nezha takes no custom_position_ids: its positions are offsets between tokens")
        if self.attention_key_size != self.attention_head_size:
            raise ValueError(
                "nezha adds one table of vectors to keys and to values: attention_key_size must equal "
                f"attention_head_size; got {self.attention_key_size} and {self.attention_head_size}"
            )

    def position_term(self, x, inputs, walk):
        layer = self.layer(
            "Embedding-Relative-Position",
            RelativePositionEmbedding,
            input_dim=2 * self.max_relative_position + 1,
            output_dim=self.attention_key_size,
            embeddings_initializer=Sinusoidal(),
            trainable=False,
        )
        return walk.offsets(layer, x)
