"""The networks' input, cut from a study. Training uses the same functions and adds only jitter.

All arrays are float32 in 0..1, normalised per series (``Study.normalised``), 0 outside the image, never stretched.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lumbar.config import AxialClassifierConfig, SagittalClassifierConfig, SliceRoleConfig
from lumbar.dicom import Stack
from lumbar.geometry import (
    Grid,
    canonical_mm,
    is_inside,
    make_grid,
    plane_distance_mm,
    project,
    shifted,
)
from lumbar.labels import AXIAL_T2, LEVELS, SAGITTAL_T1, SAGITTAL_T2, SIDES
from lumbar.stages.points import Localisation, SagittalPoint, Xyz
from lumbar.study import Study

Images = NDArray[np.float32]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Jitter:
    """How a crop is displaced in training; the default changes nothing."""

    shift_mm: tuple[float, float] = (0.0, 0.0)
    angle_deg: float = 0.0
    scale: float = 1.0
    slices: int = 0


NO_JITTER = Jitter()


def grid_images(study: Study, stack: Stack, grid: Grid, indices: list[int] | None = None) -> Images:
    """Slices of a stack on a grid: (n, size, size)."""
    chosen = range(len(stack.volume)) if indices is None else indices
    return np.stack([study.sampled(stack, i, grid) for i in chosen])


def with_context(images: Images, context: int) -> Images:
    """Each slice with its neighbours as channels: (S, size, size) → (S, context, size, size); end slices repeat."""
    half = context // 2
    steps = np.arange(len(images))[:, None] + np.arange(-half, context - half)[None]
    return images[np.clip(steps, 0, len(images) - 1)]


def spine_box(stack: Stack, levels_mm: dict[str, Xyz]) -> tuple[tuple[float, float], float]:
    """Centre (x, y) in pixels and side in mm of the square around the levels' points in the plane of a stack."""
    points = np.array([project(stack, np.array(xyz))[1:] for xyz in levels_mm.values()])
    spacing_row, spacing_column = stack.spacing_mm
    extent = np.ptp(points, axis=0) * (spacing_column, spacing_row)
    centre = (points.min(axis=0) + points.max(axis=0)) / 2
    missing = 5 - len(points)  # each level that was not found widens the box by the height of one level
    return (float(centre[0]), float(centre[1])), float(max(extent.max() + 35.0 * missing, 80.0))


def role_inputs(
    study: Study, stack: Stack, levels_mm: dict[str, Xyz], config: SliceRoleConfig, jitter: Jitter = NO_JITTER
) -> Images:
    """Every slice of a sagittal stack cut to the box around the levels: (S, size, size)."""
    centre, side_mm = spine_box(stack, levels_mm)
    step = side_mm * config.box_scale * jitter.scale / config.size
    grid = make_grid(
        stack,
        size=config.size,
        mm_per_px=step,
        centre_px=shifted(stack, centre, jitter.shift_mm),
        angle_deg=jitter.angle_deg,
    )
    return grid_images(study, stack, grid)


def level_frame(stack: Stack, level: int, levels_mm: dict[str, Xyz]) -> tuple[float, float]:
    """Distance in mm from a level to the farther of its neighbours, and the spine's tilt in degrees, both in plane.

    The tilt is the angle by which a grid must be turned so that the spine runs straight down in it.
    """
    here = np.array(project(stack, np.array(levels_mm[LEVELS[level]]))[1:])
    steps = []
    for other in (level - 1, level + 1):
        if 0 <= other < 5 and LEVELS[other] in levels_mm:
            there = np.array(project(stack, np.array(levels_mm[LEVELS[other]]))[1:])
            steps.append(canonical_mm(stack, (there - here) * (1 if other > level else -1)))
    if not steps:
        return 34.0, 0.0
    direction = np.sum(steps, axis=0)
    tilt = float(np.degrees(np.arctan2(-direction[0], direction[1])))
    return float(max(np.linalg.norm(step) for step in steps)), tilt


def sagittal_crops(
    study: Study, localisation: Localisation, level: int, config: SagittalClassifierConfig, jitter: Jitter = NO_JITTER
) -> tuple[Images, NDArray[np.bool_]]:
    """The three windows of one level: crops (3, window, size, size) and mask (3, window).

    Window 0: T2 slices around the canal slice, right to left. Windows 1 and 2: T1 slices around the left and the right
    foramen, from the midline outwards. Slices that do not exist are masked.
    """
    crops = np.zeros((3, config.window, config.size, config.size), np.float32)
    mask = np.zeros((3, config.window), bool)
    name = LEVELS[level]
    if name not in localisation.levels_mm:
        return crops, mask
    wanted = ((SAGITTAL_T2, None), (SAGITTAL_T1, SIDES[0]), (SAGITTAL_T1, SIDES[1]))
    for row, (description, side) in enumerate(wanted):
        point = localisation.best(description, name, side)
        if point is None:
            continue
        stack = study.series[description][point.stack]
        grid = _level_grid(stack, point, level, localisation, config, jitter)
        # Slices run right to left, which for the right side is towards the midline: there they are taken backwards
        direction = -1 if side == "right" else 1
        for step in range(config.window):
            index = point.slice_index + direction * (step - config.window // 2) + jitter.slices
            if 0 <= index < len(stack.volume):
                crops[row, step] = study.sampled(stack, index, grid)
                mask[row, step] = True
    return crops, mask


def _level_grid(
    stack: Stack,
    point: SagittalPoint,
    level: int,
    localisation: Localisation,
    config: SagittalClassifierConfig,
    jitter: Jitter,
) -> Grid:
    distance, tilt = level_frame(stack, level, localisation.levels_mm)
    half = max(config.crop_scale * distance, config.min_half_mm) * jitter.scale
    return make_grid(
        stack,
        size=config.size,
        mm_per_px=2 * half / config.size,
        centre_px=shifted(stack, (point.x_px, point.y_px), jitter.shift_mm),
        angle_deg=tilt + jitter.angle_deg,
    )


def axial_window(
    study: Study, localisation: Localisation, level: int, series_id: str | None = None
) -> list[tuple[float, int, int]]:
    """Axial slices near a level: (signed distance in mm, stack, slice), foot to head.

    Slices of all series, or of the one named. A slice counts as near if the level's canal point lies inside its image,
    and its plane is closer than 0.7 times the distance to the neighbouring level.
    """
    name = LEVELS[level]
    if name not in localisation.levels_mm:
        return []
    point = np.array(localisation.levels_mm[name])
    gaps = [
        float(np.linalg.norm(np.array(localisation.levels_mm[LEVELS[other]]) - point))
        for other in (level - 1, level + 1)
        if 0 <= other < 5 and LEVELS[other] in localisation.levels_mm
    ]
    reach = 0.7 * (min(gaps) if gaps else 34.0)
    slices = []
    for number, stack in enumerate(study.series[AXIAL_T2]):
        _, x, y = project(stack, point)
        if series_id not in (None, stack.series_id) or not is_inside(stack, x, y):
            continue
        distances = -plane_distance_mm(stack, point)  # positive above the level
        slices += [(float(d), number, i) for i, d in enumerate(distances) if abs(d) <= reach]
    return sorted(slices)


def axial_crops(
    study: Study,
    localisation: Localisation,
    level: int,
    config: AxialClassifierConfig,
    jitter: Jitter = NO_JITTER,
    series_id: str | None = None,
) -> tuple[Images, NDArray[np.bool_]]:
    """Crops of one level's axial slices, foot to head, nearest slice in the middle: (window, size, size) and mask.

    Slices of all series together, or only of the one named: then a level that it does not show is masked.
    """
    crops = np.zeros((config.window, config.size, config.size), np.float32)
    mask = np.zeros(config.window, bool)
    nearest = localisation.axial(LEVELS[level], series_id)
    if nearest is None:
        return crops, mask
    slices = axial_window(study, localisation, level, series_id)
    middle = next((k for k, (_, n, i) in enumerate(slices) if n == nearest.stack and i == nearest.slice_index), None)
    if middle is None:
        return crops, mask
    reference = study.series[AXIAL_T2][nearest.stack]
    left, right = np.array(nearest.left_px), np.array(nearest.right_px)
    across = canonical_mm(reference, left - right)
    low, high = config.box_mm
    side_mm = float(np.clip(config.box_scale * np.linalg.norm(across), low, high)) * jitter.scale
    tilt = float(np.degrees(np.arctan2(across[1], across[0])))
    middle_px = (left + right) / 2
    centre_mm = reference.to_patient(nearest.slice_index, middle_px[1], middle_px[0])
    for step in range(config.window):
        k = middle + step - config.window // 2 + jitter.slices
        if not 0 <= k < len(slices):
            continue
        _, number, index = slices[k]
        stack = study.series[AXIAL_T2][number]
        _, x, y = project(stack, centre_mm)
        grid = make_grid(
            stack,
            size=config.size,
            mm_per_px=side_mm / config.size,
            centre_px=shifted(stack, (x, y), jitter.shift_mm),
            angle_deg=(tilt if abs(tilt) < 45 else 0.0) + jitter.angle_deg,
        )
        crops[step] = study.sampled(stack, index, grid)
        mask[step] = True
    return crops, mask
