"""The graph of one decoding step: the layers of a model wired a second time, with caches as arguments and results."""

from bert4x.backend import keras
from bert4x.layers import SlotPositions
from bert4x.models.blocks import Pass


def build_step(builder, max_length=None, *, last_only=False):
    """Wire the layers of a generative model into the graph of one decoding step.

    A cache of S slots holds the keys and values of all tokens so far. A call puts T new tokens into the slots from
    `start` and returns their logits and the caches that hold them too: with start 0 and a whole prompt it is the
    prefill, with T = 1 the step. Rows of unequal length are padded on the left.

    Args:
        builder: a built `Transformer` whose application is lm or unilm, or a T5 decoder.
        max_length: slots S of the caches; None leaves them free.
        last_only: logits of the last new token only, which is all that generation needs of a prompt.
    Returns: Keras model, dict -> dict.
        inputs  token int [B, T]; segment, position int [B, T] where the model has such an input; further inputs by
                their names; start int []; padding int [B], the slot where each row begins; key_i [B, S, G, K] and
                value_i [B, S, G, .], one pair per call i of self-attention, in `builder.compute_dtype`;
                with an encoder also context_mask bool [B, C], context_key_j and context_value_j of `build_context()`.
        outputs logits float32 [B, T or 1, V], before any activation; key_i, value_i.
    Raises: ValueError for a model that does not generate, a built-in attention_mask input, or a max_length beyond the
        position table.
    """
    _check(builder, max_length)
    roles = builder.step_inputs()
    walk = Pass(condition=builder.layer_norm_cond)
    walk.start = keras.Input(batch_shape=(), dtype="int32", name="start")
    walk.padding = keras.Input((), dtype="int32", name="padding")
    caches = _caches(builder, max_length)
    walk.given = [(caches[f"key_{i}"], caches[f"value_{i}"]) for i in range(builder.num_blocks)]
    context = builder.build_context()
    given = {name: keras.Input(x.shape[1:], dtype=x.dtype, name=name) for name, x in _outputs(context).items()}
    walk.given_context = [(given[f"context_key_{i}"], given[f"context_value_{i}"]) for i in range(len(given) // 2)]
    extra = {x.name: x for x in builder.additional_inputs()}
    inputs = {**roles, **extra, "start": walk.start, "padding": walk.padding, **caches, **given}
    logits = _logits(builder, roles, walk, last_only)
    made = {f"key_{i}": key for i, (key, _) in enumerate(walk.caches)}
    made |= {f"value_{i}": value for i, (_, value) in enumerate(walk.caches)}
    model = keras.Model(inputs, {"logits": logits, **made}, name=f"{builder.model.name}_step")
    model.supports_masking = True
    return model


def _logits(builder, roles, walk, last_only):
    if "position" not in roles:
        layer = builder.layer("Step-Positions", SlotPositions)
        roles = {**roles, "position": layer([roles["token"], walk.start, walk.padding])}
    x = builder.body(roles, walk)
    logits = builder.head(x[:, -1:] if last_only else x, walk)[-1]
    if logits.shape[-1] != builder.vocab_size:
        raise ValueError(
            f"a decoding step needs a head over the vocabulary; this {type(builder).__name__} was built without "
            "(with_mlm=False or with_lm=False)"
        )
    return logits


def _caches(builder, max_length):
    """Inputs for the caches of all calls of self-attention."""
    inputs = {}
    for i in range(builder.num_blocks):
        layer = builder.layers[builder.part(i, "MultiHeadSelfAttention")]
        for kind, sizes in zip(("key", "value"), layer.cache_sizes, strict=True):
            name = f"{kind}_{i}"
            inputs[name] = keras.Input((max_length, *sizes), dtype=builder.compute_dtype, name=name)
    return inputs


def _outputs(model):
    return {} if model is None else model.output


def _check(builder, max_length):
    if builder.application == "encoder" and builder.build_context() is None:
        raise ValueError(
            f"an encoder does not generate: build {type(builder).__name__} with application='lm' or 'unilm'"
        )
    if builder.attention_mask or builder.attention_caches:
        raise ValueError("a decoding step has its own masks and caches: build without attention_mask, attention_caches")
    limit = builder.position_limit
    if max_length is not None and limit is not None and max_length > limit:
        raise ValueError(f"max_length must be at most {limit}, the length of the position table; got {max_length}")
