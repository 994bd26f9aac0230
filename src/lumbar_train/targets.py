"""Labelled points in patient space: what the localisers learn, carried from the labelled slice to every other one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lumbar.dicom import Stack
from lumbar.labels import AXIAL_T2, CONDITIONS, LEVELS, SAGITTAL_T1, SAGITTAL_T2, SIDES, SPINAL
from lumbar.stages.crop import project
from lumbar.study import Study

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
    """Points of a study in patient mm, NaN where not labelled: canal (5, 3), foramen (2 sides, 5, 3)."""

    canal_mm: Array
    foramen_mm: Array
    axial: list[AxialTarget]

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


def study_targets(study: Study, points: pd.DataFrame) -> StudyTargets:
    """Lift a study's labelled pixels to patient space.

    Args:
        study: its stacks.
        points: the study's rows of ``Cohort.points``.
    """
    canal = np.full((5, 3), np.nan)
    foramen = np.full((2, 5, 3), np.nan)
    axial: dict[tuple[int, int, int], Array] = {}
    where = _slices(study)
    for row in points.to_dict("records"):
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
    found = [AxialTarget(number, index, level, both) for (number, index, level), both in sorted(axial.items())]
    return StudyTargets(canal, foramen, found)


def _slices(study: Study) -> dict[tuple[str, int], tuple[str, int, int]]:
    return {
        (stack.series_id, int(instance)): (description, number, index)
        for description, stacks in study.series.items()
        for number, stack in enumerate(stacks)
        for index, instance in enumerate(stack.instance_numbers)
    }


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
