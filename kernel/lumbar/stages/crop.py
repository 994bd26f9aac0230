"""The networks' input, cut from a study. Training uses the same functions and adds only jitter.

All arrays are float32 in 0..1, normalised per series (``Study.normalised``), 0 outside the image, never stretched.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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
from lumbar.stages.crop_layout import Crops, CropSlice, Images, Look, SeriesPair, crops_shape, filled, thinned
from lumbar.stages.points import AxialLevel, Localisation, SagittalPoint, Xyz
from lumbar.study import Study

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Jitter:
    """Displacement of a crop in training; the default changes nothing.

    ``shift`` is a share of the crop's side, beside the ``shift_mm`` in mm; both are along the canonical directions.
    """

    shift_mm: tuple[float, float] = (0.0, 0.0)
    angle_deg: float = 0.0
    scale: float = 1.0
    slices: int = 0
    shift: tuple[float, float] = (0.0, 0.0)

    def moved_mm(self, side_mm: float) -> tuple[float, float]:
        """How far a crop of a given side is moved."""
        (x, y), (share_x, share_y) = self.shift_mm, self.shift
        return (x + share_x * side_mm, y + share_y * side_mm)


NO_JITTER = Jitter()


def grid_images(study: Study, stack: Stack, grid: Grid, indices: list[int] | None = None) -> Images:
    """Slices of a stack on a grid: (n, size, size)."""
    chosen = range(len(stack.volume)) if indices is None else indices
    images = np.empty((len(chosen), grid.size, grid.size), np.float32)
    for image, index in zip(images, chosen, strict=True):
        image[:] = study.sampled(stack, index, grid)
    return images


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
    return grid_images(study, stack, role_grid(stack, levels_mm, config, jitter))


def role_grid(stack: Stack, levels_mm: dict[str, Xyz], config: SliceRoleConfig, jitter: Jitter = NO_JITTER) -> Grid:
    """The box around the levels as a grid."""
    centre, side_mm = spine_box(stack, levels_mm)
    return make_grid(
        stack,
        size=config.size,
        mm_per_px=side_mm * config.box_scale * jitter.scale / config.size,
        centre_px=shifted(stack, centre, jitter.shift_mm),
        angle_deg=jitter.angle_deg,
    )


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


def level_crops(
    study: Study,
    localisation: Localisation,
    level: int,
    config: SagittalClassifierConfig | AxialClassifierConfig,
    jitter: Jitter = NO_JITTER,
    look: Look = None,
) -> Crops:
    """One level's crops as ``config`` asks for them, of one look."""
    slices = level_slices(study, localisation, level, config, jitter, look)
    return filled(study, slices, crops_shape(config, slices), config.size)


def level_slices(
    study: Study,
    localisation: Localisation,
    level: int,
    config: SagittalClassifierConfig | AxialClassifierConfig,
    jitter: Jitter = NO_JITTER,
    look: Look = None,
) -> list[CropSlice]:
    """What ``level_crops`` shows, before any pixel is read."""
    if isinstance(config, SagittalClassifierConfig):
        pair = look if isinstance(look, SeriesPair) else None
        return sagittal_slices(study, localisation, level, config, jitter, pair)
    return axial_slices(study, localisation, level, config, jitter, look if isinstance(look, str) else None)


def sagittal_slices(
    study: Study,
    localisation: Localisation,
    level: int,
    config: SagittalClassifierConfig,
    jitter: Jitter = NO_JITTER,
    pair: SeriesPair | None = None,
) -> list[CropSlice]:
    """The slices of one level in T2 and T1; what is not there is left out.

    Window 0: T2 around the canal slice, right to left. Windows 1 and 2: T1 around the left and the right foramen, from
    the midline outwards. With ``max_slices``, window 0 holds every T2 slice and window 1 every T1 slice, right to left.
    ``pair`` names the series; None takes the surest points, whatever series they are on.
    """
    name = LEVELS[level]
    if name not in localisation.levels_mm:
        return []
    named = {} if pair is None else {SAGITTAL_T2: pair.t2, SAGITTAL_T1: pair.t1}
    if named and not any(named.values()):
        return []

    def point_of(description: str, side: str | None) -> SagittalPoint | None:
        if named and named[description] is None:
            return None
        return localisation.best(description, name, side, named.get(description))

    slices: list[CropSlice] = []
    if config.max_slices:
        for window, description in enumerate((SAGITTAL_T2, SAGITTAL_T1)):
            sides = [None] if description == SAGITTAL_T2 else [*SIDES, None]
            points = [point for side in sides if (point := point_of(description, side)) is not None]
            if points:
                slices += _whole_series(study, points, window, level, localisation, config, jitter)
        return slices
    wanted = ((SAGITTAL_T2, None), (SAGITTAL_T1, SIDES[0]), (SAGITTAL_T1, SIDES[1]))
    for window, (description, side) in enumerate(wanted):
        point = point_of(description, side)
        if point is None:
            continue
        stack = study.series[description][point.stack]
        grid = _level_grid(stack, point, level, localisation, config, jitter)
        positions = -plane_distance_mm(stack, np.array(localisation.levels_mm[name]))
        # slices run right to left: for the right side that is towards the midline, so it is walked backwards
        direction = -1 if side == "right" else 1
        for step in range(config.window):
            index = point.slice_index + direction * (step - config.window // 2) + jitter.slices
            if 0 <= index < len(stack.volume):
                slices.append(CropSlice(window, step, stack, index, grid, float(positions[index])))
    return slices


def _whole_series(
    study: Study,
    points: list[SagittalPoint],
    window: int,
    level: int,
    localisation: Localisation,
    config: SagittalClassifierConfig,
    jitter: Jitter,
) -> list[CropSlice]:
    """Every slice of the stack that holds the first point, about the middle of its points of one kind.

    ``points``: foraminal ones of T1 before the canal's, which serves where there are none.
    """
    stack_number, description = points[0].stack, points[0].description
    mine = [point for point in points if point.stack == stack_number]
    sides = [point for point in mine if point.side is not None] or mine
    middle = replace(
        sides[0], x_px=float(np.mean([p.x_px for p in sides])), y_px=float(np.mean([p.y_px for p in sides]))
    )
    stack = study.series[description][stack_number]
    grid = _level_grid(stack, middle, level, localisation, config, jitter)
    positions = -plane_distance_mm(stack, np.array(localisation.levels_mm[LEVELS[level]]))
    return [
        CropSlice(window, step, stack, index, grid, float(positions[index]))
        for step, index in enumerate(thinned(len(stack.volume), config.max_slices))
    ]


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
        centre_px=shifted(stack, (point.x_px, point.y_px), jitter.moved_mm(2 * half / jitter.scale)),
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


def axial_slices(
    study: Study,
    localisation: Localisation,
    level: int,
    config: AxialClassifierConfig,
    jitter: Jitter = NO_JITTER,
    series_id: str | None = None,
) -> list[CropSlice]:
    """One level's axial slices, foot to head: the window about the nearest one, or with ``max_slices`` all near it.

    Of all series together, or of the one named: a level that it does not show has none.
    """
    nearest = localisation.axial(LEVELS[level], series_id)
    if nearest is None:
        return []
    near = axial_window(study, localisation, level, series_id)
    middle = next((k for k, (_, n, i) in enumerate(near) if n == nearest.stack and i == nearest.slice_index), None)
    if middle is None:
        return []
    grids: dict[int, Grid] = {}
    slices = []
    if config.max_slices:
        chosen = list(enumerate(thinned(len(near), config.max_slices)))
    else:
        first = middle - config.window // 2 + jitter.slices
        chosen = [(step, first + step) for step in range(config.window) if 0 <= first + step < len(near)]
    for step, k in chosen:
        distance, number, index = near[k]
        stack = study.series[AXIAL_T2][number]
        if number not in grids:
            grids[number] = axial_grid_of(study, nearest, stack, config, jitter)
        slices.append(CropSlice(0, step, stack, index, grids[number], distance))
    return slices


def axial_grid_of(
    study: Study, nearest: AxialLevel, stack: Stack, config: AxialClassifierConfig, jitter: Jitter = NO_JITTER
) -> Grid:
    """The box about a level's left and right points, placed on the slices of a stack that may be another one."""
    reference = study.series[AXIAL_T2][nearest.stack]
    left, right = np.array(nearest.left_px), np.array(nearest.right_px)
    across = canonical_mm(reference, left - right)
    low, high = config.box_mm
    side_mm = float(np.clip(config.box_scale * np.linalg.norm(across), low, high))
    tilt = float(np.degrees(np.arctan2(across[1], across[0])))
    middle_px = (left + right) / 2
    centre_mm = reference.to_patient(nearest.slice_index, middle_px[1], middle_px[0])
    _, x, y = project(stack, centre_mm)
    return make_grid(
        stack,
        size=config.size,
        mm_per_px=side_mm * jitter.scale / config.size,
        centre_px=shifted(stack, (x, y), jitter.moved_mm(side_mm)),
        angle_deg=(tilt if abs(tilt) < 45 else 0.0) + jitter.angle_deg,
    )
