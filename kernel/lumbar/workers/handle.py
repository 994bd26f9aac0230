"""A worker as the run sees it: its process or thread, its pipe, and the studies that are open in it."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import threading
from dataclasses import dataclass
from typing import Any

from lumbar.workers.effort import Level
from lumbar.workers.processes import END_S, WorkerProcesses, end
from lumbar.workers.worker import Setup, serve

log = logging.getLogger("lumbar")

_NAME = "lumbar-worker"


@dataclass(frozen=True)
class InNetworks:
    """A study in the networks. Times are the run's clock, in seconds."""

    since_s: float  # when it went into them
    began_s: float  # when its reading began
    effort: Level


class Worker:
    """A worker and what the run knows about it. A study in it is read, then waits, then is in its networks.

    Args:
        setup: what it works on.
        slot: its number among the workers; a worker that replaces it has the same.
        is_process: whether it is a process, which can be ended and replaced, or a daemon thread. Where no process can
            be started it is a thread in any case.
        processes: where its process comes from.
    """

    def __init__(self, setup: Setup, slot: int, is_process: bool, processes: WorkerProcesses) -> None:
        self.setup, self.slot, self.is_process = setup, slot, is_process
        self.device = ""
        self.is_ready = False
        # Times are the run's clock, in seconds.
        self.reading: dict[int | str, float] = {}  # study → when its reading began
        self.waiting: dict[int | str, float] = {}  # the same for studies that are read but not yet in the networks
        self.busy: dict[int | str, InNetworks] = {}  # the studies in the networks, in the order of their start
        self._ends: list[float] = []  # when the networks ended the last studies, as many as may be in them
        self._first_s = 0.0  # when the first of these began
        self.started_s = 0.0  # when the worker was started
        self.alone: int | str | None = None  # a study that is tried again with no other study in the worker
        self.n_read = 0  # readings that ended
        self.retiring_s: float | None = None  # when a reading in it was given up; it gets no more studies
        if is_process:
            self.is_process = self._start_process(processes)
        if not self.is_process:
            self._start_thread()

    def _start_process(self, processes: WorkerProcesses) -> bool:
        """Take a process; False where that is not possible here."""
        started = processes.take()
        if started is not None:
            self.connection, self._process = started
        return started is not None

    def _start_thread(self) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        self._thread = threading.Thread(target=serve, args=(theirs, self.setup), name=_NAME, daemon=True)
        self._thread.start()

    def open_studies(self) -> list[int | str]:
        """The studies that may be the reason if it dies now: in the networks, waiting for them, or being read."""
        return [*self.busy, *self.waiting, *self.reading]

    @property
    def most_busy(self) -> int:
        """How many studies may be in its networks at the same time: one, or several on a GPU."""
        return self.setup.chain.studies_at_once(self.device)

    def ended(self, was: InNetworks, now_s: float) -> float:
        """Note the end of a study that is no longer ``busy``; returns the seconds that it added.

        They run from the end of the study before, or from the beginning of its own reading where the networks had
        nothing to do. Of several studies in the networks it is the mean over as many ends: those that began together
        end together, and single intervals would be long and short by turns.
        """
        if self._ends and was.began_s > self._ends[-1] and not self.busy:
            self._ends.clear()
        if not self._ends:
            self._first_s = was.began_s
        since_s = self._first_s if len(self._ends) < self.most_busy else self._ends[-self.most_busy]
        count = min(len(self._ends) + 1, self.most_busy)
        self._ends = [*self._ends, now_s][-self.most_busy :]
        return (now_s - since_s) / count

    def forget(self) -> list[int | str]:
        """Take away all open studies, and return them in the order in which they would have been predicted."""
        studies = self.open_studies()
        self.alone = None
        self.busy, self.waiting, self.reading = {}, {}, {}
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
        self._process.join(timeout=END_S)
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
            end(self._process)
        else:
            self.send(("stop",))
            self._thread.join(timeout=0.1)
        self.connection.close()
