"""TeaForN: a decoder trained on what it says itself, as a model around any decoder of ours, for training only."""

from bert4x.backend import graph_nodes, keras, rewired
from bert4x.layers import ExpectedEmbedding, HighestScores, PreviousOutputs, SequenceCrossEntropy

# The layers of which a family's output head has the first that is there; their input is the decoder's output.
_HEADS = ("MLM-Dense", "Decoder-Output-Scale", "Decoder-Output-LM", "LM-Head")
_ACTIVATIONS = ("MLM-Activation", "LM-Activation", "Decoder-Output-LM-Activation")


def teaforn(model, steps=2, *, discount=0.5, mixing="hidden", top_k=4, label_smoothing=0.0, weighted=False):
    """A training model with the weights of a decoder, which learns to go on from its own outputs.

    H_1 = M(e_0, e_1, ..., e_(T-1)) and H_i = M(e_0, H_(i-1),0, ..., H_(i-1),(T-2)) with the same M and output layer;

    L = sum_i discount^(i-1) CE_i, each a mean over the tokens that count; gradients flow through all passes.

    All tokens but padding count, of a UniLM those of segment 1, whose embeddings alone are replaced. One step is
    ordinary training. The training model takes the inputs of `model` and no targets: compile it with an optimizer
    alone. It adds nothing that is trained; `model` is used and saved as ever.

    Args:
        model: a model from `build_transformer_model` that predicts the next token: lm, unilm, or T5 with its decoder.
        steps: number of passes N, >= 1; the time of training grows with it.
        discount: weight of a pass over that of the one before, in [0, 1].
        mixing: what replaces an embedding: "hidden" the outputs (those of the head's transform where hidden_size and
            embedding_size differ), "embedding" the mean of embeddings weighted by the probabilities.
        top_k: for "embedding": how many of the most probable tokens, renormalised; None: all.
        label_smoothing: of the cross-entropies, in [0, 1).
        weighted: the training model has one more input, the weights [B, T] of the tokens.
    Returns: a Keras model; its output are the raw scores of the first pass.
    Raises: ValueError for a model without a builder, or one that does not predict tokens.
    Source: arXiv:2010.03494.
    """
    if steps < 1 or mixing not in ("hidden", "embedding") or not 0 <= discount <= 1:
        raise ValueError(
            "teaforn needs steps >= 1, mixing 'hidden' or 'embedding', and discount in [0, 1]; "
            f"got {steps}, {mixing!r}, {discount}"
        )
    decoder = _Decoder(model)
    outputs, logits = decoder.outputs, [decoder.logits]
    for _ in range(1, steps):
        vectors = outputs if mixing == "hidden" else decoder.expected_embedding(logits[-1], top_k)
        outputs, scores = decoder.again(vectors)
        logits.append(scores)
    extra = [keras.Input((None,), name=f"{decoder.prefix}Input-Loss-Weight")] if weighted else []
    loss = SequenceCrossEntropy(
        weighted=bool(extra or decoder.chosen), factors=[discount**i for i in range(steps)], from_logits=True,
        label_smoothing=label_smoothing, name=f"{decoder.prefix}TeaForN-Loss",
    )
    inputs = [*model.inputs, *extra]
    scores = loss([decoder.ids, *(extra or decoder.chosen), *logits])
    return keras.Model(inputs[0] if len(inputs) == 1 else inputs, scores)


class _Decoder:
    """The tensors of a model's graph between which it is cut.

    ids: what it reads.      embeddings: their vectors.      outputs: H, of the vectors' width.
    logits: raw scores.      chosen: the places whose embeddings are replaced, [] for all but the first.
    """

    def __init__(self, model):
        builder = getattr(model, "builder", None)
        if builder is None:
            raise ValueError(
                "teaforn needs a model from build_transformer_model; got one without `builder`. After load_model, "
                "build the model and load its weights instead."
            )
        self.prefix, self.embedding = builder.prefix, builder.token_embedding
        self.nodes = graph_nodes(model.outputs)
        inputs = {tensor.name.removeprefix(self.prefix): tensor for tensor in model.inputs}
        self.ids = inputs["Decoder-Input-Token" if "Decoder-Input-Token" in inputs else "Input-Token"]
        self.logits = self._input_of(_ACTIVATIONS)
        if self.logits is None or (builder.application == "encoder" and "Decoder-Input-Token" not in inputs):
            raise ValueError(
                "teaforn needs a model that predicts the next token: application='lm' or 'unilm', or a T5 with_lm; "
                f"got {type(builder).__name__}."
            )
        self.embeddings = next(node.output_tensors[0] for node in self.nodes if self._reads(node, self.ids))
        self.outputs = self._outputs()
        self.chosen = [inputs["Input-Segment"]] if builder.application == "unilm" else []

    def _reads(self, node, tensor):
        return node.operation is self.embedding and any(x is tensor for x in node.input_tensors)

    def _input_of(self, names):
        """Input of the first of these layers that is in the graph, or None."""
        found = {node.operation.name.removeprefix(self.prefix): node for node in self.nodes}
        return next((found[name].input_tensors[0] for name in names if name in found), None)

    def _outputs(self):
        """H: the input of the output head, or of the tied table if only that has the width of the embeddings."""
        first = self._input_of(_HEADS)
        if first is not None and first.shape[-1] == self.embeddings.shape[-1]:
            return first
        tied = [node for node in self.nodes if node.operation is self.embedding and "mode" in node.arguments.kwargs]
        return tied[0].input_tensors[0]

    def again(self, vectors):
        """Outputs and scores of another pass, with vectors [B, T, E] moved right in place of the embeddings."""
        embeddings = PreviousOutputs(dtype=self.embedding.dtype_policy)([self.embeddings, vectors, *self.chosen])
        return rewired([self.outputs, self.logits], [(self.embeddings, embeddings)])

    def expected_embedding(self, logits, top_k):
        """Mean of the token vectors, weighted by the probabilities of the k most probable tokens."""
        scores, ids = HighestScores(top_k, dtype="float32")(logits)
        return ExpectedEmbedding(dtype=self.embedding.dtype_policy)([scores, self.embedding(ids)])
