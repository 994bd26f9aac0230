"""Folds side by side: a pool of processes on one machine, each with its share of the cores and a GPU in turn."""

from __future__ import annotations

import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from multiprocessing.process import BaseProcess
from typing import Protocol

import torch

from lumbar_train.ranks import Ranks


class Work(Protocol):
    """What has steps to do on folds."""

    ranks: Ranks

    def work(self, step: str, fold: int) -> None:
        """One step on one fold."""


def workers(jobs: int) -> AbstractContextManager[ProcessPoolExecutor | None]:
    """A pool of ``jobs`` processes, started once a run because each imports torch; None for one job."""
    if jobs <= 1:
        return nullcontext()
    return ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=end_with_parent)


def end_with_parent() -> None:
    """Let this process of a pool end when the one that started it does.

    Else a fit goes on for minutes after its run was killed, and writes beside the run that was started again.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def run_side_by_side(run: Work, step: str, folds: list[int], pool: ProcessPoolExecutor | None, jobs: int) -> None:
    """One step on several folds, side by side where there is a pool; full fits first because they take longest."""
    if pool is None:
        for fold in folds:
            run.work(step, fold)
        return
    for future in [pool.submit(_task, run, step, fold, jobs, k) for k, fold in enumerate(folds)]:
        future.result()


def _task(run: Work, step: str, fold: int, jobs: int, number: int) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    if run.ranks.device.type == "cuda":
        torch.cuda.set_device(number % torch.cuda.device_count())
        run.ranks = Ranks(device=torch.device("cuda", torch.cuda.current_device()))
    run.work(step, fold)
