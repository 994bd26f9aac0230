"""Starts worker processes: ahead of time where it is known that some will be needed, each with its own CPU threads."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import time
import types
from collections.abc import Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from lumbar.bundle.shared_memory import Inherited, SharedWeights
from lumbar.io.text import one_line
from lumbar.workers.worker import serve_process

log = logging.getLogger("lumbar")

_NAME = "lumbar-worker"
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # read when the libraries are loaded

Started = tuple[Connection, SpawnProcess]

END_S = 5.0  # how long to wait for processes that were killed; one that waits for a dead disk may never end


def end(*processes: SpawnProcess) -> None:
    """Kill processes, and wait ``END_S`` for all together."""
    for process in processes:
        process.kill()
    until = time.monotonic() + END_S
    for process in processes:
        process.join(timeout=max(0.0, until - time.monotonic()))


class WorkerProcesses:
    """Worker processes of one run, before they get their setup.

    Args:
        n_threads: CPU threads of each; None leaves the choice to the libraries.
        modules: what they import while nobody asks them for anything.
        shared: memory that they have together for the weights.
    """

    def __init__(
        self, n_threads: int | None = None, modules: Sequence[str] = (), shared: SharedWeights | None = None
    ) -> None:
        self._n_threads, self._modules, self._shared = n_threads, tuple(modules), shared
        self._waiting: list[Started] = []

    def prepare(self, count: int) -> None:
        """Start some ahead of time: they import their libraries while the run verifies and reads."""
        for _ in range(count):
            started = self._start()
            if started is None:
                return
            self._waiting.append(started)

    def take(self) -> Started | None:
        """One that was started ahead, or a new one; None where no process can be started here."""
        return self._waiting.pop(0) if self._waiting else self._start()

    def stop(self) -> None:
        """End those that nobody took, and let go of the shared memory."""
        end(*(process for _, process in self._waiting))
        for connection, _ in self._waiting:
            connection.close()
        self._waiting = []
        if self._shared is not None:
            self._shared.close()
            self._shared = None

    def _start(self) -> Started | None:
        context = multiprocessing.get_context("spawn")  # a forked copy of a notebook would keep its locks for ever
        ours, theirs = context.Pipe()
        memory = None if self._shared is None else Inherited(self._shared.handle)
        process = context.Process(
            target=serve_process, args=(theirs, self._modules, memory), name=_NAME, daemon=True
        )  # fmt: skip
        try:
            with _without_interrupts(), _without_main(), _with_threads(self._n_threads):
                process.start()
        except (OSError, AssertionError) as error:  # no memory or permission, or this process is a daemon itself
            log.warning("no process can be started (%s): a crash would end this run", one_line(error))
            ours.close()
            return None
        finally:
            theirs.close()  # with it open, the end of the process would not be noticed
        return ours, process


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Hide the caller's main module from a process that is being started, which would run it a second time.

    A worker does not need it, and a script without ``if __name__ == "__main__"`` would start workers without end.
    """
    main = sys.modules.get("__main__")
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        if main is not None:
            sys.modules["__main__"] = main
        else:
            del sys.modules["__main__"]


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Start a process with SIGINT blocked: Ctrl-C in a terminal also reaches the workers, but the run handles it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # started later, it would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _with_threads(n_threads: int | None) -> Iterator[None]:
    """Start a process whose libraries make so many threads from the first: later they could only leave some idle."""
    if n_threads is None:
        yield
        return
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, str(n_threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
