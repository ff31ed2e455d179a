"""The numbers of the specification for layers: every case of checks_layers.json whose layer exists."""

import json

import keras
import numpy as np
import pytest
from keras import ops

from bert4x import layers
from bert4x.backend import apply_rotary_position_embeddings, attention_normalize, runtime, sinusoidal_embeddings
from tests.layers import golden_recurrent
from tests.layers.helpers import WithMask, to_arrays

ATOL = 2e-5  # stated in the file
NOT_OF_LAYERS = {"reading_vote", "tree_induction"}  # tests/snippets/test_reading.py


@pytest.fixture(scope="module")
def cases(shared_data):
    path = shared_data.parent / "spec" / "checks_layers.json"
    if not path.is_file():
        pytest.skip(f"no check values: {path} is not there")
    return json.loads(path.read_text(encoding="utf-8"))["cases"]


def unpacked(value):
    """An array of the file: a nested list, or a rule {"probe": [shape, a, b, scale]}."""
    if isinstance(value, dict):
        shape, a, b, scale = value["probe"]
        return (scale * np.sin(a * np.arange(1, np.prod(shape) + 1) + b)).reshape(shape)
    values = np.array(value)
    return values.astype("float64") if values.dtype.kind == "U" else values  # "-inf" among the numbers


class Case:
    """The parts of one case as arrays: case.inputs["x"], case.weights["wq"], case.outputs["output"]."""

    def __init__(self, raw):
        self.config = raw["config"]
        for part in ("inputs", "weights", "outputs"):
            setattr(self, part, {name: unpacked(value) for name, value in raw[part].items()})

    def x(self):
        """The input `x`, which carries the case's mask if it has one."""
        return self.masked(self.inputs["x"], self.inputs.get("mask"))

    @staticmethod
    def masked(x, mask):
        x = x.astype("float32")
        return ops.convert_to_tensor(x) if mask is None else WithMask()([x, mask.astype(bool)])

    def attention(self, inputs, suffix="", call=None, **options):
        """Build an attention layer with the case's weights and call it."""
        letters = {"query": "q", "key": "k", "value": "v", "out": "o"}
        options = {"out_dim": 4, "use_bias": "bq" in self.weights, **options}
        layer = layers.MultiHeadAttention(**options)
        layer(inputs, **(call or {}))
        for part, letter in letters.items():
            values = [self.weights[f"w{letter}{suffix}"]]
            values += [self.weights[f"b{letter}{suffix}"]] if options["use_bias"] else []
            getattr(layer, part).set_weights(values)
        return layer(inputs, **(call or {}))


def masked_softmax(case):
    mask = ops.convert_to_tensor(case.inputs["mask"].astype(bool))
    return {"probs": attention_normalize(ops.convert_to_tensor(case.inputs["scores"].astype("float32")), mask)}


def cross_sizes(case):
    memory = case.masked(case.inputs["key_value"], case.inputs["value_mask"])
    query = case.masked(case.inputs["query"], None)
    o, scores = case.attention([query, memory, memory], return_attention_scores=True, **case.config)
    return {"output": o, "scores": scores}


def causal_padding(case):
    x = case.x()
    return {"output": case.attention([x, x, x, layers.CausalMask()(x)], call={"a_bias": True}, **case.config)}


def self_attention(case, extra, position, **options):
    """Attention of x to itself with one position term."""
    x = case.x()
    o, scores = case.attention(
        [x, x, x, extra(x)], call={"p_bias": position}, heads=2, head_size=4, return_attention_scores=True, **options
    )
    return {"output": o, "scores": scores}


def nezha(case):
    table = layers.RelativePositionEmbedding(5, 4, embeddings_initializer=layers.Sinusoidal())
    return self_attention(case, lambda x: table([x, x]), "typical_relative")


def rope(case):
    positions = layers.SinusoidalPositionEmbedding(4, merge_mode="zero")
    return self_attention(case, positions, "rotary")


def t5(case):
    table = layers.RelativePositionEmbeddingT5(8, 2, max_distance=6)

    def numbers(x):
        table([x, x])
        table.set_weights([case.inputs["bias_table"]])
        return table([x, x])

    return self_attention(case, numbers, "t5_relative", attention_scale=False)


def realformer(case):
    x, options = case.x(), {**case.config, "return_attention_scores": True}
    o1, s1 = case.attention([x, x, x], **options)
    # The mask goes on with o1, as that of the queries.
    o2, s2 = case.attention([o1, o1, o1, s1], suffix="_2", call={"a_bias": True}, **options)
    return {"output_1": o1, "scores_1": s1, "output_2": o2, "scores_2": s2}


def named_weights(case, layer, names):
    """Assign the weights of a case to a built layer: the projections by their letters, others by `names`."""
    parts = {"q": "query", "k": "key", "v": "value", "o": "out"}
    for name, value in case.weights.items():
        if name in names:
            getattr(layer, names[name]).assign(value)
        else:
            dense = getattr(layer, parts[name[1]])
            (dense.kernel if name[0] == "w" else dense.bias).assign(value)


def talking_heads(case):
    x, config = case.x(), dict(case.config)
    assert config.pop("causal")
    layer = layers.TalkingHeadsAttention(out_dim=4, return_attention_scores=True, **config)
    inputs, call = [x, x, x, layers.CausalMask()(x)], {"a_bias": True}
    layer(inputs, **call)
    layer.set_weights([case.weights[name] for name in ("wq", "bq", "wk", "bk", "wv", "bv", "wo", "bo")]
                      + [case.weights[name] for name in ("logit_mix", "weight_mix")])
    o, scores = layer(inputs, **call)
    return {"output": o, "scores": scores}


SYNTHETIC = {
    "w1": "inner_kernel", "b1": "inner_bias", "w2": "outer_kernel", "b2": "outer_bias", "wa": "first_kernel",
    "ba": "first_bias", "wb": "second_kernel", "bb": "second_bias", "r": "random_table", "r1": "random_rows",
    "r2": "random_columns", "alpha_logits": "mixture",
}


def synthesizer(case):
    """Any mode; sizes that the case's weights have and its configuration leaves out."""
    x, sizes = case.x(), {}
    if "w1" in case.weights:
        sizes["hidden_units"] = case.weights["w1"].shape[-1]
    if "wa" in case.weights:
        sizes["factors"] = [case.weights[name].shape[-1] for name in ("wa", "wb")]
    if "r1" in case.weights:
        sizes["rank"] = case.weights["r1"].shape[-1]
    layer = layers.SynthesizerAttention(out_dim=4, return_attention_scores=True, **sizes, **case.config)
    layer([x, x, x])
    named_weights(case, layer, SYNTHETIC)
    o, scores = layer([x, x, x])
    return {name: {"output": o, "scores": scores}[name] for name in case.outputs}


def gated_unit(case):
    x, config = case.x(), dict(case.config)
    call = {"p_bias": config.pop("position")}
    layer = layers.GatedAttentionUnit(**config)
    inputs = [x, layers.SinusoidalPositionEmbedding(config["key_size"], merge_mode="zero")(x)]
    layer(inputs, **call)
    names = ["query_gamma", "query_beta", "key_gamma", "key_beta"]
    names = ["inner/kernel", "inner/bias", *names, "out/kernel", "out/bias"]
    variables = {variable.path.split("/", 1)[1]: variable for variable in layer.weights}
    for key, name in zip(("wi", "bi", "gq", "bq", "gk", "bk", "wo", "bo"), names, strict=True):
        variables[name].assign(case.weights[key])
    return {"output": layer(inputs, **call)}


def unilm_mask(case):
    return {"allowed": layers.UniLMMask()(ops.convert_to_tensor(case.inputs["segment_ids"]))}


def prefix_mask(case):
    segments = np.arange(int(case.inputs["length"])) >= case.config["prefix_length"]
    return {"allowed": layers.Prefix().matrix(len(segments), segment=segments)}


def sparse_attention(kind):
    """A check of a layer that attends in blocks, and of the pattern that it says it has."""

    def check(case):
        layer, x = kind(**case.config, out_dim=4), case.x()
        layer(x)
        names = [f"{letter}{part}" for part in "qkvo" for letter in "wb"]
        layer.set_weights([case.weights[name] for name in names])
        return {"output": layer(x), "pattern": layer.pattern.matrix(x.shape[1])}

    return check


def sinusoidal(case):
    return {"embeddings": sinusoidal_embeddings(case.inputs["position_ids"], case.config["output_dim"])}


def rotated(case):
    x = case.inputs["x"].astype("float32")
    table = sinusoidal_embeddings(case.inputs["position_ids"][None], x.shape[-1])
    return {"rotated": apply_rotary_position_embeddings(table, ops.convert_to_tensor(x))}


def hierarchical(case):
    table = case.weights["embeddings"]
    layer = layers.PositionEmbedding(*table.shape, hierarchical=case.config["alpha"])
    x = np.zeros((1, int(case.inputs["length"]), table.shape[1]), "float32")
    layer(x)
    layer.set_weights([table])
    return {"embeddings": layer(x)[0]}


def t5_buckets(case):
    offsets = case.inputs["relative_position"]
    outputs = {}
    for name in ("bidirectional", "causal"):
        layer = layers.RelativePositionEmbeddingT5(32, 1, bidirectional=name == "bidirectional")
        outputs[name] = layer.index(ops.convert_to_tensor(offsets.astype("int32")))
    return outputs


def norm(case):
    """Any layer norm: the weights of the file under our names."""
    inputs = [case.masked(value, None) for value in case.inputs.values()]
    inputs = inputs if len(inputs) > 1 else inputs[0]
    layer = layers.LayerNormalization(**case.config)
    layer(inputs)
    for name, value in case.weights.items():
        if name == "gamma_minus_one":
            layer.gamma.assign(1 + value)
        elif name == "beta":
            layer.beta.assign(value)
        else:
            getattr(layer, name).kernel.assign(value)
    return {"output": layer(inputs)}


def feed_forward(case):
    x = case.x()
    names = {"gelu": "gelu_tanh"}  # T5.1.1's 'gelu' is the tanh form
    options = {**case.config, "activation": [names.get(name, name) for name in case.config["activation"]]}
    layer = layers.FeedForward(**options)
    layer(x)
    layer.set_weights(list(case.weights.values()))
    return {"output": layer(x)}


def pointer(case):
    """A global pointer; where the file has minus infinity, any score below -1e4 is right."""
    layer = getattr(layers, "GlobalPointer" if "w" in case.weights else "EfficientGlobalPointer")(**case.config)
    layer(case.x())
    layer.set_weights(list(case.weights.values()))
    got, want = to_arrays(layer(case.x()))[0].astype("float64"), case.outputs["logits"]
    got[got <= -1e4] = -np.inf
    return {"logits": got.reshape(want.shape)}


SPARSE = {
    "atrous": layers.AtrousSelfAttention, "local": layers.LocalSelfAttention, "sparse": layers.SparseSelfAttention
}
CHECKS = {
    "masked_softmax": masked_softmax,
    "mha_cross_sizes": cross_sizes,
    "mha_causal_padding": causal_padding,
    "mha_nezha": nezha,
    "mha_rope": rope,
    "mha_t5": t5,
    "realformer_two_layers": realformer,
    "talking_heads": talking_heads,
    "synthesizer_dense": synthesizer,
    "synthesizer_factorized_dense": synthesizer,
    "synthesizer_random": synthesizer,
    "synthesizer_factorized_random": synthesizer,
    "synthesizer_mixture": synthesizer,
    "gau_squared_relu": gated_unit,
    "gau_softmax_plus": gated_unit,
    "unilm_mask": unilm_mask,
    "prefix_mask": prefix_mask,
    **{
        f"{name}_self_attention{causal}": sparse_attention(kind)
        for name, kind in SPARSE.items()
        for causal in ("", "_causal")
    },
    "sinusoidal": sinusoidal,
    "rope": rotated,
    "hierarchical_positions": hierarchical,
    "t5_buckets": t5_buckets,
    "layer_norm": norm,
    "layer_norm_rms": norm,
    "cond_layer_norm": norm,
    "cond_layer_norm_sequence": norm,
    "cond_layer_norm_hidden": norm,
    "gated_ffn": feed_forward,
    "global_pointer": pointer,
    "efficient_global_pointer": pointer,
    **golden_recurrent.CHECKS,
}


@pytest.mark.parametrize("name", CHECKS)
def test_numbers_of_the_specification(name, cases):
    case = Case(cases[name])
    got = CHECKS[name](case)
    assert got.keys() == case.outputs.keys()
    for key, want in case.outputs.items():
        array = to_arrays(got[key])[0]
        np.testing.assert_allclose(array.astype("float64"), want, rtol=0, atol=ATOL, err_msg=f"{name}: {key}")


def test_no_case_is_forgotten(cases):
    assert set(cases) == set(CHECKS) | NOT_OF_LAYERS


def test_masked_softmax_has_no_nan_gradient(cases):
    case = Case(cases["masked_softmax"])
    mask = ops.convert_to_tensor(case.inputs["mask"].astype(bool))
    scores = case.inputs["scores"].astype("float32")
    _, gradient = runtime.value_and_grad(lambda s: ops.sum(ops.square(attention_normalize(s, mask))), scores)
    gradient = to_arrays(gradient)[0]
    assert np.isfinite(gradient).all()
    assert (gradient[~case.inputs["mask"].astype(bool)] == 0).all()
    assert keras.backend.standardize_dtype(attention_normalize(ops.cast(scores, "float16"), mask).dtype) == "float16"
