"""Sampling grids in the plane of a stack: fixed millimetres per pixel, canonical orientation.

A sagittal grid shows the patient facing left (x grows posterior, y grows towards the feet); an axial grid is the
radiological view (x grows towards the patient's left, y grows posterior). One function makes the matrix that both
images and points go through, so they cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from lumbar.dicom import Stack
from lumbar.resample import warp

Array = NDArray[np.float64]

# Patient directions (LPS) of increasing grid x and y.
_CANONICAL = {
    "sagittal": ((0.0, 1.0, 0.0), (0.0, 0.0, -1.0)),
    "axial": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)),
    "coronal": ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0)),
}


@dataclass(frozen=True)
class Grid:
    """A square sampling grid over a slice.

    ``matrix`` (2, 3) takes grid (x, y, 1) to source pixels (x, y) = (column, row); ``mm_per_px`` is the grid's step.
    """

    size: int
    mm_per_px: float
    matrix: Array

    def to_source(self, points: Array) -> Array:
        """Grid points (..., 2) as source pixels (x, y)."""
        return np.asarray(points) @ self.matrix[:, :2].T + self.matrix[:, 2]

    def to_grid(self, points: Array) -> Array:
        """Source pixels (x, y) (..., 2) as grid points."""
        return (np.asarray(points) - self.matrix[:, 2]) @ np.linalg.inv(self.matrix[:, :2]).T


def canonical_axes(stack: Stack) -> Array:
    """Signed permutation (2, 2) whose columns are the source directions (x, y) of grid +x and grid +y."""
    steps = np.stack([stack.column_mm, stack.row_mm])
    units = steps / np.linalg.norm(steps, axis=1, keepdims=True)
    targets = np.array(_CANONICAL[stack.orientation])
    cosines = units @ targets.T  # (source axis, grid axis)
    straight = abs(cosines[0, 0]) + abs(cosines[1, 1]) >= abs(cosines[0, 1]) + abs(cosines[1, 0])
    keep = np.eye(2) if straight else np.eye(2)[::-1]
    return np.asarray(np.where(cosines >= 0, 1.0, -1.0) * keep)


def make_grid(
    stack: Stack,
    *,
    size: int,
    mm_per_px: float,
    centre_px: tuple[float, float] | None = None,
    angle_deg: float = 0.0,
    is_mirrored: bool = False,
) -> Grid:
    """Make a square grid over the slices of a stack.

    Args:
        stack: the stack whose slices are sampled.
        size: pixels on each side.
        mm_per_px: step of the grid.
        centre_px: source pixel (x, y) under the grid's centre; None for the image's centre.
        angle_deg: the grid is turned by this angle; positive turns grid +x towards grid +y.
        is_mirrored: grid x runs backwards (left and right are swapped in an axial view).
    """
    rows, columns = stack.volume.shape[1:]
    if centre_px is None:
        centre_px = ((columns - 1) / 2, (rows - 1) / 2)
    spacing_row, spacing_column = stack.spacing_mm
    angle = np.deg2rad(angle_deg)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if is_mirrored:
        turn = turn @ np.diag([-1.0, 1.0])
    per_mm = np.diag([1 / spacing_column, 1 / spacing_row])
    linear = per_mm @ canonical_axes(stack) @ turn * mm_per_px
    middle = np.full(2, (size - 1) / 2)
    offset = np.asarray(centre_px) - linear @ middle
    return Grid(size=size, mm_per_px=mm_per_px, matrix=np.column_stack([linear, offset]))


def sample(image: NDArray[np.float32], grid: Grid, outside: float = 0.0) -> NDArray[np.float32]:
    """Sample a slice (rows, columns) float32 on a grid: (size, size), with ``outside`` beyond the image.

    Interpolation is linear. Where the grid is coarser than the pixels, the image is first smoothed by a Gaussian of
    matching width, so that fine texture is averaged and not aliased.
    """
    return warp(prefiltered(image, grid), grid.matrix, grid.size, outside)


def prefiltered(image: NDArray[np.float32], grid: Grid) -> NDArray[np.float32]:
    """The image as ``sample`` interpolates it: under a Gaussian where the grid is coarser than the pixels."""
    coarser = float(np.sqrt(abs(np.linalg.det(grid.matrix[:, :2]))))
    return _smoothed(image, grid, 0.45 * coarser) if coarser > 1.25 else image


def _smoothed(image: NDArray[np.float32], grid: Grid, sigma: float) -> NDArray[np.float32]:
    """The image smoothed by a Gaussian where the grid reads it; 0 elsewhere."""
    corners = grid.to_source(np.array([(0, 0), (grid.size, 0), (0, grid.size), (grid.size, grid.size)]) - 0.5)
    margin = int(4 * sigma) + 3  # OpenCV's kernel for floats ends at 4 sigma
    rows, columns = image.shape
    x0, y0 = (max(0, int(v) - 2) for v in corners.min(axis=0))
    x1, y1 = (min(n, int(v) + 4) for v, n in zip(corners.max(axis=0), (columns, rows), strict=True))
    out = np.zeros_like(image)
    if x1 <= x0 or y1 <= y0:
        return out  # the grid lies beside the image
    left, top = max(0, x0 - margin), max(0, y0 - margin)
    source = np.ascontiguousarray(image[top : min(rows, y1 + margin), left : min(columns, x1 + margin)])
    smooth = cv2.GaussianBlur(source, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    out[y0:y1, x0:x1] = smooth[y0 - top : y1 - top, x0 - left : x1 - left]
    return out


def plane_distance_mm(stack: Stack, xyz_mm: Array) -> Array:
    """Signed distance (slices,) of a patient point (3,) from each slice's plane, along the stack's normal."""
    return np.asarray(float(np.asarray(xyz_mm) @ stack.normal) - stack.positions_mm)


def is_inside(stack: Stack, x_px: float, y_px: float, margin_px: float = 0.0) -> bool:
    """Whether a pixel (x, y) lies in the stack's images, at least ``margin_px`` from the edge."""
    rows, columns = stack.volume.shape[1:]
    return margin_px <= x_px <= columns - 1 - margin_px and margin_px <= y_px <= rows - 1 - margin_px


def shows(stack: Stack, xyz_mm: Array, margin_mm: float = 0.0) -> bool:
    """Whether a stack shows a patient point (3,): on or between its slices, or at most one slice beyond its ends.

    In the images the point lies at least ``margin_mm`` from the edge.
    """
    index, x, y = project(stack, xyz_mm)
    return -1.0 <= index <= len(stack.volume) and is_inside(stack, x, y, margin_mm / min(stack.spacing_mm))


def project(stack: Stack, xyz_mm: Array) -> tuple[float, float, float]:
    """A patient point as (fractional slice, x_px, y_px) of a stack."""
    s, row, column = stack.to_voxel(np.asarray(xyz_mm, dtype=float))
    return float(s), float(column), float(row)


def shifted(stack: Stack, centre_px: tuple[float, float], shift_mm: tuple[float, float]) -> tuple[float, float]:
    """A pixel moved by millimetres along the canonical directions."""
    spacing_row, spacing_column = stack.spacing_mm
    move = np.diag([1 / spacing_column, 1 / spacing_row]) @ canonical_axes(stack) @ np.asarray(shift_mm)
    return (centre_px[0] + float(move[0]), centre_px[1] + float(move[1]))


def canonical_mm(stack: Stack, delta_px: Array) -> Array:
    """A difference of pixels (x, y) as millimetres along the canonical directions."""
    spacing_row, spacing_column = stack.spacing_mm
    return np.asarray(canonical_axes(stack).T @ (np.asarray(delta_px) * (spacing_column, spacing_row)))
