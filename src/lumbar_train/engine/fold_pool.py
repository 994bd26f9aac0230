"""Folds side by side: a pool of processes on one machine, each with its share of the cores and a GPU that is free."""

from __future__ import annotations

import copy
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TypeVar

import torch

from lumbar_train.engine.distributed import Distributed, pick_device
from lumbar_train.engine.interrupts import TimeLimitReached, end_worker, ends_in_time, time_limit
from lumbar_train.engine.process_pool import Pool, processes

A = TypeVar("A")
T = TypeVar("T")


class Placed(Protocol):
    """What says where it is done."""

    distributed: Distributed
    devices: tuple[torch.device, ...]


P = TypeVar("P", bound=Placed)
Work = Callable[[P, str, int], None]  # one stage on one fold; a function that a module holds by name


def workers(jobs: int) -> AbstractContextManager[Pool | None]:
    """A pool of ``jobs`` processes, started once a run because each imports torch; None for one job."""
    return nullcontext() if jobs <= 1 else processes(jobs)


def run_side_by_side(
    run: P,
    work: Work[P],
    stage: str,
    folds: list[int],
    pool: Executor | None,
    jobs: int,
    on_done: Callable[[int], None] = lambda fold: None,
) -> None:
    """One stage on several folds in their order, side by side where there is a pool.

    Args:
        run: what ``work`` is given; in a pool a copy of it, placed on one device.
        work: ``work(run, stage, fold)``.
        stage: name of the stage.
        folds: on which folds.
        pool: of ``workers(jobs)``.
        jobs: how many at a time.
        on_done: told of each fold in this process when it is done.
    """
    if pool is None:
        for fold in folds:
            work(run, stage, fold)
            on_done(fold)
        return

    def begin(fold: int, device: torch.device) -> Future[None]:
        assert pool is not None
        return pool.submit(_task, run, work, stage, fold, jobs, device, time_limit())

    for fold, _ in hand_out(folds, jobs, run.devices or (run.distributed.device,), begin):
        on_done(fold)


def hand_out(
    tasks: Iterable[A], jobs: int, devices: Sequence[torch.device], begin: Callable[[A, torch.device], Future[T]]
) -> Iterator[tuple[A, T]]:
    """Begin tasks in their order, ``jobs`` at a time, each on the device that the fewest are using; yield as they end.

    An error of a task is raised here, and no other begins; the pool then stops those that have begun. Where the time is
    up, no other begins, and those that have begun end by themselves, each at its next step, before that is raised.
    """
    load = [0] * len(devices)
    waiting = deque(tasks)
    running: dict[Future[T], tuple[A, int]] = {}
    ends: list[TimeLimitReached] = []
    while waiting or running:
        while waiting and len(running) < jobs:
            task, k = waiting.popleft(), load.index(min(load))
            load[k] += 1
            running[begin(task, devices[k])] = task, k
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            task, k = running.pop(future)
            load[k] -= 1
            if isinstance(error := future.exception(), TimeLimitReached):
                ends.append(error)
                waiting.clear()
            else:
                yield task, future.result()
    if ends:
        raise TimeLimitReached(any(end.has_saved for end in ends))


def usable_devices(name: str = "auto") -> tuple[torch.device, ...]:
    """The devices that fits side by side may use: every GPU, or the one device that was named by its number.

    Raises:
        TrainingError: a GPU is asked for and there is none.
    """
    first = pick_device(name)
    if first.type != "cuda" or ":" in name:
        return (first,)
    return tuple(torch.device("cuda", k) for k in range(torch.cuda.device_count()))


def _task(run: P, work: Work[P], stage: str, fold: int, jobs: int, device: torch.device, ends_at: float | None) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    mine = copy.copy(run)
    mine.distributed = Distributed(device=device)
    if hasattr(mine, "loop"):
        mine.loop = mine.loop | {"progress": False}  # bars of several processes would overwrite one another
    try:
        with ends_in_time(ends_at):
            work(mine, stage, fold)
    except KeyboardInterrupt as interrupt:
        end_worker(interrupt)
