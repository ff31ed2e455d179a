"""GPT of OpenAI, and the dialogue models of its shape (CDial-GPT)."""

from bert4x.models.applications import LanguageModel
from bert4x.models.bert import BERT
from bert4x.models.checkpoint import CheckpointError
from bert4x.models.weights import Source, has_own_head

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

    Args (besides those of `BERT`):
        final_activation: of the output; "linear" gives logits.
        segment_vocab_size: 0 unless given; the model then takes segment ids.
        shared_segment_embeddings: segment ids are token ids (CDial-GPT: [speaker1] or [speaker2] throughout an
            utterance, [CLS] for itself), looked up in the token table; the model takes them.
        mask_zero: id 0 is padding. CDial-GPT's TensorFlow release has [PAD] there; OpenAI's files, and CDial-GPT's for
            torch, have an ordinary token. The mask is causal, so padding on the right changes no real position.
    """

    model_type = "openai-gpt"
    required = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    options = {
        "final_activation": "softmax",
        "hidden_act": "gelu",
        "intermediate_size": None,  # 4 * hidden_size
        "layer_norm_eps": 1e-5,
        "segment_vocab_size": None,
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
    activation_names = {"gelu_tanh": "gelu"}  # ours -> that of config.json
    huggingface_transposes = False
    huggingface_rules = (
        (r"^gpt/embeddings/word_embeddings", "transformer/tokens_embed/weight"),
        (r"^gpt/embeddings/position_embeddings", "transformer/positions_embed/weight"),
        (r"^gpt/transformer/layer_(\d+)", r"transformer/h/\1"),
        (r"attention/output/LayerNorm", "ln_1"),
        (r"(?<=\d)/output/LayerNorm", "/ln_2"),
        *GPT_RULES,
    )
    fallback_names = {"tokens_embed.weight": ("lm_head.weight",), "wte.weight": ("lm_head.weight",)}

    @classmethod
    def adapt(cls, options, flavour):
        if flavour == "huggingface":  # id 0 is an ordinary token there
            options = {"mask_zero": False, **options}
        return super().adapt(options, flavour)

    @classmethod
    def recognise(cls, options, checkpoint):
        if has_own_head(checkpoint, cls.fallback_names):
            raise CheckpointError(
                f"{checkpoint.source} has an output head (lm_head.weight) that differs from the token table; "
                f"{cls.__name__} ties the two. Remove lm_head.weight to go without the head."
            )
        return options

    def _complete_options(self):
        self.refuse("with_pool", "with_nsp", "with_mlm", why="its output is always final_activation(logits)")
        self.refuse("embedding_size", why="the head is the token table, of width hidden_size")
        self.intermediate_size = self.intermediate_size or 4 * self.hidden_size
        if self.segment_vocab_size is None:
            self.segment_vocab_size = self.vocab_size if self.shared_segment_embeddings else 0
        super()._complete_options()
        if self.application == "unilm" and self.shared_segment_embeddings:
            raise ValueError("unilm tells source (0) from target (1) by segment ids; shared ones are token ids")

    def pretrained_extras(self):
        name = self.activation_names.get(self.hidden_act, self.hidden_act)
        ours = {key: True for key in ("mask_zero", "shared_segment_embeddings") if getattr(self, key)}
        if self.segment_vocab_size and not self.shared_segment_embeddings:
            ours["type_vocab_size"] = self.segment_vocab_size
        return {self.pretrained_keys["hidden_act"]: name, "embd_pdrop": self.dropout_rate, **ours}

    def embed(self, inputs, walk):
        return self.dropout(self.sum_embeddings(inputs), "Embedding-Dropout")

    def head(self, x, walk):
        logits = self.token_embedding(x, mode="dense")
        return [self.activation(logits, "LM-Activation", self.final_activation, walk)]

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


def without_segments(options):
    """Options without the type_vocab_size that files in BERT's style hold all the same."""
    return {name: value for name, value in options.items() if name != "segment_vocab_size"}
