"""Which series are acquired and where their slices lie: sagittal stacks, and axial ones with or without angulation."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from lumbar.labels import AXIAL_T2, SAGITTAL_T1, SAGITTAL_T2
from lumbar_phantom import anatomy as an


@dataclass(slots=True)
class StackPlan:
    """Parallel slices, ordered along their normal; mm in patient space (LPS).

    Attributes:
        origins: (n, 3) centre of pixel (0, 0) of each slice.
        row_mm: (3,) step from one row to the next.
        column_mm: (3,) step from one column to the next.
        normal: (3,) unit vector from one slice to the next.
        shape: rows, columns.
        thickness: of a slice.
        spacing: between the centres of neighbouring slices.
    """

    origins: np.ndarray
    row_mm: np.ndarray
    column_mm: np.ndarray
    normal: np.ndarray
    shape: tuple[int, int]
    thickness: float
    spacing: float


@dataclass(slots=True)
class SeriesPlan:
    """One series.

    Attributes:
        description: as in the table of series.
        kind: contrast: t1, t2 or stir.
        stacks: its slices.
        instances: of each stack, the instance numbers (n,) of its slices.
    """

    description: str
    kind: str
    stacks: list[StackPlan]
    instances: list[np.ndarray] = field(default_factory=list)


def sagittal_stack(rng: np.random.Generator, patient: an.Patient, *, non_square: bool, short: bool) -> StackPlan:
    """A sagittal stack that covers both foramina, and the spine from about T11 to the sacrum.

    Args:
        rng: draws field of view, matrix and angulation.
        patient: where the spine lies.
        non_square: fewer columns than rows, or fewer rows than columns.
        short: only 8 to 10 slices.
    """
    geometry = patient.stations_geometry
    count = int(rng.choice([8, 9, 10])) if short else int(np.clip(rng.normal(17, 3), 11, 38))
    spacing = float(np.clip(rng.normal(4.4, 0.45), 3.3, 5.5))
    if count < 13:
        spacing = max(spacing, 4.5)  # few slices must still reach the foramina
    thickness = spacing * float(rng.uniform(0.78, 1.0))
    top, bottom = geometry[10, :3], geometry[20, :3]
    lean = np.arctan2(top[0] - bottom[0], top[2] - bottom[2])  # along the lumbar spine
    turn = np.deg2rad(rng.normal(0, 2.0))
    lean += np.deg2rad(rng.normal(0, 1.5))
    pitch = np.deg2rad(rng.normal(0, 1.5))
    across = np.array([np.cos(lean) * np.cos(turn), np.sin(turn), -np.sin(lean) * np.cos(turn)])
    down = np.array([-np.sin(lean), np.sin(pitch), -np.cos(lean) * np.cos(pitch)])
    down -= across * (down @ across)
    down /= np.linalg.norm(down)
    back = np.cross(down, across)
    back *= np.sign(back[1])
    fov = float(np.clip(rng.normal(300, 32), 215, 380))
    size = int(rng.choice([320, 384, 400, 448, 512, 512, 560, 640]))
    pixel = fov / size
    rows, columns = size, size
    if non_square:
        if rng.random() < 0.6:
            columns = int(size * rng.uniform(0.6, 0.97)) // 2 * 2
        else:
            rows = int(size * rng.uniform(0.8, 0.97)) // 2 * 2
    middle = 0.5 * (geometry[15, :3] + geometry[16, :3])  # L3/4
    ahead = 20 - 0.04 * columns * pixel
    middle = middle + np.array([rng.normal(0, 2.5), ahead + rng.normal(0, 9), 5 + rng.normal(0, 11)])
    corner = middle - 0.5 * rows * pixel * down - 0.5 * columns * pixel * back
    places = (np.arange(count) - (count - 1) / 2 + rng.uniform(-0.4, 0.4)) * spacing
    return StackPlan(
        corner + places[:, None] * across, down * pixel, back * pixel, across, (rows, columns), thickness, spacing
    )


def _axial_stack(
    centre: np.ndarray,
    normal: np.ndarray,
    left: np.ndarray,
    places: np.ndarray,
    size: int,
    fov: float,
    thickness: float,
    spacing: float,
    rows: int,
) -> StackPlan:
    """Axial slices around a point: `places` (n,) are their positions along the normal, mm."""
    normal = normal / np.linalg.norm(normal)
    left = left - normal * (left @ normal)
    left = left / np.linalg.norm(left)
    back = np.cross(normal, left)
    pixel = fov / size
    corner = centre - 0.5 * (size - 1) * pixel * left - 0.5 * (rows - 1) * pixel * back
    return StackPlan(
        corner + places[:, None] * normal, back * pixel, left * pixel, normal, (rows, size), thickness, spacing
    )


def axial_series(rng: np.random.Generator, patient: an.Patient, pitfalls: frozenset[str]) -> list[list[StackPlan]]:
    """The stacks of each axial series, one list per series.

    With the pitfall `mixed_blocks` a series has one stack per disc, each in the plane of its disc, from L5/S1 upwards;
    without it, one stack of parallel slices over all levels. `partial_axial` leaves out upper or lower levels,
    `several_axial` gives two series.
    """
    geometry = patient.stations_geometry
    size = int(rng.choice([256, 320, 320, 384, 384, 448, 512, 512]))
    fov = float(np.clip(rng.normal(190, 22), 140, 260))
    rows = int(size * rng.uniform(0.75, 0.95)) // 2 * 2 if "non_square" in pitfalls and rng.random() < 0.5 else size
    spacing = float(np.clip(rng.normal(4.4, 0.5), 3.3, 6.0))
    thickness = spacing * float(rng.uniform(0.75, 1.0))
    levels = list(range(5))
    if "partial_axial" in pitfalls:
        levels = levels[int(rng.integers(1, 4)) :] if rng.random() < 0.8 else levels[: int(rng.integers(2, 5))]
    shift = np.array([rng.normal(0, 4), 14 + rng.normal(0, 6), 0.0])
    left = np.array([1.0, rng.normal(0, 0.02), rng.normal(0, 0.015)])
    common = (size, fov, thickness, spacing, rows)
    if "mixed_blocks" in pitfalls:
        count = int(rng.integers(3, 8))
        stacks = []
        for k in levels:
            disc = 0.5 * (geometry[2 * an.LEVEL_DISCS[k] + 1] + geometry[2 * an.LEVEL_DISCS[k] + 2])
            tilt = np.deg2rad(rng.normal(0, 3))
            normal = disc[9:12] * np.cos(tilt) + disc[6:9] * np.sin(tilt)
            places = (np.arange(count) - (count - 1) / 2 + rng.uniform(-0.3, 0.3)) * spacing
            stacks.append(_axial_stack(disc[:3] + shift, normal, left, places, *common))
        stacks = stacks[::-1]
    else:
        first, last = an.LEVEL_DISCS[levels[0]], an.LEVEL_DISCS[levels[-1]]
        top, bottom = geometry[2 * first + 1], geometry[2 * last + 2]
        middle = 0.5 * (geometry[2 * 7 + 1] + geometry[2 * 8 + 2])
        normal = np.array([0.0, middle[10] * 0.8, middle[11]]) + np.array([0, rng.normal(0, 0.04), 0])
        normal /= np.linalg.norm(normal)
        centre = 0.5 * (top[:3] + bottom[:3])
        half = 0.5 * float((top[:3] - bottom[:3]) @ normal) + rng.uniform(8, 22)
        count = int(np.clip(round(2 * half / spacing), 5, 192))
        places = (np.arange(count) - (count - 1) / 2) * spacing
        stacks = [_axial_stack(centre + shift, normal, left, places, *common)]
    if "several_axial" not in pitfalls:
        return [stacks]
    if len(stacks) > 1:
        cut = int(rng.integers(1, len(stacks)))
        return [stacks[:cut], stacks[cut:]]
    whole = stacks[0]
    n_repeated = max(5, len(whole.origins) // 3)
    repeated = replace(whole, origins=whole.origins[:n_repeated] + whole.normal * rng.uniform(0, 2))
    return [[whole], [repeated]]


def plan_study(rng: np.random.Generator, patient: an.Patient, pitfalls: frozenset[str]) -> list[SeriesPlan]:
    """All series of a study, with instance numbers."""
    base = sagittal_stack(rng, patient, non_square="non_square" in pitfalls, short="short_series" in pitfalls)
    t2_kind = "stir" if rng.random() < 0.25 else "t2"
    plans: list[SeriesPlan] = []
    other = sagittal_stack(rng, patient, non_square="non_square" in pitfalls, short=False)
    t1_stack = other if rng.random() < 0.15 else base
    if "missing_t1" not in pitfalls:
        plans.append(SeriesPlan(SAGITTAL_T1, "t1", [t1_stack]))
        if "two_t1" in pitfalls:
            plans.append(SeriesPlan(SAGITTAL_T1, "t1", [other]))
    if "missing_t2" not in pitfalls:
        plans.append(SeriesPlan(SAGITTAL_T2, t2_kind, [base]))
    plans += [SeriesPlan(AXIAL_T2, "t2", stacks) for stacks in axial_series(rng, patient, pitfalls)]
    t2_is_reversed = rng.random() < 0.5
    for plan in plans:
        is_reversed = t2_is_reversed ^ ("reversed_order" in pitfalls and plan.description != SAGITTAL_T2)
        plan.instances = _instance_numbers(rng, plan.stacks, is_reversed, pitfalls)
    return plans


def _instance_numbers(
    rng: np.random.Generator, stacks: list[StackPlan], is_reversed: bool, pitfalls: frozenset[str]
) -> list[np.ndarray]:
    """Instance numbers of each stack, in the order of its slices or against it; one stack goes on after the other."""
    start = int(rng.integers(900, 5020)) if "large_instances" in pitfalls else 1
    out = []
    for stack in stacks:
        count = len(stack.origins)
        if "instance_gaps" in pitfalls:
            numbers = start + np.cumsum(rng.integers(1, 4, count))
        else:
            numbers = start + np.arange(count)
        start = int(numbers[-1]) + 1
        out.append(numbers[::-1].copy() if is_reversed else numbers)
    return out
