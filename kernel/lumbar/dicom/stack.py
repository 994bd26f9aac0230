"""A stack: parallel slices of one size, ordered along their normal, with their positions in the patient.

Patient space is LPS in mm (PS3.3 section C.7.6.2.1.1): +x to the patient's left, +y to the back, +z to the head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

_AXES = ("sagittal", "coronal", "axial")  # normal along x, y, z


@dataclass
class Stack:
    """Slices of one orientation, image size and pixel spacing.

    Attributes:
        series_id: name of the series' folder.
        volume: ``(slices, rows, columns)`` float32, in rescaled units.
        origins_mm: ``(slices, 3)`` float64, centre of each slice's pixel (0, 0); slices need not be equally spaced.
        row_mm: ``(3,)`` step of +1 in the row index.
        column_mm: ``(3,)`` step of +1 in the column index.
        instance_numbers: of each slice: the file's name where that is a number, else the tag.
        is_inverted: MONOCHROME1, where low values are bright.
        problems: what was missing or wrong, a line each.
        step_mm: distance that a next slice would have, for a stack of one slice.
        is_geometry_guessed: orientation, spacing or positions are defaults, because no file has them.
        frame_numbers: of each slice, from 1, or 0 where its file has one frame; empty where all files have one.
        padding: ``(slices, 2)`` float32, lowest and highest value of pixels that are declared padding (NaN: none), or
            ``None``. The volume holds these pixels as they were stored.
        is_spacing_guessed: the pixel spacing is the default of 1 mm, because no file has one.
    """

    series_id: str
    volume: np.ndarray
    origins_mm: np.ndarray
    row_mm: np.ndarray
    column_mm: np.ndarray
    instance_numbers: list[int]
    is_inverted: bool = False
    problems: list[str] = field(default_factory=list)
    step_mm: float = 1.0
    is_geometry_guessed: bool = False
    frame_numbers: list[int] = field(default_factory=list)
    padding: np.ndarray | None = None
    is_spacing_guessed: bool = False

    def frame(self, index: int) -> int | None:
        """Frame number, from 1, of slice ``index``; ``None`` where its file has one frame."""
        return (self.frame_numbers[index] or None) if self.frame_numbers else None

    def padding_mask(self, index: int) -> np.ndarray | None:
        """Which pixels of slice ``index`` are declared padding, ``(rows, columns)`` bool; ``None`` where none are."""
        if self.padding is None:
            return None
        low, high = self.padding[index]
        image = np.asarray(self.volume[index], dtype=np.float32)
        mask = (low <= image) & (image <= high)
        return np.asarray(mask) if mask.any() else None

    @property
    def normal(self) -> np.ndarray:
        """Unit normal ``(3,)``, largest component positive: slices run right to left, front to back, foot to head."""
        return plane_normal(self.row_mm, self.column_mm)

    @property
    def orientation(self) -> str:
        """``sagittal``, ``coronal`` or ``axial``, by the axis that is nearest to the normal."""
        return _AXES[int(np.argmax(np.abs(self.normal)))]

    @property
    def spacing_mm(self) -> tuple[float, float]:
        """Distance between rows, and between columns."""
        return float(np.linalg.norm(self.row_mm)), float(np.linalg.norm(self.column_mm))

    @property
    def positions_mm(self) -> np.ndarray:
        """Position of each slice along the normal, ``(slices,)`` mm, increasing."""
        return np.asarray(self.origins_mm @ self.normal)

    def to_patient(self, slice: npt.ArrayLike, row: npt.ArrayLike, column: npt.ArrayLike) -> np.ndarray:
        """Patient coordinates ``(..., 3)`` in mm of voxel indices, each ``(...)``, which may have fractions.

        Between slices the origin is interpolated; beyond the ends it is extrapolated from the last two slices.
        """
        rows = np.asarray(row, dtype=np.float64)[..., None]
        columns = np.asarray(column, dtype=np.float64)[..., None]
        return self._origin(np.asarray(slice, dtype=np.float64)) + rows * self.row_mm + columns * self.column_mm

    def to_voxel(self, xyz_mm: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Fractional (slice, row, column), each ``(...)``, of patient coordinates ``(..., 3)`` in mm.

        The slice index is interpolated between the slices' positions along the normal, which need not be equally
        spaced; beyond the ends it is extrapolated from the last two slices. The inverse of ``to_patient``.
        """
        points = np.asarray(xyz_mm, dtype=np.float64)
        normal = self.normal  # positions_mm would compute it again
        places, positions = points @ normal, np.asarray(self.origins_mm @ normal)
        if len(positions) == 1:
            slices = np.asarray((places - positions[0]) / self.step_mm)
        else:
            lower = np.clip(np.searchsorted(positions, places, side="right") - 1, 0, len(positions) - 2)
            slices = np.asarray(lower + (places - positions[lower]) / (positions[lower + 1] - positions[lower]))
        offsets = points - self._origin(slices)
        # Least squares in the plane by the normal equations, since rows and columns need not be at right angles
        row_mm, column_mm = self.row_mm, self.column_mm
        rr, rc, cc = float(row_mm @ row_mm), float(row_mm @ column_mm), float(column_mm @ column_mm)
        along_row, along_column = offsets @ row_mm, offsets @ column_mm
        scale = rr * cc - rc * rc
        return slices, (cc * along_row - rc * along_column) / scale, (rr * along_column - rc * along_row) / scale

    def _origin(self, slices: np.ndarray) -> np.ndarray:
        """Origins ``(..., 3)`` of fractional slice indices ``(...)``."""
        origins = np.asarray(self.origins_mm, dtype=np.float64)
        if len(origins) == 1:
            return np.asarray(origins[0] + slices[..., None] * (self.step_mm * self.normal))
        lower = np.clip(np.floor(slices), 0, len(origins) - 2).astype(np.intp)
        return np.asarray(origins[lower] + (slices - lower)[..., None] * (origins[lower + 1] - origins[lower]))


def plane_normal(row: npt.ArrayLike, column: npt.ArrayLike) -> np.ndarray:
    """Unit normal ``(3,)`` of the plane through two vectors, its largest component positive."""
    ax, ay, az = np.asarray(column, dtype=np.float64).tolist()
    bx, by, bz = np.asarray(row, dtype=np.float64).tolist()  # written out, because np.cross takes ten times as long
    normal = np.array([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx])
    normal /= math.sqrt(normal @ normal)
    return np.asarray(normal if normal[np.argmax(np.abs(normal))] > 0 else -normal)
