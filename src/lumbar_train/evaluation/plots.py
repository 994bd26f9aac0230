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
MIN_ROWS = 10  # fewer rows in a bin say nothing of a frequency
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
    """Observed against predicted frequency with intervals, one panel a group, and below it the rows of each bin."""
    figure = Figure(figsize=(8.6, 4.6), dpi=120, layout="constrained")
    grid = figure.subplots(2, len(GROUPS), sharex=True, sharey="row", height_ratios=(3, 1))
    axes = grid[0]
    for axis in grid.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    _plot_counts(grid[1], reliabilities)
    for axis, group in zip(axes, GROUPS, strict=True):
        axis.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=":")
        for curve in reliabilities:
            if curve.group != group:
                continue
            is_filled = curve.rows >= MIN_ROWS
            if not is_filled.any():
                continue
            colour = _CLASS_COLOURS[curve.severity]
            label = f"{curve.severity} ({curve.error:.3f})"
            observed = curve.observed[is_filled]
            spread = np.abs(np.stack(wilson(observed, curve.rows[is_filled])) - observed)
            axis.errorbar(
                curve.predicted[is_filled],
                observed,
                spread,
                color=colour,
                label=label,
                lw=1,
                marker="o",
                ms=4,
                elinewidth=0.8,
            )
        axis.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), title=group)
        axis.title.set_fontsize(9)
        # below the panels: inside, it would cover points wherever it stood
        if axis.get_legend_handles_labels()[0]:
            below = grid[1][list(axes).index(axis)]
            below.legend(
                *axis.get_legend_handles_labels(), fontsize=7, frameon=False, loc="upper center",
                bbox_to_anchor=(0.5, -0.45), handletextpad=0.2,
            )  # fmt: skip
    axes[0].set_ylabel("observed", fontsize=8)
    return figure


def _plot_counts(axes: Sequence[Any], reliabilities: Sequence[Reliability]) -> None:
    """Bars with the number of rows in each bin, a group a panel."""
    for axis, group in zip(axes, GROUPS, strict=True):
        curves = [curve for curve in reliabilities if curve.group == group]
        for k, curve in enumerate(curves):
            n_bins = len(curve.rows)
            place = (np.arange(n_bins) + 0.5 + (k - (len(curves) - 1) / 2) * 0.28) / n_bins
            axis.bar(place, curve.rows, 0.26 / n_bins, color=_CLASS_COLOURS[curve.severity])
        axis.set_yscale("symlog", linthresh=10)
        axis.axhline(MIN_ROWS, color=GREY, lw=0.6, ls=":")
        axis.set_xlabel("predicted", fontsize=8)
    axes[0].set_ylabel("rows", fontsize=8)


def wilson(share: NDArray[np.float64], n: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """95 % interval of a proportion (Wilson 1927), which stays within 0..1 for few rows too."""
    z = 1.96
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return middle - half, middle + half


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
    _legend_above(figure, axes[0])
    return figure


def _legend_above(figure: Figure, axis: Any, columns: int = 5) -> None:
    """The legend of an axis above the whole figure, where it hides no curve."""
    handles, names = axis.get_legend_handles_labels()
    figure.legend(
        handles, names, fontsize=7, frameon=False, ncols=min(columns, max(1, len(names))), loc="outside upper center"
    )


def plot_curves(curves: Mapping[str, pd.DataFrame]) -> Figure:
    """Training loss (and validation loss, dashed) of every fit of a stage."""
    figure, (axis,) = _figure(4.2, 2.3)
    for k, (name, log) in enumerate(curves.items()):
        axis.plot(log["epoch"] + 1, log["loss"], color=_CYCLE[k % len(_CYCLE)], lw=1.2, marker=".", label=name)
        if "val_loss" in log.columns:
            axis.plot(log["epoch"] + 1, log["val_loss"], color=_CYCLE[k % len(_CYCLE)], lw=1.2, ls="--", marker=".")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    last = max((int(log["epoch"].max()) + 1 for log in curves.values() if len(log)), default=1)
    if last == 1:  # a single point has no width of its own: the ticks would be fractions of an epoch
        axis.set(xlim=(0, 2), xticks=[1])
    axis.set_xlabel("epoch", fontsize=8)
    axis.set_ylabel("loss", fontsize=8)
    _legend_above(figure, axis)
    return figure
