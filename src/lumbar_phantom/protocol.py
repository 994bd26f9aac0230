"""Which series are taken and where their slices lie: sagittal stacks, axial blocks, along or across the discs."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lumbar.labels import AXIAL_T2, SAGITTAL_T1, SAGITTAL_T2
from lumbar_phantom import anatomy as an


@dataclass(slots=True)
class StackPlan:
    """Parallel slices: origins (n, 3) of pixel (0, 0) in mm, ordered along the normal; steps per row and column."""

    origins: np.ndarray
    row_mm: np.ndarray
    column_mm: np.ndarray
    normal: np.ndarray
    shape: tuple[int, int]
    thickness: float
    spacing: float


@dataclass(slots=True)
class SeriesPlan:
    """One series: what it is called, its contrast, its stacks, and each slice's instance number."""

    description: str
    kind: str  # t1, t2 or stir
    stacks: list[StackPlan]
    instances: list[np.ndarray] = field(default_factory=list)


def sagittal_stack(rng: np.random.Generator, patient: an.Patient, *, non_square: bool, short: bool) -> StackPlan:
    """A sagittal block over both foramina, T11 or so to the sacrum."""
    geometry = patient.stations_geometry
    count = int(rng.choice([8, 9, 10])) if short else int(np.clip(rng.normal(17, 3), 11, 38))
    spacing = float(np.clip(rng.normal(4.4, 0.45), 3.3, 5.5))
    if count < 13:
        spacing = max(spacing, 4.5)
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


def _axial_block(
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
    """One list of stacks per axial series."""
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
            g = 0.5 * (geometry[2 * an.LEVEL_DISCS[k] + 1] + geometry[2 * an.LEVEL_DISCS[k] + 2])
            tilt = np.deg2rad(rng.normal(0, 3))
            normal = g[9:12] * np.cos(tilt) + g[6:9] * np.sin(tilt)
            places = (np.arange(count) - (count - 1) / 2 + rng.uniform(-0.3, 0.3)) * spacing
            stacks.append(_axial_block(g[:3] + shift, normal, left, places, *common))
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
        stacks = [_axial_block(centre + shift, normal, left, places, *common)]
    if "several_axial" not in pitfalls:
        return [stacks]
    if len(stacks) > 1:
        cut = int(rng.integers(1, len(stacks)))
        return [stacks[:cut], stacks[cut:]]
    again = stacks[0]
    keep = max(5, len(again.origins) // 3)
    part = StackPlan(
        again.origins[:keep] + again.normal * rng.uniform(0, 2),
        again.row_mm,
        again.column_mm,
        again.normal,
        again.shape,
        again.thickness,
        again.spacing,
    )
    return [[again], [part]]


def plan_study(rng: np.random.Generator, patient: an.Patient, pitfalls: frozenset[str]) -> list[SeriesPlan]:
    """All series of a study with instance numbers."""
    base = sagittal_stack(rng, patient, non_square="non_square" in pitfalls, short="short_series" in pitfalls)
    water = "stir" if rng.random() < 0.25 else "t2"
    plans: list[SeriesPlan] = []
    other = sagittal_stack(rng, patient, non_square="non_square" in pitfalls, short=False)
    t1_stack = other if rng.random() < 0.15 else base
    if "missing_t1" not in pitfalls:
        plans.append(SeriesPlan(SAGITTAL_T1, "t1", [t1_stack]))
        if "two_t1" in pitfalls:
            plans.append(SeriesPlan(SAGITTAL_T1, "t1", [other]))
    if "missing_t2" not in pitfalls:
        plans.append(SeriesPlan(SAGITTAL_T2, water, [base]))
    plans += [SeriesPlan(AXIAL_T2, "t2", stacks) for stacks in axial_series(rng, patient, pitfalls)]
    direction = rng.random() < 0.5
    for plan in plans:
        turned = direction ^ ("reversed_order" in pitfalls and plan.description != SAGITTAL_T2)
        plan.instances = _number(rng, plan.stacks, turned, pitfalls)
    return plans


def _number(
    rng: np.random.Generator, stacks: list[StackPlan], turned: bool, pitfalls: frozenset[str]
) -> list[np.ndarray]:
    start = int(rng.integers(900, 5020)) if "large_instances" in pitfalls else 1
    out = []
    for stack in stacks:
        count = len(stack.origins)
        if "instance_gaps" in pitfalls:
            numbers = start + np.cumsum(rng.integers(1, 4, count))
        else:
            numbers = start + np.arange(count)
        start = int(numbers[-1]) + 1
        out.append(numbers[::-1].copy() if turned else numbers)
    return out
