"""External points of the sagittal levels: where they lie in a study, and how they compare with the competition's.

Such a table (``--points``) has a point a slice and level: ``series_id, instance_number, level, x, y``, in pixels of the
slice itself or of an image of ``img_h`` × ``img_w`` pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lumbar.dicom import Stack
from lumbar.errors import CohortError
from lumbar.labels import AXIAL_T2, LEVELS, SPINAL
from lumbar.study import Study

Array = NDArray[np.float64]
Place = tuple[str, int, int]  # series description, stack, slice
EXTERNAL, DISC = "external", "disc"
SIZE_COLUMNS = ("img_h", "img_w")
POINTS_FILE = "points.json"  # of a run folder: ``summary``
USES = ("beside", "instead")  # of the competition's points: they, or the external ones, come first


def check_external(points: pd.DataFrame, series: pd.DataFrame, path: Path, dropped: Counter[str]) -> pd.DataFrame:
    """The external points on sagittal series of this cohort; others are left out and counted.

    Raises:
        CohortError: none is on a described series, so that the table must be another cohort's; a size that is none.
    """
    described = series.drop_duplicates("series_id").set_index("series_id")["series_description"]
    kind = points["series_id"].map(described)
    if not len(points) or not kind.notna().any():
        n_series = points["series_id"].nunique()
        raise CohortError(f"{path}: none of {n_series} series is described in this cohort, expected its own series")
    for name in SIZE_COLUMNS:
        if name in points and not (points[name].isna() | (points[name] >= 1)).all():
            bad = points[name][points[name] < 1].iloc[0]
            raise CohortError(f"{path}: {name} is {bad:g}, expected pixels of an image, 1 or more")
    is_axial = (kind == AXIAL_T2) & (points["condition"] == DISC)
    dropped["points: external point on an axial series"] += int(is_axial.sum())
    return points[~is_axial].reset_index(drop=True)


def in_own_pixels(points: pd.DataFrame, geometry: list[Any]) -> pd.DataFrame:
    """Points in pixels of their own slices, whatever image the table refers to; the columns of sizes go.

    Pixel centres have whole numbers, so the image's outer edges are at -0.5 and at its size less 0.5.

    Args:
        points: ``x_px, y_px``, perhaps ``img_h, img_w`` (NaN: the slice's own).
        geometry: each row's header with ``rows`` and ``columns``, or a text where there is none.
    """
    if not set(SIZE_COLUMNS) & set(points.columns):
        return points
    out = points.drop(columns=[name for name in SIZE_COLUMNS if name in points])
    for axis, name, own in (("y_px", "img_h", "rows"), ("x_px", "img_w", "columns")):
        if name not in points:
            continue
        size = np.array([np.nan if isinstance(header, str) else getattr(header, own) for header in geometry], float)
        times = np.nan_to_num(size / points[name].to_numpy(float), nan=1.0)
        out[axis] = (points[axis].to_numpy(float) + 0.5) * times - 0.5
    return out


def slices_of(study: Study) -> dict[tuple[str, int], Place]:
    """Where each slice of a study lies, by series and instance number."""
    return {
        (stack.series_id, int(instance)): (description, number, index)
        for description, stacks in study.series.items()
        for number, stack in enumerate(stacks)
        for index, instance in enumerate(stack.instance_numbers)
    }


def marks_by_slice(
    points: pd.DataFrame, where: Mapping[tuple[str, int], Place], use: str = "instead"
) -> dict[Place, Array]:
    """External points of a study by slice: (5 levels, 2) in pixels (x, y), NaN where not marked.

    ``beside`` the competition's points a slice keeps those for the levels that the competition marks on it.
    """
    rows = points[(points["source"] == EXTERNAL) & (points["condition"] == DISC)] if "source" in points else points[:0]
    marks: dict[Place, Array] = {}
    for row in rows.to_dict("records"):
        place = where.get((str(row["series_id"]), int(row["instance_number"])))
        if place is not None and place[0] != AXIAL_T2 and row["level"] in LEVELS:
            own = marks.setdefault(place, np.full((len(LEVELS), 2), np.nan))
            own[LEVELS.index(row["level"])] = (row["x_px"], row["y_px"])
    labelled = points[points["condition"] == SPINAL] if use == "beside" and marks else points[:0]
    for row in labelled.to_dict("records"):
        place = where.get((str(row["series_id"]), int(row["instance_number"])))
        if place in marks and row["level"] in LEVELS:
            marks[place][LEVELS.index(row["level"])] = np.nan
    return marks


def canal_of_marks(study: Study, marks: Mapping[Place, Array], canal_mm: Array) -> Array:
    """Canal points (5, 3) mm from points on many slices: each level's in the middle slice, averaged over series.

    The middle is the plane of the study's labelled canal points where there are any, else the median of the level's
    marked slices.
    """
    lifted: dict[tuple[str, int], list[tuple[int, Array]]] = {}
    for (description, number, index), own in marks.items():
        for level in np.flatnonzero(np.isfinite(own[:, 0])):
            xyz = study.series[description][number].to_patient(index, own[level, 1], own[level, 0])
            lifted.setdefault((description, number), []).append((int(level), np.asarray(xyz, dtype=float)))
    by_level: list[list[Array]] = [[] for _ in LEVELS]
    for (description, number), every in lifted.items():
        normal = study.series[description][number].normal
        labelled = canal_mm[np.isfinite(canal_mm[:, 0])] @ normal
        for wanted in range(len(LEVELS)):
            points = np.array([xyz for k, xyz in every if k == wanted])
            if len(points):
                across = points @ normal
                middle = np.median(labelled) if len(labelled) else np.median(across)
                by_level[wanted].append(points[int(np.abs(across - middle).argmin())])
    nothing = np.full(3, np.nan)
    return np.array([np.mean(points, axis=0) if points else nothing for points in by_level])


def summary(study_of: Callable[[int], Study], points: pd.DataFrame, use: str) -> dict[str, Any]:
    """How many points come from where, and how far they lie apart where both mark a level on one slice.

    Returns:
        ``use``; ``counts`` of points by source and series description; ``levels`` of studies that have a sagittal
        canal point of the competition alone, of the external table alone, of both; ``apart`` in mm in the plane, for
        canal and foraminal points: ``n, median_mm, p95_mm``.
    """
    counts: Counter[str] = Counter()
    has: dict[str, set[tuple[int, str]]] = {"competition": set(), EXTERNAL: set()}
    apart: dict[str, list[float]] = {"canal": [], "foraminal": []}
    for study_id in map(int, points["study_id"].unique()):
        rows, study = points[points["study_id"] == study_id], study_of(study_id)
        own = slices_of(study)
        marks = marks_by_slice(rows, own)
        for row in rows.to_dict("records"):
            place = own.get((str(row["series_id"]), int(row["instance_number"])))
            if place is None:
                continue
            counts[f"{row['source']}, {place[0]}"] += 1
            if row["condition"] in (SPINAL, DISC) and place[0] != AXIAL_T2:
                has[row["source"]].add((study_id, row["level"]))
            mark = marks.get(place)
            if row["source"] != EXTERNAL and mark is not None:
                kind = "canal" if row["condition"] == SPINAL else "foraminal"
                gap = mark[LEVELS.index(row["level"])] - (row["x_px"], row["y_px"])
                apart[kind].append(_in_plane_mm(study.series[place[0]][place[1]], gap))
    both = has["competition"] & has[EXTERNAL]
    return {
        "use": use,
        "counts": dict(sorted(counts.items())),
        "levels": {
            "competition alone": len(has["competition"] - both),
            "external alone": len(has[EXTERNAL] - both),
            "both": len(both),
        },
        "apart": {kind: _spread(np.array(values)) for kind, values in apart.items()},
    }


def _in_plane_mm(stack: Stack, gap_px: Array) -> float:
    between_rows, between_columns = stack.spacing_mm
    return float(np.hypot(gap_px[0] * between_columns, gap_px[1] * between_rows))


def _spread(values: Array) -> dict[str, float | None]:
    values = values[np.isfinite(values)]
    if not len(values):
        return {"n": 0, "median_mm": None, "p95_mm": None}
    return {"n": len(values), "median_mm": float(np.median(values)), "p95_mm": float(np.percentile(values, 95))}


def describe(points: Mapping[str, Any]) -> list[str]:
    """A ``summary`` in lines."""
    counts = ", ".join(f"{n} {source}" for source, n in points["counts"].items())
    levels = ", ".join(f"{n} {source}" for source, n in points["levels"].items())
    lines = [
        f"points, the external ones {points['use']} the competition's: {counts}",
        f"levels of studies with a sagittal canal point: {levels}",
    ]
    for kind, apart in points["apart"].items():
        if apart["n"]:
            lines.append(
                f"{kind} points that both mark on one slice: {apart['n']}, "
                f"apart by {apart['median_mm']:.1f} mm in the median, 95 % within {apart['p95_mm']:.1f} mm"
            )
    return lines
