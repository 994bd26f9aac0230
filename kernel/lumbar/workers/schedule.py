"""Which worker does which study when, and what becomes of studies whose worker dies or hangs.

A worker that dies is not asked what killed it: every study that was open in it is suspect, is tried again at the end
with nothing beside it, and is given up at its second death. So a lethal study costs two deaths and no other study.
A reading that takes far too long (``lumbar.workers.watchdog``) is set aside and tried once more at the end, in the
same way.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import wait
from typing import Any

from lumbar.budget import Budget, Effort
from lumbar.chains.contract import Outcome
from lumbar.errors import CohortError, LumbarError
from lumbar.io.progress import Progress
from lumbar.io.text import one_line
from lumbar.output.submission import Submission
from lumbar.workers.handle import Worker
from lumbar.workers.watchdog import ReadingTimes, networks_limit_s, retiring_limit_s
from lumbar.workers.worker import Setup

log = logging.getLogger("lumbar")

_POLL_S = 0.5  # how often the clock is looked at while the workers work
_RESTARTS = 3  # in a row of workers that ended with no study in them that may be the reason
_TRIES = 2  # of a study that was open when its worker died, or that hung


class Schedule:
    """The workers of a run, the studies that are left, and the clock that decides.

    Args:
        budget: the run's time.
        setup: what every worker gets; the device is each one's own.
        study_ids: in the order of the file.
        pictured: studies whose pictures the report shows.
        progress: say how far the run has come.
    """

    def __init__(
        self, budget: Budget, setup: Setup, study_ids: Sequence[int], pictured: frozenset[int], progress: bool
    ) -> None:
        self.budget, self.setup, self.study_ids = budget, setup, study_ids
        self.pictured = set(pictured)
        self.progress = Progress(len(study_ids), "study", is_shown=progress, write=log.info)
        self.pending = deque(study_ids)
        self.again: deque[int] = deque()  # tried again at the end, each alone
        self.deaths: Counter[int] = Counter()
        self.hangs: Counter[int] = Counter()
        self.troubles: dict[int, str] = {}  # study → why it is tried again
        self.outcomes: dict[int, Outcome] = {}
        self.workers: list[Worker] = []
        self.load_s = 0.0
        self.reading_times = ReadingTimes()
        self._devices: dict[int, str] = {}  # slot → device
        self._restarts_left = _RESTARTS
        self._refusals: list[Exception] = []
        budget.n_left = len(study_ids)

    @property
    def devices(self) -> list[str]:
        """The workers' devices, those replaced counted once."""
        return [self._devices[slot] for slot in sorted(self._devices)]

    # ---- workers --------------------------------------------------------------------------------------------------

    def start(self, devices: Sequence[str], is_process: bool) -> None:
        """Start a worker on each device and wait until one is ready.

        Raises:
            LumbarError: none can load the weights; the first refusal is the message.
        """
        self.budget.n_workers = len(devices)
        for slot, device in enumerate(devices):
            self._add(replace(self.setup, device=device), slot, is_process)
        while not any(worker.is_ready for worker in self.workers):
            if self.budget.remaining_s() <= 0:
                log.warning("time limit reached while the weights were loading")
                return
            if not self.workers:
                raise self._refusals[0]
            for worker, message in self._messages():
                self._handle(worker, message)

    def _add(self, setup: Setup, slot: int, is_process: bool, reads_first: bool = True) -> None:
        if self.budget.remaining_s() <= 0:
            return
        first = self.pending.popleft() if self.pending and reads_first else None
        worker = Worker(replace(setup, first_study=first), slot, is_process)
        worker.started_s = self.budget.elapsed_s()
        if first is not None:
            worker.reading[first] = worker.started_s
        self.workers.append(worker)

    def _messages(self) -> list[tuple[Worker, Any]]:
        """What the workers say within one poll; None for a worker that is gone."""
        by_connection = {worker.connection: worker for worker in self.workers}
        timeout = min(_POLL_S, max(0.0, self.budget.remaining_s()))
        ready = wait(list(by_connection), timeout=timeout)
        return [(by_connection[connection], by_connection[connection].receive()) for connection in ready]  # type: ignore[index]

    def _handle(self, worker: Worker, message: Any) -> None:
        """Act on one message of a worker before it is ready, or on one that any worker may send."""
        kind = None if message is None else message[0]
        if kind == "log":
            log.log(message[1], "%s", message[2])
        elif kind == "booted":
            self._equip(worker)
        elif kind == "unsendable":
            self._keep_inside(worker, message[1])
        elif kind == "opened":
            self._opened(worker, message[1], message[2])
        elif kind == "ready":
            worker.is_ready, worker.device = True, message[1]
            worker.idle_s = self.budget.elapsed_s()
            worker.reading = dict.fromkeys(worker.reading, worker.idle_s)  # it shared the time with the weights
            self._devices[worker.slot] = message[1]
            self.load_s = max(self.load_s, message[2])
        else:
            self._died(worker, message[1] if kind == "refused" else None)

    def _equip(self, worker: Worker) -> None:
        try:
            worker.send(worker.setup)
        except Exception as error:  # pickling raises whatever it likes
            self._keep_inside(worker, one_line(error))

    def _keep_inside(self, worker: Worker, reason: str) -> None:
        """A chain that no process can be given runs in a thread."""
        log.warning("the chain cannot be sent to a process (%s): a crash would end this run", reason)
        self._remove(worker)
        self._add(worker.setup, worker.slot, is_process=False)

    def _remove(self, worker: Worker) -> None:
        """End a worker; what is open in it and not set aside waits for the others."""
        self.pending.extendleft(reversed(worker.forget()))
        worker.stop()
        self.workers.remove(worker)

    def _replace(self, worker: Worker, reads_first: bool = True) -> None:
        self._remove(worker)
        if self.pending or self.again:
            self._add(worker.setup, worker.slot, worker.is_process, reads_first)

    def stop(self) -> None:
        """End all workers."""
        for worker in self.workers:
            worker.stop()

    # ---- studies --------------------------------------------------------------------------------------------------

    def run(self, submission: Submission) -> list[Outcome]:
        """Predict until all are done or the time is over; every study has an outcome, in the order of the file."""
        with self.progress:
            while self.workers and len(self.outcomes) < len(self.study_ids):
                if self.budget.remaining_s() <= 0 or not self._feed():
                    break
                for worker, message in self._messages():
                    if message is not None and message[0] == "done":
                        self._done(worker, message[1], submission)
                    else:
                        self._handle(worker, message)
                self._watch()
                self.progress.update(len(self.outcomes), self.budget.projected_s(self.budget.effort))
        is_late = self.workers or self.budget.remaining_s() <= 0
        reason = "time limit reached" if is_late else "no worker left"
        for study_id in self.study_ids:
            if study_id in self.outcomes:
                continue
            trouble = self.troubles.get(study_id)
            end = f"before it was tried again ({trouble})" if trouble else "before it was predicted"
            self._fail(Outcome(study_id, failure=f"{reason} {end}"))
        return [self.outcomes[study_id] for study_id in self.study_ids]

    def _feed(self) -> bool:
        """Give every idle worker a study, and every worker one to read ahead; False when none may start any more."""
        is_over = self.budget.is_over()
        if not is_over:
            ready = [worker for worker in self.workers if worker.is_ready and worker.retiring_s is None]
            for wanted in (1, 2):  # first something to do for each, then something to read ahead
                for worker in ready:
                    if worker.alone is None and len(worker.open_studies()) < wanted:
                        self._give(worker)
            for worker in ready:
                if worker.busy is None and worker.waiting:
                    self._predict(worker)
        return not is_over or any(worker.busy is not None for worker in self.workers)

    def _give(self, worker: Worker) -> None:
        """Let a worker read one more study."""
        if self.pending:
            study_id = self.pending.popleft()
        elif self.again and not worker.open_studies():
            study_id = worker.alone = self.again.popleft()
        else:
            return
        worker.reading[study_id] = self.budget.elapsed_s()
        worker.send(("read", study_id))

    def _opened(self, worker: Worker, study_id: int, seconds: float) -> None:
        """A study that was read. One that was given up meanwhile is not there any more."""
        if study_id in worker.reading:
            worker.waiting[study_id] = worker.reading.pop(study_id)
            self.reading_times.done(seconds, is_first=worker.n_read == 0)
            worker.n_read += 1

    def _predict(self, worker: Worker) -> None:
        study_id = next(iter(worker.waiting))
        began_s = worker.waiting.pop(study_id)
        worker.effort = self._effort()
        worker.busy, worker.busy_s = study_id, self.budget.elapsed_s()
        worker.counted_s = max(worker.idle_s, began_s)
        worker.send(("predict", study_id, worker.effort, study_id in self.pictured))

    def _effort(self) -> Effort:
        before = self.budget.effort
        effort = self.budget.next_effort()
        if effort != before:
            log.warning("%s, to end in time: %d studies left", effort.title, self.budget.n_left)
        return effort

    def _done(self, worker: Worker, outcome: Outcome, submission: Submission) -> None:
        worker.busy, worker.alone = None, None
        worker.idle_s = self.budget.elapsed_s()
        self._restarts_left = _RESTARTS
        if outcome.is_device_lost:
            self._device_lost(worker, outcome)
            return
        self.budget.finished(worker.idle_s - worker.counted_s, worker.effort)
        if outcome.probs is None:
            self._fail(outcome)
        else:
            if worker.effort > Effort.FULL:
                outcome.problems.append(f"study {outcome.study_id}: {worker.effort.title}, for lack of time")
            self.outcomes[outcome.study_id] = outcome
            try:
                submission.replace(outcome.study_id, outcome.probs)
            except CohortError as error:  # a full disk may have room again: the next study, and the end, write all
                log.error("study %d: %s", outcome.study_id, error)
        if worker.retiring_s is not None:
            self._replace(worker)

    def _fail(self, outcome: Outcome) -> None:
        name = f"study {outcome.study_id}:"
        line = outcome.failure if outcome.failure.startswith(name) else f"{name} {outcome.failure}"
        log.warning("%s; its prior stays", line)
        outcome.problems.append(line)
        self.outcomes[outcome.study_id] = outcome

    # ---- what goes wrong ------------------------------------------------------------------------------------------

    def _try_again(self, tries: Counter[int], outcome: Outcome) -> None:
        """Put a study aside for the end, where it is tried alone; the second time its prior stays."""
        study_id = outcome.study_id
        tries[study_id] += 1
        if tries[study_id] < _TRIES:
            self.troubles[study_id] = outcome.failure
            self.again.append(study_id)
        else:
            self.budget.gave_up()
            self._fail(outcome)

    def _died(self, worker: Worker, refusal: Exception | None) -> None:
        """A worker is gone or refuses its weights: all that was open in it is suspect, except for a refusal."""
        ending = one_line(refusal) if refusal is not None else worker.ending()
        in_networks = worker.busy
        was_ready, retires = worker.is_ready, worker.retiring_s is not None
        suspects = worker.forget() if refusal is None else []
        named = ", ".join(map(str, suspects))
        log.error(
            "%s: %s%s", worker.device or worker.setup.device, ending, f" with studies {named} open" if named else ""
        )
        for study_id in suspects:
            doing = "predicting" if study_id == in_networks else "reading"
            if study_id == in_networks:
                self.pictured.discard(study_id)  # drawing may be what killed it: a picture is not worth a prediction
            self._try_again(self.deaths, Outcome(study_id, failure=f"worker lost while {doing} ({ending})"))
        if suspects or retires:
            # One that died while its weights loaded is replaced by one that reads nothing meanwhile: if that dies too,
            # it was the weights.
            self._replace(worker, reads_first=was_ready)
        elif refusal is not None and worker.slot not in self._devices:
            self._refusals.append(refusal)
            self._remove(worker)
        else:
            self._failed_to_start(worker, ending)

    def _failed_to_start(self, worker: Worker, reason: str) -> None:
        """No study is the reason that a worker ended: another is tried, a few times in a row."""
        self._refusals.append(LumbarError(f"no worker could load the weights: {reason}"))
        if self._restarts_left > 0:
            self._restarts_left -= 1
            self._replace(worker, reads_first=False)
        else:
            self._remove(worker)

    def _device_lost(self, worker: Worker, outcome: Outcome) -> None:
        """A device that answers no more: like a death, and only the study in its networks is suspect."""
        log.error("%s: lost, its worker is replaced", worker.device)
        self._try_again(self.deaths, outcome)
        self._replace(worker)

    def _watch(self) -> None:
        """Give up readings, and networks, that have taken far too long."""
        if self.budget.remaining_s() <= 0:
            return  # the run ends now: nothing is tried again
        now_s = self.budget.elapsed_s()
        study_s = self.budget.study_seconds(self.budget.effort)
        for worker in list(self.workers):
            if not worker.is_ready:
                if now_s - worker.started_s > networks_limit_s(self.load_s):
                    log.error("%s: weights not loaded after %.0f s", worker.setup.device, now_s - worker.started_s)
                    self._failed_to_start(worker, "they took too long")
                continue
            self._watch_readings(worker, now_s)
            if worker.busy is not None and now_s - worker.busy_s > networks_limit_s(study_s):
                study_id, worker.busy = worker.busy, None
                self._hung(study_id, f"no prediction after {now_s - worker.busy_s:.0f} s")
                self._replace(worker)
            elif worker.retiring_s is not None:
                is_late = now_s - worker.retiring_s > retiring_limit_s(study_s)
                if worker.busy is None or is_late:  # a decoder that holds the interpreter lets nothing else end
                    self._replace(worker)

    def _watch_readings(self, worker: Worker, now_s: float) -> None:
        limit_s = self.reading_times.limit_s()
        for study_id, began_s in list(worker.reading.items()):
            if now_s - began_s > limit_s:
                del worker.reading[study_id]
                self._hung(study_id, f"not read after {now_s - began_s:.0f} s")
                worker.retiring_s = now_s if worker.retiring_s is None else worker.retiring_s

    def _hung(self, study_id: int, what: str) -> None:
        log.error("study %d: %s, set aside", study_id, what)
        self._try_again(self.hangs, Outcome(study_id, failure=what))
