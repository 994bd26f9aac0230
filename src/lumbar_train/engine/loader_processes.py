"""Processes that prepare samples for a fit.

In a process of a pool, Python starts others as it was started itself: from nothing, which takes them 15 s before the
first sample where several import torch at once, for every fit anew. There they are forked from a server instead that
has imported what they need, once for all fits of the process; it holds neither threads nor a GPU, which a fork of the
fit itself would copy in whatever state they are.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterable
from multiprocessing.context import BaseContext
from typing import Any

import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from lumbar_train.engine.interrupts import held_back
from lumbar_train.engine.process_pool import end_with_parent

_IMPORTED = ["lumbar_train.stages.registry"]  # torch, timm and the data of all stages


class Loader(DataLoader[Any]):
    """A loader whose processes leave signals of the terminal to the process that trains."""

    def __iter__(self) -> Any:
        """Start the processes, or go on with those of the epoch before."""
        with held_back():
            return super().__iter__()


def loader_of(
    dataset: TorchDataset[Any],
    batches: Iterable[Any],
    collate: Callable[[list[Any]], Any],
    *,
    workers: int,
    device: torch.device,
    are_kept: bool,
) -> Loader:
    """A loader of whole batches.

    Args:
        dataset: is pickled where processes are not forked: it holds no lambda and no open file.
        batches: the keys of each batch's samples.
        collate: samples to a batch.
        workers: processes that prepare batches; 0 for none.
        device: to which batches go; for a GPU they are put into pinned memory.
        are_kept: whether the processes stay from one iteration to the next.
    """
    return Loader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=are_kept and workers > 0,
        pin_memory=device.type == "cuda",
        worker_init_fn=_begin if workers else None,
        multiprocessing_context=_context() if workers else None,
        generator=torch.Generator(),  # its own: a loader must not draw from the state that resume restores
    )


def _context() -> BaseContext | None:
    """How the processes are started; None leaves it to Python."""
    if sys.platform != "linux" or multiprocessing.get_start_method() == "fork":
        return None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    return context


def _begin(_worker: int) -> None:
    torch.set_num_threads(1)
    end_with_parent()  # torch watches whoever forked this process, and a server lives as long as what it forked
