"""`Generator`: prompts in, continuations out, over the cached step graph of any generative model."""

import collections
import dataclasses
from typing import ClassVar

import numpy as np

from bert4x.backend import keras, ops, runtime
from bert4x.snippets.filters import ABSENT
from bert4x.snippets.inference import power_of_two
from bert4x.snippets.loops import ABSENT_SCORE, NEVER, BeamLoop, SampleLoop, further_inputs
from bert4x.snippets.processors import Chain, Processor, check_real
from bert4x.snippets.requests import (
    check_states,
    check_tables,
    checked_count,
    checked_ids,
    checked_prompts,
    checked_strategy,
    checked_strings,
    counted,
    filled,
    loop_feeds,
    padded_right,
    prompt_feeds,
)
from bert4x.snippets.sampling import Greedy


@dataclasses.dataclass(frozen=True)
class Beam:
    """Beam search: the hypotheses with the greatest sum of log-probabilities / length ** length_penalty.

    Args:
        size: number of running hypotheses K per prompt.
        length_penalty: 0 for none; with 1 the mean log-probability of a token decides (transformers' default).
        early_stopping: True: stop with K ended hypotheses. False: when the best running one, ended now, would not be
            among the K best. "never": when it could not be later either. Without length penalty the last two are equal
            and exact.
    """

    size: int
    length_penalty: float = 0.0
    early_stopping: object = False
    needs_uniforms: ClassVar[bool] = False

    def __post_init__(self):
        checked_count("Beam.size", self.size, 1)
        check_real(self, "length_penalty")
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            raise ValueError(f"Beam.early_stopping must be True, False or 'never'; got {self.early_stopping!r}")

    def arrays(self):
        """What may change without a new compilation."""
        return {"length_penalty": np.float32(self.length_penalty)}

    @property
    def structure(self):
        """What is compiled."""
        return ("Beam", self.size, self.early_stopping)


class Generator:
    """Writes continuations of prompts, token by token, over the cached step of a model.

    The whole loop is one compiled function (TensorFlow: XLA; JAX; torch runs eagerly). With `on_logits`, stop strings
    or `stream`, Python steps over compiled parts. Batches are filled to powers of two, and prompts (on the left) and
    numbers of new tokens to buckets, so there are few shapes; temperatures, penalties and the like are no part of
    what is compiled.

    Args:
        source: a model of `build_transformer_model` with application lm or unilm or a T5, its builder, or anything
            else with `build_step(max_length, last_only=True)`.
        end_id: token, or list of tokens, that ends a continuation; None for none.
        start_id: first token of the decoder, where the prompts go to an encoder.
        filler_id: token that follows an ended row in the buffer; it is never returned.
        tokenizer: for stop strings and text: anything with `decode(ids)`.
    """

    def __init__(self, source, end_id=None, *, start_id=0, filler_id=0, tokenizer=None):
        self.builder = getattr(source, "builder", source)
        if not hasattr(self.builder, "build_step"):
            raise TypeError(
                "Generator needs a model of build_transformer_model, or an object with build_step; got "
                f"{type(source).__name__}. After load_model, build the model anew and load the weights."
            )
        self.step = self.builder.build_step(last_only=True)
        self._context_model = self.builder.build_context() if hasattr(self.builder, "build_context") else None
        ends = [] if end_id is None else end_id if isinstance(end_id, (list, tuple)) else [end_id]
        self.end_ids = sorted({checked_count("end_id", i, 0) for i in ends})
        vocab_size = self.step.output["logits"].shape[-1]
        if self.end_ids and self.end_ids[-1] >= vocab_size:
            raise ValueError(f"end_id must be below the number of logits, {vocab_size}; got {self.end_ids[-1]}")
        self.start_id, self.filler_id = checked_count("start_id", start_id, 0), checked_count("filler_id", filler_id, 0)
        if self.filler_id >= vocab_size:  # the model reads it, if only in rows that have ended
            raise ValueError(f"filler_id must be below the number of logits, {vocab_size}; got {self.filler_id}")
        self.tokenizer = tokenizer
        self._compiled = {}

    def generate(
        self,
        prompts,
        max_new_tokens=64,
        *,
        strategy=None,
        processors=(),
        n=1,
        segments=None,
        next_segment=None,
        positions=None,
        inputs=None,
        decoder_prompts=None,
        stop_strings=(),
        on_logits=None,
        seed=None,
        return_scores=False,
    ):
        """Continuations of a batch of prompts.

        Args:
            prompts: ragged list of lists of token ids, without padding; for an encoder-decoder those of the encoder
                (or, for a decoder alone, its states as arrays [C, D]).
            max_new_tokens: at most so many tokens per continuation, the end token counted.
            strategy: `Greedy()` (the default), `Sample(...)` or `Beam(...)`.
            processors: of the logits, such as `RepetitionPenalty`; in transformers' order, whatever the order given.
            n: continuations per prompt: samples, or the best hypotheses of a beam.
            segments: ids of the prompts' tokens, ragged alike; 0 by default.
            next_segment: of the new tokens; by default 1 for unilm, else that of the prompt's last token.
            positions: of the prompts' tokens, for a model with custom_position_ids; they go on by 1.
            inputs: further inputs of the model, {name: array [B, ...]}.
            decoder_prompts: for an encoder-decoder, first tokens of the decoder; [[start_id]] for each by default.
            stop_strings: a continuation whose text contains one of them ends; needs a tokenizer.
            on_logits: function (logits float [rows, V], rows) -> logits, called at each step for the rows that go on;
                `rows` lists for each the number of its prompt and the tokens written so far. -inf forbids a token. A
                beam passes log-probabilities, and those of the tokens that are left are not scaled up.
            seed: of the draws; None takes one from NumPy's global generator, which `set_seed` seeds.
            return_scores: also return the sum of the log-probabilities of each continuation's tokens (for a beam
                divided by length ** length_penalty).
        Returns: a list of token ids per prompt, the end token included; with n > 1 a list of n such lists. With
            return_scores a pair (tokens, scores) of such lists.
        Raises: ValueError for prompts that are empty, padded, or exceed the position table, for NaN logits, or a step
            in which no token is allowed.
        """
        request = self._request(
            prompts, max_new_tokens, strategy, processors, n, segments=segments, next_segment=next_segment,
            positions=positions, inputs=inputs, decoder_prompts=decoder_prompts, seed=seed, scored=return_scores,
        )
        if not max_new_tokens:
            empty = [[[]] * n] * request.count, [[0.0] * n] * request.count
            return _results(*empty, n=n, scored=return_scores)
        if stop_strings and isinstance(strategy, Beam):
            raise ValueError("stop_strings are looked for in one text per row: use Greedy() or Sample(...), not Beam")
        if on_logits is None and not stop_strings:
            state = self._part(request.loop, "run")(request.feeds)
        else:
            states = self._steps(request, on_logits, self._stop_check(stop_strings))
            state = collections.deque(states, maxlen=1).pop()
        tokens, scores = self._collected(request, state)
        return _results(tokens, scores, n=n, scored=return_scores)

    def stream(self, prompt, max_new_tokens=64, *, text=False, stop_strings=(), on_logits=None, **options):
        """An iterator over the new tokens of one prompt, or with `text` over pieces of its text, as they come.

        Args:
            prompt: list of token ids; further arguments as for `generate`, a beam excepted.
            text: yield text; a piece may be empty as long as a character is incomplete.
        """
        if not options.keys() <= _STREAMED:
            raise TypeError(
                f"stream writes one continuation and takes {', '.join(sorted(_STREAMED))} of generate's options; got "
                f"{', '.join(sorted(options.keys() - _STREAMED))}"
            )
        if isinstance(options.get("strategy"), Beam):
            raise ValueError("a beam decides late which tokens it keeps: stream takes Greedy() or Sample(...)")
        if text:
            self._needs_tokenizer("stream(text=True)")
        if not checked_count("max_new_tokens", max_new_tokens, 0):
            return iter(())
        given = {name: [value] for name, value in options.items() if name in _PER_PROMPT and value is not None}
        request = self._request([prompt], max_new_tokens, **{**options, **given})
        tokens = self._new_tokens(request, on_logits, self._stop_check(stop_strings))
        return self._pieces(tokens) if text else tokens

    # ---- one request -----------------------------------------------------------------------------------------

    def _request(self, prompts, max_new_tokens, strategy=None, processors=(), n=1, *, segments=None, next_segment=None,
                 positions=None, inputs=None, decoder_prompts=None, seed=None, scored=False):
        checked_count("max_new_tokens", max_new_tokens, 0)
        checked_count("n", n, 1)
        strategy = Greedy() if strategy is None else checked_strategy(strategy)
        chain = Chain.in_order([processors] if isinstance(processors, Processor) else processors or ())
        chain.check(self.step.output["logits"].shape[-1])
        count, batch = counted(prompts), power_of_two(len(prompts))
        self._check_inputs(inputs or {}, count, segments=segments, next_segment=next_segment, positions=positions)
        same = {name: filled(x, batch) for name, x in (inputs or {}).items()}
        if self._context_model is not None:
            same |= self._context(prompts)
            prompts = [[self.start_id]] * count if decoder_prompts is None else decoder_prompts
        elif decoder_prompts is not None:
            raise ValueError("decoder_prompts are for encoder-decoders and decoders; this model has no encoder")
        if len(prompts) != count:
            raise ValueError(f"decoder_prompts must be one per prompt; got {len(prompts)} for {count} prompts")
        prompts = checked_prompts(prompts, self.builder, max_new_tokens)
        loop = self._loop(strategy, chain, n, scored)
        feeds = prompt_feeds(
            prompts, segments, positions, self.step.input,
            next_segment=getattr(self.builder, "next_segment", None) if next_segment is None else next_segment,
        )
        check_tables(feeds, self.builder, max_new_tokens)
        feeds |= loop_feeds(
            max(max_new_tokens, 1), self.end_ids, self.filler_id,
            chain=chain, sampler=strategy, seed=seed, rows=batch * loop.copies,
        )
        feeds["same"] = same
        return _Request(loop, feeds, count, n, feeds["prompt"]["token"].shape[1])

    def _loop(self, strategy, chain, n, scored):
        if isinstance(strategy, Beam):
            if n > strategy.size:
                raise ValueError(f"a beam of {strategy.size} has no {n} best hypotheses: n must be at most its size")
            return BeamLoop(self.step, chain, strategy.size, scored, strategy.early_stopping)
        return SampleLoop(self.step, chain, n, scored, strategy)

    def _context(self, sources):
        """Keys, values and mask of the encoder states of these prompts."""
        wanted = self._context_model.inputs[0]
        if len(wanted.shape) == 2:
            builder = self.builder
            sources = checked_ids(sources, builder.vocab_size, pads=getattr(builder, "mask_zero", False))
        else:
            check_states(sources, wanted.shape[-1])
        array, mask = padded_right(sources, power_of_two(len(sources)))
        made = self._part(None, "context")(array)
        return {**made, "context_mask": ops.convert_to_tensor(mask)}

    def _check_inputs(self, inputs, count, **roles):
        needed = {name for name in further_inputs(self.step) if not name.startswith("context_")}
        if needed != set(inputs):
            raise ValueError(f"inputs must be {sorted(needed)}, as the model was built; got {sorted(inputs)}")
        for name, array in inputs.items():
            if np.shape(array)[:1] != (count,):
                raise ValueError(f"inputs must have a row per prompt; {name} is {np.shape(array)} for {count} prompts")
        for name, given in roles.items():
            if given is not None and name.removeprefix("next_").removesuffix("s") not in self.step.input:
                raise ValueError(f"{name} cannot be given: the model has no such input; leave it out")

    # ---- compiled parts --------------------------------------------------------------------------------------

    def _part(self, loop, name):
        """A compiled part of a loop; the same one for loops of the same structure."""
        key = name, None if loop is None else _structure(loop)
        if key not in self._compiled:
            if name == "context":
                self._compiled[key] = runtime.jit(self._context_model)
            else:
                self._compiled[key] = runtime.jit(getattr(loop, name), model=self.step, xla=True)
        return self._compiled[key]

    def _steps(self, request, on_logits, is_stopped):
        """The state after each token; Python sees the logits and may end rows."""
        if on_logits is not None and not callable(on_logits):
            raise TypeError(f"on_logits must be a function (logits, rows) -> logits; got {on_logits!r:.80}")
        loop, feeds = request.loop, _as_tensors(request.feeds)
        state, logits = self._part(loop, "begin")(feeds)
        while True:
            if on_logits is not None:
                logits = self._hooked(request, on_logits, state, logits)
            state = self._part(loop, "choose")(feeds, state, logits)
            self._check(state)
            if is_stopped is not None:
                state = {**state, "finished": self._stopped(request, state, is_stopped)}
            yield state
            if not runtime.to_numpy(loop.running(feeds, state)):
                return
            state, logits = self._part(loop, "forward")(feeds, state)

    def _hooked(self, request, on_logits, state, logits):
        """The logits with what `on_logits` makes of those of the rows that go on."""
        logits = np.array(runtime.to_numpy(logits))
        live = np.flatnonzero(runtime.to_numpy(request.loop.live(state)))
        written = runtime.to_numpy(state["tokens"])[live, request.size : int(state["length"])].tolist()
        numbers = (live // request.loop.copies).tolist()
        changed = np.asarray(on_logits(logits[live], list(zip(numbers, written, strict=True))), "float32")
        if changed.shape != logits[live].shape:
            raise ValueError(f"on_logits must return logits {logits[live].shape}, as it gets them; got {changed.shape}")
        logits[live] = changed
        return logits

    def _stopped(self, request, state, is_stopped):
        finished = runtime.to_numpy(state["finished"]).copy()
        written = runtime.to_numpy(state["tokens"])[:, request.size : int(state["length"])]
        for row in np.flatnonzero(~finished):
            finished[row] = is_stopped(written[row].tolist())
        return finished

    def _stop_check(self, stop_strings):
        if not stop_strings:
            return None
        self._needs_tokenizer("stop_strings")
        strings = checked_strings(stop_strings)
        return lambda ids: any(string in self.tokenizer.decode(ids) for string in strings)

    def _needs_tokenizer(self, what):
        if self.tokenizer is None:
            raise ValueError(f"{what} needs text: give Generator a tokenizer")

    @staticmethod
    def _check(state):
        """Raise for logits that were NaN, and for a step in which nothing was allowed."""
        nan, empty = int(state["nan_step"]), int(state["empty_step"])
        if nan != NEVER:
            raise ValueError(
                f"logits must be numbers; those of step {nan} (from 0) have NaN or +inf. Check weights and on_logits."
            )
        if empty != NEVER:
            raise ValueError(
                f"at least one token must be allowed; in step {empty} (from 0) all logits are at or below {ABSENT:g}. "
                "Check the processors and on_logits."
            )

    # ---- results ---------------------------------------------------------------------------------------------

    def _collected(self, request, state):
        """(tokens, scores): for each prompt a list of n."""
        self._check(state)
        state = {name: runtime.to_numpy(state[name]) for name in state if name != "cache"}
        if isinstance(request.loop, BeamLoop):
            tokens, counts, scores = state["pool"], state["pool_count"], state["pool_score"]
        else:
            names, shape = ("tokens", "count", "score"), (-1, request.loop.copies)
            tokens, counts, scores = (state[name].reshape(*shape, *state[name].shape[1:]) for name in names)
        kept = scores > ABSENT_SCORE / 2  # a beam may have found fewer than n
        found = [np.flatnonzero(row)[: request.n] for row in kept[: request.count]]
        ends = request.size + counts
        texts = [[tokens[i, j, request.size : ends[i, j]].tolist() for j in row] for i, row in enumerate(found)]
        return texts, [[float(scores[i, j]) for j in row] for i, row in enumerate(found)]

    def _new_tokens(self, request, on_logits, is_stopped):
        for state in self._steps(request, on_logits, is_stopped):
            yield int(runtime.to_numpy(state["tokens"])[0, int(state["length"]) - 1])

    def _pieces(self, tokens):
        """Pieces of text; what is incomplete waits for more tokens."""
        ids, shown = [], ""
        for token in tokens:
            ids.append(token)
            text = self.tokenizer.decode(ids)
            if not text.endswith("\N{REPLACEMENT CHARACTER}"):
                yield text[len(shown) :]
                shown = text
        yield self.tokenizer.decode(ids)[len(shown) :]


_PER_PROMPT = ("segments", "positions", "decoder_prompts")  # what `generate` takes a list of
_STREAMED = {"strategy", "processors", "next_segment", "inputs", "seed", *_PER_PROMPT}


@dataclasses.dataclass(frozen=True)
class _Request:
    """A loop with its feeds; count: prompts; n: results for each; size: slots of the prompts."""

    loop: object
    feeds: dict
    count: int
    n: int
    size: int


def _structure(loop):
    """What a compiled loop depends on besides the shapes of its feeds."""
    sampler = getattr(loop, "sampler", None)
    stopping = getattr(loop, "early_stopping", None)
    return type(loop), loop.copies, loop.scored, loop.chain.structure, stopping, sampler and sampler.structure


def _as_tensors(feeds):
    return keras.tree.map_structure(ops.convert_to_tensor, feeds)


def _results(tokens, scores, *, n, scored):
    if n == 1:
        tokens, scores = [rows[0] for rows in tokens], [rows[0] for rows in scores]
    return (tokens, scores) if scored else tokens
