"""Heatmaps of one sagittal stack, from either kind of localiser, and the peak nearest to a position."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lumbar.dicom import Stack
from lumbar.geometry import Grid, make_grid, project
from lumbar.labels import LEVELS
from lumbar.models.heatmap import HeatmapNet
from lumbar.models.inference import forward
from lumbar.models.regression import SagittalRegressionNet
from lumbar.resample import add_warped
from lumbar.stages.crop import grid_images, with_context
from lumbar.stages.decode import (
    Peak,
    find_peaks,
    fractional_slice,
    heat_to_source,
    heat_with_neighbours,
    refine,
    source_to_heat,
)
from lumbar.stages.points import Xyz
from lumbar.study import Study

Array = NDArray[np.float64]
Heat = NDArray[np.float32]

N_CANAL, DISC = 5, 10  # channels of the sagittal heatmaps: canal levels, then foramen levels, then any disc
SAGITTAL_POINTS = 11
# Views of a slice in test-time augmentation: (angle in degrees, factor of the grid's step). They are relative to the
# patient's pose: the images of patients who lie at an angle, or are small or tall, are turned and scaled to the mean.
VIEWS = ((0.0, 1.0), (10.0, 0.87), (-10.0, 1.15))
NEUTRAL_POSE = (0.0, 1.0)  # angle in degrees, factor of the grid's step
# The mean spine of synthetic patients: canal points L1/2 to L5/S1 relative to their centre, mm to the back and down.
MEAN_SPINE_MM = ((-3.7, -64.8), (-5.8, -31.8), (-4.4, 1.6), (1.7, 33.6), (12.3, 61.4))
MAX_POSE_DEG = 35.0  # a larger angle, or a scale outside of these limits, means that levels were misplaced
POSE_SCALES = (0.65, 1.5)
# Of the segments of a network trained on phantoms' masks, those that make up each tissue that the numbering asks for:
# vertebral body, sacrum, and, where they have segments of their own, S1 and the line of the disc S1/S2 below it.
TISSUES = {5: ((1,), (4,)), 7: ((1,), (4, 5, 6), (5,), (6,))}
STRIDE = 2  # heatmaps are at half the grid's resolution
BATCH = 16


def _reached(place: float, reach: float, size: int) -> slice:
    """The pixels of an axis that lie within ``reach`` of a place; none where it is too far away, or nowhere."""
    if not np.isfinite(place):
        return slice(0, 0)
    first, last = max(0, math.floor(place - reach)), min(size, math.ceil(place + reach) + 1)
    return slice(first, max(first, last))


@dataclass
class SagittalHeat:
    """Heatmaps of one sagittal stack: (S, 11, size / 2, size / 2) in 0..1 on ``grid``."""

    description: str
    number: int  # index among the description's stacks
    stack: Stack
    grid: Grid
    heat: Heat
    foramina_by_role: bool = False  # the heatmaps do not show foramina: slice roles and anatomy place them
    tissue: Heat | None = None  # (S, 2 or 4, size / 2, size / 2): ``TISSUES`` in 0..1, where they were asked for
    _peaks: dict[tuple[int, int], list[Peak]] = field(default_factory=dict, repr=False)

    def peaks(self, channel: int, number: int, most: int) -> list[Peak]:
        """The highest peaks of a channel (``find_peaks``), looked for once, as those of the map ``number``."""
        if (channel, most) not in self._peaks:
            self._peaks[channel, most] = find_peaks(self.heat[:, channel], self.stack, self.grid, STRIDE, 0, most=most)
        return [replace(peak, stack=number) for peak in self._peaks[channel, most]]

    def peak_near(self, channel: int, xyz_mm: Array, slices: list[int], radius_mm: float, weight: Array) -> Peak | None:
        """The highest heat of a channel near a patient point.

        Args:
            channel: of the heatmaps.
            xyz_mm: (3,) the point.
            slices: the slices that are searched.
            radius_mm: how fast the heat counts less with its distance in the plane; it ends at 1.5 times this.
            weight: (S,) factor for each slice.
        """
        _, x, y = project(self.stack, xyz_mm)
        centre = source_to_heat(self.grid, STRIDE, np.array([x, y]))
        radius = radius_mm / (self.grid.mm_per_px * STRIDE)
        size = self.heat.shape[-1]
        rows, columns = (_reached(float(place), 1.5 * radius, size) for place in centre[::-1])
        yy, xx = np.mgrid[rows, columns]
        if not yy.size:
            return None
        away = (xx - centre[0]) ** 2 + (yy - centre[1]) ** 2
        falloff = np.exp(-0.5 * (away / radius**2)) * (away <= (1.5 * radius) ** 2)
        best: tuple[float, int, int, int] | None = None
        for s in slices:
            near = self.heat[s, channel, rows, columns] * falloff * weight[s]
            y_best, x_best = divmod(int(near.argmax()), near.shape[1])
            if best is None or near[y_best, x_best] > best[0]:
                best = (float(near[y_best, x_best]), s, rows.start + y_best, columns.start + x_best)
        if best is None or best[0] <= 0:
            return None
        _, s, y_best, x_best = best
        x_px, y_px = heat_to_source(
            self.grid, STRIDE, refine(heat_with_neighbours(self.heat[:, channel], s), y_best, x_best)
        )
        y0, x0 = max(0, y_best - 1), max(0, x_best - 1)
        column = self.heat[max(0, s - 1) : s + 2, channel, y0 : y_best + 2, x0 : x_best + 2].max(axis=(1, 2))
        index = fractional_slice(column, s, max(0, s - 1))
        height = float(self.heat[s, channel, y_best, x_best])
        return Peak(self.stack.to_patient(index, y_px, x_px), height, self.number, s)


def sagittal_heat(
    study: Study,
    description: str,
    number: int,
    networks: list[nn.Module],
    *,
    augment: bool = False,
    pose: tuple[float, float] = NEUTRAL_POSE,
    with_tissue: bool = False,
) -> SagittalHeat:
    """Heatmaps of one stack, averaged over networks. A regression network's points become small Gaussian spots.

    Args:
        study: the study.
        description: of the series.
        number: index among the description's stacks.
        networks: of the stage, one for each fold.
        augment: average a heatmap network's output over all ``VIEWS``, and not only the first.
        pose: the patient's (``pose_of``), which the views of a heatmap network are relative to.
        with_tissue: keep where the first view shows ``TISSUES``, if the networks segment them.
    """
    stack = study.series[description][number]
    first = networks[0]
    assert isinstance(first, (HeatmapNet, SagittalRegressionNet))
    grid = sagittal_grid(stack, first)
    views = [NEUTRAL_POSE]
    if isinstance(first, HeatmapNet):
        views = [(angle + pose[0], step * pose[1]) for angle, step in VIEWS[: None if augment else 1]]
    grids = [
        make_grid(stack, size=grid.size, mm_per_px=grid.mm_per_px * step, angle_deg=angle) for angle, step in views
    ]
    size = grid.size // STRIDE
    tissue: list[Heat] | None = [] if with_tissue else None
    total = np.zeros((len(stack.volume), SAGITTAL_POINTS, size, size), np.float32)
    seen = np.zeros((1, 1, size, size), np.float32)
    for view in grids:
        images = with_context(grid_images(study, stack, view), first.config.context)
        heat = heat_of(networks, images, view, tissue if view is grids[0] else None)
        if view is grids[0]:  # the mean is taken on its grid
            total += heat
            seen += 1.0
        else:
            add_resampled(heat, view, grids[0], total)
            add_resampled(np.ones_like(seen), view, grids[0], seen)
    by_role = isinstance(first, SagittalRegressionNet) and first.config.foramina_by_role
    mean = total / (len(networks) * seen[0])
    return SagittalHeat(description, number, stack, grids[0], mean, by_role, _mean_tissue(tissue))


def _mean_tissue(tissue: list[Heat] | None) -> Heat | None:
    """The mean over networks of the tissues that all of them tell; None where none tells any."""
    if not tissue:
        return None
    known = min(each.shape[1] for each in tissue)
    return np.asarray(np.mean([each[:, :known] for each in tissue], axis=0))


def heat_of(networks: list[nn.Module], images: Heat, view: Grid, tissue: list[Heat] | None = None) -> Heat:
    """Heatmaps (S, 11, size / 2, size / 2) of the images of one view: the sum over networks."""
    total: Heat | None = None
    for network in networks:
        out = run_batches(network, images, tissue)
        heat = out[:, :SAGITTAL_POINTS] if isinstance(network, HeatmapNet) else gaussian_heat(out, view)
        total = heat if total is None else total + heat
    assert total is not None
    return total


def add_resampled(heat: Heat, view: Grid, grid: Grid, total: Heat) -> None:
    """Add heatmaps (S, C, size, size) of one view to those on another grid; what lies beyond the view adds nothing."""
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    places = source_to_heat(view, STRIDE, heat_to_source(grid, STRIDE, corners))
    matrix = np.column_stack([places[1] - places[0], places[2] - places[0], places[0]])
    size = heat.shape[-1]
    add_warped(np.ascontiguousarray(heat).reshape(-1, size, size), matrix, total.reshape(-1, size, size))


def pose_of(stack: Stack, network: HeatmapNet, levels_mm: dict[str, Xyz]) -> tuple[float, float]:
    """The patient's pose in a stack: the angle in degrees and the scale of the spine relative to ``MEAN_SPINE_MM``.

    They are those of the similarity transform that takes the mean spine to the levels in least squares (Umeyama 1991).
    With fewer than four levels, or an implausible result, it is ``NEUTRAL_POSE``.
    """
    if len(levels_mm) < 4:
        return NEUTRAL_POSE
    grid = sagittal_grid(stack, network)
    seen = np.array([project(stack, np.array(xyz))[1:] for xyz in levels_mm.values()])
    places = grid.to_grid(seen) * grid.mm_per_px
    mean = np.array(MEAN_SPINE_MM)[[LEVELS.index(level) for level in levels_mm]]
    places, mean = places - places.mean(axis=0), mean - mean.mean(axis=0)
    along = float((places * mean).sum())
    across = float((mean[:, 0] * places[:, 1] - mean[:, 1] * places[:, 0]).sum())
    angle = float(np.degrees(np.arctan2(across, along)))
    step = float(np.hypot(along, across) / (mean**2).sum())
    if abs(angle) > MAX_POSE_DEG or not POSE_SCALES[0] < step < POSE_SCALES[1]:
        return NEUTRAL_POSE
    return angle, step


def sagittal_grid(stack: Stack, network: HeatmapNet | SagittalRegressionNet) -> Grid:
    """The grid of a sagittal localiser's input: fixed millimetres, or the whole image for the regression network."""
    size = network.config.size
    if isinstance(network, HeatmapNet):
        return make_grid(stack, size=size, mm_per_px=network.config.mm_per_px)
    return make_grid(stack, size=size, mm_per_px=whole_image_mm(stack) / size)


def whole_image_mm(stack: Stack) -> float:
    """Side in mm of the square that holds a whole image of a stack."""
    rows, columns = stack.volume.shape[1:]
    spacing_row, spacing_column = stack.spacing_mm
    return float(max(rows * spacing_row, columns * spacing_column))


def run_batches(network: nn.Module, images: Heat, tissue: list[Heat] | None = None) -> Heat:
    """Run a network over (N, C, H, W) in batches: heatmaps after the sigmoid, other outputs as they are.

    Where a list is given for it, the ``TISSUES`` of a heatmap network that segments them are added to it, (N, 2, h, w)
    or (N, 4, h, w).
    """
    outs, segments = [], []
    for start in range(0, len(images), BATCH):
        out = forward(network, torch.from_numpy(images[start : start + BATCH]))
        outs.append(torch.sigmoid(out[:, : network.config.points]) if isinstance(network, HeatmapNet) else out)
        if tissue is not None and isinstance(network, HeatmapNet) and network.config.segments in TISSUES:
            shares = torch.softmax(out[:, network.config.points :], dim=1)
            parts = TISSUES[network.config.segments]
            segments.append(torch.stack([shares[:, list(part)].sum(dim=1) for part in parts], dim=1))
    if tissue is not None and segments:
        tissue.append(np.asarray(torch.cat(segments).numpy()))
    return np.asarray(torch.cat(outs).numpy())


def gaussian_heat(out: Heat, grid: Grid, sigma: float = 1.5) -> Heat:
    """The output (S, 11) of a regression network as heatmaps: a Gaussian at each point, its presence as height.

    Canal and foraminal channels are the same: the regression network tells levels, not which structure a slice shows.
    Its presence is that of the canal, so slice roles place the foramina better (``foramina_by_role``).
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
