"""The report's plots, as PNG bytes; matplotlib without any display, and without pyplot's global state."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from lumbar.labels import GROUPS, SEVERITIES
from lumbar_train.evaluation.scoring import TERMS, Interval, Reliability

# Okabe and Ito: told apart by colour-blind readers too
BLUE, ORANGE, GREEN, PINK, SKY, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#777777"
_CYCLE = (BLUE, ORANGE, GREEN, PINK, SKY, RED, GREY)
_CLASS_COLOURS = dict(zip(SEVERITIES, (GREEN, ORANGE, RED), strict=True))


def data_uri(figure: Figure) -> str:
    """A figure as a PNG that stands inside the page."""
    buffer = io.BytesIO()
    figure.set_canvas(FigureCanvasAgg(figure))
    figure.savefig(buffer, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def png_uri(png: bytes) -> str:
    """A picture's bytes as a PNG that stands inside the page."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _figure(width: float, height: float, columns: int = 1, **kwargs: Any) -> tuple[Figure, NDArray[Any]]:
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, columns, **kwargs))
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    return figure, axes


def plot_answers(answers: Mapping[str, Mapping[str, Interval]]) -> Figure:
    """The metric and its terms by answer, with intervals."""
    figure, (axis,) = _figure(8.6, 3.0)
    n_answers = len(answers)
    for k, (name, terms) in enumerate(answers.items()):
        x = np.arange(len(TERMS)) + (k - (n_answers - 1) / 2) * 0.8 / n_answers
        values = np.array([terms[t].value for t in TERMS])
        low, high = (np.array([getattr(terms[t], side) for t in TERMS]) for side in ("low", "high"))
        spread = np.stack([np.maximum(values - low, 0), np.maximum(high - values, 0)])
        colour = _CYCLE[k % len(_CYCLE)]
        axis.bar(x, values, 0.72 / n_answers, yerr=spread, color=colour, label=name, error_kw={"lw": 0.8})
    axis.set_xticks(np.arange(len(TERMS)), [t.replace("_", " ") for t in TERMS])
    axis.set_ylabel("weighted log loss", fontsize=8)
    axis.legend(fontsize=7, ncols=n_answers, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def plot_reliability(reliabilities: Sequence[Reliability]) -> Figure:
    """Observed against predicted frequency, one panel a group."""
    figure, axes = _figure(8.6, 3.5, len(GROUPS), sharey=True)
    for axis, group in zip(axes, GROUPS, strict=True):
        axis.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=":")
        for curve in reliabilities:
            if curve.group != group:
                continue
            is_filled = curve.weight > 0
            size = 4 + 46 * np.sqrt(curve.weight[is_filled] / max(curve.weight.max(), 1e-9))
            colour = _CLASS_COLOURS[curve.severity]
            axis.plot(curve.predicted[is_filled], curve.observed[is_filled], color=colour, lw=1)
            label = f"{curve.severity} ({curve.error:.3f})"
            axis.scatter(curve.predicted[is_filled], curve.observed[is_filled], size, color=colour, label=label)
        axis.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), title=group)
        axis.title.set_fontsize(9)
        axis.set_xlabel("predicted", fontsize=8)
        # below the panel: inside, it would cover points wherever it stood
        axis.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2), handletextpad=0.2)
    axes[0].set_ylabel("observed", fontsize=8)
    return figure


def plot_errors(errors: pd.DataFrame) -> Figure:
    """Share of sagittal points within a distance: by level in millimetres, and as a fraction of the disc distance."""
    figure, axes = _figure(8.6, 2.9, 2, sharey=True)
    for k, (level, rows) in enumerate(errors.groupby("level")):
        name = str(level).upper().replace("_", "/")
        share = np.append(np.arange(1, len(rows) + 1) / len(rows), 1.0)
        errors_mm = np.append(np.sort(rows["error_mm"]), 99.0)  # carried on to the panel's edge
        axes[0].step(errors_mm, share, color=_CYCLE[k], lw=1.2, where="post", label=name)
        fraction = np.append(np.sort((rows["error_mm"] / rows["disc_mm"]).to_numpy(float)), 99.0)
        axes[1].step(fraction, share, color=_CYCLE[k], lw=1.2, where="post", label=name)
    axes[0].axvline(8, color=GREY, lw=0.8, ls=":")
    axes[0].set(xlim=(0, 20))
    axes[0].set_xlabel("error, mm (a missing point counts as 50)", fontsize=8)
    axes[1].set(xlim=(0, 0.6))
    axes[1].set_xlabel("error / distance between discs", fontsize=8)
    axes[0].set_ylabel("share of points", fontsize=8)
    axes[0].legend(fontsize=7, frameon=False, loc="lower right")
    return figure


def plot_curves(curves: Mapping[str, pd.DataFrame]) -> Figure:
    """Training loss (and validation loss, dashed) of every fit of a stage."""
    figure, (axis,) = _figure(4.2, 2.3)
    for k, (name, log) in enumerate(curves.items()):
        axis.plot(log["epoch"] + 1, log["loss"], color=_CYCLE[k % len(_CYCLE)], lw=1.2, label=name)
        if "val_loss" in log.columns:
            axis.plot(log["epoch"] + 1, log["val_loss"], color=_CYCLE[k % len(_CYCLE)], lw=1.2, ls="--")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("epoch", fontsize=8)
    axis.set_ylabel("loss", fontsize=8)
    axis.legend(fontsize=7, frameon=False, ncols=2)
    return figure
