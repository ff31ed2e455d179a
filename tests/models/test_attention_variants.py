"""The options attention_variant and attention_settings: any family with talking heads or a Synthesizer."""

import keras
import numpy as np
import pytest

import bert4x.layers
from bert4x.models import build_transformer_model, save_pretrained
from bert4x.models.weights import weight_items
from bert4x.snippets import Generator
from tests.layers.helpers import gradients
from tests.models import generative, tiny
from tests.models.reference_weights import randomize, to_numpy

# Synthesizers that go with the positions of a family: those inside attention need queries and keys.
DENSE, MIXED = {"mode": "dense"}, {"mode": ["random", "dot"]}
TALK, SYNTHESIZER = {"attention_variant": "talking_heads"}, {"attention_variant": "synthesizer"}
LONG = {"max_length": 8}
ROWS = {
    "bert": ("bert", tiny.CONFIG, DENSE),
    "albert": ("albert", tiny.CONFIG, DENSE),
    "nezha": ("nezha", tiny.CONFIG, MIXED),
    "electra": ("electra", tiny.CONFIG, DENSE),
    "roformer": ("roformer", tiny.CONFIG, MIXED),
    "roformer_v2": ("roformer_v2", tiny.CONFIG, MIXED),
    "gpt": ("gpt", generative.TABLE, DENSE),
    "gpt2": ("gpt2", generative.TABLE, {"mode": "fixed_random"}),
    "gpt2_ml": ("gpt2_ml", generative.TABLE, DENSE),
    "llama": (*generative.ROWS["llama"], {**MIXED, **LONG}),
    "t5": (*generative.ROWS["t5.1.1"], {"mode": "random", **LONG}),
}


# Each family's blocks are made the same way: some stand for all.
SLOW = ("electra", "roformer", "roformer_v2", "gpt", "gpt2_ml")
FAMILIES = [pytest.param(row, marks=[pytest.mark.slow] * (row in SLOW)) for row in ROWS]


def build(row, checkpoint=None, **options):
    model, config, _ = ROWS[row]
    builder = build_transformer_model(config, checkpoint, model, return_keras_model=False, **options)
    if checkpoint is None:
        randomize(builder.model)
    return builder


def run(builder):
    """The outputs for a batch with padding, float32 [2, 5, .]."""
    ids = {"Decoder-Input-Token": tiny.IDS[:, ::-1], "Input-Segment": tiny.SEGMENTS}
    feeds = [np.ascontiguousarray(ids.get(x.name, tiny.IDS)) for x in builder.model.inputs]
    outputs = builder.model(feeds if len(feeds) > 1 else feeds[0])
    return to_numpy(outputs[0] if isinstance(outputs, list) else outputs).astype("float32")


def weights(builder, naming="google"):
    return {name: read() for name, _, _, read in weight_items(builder, naming)}


@pytest.mark.parametrize("row", FAMILIES)
def test_pretrained_weights_with_talking_heads(row, tolerance):
    """A checkpoint of plain attention gives the same outputs; its own, in both namings, brings the mixings back."""
    plain = build(row)
    builder = build(row, weights(plain), **TALK)
    np.testing.assert_allclose(run(builder), run(plain), rtol=0, atol=tolerance)
    report = builder.load_report
    assert report.missing == report.unused == [] and len(report.loaded) == len(weights(plain))
    assert report.initialized and {path.split("/")[-2] for path in report.initialized} == {"logit_mix", "weight_mix"}
    randomize(builder.model)
    assert np.abs(run(builder) - run(plain)).max() > 1e-3
    for naming in ("google", "huggingface"):
        again = build(row, weights(builder, naming), **TALK)
        assert again.load_report.initialized == []
        np.testing.assert_array_equal(run(again), run(builder))


@pytest.mark.parametrize("row", FAMILIES)
def test_pretrained_weights_with_a_synthesizer(row):
    """Queries and keys without a place are reported as unused; the new weights are initialised, and written."""
    plain, settings = build(row), ROWS[row][2]
    options = {"attention_variant": "synthesizer", "attention_settings": settings}
    builder = build(row, weights(plain), **options)
    report, dot = builder.load_report, "dot" in settings["mode"]
    assert bool(report.unused) is not dot and report.missing == []
    places = ("/query", "/key", "/q", "/k", "query_layer", "key_layer")
    assert all(any(place in name for place in places) for name in report.unused)
    assert bool(report.initialized) is (settings["mode"] != "fixed_random")
    outputs = run(builder)
    assert np.isfinite(outputs).all() and np.abs(outputs - run(plain)).max() > 1e-4
    randomize(builder.model)
    for naming in ("google", "huggingface"):
        again = build(row, weights(builder, naming), **options)
        assert again.load_report.initialized == again.load_report.unused == []
        np.testing.assert_array_equal(run(again), run(builder))


BERTS = {
    "talking heads": TALK,
    "dense": {**SYNTHESIZER, "attention_settings": {"mode": "dense", "hidden_units": 3}},
    "mixture": {**SYNTHESIZER, "attention_settings": {"mode": ["random", "factorized_dense", "dot"]}},
}


@pytest.mark.parametrize("variant", BERTS)
def test_saving(variant, tmp_path):
    """A directory and a Keras file bring the model back as it was."""
    builder = build("bert", with_mlm=True, **BERTS[variant])
    save_pretrained(builder, None, tmp_path / "directory")
    again = build_transformer_model(tmp_path / "directory", with_mlm=True)
    assert again.builder.attention_settings == builder.attention_settings
    np.testing.assert_array_equal(run(again.builder), run(builder))
    builder.model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(to_numpy(loaded([tiny.IDS, tiny.SEGMENTS])), run(builder))


@pytest.mark.parametrize("variant", BERTS)
def test_remat_and_half_precision(variant, tolerances):
    plain = build("bert", **BERTS[variant])
    remat = build("bert", weights(plain), remat=True, **BERTS[variant])
    real = keras.ops.convert_to_tensor(tiny.REAL[..., None].astype("float32"))
    found = [
        gradients(b.model, lambda b=b: keras.ops.sum(b.model([tiny.IDS, tiny.SEGMENTS]) ** 3 * real))
        for b in (plain, remat)
    ]
    for name, gradient in found[0].items():
        np.testing.assert_allclose(found[1][name], gradient, rtol=0, atol=tolerances["gradient"] * 10, err_msg=name)
    half = build("bert", weights(plain), dtype="mixed_bfloat16", **BERTS[variant])
    want = run(plain)[tiny.REAL]
    np.testing.assert_allclose(run(half)[tiny.REAL], want, rtol=0, atol=tolerances["bfloat16"] * np.abs(want).max())


@pytest.mark.parametrize("variant", BERTS)
def test_residual_scores_go_on(variant, tolerance):
    """With the option each layer gets the scores of those before: what the last layer returns is their sum."""
    builder = build("bert", residual_attention_scores=True, **BERTS[variant])
    layers = [builder.layers[builder.part(i, "MultiHeadSelfAttention")] for i in range(2)]
    scores = keras.Model(builder.model.inputs, [layer.output[-1] for layer in layers])
    first, second = (to_numpy(s) for s in scores([tiny.IDS, tiny.SEGMENTS]))
    alone = keras.Model(builder.model.inputs, layers[1].input[0])([tiny.IDS, tiny.SEGMENTS])
    own = to_numpy(layers[1]([alone, alone, alone])[-1])
    np.testing.assert_allclose(second, own + first, rtol=0, atol=tolerance * 10)
    assert np.abs(first).max() > 0.1


def test_a_class_of_ones_own():
    class Doubled(bert4x.layers.MultiHeadAttention):
        """Scores twice as large."""

        def _scores(self, *arguments):
            return 2 * super()._scores(*arguments)

    plain = build("bert", fused_attention=False)
    builder = build("bert", weights(plain), attention_variant=Doubled, fused_attention=False)
    assert np.abs(run(builder) - run(plain)).max() > 1e-3
    with pytest.raises(ValueError, match="cannot hold the class Doubled"):
        save_pretrained(builder, None, "nowhere")


def test_log_n_scaling_is_a_setting(tolerance):
    builder = build("bert", attention_settings={"normalization": "softmax_plus"})
    layer = builder.layers["Transformer-0-MultiHeadSelfAttention"]
    assert layer.normalization == "softmax_plus"
    plain = build("bert", weights(builder))
    assert np.abs(run(builder) - run(plain)).max() > 1e-3


def test_more_softmax_heads_and_bucketed_positions():
    """The numbers of T5's positions are added after the first mixing: one for each head of the softmax."""
    builder = build("t5", **TALK, attention_settings={"softmax_heads": 6})
    table = builder.layers["Encoder-Embedding-Relative-Position"].embeddings
    assert table.shape[1] == 6 and np.isfinite(run(builder)).all()
    assert builder.layers["Decoder-Transformer-0-MultiHeadCrossAttention"].__class__.__name__ == "MultiHeadAttention"


def test_lora_trains_what_a_checkpoint_does_not_bring():
    options = {**SYNTHESIZER, "attention_settings": {"mode": "random"}}
    builder = build_transformer_model(tiny.CONFIG, lora_rank=2, return_keras_model=False, **options)
    names = {variable.path.split("/", 1)[1] for variable in builder.model.trainable_variables}
    assert names == {"random_table", "value/bias", "value/lora_kernel_a", "value/lora_kernel_b"}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["random", ["dense", "dot"]], ids=str)
def test_generator_writes_what_the_full_graph_says(mode):
    """Prompts of unequal length; the cache has more slots than the model has positions."""
    settings = {"attention_variant": "synthesizer", "attention_settings": {"mode": mode}}
    model = build_transformer_model(tiny.CONFIG, application="lm", with_mlm="linear", segment_vocab_size=0, **settings)
    randomize(model)
    assert model.builder.position_limit == 8
    prompts = [[3, 5, 1], [7, 2]]
    got = Generator(model, end_id=None).generate(prompts, 5)
    for prompt, written in zip(prompts, got, strict=True):
        ids = list(prompt)
        for _ in range(5):
            ids.append(int(np.argmax(to_numpy(model(np.array([ids])))[0, -1])))
        assert written == ids[len(prompt) :]


CACHES = {"Transformer-0-MultiHeadSelfAttention": (0, 0)}


@pytest.mark.parametrize(
    "family, options, message",
    [
        ("bert", {"attention_variant": "talking_head"}, "Did you mean 'talking_heads'"),
        ("bert", {**TALK, "attention_settings": {"heads": 3}}, "own options decide: heads"),
        ("bert", {**TALK, "attention_settings": {"mode": "dense"}}, "mode"),
        ("bert", {**TALK, "fused_attention": True}, "TalkingHeadsAttention has no fused form"),
        ("nezha", {**SYNTHESIZER}, "'typical_relative' acts on queries and keys"),
        ("roformer", {**SYNTHESIZER}, "'rotary' acts on queries and keys"),
        ("bert", {**SYNTHESIZER, "attention_settings": {"max_length": 4}, "sequence_length": 5}, "max_length=4 tokens"),
        ("bert", {**SYNTHESIZER, "attention_caches": CACHES}, "attention_caches"),
    ],
)
def test_what_does_not_go_together(family, options, message):
    with pytest.raises(ValueError, match=message):
        build_transformer_model(tiny.CONFIG, model=family, **options)


def test_t5_and_llama_must_say_how_long():
    for row in ("t5", "llama"):
        with pytest.raises(ValueError, match="needs max_length"):
            build(row, **SYNTHESIZER, attention_settings={"mode": "random"})


# ---- attention in blocks

BLOCKS = {"atrous": {"rate": 2}, "local": {"neighbors": 1}, "sparse": {"rate": 2, "causal": True}}


@pytest.mark.parametrize("variant", BLOCKS)
@pytest.mark.parametrize("row", ["bert", "roformer"])
def test_attention_in_blocks_equals_the_mask_of_its_pattern(row, variant, tmp_path, tolerance):
    """With a plain model's checkpoint; then saved as a directory and loaded again."""
    dense = build(row, attention_mask=True)
    dense.save_weights_as_checkpoint(tmp_path / "plain.safetensors")
    options = {"attention_variant": variant, "attention_settings": BLOCKS[variant]}
    sparse = build(row, tmp_path / "plain.safetensors", **options)
    name = "Transformer-0-MultiHeadSelfAttention"
    pattern = np.array([sparse.layers[name].pattern.matrix(5)] * 2)
    want = to_numpy(dense.model([tiny.IDS, tiny.SEGMENTS, pattern]))
    real = tiny.IDS != 0
    np.testing.assert_allclose(to_numpy(sparse.model([tiny.IDS, tiny.SEGMENTS]))[real], want[real], atol=tolerance)
    assert sparse.model.get_layer(name).output[0].shape == (None, None, sparse.hidden_size)
    save_pretrained(sparse.model, None, tmp_path / "saved")
    again = build_transformer_model(tmp_path / "saved")
    np.testing.assert_allclose(to_numpy(again([tiny.IDS, tiny.SEGMENTS]))[real], want[real], atol=tolerance)


@pytest.mark.parametrize(
    "options", [{"application": "lm"}, {"attention_mask": True}, {"attention_caches": {"none": ()}}], ids=str
)
def test_attention_in_blocks_takes_no_other_masks(options):
    with pytest.raises(ValueError, match="takes padding and its own pattern, no other masks"):
        build("bert", attention_variant="local", attention_settings={"neighbors": 1}, **options)
