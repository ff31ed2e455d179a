"""The numbers of the specification: tiny models of every BERT family, and the files that hold their weights."""

import numpy as np
import pytest

from bert4x.models import build_transformer_model, open_checkpoint
from tests.models.reference_weights import CHECKS_TOLERANCE, load_checks, rule_weights, to_numpy

MLM = {"with_mlm": "linear"}
# The configurations are Google's, where NEZHA's 'gelu' is the tanh form (decision 9); the numbers are of the erf form.
NEZHA = {"hidden_act": "gelu_erf"}

# (case, output in the file) -> options, and the place in [head, hidden states h_0 h_1 h_2] where our model returns it.
OUTPUTS = {
    ("bert", "embedding"): ({}, -3),
    ("bert", "block_0"): ({}, -2),
    ("bert", "last"): ({}, -1),
    ("bert", "pooled"): ({"with_pool": True}, 0),
    ("bert", "nsp_logits"): ({"with_nsp": True}, 0),
    ("bert", "mlm_logits"): (MLM, 0),
    ("bert", "lm_last"): ({"application": "lm"}, -1),
    ("bert", "unilm_last"): ({"application": "unilm"}, -1),
    ("albert", "last"): ({}, -1),
    ("albert", "mlm_logits"): (MLM, 0),
    ("nezha", "last"): (NEZHA, -1),
    ("nezha", "last_max_relative_position_2"): ({**NEZHA, "max_relative_position": 2}, -1),
    ("roformer", "last"): ({}, -1),
    ("roformer", "mlm_logits"): (MLM, 0),
    ("roformer_v2", "last"): ({}, -1),
    ("roformer_v2", "mlm_logits"): (MLM, 0),
    ("electra", "last"): ({}, -1),
    ("electra", "discriminator_logits"): ({"with_discriminator": "linear"}, 0),
}
FAMILIES = sorted({case for case, _ in OUTPUTS})
ROWS = [(case, case, output) for case, output in OUTPUTS]
ROWS += [("albert_unshared", case, output) for case, output in OUTPUTS if case == "albert"]

# Options that build everything a case has weights for.
COMPLETE = {
    "bert": {"with_nsp": True, "with_mlm": True},
    "albert": {"with_nsp": True, "with_mlm": True},
    "nezha": {"with_mlm": True},
    "roformer": {"with_mlm": True},
    "roformer_v2": {},
    "electra": {"with_discriminator": True},
}


@pytest.fixture(scope="module")
def cases(shared_data):
    path = shared_data.parent / "spec" / "checks_models.json"
    if not path.is_file():
        pytest.skip(f"no numbers to check against: {path} is not there")
    return load_checks(path)


def run(case, model, **options):
    """Outputs of our model on the inputs of a case."""
    weights = rule_weights(case["weights"])
    model = build_transformer_model(case["config"], weights, model=model, output_hidden_states=True, **options)
    outputs = model([np.array(case["inputs"]["ids"]), np.array(case["inputs"]["segments"])])
    return [to_numpy(output) for output in outputs]


def test_every_listed_output_is_checked(cases):
    listed = {(name, output) for name in FAMILIES for output in cases[name]["outputs"]}
    assert listed == set(OUTPUTS)


@pytest.mark.parametrize(("model", "name", "output"), ROWS, ids=[f"{row[0]}-{row[2]}" for row in ROWS])
def test_output(cases, model, name, output):
    case = cases[name]
    options, place = OUTPUTS[name, output]
    ours, wanted = run(case, model, **options)[place], np.array(case["outputs"][output])
    if output == "nsp_logits":  # the head gives probabilities
        wanted = np.exp(wanted) / np.exp(wanted).sum(-1, keepdims=True)
    assert ours.shape == wanted.shape
    if wanted.ndim == 3:
        valid = np.array(case["inputs"]["valid"], dtype=bool)
        ours, wanted = ours[valid], wanted[valid]
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=CHECKS_TOLERANCE)


@pytest.mark.parametrize("name", FAMILIES)
def test_written_file_is_that_of_the_case(cases, name, tmp_path):
    """Names, shapes and bits of the TensorFlow checkpoint that we write are those of the weights that were read."""
    weights = rule_weights(cases[name]["weights"])
    builder = build_transformer_model(
        cases[name]["config"], weights, model=name, return_keras_model=False, **COMPLETE[name]
    )
    assert builder.load_report.unused == []
    builder.save_weights_as_checkpoint(tmp_path / "bert_model.ckpt")
    with open_checkpoint(tmp_path / "bert_model.ckpt") as checkpoint:
        assert set(checkpoint.names) == set(weights)
        for variable, array in weights.items():
            np.testing.assert_array_equal(checkpoint.read(variable), array, err_msg=variable, strict=True)
