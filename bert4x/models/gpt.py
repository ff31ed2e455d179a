"""GPT of OpenAI, and the dialogue models of its shape (CDial-GPT)."""

from bert4x.models.applications import LanguageModel
from bert4x.models.bert import BERT
from bert4x.models.weights import Source

# Both generations of GPT name and store the parts of a block alike; query, key and value are one fused kernel.
GPT_RULES = (
    *(
        (rf"attention/self/{ours}/{kind}$", f"attn/c_attn/{theirs}#{part}:3")
        for part, ours in enumerate(("query", "key", "value"))
        for kind, theirs in (("kernel", "weight"), ("bias", "bias"))
    ),
    (r"attention/output/dense", "attn/c_proj"),
    (r"intermediate/dense", "mlp/c_fc"),
    (r"(?<=\d)/output/dense", "/mlp/c_proj"),
)


class GPT(LanguageModel, BERT):
    """Causal decoder with post-norm blocks and no norm of the embeddings ("Improving Language Understanding", 2018).

    Outputs: token probabilities [B, T, V] from the tied table, or what `final_activation` names.
    shared_segment_embeddings: segment ids are token ids (of the speakers), looked up in the token table.
    """

    model_type = "openai-gpt"
    options = {
        "final_activation": "softmax",
        "layer_norm_eps": 1e-5,
        "segment_vocab_size": 0,
    }
    gelu = {"google": "gelu_tanh", "huggingface": "gelu_tanh"}
    pretrained_keys = {
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "intermediate_size": "n_inner",
        "max_position": "n_positions",
        "hidden_act": "afn",
        "dropout_rate": "resid_pdrop",
        "attention_dropout_rate": "attn_pdrop",
        "layer_norm_eps": "layer_norm_epsilon",
        "embedding_size": None,
        "segment_vocab_size": None,
    }
    huggingface_transposes = False
    huggingface_rules = (
        (r"^gpt/embeddings/word_embeddings", "transformer/tokens_embed/weight"),
        (r"^gpt/embeddings/position_embeddings", "transformer/positions_embed/weight"),
        (r"^gpt/transformer/layer_(\d+)", r"transformer/h/\1"),
        (r"attention/output/LayerNorm", "ln_1"),
        (r"(?<=\d)/output/LayerNorm", "/ln_2"),
        *GPT_RULES,
    )

    @classmethod
    def adapt(cls, options, flavour):
        if flavour == "huggingface":  # id 0 is an ordinary token there; padding on the right needs no mask
            options = {"mask_zero": False, **options}
        if "hidden_size" in options:
            options = {"intermediate_size": 4 * options["hidden_size"], **options}
        return super().adapt(options, flavour)

    def pretrained_extras(self):
        return {"afn": "gelu"} if self.hidden_act == "gelu_tanh" else {}  # their 'gelu' is the tanh form here

    def embed(self, inputs, walk):
        return self.dropout(self.sum_embeddings(inputs), "Embedding-Dropout")

    def head(self, x, walk):
        logits = self.token_embedding(x, mode="dense")
        return [self.activation(logits, "LM-Activation", self.final_activation)]

    def weight_table(self):
        table = {
            "Embedding-Token": {"embeddings": Source("gpt/embeddings/word_embeddings", rows="token")},
            "Embedding-Position": {"embeddings": Source("gpt/embeddings/position_embeddings", rows="position")},
        }
        if not self.shared_segment_embeddings:
            table["Embedding-Segment"] = {"embeddings": "gpt/embeddings/token_type_embeddings"}
        for index in range(self.num_blocks):
            table |= self.block_table(index, f"gpt/transformer/layer_{index}")
        return table
