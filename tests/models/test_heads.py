"""What a model returns: hidden states, pooled vectors, NSP, MLM and discriminator outputs, in which order."""

import numpy as np
import pytest

from tests.models.tiny import FAMILIES, IDS, REAL, SEGMENTS, build, checkpoint_of, double, expected, run
from tests.reference import encoder
from tests.reference import layers as reference

POOLED = [family for family in FAMILIES if family not in ("electra", "roformer_v2")]
POOLS = {"with_pool": True}, {"with_pool": "linear"}, {"with_nsp": True}, {}
MLMS = {"with_mlm": True}, {"with_mlm": "linear"}, {}


def states_and_weights(builder):
    return expected(builder)[-1], double(checkpoint_of(builder))


def close(ours, theirs, atol):
    assert ours.shape == theirs.shape
    real = REAL if ours.ndim == 3 else slice(None)
    np.testing.assert_allclose(ours[real], theirs[real], rtol=0, atol=atol)


@pytest.mark.parametrize("family", POOLED)
@pytest.mark.parametrize("mlm", MLMS, ids=str)
@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_heads_and_their_order(family, pool, mlm, tolerance):
    """[pooled or NSP, MLM], those that are asked for; else the last hidden states."""
    if family != "bert" and pool in ({"with_pool": "linear"}, {}) and mlm != {"with_mlm": True}:
        return  # the other families share these heads
    builder = build(family, embedding_size=8, **pool, **mlm)
    state, w = states_and_weights(builder)
    wanted = []
    if pool == {"with_nsp": True}:
        wanted.append(encoder.nsp(w, state))
    elif pool:
        wanted.append(encoder.pooled(w, state, np.tanh if pool["with_pool"] is True else reference.linear))
    if mlm:
        logits = encoder.mlm(w, family, state)
        wanted.append(reference.softmax(logits) if mlm["with_mlm"] is True else logits)
    outputs = run(builder)
    assert isinstance(builder.model.output, list) == (len(wanted) > 1)
    assert len(outputs) == len(wanted or [state])
    for ours, theirs in zip(outputs, wanted or [state], strict=True):
        close(ours, theirs, tolerance)


@pytest.mark.parametrize("mapped", [False, True])
def test_roformer_v2_scores_tokens_without_transform(mapped, tolerance):
    builder = build("roformer_v2", with_mlm="linear", **({"embedding_size": 8} if mapped else {}))
    state, w = states_and_weights(builder)
    close(run(builder)[0], encoder.mlm(w, "roformer_v2", state), tolerance)
    assert "MLM-Dense" not in builder.layers and "MLM-Bias" not in builder.layers


@pytest.mark.parametrize("application", ["lm", "unilm"])
def test_language_models_have_the_token_head_by_default(application):
    assert run(build("bert", application))[0].shape == (*IDS.shape, 13)
    assert run(build("bert", application, with_mlm=False))[0].shape == (*IDS.shape, 12)
    outputs = run(build("bert", application, with_pool=True))
    assert [output.shape for output in outputs] == [(2, 12), (*IDS.shape, 13)]


@pytest.mark.parametrize("activation", [True, "linear"])
def test_discriminator(activation, tolerance):
    builder = build("electra", with_discriminator=activation, embedding_size=8)
    state, w = states_and_weights(builder)
    head = "discriminator_predictions"
    inner = reference.gelu(reference.dense(state, encoder.part(w, f"{head}/dense")))
    logits = reference.dense(inner, encoder.part(w, f"{head}/dense_1"))
    close(run(builder)[0], 1 / (1 + np.exp(-logits)) if activation is True else logits, tolerance)


def test_electra_pools_without_weights(tolerance):
    builder = build("electra", with_pool=True)
    close(run(builder)[0], expected(builder)[-1][:, 0], tolerance)
    both = build("electra", with_pool=True, with_discriminator=True)
    assert [output.shape for output in run(both)] == [(2, 12), (*IDS.shape, 1)]


def test_generator(tolerance):
    """Its blocks stand under generator/, its tables under electra/."""
    builder = build("electra", with_mlm="linear", embedding_size=8)
    w = {}
    for name, array in double(checkpoint_of(builder)).items():
        w[name.replace("generator/", "electra/")] = array
    settings = {"depth": 2, "count": 3}
    state = encoder.hidden_states(w, "electra", IDS, SEGMENTS, **settings)[-1]
    close(run(builder)[0], encoder.mlm(w, "electra", state), tolerance)


def test_hidden_states_follow_the_heads(tolerance):
    builder = build("bert", with_pool=True, with_mlm=True, output_hidden_states=True)
    outputs = run(builder)
    assert [output.ndim for output in outputs] == [2, 3, 3, 3, 3]
    for ours, theirs in zip(outputs[2:], expected(builder), strict=True):
        close(ours, theirs, tolerance)


def test_outputs_of_heads_are_float32_in_half_precision():
    builder = build("bert", with_nsp=True, with_mlm=True, dtype="mixed_bfloat16")
    outputs = run(builder)
    assert [output.dtype.name for output in outputs] == ["float32", "float32"]
    for output in outputs:
        np.testing.assert_allclose(output.sum(-1), 1, atol=1e-5)
