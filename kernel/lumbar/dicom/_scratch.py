"""Working memory of decoders, kept from frame to frame.

Taking half a megabyte from the system and giving it back costs more page faults than decoding costs time. Who reads
slice after slice and keeps none of them (``reused``) has the file's bytes and the pixels put into such memory, too.
Volumes are made in the memory of earlier ones that nobody refers to any more (``recycled``): a megabyte of fresh pages
costs 0.1 ms at best, half of what decoding it from RLE costs, and 2 ms where a virtual machine's host has to find it.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import numpy.typing as npt

_MAX_KEPT = 1 << 24
_MIN_RECYCLED, _MAX_FREE = 1 << 20, 1 << 27
_idle: list[dict[str, np.ndarray]] = []  # what threads have left that are done: others go on with it


class _Own(threading.local):
    """A thread's arrays by their use, and whether results are put there, too."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self.is_reusing = False


_own = _Own()


def scratch(size: int, use: str = "work") -> np.ndarray:
    """``(size,)`` uint8 of any content, valid until the thread asks again for this use; large ones are not kept."""
    arrays = _own.arrays
    kept = arrays.get(use)
    if kept is None or kept.size < size:
        kept = np.empty(size + size // 8, dtype=np.uint8)  # the next file may be a little larger
        if kept.size <= _MAX_KEPT:
            arrays[use] = kept
    return kept[:size]


def fresh(shape: tuple[int, ...], dtype: npt.DTypeLike, use: str) -> np.ndarray:
    """An array of any content for a result; within ``reused`` the thread's own, which its next result overwrites."""
    if not _own.is_reusing:
        return np.empty(shape, dtype)
    dtype = np.dtype(dtype)
    return scratch(math.prod(shape) * dtype.itemsize, use).view(dtype).reshape(shape)


def fresh_bytes(size: int, use: str) -> np.ndarray:
    """``fresh`` for ``(size,)`` uint8, in less time: two files are read for each slice of a series."""
    return scratch(size, use) if _own.is_reusing else np.empty(size, np.uint8)


@contextlib.contextmanager
def reused() -> Iterator[None]:
    """Whatever this thread reads inside is valid until it reads the next."""
    before = _own.arrays, _own.is_reusing
    try:
        _own.arrays = _idle.pop()
    except IndexError:
        _own.arrays = {}
    _own.is_reusing = True
    try:
        yield
    finally:
        _idle.append(_own.arrays)
        _own.arrays, _own.is_reusing = before


class _Block:
    """Memory of an array made from it; every view of that array keeps it, and after the last it is free again."""

    free: ClassVar[dict[int, np.ndarray]] = {}  # memory that waits for the next array, by its identity

    def __init__(self, memory: np.ndarray) -> None:
        self.memory = memory
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        """Give the memory back. This runs in any thread at any moment, so each step leaves things whole by itself."""
        free, memory = self.free, self.memory
        if memory.size <= _MAX_FREE:
            free[id(memory)] = memory
            while sum(other.size for other in list(free.values())) > _MAX_FREE:
                for oldest in list(free)[:1]:
                    free.pop(oldest, None)


def recycled(shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray:
    """A new array of any content, in memory that was used before if there is some."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size < _MIN_RECYCLED:
        return np.empty(shape, dtype)
    memory = None
    fitting = [(other.size, key) for key, other in list(_Block.free.items()) if size <= other.size <= 2 * size]
    for _, key in sorted(fitting):
        memory = _Block.free.pop(key, None)
        if memory is not None:  # else another thread has it
            break
    block = _Block(np.empty(size, dtype=np.uint8) if memory is None else memory)
    return np.asarray(block)[:size].view(dtype).reshape(shape)
