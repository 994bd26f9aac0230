"""Which worker does which study when, and what follows from a worker that dies or a study that hangs.

A worker that dies does not tell what killed it: every study that was open in it is suspect and is tried again
(``lumbar.workers.study_queue``). So a lethal study costs two deaths and no other study. A reading or a prediction that
takes far too long (``lumbar.workers.watchdog``) is set aside and tried again in the same way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import Any

from lumbar.chains.contract import Drawn, Outcome
from lumbar.errors import CohortError
from lumbar.io.progress import Progress
from lumbar.io.text import one_line
from lumbar.output.submission import Submission
from lumbar.workers.budget import Budget, Effort
from lumbar.workers.effort import Level
from lumbar.workers.handle import InNetworks, Worker
from lumbar.workers.pool import WorkerPool
from lumbar.workers.processes import WorkerProcesses
from lumbar.workers.study_queue import StudyQueue
from lumbar.workers.watchdog import ReadingTimes, networks_limit_s, retiring_limit_s
from lumbar.workers.worker import Setup

log = logging.getLogger("lumbar")


class Schedule:
    """Gives the studies of the queue to the workers of the pool, inside the time limit.

    Args:
        budget: the run's time.
        setup: what every worker gets; the device is each one's own.
        study_ids: in the order of the file.
        pictured: which pictures of which studies are drawn.
        progress: say how far the run has come.
        outcomes: takes what becomes of each study; those that it has already are not done again.
        processes: where worker processes come from; None starts each when it is needed.
    """

    def __init__(
        self,
        budget: Budget,
        setup: Setup,
        study_ids: Sequence[int | str],
        pictured: Mapping[int | str, Drawn],
        progress: bool,
        outcomes: MutableMapping[int | str, Outcome] | None = None,
        processes: WorkerProcesses | None = None,
    ) -> None:
        self.budget, self.setup = budget, setup
        self.pictured = dict(pictured)
        self._finished: Callable[[Outcome], None] = lambda outcome: None
        self.queue = StudyQueue(study_ids, budget, outcomes)
        self._n_before = len(self.queue.outcomes)
        write = log.info if log.isEnabledFor(logging.INFO) else None  # a program that set up no log is told on stderr
        self.progress = Progress(budget.n_left, "study", is_shown=progress, write=write)
        self.pool = WorkerPool(budget, self.queue, processes or WorkerProcesses(setup.n_threads))
        self.reading_times = ReadingTimes()

    @property
    def devices(self) -> list[str]:
        """The workers' devices, those replaced counted once."""
        return self.pool.devices

    @property
    def load_s(self) -> float:
        """Seconds that loading the weights took."""
        return self.pool.load_s

    def start(self, devices: Sequence[str], is_process: bool) -> None:
        """Start a worker on each device and wait until one is ready; none is started where nothing is to be done.

        Raises:
            LumbarError: none can load the weights; the first refusal is the message.
        """
        if self.queue.is_done:
            return
        self.budget.n_workers = len(devices)
        for slot, device in enumerate(devices):
            self.pool.add(replace(self.setup, device=device), slot, is_process)
        while not any(worker.is_ready for worker in self.pool.workers):
            if self.budget.remaining_s() <= 0:
                log.warning("time limit reached while the weights were loading")
                return
            if not self.pool.workers:
                raise self.pool.refusals[0]
            for worker, message in self.pool.messages():
                self._handle(worker, message)

    def run(self, submission: Submission, finished: Callable[[Outcome], None] = lambda outcome: None) -> None:
        """Predict until all are done or the time is over; then every study has an outcome.

        Args:
            submission: gets the answers.
            finished: called with each study that was predicted, once its answer stands.
        """
        self._finished = finished
        queue = self.queue
        if queue.is_done:
            return
        with self.progress:
            while self.pool.workers and not queue.is_done:
                if self.budget.remaining_s() <= 0 or not self._assign():
                    break
                for worker, message in self.pool.messages():
                    if message is not None and message[0] == "done":
                        self._on_done(worker, message[1], submission)
                    else:
                        self._handle(worker, message)
                self._watch()
                try:
                    submission.write_if_due()
                except CohortError as error:
                    log.error("%s", error)
                self.progress.update(len(queue.outcomes) - self._n_before, self.budget.projected_s(self.budget.effort))
        is_late = self.pool.workers or self.budget.remaining_s() <= 0
        queue.fail_rest("time limit reached" if is_late else "no worker left")

    def stop(self) -> None:
        """End all workers."""
        self.pool.stop()

    # ---- studies to workers ---------------------------------------------------------------------------------------

    def _assign(self) -> bool:
        """Give every idle worker a study, and every worker one to read ahead; False when none may start any more."""
        is_over = self.budget.is_over()
        if not is_over:
            ready = [worker for worker in self.pool.workers if worker.is_ready and worker.retiring_s is None]
            most = max((worker.most_busy for worker in ready), default=1)
            for n_open in range(1, most + 2):  # first something to do for each worker, then something to read ahead
                for worker in ready:
                    if worker.alone is None and len(worker.open_studies()) < min(n_open, worker.most_busy + 1):
                        self._start_reading(worker)
            for worker in ready:
                while (
                    len(worker.busy) < worker.most_busy
                    and worker.waiting
                    and not (worker.busy and self.budget.is_over(len(worker.busy) + 1))
                ):
                    self._start_predicting(worker)
        return not is_over or any(worker.busy for worker in self.pool.workers)

    def _start_reading(self, worker: Worker) -> None:
        study_id = self.queue.take()
        if study_id is None and not worker.open_studies():
            study_id = worker.alone = self.queue.take_retry()
        if study_id is not None:
            worker.reading[study_id] = self.budget.elapsed_s()
            worker.send(("read", study_id))

    def _start_predicting(self, worker: Worker) -> None:
        study_id = next(iter(worker.waiting))
        began_s = worker.waiting.pop(study_id)
        effort = self._next_effort()
        worker.busy[study_id] = InNetworks(self.budget.elapsed_s(), began_s, effort)
        # Pictures are left out first where time is short
        drawn = self.pictured.get(study_id, Drawn.NOTHING) if effort == Effort.FULL else Drawn.NOTHING
        worker.send(("predict", study_id, effort, drawn))

    def _next_effort(self) -> Level:
        before = self.budget.effort
        effort = self.budget.next_effort()
        if effort != before:
            log.warning("%s, to end in time: %d studies left", effort.title, self.budget.n_left)
        return effort

    # ---- messages from workers ------------------------------------------------------------------------------------

    def _handle(self, worker: Worker, message: Any) -> None:
        """Act on one message of a worker (``lumbar.workers.worker`` lists them) other than "done"."""
        kind = None if message is None else message[0]
        if kind == "log":
            log.log(message[1], "%s", message[2])
        elif kind == "booted":
            self._send_setup(worker)
        elif kind == "unsendable":
            self.pool.run_in_thread(worker, message[1])
        elif kind == "opened":
            self._on_read(worker, message[1], message[2])
        elif kind == "ready":
            self.pool.set_ready(worker, message[1], message[2])
        else:
            self._on_death(worker, message[1] if kind == "refused" else None)

    def _send_setup(self, worker: Worker) -> None:
        try:
            worker.send(worker.setup)
        except Exception as error:  # pickling raises errors of any type
            self.pool.run_in_thread(worker, one_line(error))

    def _on_read(self, worker: Worker, study_id: int | str, seconds: float) -> None:
        """Note a study that was read, unless its reading was given up in the meantime."""
        if study_id in worker.reading:
            worker.waiting[study_id] = worker.reading.pop(study_id)
            self.reading_times.done(seconds, is_first=worker.n_read == 0)
            worker.n_read += 1

    def _on_done(self, worker: Worker, outcome: Outcome, submission: Submission) -> None:
        was, worker.alone = worker.busy.pop(outcome.study_id), None
        added_s = worker.ended(was, self.budget.elapsed_s())
        self.pool.predicted()
        if outcome.is_device_lost:
            self._on_device_lost(worker, outcome)
            return
        self.budget.finished(added_s, was.effort)
        if outcome.probs is None:
            self.queue.fail(outcome)
        else:
            outcome.left_out = list(was.effort.left_out)
            if was.effort != Effort.FULL:
                left_out = ", no pictures" if outcome.study_id in self.pictured else ""
                outcome.problems.append(f"study {outcome.study_id}: {was.effort.title}{left_out}, for lack of time")
            self.queue.outcomes[outcome.study_id] = outcome
            try:
                submission.replace(outcome.study_id, outcome.probs, is_normalised=True)
            except CohortError as error:  # a full disk may have room again: the next study, and the end, write all
                log.error("study %s: %s", outcome.study_id, error)
            self._finished(outcome)
        if worker.retiring_s is not None and not worker.busy:
            self.pool.replace(worker)

    def _on_device_lost(self, worker: Worker, outcome: Outcome) -> None:
        """As if the worker had died, but only the studies in its networks are suspect, each of them."""
        log.error("%s: lost, its worker is replaced", worker.device)
        self.queue.worker_died(outcome)
        for study_id in worker.busy:
            self.queue.worker_died(Outcome(study_id, failure=f"{worker.device} lost while predicting"))
        worker.busy = {}
        self.pool.replace(worker)

    def _on_death(self, worker: Worker, refusal: Exception | None) -> None:
        """A worker is gone, or refuses its weights: all that was open in it is suspect, except for a refusal."""
        ending = one_line(refusal) if refusal is not None else worker.ending()
        in_networks = set(worker.busy)
        was_ready, is_retiring = worker.is_ready, worker.retiring_s is not None
        suspects = worker.forget() if refusal is None else []
        named = ", ".join(map(str, suspects))
        log.error(
            "%s: %s%s", worker.device or worker.setup.device, ending, f" with studies {named} open" if named else ""
        )
        for study_id in suspects:
            doing = "predicting" if study_id in in_networks else "reading"
            if study_id in in_networks:
                self.pictured.pop(study_id, None)  # drawing may be what killed it: a picture is not worth a prediction
            self.queue.worker_died(Outcome(study_id, failure=f"worker lost while {doing} ({ending})"))
        if suspects or is_retiring:
            # After a death while the weights loaded, the next worker reads nothing meanwhile: if it dies as well, the
            # weights were the reason.
            self.pool.replace(worker, reads_first=was_ready)
        elif refusal is not None and not self.pool.was_ready(worker.slot):
            self.pool.refusals.append(refusal)
            self.pool.remove(worker)
        else:
            self.pool.failed_to_start(worker, ending)

    # ---- what takes too long --------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Give up readings, predictions and loading of weights that have taken far too long."""
        if self.budget.remaining_s() <= 0:
            return  # the run ends now: nothing is tried again
        now_s = self.budget.elapsed_s()
        study_s = self.budget.study_seconds(self.budget.effort)
        for worker in list(self.pool.workers):
            if not worker.is_ready:
                self._watch_loading(worker, now_s)
                continue
            self._watch_readings(worker, now_s)
            limit_s = networks_limit_s(study_s)
            if any(now_s - entry.since_s > limit_s for entry in worker.busy.values()):
                self._give_up_predictions(worker, now_s)
            elif worker.retiring_s is not None:
                is_late = now_s - worker.retiring_s > retiring_limit_s(study_s)
                if not worker.busy or is_late:  # a decoder that holds the interpreter lets nothing else end
                    self.pool.replace(worker)

    def _give_up_predictions(self, worker: Worker, now_s: float) -> None:
        """Set all studies in a worker's networks aside: one waits for another, so each may be the one that hangs."""
        for study_id, entry in worker.busy.items():
            self.queue.hung(study_id, f"no prediction after {now_s - entry.since_s:.0f} s")
        worker.busy = {}
        self.pool.replace(worker)

    def _watch_loading(self, worker: Worker, now_s: float) -> None:
        if now_s - worker.started_s > networks_limit_s(self.load_s):
            log.error("%s: weights not loaded after %.0f s", worker.setup.device, now_s - worker.started_s)
            self.pool.failed_to_start(worker, "they took too long")

    def _watch_readings(self, worker: Worker, now_s: float) -> None:
        limit_s = self.reading_times.limit_s()
        for study_id, began_s in list(worker.reading.items()):
            if now_s - began_s > limit_s:
                del worker.reading[study_id]
                self.queue.hung(study_id, f"not read after {now_s - began_s:.0f} s")
                worker.retiring_s = now_s if worker.retiring_s is None else worker.retiring_s
