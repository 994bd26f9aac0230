"""Working memory of decoders, kept from frame to frame.

To take half a megabyte from the system for each slice, and give it back, would take longer than decoding, because of
page faults. A caller that reads slice after slice and keeps none of them (``reused``) gets the file's bytes and the
pixels in such memory as well. Volumes are made in the memory of earlier volumes that are not used any more
(``recycled``): a megabyte of new pages takes 0.1 ms at best, half as long as decoding it from RLE, and 2 ms where the
host of a virtual machine has to provide it.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import numpy.typing as npt

_MAX_KEPT = 1 << 24  # bytes of one array that is kept
_MIN_RECYCLED, _MAX_FREE = 1 << 20, 1 << 27  # bytes of an array that is recycled, and of all that wait for that
_idle: list[dict[str, np.ndarray]] = []  # the arrays of threads that have ended their reading, for the next ones


class _Own(threading.local):
    """A thread's arrays by their use, and whether it puts results into them as well."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self.is_reusing = False


_own = _Own()


def scratch(size: int, use: str = "work") -> np.ndarray:
    """An array ``(size,)`` uint8 of any content, valid until the thread asks for the same use again."""
    arrays = _own.arrays
    kept = arrays.get(use)
    if kept is None or kept.size < size:
        kept = np.empty(size + size // 8, dtype=np.uint8)  # the next file may be a little larger
        if kept.size <= _MAX_KEPT:
            arrays[use] = kept
    return kept[:size]


def fresh(shape: tuple[int, ...], dtype: npt.DTypeLike, use: str) -> np.ndarray:
    """A new array of any content for a result; within ``reused`` the thread's own, which its next result overwrites."""
    if not _own.is_reusing:
        return np.empty(shape, dtype)
    dtype = np.dtype(dtype)
    return scratch(math.prod(shape) * dtype.itemsize, use).view(dtype).reshape(shape)


def fresh_bytes(size: int, use: str) -> np.ndarray:
    """``fresh`` for ``(size,)`` uint8, which takes less time: it is called twice for each slice of a series."""
    return scratch(size, use) if _own.is_reusing else np.empty(size, np.uint8)


@contextlib.contextmanager
def reused() -> Iterator[None]:
    """Within this block, what the thread has read is valid only until it reads the next file."""
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
    """The memory of a recycled array. All views of the array refer to it; after the last one it is free again."""

    free: ClassVar[dict[int, np.ndarray]] = {}  # memory that waits for the next array, by its ``id``

    def __init__(self, memory: np.ndarray) -> None:
        self.memory = memory
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        """Put the memory among the free. This may run in any thread at any moment, so each step must be atomic."""
        free, memory = self.free, self.memory
        if memory.size <= _MAX_FREE:
            free[id(memory)] = memory
            while sum(other.size for other in list(free.values())) > _MAX_FREE:
                for oldest in list(free)[:1]:
                    free.pop(oldest, None)


def recycled(shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray:
    """A new array of any content, in memory that was used before if possible."""
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
