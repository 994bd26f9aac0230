"""Labelled points in patient space: what the localisers learn, carried from the labelled slice to every other one."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lumbar.dicom import Stack
from lumbar.geometry import project
from lumbar.labels import AXIAL_T2, CONDITIONS, LEVELS, SAGITTAL_T1, SAGITTAL_T2, SIDES, SPINAL
from lumbar.study import Study
from lumbar_train.data.external_points import EXTERNAL, Place, canal_of_marks, marks_by_slice, slices_of

Array = NDArray[np.float64]


@dataclass(frozen=True)
class AxialTarget:
    """One axial slice with its left and right subarticular points (2, 2) in pixels (x, y); NaN where not marked."""

    stack: int
    slice_index: int
    level: int
    points_px: Array


@dataclass(frozen=True)
class StudyTargets:
    """Points of a study in patient mm, NaN where not labelled: canal (5, 3), foramen (2 sides, 5, 3).

    ``marks``: what an external table marks on single sagittal slices, (5 levels, 2) in pixels (x, y) by series
    description, stack and slice.
    """

    canal_mm: Array
    foramen_mm: Array
    axial: list[AxialTarget]
    marks: dict[Place, Array] = field(default_factory=dict)

    @property
    def is_usable(self) -> bool:
        """Whether at least three canal levels are known, enough to place a box."""
        return bool(np.isfinite(self.canal_mm[:, 0]).sum() >= 3)

    @property
    def levels_mm(self) -> dict[str, tuple[float, float, float]]:
        """Known canal points by level."""
        return {
            LEVELS[k]: (float(p[0]), float(p[1]), float(p[2]))
            for k, p in enumerate(self.canal_mm)
            if np.isfinite(p).all()
        }


def study_targets(study: Study, points: pd.DataFrame, use: str = "beside") -> StudyTargets:
    """Lift a study's labelled pixels to patient space.

    Args:
        study: its stacks.
        points: the study's rows of ``Cohort.points``.
        use: external points ``beside`` the competition's fill in what those leave out; ``instead`` of them they come
            first.
    """
    where = slices_of(study)
    canal, foramen, axial = _lifted(study, points, where, use)
    marks = marks_by_slice(points, where, use)
    if marks:
        external = canal_of_marks(study, marks, canal)
        first, second = (canal, external) if use == "beside" else (external, canal)
        canal = np.where(np.isfinite(first), first, second)
    axial_targets = [AxialTarget(number, index, level, both) for (number, index, level), both in sorted(axial.items())]
    return StudyTargets(canal, foramen, axial_targets, marks)


def _lifted(
    study: Study, points: pd.DataFrame, where: dict[tuple[str, int], Place], use: str
) -> tuple[Array, Array, dict[tuple[int, int, int], Array]]:
    """Canal (5, 3), foramen (2, 5, 3) and axial points (2, 2) by stack, slice and level, of rows with a condition."""
    canal, foramen = np.full((5, 3), np.nan), np.full((2, 5, 3), np.nan)
    axial: dict[tuple[int, int, int], Array] = {}
    rows = points.to_dict("records")
    rows.sort(key=lambda row: (row.get("source") == EXTERNAL) == (use == "instead"))  # what comes first is set last
    for row in rows:
        place = where.get((str(row["series_id"]), int(row["instance_number"])))
        if place is None or row["level"] not in LEVELS or row["condition"] not in CONDITIONS:
            continue
        description, number, index = place
        stack = study.series[description][number]
        level = LEVELS.index(row["level"])
        if row["condition"] == SPINAL:
            if description != AXIAL_T2:
                canal[level] = stack.to_patient(index, row["y_px"], row["x_px"])
        elif "foraminal" in row["condition"]:
            if description != AXIAL_T2:
                foramen[SIDES.index(row["side"]), level] = stack.to_patient(index, row["y_px"], row["x_px"])
        elif description == AXIAL_T2:
            both = axial.setdefault((number, index, level), np.full((2, 2), np.nan))
            both[SIDES.index(row["side"])] = (row["x_px"], row["y_px"])
    return canal, foramen, axial


def sagittal_stacks(study: Study) -> list[tuple[str, int, Stack]]:
    """All sagittal stacks as (description, number, stack)."""
    return [
        (description, number, stack)
        for description in (SAGITTAL_T2, SAGITTAL_T1)
        for number, stack in enumerate(study.series[description])
    ]


def slice_counts(stack: Stack, targets: StudyTargets) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Marked levels on each slice: counts (S, 3) of left foraminal, right foraminal, canal; and which are known (3,).

    A point counts for the slice nearest to it, if it lies within the stack; a kind of which fewer than three levels
    are labelled is not known.
    """
    counts = np.zeros((len(stack.volume), 3), np.float32)
    kinds = (targets.foramen_mm[0], targets.foramen_mm[1], targets.canal_mm)
    known = np.zeros(3, bool)
    for k, points in enumerate(kinds):
        good = points[np.isfinite(points).all(axis=1)]
        known[k] = len(good) >= 3
        for point in good:
            index = round(project(stack, point)[0])
            if 0 <= index < len(counts):
                counts[index, k] += 1
    return counts, known
