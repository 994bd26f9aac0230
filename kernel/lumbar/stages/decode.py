"""Heatmaps to five ordered levels: peaks, then the best sequence down the spine by dynamic programming.

The channels of the levels (one each) and of the unlabelled discs (one for all) fail in different ways: both enter the
score, and the confidence is lower where they disagree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lumbar.dicom import Stack
from lumbar.dicom._jit import kernel
from lumbar.geometry import Grid

Array = NDArray[np.float64]

# Expected distance between neighbouring canal points in mm: adults have about 27 (L1/2-L2/3) to 37 (L3/4-L4/5), and
# less at the end. The sigma allows for small and tall patients and for wrong spacing tags.
SPACING_MM = (34.0, 34.5, 33.5, 30.0)
SPACING_SIGMA = 0.25  # of the distance's logarithm
RATIO_SIGMA = 0.16  # of the logarithm of the ratio of two distances: in one patient only worn discs make them differ
TURN_SIGMA_DEG = 25.0  # of the change of direction from one distance to the next
_PEAK_REACH = 3  # rows, columns and one slice to each side, in which a peak is the highest
ABSENT_LOG = -5.0  # score of leaving a level out


@dataclass(frozen=True)
class Peak:
    """A local maximum of one heatmap channel: patient position, height in 0..1, and where it was seen."""

    xyz_mm: Array
    height: float
    stack: int
    slice_index: int


def refine(heat: NDArray[np.float32], y: int, x: int, radius: int = 2) -> tuple[float, float]:
    """Sub-pixel position (x, y) of a peak: centroid of the squared heat in a window around it."""
    y0, y1 = max(0, y - radius), min(heat.shape[0], y + radius + 1)
    x0, x1 = max(0, x - radius), min(heat.shape[1], x + radius + 1)
    patch = heat[y0:y1, x0:x1].astype(np.float64) ** 2
    total = patch.sum()
    if total <= 0:
        return float(x), float(y)
    return (
        float((patch.sum(axis=0) * np.arange(x0, x1)).sum() / total),
        float((patch.sum(axis=1) * np.arange(y0, y1)).sum() / total),
    )


def heat_with_neighbours(heat: NDArray[np.float32], s: int) -> NDArray[np.float32]:
    """Heat (h, w) of slice ``s`` of (S, h, w) plus that of its neighbours: the sum of three is less noisy than one."""
    return np.asarray(heat[max(0, s - 1) : s + 2].sum(axis=0))


def heat_to_source(grid: Grid, stride: int, xy: tuple[float, float] | Array) -> Array:
    """Heatmap pixels (..., 2), x and y, as source pixels of the slice; each covers ``stride`` grid pixels a side."""
    return grid.to_source((np.asarray(xy) + 0.5) * stride - 0.5)


def source_to_heat(grid: Grid, stride: int, xy: Array) -> Array:
    """Inverse of ``heat_to_source``."""
    return (grid.to_grid(np.asarray(xy)) + 0.5) / stride - 0.5


@kernel
def _mark_maxima(
    here: NDArray[np.float32],
    below: NDArray[np.float32],
    above: NDArray[np.float32],
    floor: np.float32,
    reach: int,
    out: NDArray[np.uint8],
) -> int:
    """Set ``out`` to 1 where no pixel of three slices is higher within ``reach`` rows and columns; how many these are.

    Few pixels are as high as ``floor``, so looking at the neighbours of these takes less than a filter of all.
    """
    rows, columns = here.shape
    count = 0
    for y in range(rows):
        for x in range(columns):
            height = here[y, x]
            is_highest = height >= floor
            if is_highest:
                for i in range(max(0, y - reach), min(rows, y + reach + 1)):
                    for j in range(max(0, x - reach), min(columns, x + reach + 1)):
                        if here[i, j] > height or below[i, j] > height or above[i, j] > height:
                            is_highest = False
                            break
                    if not is_highest:
                        break
            out[y, x] = is_highest
            count += is_highest
    return count


def _maxima(heat: NDArray[np.float32], s: int, is_lit: NDArray[np.bool_], floor: float) -> NDArray[np.int64]:
    """The local maxima (n, 3) of slice ``s`` of (S, h, w): slice, row, column. Slices that are not lit do not count."""
    beside = [k if 0 <= k < len(heat) and is_lit[k] else s for k in (s - 1, s + 1)]
    here, below, above = (np.ascontiguousarray(heat[k]) for k in (s, *beside))
    marks = np.empty(here.shape, np.uint8)
    count = _mark_maxima(here, below, above, np.float32(floor), _PEAK_REACH, marks)
    rows, columns = np.divmod(np.flatnonzero(marks), here.shape[1]) if count else np.empty((2, 0), np.int64)
    return np.column_stack([np.full(count, s), rows, columns]).astype(np.int64, copy=False)


def find_peaks(
    heat: NDArray[np.float32],
    stack: Stack,
    grid: Grid,
    stride: int,
    stack_index: int,
    *,
    most: int = 4,
    floor: float = 0.03,
) -> list[Peak]:
    """Local maxima of one channel over all slices (S, h, w), highest first.

    Args:
        heat: in 0..1.
        stack: the slices' stack.
        grid: the grid that the heatmaps' images were sampled on.
        stride: grid pixels for each heatmap pixel.
        stack_index: kept in the peaks.
        most: how many at most.
        floor: lower maxima do not count.
    """
    is_lit = heat.max(axis=(1, 2)) >= floor
    places = [_maxima(heat, int(s), is_lit, floor) for s in np.flatnonzero(is_lit)]
    where = np.concatenate([np.empty((0, 3), np.int64), *places])
    heights = heat[where[:, 0], where[:, 1], where[:, 2]]
    peaks = []
    for s, y, x in where[np.argsort(-heights)[:most]]:
        x_px, y_px = heat_to_source(grid, stride, refine(heat_with_neighbours(heat, s), y, x))
        column = heat[max(0, s - 1) : s + 2, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].max(axis=(1, 2))
        index = fractional_slice(column, s, max(0, s - 1))
        peaks.append(Peak(stack.to_patient(index, y_px, x_px), float(heat[s, y, x]), stack_index, int(s)))
    return peaks


def fractional_slice(heights: NDArray[np.float32], s: int, first: int) -> float:
    """Slice index of a peak with a fraction: centroid of the squared heights of slice ``s`` and its neighbours.

    ``heights`` begins at slice ``first``. The result differs from ``s`` by at most half a slice.
    """
    weights = heights.astype(np.float64) ** 2
    if weights.sum() <= 0:
        return float(s)
    index = float((weights * np.arange(first, first + len(weights))).sum() / weights.sum())
    return float(np.clip(index, s - 0.5, s + 0.5))


def support(peaks: Sequence[Peak], xyz_mm: Array, radius_mm: float) -> float:
    """Height of the best peak near a position, falling off with distance: 0..1."""
    return float(_supports(peaks, np.asarray(xyz_mm)[None], radius_mm)[0])


def _supports(peaks: Sequence[Peak], points_mm: Array, radius_mm: float) -> Array:
    """``support`` of several positions (n, 3): (n,)."""
    if not peaks:
        return np.zeros(len(points_mm))
    distances = _length(np.array([peak.xyz_mm for peak in peaks]) - points_mm[:, None])
    heights = np.array([peak.height for peak in peaks]) * np.exp(-0.5 * (distances / radius_mm) ** 2)
    return np.asarray(np.maximum(heights.max(axis=1), 0.0))


def _length(vectors: Array) -> Array:
    return np.asarray(np.sqrt((vectors * vectors).sum(axis=-1)))


def pair_score(upper: Array, lower: Array, step: int) -> Array:
    """Log score of the positions (..., 3) of two neighbouring levels.

    ``lower`` must lie below, at a plausible distance.
    """
    delta = lower - upper
    distance = _length(delta)
    is_possible = (distance >= 10) & (delta[..., 2] <= -0.3 * distance)
    scores = -0.5 * (np.log(np.maximum(distance, 1e-9) / SPACING_MM[step]) / SPACING_SIGMA) ** 2
    return np.where(is_possible, scores, -np.inf)


def turn_score(a: Array, b: Array, c: Array, step: int) -> Array:
    """Log score of the spine's bend at ``b`` (..., 3), and of the ratio of the distances a-b (number ``step``), b-c."""
    u, v = b - a, c - b
    first, second = _length(u) + 1e-9, _length(v) + 1e-9
    cosine = (u * v).sum(axis=-1) / (first * second)
    angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    ratio = np.log(second / first * SPACING_MM[step] / SPACING_MM[step + 1])
    return np.asarray(-0.5 * (angle / TURN_SIGMA_DEG) ** 2 - 0.5 * (ratio / RATIO_SIGMA) ** 2)


def decode_levels(
    labelled: Sequence[Sequence[Peak]], discs: Sequence[Peak], n_stacks: int
) -> list[tuple[Array, float] | None]:
    """Find the best sequence of five levels by dynamic programming.

    A peak's own score is the log of its height, combined with the support of the other stacks and of the disc channel
    at the same place. Then distances and bends are scored. The state is a pair of neighbouring levels, so that bends
    can be; a level may be left out at a price (``ABSENT_LOG``).

    Args:
        labelled: the peaks of each of the five levels, of all stacks.
        discs: the peaks of the unlabelled disc channel, of all stacks.
        n_stacks: how many stacks there are.

    Returns:
        Five entries: (patient position (3,), confidence in 0..1), or None where the level was not found.
    """
    nodes = [_candidates(peaks, discs, n_stacks) for peaks in labelled]
    steps = _Steps(nodes)
    # For each state, (index at level - 1, index at level) with -1 for absent, the best score and its path
    table: dict[tuple[int, int], tuple[float, list[int]]] = {(-1, -1): (0.0, [])}
    for level in range(5):
        own = np.log(np.array([joint for _, joint in nodes[level]]) + 1e-4)
        fresh: dict[tuple[int, int], tuple[float, list[int]]] = {}
        for (_, last), (total, path) in table.items():
            scores = [total + ABSENT_LOG, *(total + own + steps.after(path, level)).tolist()]
            for index, score in enumerate(scores, -1):
                key = (last, index)
                if score > -math.inf and (key not in fresh or score > fresh[key][0]):
                    fresh[key] = (score, [*path, index])
        table = fresh
    _, path = max(table.values(), key=lambda entry: entry[0])
    return [None if index < 0 else nodes[level][index] for level, index in enumerate(path)]


def _candidates(peaks: Sequence[Peak], discs: Sequence[Peak], n_stacks: int) -> list[tuple[Array, float]]:
    """The best 12 positions for one level, and their joint scores in 0..1.

    Any disc may be any level, at a lower score: order and distances then decide.
    """
    pooled = [(peak.xyz_mm, peak.height) for peak in peaks]
    own = np.array([peak.xyz_mm for peak in peaks]).reshape(-1, 3)
    pooled += [(disc.xyz_mm, 0.2 * disc.height) for disc in discs if bool((_length(disc.xyz_mm - own) > 10).all())]
    points = np.array([xyz for xyz, _ in pooled]).reshape(-1, 3)
    agreement = np.zeros(len(pooled))
    for stack in range(n_stacks):
        agreement += _supports([peak for peak in peaks if peak.stack == stack], points, 6.0)
    agreement /= max(1, n_stacks)
    joint = 0.5 * np.array([height for _, height in pooled]) + 0.35 * agreement + 0.15 * _supports(discs, points, 8.0)
    scored = [(xyz, float(score)) for (xyz, _), score in zip(pooled, joint, strict=True)]
    scored.sort(key=lambda node: -node[1])
    return scored[:12]


class _Steps:
    """Log scores of distance and bend between the candidates of the levels, each computed once."""

    def __init__(self, nodes: list[list[tuple[Array, float]]]) -> None:
        self._places = [np.array([xyz for xyz, _ in level]).reshape(-1, 3) for level in nodes]
        self._pairs: dict[tuple[int, int], Array] = {}
        self._turns: dict[int, Array] = {}

    def after(self, path: list[int], level: int) -> Array | float:
        """The scores of all candidates of ``level`` after a path; 0 where the path holds no level yet."""
        earlier = [(k, index) for k, index in enumerate(path) if index >= 0]
        if not earlier:
            return 0.0
        k, last = earlier[-1]
        scores = self._pair(k, level)[last]
        if k == level - 1 and len(earlier) > 1 and earlier[-2][0] == k - 1:
            scores = scores + self._turn(level)[earlier[-2][1], last]
        return np.asarray(scores)

    def _pair(self, k: int, level: int) -> Array:
        """From each candidate of level ``k`` to each of ``level``: what is absent in between divides the distance."""
        if (k, level) not in self._pairs:
            upper, here = self._places[k][:, None], self._places[level][None]
            self._pairs[k, level] = pair_score(upper, upper + (here - upper) / (level - k), level - 1)
        return self._pairs[k, level]

    def _turn(self, level: int) -> Array:
        if level not in self._turns:
            a, b, c = (self._places[level + step] for step in (-2, -1, 0))
            self._turns[level] = turn_score(a[:, None, None], b[None, :, None], c[None, None], level - 2)
        return self._turns[level]
