"""The loops that write token by token: sampling (greedy too) and beam search, as pure functions of feeds and state.

A loop is `begin`, `choose`, then `forward` and `choose` as long as `running` says so. All of them compile, so a whole
generation is one compiled function (`run`), or its parts are compiled and Python steps between them.

Letters: B prompts, N = B * copies rows, P slots of the prompt, L slots of the buffer, V vocabulary.
"""

import dataclasses

from bert4x.backend import ops
from bert4x.snippets.filters import ABSENT, exhausted, is_finite
from bert4x.snippets.processors import Chain, Context

ABSENT_SCORE = -1e9  # of a hypothesis that does not exist
NEVER = 2**30  # the step of an event that did not occur


def empty_cache(step, batch, slots):
    """The caches of a step model before anything is written: {name: zeros [batch, slots, ...]}."""
    caches = [x for x in step.inputs if x.name.startswith(("key_", "value_"))]
    return {x.name: ops.zeros((batch, slots, *x.shape[2:]), x.dtype) for x in caches}


def further_inputs(step):
    """Names of what a step model takes besides tokens, their segments and positions, slots and caches."""
    own = ("token", "segment", "position", "start", "padding")
    return [x.name for x in step.inputs if x.name not in own and not x.name.startswith(("key_", "value_"))]


@dataclasses.dataclass(frozen=True)
class Loop:
    """What is compiled into a loop; all else is in the feeds.

    step: the model of one step, dict -> dict, whose logits are those of the last token (`build_step`).
    chain: processors of the logits.
    copies: rows per prompt: samples, or beams.
    scored: also add up the log-probabilities of the tokens.

    Feeds, a dict of tensors:
        prompt {token, segment, ...: [B, P]}    padding [B]           live bool [B]: False for rows that fill a batch
        limit [] new tokens                     spare [L - P] zeros   stops [n] stop tokens      filler [] token
        segment [B, 1] of new tokens            position [B, 1] of the first new token
        same {name: tensor} inputs of the step that stay, [B, ...]
        chain, sampler: their arrays            uniforms [L - P, N]
    State: tokens [N, L]; length [] slots filled; cache; finished [N]; score [N]; count [N] tokens written;
        nan_step, empty_step [].
    """

    step: object
    chain: Chain
    copies: int
    scored: bool

    def run(self, feeds):
        """The final state, without the caches."""
        state, logits = self.begin(feeds)
        state = self.choose(feeds, state, logits)
        (state,) = ops.while_loop(
            lambda state: self.running(feeds, state), lambda state: (self.advance(feeds, state),), (state,)
        )
        return {name: value for name, value in state.items() if name != "cache"}

    def advance(self, feeds, state):
        """One more token."""
        return self.choose(feeds, *self.forward(feeds, state))

    def begin(self, feeds):
        """Prefill: (state, logits [N, V]) after the prompts."""
        tokens, spare = feeds["prompt"]["token"], feeds["spare"]
        (batch, length), slots = tokens.shape, tokens.shape[1] + spare.shape[0]
        cache = empty_cache(self.step, batch, slots)
        made = self._call({**feeds["prompt"], **feeds["same"], **cache}, feeds["padding"], 0)
        made = {name: self.spread(x) for name, x in made.items()}
        logits = made.pop("logits")
        buffer = ops.concatenate([tokens, ops.broadcast_to(spare, (batch, spare.shape[0]))], axis=1)
        state = {"tokens": self.spread(buffer), "length": ops.convert_to_tensor(length, "int32"), "cache": made}
        return {**state, **self.start(feeds)}, logits

    def start(self, feeds):
        """The rest of the state before the first new token."""
        live = self.spread(feeds["live"])
        never = ops.convert_to_tensor(NEVER, "int32")
        score, count = ops.zeros(live.shape, "float32"), ops.zeros(live.shape, "int32")
        troubles = {"nan_step": never, "empty_step": never}
        return {"finished": ops.logical_not(live), "score": score, "count": count, **troubles}

    def spread(self, x):
        """[B, ...] -> [N, ...]: each prompt's row `copies` times."""
        return x if self.copies == 1 else ops.repeat(x, self.copies, axis=0)

    def forward(self, feeds, state):
        """(state with longer caches, logits [N, V]) from the tokens chosen last."""
        last = state["length"] - 1
        prompt_length = feeds["prompt"]["token"].shape[1]
        given = {
            # Where Python steps over this part, XLA on TensorFlow compiles a slice anew for each place, a take once.
            "token": ops.take(state["tokens"], last, axis=1)[:, None],
            "segment": self.spread(feeds["segment"]),
            "position": self.spread(feeds["position"]) + (last - prompt_length),
        }
        given = {name: x for name, x in given.items() if name in feeds["prompt"]}
        same = {name: self.spread(x) for name, x in feeds["same"].items()}
        made = self._call({**given, **same, **state["cache"]}, self.spread(feeds["padding"]), last)
        logits = made.pop("logits")
        return {**state, "cache": made}, logits

    def _call(self, given, padding, start):
        start = ops.convert_to_tensor(start, "int32")
        made = self.step({**given, "padding": padding, "start": start}, training=False)
        return {**made, "logits": made["logits"][:, -1]}

    def context(self, feeds, state):
        """What processors may look at."""
        prompt_length = feeds["prompt"]["token"].shape[1]
        written = state["length"] - prompt_length
        padding = self.spread(feeds["padding"])
        prompt_length = ops.convert_to_tensor(prompt_length, "int32")
        return Context(state["tokens"], state["length"], padding, prompt_length, written)

    def live(self, state):
        """bool [N]: the rows that are being extended."""
        return ops.logical_not(state["finished"])

    def troubles(self, before, step, logits, empty):
        """The first steps in which a live row had NaN logits, or in which one was `empty`: had no token to go on with.

        before: the state in which the logits were made.
        """
        nan = ops.logical_and(self.live(before), ops.logical_not(is_finite(logits)))
        return {
            "nan_step": ops.minimum(before["nan_step"], ops.where(ops.any(nan), step, NEVER)),
            "empty_step": ops.minimum(before["empty_step"], ops.where(ops.any(empty), step, NEVER)),
        }

    def running(self, feeds, state):
        """Whether another token is to be written."""
        written = state["length"] - feeds["prompt"]["token"].shape[1]
        sound = ops.minimum(state["nan_step"], state["empty_step"]) == NEVER
        return ops.logical_and(ops.logical_and(written < feeds["limit"], sound), self.is_open(feeds, state))

    def is_open(self, feeds, state):
        """Whether a row may still change."""
        return ops.logical_not(ops.all(state["finished"]))


def is_stop(tokens, stops):
    """Whether each token is one of the stop tokens."""
    return ops.any(ops.expand_dims(tokens, -1) == stops, axis=-1)


def exists(score):
    """Whether hypotheses of these scores are any."""
    return score > ABSENT_SCORE / 2


@dataclasses.dataclass(frozen=True)
class SampleLoop(Loop):
    """Each row on its own: the most probable token, or one drawn.

    sampler: `Greedy` or `Sample`.
    """

    sampler: object = None

    def choose(self, feeds, state, logits):
        """State with the next token of each row."""
        context = self.context(feeds, state)
        processed = self.chain(logits, context, feeds["chain"])
        token = self.sampler(processed, ops.take(feeds["uniforms"], context.step, axis=0), feeds["sampler"])
        live = self.live(state)
        token = ops.where(live, token, feeds["filler"])
        score = state["score"]
        if self.scored:
            logs = ops.take_along_axis(ops.log_softmax(processed, axis=-1), token[:, None], axis=1)[:, 0]
            score = score + ops.where(live, logs, 0.0)
        return {
            **state,
            **self.troubles(state, context.step, logits, ops.logical_and(live, exhausted(processed))),
            "tokens": ops.slice_update(state["tokens"], (0, state["length"]), token[:, None]),
            "length": state["length"] + 1,
            "finished": ops.logical_or(state["finished"], is_stop(token, feeds["stops"])),
            "score": score,
            "count": state["count"] + ops.cast(live, "int32"),
        }


@dataclasses.dataclass(frozen=True)
class BeamLoop(Loop):
    """Beam search with K = `copies` running hypotheses per prompt, and a pool of the K best that ended.

    A step ranks all extensions. Those among the K best that end enter the pool, and the K best that do not end run on.
    At the limit all end. The pool ranks by score / length ** length_penalty.

    early_stopping: True: a prompt is done when its pool is full. False: when the best running hypothesis, were it to
        end now, could not enter the full pool. "never": when it could not at any later length. And when nothing runs.
    State besides: pool [B, K, L], pool_score and pool_count [B, K]; score [B, K] of the running ones; done [B].
    """

    early_stopping: object = False

    def start(self, feeds):
        batch, slots = feeds["live"].shape[0], feeds["prompt"]["token"].shape[1] + feeds["spare"].shape[0]
        score = ops.full((batch, self.copies), ABSENT_SCORE, "float32")
        return {
            **super().start(feeds),
            "score": ops.slice_update(score, (0, 0), ops.zeros((batch, 1))),  # all copies are equal at first
            "pool": ops.zeros((batch, self.copies, slots), "int32"),
            "pool_score": score,
            "pool_count": ops.zeros((batch, self.copies), "int32"),
            "done": ops.logical_not(feeds["live"]),
        }

    def _call(self, given, padding, start):
        # Processors and on_logits act on log-probabilities, as they do in transformers.
        made = super()._call(given, padding, start)
        return {**made, "logits": ops.log_softmax(made["logits"], axis=-1)}

    def live(self, state):
        return ops.logical_and(self.spread(~state["done"]), ops.reshape(exists(state["score"]), (-1,)))

    def choose(self, feeds, state, logits):
        """State after the hypotheses have been extended."""
        before, context = state, self.context(feeds, state)
        batch, beams, vocab = *state["score"].shape, logits.shape[-1]
        logs = self.chain(logits, context, feeds["chain"])
        logs = ops.where(logs > ABSENT, logs, ABSENT_SCORE)
        total = state["score"][:, :, None] + ops.reshape(logs, (batch, beams, vocab))
        # Each hypothesis can end in as many ways as there are stop tokens; so enough are left that do not end.
        count = beams * min(vocab, 1 + feeds["stops"].shape[0])
        scores, places = ops.top_k(ops.reshape(total, (batch, beams * vocab)), count)
        rows = ops.arange(batch)[:, None] * beams + places // vocab
        token = ops.cast(places % vocab, "int32")
        candidates = ops.take(state["tokens"], rows, axis=0)
        where = (0, 0, state["length"])
        candidates = ops.slice_update(candidates, where, token[:, :, None])
        ends = ops.logical_or(is_stop(token, feeds["stops"]), context.step + 1 >= feeds["limit"])
        state = {**state, "length": state["length"] + 1}
        state = self._pooled(feeds, state, candidates, scores, ends)
        state = self._continued(feeds, state, candidates, scores, ends, rows)
        left = ops.logical_or(exists(state["score"][:, 0]), exists(state["pool_score"][:, 0]))
        empty = ops.logical_not(ops.logical_or(left, before["done"]))
        return {**state, **self.troubles(before, context.step, logits, empty)}

    def _pooled(self, feeds, state, candidates, scores, ends):
        """State with the pool of the best that ended."""
        beams, count = self.copies, scores.shape[1]
        first = ops.arange(count)[None, :] < beams
        enters = ops.logical_and(ends, ops.logical_and(first, ~state["done"][:, None]))
        # An extension of a hypothesis that does not exist is not one either.
        enters = ops.logical_and(enters, exists(scores))
        ranks = ops.where(enters, self._rank(feeds, state, scores), ABSENT_SCORE)
        ranks = ops.concatenate([state["pool_score"], ranks], axis=1)
        best, places = ops.top_k(ranks, beams)
        written = ops.zeros_like(places[:, :1]) + state["length"] - feeds["prompt"]["token"].shape[1]
        counts = ops.concatenate([state["pool_count"], ops.repeat(written, count, axis=1)], axis=1)
        pool = ops.concatenate([state["pool"], candidates], axis=1)
        return {
            **state,
            "pool": ops.take_along_axis(pool, places[:, :, None], axis=1),
            "pool_score": best,
            "pool_count": ops.take_along_axis(counts, places, axis=1),
        }

    def _rank(self, feeds, state, score, length=None):
        written = state["length"] - feeds["prompt"]["token"].shape[1] if length is None else length
        return score / ops.power(ops.cast(written, "float32"), feeds["sampler"]["length_penalty"])

    def _continued(self, feeds, state, candidates, scores, ends, rows):
        """State with the best that run on, and their caches."""
        batch, beams = state["score"].shape
        scores, places = ops.top_k(ops.where(ends, ABSENT_SCORE, scores), beams)
        tokens = ops.take_along_axis(candidates, places[:, :, None], axis=1)
        rows = ops.reshape(ops.take_along_axis(rows, places, axis=1), (-1,))
        cache = {name: ops.take(x, rows, axis=0) for name, x in state["cache"].items()}
        state = {**state, "score": scores, "tokens": ops.reshape(tokens, state["tokens"].shape), "cache": cache}
        return {**state, "done": ops.logical_or(state["done"], self._is_done(feeds, state))}

    def _is_done(self, feeds, state):
        """bool [B]: whether nothing that runs can improve the pool."""
        best, worst = state["score"][:, 0], state["pool_score"][:, -1]
        ends = exists(worst)
        if self.early_stopping is not True:
            reachable = self._rank(feeds, state, best)
            if self.early_stopping == "never":
                reachable = ops.maximum(reachable, self._rank(feeds, state, best, feeds["limit"]))
            ends = ops.logical_and(ends, reachable <= worst)
        return ops.logical_or(ends, ops.logical_not(exists(best)))

    def is_open(self, feeds, state):
        return ops.logical_not(ops.all(state["done"]))
