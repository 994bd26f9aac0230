"""Labels whose marked point lies where the predicted crop does not look: they teach nothing true, and do not count.

The solution's filter (``data/ds_dh_12s3.py`` of its public code): a label counts only where its point lies in the
central 20 to 80 % of the crop, across and down; a series with more than 6 foraminal or more than 3 canal misses is left
out. Subarticular points are judged on their axial box by the same share, with the foraminal number for a pair of
sides, and must lie on a slice that the level's window holds: axial boxes look alike at every level. The tables stay as
they are, and nothing is scored on fewer labels: this concerns training alone.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lumbar.config import AxialClassifierConfig, SagittalClassifierConfig
from lumbar.geometry import Grid
from lumbar.labels import AXIAL_T2, COLUMNS, CONDITIONS, LEVELS, SAGITTAL_T1, SAGITTAL_T2, SPINAL
from lumbar.stages.crop import axial_grid_of, axial_window, sagittal_slices
from lumbar.stages.points import Localisation
from lumbar.study import Study
from lumbar_train.data.external_points import EXTERNAL, slices_of
from lumbar_train.data.studies import Studies
from lumbar_train.data.usable import CONSISTENCY_COUNTS
from lumbar_train.files import write_text
from lumbar_train.outputs.store import write_frame

FOLDER = "consistency"
_COLUMNS = ["study_id", "series_id", "condition", "level", "x", "y", "is_inside"]


@dataclass(frozen=True)
class ConsistencyConfig:
    """What is central, and how many misses are too many.

    Attributes:
        margin: share of the crop's side that is not central, at either edge.
        most_foraminal: a series with more foraminal misses (of 10) is left out.
        most_canal: the same of canal points (of 5).
        most_subarticular: the same of subarticular points (of 10).
    """

    margin: float = 0.2
    most_foraminal: int = 6
    most_canal: int = 3
    most_subarticular: int = 6


@dataclass(frozen=True)
class Kept:
    """What training may use: labels (25,) by study with those that do not count missing, and series left out."""

    labels: dict[int, NDArray[np.int8]]
    left_out: frozenset[str]


def judged(
    cache: Studies,
    localisations: Mapping[int, Localisation],
    points: pd.DataFrame,
    sagittal: SagittalClassifierConfig,
    axial: AxialClassifierConfig,
    config: ConsistencyConfig,
) -> pd.DataFrame:
    """Where each marked point lies in its predicted crop: one row a point whose level has a crop on its series.

    Args:
        cache: the studies, decoded or to be decoded.
        localisations: predicted, by study.
        points: rows of ``Cohort.points``; external ones are not labels and are left out.
        sagittal: whose crops foraminal and canal points are judged on.
        axial: whose box subarticular points are judged on.
        config: how far from the edge is central.

    Returns:
        study_id, series_id, condition, level, x and y (shares of the crop's side, 0 at its left and upper edge),
        is_inside.
    """
    rows = []
    own = points[points["condition"].isin(CONDITIONS) & points["level"].isin(LEVELS)]
    if "source" in own:
        own = own[own["source"] != EXTERNAL]
    for study_id in sorted(own["study_id"].astype(int).unique().tolist()):
        if study_id not in localisations:
            continue
        some = own[own["study_id"] == study_id]
        study, place = cache.study(study_id), localisations[study_id]
        where = slices_of(study)
        for row in some.to_dict("records"):
            spot = where.get((str(row["series_id"]), int(row["instance_number"])))
            if spot is None:
                continue
            seen = _seen_at(study, place, row, spot, sagittal, axial)
            if seen is None:
                continue
            x, y, is_shown = seen
            low, high = config.margin, 1 - config.margin
            is_inside = is_shown and low <= x <= high and low <= y <= high
            rows.append((study_id, str(row["series_id"]), row["condition"], row["level"], x, y, is_inside))
    return pd.DataFrame(rows, columns=_COLUMNS)


def _seen_at(
    study: Study,
    place: Localisation,
    row: Mapping[Hashable, Any],
    spot: tuple[str, int, int],
    sagittal: SagittalClassifierConfig,
    axial: AxialClassifierConfig,
) -> tuple[float, float, bool] | None:
    """Where a point lies in its level's crop, and whether the crop's slices hold it; None where there is no crop."""
    description, number, index = spot
    stack = study.series[description][number]
    level = LEVELS.index(str(row["level"]))
    xy = np.array([row["x_px"], row["y_px"]], dtype=float)
    condition = str(row["condition"])
    is_axial = "subarticular" in condition
    if is_axial != (description == AXIAL_T2):
        return None
    if is_axial:
        nearest = place.axial(LEVELS[level], stack.series_id)
        if nearest is None:
            return None
        grid = axial_grid_of(study, nearest, stack, axial)
        near = {(n, i) for _, n, i in axial_window(study, place, level, stack.series_id)}
        return (*_share(grid, xy), (number, index) in near)
    on_own = _on_series(place, stack.series_id)
    side = str(row["side"]) if condition != SPINAL else None
    wanted = {("left", SAGITTAL_T1): 1, ("right", SAGITTAL_T1): 1 if sagittal.max_slices else 2}
    window = wanted.get((side or "", description), 0 if description == SAGITTAL_T2 else 1)
    slices = [one for one in sagittal_slices(study, on_own, level, sagittal) if one.window == window]
    return (*_share(slices[0].grid, xy), True) if slices else None


def _on_series(place: Localisation, series_id: str) -> Localisation:
    points = [point for point in place.sagittal_points if point.series_id == series_id]
    return Localisation(sagittal_points=points, levels_mm=place.levels_mm)


def _share(grid: Grid, xy: NDArray[np.float64]) -> tuple[float, float]:
    x, y = (grid.to_grid(xy) + 0.5) / grid.size
    return float(x), float(y)


def kept(frame: pd.DataFrame, labels: Mapping[int, NDArray[np.int8]], config: ConsistencyConfig) -> Kept:
    """The labels that count: none whose points all miss, none whose series are all left out.

    A label without a point of its own counts: nothing is known against it.
    """
    most = {
        "spinal": config.most_canal,
        "foraminal": config.most_foraminal,
        "subarticular": config.most_subarticular,
    }
    kind = frame["condition"].map(lambda name: next(word for word in most if word in name))
    misses = frame.assign(kind=kind, n=~frame["is_inside"].astype(bool)).groupby(["series_id", "kind"])["n"].sum()
    counts = misses.reset_index().to_dict("records")
    left_out = frozenset(str(count["series_id"]) for count in counts if count["n"] > most[count["kind"]])
    good = frame["is_inside"].astype(bool) & ~frame["series_id"].isin(left_out)
    out = {study_id: row.copy() for study_id, row in labels.items()}
    verdicts = good.groupby([frame["study_id"], frame["condition"], frame["level"]]).any()
    for row in verdicts.rename("is_good").reset_index().to_dict("records"):
        study_id, condition, level = int(row["study_id"]), row["condition"], row["level"]
        if not row["is_good"] and study_id in out:
            out[study_id][COLUMNS.index(f"{condition}_{level}")] = -1
    return Kept(out, left_out)


def write_kept(
    run: Path, frame: pd.DataFrame, labels: Mapping[int, NDArray[np.int8]], result: Kept, config: ConsistencyConfig
) -> int:
    """Leave ``consistency/points.parquet`` and the counts for the report; returns how many labels do not count."""
    write_frame(run / FOLDER / "points.parquet", frame)
    gone = {
        name: sum(
            int(((labels[k].reshape(5, 5) >= 0) & (row.reshape(5, 5) < 0))[CONDITIONS.index(name)].sum())
            for k, row in result.labels.items()
        )
        for name in CONDITIONS
    }
    where = f"outside the central {100 * (1 - 2 * config.margin):.0f} % of the predicted crop (left out of training)"
    counts = {f"labels: {name.replace('_', ' ')}, point {where}": n for name, n in gone.items() if n}
    if result.left_out:
        counts["series: too many points outside the predicted crops (left out of training)"] = len(result.left_out)
    write_text(run / CONSISTENCY_COUNTS, json.dumps(counts, indent=1) + "\n")
    return sum(gone.values())
