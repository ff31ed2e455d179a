"""TeaForN: equal to passes unrolled by hand, on every kind of decoder; weights shared; one pass is plain training."""

import keras
import numpy as np
import pytest
from keras import ops

from bert4x.models import build_transformer_model, teaforn
from tests.layers.helpers import quick_compilation
from tests.models import generative, tiny
from tests.models.reference_weights import randomize, to_numpy

LM = np.array([[3, 7, 1, 12, 5], [9, 2, 4, 8, 6]], "int32")


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def token_loss(logits, ids, weights):
    """sum(w CE) / sum(w), in NumPy."""
    logits, ids, weights = logits[:, :-1], ids[:, 1:], weights[:, 1:]
    losses = -np.log(np.take_along_axis(softmax(logits), ids[..., None], -1))[..., 0]
    return (losses * weights).sum() / weights.sum()


def run(model, inputs):
    """Outputs of a model, not compiled."""
    tensors = [ops.convert_to_tensor(x) for x in inputs]
    return to_numpy(model(tensors[0] if len(tensors) == 1 else tensors))


def values(training, inputs):
    """Losses of the passes, and the total."""
    loss = training.layers[-1]
    for metric in loss.metrics:
        metric.reset_state()
    run(training, inputs)
    return [float(metric.result()) for metric in loss.metrics if metric.name != "accuracy"], to_numpy(loss.losses[-1])


def on_vectors(model, other, vectors, segments):
    """Last hidden states of a model that is given vectors for one sample: they are the table of its twin `other`."""
    for old, new in zip(model.layers, other.layers, strict=True):
        for a, b in zip(old.weights, new.weights, strict=True):
            if a.shape == b.shape:
                b.assign(a)
    other.get_layer("Embedding-Token").embeddings.assign(vectors)
    hidden = keras.Model(other.inputs, other.get_layer("Transformer-1-FeedForward-Norm").output)
    return run(hidden, [np.arange(len(vectors))[None], segments[None]])


def unrolled(application, mixing, top_k, steps=3):
    """Losses of the passes of a tiny BERT, sample by sample."""
    def build(**options):
        return tiny.build("bert", application, mask_zero=False, with_mlm="linear", **options)

    model, other = build().model, build(vocab_size=LM.shape[1]).model
    table = to_numpy(model.get_layer("Embedding-Token").embeddings)
    segments = tiny.SEGMENTS if application == "unilm" else 0 * tiny.SEGMENTS
    scores = [[] for _ in range(steps)]
    for ids, segment in zip(LM, segments, strict=True):
        true = vectors = table[ids]
        for step in range(steps):
            hidden = on_vectors(model, other, vectors, segment)
            x = hidden
            for name in ("MLM-Dense", "MLM-Norm"):
                x = model.get_layer(name)(x)
            logits = to_numpy(model.get_layer("MLM-Bias")(x @ ops.transpose(table)))
            scores[step].append(logits[0])
            spoken = hidden[0] if mixing == "hidden" else expected(logits[0], table, top_k)
            shifted = np.concatenate([true[:1], spoken[:-1]])
            vectors = np.where(segment[:, None] == 1, shifted, true) if application == "unilm" else shifted
    weights = segments if application == "unilm" else np.ones_like(LM)
    return model, segments, [token_loss(np.stack(s), LM, weights) for s in scores]


def expected(logits, table, top_k):
    order = np.argsort(-logits, -1)[:, :top_k]
    p = softmax(np.take_along_axis(logits, order, -1))
    return np.einsum("tk,tkd->td", p, table[order])


@pytest.mark.parametrize(
    ("application", "mixing", "top_k"),
    [("lm", "hidden", None), ("unilm", "hidden", None), ("unilm", "embedding", 3), ("lm", "embedding", None)],
)
def test_equals_passes_by_hand(application, mixing, top_k, tolerance):
    model, segments, wanted = unrolled(application, mixing, top_k)
    training = teaforn(model, 3, discount=0.25, mixing=mixing, top_k=top_k)
    losses, total = values(training, [LM, segments])
    np.testing.assert_allclose(losses, wanted, atol=10 * tolerance)
    np.testing.assert_allclose(total, wanted[0] + wanted[1] / 4 + wanted[2] / 16, atol=10 * tolerance)


FAMILIES = ["gpt", "gpt-shared-segments", "gpt2", "gpt2_ml", "llama", "llama-tied", "t5.1.0", "t5.1.1"]


def decoder_of(family):
    """A model and its inputs."""
    if family == "albert":  # its embeddings are narrower than its states: the head's transform is fed back
        return tiny.build(family, "lm", embedding_size=8).model, [LM, 0 * LM]
    if family in tiny.FAMILIES:
        return tiny.build(family, "unilm").model, [LM, tiny.SEGMENTS]
    model = generative.build(family, final_activation="softmax").model if "t5" not in family else None
    model = model or generative.build(family, with_lm=True).model
    inputs = [np.array(ops.convert_to_numpy(x)) for x in keras.tree.flatten(generative.inputs(model))]
    return model, inputs


@pytest.mark.parametrize("family", ["bert", "albert", "roformer", *FAMILIES])
def test_every_family(family, tolerance):
    """The weights are those of the model, and the first pass is the model."""
    model, inputs = decoder_of(family)
    count = model.count_params()
    for mixing in ("hidden", "embedding"):
        training = teaforn(model, mixing=mixing)
        assert {id(v) for v in training.trainable_variables} == {id(v) for v in model.trainable_variables}
        np.testing.assert_allclose(softmax(run(training, inputs)), run(model, inputs), atol=tolerance)
        losses, total = values(training, inputs)
        np.testing.assert_allclose(total, losses[0] + losses[1] / 2, atol=tolerance)
        assert losses[0] != losses[1]
    assert model.count_params() == count


@pytest.mark.parametrize("family", ["roformer", "t5.1.1"])
def test_training(family):
    """Every pass is learnt, and with it the model."""
    model, inputs = decoder_of(family)
    before = run(model, inputs)
    training = teaforn(model)
    training.compile(keras.optimizers.Adam(0.01), jit_compile=quick_compilation())
    history = training.fit(inputs, epochs=5, verbose=0).history
    assert all(values[-1] < values[0] for name, values in history.items() if name.startswith("loss"))
    assert set(history) == {"loss", "loss_1", "loss_2", "accuracy"}
    assert np.abs(run(model, inputs) - before).max() > 1e-3


def test_one_pass_is_plain_training(tolerance):
    """So is a discount of 0; the weights after a few steps are the same."""
    weights = []
    for steps, discount in ((1, 0.5), (3, 0.0), (None, None)):
        model = tiny.build("bert", "unilm", with_mlm="linear").model
        randomize(model)
        if steps is None:
            training, w = model, tiny.SEGMENTS[:, 1:]
            training.compile(keras.optimizers.SGD(0.1), plain, jit_compile=quick_compilation())
            data = [LM, tiny.SEGMENTS], np.concatenate([LM[:, 1:, None], w[:, :, None]], -1)
        else:
            training = teaforn(model, steps, discount=discount)
            training.compile(keras.optimizers.SGD(0.1), jit_compile=quick_compilation())
            data = [LM, tiny.SEGMENTS], None
        training.fit(*data, epochs=3, verbose=0)
        weights.append([to_numpy(w) for w in model.weights])
    for other in weights[:2]:
        for one, two in zip(other, weights[2], strict=True):
            np.testing.assert_allclose(one, two, atol=tolerance)


def plain(target, logits):
    """The loss of teacher forcing, with Keras' functions alone."""
    ids, w = target[:, :, 0], ops.cast(target[:, :, 1], "float32")
    losses = ops.sparse_categorical_crossentropy(ops.cast(ids, "int32"), logits[:, :-1], from_logits=True)
    return ops.sum(losses * w) / ops.sum(w)


def test_weights_of_tokens_and_half_precision(tolerance):
    model, inputs = decoder_of("gpt2")
    weights = np.array([[1, 1, 0, 1, 1], [1, 0, 1, 0, 0]], "float32")
    losses, _ = values(teaforn(model, weighted=True), [*inputs, weights])
    p = run(model, inputs)
    np.testing.assert_allclose(losses[0], token_loss(np.log(p), inputs[0], weights), atol=10 * tolerance)
    half = build_transformer_model(tiny.CONFIG, application="unilm", dtype="mixed_bfloat16")
    training = teaforn(half, mixing="embedding")
    training.compile("adam", jit_compile=quick_compilation())
    assert np.isfinite(training.fit([LM, tiny.SEGMENTS], verbose=0).history["loss"]).all()


def test_refusals():
    model = tiny.build("bert", "lm").model
    for arguments in ({"steps": 0}, {"mixing": "average"}, {"discount": 2}):
        with pytest.raises(ValueError, match="teaforn needs"):
            teaforn(model, **arguments)
    with pytest.raises(ValueError, match="builder"):
        teaforn(keras.Model(model.inputs, model.outputs))
    for encoder in (tiny.build("bert"), tiny.build("bert", with_mlm=True)):
        with pytest.raises(ValueError, match="predicts the next token"):
            teaforn(encoder.model)
