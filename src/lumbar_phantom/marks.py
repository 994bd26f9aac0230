"""Where a reader clicks: the slice chosen for each condition, level and side, and the pixel on it."""

from __future__ import annotations

from typing import Any

import numpy as np

from lumbar import labels
from lumbar_phantom.anatomy import LEVEL_DISCS
from lumbar_phantom.patients import HABITS, Case, canal_point
from lumbar_phantom.protocol import SeriesPlan, StackPlan
from lumbar_phantom.tables import StudyTables

_SERIES_OF = (labels.SAGITTAL_T2, labels.SAGITTAL_T1, labels.SAGITTAL_T1, labels.AXIAL_T2, labels.AXIAL_T2)
_SIDES = (None, "left", "right", "left", "right")
REACH_MM = 7.0  # a level further than this from every axial slice is not marked


def project(stack: StackPlan, k: int, point: np.ndarray) -> tuple[float, float]:
    """Pixel (x, y) of a patient point on slice k, dropped along the normal."""
    offset = point - stack.origins[k]
    return (
        float(offset @ stack.column_mm / (stack.column_mm @ stack.column_mm)),
        float(offset @ stack.row_mm / (stack.row_mm @ stack.row_mm)),
    )


def _nearest(plans: list[SeriesPlan], wanted: list[int], point: np.ndarray, jitter: float) -> tuple[Any, ...] | None:
    """(series place, stack, slice, distance) nearest to a point among the series `wanted`."""
    best = None
    for s in wanted:
        for stack, instances in zip(plans[s].stacks, plans[s].instances, strict=True):
            distance = (stack.origins - point) @ stack.normal
            k = int(np.argmin(np.abs(distance + jitter)))
            x, y = project(stack, k, point)
            if not (0 <= x < stack.shape[1] and 0 <= y < stack.shape[0]):
                continue
            if best is None or abs(distance[k]) < best[3] - 1.0:
                best = (s, stack, k, abs(float(distance[k])), int(instances[k]), x, y)
    return best


def mark(
    rng: np.random.Generator,
    case: Case,
    plans: list[SeriesPlan],
    ids: list[int],
    pitfalls: frozenset[str],
    tables: StudyTables,
) -> None:
    """Fill the coordinate and truth rows of a study."""
    dropped = {(0, k) for k in range(5) if rng.random() < 0.4} if "incomplete_points" in pitfalls else set()
    one_sided = rng.random() < 0.5
    habit = float(rng.uniform(*HABITS))
    jitters: dict[tuple[int, int], float] = {}
    for c, condition in enumerate(labels.CONDITIONS):
        wanted = [s for s, plan in enumerate(plans) if plan.description == _SERIES_OF[c]]
        if c < 3:
            wanted = wanted[:1]
        for k, level in enumerate(labels.LEVELS):
            point = case.points[c, k]
            jitter = float(rng.normal(0, (0.8, 1.0, 1.0, 1.6, 1.6)[c]))
            if "one_sided_points" in pitfalls and c == 2:  # both sides are marked on one slice
                jitter = jitters[1, k]
            jitters[c, k] = jitter
            slip = rng.normal(0, 0.7, 2)
            found = _nearest(plans, wanted, point, jitter) if wanted else None
            if found is None or (c >= 3 and found[3] > REACH_MM):
                continue
            s, stack, place, _, instance, x, y = found
            tables.truth.append(
                (
                    tables.study_id,
                    ids[s],
                    instance,
                    condition,
                    level,
                    _SIDES[c],
                    x,
                    y,
                    *point,
                    float(case.narrowing[c, k]),
                )
            )
            if case.labels[c, k] < 0 or (c, k) in dropped:
                continue
            written = condition
            if "swapped_sides" in pitfalls and c >= 3 and k == 3:
                written = labels.CONDITIONS[7 - c]
            if "one_sided_points" in pitfalls and c in (1, 2) and (c == 1) == one_sided:
                mirrored = _nearest(plans, wanted, case.points[3 - c, k], jitter)
                instance = mirrored[4] if mirrored else instance
            if c == 0:
                seen = canal_point(case.patient, LEVEL_DISCS[k], habit)
                x, y = project(stack, place, seen)
            pixel = np.linalg.norm(stack.row_mm)
            tables.coordinates.append(
                (
                    tables.study_id,
                    ids[s],
                    instance,
                    labels.CONDITION_TITLES[labels.CONDITIONS.index(written)],
                    labels.level_title(level),
                    round(x + slip[0] / pixel, 6),
                    round(y + slip[1] / pixel, 6),
                )
            )
