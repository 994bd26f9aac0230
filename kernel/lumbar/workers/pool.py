"""The workers of a run: started on their devices, replaced where they end, and stopped."""

from __future__ import annotations

import logging
from dataclasses import replace
from multiprocessing.connection import wait
from typing import Any

from lumbar.errors import LumbarError
from lumbar.workers.budget import Budget
from lumbar.workers.handle import Worker
from lumbar.workers.processes import WorkerProcesses
from lumbar.workers.study_queue import StudyQueue
from lumbar.workers.worker import Setup

log = logging.getLogger("lumbar")

_POLL_S = 0.5  # how often the clock is looked at while the workers work
_MAX_RESTARTS = 3  # in a row, of workers that ended although no study in them can be the reason


class WorkerPool:
    """The workers, each in its slot: a worker that takes another's place takes its slot and device.

    Args:
        budget: the run's time; nothing is started when it is over.
        queue: the studies; a new worker starts to read one while it loads the weights.
        processes: where worker processes come from.
    """

    def __init__(self, budget: Budget, queue: StudyQueue, processes: WorkerProcesses) -> None:
        self.workers: list[Worker] = []
        self.load_s = 0.0  # seconds that loading the weights took, in the slowest worker
        self.refusals: list[Exception] = []  # why workers could not load the weights
        self._budget, self._queue, self._processes = budget, queue, processes
        self._devices: dict[int, str] = {}  # slot → device of the workers that were ready once
        self._restarts_left = _MAX_RESTARTS

    @property
    def devices(self) -> list[str]:
        """The workers' devices, those replaced counted once."""
        return [self._devices[slot] for slot in sorted(self._devices)]

    def add(self, setup: Setup, slot: int, is_process: bool, reads_first: bool = True) -> None:
        """Start a worker; with ``reads_first`` it reads a study while it loads the weights."""
        if self._budget.remaining_s() <= 0:
            return
        first = self._queue.take() if reads_first else None
        worker = Worker(replace(setup, first_study=first), slot, is_process, self._processes)
        worker.started_s = self._budget.elapsed_s()
        if first is not None:
            worker.reading[first] = worker.started_s
        self.workers.append(worker)
        self._budget.n_workers = len(self.workers)

    def messages(self) -> list[tuple[Worker, Any]]:
        """What the workers say within one poll; None for a worker that is gone."""
        by_connection = {worker.connection: worker for worker in self.workers}
        timeout = min(_POLL_S, max(0.0, self._budget.remaining_s()))
        ready = wait(list(by_connection), timeout=timeout)
        return [(by_connection[connection], by_connection[connection].receive()) for connection in ready]  # type: ignore[index]

    def set_ready(self, worker: Worker, device: str, load_s: float) -> None:
        """Note that a worker has loaded the weights, on ``device``, in ``load_s`` seconds."""
        worker.is_ready, worker.device = True, device
        # The reading of its first study shared the time with the weights
        worker.reading = dict.fromkeys(worker.reading, self._budget.elapsed_s())
        self._devices[worker.slot] = device
        self.load_s = max(self.load_s, load_s)

    def was_ready(self, slot: int) -> bool:
        """Whether any worker of this slot has ever loaded the weights."""
        return slot in self._devices

    def predicted(self) -> None:
        """Note that a worker has done a study: workers that do not start may be tried again from now on."""
        self._restarts_left = _MAX_RESTARTS

    def run_in_thread(self, worker: Worker, reason: str) -> None:
        """Replace a process by a thread, where its chain cannot be sent to a process."""
        log.warning("the chain cannot be sent to a process (%s): a crash would end this run", reason)
        self.remove(worker)
        self.add(worker.setup, worker.slot, is_process=False)

    def remove(self, worker: Worker) -> None:
        """End a worker; the studies that are open in it wait for the others."""
        self._queue.put_back(worker.forget())
        worker.stop()
        self.workers.remove(worker)
        self._budget.n_workers = max(1, len(self.workers))

    def replace(self, worker: Worker, reads_first: bool = True) -> None:
        """End a worker, and start another in its slot if there is anything left to do."""
        self.remove(worker)
        if not self._queue.is_empty:
            self.add(worker.setup, worker.slot, worker.is_process, reads_first)

    def failed_to_start(self, worker: Worker, reason: str) -> None:
        """No study can be the reason that a worker ended: start another, a few times in a row."""
        self.refusals.append(LumbarError(f"no worker could load the weights: {reason}"))
        if self._restarts_left > 0:
            self._restarts_left -= 1
            self.replace(worker, reads_first=False)
        else:
            self.remove(worker)

    def stop(self) -> None:
        """End all workers."""
        for worker in self.workers:
            worker.stop()
        self._processes.stop()
