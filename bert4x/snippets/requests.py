"""What a user asks of a `Generator`, checked and padded to few shapes: ragged lists in, the feeds of a loop out."""

import numpy as np

from bert4x.snippets.filters import uniform_numbers
from bert4x.snippets.inference import BUCKETS
from bert4x.snippets.padding import bucket_length


def padded_left(rows, size, batch):
    """Lists of numbers as int32 [batch, size], zeros at the left; the last row repeats to fill the batch."""
    array = np.zeros((batch, size), "int32")
    for i in range(batch):
        row = rows[min(i, len(rows) - 1)]
        array[i, size - len(row) :] = row
    return array


def filled(array, batch):
    """The last row repeated until there are `batch`."""
    array = np.asarray(array)
    return np.concatenate([array, np.repeat(array[-1:], batch - len(array), axis=0)])


def power_of_two(count):
    """The next power of two."""
    return 1 << (count - 1).bit_length()


def bucket(length):
    """The padded length for this length: one of few, up to the longest bucket."""
    return max(bucket_length([length], BUCKETS), length)


def padded_right(rows, batch):
    """Encoder inputs, lists of ids or arrays [C, D], as an array [batch, C, ...] and a mask bool [batch, C]."""
    rows = [np.asarray(row) for row in rows]
    size = bucket(max(len(row) for row in rows))
    array = np.zeros((batch, size, *rows[0].shape[1:]), rows[0].dtype if rows[0].dtype.kind == "f" else "int32")
    mask = np.zeros((batch, size), bool)
    for i in range(batch):
        row = rows[min(i, len(rows) - 1)]
        array[i, : len(row)], mask[i, : len(row)] = row, True
    return array, mask


def checked_ids(prompts, vocab_size=None):
    """Lists of token ids, none empty and no id beyond the vocabulary."""
    if isinstance(prompts, (str, bytes)) or not len(prompts):
        raise ValueError(f"prompts must be a list of lists of token ids, at least one; got {prompts!r:.80}")
    for i, prompt in enumerate(prompts):
        ids = np.asarray(prompt)
        if ids.shape == (0,):
            raise ValueError(f"a prompt must have at least one token, such as the start token; prompt {i} has none")
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise ValueError(f"a prompt must be a list of token ids, which are integers; prompt {i} is {prompt!r:.80}")
        if ids.min() < 0 or (vocab_size is not None and ids.max() >= vocab_size):
            raise ValueError(
                f"token ids must be at least 0 and below the vocabulary of {vocab_size}; prompt {i} has {ids.min()} to "
                f"{ids.max()}. Do the tokenizer and the model belong together?"
            )
    return [np.asarray(prompt).tolist() for prompt in prompts]


def check_states(prompts, width):
    """Raise unless these are encoder states, arrays [C, width]."""
    shapes = [np.shape(states) for states in prompts]
    if not shapes or any(len(shape) != 2 or not shape[0] or shape[1] != width for shape in shapes):
        raise ValueError(f"prompts of a decoder alone must be arrays [C, {width}] of encoder states; got {shapes}")


def checked_prompts(prompts, limit, max_new_tokens, *, vocab_size=None):
    """Lists of ids, after a check of their lengths against the position table."""
    prompts = checked_ids(prompts, vocab_size)
    longest = max(map(len, prompts))
    # The last token written is not fed again.
    if limit is not None and longest + max_new_tokens - 1 > limit:
        raise ValueError(
            f"the model has a table of {limit} positions; a prompt of {longest} tokens and max_new_tokens="
            f"{max_new_tokens} need {longest + max_new_tokens - 1}. Cut the prompt on the left or generate fewer "
            "tokens; models with relative positions have no such limit."
        )
    return prompts


def checked_count(name, value, least):
    """An integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}; got {value!r}")
    return int(value)


def companions(name, rows, prompts):
    """Ids beside the tokens of the prompts (segments, positions): as many per prompt."""
    rows = [[int(i) for i in row] for row in rows]
    if [len(row) for row in rows] != [len(prompt) for prompt in prompts]:
        raise ValueError(
            f"{name} must have one number per prompt token; got {[len(row) for row in rows]} for prompts of "
            f"{[len(prompt) for prompt in prompts]} tokens"
        )
    return rows


def prompt_feeds(prompts, segments, positions, roles, *, next_segment):
    """Feeds of the prompts: arrays by role, the padding, and what the new tokens go on with."""
    batch = power_of_two(len(prompts))
    size = bucket(max(map(len, prompts)))
    segments = [[0] * len(p) for p in prompts] if segments is None else companions("segments", segments, prompts)
    positions = [range(len(p)) for p in prompts] if positions is None else companions("positions", positions, prompts)
    by_role = {"token": prompts, "segment": segments, "position": positions}
    following = [row[-1] if next_segment is None else next_segment for row in segments]
    return {
        "prompt": {role: padded_left(by_role[role], size, batch) for role in by_role if role in roles},
        "padding": np.array([size - len(row) for row in prompts + [prompts[-1]] * (batch - len(prompts))], "int32"),
        "live": np.arange(batch) < len(prompts),
        "segment": filled(np.array(following, "int32")[:, None], batch),
        "position": filled(np.array([[row[-1] + 1] for row in positions], "int32"), batch),
    }


def loop_feeds(max_new_tokens, stops, filler, *, chain, sampler, seed, rows):
    """Feeds about the new tokens: their number, what stops them, and the arrays of processors and sampler."""
    steps = bucket(max_new_tokens)
    draws = getattr(sampler, "needs_uniforms", False)
    numbers = uniform_numbers(seed, rows, steps) if draws else np.zeros((steps, 1), "float32")
    return {
        "limit": np.int32(max_new_tokens),
        "spare": np.zeros(steps, "int32"),
        "stops": np.array(stops or [-1], "int32"),
        "filler": np.int32(filler),
        "chain": chain.arrays(),
        "sampler": sampler.arrays(),
        "uniforms": numbers,
    }
