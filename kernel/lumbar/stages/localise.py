"""Localisation: five canal points and ten foraminal points in patient space, slice roles, and axial slices by level."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lumbar.dicom import Stack
from lumbar.geometry import Grid, is_inside, make_grid, plane_distance_mm
from lumbar.inference import Networks, forward
from lumbar.labels import AXIAL_T2, LEVELS, SAGITTAL_T1, SAGITTAL_T2, SIDES
from lumbar.models.heatmap import HeatmapNet
from lumbar.models.regression import AxialRegressionNet, SagittalRegressionNet
from lumbar.models.sequence import SliceRoleNet
from lumbar.stages.crop import grid_images, project, role_inputs, shifted, with_context
from lumbar.stages.decode import Peak, decode_levels, find_peaks, heat_to_source, refine, source_to_heat, through_plane
from lumbar.stages.points import AxialLevel, Localisation, SagittalPoint, as_xyz
from lumbar.study import Study

Array = NDArray[np.float64]
Heat = NDArray[np.float32]

N_CANAL, N_FORAMEN, DISC = 5, 5, 10  # channels of the sagittal heatmaps: canal levels, foramen levels, any disc
SAGITTAL_POINTS = 11
STRIDE = 2  # heatmaps are at half the grid's resolution
BATCH = 16

CANAL_RADIUS_MM = 12.0  # how far a series' own point may lie from the fused one
FORAMEN_RADIUS_MM = 20.0
FORAMEN_LATERAL_MM = (5.0, 36.0)  # distance of a foramen from the canal point, to its side
# Where a foramen lies when nothing shows it: relative to the canal point, mm to the side, anterior, towards the head.
FORAMEN_OFFSET_MM = (17.0, 6.0, 4.0)
AXIAL_REACH_MM = 3.0  # farther than this no slice shows the level, unless its stack is coarser:
AXIAL_REACH_STEPS = 0.75  # of the distance between slices
SUBARTICULAR_LATERAL_MM = 9.0
WEAK = 0.05  # heat below this is no evidence


@dataclass
class SagittalHeat:
    """Heatmaps of one sagittal stack: (S, 11, size / 2, size / 2) in 0..1 on ``grid``."""

    description: str
    number: int  # among the description's stacks
    stack: Stack
    grid: Grid
    heat: Heat

    def peak_near(self, channel: int, xyz_mm: Array, slices: list[int], radius_mm: float, weight: Array) -> Peak | None:
        """The highest heat of a channel within a radius (in plane) of a patient point, over the given slices."""
        _, x, y = project(self.stack, xyz_mm)
        centre = source_to_heat(self.grid, STRIDE, np.array([x, y]))
        radius = radius_mm / (self.grid.mm_per_px * STRIDE)
        size = self.heat.shape[-1]
        yy, xx = np.mgrid[:size, :size]
        falloff = np.exp(-0.5 * (((xx - centre[0]) ** 2 + (yy - centre[1]) ** 2) / radius**2)) * (
            (xx - centre[0]) ** 2 + (yy - centre[1]) ** 2 <= (1.5 * radius) ** 2
        )
        best: tuple[float, int, int, int] | None = None
        for s in slices:
            near = self.heat[s, channel] * falloff * weight[s]
            y_best, x_best = divmod(int(near.argmax()), size)
            if best is None or near[y_best, x_best] > best[0]:
                best = (float(near[y_best, x_best]), s, y_best, x_best)
        if best is None or best[0] <= 0:
            return None
        _, s, y_best, x_best = best
        image = self.heat[s, channel]
        x_px, y_px = heat_to_source(self.grid, STRIDE, refine(image, y_best, x_best))
        y0, x0 = max(0, y_best - 1), max(0, x_best - 1)
        column = self.heat[max(0, s - 1) : s + 2, channel, y0 : y_best + 2, x0 : x_best + 2].max(axis=(1, 2))
        index = through_plane(column, s, max(0, s - 1))
        return Peak(self.stack.to_patient(index, y_px, x_px), float(image[y_best, x_best]), self.number, s)


def localise(study: Study, networks: Networks, *, all_folds: bool = True) -> Localisation:
    """All points of a study. What the images do not show is left out, or marked by a confidence near 0."""
    found = Localisation()
    maps = [
        sagittal_heat(study, description, number, chosen(networks, "sagittal_xy", all_folds))
        for description in (SAGITTAL_T2, SAGITTAL_T1)
        for number in range(len(study.series[description]))
    ]
    if not maps:
        found.problems.append(f"study {study.study_id}: no sagittal series, so no level is localised")
        return found
    confidence = fuse_levels(maps, found)
    if not found.levels_mm:
        found.problems.append(f"study {study.study_id}: no lumbar level found on {len(maps)} sagittal series")
        return found
    if len(found.levels_mm) < 5:
        absent = [level for level in LEVELS if level not in found.levels_mm]
        found.problems.append(f"study {study.study_id}: levels not found: {', '.join(absent)}")
    for item in maps:
        roles = slice_roles(study, item.stack, found, chosen(networks, "sagittal_z", all_folds))
        place_points(item, roles, found, confidence)
    refine_levels(found)
    axial_levels(study, found, chosen(networks, "axial_xy", all_folds))
    return found


def chosen(networks: Networks, stage: str, all_folds: bool) -> list[nn.Module]:
    """All folds of a stage, or the first."""
    found = networks.stage(stage)
    return found if all_folds else found[:1]


def sagittal_heat(study: Study, description: str, number: int, networks: list[nn.Module]) -> SagittalHeat:
    """Heatmaps of one stack, averaged over networks. A regression network's points become small Gaussian spots."""
    stack = study.series[description][number]
    first = networks[0]
    assert isinstance(first, (HeatmapNet, SagittalRegressionNet))
    grid = sagittal_grid(stack, first)
    images = with_context(grid_images(study, stack, grid), first.config.context)
    total: Heat | None = None
    for network in networks:
        out = run_batches(network, images)
        heat = out[:, :SAGITTAL_POINTS] if isinstance(network, HeatmapNet) else spots(out, grid)
        total = heat if total is None else total + heat
    assert total is not None
    return SagittalHeat(description, number, stack, grid, np.asarray(total / len(networks), dtype=np.float32))


def sagittal_grid(stack: Stack, network: HeatmapNet | SagittalRegressionNet) -> Grid:
    """The grid that a sagittal localiser sees: fixed millimetres, or the whole image for the regression network."""
    size = network.config.size
    if isinstance(network, HeatmapNet):
        return make_grid(stack, size=size, mm_per_px=network.config.mm_per_px)
    return make_grid(stack, size=size, mm_per_px=whole_image_mm(stack) / size)


def whole_image_mm(stack: Stack) -> float:
    """Side of the square that holds a whole image of a stack."""
    rows, columns = stack.volume.shape[1:]
    spacing_row, spacing_column = stack.spacing_mm
    return float(max(rows * spacing_row, columns * spacing_column))


def run_batches(network: nn.Module, images: Heat) -> Heat:
    """A network over (N, C, H, W) in batches; sigmoid for heatmaps, raw outputs otherwise."""
    outs = []
    for start in range(0, len(images), BATCH):
        out = forward(network, torch.from_numpy(images[start : start + BATCH]))
        outs.append(torch.sigmoid(out[:, : network.config.points]) if isinstance(network, HeatmapNet) else out)
    return np.asarray(torch.cat(outs).numpy())


def spots(out: Heat, grid: Grid, sigma: float = 1.5) -> Heat:
    """Coordinates (S, 11) as the heat that a perfect heatmap network would show; presence is the height.

    Canal and foraminal channels get the same spots: the regression network tells levels, the slice roles tell which
    structure a slice shows.
    """
    size = grid.size // STRIDE
    axis = np.arange(size)
    heat = np.zeros((len(out), SAGITTAL_POINTS, size, size), np.float32)
    for s, row in enumerate(out):
        presence = 1 / (1 + np.exp(-row[10]))
        for level in range(5):
            x, y = row[2 * level] * size - 0.5, row[2 * level + 1] * size - 0.5
            spot = np.exp(-0.5 * ((axis[None] - x) ** 2 + (axis[:, None] - y) ** 2) / sigma**2) * presence
            heat[s, level] = heat[s, N_CANAL + level] = spot
            heat[s, DISC] = np.maximum(heat[s, DISC], spot)
    return heat


def fuse_levels(maps: list[SagittalHeat], found: Localisation) -> dict[str, float]:
    """Fill ``found.levels_mm`` from all series together; returns the confidence of each level."""
    labelled: list[list[Peak]] = [[] for _ in range(5)]
    discs: list[Peak] = []
    for number, item in enumerate(maps):
        for level in range(5):
            labelled[level] += find_peaks(item.heat[:, level], item.stack, item.grid, STRIDE, number)
        discs += find_peaks(item.heat[:, DISC], item.stack, item.grid, STRIDE, number, most=10)
    confidence = {}
    for level, node in enumerate(decode_levels(labelled, discs, len(maps))):
        if node is not None:
            found.levels_mm[LEVELS[level]] = as_xyz(node[0])
            confidence[LEVELS[level]] = float(min(1.0, node[1]))
    return confidence


def slice_roles(study: Study, stack: Stack, found: Localisation, networks: list[nn.Module]) -> Array:
    """(S, 3) in 0..1: how much each slice looks like the left foraminal, right foraminal and canal slice."""
    total = np.zeros((len(stack.volume), 3))
    for network in networks:
        assert isinstance(network, SliceRoleNet)
        images = torch.from_numpy(role_inputs(study, stack, found.levels_mm, network.config))
        total += forward(network, images[None], torch.ones(1, len(images), dtype=torch.bool))[0].numpy()
    counts = np.clip(total / len(networks), 0.0, 5.0)
    return np.asarray(counts / np.maximum(counts.max(axis=0, keepdims=True), 1e-6))


def place_points(item: SagittalHeat, roles: Array, found: Localisation, confidence: dict[str, float]) -> None:
    """Canal and foraminal points of one series near the fused levels, each on the slice that shows it best."""
    stack = item.stack
    lateral = lateral_mm(stack)
    every = list(range(len(stack.volume)))
    for level, name in enumerate(LEVELS):
        if name not in found.levels_mm:
            continue
        fused = np.array(found.levels_mm[name])
        canal = item.peak_near(level, fused, every, CANAL_RADIUS_MM, 0.35 + 0.65 * roles[:, 2])
        if canal is not None and canal.height >= WEAK:
            append_point(item, found, name, None, canal.xyz_mm, canal.slice_index, canal.height * confidence[name])
        else:
            append_point(item, found, name, None, fused, None, WEAK * confidence[name])
        for k, side in enumerate(SIDES):
            sign = 1.0 if side == "left" else -1.0
            offset = (lateral - project_lateral(stack, fused)) * sign
            slices = [s for s in every if FORAMEN_LATERAL_MM[0] <= offset[s] <= FORAMEN_LATERAL_MM[1]]
            expected = fused + np.array([sign * FORAMEN_OFFSET_MM[0], -FORAMEN_OFFSET_MM[1], FORAMEN_OFFSET_MM[2]])
            weight = 0.35 + 0.65 * roles[:, k]
            peak = item.peak_near(N_CANAL + level, expected, slices, FORAMEN_RADIUS_MM, weight)
            if peak is not None and peak.height >= WEAK:
                append_point(item, found, name, side, peak.xyz_mm, peak.slice_index, peak.height * confidence[name])
            else:
                append_point(item, found, name, side, expected, None, WEAK * confidence[name])


def lateral_mm(stack: Stack) -> Array:
    """Position of each slice along the patient's right-to-left direction, mm (the stack's normal, mostly +x)."""
    return np.asarray(stack.positions_mm, dtype=float)


def project_lateral(stack: Stack, xyz_mm: Array) -> float:
    """Position of a patient point on the axis of ``lateral_mm``."""
    return float(np.asarray(xyz_mm) @ stack.normal)


def append_point(
    item: SagittalHeat,
    found: Localisation,
    level: str,
    side: str | None,
    xyz_mm: Array,
    s: int | None,
    confidence: float,
) -> None:
    """Add a point to the localisation unless it lies outside the series."""
    stack = item.stack
    index, x, y = project(stack, xyz_mm)
    nearest = int(np.clip(round(index), 0, len(stack.volume) - 1)) if s is None else s
    if not is_inside(stack, x, y) or not -1.0 <= index <= len(stack.volume):
        return
    found.sagittal_points.append(
        SagittalPoint(
            series_id=stack.series_id,
            level=level,
            side=side,
            instance_number=stack.instance_numbers[nearest],
            x_px=x,
            y_px=y,
            xyz_mm=as_xyz(xyz_mm),
            confidence=float(np.clip(confidence, 0.0, 1.0)),
            stack=item.number,
            slice_index=nearest,
            description=item.description,
        )
    )


def refine_levels(found: Localisation) -> None:
    """Fused canal points as the confidence-weighted mean of what every series says."""
    for level in list(found.levels_mm):
        points = [p for p in found.sagittal_points if p.level == level and p.side is None and p.confidence > WEAK]
        if points:
            weights = np.array([p.confidence**2 for p in points])
            found.levels_mm[level] = as_xyz(np.average([p.xyz_mm for p in points], axis=0, weights=weights))


def axial_levels(study: Study, found: Localisation, networks: list[nn.Module]) -> None:
    """For each level and axial stack the nearest slice within reach, with its left and right points."""
    for number, stack in enumerate(study.series[AXIAL_T2]):
        picks: list[tuple[str, int, float]] = []
        reach = axial_reach_mm(stack)
        for level, xyz in found.levels_mm.items():
            distances = plane_distance_mm(stack, np.array(xyz))
            index = int(np.abs(distances).argmin())
            _, x, y = project(stack, np.array(xyz))
            if abs(distances[index]) < reach and is_inside(stack, x, y):
                picks.append((level, index, float(distances[index])))
        if not picks:
            continue
        points = axial_points(study, number, picks, found, networks)
        for (level, index, distance), (left, right, confidence) in zip(picks, points, strict=True):
            found.axial_levels.append(
                AxialLevel(
                    series_id=stack.series_id,
                    level=level,
                    instance_number=stack.instance_numbers[index],
                    distance_mm=distance,
                    left_px=left,
                    right_px=right,
                    confidence=confidence,
                    stack=number,
                    slice_index=index,
                )
            )


def axial_reach_mm(stack: Stack) -> float:
    """How far a level's canal point may lie from the plane of the slice that stands for it."""
    steps = np.diff(stack.positions_mm)
    return max(AXIAL_REACH_MM, AXIAL_REACH_STEPS * float(np.median(steps)) if len(steps) else 0.0)


def axial_grid(stack: Stack, network: HeatmapNet | AxialRegressionNet) -> Grid:
    """The grid that an axial localiser sees."""
    size = network.config.size
    step = network.config.mm_per_px if isinstance(network, HeatmapNet) else whole_image_mm(stack) / size
    return make_grid(stack, size=size, mm_per_px=step)


def axial_points(
    study: Study, number: int, picks: list[tuple[str, int, float]], found: Localisation, networks: list[nn.Module]
) -> list[tuple[tuple[float, float], tuple[float, float], float]]:
    """Left point, right point (source x, y) and confidence for each picked slice of a stack, averaged over networks."""
    stack = study.series[AXIAL_T2][number]
    canal = [project(stack, np.array(found.levels_mm[level]))[1:] for level, _, _ in picks]
    lefts, rights, heights = [], [], []
    for network in networks:
        assert isinstance(network, (HeatmapNet, AxialRegressionNet))
        grid = axial_grid(stack, network)
        out = run_batches(network, grid_images(study, stack, grid, [i for _, i, _ in picks])[:, None])
        if isinstance(network, HeatmapNet):
            pairs = [
                [axial_peak(item[side], grid, xy) for side in range(2)] for item, xy in zip(out, canal, strict=True)
            ]
            lefts.append([left for (left, _), _ in pairs])
            rights.append([right for _, (right, _) in pairs])
            heights.append([min(a, b) for (_, a), (_, b) in pairs])
        else:
            points = grid.to_source(out.reshape(-1, 2, 2).astype(np.float64) * grid.size - 0.5)
            lefts.append(list(points[:, 0]))
            rights.append(list(points[:, 1]))
            heights.append([1.0] * len(picks))
    answer = []
    for k, (x, y) in enumerate(canal):
        left = np.mean([row[k] for row in lefts], axis=0)
        right = np.mean([row[k] for row in rights], axis=0)
        height = float(np.mean([row[k] for row in heights]))
        if height < WEAK:  # nothing seen: either side of the canal point
            left = np.array(shifted(stack, (x, y), (SUBARTICULAR_LATERAL_MM, 0.0)))
            right = np.array(shifted(stack, (x, y), (-SUBARTICULAR_LATERAL_MM, 0.0)))
        answer.append(((float(left[0]), float(left[1])), (float(right[0]), float(right[1])), height))
    return answer


def axial_peak(heat: Heat, grid: Grid, canal_px: tuple[float, float]) -> tuple[Array, float]:
    """The best peak of one axial channel near the projected canal point: source (x, y) and height."""
    centre = source_to_heat(grid, STRIDE, np.array(canal_px))
    yy, xx = np.mgrid[: heat.shape[0], : heat.shape[1]]
    radius = 18.0 / (grid.mm_per_px * STRIDE)
    near = heat * np.exp(-0.5 * ((xx - centre[0]) ** 2 + (yy - centre[1]) ** 2) / radius**2)
    y, x = divmod(int(near.argmax()), heat.shape[1])
    return heat_to_source(grid, STRIDE, refine(heat, y, x)), float(heat[y, x])
