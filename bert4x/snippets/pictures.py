"""Pictures of attention masks, for teaching: as text and as PNG."""

import numpy as np

from bert4x.backend import runtime
from bert4x.snippets.attributions import fonts_for

_SEEN, _NOT_SEEN = "█", "·"


def mask_text(mask, tokens=None):
    """A mask as lines of text, one for each query: █ where it sees the key, · where not.

    Args:
        mask: [T, S], or [1, T, S]; nonzero = allowed. An array or tensor, e.g. `(Causal() & Window(3)).matrix(8)`.
        tokens: names of the T queries, written in front of their lines.
    """
    mask, names = _matrix(mask), _names(mask, tokens)
    width = max(map(len, names), default=0)
    lines = [" ".join(_SEEN if seen else _NOT_SEEN for seen in row) for row in mask]
    return "\n".join(f"{name:>{width}} {line}" if width else line for name, line in zip(names, lines, strict=True))


def save_mask(path, mask, tokens=None, title=None):
    """Write a picture of a mask, PNG or what the name ends with: queries downwards, keys to the right, dark = seen.

    Args:
        mask, tokens: as in `mask_text`; tokens name the keys too where there are as many.
    """
    figure_class = _figure_class()
    mask, names = _matrix(mask), _names(mask, tokens)
    figure = figure_class(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.imshow(mask, cmap="Greys", vmin=0, vmax=1.3, interpolation="nearest")
    family = fonts_for("".join([title or "", *names]))
    axes.set(xlabel="key", ylabel="query")
    axes.set_title(title or "", fontfamily=family)
    if tokens is not None:
        axes.set_yticks(range(len(names)), names, fontfamily=family)
        if mask.shape[0] == mask.shape[1]:
            axes.set_xticks(range(len(names)), names, rotation=90, fontfamily=family)
    figure.savefig(path, dpi=120)


def _figure_class():
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("a picture needs matplotlib: pip install 'bert4x[plot]', or use mask_text") from error
    return Figure


def _matrix(mask):
    mask = np.asarray(runtime.to_numpy(mask)) != 0
    mask = mask[0] if mask.ndim == 3 and len(mask) == 1 else mask
    if mask.ndim != 2:
        raise ValueError(f"a picture shows one mask [T, S]; got the shape {mask.shape}. Pass mask[i] of a batch.")
    return mask


def _names(mask, tokens):
    count = mask.shape[-2]
    if tokens is None:
        return [""] * count
    if len(tokens) != count:
        raise ValueError(f"tokens must name the {count} queries of the mask; got {len(tokens)}")
    return [str(token) for token in tokens]
