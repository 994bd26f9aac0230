"""The run's end of a worker: its process or thread, its pipe, and the studies that are open in it."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import signal
import sys
import threading
import types
from collections.abc import Iterator
from multiprocessing import resource_tracker
from typing import Any

from lumbar.budget import Effort
from lumbar.io.text import one_line
from lumbar.workers.worker import Setup, serve, serve_process

log = logging.getLogger("lumbar")

_END_S = 5.0  # a process that was killed is waited for so long; one that waits for a dead disk may not end at all
_NAME = "lumbar-worker"


class Worker:
    """A worker and what the run knows of it. Studies in it are read, then wait, then are in its networks.

    Args:
        setup: what it works on.
        slot: its place among the workers; one that takes its place has the same.
        is_process: a process of its own, which can be ended and replaced; else a daemon thread. Where no process can
            be started it is a thread all the same.
    """

    def __init__(self, setup: Setup, slot: int, is_process: bool) -> None:
        self.setup, self.slot, self.is_process = setup, slot, is_process
        self.device = ""
        self.is_ready = False
        self.reading: dict[int, float] = {}  # study → the run's clock when its reading began
        self.waiting: dict[int, float] = {}  # read, not yet in the networks; values as above
        self.busy: int | None = None  # the study in the networks
        self.busy_s = 0.0  # the run's clock when it went into them
        self.counted_s = 0.0  # the same, or when the networks began to wait for it: what a study costs
        self.idle_s = 0.0  # the run's clock when the networks had nothing to do
        self.started_s = 0.0  # the run's clock when it was started
        self.effort = Effort.FULL
        self.alone: int | None = None  # a study that is tried again with nothing beside it
        self.n_read = 0
        self.retiring_s: float | None = None  # the run's clock when a reading in it was given up
        if is_process:
            self.is_process = self._start_process()
        if not self.is_process:
            self._start_thread()

    def _start_process(self) -> bool:
        """Start a process; False where that is not possible here."""
        context = multiprocessing.get_context("spawn")  # a forked copy of a notebook would hold its locks
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=serve_process, args=(theirs,), name=_NAME, daemon=True)
        try:
            with _without_interrupts(), _without_main():
                self._process.start()
        except (OSError, AssertionError) as error:  # no memory, no permission; a daemon may have no children
            log.warning("no process can be started (%s): a crash would end this run", one_line(error))
            self.connection.close()
            return False
        finally:
            theirs.close()  # or its end would never be noticed
        return True

    def _start_thread(self) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        self._thread = threading.Thread(target=serve, args=(theirs, self.setup), name=_NAME, daemon=True)
        self._thread.start()

    def open_studies(self) -> list[int]:
        """All that may be the reason if it dies now: in the networks, waiting for them, being read."""
        busy = [] if self.busy is None else [self.busy]
        return [*busy, *self.waiting, *self.reading]

    def forget(self) -> list[int]:
        """Take all open studies out of its hands, in the order in which they would have been predicted."""
        studies = self.open_studies()
        self.busy, self.alone = None, None
        self.waiting, self.reading = {}, {}
        return studies

    def send(self, message: Any) -> None:
        """Tell the worker; that it is gone is found out by receiving."""
        try:
            self.connection.send(message)
        except OSError:
            log.debug("%s: gone", self.setup.device)

    def receive(self) -> Any:
        """Its next message; None when it is gone."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            return None

    def ending(self) -> str:
        """How a worker that is gone ended, in words."""
        if not self.is_process:
            return "its thread ended"
        self._process.join(timeout=_END_S)
        code = self._process.exitcode
        if code is None:
            return "its process answers no more"
        if code >= 0:
            return f"its process ended with exit code {code}"
        try:
            return f"its process was killed by {signal.Signals(-code).name}"
        except ValueError:  # a real-time signal has no name
            return f"its process was killed by signal {-code}"

    def stop(self) -> None:
        """End it at once. A thread at work cannot be ended: it is left behind, and nobody waits for it."""
        self.forget()
        if self.is_process:
            self._process.kill()
            self._process.join(timeout=_END_S)
        else:
            self.send(("stop",))
            self._thread.join(timeout=0.1)
        self.connection.close()


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Hide the caller's main module from a process that is started: it would be run there a second time.

    A worker needs nothing of it, and a script without ``if __name__ == "__main__"`` would start workers without end.
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
    """Start a process with SIGINT blocked: a terminal's Ctrl-C reaches workers too, and is the run's to answer."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # on its first start it lifts the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
