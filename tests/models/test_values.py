"""Values: random ones at the start, half precision, the compiled model."""

import numpy as np
import pytest

from bert4x.backend import runtime
from bert4x.models import build_transformer_model
from tests.models.reference_weights import randomize, to_numpy
from tests.models.tiny import CONFIG, FAMILIES, IDS, LENGTH, REAL, SEGMENTS, build, checkpoint_of, run


def kernels(builder):
    """Kernels and tables of a model that are trained, by path."""
    return {v.path: to_numpy(v) for v in builder.model.trainable_variables if len(v.shape) == 2}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("loading", [False, True])
def test_initial_values(family, loading):
    """Without a checkpoint, and for what a checkpoint lacks: random, of the right spread, and no two alike."""
    options = {"vocab_size": 400, "hidden_size": 48, "intermediate_size": 96, "with_mlm": True, "embedding_size": 32}
    options["initializer_range"] = 0.03
    checkpoint = None
    if loading:
        checkpoint = {"nothing": np.zeros(1, "float32")}
        with pytest.warns(UserWarning, match="keep their initial values"):
            builder = build(family, checkpoint=checkpoint, ignore_invalid_weights=True, **options)
    else:
        builder = build_transformer_model({**CONFIG, **options}, model=family, return_keras_model=False)
    found = kernels(builder)
    assert len(found) > 10 or family == "albert"
    for path, array in found.items():
        if family == "roformer_v2":
            width = array.shape[1] if array.shape[0] in (2, 400) else array.shape[0]
            wanted = 1.1368472 * (2 * width) ** -0.5
        else:
            wanted = 0.03
        if array.size > 200:
            assert abs(array.std() / wanted - 0.88) < 0.12, path  # cut at two deviations: 0.88 of the full spread
        assert np.abs(array).max() < 2.01 * wanted, path
    firsts = [float(array[0, 0]) for array in found.values()]
    assert len(set(firsts)) == len(firsts)
    for variable in builder.model.trainable_variables:
        if len(variable.shape) == 1:
            assert (to_numpy(variable) == variable.path.endswith("gamma")).all()


def test_two_builds_start_different():
    first, second = (kernels(build_transformer_model(CONFIG, return_keras_model=False)) for _ in range(2))
    assert all(np.abs(first[path] - second[path]).max() > 1e-3 for path in first)


def test_initializer_of_the_builder_serves_a_users_layer():
    builder = build("bert")
    one, two = (builder.initializer((12, 5)) for _ in range(2))
    assert 0.01 < to_numpy(one).std() < 0.03
    assert np.abs(to_numpy(one) - to_numpy(two)).max() > 1e-3


@pytest.mark.parametrize("policy", ["float16", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_mixed_precision(family, policy, tolerances):
    """Weights stay float32; outputs are finite and near those of float32, a wholly padded sample included."""
    application = "lm" if family in ("bert", "roformer") else "encoder"
    exact = randomize(build(family, application, with_mlm="linear").model).builder
    half = build(family, application, checkpoint_of(exact), with_mlm="linear", dtype=f"mixed_{policy}")
    assert {v.dtype for v in half.model.weights} == {"float32"}
    norm = half.layers["Embedding-Norm"]
    assert norm.compute_dtype == policy
    ids = np.concatenate([IDS, np.zeros((1, LENGTH), "int32")])
    outputs = [to_numpy(b.model([ids, np.zeros_like(ids)])) for b in (exact, half)]
    assert outputs[1].dtype == "float32" and np.isfinite(outputs[1]).all()
    real = np.concatenate([REAL, np.zeros((1, LENGTH), bool)])
    scale = np.abs(outputs[0]).max()
    np.testing.assert_allclose(outputs[1][real], outputs[0][real], rtol=0, atol=2 * tolerances[policy] * scale)


@pytest.mark.parametrize("family", FAMILIES)
def test_compiled(family, tolerance):
    builder = build(family, with_mlm="linear")
    compiled = runtime.jit(builder.model)
    np.testing.assert_allclose(to_numpy(compiled(IDS, SEGMENTS)), run(builder)[0], rtol=0, atol=10 * tolerance)
