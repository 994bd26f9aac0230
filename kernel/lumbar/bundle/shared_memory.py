"""Weights that all workers of a run have together: one copy in float32, in memory that ends with the last of them.

The run makes a file without a name in memory (memfd_create(2)), with a place for each file of the bundle; its workers
inherit it. The worker that needs a network first reads its file and puts the tensors there in float32; all others map
the same pages, which cannot be written. Linux alone has such files: elsewhere each worker has its own copy.
"""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lumbar.bundle.manifest import Manifest

_PAGE = mmap.ALLOCATIONGRANULARITY
_HEAD = _PAGE  # one byte a file of weights: 1 once its tensors are there
_ROOM = 2  # float32 takes at most twice the bytes of the bundle's halves
_SLACK = 1 << 16  # a file: tensors begin at whole 64 bytes


class SharedWeights:
    """The memory as the run or a worker has it. It can be sent to a process that is being started.

    Args:
        manifest: of the bundle.
        handle: the open file; None makes one.

    Raises:
        OSError: the system has no such memory.
    """

    def __init__(self, manifest: Manifest, handle: int | None = None) -> None:
        self._places: dict[str, tuple[int, int, int]] = {}  # file → number, start, size
        end = _HEAD
        for number, entry in enumerate(manifest.weights[:_HEAD]):
            size = -(-(_ROOM * entry.bytes + _SLACK) // _PAGE) * _PAGE
            self._places[entry.file] = number, end, size
            end += size
        if handle is None:
            handle = os.memfd_create("lumbar-weights")
            os.truncate(handle, end)  # pages are taken when they are written
        self.handle = handle

    @contextmanager
    def place(self, file: str, n_bytes: int) -> Iterator[tuple[mmap.mmap, bool] | None]:
        """The place of one file of weights, locked for this process; None where it has none or is too small.

        Yields:
            The memory, which can be written, and whether the tensors are there already. They count as there when the
            block ends without an exception, so that a worker that dies meanwhile leaves nothing half done.
        """
        import fcntl

        number, start, size = self._places.get(file, (0, 0, 0))
        if n_bytes > size:
            yield None
            return
        fcntl.lockf(self.handle, fcntl.LOCK_EX, 1, number)  # ends with the process
        try:
            is_there = os.pread(self.handle, 1, number) == b"\x01"
            with mmap.mmap(self.handle, size, offset=start) as memory:
                yield memory, is_there
                os.pwrite(self.handle, b"\x01", number)  # before the map is closed, which would end the lock
        finally:
            fcntl.lockf(self.handle, fcntl.LOCK_UN, 1, number)

    def mapped(self, file: str) -> mmap.mmap:
        """The place of one file, read-only: a worker that goes astray harms no other."""
        _, start, size = self._places[file]
        return mmap.mmap(self.handle, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ, offset=start)

    def close(self) -> None:
        """Let go of the file; what is mapped stays."""
        os.close(self.handle)


def can_share() -> bool:
    """Whether this system has memory that processes share without a name."""
    return sys.platform.startswith("linux") and hasattr(os, "memfd_create")


def share(manifest: Manifest) -> SharedWeights | None:
    """Memory for the weights of a bundle; None where the system has none."""
    try:
        return SharedWeights(manifest) if can_share() else None
    except OSError:
        return None


class Inherited:
    """An open file that a process gets when it is started, as ``multiprocessing`` passes its own."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def __reduce__(self) -> tuple[Any, ...]:
        from multiprocessing.reduction import DupFd

        return _detached, (DupFd(self._handle),)


def _detached(copy: Any) -> int:
    handle: int = copy.detach()
    return handle
