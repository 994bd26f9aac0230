"""Volumes that are float32 arrays to their readers: kept in the smallest integer type, or decoded when asked for."""

from __future__ import annotations

import math
from typing import Any, BinaryIO

import numpy as np

ALIGN = 64  # bytes; a cache line, so that every volume starts as numpy's own allocations do


def compact(volume: np.ndarray) -> np.ndarray:
    """The same values as uint8, uint16 or int16 where all are whole and fit, else the float32 volume itself."""
    if volume.size == 0 or not np.isfinite(volume).all() or not (np.rint(volume) == volume).all():
        return np.ascontiguousarray(volume, dtype=np.float32)
    low, high = float(volume.min()), float(volume.max())
    for dtype in (np.uint8, np.uint16, np.int16):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return volume.astype(dtype)
    return np.ascontiguousarray(volume, dtype=np.float32)


def padded(offset: int) -> int:
    """The next aligned offset in bytes, or this one."""
    return -(-offset // ALIGN) * ALIGN


def write_aligned(file: BinaryIO, array: np.ndarray) -> int:
    """Append an array at the next aligned place; return its offset in bytes."""
    offset = padded(file.tell())
    file.write(b"\0" * (offset - file.tell()))
    file.write(np.ascontiguousarray(array).data if array.size else b"")
    return offset


class LazyVolume:
    """A (slices, rows, columns) float32 array to its readers, whose slices are made when they are asked for.

    Picking slices makes those and nothing else. Any other use of the array works on a whole copy.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    @property
    def ndim(self) -> int:
        """3."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of voxels."""
        return math.prod(self.shape)

    def slice(self, index: int) -> np.ndarray:
        """Slice ``index`` from 0, (rows, columns) float32; others may be given the same array."""
        raise NotImplementedError

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        first, *rest = index if isinstance(index, tuple) else (index,)
        if isinstance(first, int | np.integer):
            place = int(first) + (len(self) if first < 0 else 0)
            if not 0 <= place < len(self):
                raise IndexError(f"slice {first} of {len(self)}")
            image = self.slice(place)
            return image[tuple(rest)] if rest else image
        return np.asarray(self)[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("a lazy volume is made when read: a view without a copy does not exist")
        volume = np.empty(self.shape, np.float32)
        for index in range(len(self)):
            volume[index] = self.slice(index)
        return volume if dtype is None else volume.astype(dtype, copy=False)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or "shape" not in self.__dict__:
            raise AttributeError(name)
        return getattr(np.asarray(self), name)


class CompactVolume(LazyVolume):
    """A volume over a memory-mapped integer array: reading one slice touches one slice of the file."""

    def __init__(self, stored: np.ndarray) -> None:
        super().__init__(stored.shape)
        self.stored = stored

    def slice(self, index: int) -> np.ndarray:
        """Slice ``index`` (rows, columns) float32."""
        return np.asarray(self.stored[index], dtype=np.float32)

    def __getitem__(self, index: Any) -> Any:
        return np.asarray(self.stored[index], dtype=np.float32)[()]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            return super().__array__(dtype, copy)
        return self.stored.astype(dtype or np.float32)
