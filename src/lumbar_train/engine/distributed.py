"""One process or many: what ``torchrun`` says, as one value that every part of training takes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from lumbar.errors import LumbarError
from lumbar_train.engine.interrupts import TimeLimitReached
from lumbar_train.errors import TrainingError

T = TypeVar("T")
GROUP_TIMEOUT = timedelta(hours=4)  # the main process joins tables and fits the aggregator while the others wait
LEAVE_TIMEOUT = timedelta(minutes=1)  # mostly all processes refuse for the same reason, within moments


@dataclass(frozen=True)
class Distributed:
    """This process and its peers. ``Distributed()`` is one process alone.

    Attributes:
        rank: 0-based number among all processes.
        world: how many there are.
        device: where this process computes.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and shows progress (rank 0)."""
        return self.rank == 0

    @property
    def is_many(self) -> bool:
        """Whether there are other processes."""
        return self.world > 1

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over all processes, in place; the same result on each."""
        if self.is_many:
            dist.all_reduce(values)
        return values

    def share(self, values: torch.Tensor) -> torch.Tensor:
        """The main process's numbers, in place, on every process."""
        if self.is_many:
            dist.broadcast(values, 0)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Any picklable value of every process, in the order of ranks, on each of them."""
        if not self.is_many:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """The main process's value, on every process."""
        if not self.is_many:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, device=self.device if self.device.type == "cuda" else None)
        return values[0]

    def on_main(self, action: Callable[[], T]) -> T:
        """Run an action on the main process alone; every process gets its result, or raises its error.

        If the error stayed on the main process, the others would wait for a process that has ended.
        """
        if not self.is_many:
            return action()
        outcome = _attempt(action) if self.is_main else None
        value: T = _result(self.broadcast(outcome))
        return value

    def on_all(self, action: Callable[[], T]) -> list[T]:
        """Run an action on every process; each gets all results in the order of ranks, or raises the first error."""
        if not self.is_many:
            return [action()]
        return [_result(outcome) for outcome in self.gather(_attempt(action))]

    def barrier(self) -> None:
        """Wait for all."""
        if self.is_many:
            dist.barrier()


def _attempt(action: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return action(), None
    except (LumbarError, OSError, TimeLimitReached) as error:
        return None, error


def _result(outcome: tuple[Any, Exception | None]) -> Any:
    value, error = outcome
    if error is not None:
        raise error
    return value


def pick_device(name: str = "auto", local_rank: int = 0) -> torch.device:
    """The device of a name; ``auto`` is the GPU of this local rank where there is one, else the CPU.

    Raises:
        TrainingError: no name of a device, or a GPU that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device("cuda", local_rank) if name == "cuda" else torch.device(name)
    except RuntimeError:
        raise TrainingError(f"device: found {name!r}, expected auto, cpu, cuda, cuda:0, ...") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise TrainingError(f"device {name}: torch sees no GPU, expected one; use cpu")
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise TrainingError(f"device {name}: found {torch.cuda.device_count()} GPUs, expected one of this number")
    return device


@contextmanager
def join_distributed(
    device: str = "auto", on_refusal: Callable[[Exception], None] | None = None
) -> Iterator[Distributed]:
    """Join the group that ``torchrun`` prepared (nccl on GPUs, gloo otherwise); alone without it.

    ``torchrun`` sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. The group is left at the end, also
    after an error, so that the other processes end instead of waiting.

    Args:
        device: as ``pick_device`` takes it.
        on_refusal: told of an error under ``torchrun`` while the group is still whole, before it is raised.
            ``torchrun`` ends the other processes of a machine as soon as one has ended, so none leaves before all have
            told theirs (one that refuses alone waits for a minute).
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = pick_device(device, local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or "RANK" not in os.environ:
        yield Distributed(device=chosen)
        return
    store, rank, world = next(rendezvous("env://", timeout=GROUP_TIMEOUT))
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=GROUP_TIMEOUT)
    try:
        yield Distributed(rank, world, chosen)
    except (LumbarError, OSError) as error:
        if on_refusal is not None:
            on_refusal(error)
        _leave_together(store, world)
        raise
    finally:
        dist.destroy_process_group()


def _leave_together(store: Any, world: int) -> None:
    """Wait until all processes have come here, but not for long: others may be waiting for this one elsewhere."""
    with suppress(RuntimeError):  # a timeout, or the process that holds the store has ended
        if store.add("leaving", 1) == world:
            store.set("all are leaving", "")
        store.wait(["all are leaving"], LEAVE_TIMEOUT)
