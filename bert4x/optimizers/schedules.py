"""Learning rates: AdaFactor's own, by the number of updates, and factors that fall from layer to layer."""

import re

from bert4x.backend import keras, ops
from bert4x.optimizers.base import at_least, register, variable_path


@register
class RelativeStep(keras.optimizers.schedules.LearningRateSchedule):
    """AdaFactor's own learning rate:  factor * min(0.01, 1 / sqrt(t)).

    Args:
        factor: 1 where updates are relative to the size of the weights, else 0.05.
    Source: arXiv:1804.04235 algorithm 5.
    """

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = factor

    def __call__(self, step):
        """Rate after `step` updates."""
        t = ops.cast(step + 1, keras.config.floatx())
        return self.factor / at_least(ops.sqrt(t), 100.0)

    def get_config(self):
        """Arguments of the constructor."""
        return {"factor": self.factor}


def layer_wise_lr_decay(model, decay=0.9, *, block=r"Transformer-(\d+)-", embedding="Embedding-"):
    """Schedule for `extend_with_parameter_wise_lr` in which lower layers learn more slowly.

    Of L blocks, block i has the factor decay^(L - i), the embeddings decay^(L + 1), all else (heads) 1.

    Args:
        model: a built model.
        decay: factor from one block to the one below, in (0, 1].
        block: pattern of a path with the block's number as its group.
        embedding: part of the paths of the embeddings.
    Returns: dict {part of a path: factor}.
    Raises: ValueError if no path has a number, as in ALBERT, whose blocks share their weights.
    Source: arXiv:1801.06146 section 3.2 ("discriminative fine-tuning").
    """
    paths = [variable_path(variable) for variable in model.trainable_variables]
    found = {match.group(): int(match.group(1)) for path in paths if (match := re.search(block, path))}
    if not found:
        raise ValueError(f"block must be a pattern of the variables' paths; {block!r} is in none, e.g. {paths[0]!r}.")
    depth = max(found.values()) + 1
    schedule = {key: decay ** (depth - number) for key, number in sorted(found.items(), key=lambda item: item[1])}
    if any(embedding in path for path in paths):
        schedule[embedding] = decay ** (depth + 1)
    return schedule
