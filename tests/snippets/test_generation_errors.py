"""What `Generator` refuses, and how it says so; requests at the edge of what it takes."""

import numpy as np
import pytest

from bert4x.backend import keras, runtime
from bert4x.models import build_transformer_model
from bert4x.snippets import BadWords, Greedy, RepetitionPenalty, Sample
from bert4x.snippets.generation import Beam, Generator
from tests.snippets import oracle
from tests.snippets.oracle import PROMPTS, until
from tests.snippets.test_generation import case_of, generate, greedy_of


def test_no_new_tokens():
    assert generate("gpt2", 0) == ([[], [], []], [0.0, 0.0, 0.0])
    assert generate("gpt2", 0, n=2)[0] == [[[], []]] * 3


def test_an_end_token_that_never_comes():
    want = greedy_of("gpt2")[0]
    unused = next(i for i in range(17) if all(i not in tokens for tokens in want))
    assert generate("gpt2", ends=[unused])[0] == want


WRONG = {
    "no prompts": ({"prompts": []}, "at least one"),
    "None": ({"prompts": None}, "list of lists of token ids, at least one; got None"),
    "a generator of prompts": ({"prompts": (p for p in PROMPTS)}, "list of lists of token ids"),
    "nested": ({"prompts": [[[3, 4], [5]]]}, "prompt 0 is"),
    "seed": ({"strategy": Sample(), "seed": "now"}, "seed must be an integer of at least 0; got 'now'"),
    "empty prompt": ({"prompts": [[3], []]}, "prompt 1 has none"),
    "a string": ({"prompts": "Hello"}, "list of lists of token ids.*'Hello'"),
    "strings": ({"prompts": ["Hello", "you"]}, "prompt 0 is 'Hello'"),
    "tokens": ({"prompts": [["He", "##llo"]]}, "token ids, which are integers"),
    "a single list": ({"prompts": [3, 4]}, "a list of token ids.*prompt 0 is 3"),
    "floats": ({"prompts": [[1.5]]}, "which are integers"),
    "beyond the vocabulary": ({"prompts": [[3, 17]]}, "below the vocabulary of 17; prompt 0 has 3 to 17"),
    "negative": ({"prompts": [[-1]]}, "at least 0"),
    "too long": ({"prompts": [[3] * 9]}, "table of 11 positions; a prompt of 9 tokens and max_new_tokens=7 need 15"),
    "negative length": ({"new": -1}, "max_new_tokens must be an integer of at least 0; got -1"),
    "length 1.5": ({"new": 1.5}, "max_new_tokens must be an integer"),
    "n": ({"n": 0}, "n must be an integer of at least 1; got 0"),
    "unknown inputs": ({"inputs": {"Mood": np.zeros((3, 2))}}, r"inputs must be \[\], as.*got \['Mood'\]"),
    "segments": ({"segments": [[0] * 5, [0] * 2, [0] * 4]}, "segments cannot be given: the model has no such input"),
    "next_segment": ({"next_segment": 1}, "next_segment cannot be given"),
    "positions": ({"positions": [[0] * 5, [0] * 2, [0] * 4]}, "positions cannot be given"),
    "decoder prompts": ({"decoder_prompts": [[0]] * 3}, "no encoder"),
    "bad words": ({"processors": [BadWords([[17]])]}, "below the number of logits"),
    "stop strings of a beam": ({"strategy": Beam(2), "stop_strings": ["a"]}, "not Beam"),
    "more than the beam": ({"strategy": Beam(2), "n": 3}, "a beam of 2 has no 3 best hypotheses"),
    "all banned": ({"on_logits": lambda logits, rows: logits - np.inf}, "in step 0.*on_logits"),
    "nothing returned": ({"on_logits": lambda logits, rows: None}, r"must return logits \(3, 17\).*got \(\)"),
    "other shape": ({"on_logits": lambda logits, rows: logits[:1]}, r"must return logits \(3, 17\).*got \(1, 17\)"),
    "infinity": ({"on_logits": lambda logits, rows: logits + np.inf}, "step 0 .from 0. have NaN or .inf"),
    "NaN of a hook": ({"on_logits": lambda logits, rows: logits * np.nan}, "step 0 .from 0. have NaN"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_requests(wrong):
    options, message = WRONG[wrong]
    with pytest.raises(ValueError, match=message):
        generate("gpt2", **options)


@pytest.mark.parametrize(
    "row, options, message",
    [
        ("bert unilm, condition", {"segments": [[0], [0], [0]]}, r"segments must have one number .* prompts of \[5, 2"),
        ("bert unilm, condition", {"segments": [[0] * 5, [0] * 2, [0, 0, 2, 0]]}, "segments.*below 2.*got 0 to 2"),
        ("bert unilm, condition", {"next_segment": 2}, "segments, those of the new tokens included.*got 0 to 2"),
        ("bert unilm, condition", {"next_segment": [1, 1, 1]}, "next_segment must be an integer"),
        ("bert lm, positions", {"positions": [[0] * 5, [0] * 2, [0, 1, 2, 40]]}, "positions.*below 40.*got 0 to 46"),
        ("bert lm, positions", {"positions": [[0] * 5, [0] * 2, [0, 1, 2, 34]]}, "below 40.*got 0 to 40"),
        ("bert unilm, condition", {"inputs": {}}, r"inputs must be \['Condition'\].*got \[\]"),
        ("bert unilm, condition", {"inputs": {"Condition": np.zeros((2, 5))}}, r"Condition is \(2, 5\) for 3 prompts"),
        ("bert lm, positions", {"positions": [[0], [1], [2]]}, "positions must have one number per prompt token"),
        ("t5.1.1", {"prompts": ["Hello"]}, "prompt 0 is 'Hello'"),
        ("bert lm, positions", {"positions": [[0.5] * 5, [0] * 2, [0] * 4]}, "positions must be lists of integers"),
        ("t5.1.1", {"prompts": [[]]}, "prompt 0 has none"),
        ("t5.1.1", {"prompts": np.array([[3, 4, 5], [4, 0, 0]])}, r"token 0 is the padding.*prompt 1 is \[4, 0, 0\]"),
        ("t5.1.1", {"decoder_prompts": [[0], [0, 4], [0, 0]]}, "token 0 is the padding.*prompt 2"),
        ("t5.1.1", {"decoder_prompts": []}, "one per prompt; got 0 for 3"),
        ("t5.1.1", {"decoder_prompts": [[0]]}, "one per prompt; got 1 for 3"),
        ("t5.1.1_decoder", {"prompts": [[3, 4]]}, r"arrays \[C, 12\] of encoder states"),
    ],
)
def test_wrong_requests_of_other_models(row, options, message):
    with pytest.raises(ValueError, match=message):
        generate(row, **options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"strategy": Greedy}, "strategy must be .* an object; got <class"),
        ({"strategy": "beam"}, "strategy must be Greedy.*got 'beam'"),
        ({"strategy": RepetitionPenalty(1.2)}, "strategy must be Greedy.*got RepetitionPenalty"),
        ({"on_logits": 3}, "on_logits must be a function .* got 3"),
        ({"processors": [len]}, "made of processors"),
    ],
)
def test_wrong_types(options, message):
    with pytest.raises(TypeError, match=message):
        generate("gpt2", **options)


@pytest.mark.parametrize("new, last", [(7, 33), (1, 39)])
def test_tables_are_used_to_their_ends(new, last, monkeypatch):
    """The last token is not fed: after position 33 seven tokens need a table of 40."""
    oracle.uncompiled(monkeypatch)
    generator = Generator(case_of("bert lm, positions").builder)
    assert len(generator.generate([[3, 4]], new, positions=[[0, last]])[0]) == new


def test_a_single_processor_is_a_list_of_one(monkeypatch):
    oracle.uncompiled(monkeypatch)
    generator, penalty = Generator(case_of("gpt2").builder), RepetitionPenalty(1.2)
    assert generator.generate(PROMPTS, 3, processors=penalty) == generator.generate(PROMPTS, 3, processors=[penalty])


def test_the_step_of_trouble_is_named():
    """NaN in the row of the position table that step 3 reads; a hook that bans all from step 2 on."""
    table = next(w for w in case_of("gpt2").builder.model.trainable_weights if "Position" in w.path)
    before = runtime.to_numpy(table)
    try:
        table.assign(np.where(np.arange(len(before))[:, None] == 7, np.nan, before))
        with pytest.raises(ValueError, match="step 3 .from 0. have NaN"):
            generate("gpt2")
        assert generate("gpt2", 3)[0] == [tokens[:3] for tokens in greedy_of("gpt2")[0]]
        end = greedy_of("gpt2")[0][0][1]
        assert generate("gpt2", 4, ends=[end])[0][0] == until(greedy_of("gpt2")[0][0], [end])  # it ended before
    finally:
        table.assign(before)
    with pytest.raises(ValueError, match="in step 2 .from 0."):
        generate("gpt2", on_logits=lambda logits, rows: logits - np.inf if len(rows[0][1]) == 2 else logits)


def test_prompts_may_be_arrays(monkeypatch):
    oracle.uncompiled(monkeypatch)
    generator = Generator(case_of("t5.1.1").builder)
    want = generator.generate([[3, 4], [5, 6]], 4, decoder_prompts=[[0, 7], [0, 9]], processors=None)
    assert generator.generate(np.array([[3, 4], [5, 6]]), 4, decoder_prompts=np.array([[0, 7], [0, 9]])) == want
    generator = Generator(case_of("gpt2").builder)  # whose token 0 is a token
    assert generator.generate(np.array([[3, 0, 0]]), 2) == generator.generate([[3, 0, 0]], 2)


def test_models_without_a_position_table_go_on():
    assert len(generate("llama", 20, prompts=[[3] * 20, [4], [5]])[0][0]) == 20


def test_wrong_generators():
    with pytest.raises(ValueError, match="filler_id must be below the number of logits, 17; got 17"):
        Generator(case_of("gpt2").builder, filler_id=17)
    with pytest.raises(TypeError, match="object with build_step; got Sequential. After load_model, build the model"):
        Generator(keras.Sequential())
    with pytest.raises(ValueError, match="an encoder does not generate"):
        Generator(build_transformer_model(None, None, "bert", "encoder", False, **oracle.BERT))
    for end, message in ((17, "end_id must be below the number of logits, 17; got 17"), ("a", "end_id"), (-1, "at le")):
        with pytest.raises(ValueError, match=message):
            Generator(case_of("gpt2").builder, end_id=end)
    silent = Generator(case_of("gpt2").builder)
    with pytest.raises(ValueError, match="stop_strings needs text: give Generator a tokenizer"):
        silent.generate(PROMPTS, 3, stop_strings=["a"])
    with pytest.raises(ValueError, match="needs text"):
        silent.stream(PROMPTS[0], 3, text=True)
    with pytest.raises(ValueError, match="stream takes Greedy"):
        silent.stream(PROMPTS[0], 3, strategy=Beam(2))
    with pytest.raises(TypeError, match="stream writes one continuation and takes decoder_prompts.*; got n, top_k"):
        silent.stream(PROMPTS[0], 3, n=2, top_k=3)
    with pytest.raises(ValueError, match="prompt 0 is"):
        silent.stream(PROMPTS, 3)
    for name in ("start_id", "filler_id"):
        with pytest.raises(ValueError, match=f"{name} must be an integer of at least 0; got 'a'"):
            Generator(case_of("gpt2").builder, **{name: "a"})
    speaking = Generator(case_of("gpt2").builder, tokenizer=object())
    for strings in ([""], [3]):
        with pytest.raises(ValueError, match="stop_strings must be strings of at least one character"):
            speaking.generate(PROMPTS, 3, stop_strings=strings)
