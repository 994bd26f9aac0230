"""A worker as the run sees it: its process or thread, its pipe, and the studies that are open in it."""

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

from lumbar.io.text import one_line
from lumbar.workers.budget import Effort
from lumbar.workers.worker import Setup, serve, serve_process

log = logging.getLogger("lumbar")

_END_S = 5.0  # how long to wait for a process that was killed; one that waits for a dead disk may never end
_NAME = "lumbar-worker"


class Worker:
    """A worker and what the run knows about it. A study in it is read, then waits, then is in its networks.

    Args:
        setup: what it works on.
        slot: its number among the workers; a worker that replaces it has the same.
        is_process: whether it is a process, which can be ended and replaced, or a daemon thread. Where no process can
            be started it is a thread in any case.
    """

    def __init__(self, setup: Setup, slot: int, is_process: bool) -> None:
        self.setup, self.slot, self.is_process = setup, slot, is_process
        self.device = ""
        self.is_ready = False
        # Times are the run's clock, in seconds.
        self.reading: dict[int | str, float] = {}  # study → when its reading began
        self.waiting: dict[int | str, float] = {}  # the same for studies that are read but not yet in the networks
        self.busy: int | str | None = None  # the study in the networks
        self.busy_s = 0.0  # when it went into them
        self.counted_s = 0.0  # from when its seconds count: when the networks began to wait for it
        self.idle_s = 0.0  # when the networks last ended a study
        self.started_s = 0.0  # when the worker was started
        self.effort = Effort.FULL
        self.alone: int | str | None = None  # a study that is tried again with no other study in the worker
        self.n_read = 0  # readings that ended
        self.retiring_s: float | None = None  # when a reading in it was given up; it gets no more studies
        if is_process:
            self.is_process = self._start_process()
        if not self.is_process:
            self._start_thread()

    def _start_process(self) -> bool:
        """Start a process; False where that is not possible here."""
        context = multiprocessing.get_context("spawn")  # a forked copy of a notebook would keep its locks for ever
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=serve_process, args=(theirs,), name=_NAME, daemon=True)
        try:
            with _without_interrupts(), _without_main():
                self._process.start()
        except (OSError, AssertionError) as error:  # no memory or permission, or this process is a daemon itself
            log.warning("no process can be started (%s): a crash would end this run", one_line(error))
            self.connection.close()
            return False
        finally:
            theirs.close()  # with it open, the end of the process would not be noticed
        return True

    def _start_thread(self) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        self._thread = threading.Thread(target=serve, args=(theirs, self.setup), name=_NAME, daemon=True)
        self._thread.start()

    def open_studies(self) -> list[int | str]:
        """The studies that may be the reason if it dies now: in the networks, waiting for them, or being read."""
        busy = [] if self.busy is None else [self.busy]
        return [*busy, *self.waiting, *self.reading]

    def forget(self) -> list[int | str]:
        """Take away all open studies, and return them in the order in which they would have been predicted."""
        studies = self.open_studies()
        self.busy, self.alone = None, None
        self.waiting, self.reading = {}, {}
        return studies

    def send(self, message: Any) -> None:
        """Send a message; that the worker is gone is noticed when receiving."""
        try:
            self.connection.send(message)
        except OSError:
            log.debug("%s: gone", self.setup.device)

    def receive(self) -> Any:
        """Receive its next message; None when it is gone."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            return None

    def ending(self) -> str:
        """How a worker that is gone has ended, in words."""
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
        """End it at once. A thread that works cannot be ended: it is left behind and not waited for."""
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
