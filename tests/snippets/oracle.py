"""The naive way to generate, as an oracle: tiny models, and loops that run the whole sequence for every token."""

import dataclasses
import functools

import numpy as np

from bert4x.backend import keras, ops, runtime
from bert4x.models import build_transformer_model
from tests.models.reference_weights import randomize

NEW = 7
ROWS_AT_ONCE, LENGTH = 32, 5 + NEW - 1  # of the full graph, so that it has one shape
SIZES = {
    "vocab_size": 17,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
}
TABLE = {**SIZES, "max_position": LENGTH, "hidden_act": "gelu", "final_activation": "linear"}
BERT = {**SIZES, "max_position": LENGTH, "hidden_act": "gelu", "with_mlm": "linear"}
T5 = {**SIZES, "attention_head_size": 5, "hidden_act": ["gelu", "linear"], "with_lm": "linear"}
LLAMA = {**SIZES, "hidden_size": 16, "num_attention_heads": 4, "hidden_act": "silu", "final_activation": "linear"}

# row -> (model, application, configuration)
ROWS = {
    "gpt2": ("gpt2", "lm", TABLE),
    "llama": ("llama", "lm", {**LLAMA, "num_key_value_heads": 2, "sliding_window": 3}),
    "nezha lm": ("nezha", "lm", BERT),
    "roformer lm": ("roformer", "lm", BERT),
    "bert lm, positions": ("bert", "lm", {**BERT, "max_position": 40, "custom_position_ids": True}),
    "bert unilm, condition": ("bert", "unilm", BERT),
    "t5.1.1": ("t5.1.1", "encoder", T5),
    "t5.1.1_decoder": ("t5.1.1_decoder", "encoder", {**T5, "context_mask": True}),
}
PROMPTS = [[3, 7, 1, 12, 5], [9, 2], [4, 16, 8, 8]]
SEGMENTS = [[0, 0, 1, 1, 1], [0, 0], [1, 0, 0, 1]]
POSITIONS = [[0, 1, 2, 8, 9], [4, 5], [3, 3, 2, 20]]
SEEDS = {"nezha lm": 2, "bert lm, positions": 2, "roformer lm": 3, "t5.1.1": 2}  # whose tokens vary most
ALLOWED = np.tile(np.arange(17) > 0, (3, 1))  # the full graph of a BERT takes token 0 for padding


def build(row, **options):
    """A builder with random weights, twice as large as usual so that the tokens vary."""
    model, application, config = ROWS[row]
    if "condition" in row:
        condition = keras.Input((5,), name="Condition")
        options |= {"layer_norm_cond": condition, "additional_input_layers": condition}
    options = {**config, **options}
    builder = build_transformer_model(None, None, model, application, False, **options)
    randomize(builder.model, SEEDS.get(row, 0))
    for variable in builder.model.trainable_variables:
        if len(variable.shape) > 1:
            variable.assign(2 * runtime.to_numpy(variable))
    return builder


@dataclasses.dataclass
class Case:
    """A model and prompts for it; options: what `generate` is to get for them, one item per prompt.

    allowed: bool [P, V], the tokens that may be written after each prompt.
    """

    builder: object
    prompts: list
    options: dict = dataclasses.field(default_factory=dict)
    allowed: object = None

    @classmethod
    def of(cls, row, **options):
        """The case of a row of ROWS."""
        random, given, prompts = np.random.default_rng(3), {}, PROMPTS
        builder = build(row, **options)
        if "bert" in row:
            given["segments"] = SEGMENTS if " lm" in row else [[0] * len(p) for p in PROMPTS]
        if "positions" in row:
            given["positions"] = POSITIONS
        if "condition" in row:
            given["inputs"] = {"Condition": random.standard_normal((3, 5)).astype("float32")}
        if row == "t5.1.1_decoder":
            prompts = [random.standard_normal((len(p), 12)).astype("float32") for p in PROMPTS]
        return cls(builder, prompts, given, ALLOWED)

    @property
    def arguments(self):
        """Arguments of `generate`; segments of 0 are the default."""
        zeros = not any(map(any, self.options.get("segments", ())))
        return {name: x for name, x in self.options.items() if name != "segments" or not zeros}

    @functools.cached_property
    def forward(self):
        """The full graph, compiled."""
        return runtime.jit(self.builder.model)

    def logits(self, rows):
        """Next-token logits float64 [R, V] of rows (number of the prompt, tokens written), and which are allowed."""
        chunks = [rows[i : i + ROWS_AT_ONCE] for i in range(0, len(rows), ROWS_AT_ONCE)]
        logits = np.concatenate([self._logits(chunk) for chunk in chunks]).astype("float64")
        return logits, np.ones_like(logits, bool) if self.allowed is None else self.allowed[[i for i, _ in rows]]

    def _logits(self, rows):
        inputs = [np.zeros([ROWS_AT_ONCE, *(size or LENGTH for size in x.shape[1:])], x.dtype)
                  for x in self.builder.inputs]  # fmt: skip
        lasts = [self._fill(inputs, i, *row) for i, row in enumerate(rows)]
        outputs = self.forward(*inputs)
        outputs = runtime.to_numpy(outputs[0] if isinstance(outputs, (list, tuple)) else outputs)
        return outputs[np.arange(len(rows)), lasts]

    def _fill(self, inputs, i, number, written):
        """Write a row into the inputs; the place of its last token."""
        prompt, count, encoded = self.prompts[number], len(written), self.builder.build_context() is not None
        segments = self.options.get("segments", {number: [0] * len(prompt)})[number]
        positions = list(self.options.get("positions", {number: range(len(prompt))})[number])
        following = segments[-1] if self.builder.next_segment is None else self.builder.next_segment
        values = {
            "Input-Token": prompt if encoded else [*prompt, *written],
            "Input-Segment": [*segments, *[following] * count],
            "Input-Position": [*positions, *range(positions[-1] + 1, positions[-1] + 1 + count)],
            "Encoder-Input-Token": prompt,
            "Input-Context": prompt,
            "Input-Context-Mask": [True] * len(prompt),
            "Decoder-Input-Token": [0, *written],
            **{name: rows[number] for name, rows in self.options.get("inputs", {}).items()},
        }
        for array, x in zip(inputs, self.builder.inputs, strict=True):
            array[i, : len(values[x.name])] = values[x.name]
        return count if encoded else len(prompt) + count - 1


def uncompiled(monkeypatch):
    """Let TensorFlow run what it would compile; that takes seconds for each structure, and the others little."""
    if runtime.backend() == "tensorflow":
        monkeypatch.setattr(runtime, "jit", _eager)


def _eager(function, *, model=None, xla=False):
    if isinstance(function, keras.Layer):
        return lambda *tensors: function(tensors[0] if len(tensors) == 1 else list(tensors))
    return lambda *tensors: function(*keras.tree.map_structure(ops.convert_to_tensor, tensors))


def until(tokens, ends):
    """Tokens up to the first end token."""
    found = [i for i, token in enumerate(tokens) if token in ends]
    return tokens[: found[0] + 1] if found else tokens


def log_softmax(logits):
    """log p of each row."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def drawn(logits, number):
    """The first token whose cumulative probability exceeds the number."""
    p = np.exp(log_softmax(logits))
    return int(np.flatnonzero(np.cumsum(p) > number)[0])


def one_by_one(case, new, ends=(), *, n=1, uniforms=None):
    """(tokens, scores) of greedy search, or of sampling with uniforms [steps, rows]: n lists per prompt."""
    rows = [(number, []) for number in range(len(case.prompts)) for _ in range(n)]
    scores = [0.0] * len(rows)
    for step in range(new):
        live = [i for i, (_, written) in enumerate(rows) if not written or written[-1] not in ends]
        if not live:
            break
        logits, allowed = case.logits([rows[i] for i in live])
        for i, logs in zip(live, log_softmax(np.where(allowed, logits, -np.inf)), strict=True):
            token = int(np.argmax(logs)) if uniforms is None else drawn(logs, uniforms[step, i])
            rows[i][1].append(token)
            scores[i] += logs[token]
    groups = range(0, len(rows), n)
    return [[rows[i + j][1] for j in range(n)] for i in groups], [scores[i : i + n] for i in groups]


def beam(case, new, ends, *, size, penalty=0.0, early=False):
    """For each prompt the ended hypotheses [(score, tokens)], best first, by the rules that `Beam` documents.

    What is not allowed leaves the log-probabilities of the others as they are.
    """
    return [_beam(case, number, new, ends, size, penalty, early) for number in range(len(case.prompts))]


def _beam(case, number, new, ends, size, penalty, early):
    running, pool = [(0.0, [])], []
    for length in range(1, new + 1):
        logits, allowed = case.logits([(number, written) for _, written in running])
        logs = np.where(allowed, log_softmax(logits), -np.inf)
        pairs = zip(running, logs, strict=True)
        found = [(s + x[t], [*w, t]) for (s, w), x in pairs for t in np.flatnonzero(np.isfinite(x)).tolist()]
        found = sorted(found, key=lambda pair: -pair[0])
        ended = [h for h in found[:size] if h[1][-1] in ends or length == new]
        pool = sorted(pool + [(s / length**penalty, w) for s, w in ended], key=lambda pair: -pair[0])[:size]
        running = [h for h in found if h[1][-1] not in ends][:size]
        if not running or is_done(running[0][0], pool, size, penalty, early, length, new):
            break
    return pool


def is_done(best, pool, size, penalty, early, length, new):
    """Whether what runs cannot enter the pool."""
    if len(pool) < size:
        return False
    lengths = {True: None, False: [length], "never": [length, new]}[early]
    return lengths is None or max(best / n**penalty for n in lengths) <= pool[-1][0]


def every_sequence(case, number, new, ends):
    """All sequences of up to `new` tokens that end or are full: {tokens: sum of log-probabilities}."""
    running, done = {(): 0.0}, {}
    for length in range(1, new + 1):
        logits, _ = case.logits([(number, list(written)) for written in running])
        pairs = zip(running.items(), log_softmax(logits), strict=True)
        grown = {(*w, t): s + x[t] for (w, s), x in pairs for t in np.flatnonzero(np.isfinite(x)).tolist()}
        done |= {w: s for w, s in grown.items() if w[-1] in ends or length == new}
        running = {w: s for w, s in grown.items() if w[-1] not in ends}
    return done
