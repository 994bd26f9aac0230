"""What this process may use of the machine, and how many workers without a GPU that makes.

Networks on a CPU run in as many processes with one thread each as there are cores. Threads that share the work of one
network wait for each other after every layer: OpenMP's do so at full load, and one that the system does not run
at the moment, since another program needs its core, stops all of them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lumbar.bundle.manifest import Manifest, WeightEntry
from lumbar.io.text import counted

_GIB = 1 << 30
RESERVE_BYTES = _GIB // 2  # left to the run itself and to the system
# What a worker takes beside weights and networks at work: Python with its libraries, two studies, compiled kernels
# (measured: docs/measurements.md, "One machine").
WORKER_BYTES = 700 << 20
# What a network at work takes, a pixel of its input: a U-Net or a ResNet keeps some 50 float32 values of each alive.
PIXEL_BYTES = 200
_BATCH = 16  # images that a localiser looks at together (lumbar.stages.heat)
_SLICES = 40  # of a series that enters whole
_LEVELS, _WINDOWS = 5, 3
_CPU_LIMITS = ("/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us")
_MEMORY_LIMITS = (  # limit and use of a container, versions 2 and 1
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


@dataclass(frozen=True)
class Layout:
    """The workers of a run.

    Attributes:
        kinds: the devices that they have in turn.
        count: how many workers there are, unless there are fewer studies.
        n_threads: CPU threads of each; None leaves the choice to the libraries. It follows from what was asked for,
            never from the number of studies or the memory that is free at the start: other threads give other last
            bits, and a run that goes on must answer as it began.
        reason: why there are so many, for the log; empty where that was asked for.
    """

    kinds: Sequence[str]
    count: int
    n_threads: int | None
    reason: str = ""

    @property
    def shares_weights(self) -> bool:
        """Whether several workers have their networks on the CPU."""
        return self.count > 1 and self.kinds[0] == "cpu"

    def of(self, n_studies: int) -> list[str]:
        """The devices of the workers that so many studies need: one at least."""
        return [self.kinds[slot % len(self.kinds)] for slot in range(max(1, min(n_studies, self.count)))]

    def words(self, devices: Sequence[str]) -> str:
        """Workers and threads in words."""
        each = ", ".join(f"{counted(devices.count(name), 'worker')} on {name}" for name in dict.fromkeys(devices))
        threads = "" if self.n_threads is None else f", {counted(self.n_threads, 'thread')} each"
        return f"{each}{threads}{f' ({self.reason})' if self.reason else ''}"


def cpu_layout(manifest: Manifest, local_count: int, is_shared: bool) -> Layout:
    """One worker with one thread a core, as far as the memory goes; cores that are left stay idle.

    Args:
        manifest: of the bundle whose networks run.
        local_count: runs like this one on this machine, which divide it among them.
        is_shared: whether the workers have one copy of the weights together.
    """
    n_cores = max(1, cores() // local_count)
    shared, each = memory_needs(manifest, is_shared)
    n_fitting = max(1, int((free_memory() / local_count - RESERVE_BYTES - shared) // each))
    n_workers = min(n_cores, n_fitting)
    reason = counted(n_cores, "core")
    if n_workers < n_cores:
        reason += f", memory for {counted(n_workers, 'worker')} of {each / _GIB:.1f} GiB"
    return Layout(["cpu"], n_workers, 1, reason)


def memory_needs(manifest: Manifest, is_shared: bool) -> tuple[int, int]:
    """Bytes that all workers need together, and that each needs beside them. Weights lie in memory in float32."""
    weights = sum(map(float_bytes, manifest.weights))
    at_work = at_work_bytes(manifest)
    return (weights, WORKER_BYTES + at_work) if is_shared else (0, WORKER_BYTES + at_work + weights)


def float_bytes(entry: WeightEntry) -> int:
    """Bytes of a network's weights in memory; in the bundle they are halves."""
    return 2 * entry.bytes


def at_work_bytes(manifest: Manifest) -> int:
    """What the largest network at work takes beside weights."""
    return max((_pixels(entry) * PIXEL_BYTES for entry in manifest.weights), default=0)


def _pixels(entry: WeightEntry) -> int:
    """Pixels of the largest input of a network; 0 for one without images."""
    config = entry.config
    size = config.get("size", 0)
    if not isinstance(size, int):
        return 0
    slices = config.get("max_slices") or config.get("window")
    if isinstance(slices, int):
        n_images = _LEVELS * _WINDOWS * slices
    else:
        n_images = _SLICES if entry.model == "slice_role" else _BATCH
    return n_images * size * size


def cores() -> int:
    """Processor cores that this process may use: those that it may run on, within its container's quota of time."""
    try:
        n_cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        n_cores = os.cpu_count() or 1
    newer, quota, period = (_numbers(path) for path in _CPU_LIMITS)
    for limit in (newer, [*quota, *period]):
        if len(limit) == 2 and limit[0] > 0 and limit[1] > 0:
            n_cores = min(n_cores, limit[0] // limit[1])
    return max(1, n_cores)


def free_memory() -> int:
    """Bytes that may still be taken: the machine's, or what the process's container has left."""
    free = _total_memory()
    for line in _text("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) << 10
    for limit, used in _MEMORY_LIMITS:
        most, taken = _numbers(limit), _numbers(used)
        if len(most) == len(taken) == 1:
            free = min(free, max(0, most[0] - taken[0] + _cached(Path(limit).with_name("memory.stat"))))
    return free


def _cached(path: Path) -> int:
    """Bytes of a container's files that the system lets go as soon as somebody needs them."""
    pairs = (line.split() for line in _text(str(path)).splitlines())
    values = {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}
    # Version 1 counts the groups inside a container in ``total_`` alone; version 2 has no such line
    return values.get("total_inactive_file", values.get("inactive_file", 0))


def _total_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):  # a system that does not tell: cores alone decide
        return 1 << 60


def _numbers(path: str) -> list[int]:
    """The whole numbers in a file of the system; none where it has another form (``max``: no limit) or is not there."""
    try:
        return [int(word) for word in _text(path).split()]
    except ValueError:
        return []


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
