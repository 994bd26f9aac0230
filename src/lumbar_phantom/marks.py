"""Where a reader clicks: the slice chosen for each condition, level and side, and the pixel on it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lumbar import labels
from lumbar_phantom.anatomy import LEVEL_DISCS
from lumbar_phantom.hard_images import FEW
from lumbar_phantom.patients import CANAL_HABITS, Case, canal_point
from lumbar_phantom.protocol import SeriesPlan, StackPlan
from lumbar_phantom.tables import StudyTables

REACH_MM = 7.0  # a level further than this from every axial slice is not marked
FEW_REACH_MM = 9.0  # a foramen further than this from every slice of a sagittal series of few is not marked
# By condition, in the order of `labels.CONDITIONS`
_SERIES_OF = (labels.SAGITTAL_T2, labels.SAGITTAL_T1, labels.SAGITTAL_T1, labels.AXIAL_T2, labels.AXIAL_T2)
_SIDES = (None, "left", "right", "left", "right")
_SLICE_SD_MM = (0.8, 1.0, 1.0, 1.6, 1.6)  # how far off the best slice readers are
_CLICK_SD_MM = 0.7
_L4_L5 = 3


class Placement(NamedTuple):
    """The slice on which a point is marked, and the pixel there."""

    series: int  # place in the list of plans
    stack: StackPlan
    slice_index: int  # in the stack
    distance_mm: float  # from the point to the slice
    instance_number: int
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class _Reader:
    """How one reader marks one study.

    Attributes:
        canal_habit: see `patients.canal_point`.
        unmarked: (condition, level) pairs that the reader leaves out.
        marked_side: condition, 1 left or 2 right, whose foraminal slice is also taken for the other side; None if each
            side gets a slice of its own.
        swaps_l4_l5: the reader mixes up left and right at L4/L5 on axial slices.
    """

    canal_habit: float
    unmarked: frozenset[tuple[int, int]]
    marked_side: int | None
    swaps_l4_l5: bool


def project(stack: StackPlan, slice_index: int, point: np.ndarray) -> tuple[float, float]:
    """Pixel (x, y) of a point (3,) of patient space, dropped onto a slice along its normal."""
    offset = point - stack.origins[slice_index]
    return (
        float(offset @ stack.column_mm / (stack.column_mm @ stack.column_mm)),
        float(offset @ stack.row_mm / (stack.row_mm @ stack.row_mm)),
    )


def nearest_slice(
    plans: list[SeriesPlan], candidates: list[int], point: np.ndarray, jitter_mm: float
) -> Placement | None:
    """The slice nearest to a point among some series, or None where every stack misses the point.

    Args:
        plans: of all series.
        candidates: places in `plans` of the series to choose from; an earlier one is kept unless a later one is
            nearer by more than 1 mm.
        point: (3,) in patient space, mm.
        jitter_mm: how far along the normal the reader's choice is off.
    """
    best: Placement | None = None
    for series in candidates:
        for stack, instances in zip(plans[series].stacks, plans[series].instances, strict=True):
            distance = (stack.origins - point) @ stack.normal
            k = int(np.argmin(np.abs(distance + jitter_mm)))
            x, y = project(stack, k, point)
            if not (0 <= x < stack.shape[1] and 0 <= y < stack.shape[0]):
                continue
            if best is None or abs(distance[k]) < best.distance_mm - 1.0:
                best = Placement(series, stack, k, abs(float(distance[k])), int(instances[k]), x, y)
    return best


def mark(
    rng: np.random.Generator,
    case: Case,
    plans: list[SeriesPlan],
    ids: list[int],
    pitfalls: frozenset[str],
    tables: StudyTables,
) -> None:
    """Add the coordinate and truth rows of a study to its tables.

    Args:
        rng: draws the reader and every click.
        case: patient and grades.
        plans: the study's series.
        ids: series id of each plan.
        pitfalls: of the study.
        tables: its `truth` and `coordinates` are extended.
    """
    reader = _draw_reader(rng, pitfalls)
    jitters: dict[tuple[int, int], float] = {}
    for c, condition in enumerate(labels.CONDITIONS):
        candidates = [s for s, plan in enumerate(plans) if plan.description == _SERIES_OF[c]]
        if _SERIES_OF[c] != labels.AXIAL_T2:
            candidates = candidates[:1]  # of several sagittal series of one kind, readers mark the first
        for k, level in enumerate(labels.LEVELS):
            jitter = float(rng.normal(0, _SLICE_SD_MM[c]))
            if reader.marked_side is not None and c == 2:
                jitter = jitters[1, k]
            jitters[c, k] = jitter
            click_mm = rng.normal(0, _CLICK_SD_MM, 2)
            placement = nearest_slice(plans, candidates, case.points[c, k], jitter)
            if placement is None or placement.distance_mm > _reach_mm(placement, c):
                continue
            series_id = ids[placement.series]
            truth = (tables.study_id, series_id, placement.instance_number, condition, level, _SIDES[c])
            narrowing = float(case.narrowing[c, k])
            tables.truth.append((*truth, placement.x, placement.y, *case.points[c, k], narrowing))
            if case.labels[c, k] < 0 or (c, k) in reader.unmarked:
                continue
            instance, x, y = _clicked(reader, case, plans, candidates, placement, (c, k), jitter)
            mm_per_px = np.linalg.norm(placement.stack.row_mm)
            tables.coordinates.append(
                (
                    tables.study_id,
                    series_id,
                    instance,
                    _written_title(reader, c, k),
                    labels.level_title(level),
                    round(x + click_mm[0] / mm_per_px, 6),
                    round(y + click_mm[1] / mm_per_px, 6),
                )
            )


def _reach_mm(placement: Placement, condition: int) -> float:
    """How far from the nearest slice a point may lie to be marked."""
    if _SERIES_OF[condition] == labels.AXIAL_T2:
        return REACH_MM
    is_foramen = condition > 0
    return FEW_REACH_MM if is_foramen and len(placement.stack.origins) <= FEW else math.inf


def _draw_reader(rng: np.random.Generator, pitfalls: frozenset[str]) -> _Reader:
    unmarked = {(0, k) for k in range(5) if rng.random() < 0.4} if "incomplete_points" in pitfalls else set()
    marked_side = 2 if rng.random() < 0.5 else 1
    return _Reader(
        canal_habit=float(rng.uniform(*CANAL_HABITS)),
        unmarked=frozenset(unmarked),
        marked_side=marked_side if "one_sided_points" in pitfalls else None,
        swaps_l4_l5="swapped_sides" in pitfalls,
    )


def _clicked(
    reader: _Reader,
    case: Case,
    plans: list[SeriesPlan],
    candidates: list[int],
    placement: Placement,
    place: tuple[int, int],
    jitter_mm: float,
) -> tuple[int, float, float]:
    """Instance number, x and y that the reader writes down for a (condition, level), before the click's own error."""
    c, k = place
    instance, x, y = placement.instance_number, placement.x, placement.y
    if reader.marked_side is not None and c in (1, 2) and c != reader.marked_side:
        other_side = nearest_slice(plans, candidates, case.points[3 - c, k], jitter_mm)
        instance = other_side.instance_number if other_side else instance
    if c == 0:
        x, y = project(
            placement.stack, placement.slice_index, canal_point(case.patient, LEVEL_DISCS[k], reader.canal_habit)
        )
    return instance, x, y


def _written_title(reader: _Reader, c: int, k: int) -> str:
    """The condition's title in the table of coordinates."""
    is_swapped = reader.swaps_l4_l5 and _SERIES_OF[c] == labels.AXIAL_T2 and k == _L4_L5
    return labels.CONDITION_TITLES[7 - c if is_swapped else c]
