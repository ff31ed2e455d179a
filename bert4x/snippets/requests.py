"""What a user asks of a `Generator`, checked and padded to few shapes: ragged lists in, the feeds of a loop out."""

import numpy as np

from bert4x.snippets.filters import uniform_numbers
from bert4x.snippets.inference import bucket, power_of_two


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


def counted(prompts):
    """How many prompts there are."""
    if isinstance(prompts, (str, bytes)) or not hasattr(prompts, "__len__") or not len(prompts):
        raise ValueError(f"prompts must be a list of lists of token ids, at least one; got {prompts!r:.80}")
    return len(prompts)


def checked_ids(prompts, vocab_size=None, *, pads=False):
    """Lists of token ids, none empty and no id beyond the vocabulary.

    pads: id 0 is the model's padding, which its full graph masks after the first position, and a step does not.
    """
    counted(prompts)
    for i, prompt in enumerate(prompts):
        nested = isinstance(prompt, (list, tuple)) and any(isinstance(item, (list, tuple)) for item in prompt)
        ids = np.asarray(prompt, object if nested else None)  # lists of unequal lengths are an error of NumPy's
        if ids.shape == (0,):
            raise ValueError(f"a prompt must have at least one token, such as the start token; prompt {i} has none")
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise ValueError(f"a prompt must be a list of token ids, which are integers; prompt {i} is {prompt!r:.80}")
        if ids.min() < 0 or (vocab_size is not None and ids.max() >= vocab_size):
            raise ValueError(
                f"token ids must be at least 0 and below the vocabulary of {vocab_size}; prompt {i} has {ids.min()} to "
                f"{ids.max()}. Do the tokenizer and the model belong together?"
            )
        if pads and not ids[1:].all():
            raise ValueError(
                f"token 0 is the padding of this model, and prompts take none: they may be of any lengths; prompt {i} "
                f"is {ids.tolist()!r:.80}. Pass lists without padding, or build the model with mask_zero=False."
            )
    return [np.asarray(prompt).tolist() for prompt in prompts]


def check_states(prompts, width):
    """Raise unless these are encoder states, arrays [C, width]."""
    shapes = [np.shape(states) for states in prompts]
    if not shapes or any(len(shape) != 2 or not shape[0] or shape[1] != width for shape in shapes):
        raise ValueError(f"prompts of a decoder alone must be arrays [C, {width}] of encoder states; got {shapes}")


def checked_prompts(prompts, builder, max_new_tokens):
    """Lists of ids, after a check of their values and of their lengths against the position table."""
    limit = getattr(builder, "position_limit", None)
    prompts = checked_ids(prompts, getattr(builder, "vocab_size", None), pads=getattr(builder, "mask_zero", False))
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
    arrays = [np.asarray(row) for row in rows]
    if any(array.ndim != 1 or array.dtype.kind not in "iu" for array in arrays if array.size):
        raise ValueError(f"{name} must be lists of integers, one per prompt token; got {rows!r:.80}")
    rows = [array.tolist() for array in arrays]
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
    next_segment = next_segment if next_segment is None else checked_count("next_segment", next_segment, 0)
    following = [row[-1] if next_segment is None else next_segment for row in segments]
    return {
        "prompt": {role: padded_left(by_role[role], size, batch) for role in by_role if role in roles},
        "padding": np.array([size - len(row) for row in prompts + [prompts[-1]] * (batch - len(prompts))], "int32"),
        "live": np.arange(batch) < len(prompts),
        "segment": filled(np.array(following, "int32")[:, None], batch),
        "position": filled(np.array([[row[-1] + 1] for row in positions], "int32"), batch),
    }


def check_tables(feeds, builder, max_new_tokens):
    """Raise for segments and positions that the model's tables do not have: a compiled look-up would take others."""
    sizes = {"segment": getattr(builder, "segment_vocab_size", 0), "position": getattr(builder, "position_rows", None)}
    for role, size in sizes.items():
        if role in feeds["prompt"] and size:
            # The last token written is not fed.
            last = feeds[role] + (max_new_tokens - 2 if role == "position" else 0)
            ids = np.append(feeds["prompt"][role], last if max_new_tokens > 1 else [])
            if ids.min() < 0 or ids.max() >= size:
                raise ValueError(
                    f"{role}s, those of the new tokens included, must be at least 0 and below {size}, the size of the "
                    f"model's table; got {ids.min():.0f} to {ids.max():.0f}"
                )


def checked_strategy(strategy):
    """What chooses the tokens: `Greedy()`, `Sample(...)`, `Beam(...)` or the like."""
    if isinstance(strategy, type) or not hasattr(strategy, "needs_uniforms"):
        raise TypeError(f"strategy must be Greedy(), Sample(...) or Beam(...), an object; got {strategy!r}")
    return strategy


def checked_strings(strings):
    """Stop strings as a list; one string counts as a list of one."""
    strings = [strings] if isinstance(strings, str) else list(strings)
    if not all(isinstance(string, str) and string for string in strings):
        raise ValueError(f"stop_strings must be strings of at least one character; got {strings!r:.80}")
    return strings


def loop_feeds(max_new_tokens, stops, filler, *, chain, sampler, seed, rows):
    """Feeds about the new tokens: their number, what stops them, and the arrays of processors and sampler."""
    steps = bucket(max_new_tokens)
    draws = getattr(sampler, "needs_uniforms", False)
    seed = seed if seed is None else checked_count("seed", seed, 0)
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
