"""Decoded slices that a process keeps, so that one that is asked for again soon is not decoded again."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from pathlib import Path

import numpy as np

SHARE = 0.25  # of the memory that is free when a training begins: what all its processes keep together
LEAST = 32 << 20  # bytes that a process keeps at least
_CGROUPS = (  # limit and use of a container's memory, version 2 and 1
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


class SliceMemory:
    """Arrays by key, of which the ones used last are kept.

    Args:
        most: bytes of all arrays together. Arrays that were put in together stay together until others come, however
            large they are: the frames of one file, which are decoded at once.
    """

    def __init__(self, most: int) -> None:
        self.most, self.used = most, 0
        self._kept: OrderedDict[Hashable, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable) -> np.ndarray | None:
        """An array that is kept, or None."""
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
        return kept

    def put(self, arrays: Mapping[Hashable, np.ndarray]) -> None:
        """Keep arrays, and let go those that were used longest ago where all are too many."""
        for key, array in arrays.items():
            former = self._kept.pop(key, None)
            self.used += array.nbytes - (0 if former is None else former.nbytes)
            self._kept[key] = array
        while self.used > self.most and len(self._kept) > len(arrays):
            _, oldest = self._kept.popitem(last=False)
            self.used -= oldest.nbytes


def memory_for_slices(n_processes: int) -> int:
    """Bytes of slices that each of the processes of a training keeps: its part of a quarter of what is free."""
    return max(LEAST, int(SHARE * free_ram() / max(1, n_processes)))


def free_ram() -> int:
    """Bytes of memory that are free: the machine's, or what its container may still take."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for line in _text("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    for limit, use in _CGROUPS:
        values = _text(limit).strip(), _text(use).strip()
        if all(value.isdigit() for value in values):
            free = min(free, max(0, int(values[0]) - int(values[1])))
    return free


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
