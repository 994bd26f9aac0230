"""Pools of processes that end with the process that started them, and within seconds when it is interrupted."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from tqdm import tqdm

from lumbar_train.engine.interrupts import STOP_S, held_back, listen_in_worker

T = TypeVar("T")


class Pool(ProcessPoolExecutor):
    """Processes that leave signals of the terminal to their parent."""

    def submit(self, work: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """As the executor's; a process that is started for the work receives no signals of the terminal."""
        with held_back():
            return super().submit(work, *args, **kwargs)


@contextmanager
def processes(count: int, prepare: Callable[..., None] | None = None, *args: Any) -> Iterator[Pool]:
    """A pool of ``count`` fresh processes. On any error or interrupt its work is stopped at once, and none begins.

    Args:
        count: how many.
        prepare: ``prepare(*args)`` is called once in each.
        args: of ``prepare``.
    """
    context = multiprocessing.get_context("spawn")
    pool = Pool(count, mp_context=context, initializer=_begin, initargs=(prepare, args))
    try:
        yield pool
    except BaseException:
        stop(pool)
        raise
    pool.shutdown()


def stop(pool: Pool) -> None:
    """End the processes of a pool: fits save themselves first if that takes no longer than a few seconds."""
    running: list[BaseProcess] = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in running:
        process.terminate()
    deadline = time.monotonic() + STOP_S
    for process in running:
        process.join(max(0.0, deadline - time.monotonic()))
    for process in running:
        if process.is_alive():
            process.kill()
            process.join(1.0)


def _begin(prepare: Callable[..., None] | None, args: tuple[Any, ...]) -> None:
    # No bar is shared between processes: a lock of tqdm's own kind would be left over where one is ended at once.
    tqdm.set_lock(threading.RLock())
    listen_in_worker()
    end_with_parent()
    if prepare is not None:
        prepare(*args)


def end_with_parent() -> None:
    """End this process of a pool when the process that started it ends.

    Otherwise a fit goes on for minutes after its run was killed, and writes beside the run that was started again.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
