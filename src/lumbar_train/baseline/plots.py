"""Plots of the baseline: sample slices by severity, confusion matrices, curves of the learning-rate finder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lumbar.labels import SEVERITIES
from lumbar_train.evaluation.plots import BLUE, GREEN, GREY, ORANGE, PINK, RED, SKY

_COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY, RED)


def plot_samples(
    pixels: NDArray[np.uint8], table: pd.DataFrame, classes: NDArray[Any], n: int, seed: int = 0
) -> Figure:
    """Random slices of each severity, one row per severity.

    Args:
        pixels: (N, size, size).
        table: ``study_id, instance_number`` of each.
        classes: (N,) class, -1 without label.
        n: slices per row, if there are so many.
        seed: of the choice.
    """
    figure = Figure(figsize=(1.15 * n + 0.9, 4.1), dpi=90, layout="constrained")
    axes = figure.subplots(3, n, squeeze=False)
    rng = np.random.default_rng(seed)
    for k, severity in enumerate(SEVERITIES):
        members = np.flatnonzero(classes == k)
        picked = rng.choice(members, min(n, len(members)), replace=False)
        for place, axis in enumerate(axes[k]):
            axis.set_xticks([])
            axis.set_yticks([])
            if place < len(picked):
                row = int(picked[place])
                axis.imshow(pixels[row], cmap="gray", vmin=0, vmax=255)
                name = f"{table['study_id'].iloc[row]}, {table['instance_number'].iloc[row]}"
                axis.set_title(name, fontsize=5, pad=2)
            else:
                axis.set_axis_off()
        axes[k][0].set_axis_on()
        axes[k][0].set_ylabel(f"{severity}\n({len(members)})", fontsize=7)
    return figure


def plot_finder(folder: Path, folds: Mapping[str, Mapping[str, Any]]) -> Figure | None:
    """Curves of the range tests of a column's fits, with the rates taken; None if there was no range test."""
    curves = {path.parent.name: pd.read_csv(path) for path in sorted(folder.glob("*/finder.csv"))}
    if not curves:
        return None
    figure = Figure(figsize=(3.6, 2.5), dpi=100, layout="constrained")
    axis = figure.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    for k, (name, curve) in enumerate(curves.items()):
        colour = _COLOURS[k % len(_COLOURS)]
        axis.plot(curve["rate"], curve["loss"], color=colour, lw=1.2, label=name)
        rate = folds.get(name.removeprefix("fold"), {}).get("lr")
        if rate:
            axis.axvline(rate, color=colour, lw=0.8, ls=":")
    lows = [float(c["loss"].min()) for c in curves.values()]
    tops = [float(c["loss"].iloc[0]) for c in curves.values()]
    axis.set(xscale="log", ylim=(0.9 * min(lows), 1.6 * max(tops)))
    axis.set_xlabel("learning rate (dotted: taken)", fontsize=7)
    axis.set_ylabel("smoothed loss", fontsize=7)
    axis.tick_params(labelsize=6)
    axis.legend(fontsize=6, frameon=False)
    return figure


def plot_confusion(counts: list[list[int]]) -> Figure:
    """Counts by true class (rows) and most likely class (columns); the shade is the share of the row."""
    figure = Figure(figsize=(2.5, 2.5), dpi=100, layout="constrained")
    axis = figure.subplots()
    table = np.array(counts)
    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row in range(3):
        for column in range(3):
            colour = "white" if share[row, column] > 0.6 else "black"
            axis.text(column, row, str(table[row, column]), ha="center", va="center", fontsize=8, color=colour)
    names = [name.split("/")[0] for name in SEVERITIES]
    axis.set_xticks(range(3), names, fontsize=6)
    axis.set_yticks(range(3), names, fontsize=6)
    axis.set_xlabel("most likely", fontsize=7)
    axis.set_ylabel("label", fontsize=7, color=GREY)
    return figure
