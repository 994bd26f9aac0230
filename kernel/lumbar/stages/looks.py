"""Further looks at the slices of the canal: does the column stay where it was read if the images look otherwise?

A localiser that counts wrongly often does so by little, and counts otherwise once the picture is a little larger,
darker or softer (test-time augmentation as a measure of doubt: Wang et al. 2019, Neurocomputing 338:34). Each look is
read alone; each of its levels is a vote for the disc that it lies on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import nn

from lumbar.dicom import Stack
from lumbar.geometry import Grid, make_grid, project
from lumbar.labels import LEVELS
from lumbar.models.heatmap import HeatmapNet
from lumbar.models.regression import SagittalRegressionNet
from lumbar.stages.crop import grid_images
from lumbar.stages.heat import NEUTRAL_POSE, SagittalHeat, heat_of, pose_of, sagittal_grid
from lumbar.stages.numbering import NOT_LOOKED, column_mm, say_of
from lumbar.stages.place import fuse_levels
from lumbar.stages.points import Localisation, Xyz
from lumbar.study import Study

Array = NDArray[np.float64]
Images = NDArray[np.float32]

_MARGIN = 0.11  # of the image's sides, each of which loses this share
_EVENED = 0.1  # of the grid's side: sigma of the field that is evened out
_BLUR_MM = 1.5  # sigma
_NEAR = 0.5  # of a step: a level so near to a disc lies on it
_ADDED = 0.5  # to each count of votes before the logarithm


@dataclass(frozen=True)
class Look:
    """One change of the images: a factor on the grid's step (a larger one shows the patient smaller), and an edit.

    ``edit`` takes (n, size, size) in 0..1, the stack and the grid, and returns as many of the same range.
    """

    name: str
    step: float = 1.0
    edit: Callable[[Images, Stack, Grid], Images] | None = None


def _evened(images: Images, stack: Stack, grid: Grid) -> Images:
    """Without the fall-off of coils: each pixel relative to its surroundings, which a quarter of the pixels tell."""
    out, whole, quarter = np.empty_like(images), (grid.size, grid.size), (max(1, grid.size // 4),) * 2
    for k, image in enumerate(images):
        small = cv2.GaussianBlur(cv2.resize(image, quarter, interpolation=cv2.INTER_AREA), (0, 0), _EVENED * quarter[0])
        ratio = image / (cv2.resize(small, whole, interpolation=cv2.INTER_LINEAR) + 0.02)
        out[k] = np.clip(ratio / max(float(np.percentile(ratio, 99)), 1e-6), 0.0, 1.0)
    return out


def _blurred(images: Images, stack: Stack, grid: Grid) -> Images:
    return np.stack([cv2.GaussianBlur(image, (0, 0), _BLUR_MM / grid.mm_per_px) for image in images])


def _without_margins(images: Images, stack: Stack, grid: Grid) -> Images:
    """A smaller field of view: the outer parts of the source image are dark."""
    rows, columns = stack.volume.shape[1:]
    yy, xx = np.mgrid[: grid.size, : grid.size]
    source = grid.to_source(np.stack([xx, yy], axis=-1).reshape(-1, 2).astype(np.float64))
    share = (source + 0.5) / (columns, rows)
    is_kept = ((share > _MARGIN) & (share < 1 - _MARGIN)).all(axis=1).reshape(grid.size, grid.size)
    return np.asarray(images * is_kept, dtype=np.float32)


LOOKS = (
    Look("larger", step=0.85),
    Look("smaller", step=1.18),
    Look("brighter", edit=lambda images, stack, grid: images ** np.float32(0.6)),
    Look("darker", edit=lambda images, stack, grid: images ** np.float32(1.7)),
    Look("evened", edit=_evened),
    Look("softer", edit=_blurred),
    Look("cut", edit=_without_margins),
)


def look_again(
    study: Study, maps: Sequence[SagittalHeat], networks: list[nn.Module], levels_mm: dict[str, Xyz]
) -> tuple[float, float, float]:
    """How the votes of all ``LOOKS`` speak against the column as read.

    Args:
        study: its stacks.
        maps: of each sagittal stack, as the levels were read from them.
        networks: of the stage, one for each fold.
        levels_mm: the levels as read; their slices (``slices_of``) are looked at.

    Returns:
        Logarithm of the votes for the column one disc higher, one lower, and elsewhere, each over those for the column
        as it was read, of all stacks that show it. Below 0 where the column stays; 0 with too few levels.
    """
    column = column_mm(levels_mm)
    if column is None:
        return NOT_LOOKED
    votes = np.zeros(4)
    for stack_heat, say in zip(maps, say_of([one.stack for one in maps], column)[:, 1:-1], strict=True):
        if say.any():
            for seen in levels_seen(study, stack_heat, networks, levels_mm).values():
                votes += votes_of(seen, column, say)
    against = np.log((votes[1:] + _ADDED) / (votes[0] + _ADDED))
    return float(against[0]), float(against[1]), float(against[2])


def slices_of(stack: Stack, levels_mm: dict[str, Xyz]) -> list[int]:
    """The slice in the middle of the levels, and those of levels that lie more than one slice beside it."""
    places = np.array([project(stack, np.array(xyz))[0] for xyz in levels_mm.values()])
    nearest = np.clip(np.round(places), 0, len(stack.volume) - 1).astype(int)
    middle = int(np.median(nearest))
    return sorted({middle} | {int(k) for k in nearest if abs(k - middle) > 1})


def levels_seen(
    study: Study,
    stack_heat: SagittalHeat,
    networks: list[nn.Module],
    levels_mm: dict[str, Xyz],
    looks: Sequence[Look] = LOOKS,
) -> dict[str, dict[str, Xyz]]:
    """The levels in mm that each look, by its name, sees on the slices of one stack."""
    stack, first = stack_heat.stack, networks[0]
    assert isinstance(first, (HeatmapNet, SagittalRegressionNet))
    angle, size = pose_of(stack, first, levels_mm) if isinstance(first, HeatmapNet) else NEUTRAL_POSE
    slices = slices_of(stack, levels_mm)
    context = first.config.context
    beside = np.array(slices)[:, None] + np.arange(-(context // 2), context - context // 2)[None]
    needed, places = np.unique(np.clip(beside, 0, len(stack.volume) - 1), return_inverse=True)
    # Without the other slices: they have no heat
    shown = replace(stack, volume=stack.volume[slices], origins_mm=stack.origins_mm[slices], padding=None)
    grid = sagittal_grid(stack, first)
    levels = {}
    for step in {look.step: None for look in looks}:
        view = make_grid(stack, size=grid.size, mm_per_px=grid.mm_per_px * size * step, angle_deg=angle)
        images = grid_images(study, stack, view, [int(k) for k in needed])
        alike = [look for look in looks if look.step == step]
        edited = [look.edit(images, stack, view) if look.edit else images for look in alike]
        heat = heat_of(networks, np.concatenate([each[places.reshape(beside.shape)] for each in edited]), view)
        heat = np.asarray(heat / np.float32(len(networks)))
        for look, part in zip(alike, np.split(heat, len(alike)), strict=True):
            read = Localisation()
            fuse_levels([SagittalHeat(stack_heat.description, stack_heat.number, shown, view, part)], read)
            levels[look.name] = read.levels_mm
    return levels


def votes_of(levels_mm: dict[str, Xyz], column: Array, say: Array) -> Array:
    """Shares (4,) of the five levels that lie on their own disc of a column, one higher, one lower, and elsewhere.

    The column has seven discs (7, 3) in mm, from the one above L1/2 to the one below L5/S1. A level that was not found
    is elsewhere. Each level counts a fifth times its ``say`` (5,) in 0..1.
    """
    discs = column[:, 1:]
    step = float(np.median(np.linalg.norm(np.diff(discs, axis=0), axis=1)))
    votes = np.zeros(4)
    for level, name in enumerate(LEVELS):
        place = 3
        if name in levels_mm:
            away = np.linalg.norm(discs - np.array(levels_mm[name])[1:], axis=1)
            nearest = int(away.argmin())
            if away[nearest] < _NEAR * step:
                place = {0: 0, -1: 1, 1: 2}.get(nearest - 1 - level, 3)
        votes[place] += say[level] / len(LEVELS)
    return votes
