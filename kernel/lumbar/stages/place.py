"""From heatmaps to points: levels fused over all series, then the canal and foraminal points of each series."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lumbar.dicom import Stack
from lumbar.geometry import project, shows
from lumbar.labels import LEVELS, SIDES, titles_of
from lumbar.stages.decode import Peak, decode_levels, support
from lumbar.stages.heat import DISC, N_CANAL, SagittalHeat
from lumbar.stages.points import Localisation, SagittalPoint, Xyz, as_xyz

Array = NDArray[np.float64]

CANAL_RADIUS_MM = 7.0  # how far a series' canal point may lie from the fused one: patients move, but not by half a disc
FORAMEN_RADIUS_MM = 10.0  # how far a foramen may lie from where anatomy expects it
CONSENSUS_RADIUS_MM = 6.0  # how far it may lie in one series from where all series together see it
SUPPORT_RADIUS_MM = 6.0  # series that see a foramen so close together support each other
FORAMEN_LATERAL_MM = (5.0, 36.0)  # distance of a foramen from the canal point, to its side
MIN_ROLE = 0.2  # with a role of at least this, one of the (at most five) levels is marked on the slice
ROLE_LATERAL_SIGMA_MM = 4.0  # how far a foramen lies from its expected position, to the side
LATERAL_SCALES = (0.7, 1.4)  # of the distance to the side, in narrow and in wide patients
# Where a foramen is expected at each level, from the canal point: mm to the side, anterior, and up along the spine.
# Towards the sacrum the pedicles are farther apart, and fat in front of the thecal sac moves the sac backwards.
FORAMEN_OFFSET_MM = ((14.0, 5.0, 4.5), (14.5, 5.0, 4.5), (15.5, 5.0, 4.5), (17.0, 5.5, 4.0), (19.5, 6.5, 3.0))
# The middle between the two recesses of a level, from the canal point: mm anterior, and up along the spine.
RECESS_OFFSET_MM = ((3.7, -0.9), (3.6, -0.8), (3.6, -0.5), (4.0, 0.1), (4.4, 1.3))
# Two series of one patient differ by the localiser's error on each, about 2 mm, and by the patient's movement between
# them, about 1.5 mm. So the best estimate of a series' point lies this share of the way from its own to the fused one.
FUSION_WEIGHT = 0.6
MAX_FUSE_MM = 8.0  # a series that differs by more keeps its own point: the patient moved, or it shows something else
MIN_HEAT = 0.05  # less heat is no evidence
MIN_ALONE = 3  # levels that a series must show to be read alone
MAX_LEVEL_SHIFT_MM = 17.0  # about half of the distance to the next disc
MIN_SACRUM_MM = 55.0  # with less image below it, the lowest level may be L4/5, and the sacrum out of view


def fuse_levels(maps: list[SagittalHeat], localisation: Localisation) -> dict[str, float]:
    """Fill ``localisation.levels_mm`` from all series together, and return the confidence of each level."""
    labelled: list[list[Peak]] = [[] for _ in range(5)]
    discs: list[Peak] = []
    for number, stack_heat in enumerate(maps):
        for level in range(5):
            labelled[level] += stack_heat.peaks(level, number, most=4)
        discs += stack_heat.peaks(DISC, number, most=10)
    confidence = {}
    for level, node in enumerate(decode_levels(labelled, discs, len(maps))):
        if node is not None:
            localisation.levels_mm[LEVELS[level]] = as_xyz(node[0])
            confidence[LEVELS[level]] = float(min(1.0, node[1]))
    return confidence


def series_warnings(maps: list[SagittalHeat], levels_mm: dict[str, Xyz]) -> list[str]:
    """A line on each series that, read alone, numbers the levels otherwise than all series together.

    Series that show fewer than three of the levels, or not all where there are fewer, cannot be read alone.

    Args:
        maps: the heatmaps of each sagittal stack.
        levels_mm: as all series together were read, before the column was moved: one series alone is not moved.
    """
    lines = []
    for stack_heat in maps if len(maps) > 1 else []:
        n_shown = sum(shows(stack_heat.stack, np.array(xyz)) for xyz in levels_mm.values())
        if n_shown < min(MIN_ALONE, len(levels_mm)):
            continue
        alone = Localisation()
        fuse_levels([stack_heat], alone)
        apart = [
            level
            for level, xyz in alone.levels_mm.items()
            if level in levels_mm
            and np.linalg.norm(np.array(xyz)[1:] - np.array(levels_mm[level])[1:]) > MAX_LEVEL_SHIFT_MM
        ]
        if len(apart) >= 2:
            lines.append(
                f"series {stack_heat.stack.series_id}: read alone, it has {titles_of(apart)} on other discs than all "
                "series together: the levels may be numbered wrongly"
            )
    return lines


def sacrum_warnings(maps: list[SagittalHeat], levels_mm: dict[str, Xyz]) -> list[str]:
    """A line where the images show too little below L5/S1 to count from; none where that level is absent."""
    lowest = levels_mm.get(LEVELS[-1])
    if lowest is None:
        return []
    below = max(_below_mm(stack_heat.stack, np.array(lowest)) for stack_heat in maps)
    if below >= MIN_SACRUM_MM:
        return []
    return [f"L5/S1 lies {max(below, 0):.0f} mm above the images' edge: too little sacrum to count from"]


def _below_mm(stack: Stack, xyz_mm: Array) -> float:
    """How many mm the image continues below a point, along the image axis that runs towards the feet."""
    _, x, y = project(stack, xyz_mm)
    rows, columns = stack.volume.shape[1:]
    step, place, last = (
        (stack.row_mm[2], y, rows - 1)
        if abs(stack.row_mm[2]) >= abs(stack.column_mm[2])
        else (stack.column_mm[2], x, columns - 1)
    )
    return float((last - place) * -step if step < 0 else place * step)


def place_points(
    maps: list[SagittalHeat], roles: list[Array], localisation: Localisation, confidence: dict[str, float]
) -> None:
    """Add the canal and foraminal points of every series, each on the slice that shows it best.

    Args:
        maps: the heatmaps of each sagittal stack.
        roles: the slice roles (S, 3) of each stack.
        localisation: has the fused levels, and receives the points.
        confidence: of each level, in 0..1.
    """
    for stack_heat, role in zip(maps, roles, strict=True):
        for level, name in enumerate(LEVELS):
            if name in localisation.levels_mm:
                place_canal(stack_heat, role, localisation, level, confidence[name])
    refine_levels(localisation)
    for k, point in enumerate(localisation.sagittal_points):
        localisation.sagittal_points[k] = fuse_canal_point(maps, point, np.array(localisation.levels_mm[point.level]))
    lateral_scales = [measured_lateral_scale(maps, roles, localisation, k) for k in range(len(SIDES))]
    for level, name in enumerate(LEVELS):
        if name in localisation.levels_mm:
            for k, lateral_scale in enumerate(lateral_scales):
                place_foramina(maps, roles, localisation, level, k, lateral_scale, confidence[name])


def place_canal(
    stack_heat: SagittalHeat, roles: Array, localisation: Localisation, level: int, confidence: float
) -> None:
    """Add the canal point of a level that one series shows, near the fused one."""
    fused = np.array(localisation.levels_mm[LEVELS[level]])
    every = list(range(len(stack_heat.stack.volume)))
    peak = stack_heat.peak_near(level, fused, every, CANAL_RADIUS_MM, 0.35 + 0.65 * roles[:, 2])
    if peak is not None and peak.height >= MIN_HEAT:
        _append(localisation, stack_heat, level, None, peak.xyz_mm, peak.slice_index, peak.height * confidence)
    else:
        _append(localisation, stack_heat, level, None, fused, None, MIN_HEAT * confidence)


def place_foramina(
    maps: list[SagittalHeat],
    roles: list[Array],
    localisation: Localisation,
    level: int,
    k: int,
    lateral_scale: float,
    confidence: float,
) -> None:
    """Add the foraminal points of one level and side (k: 0 left, 1 right) of every series.

    All series together say where the foramen lies; each then keeps its own point near that, moved towards it.
    """
    side = SIDES[k]
    expected = expected_foramen(localisation, level, side, lateral_scale)
    seen = [
        foramen_peak(stack_heat, role, localisation, level, k, expected, FORAMEN_RADIUS_MM)
        for stack_heat, role in zip(maps, roles, strict=True)
    ]
    fused = consensus(seen)
    for stack_heat, role in zip(maps, roles, strict=True):
        peak = None
        if fused is not None:
            peak = foramen_peak(stack_heat, role, localisation, level, k, fused, CONSENSUS_RADIUS_MM)
        if fused is not None and peak is not None and peak.height >= MIN_HEAT:
            xyz_mm = inside_or_own(stack_heat.stack, fuse_place(peak.xyz_mm, fused), peak.xyz_mm)
            _append(localisation, stack_heat, level, side, xyz_mm, peak.slice_index, peak.height * confidence)
        else:
            xyz_mm = expected if fused is None else fused
            _append(localisation, stack_heat, level, side, xyz_mm, None, MIN_HEAT * confidence)


def _append(
    localisation: Localisation,
    stack_heat: SagittalHeat,
    level: int,
    side: str | None,
    xyz_mm: Array,
    slice_index: int | None,
    confidence: float,
) -> None:
    """``append_point`` for a point on the stack of a heatmap."""
    stack, number, description = stack_heat.stack, stack_heat.number, stack_heat.description
    append_point(localisation, stack, number, description, LEVELS[level], side, xyz_mm, slice_index, confidence)


def fuse_place(own_mm: Array, all_mm: Array) -> Array:
    """A series' own point (3,) mm moved towards the point of all series, unless they are too far apart."""
    away = all_mm - own_mm
    return np.asarray(own_mm + (FUSION_WEIGHT if np.linalg.norm(away) <= MAX_FUSE_MM else 0.0) * away)


def fuse_canal_point(maps: list[SagittalHeat], point: SagittalPoint, all_mm: Array) -> SagittalPoint:
    """A canal point moved towards that of all series; the slice that shows it best stays."""
    xyz = fuse_place(np.array(point.xyz_mm), all_mm)
    stack_heat = next(m for m in maps if m.description == point.description and m.number == point.stack)
    xyz = inside_or_own(stack_heat.stack, xyz, np.array(point.xyz_mm))
    _, x, y = project(stack_heat.stack, xyz)
    return replace(point, x_px=x, y_px=y, xyz_mm=as_xyz(xyz))


def inside_or_own(stack: Stack, xyz_mm: Array, own_mm: Array) -> Array:
    """The fused point (3,) mm where the stack shows it, else the series' own."""
    return xyz_mm if shows(stack, xyz_mm) else own_mm


def measured_lateral_scale(maps: list[SagittalHeat], roles: list[Array], localisation: Localisation, k: int) -> float:
    """How far to the side the foraminal slices of a patient lie, relative to the mean of ``FORAMEN_OFFSET_MM``.

    It is measured from slice roles, for the networks that show no foramina; 1 for others, and where no slice shows one.
    """
    sign = 1.0 if SIDES[k] == "left" else -1.0
    levels = [level for level, name in enumerate(LEVELS) if name in localisation.levels_mm]
    total = weight = 0.0
    for stack_heat, role in zip(maps, roles, strict=True):
        if stack_heat.foramina_by_role:
            canal = np.mean(
                [project_lateral(stack_heat.stack, np.array(localisation.levels_mm[LEVELS[k]])) for k in levels]
            )
            offset = (lateral_mm(stack_heat.stack) - canal) * sign
            seen = role[:, k] * (offset > FORAMEN_LATERAL_MM[0]) * (offset < FORAMEN_LATERAL_MM[1])
            total, weight = total + float(seen @ offset), weight + float(seen.sum())
    if weight < 0.5:
        return 1.0
    return float(np.clip(total / weight / np.mean([FORAMEN_OFFSET_MM[level][0] for level in levels]), *LATERAL_SCALES))


def expected_foramen(localisation: Localisation, level: int, side: str, lateral_scale: float = 1.0) -> Array:
    """Where anatomy expects a foramen, (3,) mm: beside the canal point, relative to the spine's direction there.

    ``lateral_scale`` is a factor on its distance to the side.
    """
    lateral, anterior, course = spine_frame(localisation, level)
    aside, ahead, up = FORAMEN_OFFSET_MM[level]
    sign = 1.0 if side == "left" else -1.0
    return np.asarray(
        np.array(localisation.levels_mm[LEVELS[level]])
        + sign * lateral_scale * aside * lateral
        + ahead * anterior
        + up * course
    )


def expected_recess(localisation: Localisation, level: int) -> Array:
    """The middle between the subarticular recesses of a level, (3,) mm, by which its axial slice is chosen.

    Axial slices follow the disc, which the canal point does not: at L5/S1 it lies a few mm below the disc's plane.
    """
    _, anterior, course = spine_frame(localisation, level)
    ahead, up = RECESS_OFFSET_MM[level]
    return np.asarray(np.array(localisation.levels_mm[LEVELS[level]]) + ahead * anterior + up * course)


def spine_frame(localisation: Localisation, level: int) -> tuple[Array, Array, Array]:
    """Unit vectors (3,) at a level: to the left, to the front, and up along the spine."""
    here = np.array(localisation.levels_mm[LEVELS[level]])
    ends = [
        np.array(localisation.levels_mm[LEVELS[k]])
        for k in (level - 1, level + 1)
        if 0 <= k < 5 and LEVELS[k] in localisation.levels_mm
    ]
    course = np.array([0.0, 0.0, 1.0])  # towards the head
    if ends:
        course = (ends[0] - ends[-1]) if len(ends) == 2 else ends[0] - here
        course = course * np.sign(course[2] or 1.0) / np.linalg.norm(course)
    lateral = np.array([1.0, 0.0, 0.0])
    lateral -= course * (lateral @ course)
    lateral /= np.linalg.norm(lateral)
    anterior = np.cross(course, lateral)
    anterior *= -1.0 if anterior[1] > 0 else 1.0
    return lateral, anterior, course


def foramen_peak(
    stack_heat: SagittalHeat,
    roles: Array,
    localisation: Localisation,
    level: int,
    k: int,
    near: Array,
    radius_mm: float,
) -> Peak | None:
    """The best foraminal peak of a series near a point, on slices to one side (k: 0 left, 1 right) of the canal."""
    stack = stack_heat.stack
    sign = 1.0 if SIDES[k] == "left" else -1.0
    offset = (lateral_mm(stack) - project_lateral(stack, np.array(localisation.levels_mm[LEVELS[level]]))) * sign
    low, high = FORAMEN_LATERAL_MM
    slices = [s for s in range(len(stack.volume)) if low <= offset[s] <= high]
    if stack_heat.foramina_by_role:
        return role_peak(stack_heat, roles[:, k], near, slices)
    return stack_heat.peak_near(N_CANAL + level, near, slices, radius_mm, 0.35 + 0.65 * roles[:, k])


def role_peak(stack_heat: SagittalHeat, role: Array, near: Array, slices: list[int]) -> Peak | None:
    """A foramen placed by slice roles (S,), for networks whose heatmaps do not show it.

    It is put on the slice with the best product of its role and its nearness to ``near`` (3,) mm, since the foramina of
    lower levels lie farther to the side. In the plane it lies where ``near`` does; its height is the role.
    """
    if not slices:
        return None
    away = lateral_mm(stack_heat.stack) - project_lateral(stack_heat.stack, near)
    weight = np.minimum(role / MIN_ROLE, 1.0) * np.exp(-0.5 * (away / ROLE_LATERAL_SIGMA_MM) ** 2)
    s = max(slices, key=lambda index: float(weight[index]))
    return Peak(np.asarray(near + away[s] * stack_heat.stack.normal), float(role[s]), stack_heat.number, s)


def consensus(peaks: list[Peak | None]) -> Array | None:
    """The point that the peaks of all series support best, or None where no series shows anything.

    It is the mean of the peaks near the one with most support, weighted by their heat.
    """
    seen = [peak for peak in peaks if peak is not None and peak.height >= MIN_HEAT]
    if not seen:
        return None
    best = max(seen, key=lambda peak: sum(support([other], peak.xyz_mm, SUPPORT_RADIUS_MM) for other in seen))
    weights = [support([peak], best.xyz_mm, SUPPORT_RADIUS_MM) for peak in seen]
    return np.average([peak.xyz_mm for peak in seen], axis=0, weights=weights)


def lateral_mm(stack: Stack) -> Array:
    """Position of each slice along the patient's right-to-left direction, mm (the stack's normal, mostly +x)."""
    return np.asarray(stack.positions_mm, dtype=float)


def project_lateral(stack: Stack, xyz_mm: Array) -> float:
    """Position of a patient point (3,) on the axis of ``lateral_mm``."""
    return float(np.asarray(xyz_mm) @ stack.normal)


def append_point(
    localisation: Localisation,
    stack: Stack,
    number: int,
    description: str,
    level: str,
    side: str | None,
    xyz_mm: Array,
    slice_index: int | None,
    confidence: float,
) -> None:
    """Add a point to the localisation unless it lies outside the stack.

    Args:
        localisation: receives the point.
        stack: the stack that shows it.
        number: index of the stack among those of its description.
        description: of the stack's series.
        level: of the point.
        side: ``left`` or ``right`` for a foraminal point, None for a canal point.
        xyz_mm: (3,) patient position.
        slice_index: the slice that shows it best; None for the nearest.
        confidence: in 0..1.
    """
    if not shows(stack, xyz_mm):
        return
    index, x, y = project(stack, xyz_mm)
    nearest = int(np.clip(round(index), 0, len(stack.volume) - 1)) if slice_index is None else slice_index
    localisation.sagittal_points.append(
        SagittalPoint(
            series_id=stack.series_id,
            level=level,
            side=side,
            instance_number=stack.instance_numbers[nearest],
            frame=stack.frame(nearest),
            x_px=x,
            y_px=y,
            xyz_mm=as_xyz(xyz_mm),
            confidence=float(np.clip(confidence, 0.0, 1.0)),
            stack=number,
            slice_index=nearest,
            description=description,
        )
    )


def refine_levels(localisation: Localisation) -> None:
    """Set each fused canal point to the mean of the series' canal points, weighted by squared confidence."""
    for level in list(localisation.levels_mm):
        points = [
            p for p in localisation.sagittal_points if p.level == level and p.side is None and p.confidence > MIN_HEAT
        ]
        if points:
            weights = np.array([p.confidence**2 for p in points])
            localisation.levels_mm[level] = as_xyz(np.average([p.xyz_mm for p in points], axis=0, weights=weights))
