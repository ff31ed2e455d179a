"""What every public layer keeps to, whatever it computes: one test per promise, run on every row of the table."""

import json

import keras
import numpy as np
import pytest

import bert4x.layers
from bert4x.backend import runtime
from tests.layers.helpers import WithMask, assert_close, mask_of, randomize, to_arrays, weights_of
from tests.layers.rows import MASK, ROWS, SIZES

NOT_LAYERS = {  # and where they are tested
    "Layer": "the base class",
    "Concatenate1D": "its output is longer than its inputs: tests/models/test_recognised.py",
    "SlotPositions": "two of its inputs have no length: tests/models/test_step.py",
    "Loss": "a base class: test_loss.py",
    "HighestScores": "returns scores and ids: test_exposure.py",
    **dict.fromkeys(
        ("Rule", "Causal", "Window", "Strided", "Prefix", "Packed", "Padding"), "rules of masks: test_masks.py"
    ),
    "Sinusoidal": "an initialiser: test_rest.py",
    "TruncatedNormal": "an initialiser: tests/models/test_values.py",
    "DepthScaledNormal": "an initialiser: tests/models/test_values.py",
}
LONGER = {"B": 3, "T": 7, "S": 6}
HOLDS_DENSE = ["MultiHeadAttention", "FeedForward gated", "GlobalPointer", "EfficientGlobalPointer"]
HOLDS_DENSE += ["TalkingHeadsAttention", "SynthesizerAttention mixture", "GatedAttentionUnit softmax_plus"]
HOLDS_DENSE += ["AttentionPooling1D", "CharacterWordEmbedding", "DilatedGatedConv1D projected"]
HOLDS_DENSE += ["AtrousSelfAttention", "LocalSelfAttention", "SparseSelfAttention"]
USES_MASKS = [name for name, row in ROWS.items() if row.ignores]
FLOATING = [name for name, row in ROWS.items() if row.dtype != "bool"]


def make(name, **more):
    """The layer of a row; `more` are further arguments, such as a dtype policy."""
    return getattr(bert4x.layers, name.split()[0])(**ROWS[name].options, **more)


def arrays_of(name, sizes=SIZES):
    """Random inputs of a row."""
    random = np.random.default_rng(1)
    return [given.array(random, sizes) for given in ROWS[name].inputs]


def masks_of(name, mask=MASK):
    """A mask for each masked input, None for the others."""
    return [mask[:, : SIZES[given.shape[1]]] if given.masked else None for given in ROWS[name].inputs]


def attach(arrays, masks):
    """Tensors that carry the masks."""
    return [
        keras.ops.convert_to_tensor(a) if m is None else WithMask()([a, m]) for a, m in zip(arrays, masks, strict=True)
    ]


def call(layer, name, tensors, **more):
    """Call a layer as its row says."""
    return layer(tensors[0] if len(tensors) == 1 else tensors, **ROWS[name].call, **more)


def built(name, **more):
    """The layer of a row with random weights."""
    layer = make(name, **more)
    call(layer, name, [keras.ops.convert_to_tensor(a) for a in arrays_of(name)])
    randomize(layer)
    return layer


def symbolic(name, sizes=None):
    """Keras inputs of a row; letters not in `sizes` are None."""
    return [
        keras.Input(batch_shape=shape_of(given.shape, sizes or {}), dtype=given.dtype)
        for given in ROWS[name].inputs
    ]


def model_of(name, layer, sizes=None):
    """A functional model of one layer, with masks inside it where the row has masked inputs."""
    inputs, tensors, masks = symbolic(name, sizes), [], []
    for given, tensor in zip(ROWS[name].inputs, inputs, strict=True):
        if given.masked:
            masks.append(keras.Input(batch_shape=tensor.shape[:2], dtype="bool"))
            tensor = WithMask()([tensor, masks[-1]])
        tensors.append(tensor)
    return keras.Model([*inputs, *masks], call(layer, name, tensors))


def model_inputs(name):
    return [*arrays_of(name), *[m for m in masks_of(name) if m is not None]]


def shape_of(expected, sizes):
    return tuple(sizes.get(n) if isinstance(n, str) else n for n in expected)


def test_every_public_layer_has_a_row():
    have = {name.split()[0] for name in ROWS}
    assert have == set(bert4x.layers.__all__) - set(NOT_LAYERS)


@pytest.mark.parametrize("name", ROWS)
def test_equals_the_reference(name, tolerance):
    layer, arrays, masks = built(name), arrays_of(name), masks_of(name)
    got = call(layer, name, attach(arrays, masks))
    inputs = [a.astype("float64") if a.dtype == "float32" else a for a in arrays]
    want = ROWS[name].reference(weights_of(layer), masks, *inputs)
    assert_close(got, want, tolerance, name)


@pytest.mark.parametrize("name", USES_MASKS)
def test_equals_the_reference_without_masks(name, tolerance):
    layer, arrays = built(name), arrays_of(name)
    got = call(layer, name, arrays)
    everything = [True if m is None else np.ones_like(m) for m in masks_of(name)]
    inputs = [a.astype("float64") if a.dtype == "float32" else a for a in arrays]
    assert_close(got, ROWS[name].reference(weights_of(layer), everything, *inputs), tolerance, name)


@pytest.mark.parametrize("sizes", [{}, SIZES], ids=["unknown", "known"])
@pytest.mark.parametrize("name", ROWS)
def test_output_shape_is_known_before_it_runs(name, sizes):
    outputs = keras.tree.flatten(call(make(name), name, symbolic(name, sizes)))
    assert [tuple(o.shape) for o in outputs] == [shape_of(expected, sizes) for expected in ROWS[name].outputs]


@pytest.mark.parametrize("name", ROWS)
def test_one_graph_serves_all_lengths(name, tolerance):
    layer = built(name)
    model = keras.Model(inputs := symbolic(name), call(layer, name, inputs))
    for sizes in (SIZES, LONGER):
        arrays = arrays_of(name, sizes)
        outputs = to_arrays(model(arrays))
        assert [o.shape for o in outputs] == [shape_of(expected, sizes) for expected in ROWS[name].outputs]
        assert_close(outputs, call(layer, name, arrays), tolerance, name)


@pytest.mark.parametrize("name", ROWS)
def test_what_becomes_of_the_mask(name):
    masks = masks_of(name)
    arrays = arrays_of(name)
    output, *others = keras.tree.flatten(call(built(name), name, attach(arrays, masks)))
    assert [mask_of(other) for other in others] == [None] * len(others)
    if ROWS[name].mask == "makes":
        want = arrays[0] != 0
        want[:, 0] = True
    else:
        want = next((m for m in masks if m is not None), None) if ROWS[name].mask == "passes" else None
    np.testing.assert_equal(mask_of(output), want)


@pytest.mark.parametrize("name", USES_MASKS)
def test_a_sample_that_is_masked_throughout(name, tolerance):
    """Zeros where the softmax or the mean would be, no NaN, and no gradient into what is masked."""
    mask = MASK.copy()
    mask[0] = False
    layer, arrays, masks = built(name), arrays_of(name), masks_of(name, mask)
    inputs = [a.astype("float64") if a.dtype == "float32" else a for a in arrays]
    got = call(layer, name, attach(arrays, masks))
    assert_close(got, ROWS[name].reference(weights_of(layer), masks, *inputs), tolerance, name)

    def loss(changing):
        tensors = list(arrays)
        for i, tensor in zip(ROWS[name].ignores, changing, strict=True):
            tensors[i] = tensor
        output = keras.tree.flatten(call(layer, name, attach(tensors, masks)))[0]
        return keras.ops.sum(keras.ops.square(output))

    _, gradients = runtime.value_and_grad(loss, [arrays[i] for i in ROWS[name].ignores])
    for gradient in to_arrays(gradients):
        assert np.isfinite(gradient).all()
        assert (gradient[0] == 0).all()
        assert (gradient[1] != 0).any()


@pytest.mark.parametrize("name", ROWS)
def test_config_rebuilds_the_layer(name, tolerance):
    layer = built(name)
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == layer.get_config()
    arrays = arrays_of(name)
    call(again, name, arrays)
    again.set_weights(layer.get_weights())
    assert_close(call(again, name, arrays), call(layer, name, arrays), tolerance, name)


@pytest.mark.parametrize("name", ROWS)
def test_save_and_load_inside_a_model(name, tmp_path):
    model = model_of(name, built(name))
    inputs = model_inputs(name)
    want = to_arrays(model(inputs))
    model.save(tmp_path / "model.keras")
    assert_close(keras.saving.load_model(tmp_path / "model.keras")(inputs), want, 0, name)
    model.save_weights(tmp_path / "model.weights.h5")
    other = model_of(name, make(name))
    other.load_weights(tmp_path / "model.weights.h5")
    assert_close(other(inputs), want, 0, name)


@pytest.mark.parametrize("name", ROWS)
def test_compiled(name, tolerance):
    """One compiled graph of the whole model, as `predict` runs it."""
    model = model_of(name, built(name))
    inputs = model_inputs(name)
    assert_close(runtime.jit(model)(*inputs), model(inputs), tolerance, name)


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="a SavedModel is TensorFlow's")
@pytest.mark.parametrize("name", ROWS)
def test_exported(name, tmp_path, tolerance):
    """A SavedModel, served without the layer's class."""
    nested = model_of(name, built(name))
    model = keras.Model(nested.inputs, keras.tree.flatten(nested.output))  # a SavedModel has no lists inside lists
    inputs = model_inputs(name)
    model.export(tmp_path / "served", format="tf_saved_model", verbose=False)
    served = keras.layers.TFSMLayer(tmp_path / "served", call_endpoint="serve")
    assert_close(served([keras.ops.convert_to_tensor(a) for a in inputs]), model(inputs), tolerance, name)


@pytest.mark.parametrize("name", ["MultiHeadAttention scores and cache", "PositionEmbedding", "CausalMask"])
def test_predict(name, tolerance):
    model = model_of(name, built(name))
    outputs = keras.tree.map_structure(lambda t: t[:1] if t.shape[0] == 1 else t, model(model_inputs(name)))
    got = keras.tree.map_structure(lambda a, t: a[: t.shape[0]], model.predict(model_inputs(name), verbose=0), outputs)
    assert_close(got, outputs, tolerance, name)


@pytest.mark.parametrize("policy", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", FLOATING)
def test_mixed_precision(name, policy, tolerances):
    """Variables in float32, arithmetic in half precision: finite and near, masked samples included."""
    exact, layer = built(name), built(name, dtype=f"mixed_{policy}")
    mask = MASK.copy()
    mask[0] = False
    arrays, masks = arrays_of(name), masks_of(name, mask)
    arrays = [0.3 * a if a.dtype == "float32" else a for a in arrays]  # scores of a trained model's size
    got = call(layer, name, attach(arrays, masks))
    dtypes = {keras.backend.standardize_dtype(t.dtype) for t in keras.tree.flatten(got)}
    stated = ROWS[name].dtype
    assert dtypes == (set(stated) - {None} | {policy} if isinstance(stated, tuple) else {stated or policy})
    want = to_arrays(call(exact, name, attach(arrays, masks)))
    scale = max(1.0, *(np.abs(a).max() for a in want))
    assert_close(got, want, tolerances[policy] * scale, name)


@pytest.mark.parametrize("name", HOLDS_DENSE)
def test_quantised_layers_save_and_load(name, tmp_path):
    model = model_of(name, built(name))
    inputs = model_inputs(name)
    before = to_arrays(model(inputs))
    model.quantize("int8")
    want = to_arrays(model(inputs))
    assert 0 < np.abs(want[0] - before[0]).max() < 0.1 * np.abs(before[0]).max()
    model.save(tmp_path / "model.keras")
    assert_close(keras.saving.load_model(tmp_path / "model.keras")(inputs), want, 0, name)


@pytest.mark.parametrize("name", HOLDS_DENSE)
def test_lora_layers_save_and_load(name, tmp_path):
    layer = built(name)
    dense = layer._dense_names[-1]
    getattr(layer, dense).enable_lora(2, lora_alpha=3)
    randomize(layer, seed=5)
    model = model_of(name, layer)
    inputs = model_inputs(name)
    want = to_arrays(model(inputs))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert_close(again(inputs), want, 0, name)
    inner = next(candidate for candidate in again.layers if candidate.name == layer.name)
    assert (getattr(inner, dense).lora_rank, getattr(inner, dense).lora_alpha) == (2, 3)
    assert len(inner.trainable_variables) == len(layer.trainable_variables)


def test_every_layer_with_dense_layers_inside_is_in_the_saving_tests():
    holders = {name.split()[0] for name in ROWS if getattr(built(name), "_dense_names", ())}
    # A norm's inner layers are linear maps of a condition, built by the same `add_dense`.
    assert holders - {"LayerNormalization", "ScaleOffset"} == {name.split()[0] for name in HOLDS_DENSE}
