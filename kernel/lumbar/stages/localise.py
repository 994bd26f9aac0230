"""Localisation: five canal points and ten foraminal points in patient space, slice roles, and axial slices by level."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lumbar.dicom import Stack
from lumbar.geometry import Grid, is_inside, make_grid, plane_distance_mm, project, shifted
from lumbar.labels import AXIAL_T2, LEVELS, SAGITTAL_T1, SAGITTAL_T2, titles_of
from lumbar.models.heatmap import HeatmapNet
from lumbar.models.inference import Networks, forward
from lumbar.models.regression import AxialRegressionNet
from lumbar.models.sequence import SliceRoleNet
from lumbar.stages.crop import grid_images, role_inputs
from lumbar.stages.decode import heat_to_source, refine, source_to_heat
from lumbar.stages.guessed_scale import estimate_scales
from lumbar.stages.heat import STRIDE, Heat, SagittalHeat, pose_of, run_batches, sagittal_heat, whole_image_mm
from lumbar.stages.looks import look_again
from lumbar.stages.numbering import (
    NOT_LOOKED,
    asks_for_looks,
    fill_absent,
    numbering_doubt,
    numbering_move,
    other_readings,
    settle_numbering,
)
from lumbar.stages.place import MIN_HEAT, expected_recess, fuse_levels, place_points, sacrum_warnings, series_warnings
from lumbar.stages.point_probability import give_probabilities
from lumbar.stages.points import NOT_SEEN, AxialLevel, Localisation
from lumbar.study import Study

Array = NDArray[np.float64]

# A slice shows a level if its plane is nearer than this, or than this share of the distance between slices.
AXIAL_REACH_MM = 3.0
AXIAL_REACH_STEPS = 0.75
MAX_AXIAL_DISTANCE_MM = (
    7.0  # where no slice of a series comes so near, readers still mark one that ends beside the disc
)
SUBARTICULAR_LATERAL_MM = 9.0  # from the canal point to the side, where the network shows nothing
GUESSED_GEOMETRY_FACTOR = 0.5  # factor on the confidence of points whose place in the patient rests on a guess
FILLED_FACTOR = 0.1  # the same of levels that were not seen


def localise(
    study: Study, networks: Networks, *, all_folds: bool = True, augment: bool = True, fill: bool = True
) -> Localisation:
    """Localise all points of a study. What the images do not show is left out, or has a confidence near 0.

    Args:
        study: its stacks.
        networks: of one bundle.
        all_folds: every fold's weights, and not only the first.
        augment: test-time augmentation of the sagittal heatmaps.
        fill: place levels that were not seen beside others; off where labels are judged by what was seen.
    """
    localisation = Localisation()
    stacks = [(name, number) for name in (SAGITTAL_T2, SAGITTAL_T1) for number in range(len(study.series[name]))]
    if not stacks:
        localisation.problems.append(f"study {study.study_id}: no sagittal series, so no level is localised")
        return localisation
    maps, confidence = read_levels(study, stacks, networks, localisation, all_folds=all_folds, augment=augment)
    if not localisation.levels_mm:
        localisation.problems.append(f"study {study.study_id}: no lumbar level found on {len(maps)} sagittal series")
        return localisation
    as_read = dict(localisation.levels_mm)
    if augment:
        looks = NOT_LOOKED
        if asks_for_looks(networks.numbering):
            looks = look_again(study, maps, folds_of(networks, "sagittal_xy", all_folds), localisation.levels_mm)
        confidence = settle_numbering(maps, localisation, confidence, networks.numbering, looks)
    lowest = min(confidence.values())
    if fill:
        localisation.filled += fill_absent([stack_heat.stack for stack_heat in maps], localisation, confidence)
        localisation.filled.sort(key=LEVELS.index)
    absent = [level for level in LEVELS if level not in localisation.levels_mm]
    for words, levels in ((NOT_SEEN, localisation.filled), ("levels not found", absent)):
        if levels:
            localisation.problems.append(f"study {study.study_id}: {words}: {titles_of(levels)}")
    others = other_readings(localisation)
    place_all(study, maps, networks, localisation, confidence, all_folds=all_folds)
    lower_filled_confidence(localisation)
    warnings = [
        *numbering_move(localisation),
        *series_warnings(maps, as_read),
        *sacrum_warnings(maps, localisation.levels_mm),
        *numbering_doubt(localisation.numbering),
    ]
    localisation.problems += [f"study {study.study_id}: {line}" for line in warnings]
    for _, other in others:
        place_all(study, maps, networks, other, dict.fromkeys(LEVELS, lowest), all_folds=all_folds)
    localisation.readings = others
    give_probabilities(localisation, networks.point_probability)
    return localisation


def read_levels(
    study: Study,
    stacks: list[tuple[str, int]],
    networks: Networks,
    localisation: Localisation,
    *,
    all_folds: bool,
    augment: bool,
) -> tuple[list[SagittalHeat], dict[str, float]]:
    """Fill ``localisation.levels_mm``; returns the heatmaps of each stack and the confidence of each level.

    Args:
        study: its stacks.
        stacks: description and number of each sagittal stack.
        networks: of one bundle.
        localisation: receives the levels.
        all_folds: every fold's weights, and not only the first.
        augment: test-time augmentation of the sagittal heatmaps.
    """
    nets = folds_of(networks, "sagittal_xy", all_folds)
    localisation.problems += estimate_scales(study, stacks, nets)
    maps = [sagittal_heat(study, *which, nets) for which in stacks]
    confidence = fuse_levels(maps, localisation)
    first = nets[0]
    if augment and isinstance(first, HeatmapNet):  # again, with the patient's pose that the first levels show
        poses = [pose_of(stack_heat.stack, first, localisation.levels_mm) for stack_heat in maps]
        has_numbers = bool(networks.numbering)
        maps = [
            sagittal_heat(study, *which, nets, augment=True, pose=pose, with_tissue=has_numbers)
            for which, pose in zip(stacks, poses, strict=True)
        ]
        localisation.levels_mm.clear()
        confidence = fuse_levels(maps, localisation)
    return maps, confidence


def place_all(
    study: Study,
    maps: list[SagittalHeat],
    networks: Networks,
    localisation: Localisation,
    confidence: dict[str, float],
    *,
    all_folds: bool,
) -> None:
    """Add the points and axial slices of a localisation's levels."""
    roles = [
        slice_roles(study, stack_heat.stack, localisation, folds_of(networks, "sagittal_z", all_folds))
        for stack_heat in maps
    ]
    place_points(maps, roles, localisation, confidence)
    axial_levels(study, localisation, folds_of(networks, "axial_xy", all_folds))
    lower_guessed_confidence(study, localisation)


def lower_guessed_confidence(study: Study, localisation: Localisation) -> None:
    """Lower the confidence of points on stacks whose geometry is guessed; nothing else changes."""
    for k, point in enumerate(localisation.sagittal_points):
        if study.series[point.description][point.stack].is_geometry_guessed:
            localisation.sagittal_points[k] = replace(point, confidence=point.confidence * GUESSED_GEOMETRY_FACTOR)
    for k, level in enumerate(localisation.axial_levels):
        if study.series[AXIAL_T2][level.stack].is_geometry_guessed:
            localisation.axial_levels[k] = replace(level, confidence=level.confidence * GUESSED_GEOMETRY_FACTOR)


def lower_filled_confidence(localisation: Localisation) -> None:
    """Lower the confidence of all points of levels that were not seen: a peak there does not tell the level."""
    for k, point in enumerate(localisation.sagittal_points):
        if point.level in localisation.filled:
            localisation.sagittal_points[k] = replace(point, confidence=point.confidence * FILLED_FACTOR)
    for k, level in enumerate(localisation.axial_levels):
        if level.level in localisation.filled:
            localisation.axial_levels[k] = replace(level, confidence=level.confidence * FILLED_FACTOR)


def folds_of(networks: Networks, stage: str, all_folds: bool) -> list[nn.Module]:
    """The networks of all folds of a stage, or only the first."""
    folds = networks.stage(stage)
    return folds if all_folds else folds[:1]


def slice_roles(study: Study, stack: Stack, localisation: Localisation, networks: list[nn.Module]) -> Array:
    """Slice roles (S, 3) in 0..1: how much each slice looks like a left foraminal, right foraminal and canal slice."""
    total = np.zeros((len(stack.volume), 3))
    for network in networks:
        assert isinstance(network, SliceRoleNet)
        images = torch.from_numpy(role_inputs(study, stack, localisation.levels_mm, network.config))
        total += forward(network, images[None], torch.ones(1, len(images), dtype=torch.bool))[0].numpy()
    counts = np.clip(total / len(networks), 0.0, 5.0)
    return np.asarray(counts / np.maximum(counts.max(axis=0, keepdims=True), 1e-6))


def axial_levels(study: Study, localisation: Localisation, networks: list[nn.Module]) -> None:
    """Add, for each level and axial stack, the nearest slice within reach, with its left and right points."""
    stacks = study.series[AXIAL_T2]
    for number, picks in enumerate(axial_picks(stacks, localisation)):
        if not picks:
            continue
        stack = stacks[number]
        points = axial_points(study, number, picks, localisation, networks)
        for (level, index, distance), (left, right, confidence) in zip(picks, points, strict=True):
            localisation.axial_levels.append(
                AxialLevel(
                    series_id=stack.series_id,
                    level=level,
                    instance_number=stack.instance_numbers[index],
                    frame=stack.frame(index),
                    distance_mm=distance,
                    left_px=left,
                    right_px=right,
                    confidence=confidence,
                    stack=number,
                    slice_index=index,
                )
            )


def axial_picks(stacks: list[Stack], localisation: Localisation) -> list[list[tuple[str, int, float]]]:
    """For each stack (level, slice index, distance in mm): the nearest slice of each level within reach.

    A level that no stack of a series reaches takes the series' nearest slice, if it is not far.
    """
    picks: list[list[tuple[str, int, float]]] = [[] for _ in stacks]
    for level in localisation.levels_mm:
        xyz = expected_recess(localisation, LEVELS.index(level))
        nearest: dict[str, tuple[float, int, int]] = {}  # of each series: distance, stack, slice
        reached = set()
        for number, stack in enumerate(stacks):
            distances = plane_distance_mm(stack, xyz)
            index = int(np.abs(distances).argmin())
            distance = float(distances[index])
            _, x, y = project(stack, xyz)
            if not is_inside(stack, x, y):
                continue
            if abs(distance) < axial_reach_mm(stack):
                picks[number].append((level, index, distance))
                reached.add(stack.series_id)
            best = nearest.get(stack.series_id)
            if best is None or abs(distance) < abs(best[0]):
                nearest[stack.series_id] = (distance, number, index)
        for series_id, (distance, number, index) in nearest.items():
            if series_id not in reached and abs(distance) < MAX_AXIAL_DISTANCE_MM:
                picks[number].append((level, index, distance))
    return picks


def axial_reach_mm(stack: Stack) -> float:
    """How far a level may lie from the plane of a slice that shows it."""
    steps = np.diff(stack.positions_mm)
    return max(AXIAL_REACH_MM, AXIAL_REACH_STEPS * float(np.median(steps)) if len(steps) else 0.0)


def axial_grid(stack: Stack, network: HeatmapNet | AxialRegressionNet) -> Grid:
    """The grid of an axial localiser's input."""
    size = network.config.size
    step = network.config.mm_per_px if isinstance(network, HeatmapNet) else whole_image_mm(stack) / size
    return make_grid(stack, size=size, mm_per_px=step)


def axial_points(
    study: Study,
    number: int,
    picks: list[tuple[str, int, float]],
    localisation: Localisation,
    networks: list[nn.Module],
) -> list[tuple[tuple[float, float], tuple[float, float], float]]:
    """For each picked slice of a stack: left point, right point (source x, y) and confidence, the mean of networks."""
    stack = study.series[AXIAL_T2][number]
    canal = [project(stack, np.array(localisation.levels_mm[level]))[1:] for level, _, _ in picks]
    lefts, rights, heights = [], [], []
    for network in networks:
        assert isinstance(network, (HeatmapNet, AxialRegressionNet))
        grid = axial_grid(stack, network)
        out = run_batches(network, grid_images(study, stack, grid, [i for _, i, _ in picks])[:, None])
        if isinstance(network, HeatmapNet):
            pairs = [
                [axial_peak(channels[side], grid, xy) for side in range(2)]
                for channels, xy in zip(out, canal, strict=True)
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
        if height < MIN_HEAT:  # nothing seen: take points beside the canal point
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
