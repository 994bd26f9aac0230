"""How well the localisers of each run find levels out of fold: what decides whose localisers all members share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lumbar.errors import CohortError
from lumbar_train.data.tables import Cohort
from lumbar_train.evaluation.point_errors import axial_assignments, sagittal_errors, summarise, truth_points
from lumbar_train.outputs.store import read_localisations

TABLES = ("levels", "points", "axial")
RIGHT, MEDIAN = "axial levels given their own slice", "sagittal points, median mm"


def localiser_figures(runs: Mapping[str, Path], cohort: Cohort) -> dict[str, dict[str, float]]:
    """By run: the share of axial levels that were given their own slice, and the median error of sagittal points.

    Runs without localisers of their own, such as external models, are left out.
    """
    truth = truth_points(cohort)
    figures: dict[str, dict[str, float]] = {}
    for name, path in runs.items():
        if not all((path / "localise" / f"{table}.parquet").is_file() for table in TABLES):
            continue
        places = read_localisations(path / "localise", map(int, cohort.study_ids))
        axial = axial_assignments(truth, places, cohort)
        sagittal = summarise(sagittal_errors(truth, places))
        figures[name] = {
            RIGHT: float(axial["is_right"].mean()) if len(axial) else float("nan"),
            MEDIAN: sagittal.get("median_mm", float("nan")),
        }
    return figures


def named_localisers(runs: Mapping[str, Path], word: str | None) -> list[str]:
    """The runs that a word means, by name or folder; all without a word.

    Raises:
        CohortError: none.
    """
    names = [
        name
        for name, path in runs.items()
        if word in (None, name) or os.path.realpath(path) == os.path.realpath(str(word))
    ]
    if not names:
        raise CohortError(f"--localiser: found {word}, expected one of the runs, {', '.join(runs)}")
    return names


def chosen_localiser(runs: Mapping[str, Path], word: str | None, figures: Mapping[str, Mapping[str, float]]) -> str:
    """The run whose localisers ship: as asked for by name or folder, else the one that finds levels best.

    Raises:
        CohortError: no run of that name or folder, or none that has localisers.
    """
    names = named_localisers(runs, word)
    known = [name for name in names if name in figures]
    if not known:
        raise CohortError(f"{', '.join(names)}: found no out-of-fold points in localise/, expected those of localisers")
    return min(known, key=lambda name: (-_number(figures[name][RIGHT], 0.0), _number(figures[name][MEDIAN], 1e9)))


def _number(value: float, without: float) -> float:
    return without if value != value else value


def localiser_lines(notes: Mapping[str, Any]) -> list[str]:
    """What the terminal shows of the localisers: how well each run's find levels, and what is known of both choices.

    Args:
        notes: ``ensemble.json``.
    """
    base, own = notes["localiser"], notes["own_localisers"]
    lines = []
    for name, row in notes["localisers"].items():
        ships = ", which ship" if name == base else ""
        figures = ", ".join(f"{key} {float('nan') if value is None else value:.3g}" for key, value in row.items())
        lines.append(f"localisers of {name}{ships}: {figures}")
    others = sorted({member["run"] for member in notes["members"] if member["weight"]} - {base})
    if not others:
        return lines
    value, low, high = notes["honest"]["total"]
    chosen = {True: " (chosen)", False: ""}
    lines += [
        f"own localisers a member{chosen[bool(own)]}: {value:.4f} (95 %: {low:.4f} to {high:.4f}) out of fold; all "
        "logits were made at their points",
        f"one set, of {base}{chosen[not own]}: no score out of fold, since members of {', '.join(others)} were not run "
        "at its points; only the errors of points above tell",
    ]
    return lines + [f"{name} ships for {', '.join(members)}" for name, members in own.items()]
