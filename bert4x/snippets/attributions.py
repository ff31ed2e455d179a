"""Which tokens a prediction rests on: integrated gradients, and pictures of them."""

import html
import warnings
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bert4x.backend import keras, ops, runtime
from bert4x.backend.scopes import first_output
from bert4x.snippets.perturbation import embedding_layer

_REDUCTIONS = {
    "sum": lambda vectors: vectors.sum(axis=-1),
    "norm": lambda vectors: np.sqrt((vectors**2).sum(axis=-1)),
    "max": lambda vectors: np.abs(vectors).max(axis=-1),
}
_SPECIALS = ("[CLS]", "[SEP]", "[PAD]", "<s>", "</s>", "<pad>")
# Families that hold Chinese, as matplotlib calls them.
_CJK_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN",
    "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback", "SimHei", "Microsoft YaHei", "PingFang SC",
    "PingFang HK", "Hiragino Sans GB", "Heiti TC", "STHeiti", "SimSun", "Arial Unicode MS", "Unifont",
)  # fmt: skip


class Attributions(NamedTuple):
    """What `integrated_gradients` returns, as NumPy arrays.

    scores: float [B, T], one number for each token.
    delta: float [B], sum over tokens and features of the attributions, minus (F(x) - F(baseline)); near 0 if `steps`
        are enough.
    values: float [B], F(x).    baselines: float [B], F(baseline).
    """

    scores: np.ndarray
    delta: np.ndarray
    values: np.ndarray
    baselines: np.ndarray


def integrated_gradients(
    model, inputs, *, name="Embedding-Token", target=None, steps=50, baseline=None, reduction="sum", batch_size=None
):
    """How much each token contributes to an output of a model: gradients summed on the way from a baseline.

    A_t = (x_t - b_t) * mean over k of dF/dx_t at b + (k - 1/2) / steps (x - b),  k = 1..steps

    x are the vectors that the embedding layer returns at its first call; position and segment embeddings stay. The
    sum of A over tokens and features is F(x) - F(b), up to `delta`. Nothing is dropped out.

    Args:
        inputs: array, list or dict of arrays, as for `model.predict`.
        name: name of the embedding layer; nested models are searched too.
        target: F: the index of a class, one for each row [B], a function from the model's outputs to [B], or None for
            each row's largest output.
        steps: points on the way.
        baseline: b: None for zeros, a token id, or an array that broadcasts to [B, T, D].
        reduction: score of a token from its D attributions: "sum" (signed), "norm" (length) or "max" (of |.|).
        batch_size: rows done at once; None for all.
    Returns: `Attributions`.
    Raises: ValueError for a layer that is not there, or outputs other than [B, C] without a function as target.
    Source: arXiv:1703.01365.
    """
    if reduction not in _REDUCTIONS or steps < 1:
        raise ValueError(f"reduction is one of {list(_REDUCTIONS)}, steps >= 1; got {reduction!r} and {steps}")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, or None for all rows at once; got {batch_size}")
    path = _Path(model, embedding_layer(model, name), target if callable(target) else None)
    parts = []
    for rows in _batches(len(keras.tree.flatten(inputs)[0]), batch_size):
        batch = keras.tree.map_structure(itemgetter(rows), inputs)
        parts.append(_attributed(path, batch, _rows_of(target, rows, 1), _rows_of(baseline, rows, 3), steps))
    vectors, values, baselines = (np.concatenate(part) for part in zip(*parts, strict=True))
    delta = vectors.sum(axis=(1, 2)) - (values - baselines)
    return Attributions(_REDUCTIONS[reduction](vectors), delta, values, baselines)


def _batches(count, size):
    """Slices of the rows."""
    return [slice(first, first + (size or count)) for first in range(0, count, size or count)]


def _rows_of(option, rows, rank):
    """The rows of an option that has one entry for each row; any other as it is."""
    own = option is not None and not callable(option) and np.ndim(option) == rank and len(option) > 1
    return np.asarray(option)[rows] if own else option


def _attributed(path, inputs, target, baseline, steps):
    """Attributions [B, T, D], F(x) and F(b) of one batch."""
    x, outputs = path.start(inputs)
    classes = np.zeros(len(x), "int32") if callable(target) else _classes(outputs, target)
    b = np.broadcast_to(np.float32(0 if baseline is None else path.vectors(baseline)), x.shape)
    total = np.zeros_like(x)
    for k in range(steps):
        total += path.value_and_gradient(inputs, classes, b + np.float32((k + 0.5) / steps) * (x - b))[1]
    ends = [path.value_and_gradient(inputs, classes, point)[0] for point in (x, b)]
    return (x - b) * total / steps, *ends


class _Path:
    """A model as a function of the vectors that its embedding layer returns; compiled once for all batches."""

    def __init__(self, model, layer, function=None):
        self.model, self.layer, self.function = model, layer, function
        self._start = runtime.jit(self._start_graph, model=model)
        self._slope = runtime.jit(self._slope_graph, model=model)

    def start(self, inputs):
        """x [B, T, D] and the model's outputs."""
        x, outputs = self._start(inputs)
        return np.float32(runtime.to_numpy(x)), outputs

    def value_and_gradient(self, inputs, classes, x):
        """F(x) [B] and dF/dx [B, T, D]."""
        gradient, values = self._slope(inputs, classes, x)
        return runtime.to_numpy(values), runtime.to_numpy(gradient)

    def vectors(self, baseline):
        """A baseline's vectors; an integer is a token."""
        if np.ndim(baseline) == 0:
            table = next(v for v in self.layer.weights if v.name == "embeddings")
            return runtime.to_numpy(ops.cast(table[int(baseline)], "float32"))
        return baseline

    def _outputs(self, inputs, change):
        with first_output(self.layer, change):
            return self.model(inputs, training=False) if self.model._call_has_training_arg else self.model(inputs)

    def _start_graph(self, inputs):
        seen = []
        outputs = self._outputs(inputs, lambda output: seen.append(output) or output)
        return seen[0], outputs

    def _slope_graph(self, inputs, classes, x):
        def total(x):
            values = self._chosen(self._outputs(inputs, lambda output: ops.cast(x, output.dtype)), classes)
            return ops.sum(values), values

        # Rows do not influence one another, so that the gradient of the sum holds that of each.
        (_, values), gradient = runtime.value_and_grad(total, x, differentiable=False, has_aux=True)
        return gradient, values

    def _chosen(self, outputs, classes):
        if self.function is not None:
            return ops.cast(self.function(outputs), "float32")
        return ops.take_along_axis(ops.cast(outputs, "float32"), classes[:, None], axis=1)[:, 0]


def _classes(outputs, target):
    """One class for each row."""
    if isinstance(outputs, (list, tuple, dict)) or len(outputs.shape) != 2:
        raise ValueError(
            "a class as target needs one output [B, C]; this model has another. "
            "Give target=function from the model's outputs to one number for each row."
        )
    if target is None:
        return np.argmax(runtime.to_numpy(ops.cast(outputs, "float32")), axis=1).astype("int32")
    return np.broadcast_to(np.int32(target), (len(outputs),))


def save_attributions(path, tokens, scores, *, titles=None, skip=_SPECIALS):
    """Write a picture of token attributions: red speaks for the output, blue against it.

    The largest |score| of a text has the full colour. Where texts are padded, scores beyond the tokens are left out.

    Args:
        path: file to write, .html (needs nothing) or an image, .png or .svg (needs matplotlib, `pip install
            "bert4x[plot]"`).
        tokens: list of strings, or a list of such lists.
        scores: numbers for them, [T] or [B, T].
        titles: one line above each text, e.g. its label and prediction.
        skip: tokens without colour.
    Raises: ValueError for another suffix, another number of rows, or fewer scores than tokens; ImportError without
        matplotlib.
    """
    path = Path(path)
    if tokens and isinstance(tokens[0], str):
        tokens, scores, titles = [tokens], [scores], None if titles is None else [titles]
    titles = titles or [""] * len(tokens)
    if not len(tokens) == len(scores) == len(titles):
        raise ValueError(
            f"each text needs a row of scores and, if there are titles, a title; got {len(tokens)} texts, "
            f"{len(scores)} rows of scores and {len(titles)} titles. Cut them to the same rows."
        )
    texts = [
        (title, text, _colours(text, row, skip)) for title, text, row in zip(titles, tokens, scores, strict=True)
    ]
    if path.suffix in (".html", ".htm"):
        path.write_text(_page(texts), encoding="utf-8")
    elif path.suffix in (".png", ".svg"):
        with warnings.catch_warnings():
            # One warning of ours, in `_fonts`, instead of one for each character.
            warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
            _figure(texts).savefig(path, dpi=150)
    else:
        raise ValueError(f"the file of attributions must end in .html, .png or .svg; got {path.name!r}")


def _colours(tokens, scores, skip):
    """Scores in [-1, 1] of one text."""
    if len(scores) < len(tokens):
        raise ValueError(f"each token needs a score; got {len(tokens)} tokens and {len(scores)} scores")
    scores = np.array([0.0 if token in skip else s for token, s in zip(tokens, scores, strict=False)], "float64")
    return scores / max(np.abs(scores).max(initial=0.0), 1e-30)


def _page(texts):
    body = "\n".join(
        f"<h4>{html.escape(title)}</h4>\n<p>{' '.join(map(_span, tokens, colours))}</p>"
        for title, tokens, colours in texts
    )
    style = "body{font:16px/1.9 sans-serif;margin:2em}span{padding:2px 1px;border-radius:3px}"
    head = f'<head><meta charset="utf-8"><title>Attributions</title><style>{style}</style></head>'
    return f"<!DOCTYPE html>\n<html>{head}<body>\n{body}\n</body></html>\n"


def _span(token, colour):
    rgb = "214,39,40" if colour > 0 else "31,119,180"
    return f'<span style="background:rgba({rgb},{abs(colour):.3f})" title="{colour:.3f}">{html.escape(token)}</span>'


def _figure(texts, columns=24):
    """A matplotlib figure with one cell for each token."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        message = 'a picture of attributions needs matplotlib: pip install "bert4x[plot]". An .html file needs nothing.'
        raise ImportError(message) from error
    rows = [max(1, -(-len(tokens) // columns)) for _, tokens, _ in texts]
    figure = Figure(figsize=(0.5 * columns, 0.45 * sum(rows) + 0.5 * len(texts)), layout="constrained")
    axes = figure.subplots(len(texts), 1, squeeze=False, height_ratios=rows)[:, 0]
    family = fonts_for("".join(title + "".join(tokens) for title, tokens, _ in texts))
    for axis, (title, tokens, colours), height in zip(axes, texts, rows, strict=True):
        cells = np.full(height * columns, np.nan)
        cells[: len(tokens)] = colours
        axis.imshow(cells.reshape(height, columns), cmap="bwr", vmin=-1.5, vmax=1.5, aspect="auto")
        for i, token in enumerate(tokens):
            axis.text(i % columns, i // columns, token, ha="center", va="center", fontsize=9, fontfamily=family)
        axis.set_title(title, fontsize=10, fontfamily=family, loc="left")
        axis.axis("off")
    return figure


def fonts_for(text):
    """Font families for a text; a warning where none of them can draw its Chinese."""
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    found = [name for name in _CJK_FONTS if name in installed][:1]
    if not found and any(character >= "\u2e80" for character in text):
        warnings.warn(
            "matplotlib finds no font with Chinese characters, so the picture shows boxes. Install one "
            f"(e.g. {_CJK_FONTS[0]}) and delete matplotlib's font cache, or save an .html file.",
            stacklevel=4,
        )
    return [*found, "DejaVu Sans"]
