"""Processes of a group as threads of this one, for tests of what they say to each other; starts in no time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from lumbar_train.engine.distributed import Distributed

T = TypeVar("T")
WAIT_S = 60.0  # a thread that waits longer for the others fails: in a group of processes it would wait for hours


@dataclass(frozen=True)
class ThreadOfMany(Distributed):
    """One of the group's members; ``slots`` and ``meeting`` are shared by all."""

    slots: list[Any] = field(default_factory=list)
    meeting: threading.Barrier = field(default_factory=lambda: threading.Barrier(1))

    def gather(self, value: Any) -> list[Any]:
        self.slots[self.rank] = value
        self.meeting.wait()
        values = list(self.slots)
        self.meeting.wait()
        return values

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values.copy_(torch.stack(self.gather(values.detach().clone())).sum(0))

    def share(self, values: torch.Tensor) -> torch.Tensor:
        return values.copy_(self.gather(values.detach().clone())[0])

    def broadcast(self, value: Any) -> Any:
        return self.gather(value)[0]

    def barrier(self) -> None:
        self.meeting.wait()


def together(world: int, work: Callable[[Distributed], T]) -> list[T | Exception]:
    """What ``work`` gives, or raises, on every member of a group."""
    slots, meeting = [None] * world, threading.Barrier(world, timeout=WAIT_S)
    members = [ThreadOfMany(rank, world, torch.device("cpu"), slots, meeting) for rank in range(world)]
    with ThreadPoolExecutor(world) as pool:
        futures = [pool.submit(work, member) for member in members]
    return [future.exception() or future.result() for future in futures]
