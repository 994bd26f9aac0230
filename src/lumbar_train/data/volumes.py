"""Volumes on disk: float32 values kept without loss in the smallest integer type that holds them, memory-mapped."""

from __future__ import annotations

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


def write_aligned(file: BinaryIO, array: np.ndarray) -> int:
    """Append an array at the next aligned place; return its offset in bytes."""
    offset = -(-file.tell() // ALIGN) * ALIGN
    file.write(b"\0" * (offset - file.tell()))
    file.write(np.ascontiguousarray(array).data if array.size else b"")
    return offset


class CompactVolume:
    """A (slices, rows, columns) float32 array to its readers, a memory-mapped integer array underneath.

    Indexing converts what is picked and nothing else, so that reading one slice touches one slice of the file. Any
    other use of the array works on a whole converted copy.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, stored: np.ndarray) -> None:
        self.stored = stored

    @property
    def shape(self) -> tuple[int, ...]:
        """(slices, rows, columns)."""
        return self.stored.shape

    @property
    def ndim(self) -> int:
        """3."""
        return self.stored.ndim

    @property
    def size(self) -> int:
        """Number of voxels."""
        return self.stored.size

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, index: Any) -> Any:
        return np.asarray(self.stored[index], dtype=np.float32)[()]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("a compact volume is converted when read: a view without a copy does not exist")
        return self.stored.astype(dtype or np.float32)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "stored":
            raise AttributeError(name)
        return getattr(np.asarray(self), name)
