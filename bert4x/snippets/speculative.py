"""Speculative decoding: a small model drafts several tokens, the large one checks them in one pass."""

import numpy as np

from bert4x.backend import ops, runtime
from bert4x.snippets.inference import bucket
from bert4x.snippets.loops import empty_cache, further_inputs
from bert4x.snippets.requests import check_tables, checked_count, checked_prompts, prompt_feeds


class SpeculativeGenerator:
    """Greedy continuations of `target`, token for token, with fewer passes through it.

    The draft model writes `draft_tokens` tokens. One pass of the target over them says after each which token it would
    have written itself: the drafted ones are kept as long as they agree, and the target's own token comes after them.

    Args:
        target, draft: models of build_transformer_model with application lm (or unilm), or their builders, with the
            same vocabulary.
        end_id: token that ends a continuation; None for none.
        draft_tokens: tokens drafted per pass of the target, at least 1.
    Attributes: passes: passes of the target in the last call, the prompt's included.
    Raises: ValueError if the vocabularies differ in size.
    Source: arXiv:2211.17192, with greedy choice.
    """

    def __init__(self, target, draft, end_id=None, *, draft_tokens=4):
        self.draft_tokens = checked_count("draft_tokens", draft_tokens, 1)
        self.end_id = None if end_id is None else checked_count("end_id", end_id, 0)
        self._target, self._draft = _Writer(target), _Writer(draft)
        sizes = self._target.vocab_size, self._draft.vocab_size
        if sizes[0] != sizes[1]:
            raise ValueError(f"target and draft must have the same vocabulary; got {sizes[0]} and {sizes[1]} tokens")
        self.passes = 0

    def generate(self, prompt, max_new_tokens=64, *, segments=None):
        """The continuation of one prompt: a list of token ids, the end token included.

        Args:
            prompt: list of token ids.
            max_new_tokens: at most so many, the end token counted.
            segments: of the prompt's tokens; 0 by default.
        """
        if not checked_count("max_new_tokens", max_new_tokens, 0):
            return []
        text = [self._target.begin(prompt, segments, max_new_tokens)]
        self._draft.begin(prompt, segments, max_new_tokens)
        self.passes = 1
        while len(text) < max_new_tokens and text[-1] != self.end_id:
            # The target adds one token itself.
            drafted = self._drafted(text, min(self.draft_tokens, max_new_tokens - len(text) - 1))
            # What the target writes after each of the drafted tokens, and before the first.
            written = self._target.write(text[-1:] + drafted, len(text) - 1)
            agreed = next((i for i, token in enumerate(drafted) if token != written[i]), len(drafted))
            if drafted:  # what was right stays in the draft's cache; it has not read the last one yet
                self._draft.known = len(text) + min(agreed, len(drafted) - 1)
            text += written[: agreed + 1]
            self.passes += 1
        return text[: text.index(self.end_id) + 1] if self.end_id in text else text

    def _drafted(self, text, count):
        drafted, new = [], text[self._draft.known :]
        for place in range(len(text), len(text) + count):
            drafted += self._draft.write(new, place - len(new))[-1:]
            new = drafted[-1:]
        return drafted


class _Writer:
    """A model with a cache for one prompt.

    known: tokens after the prompt whose keys and values are in the cache for good.
    """

    def __init__(self, source):
        self.builder = getattr(source, "builder", source)
        if not hasattr(self.builder, "build_step"):
            raise TypeError(f"target and draft must be models of build_transformer_model; got {type(source).__name__}")
        self.step = self.builder.build_step()
        others = further_inputs(self.step)
        if others:
            raise ValueError(
                "speculative decoding takes models that read tokens, segments and positions only; this "
                f"{type(self.builder).__name__} needs {', '.join(others[:3])} too. Use Generator."
            )
        self.vocab_size = self.step.output["logits"].shape[-1]
        self._run = runtime.jit(self._greedy, model=self.step)

    def begin(self, prompt, segments, max_new_tokens):
        """The first token after the prompt, whose keys and values begin a new cache."""
        (prompt,) = checked_prompts([prompt], self.builder, max_new_tokens)
        segments = None if segments is None else [segments]
        following = getattr(self.builder, "next_segment", None)
        self._feeds = prompt_feeds([prompt], segments, None, self.step.input, next_segment=following)
        check_tables(self._feeds, self.builder, max_new_tokens)
        self._slots, self.known = self._feeds["prompt"]["token"].shape[1], 0
        self._cache = empty_cache(self.step, 1, bucket(self._slots + max_new_tokens))
        return _checked(self._call(self._feeds["prompt"], 0)[-1:], 0)[0]

    def write(self, tokens, place):
        """The token after each of `tokens`, of which the first is number `place` (from 0) after the prompt."""
        count = len(tokens)
        given = {
            "token": np.array([tokens], "int32"),
            "segment": np.repeat(self._feeds["segment"], count, axis=1),
            "position": self._feeds["position"] + np.arange(place, place + count, dtype="int32"),
        }
        given = {role: x for role, x in given.items() if role in self.step.input}
        return _checked(self._call(given, self._slots + place), place + 1)

    def _call(self, given, start):
        feeds = {**given, **self._cache, "padding": self._feeds["padding"], "start": np.int32(start)}
        tokens, self._cache = self._run(feeds)
        return runtime.to_numpy(tokens)[0].tolist()

    def _greedy(self, feeds):
        made = dict(self.step(feeds, training=False))
        logits = made.pop("logits")
        return ops.where(ops.any(ops.isnan(logits), axis=-1), -1, ops.argmax(logits, axis=-1)), made


def _checked(tokens, step):
    """The tokens, the first written in `step`; -1 stands for NaN logits."""
    if -1 in tokens:
        raise ValueError(f"logits must be numbers; those of step {step + tokens.index(-1)} (from 0) have NaN")
    return tokens
