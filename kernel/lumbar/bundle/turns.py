"""Which networks have their weights in memory all the time, and which take turns where not all of them fit.

The fits of an ensemble's members are loaded once where the memory holds them. Where it does not, some share one place:
each is read from its file when it is to run (``lumbar.models.turns``). Answers are the same bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

from lumbar.bundle.manifest import Manifest, WeightEntry
from lumbar.io.text import counted
from lumbar.workers.machine import RESERVE_BYTES, WORKER_BYTES, at_work_bytes, float_bytes, free_memory

_GIB = 1 << 30
_DRIVER_BYTES = _GIB  # of a GPU's memory: the driver's context, and what the allocator keeps for itself


@dataclass(frozen=True)
class LoadingPlan:
    """How the fits of the classifiers are loaded.

    Attributes:
        loaded: those that stay in memory.
        in_turn: those that share one place.
        free_bytes: what there is for all networks of the bundle.
        needed_bytes: what all of them take.
    """

    loaded: tuple[WeightEntry, ...]
    in_turn: tuple[WeightEntry, ...]
    free_bytes: int
    needed_bytes: int

    @property
    def words(self) -> str:
        """The plan in one line."""
        sizes = f"{_gib(self.needed_bytes)} of weights, memory for {_gib(max(self.free_bytes, 0))}"
        whole = counted(len(self.loaded) + len(self.in_turn), "classifier fit")
        if not self.in_turn:
            return f"{whole} loaded once ({sizes})"
        largest = max(map(float_bytes, self.in_turn))
        return (
            f"{len(self.loaded)} of {whole} loaded once, {len(self.in_turn)} in turn for each study, "
            f"{_gib(largest)} at a time ({sizes})"
        )


def loading_plan(manifest: Manifest, device: str, free: int | None = None) -> LoadingPlan:
    """Plan what stays in memory.

    Args:
        manifest: of the bundle.
        device: ``cpu``, or a GPU's name.
        free: bytes for all networks of the bundle; None asks the device.
    """
    free = memory_for_networks(manifest, device) if free is None else free
    names = {one.name for one in manifest.classifiers}
    fits = [entry for entry in manifest.weights if entry.stage in names and entry.model != "external"]
    needed = sum(map(float_bytes, manifest.weights))
    if needed <= free:
        return LoadingPlan(tuple(fits), (), free, needed)
    room = free - (needed - sum(map(float_bytes, fits)))
    shed = list(manifest.data.get("shed", ()))
    place = {name: number for number, name in enumerate(shed)}
    loaded: list[WeightEntry] = []
    # Whatever is left out last near the deadline is loaded first
    in_turn = sorted(fits, key=lambda entry: -place.get(entry.stage, len(shed)))
    used = 0
    while in_turn:
        used += float_bytes(in_turn[0])
        if used + max(map(float_bytes, in_turn[1:]), default=0) > room:
            break
        loaded.append(in_turn.pop(0))
    return LoadingPlan(tuple(loaded), tuple(in_turn), free, needed)


def shared_words(manifest: Manifest) -> str:
    """What is told where all workers have the weights together; it was seen before that they fit."""
    names = {one.name for one in manifest.classifiers}
    count = sum(entry.stage in names for entry in manifest.weights)
    size = _gib(sum(map(float_bytes, manifest.weights)))
    return f"{counted(count, 'classifier fit')} loaded once for all workers ({size} of weights)"


def memory_for_networks(manifest: Manifest, device: str) -> int:
    """Bytes that a device has for weights, beside what a network at work takes."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0]) - _DRIVER_BYTES - at_work_bytes(manifest)
    return free_memory() - RESERVE_BYTES - WORKER_BYTES - at_work_bytes(manifest)


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / _GIB:.2g} GiB"
