"""A whole run: manifest first, prior rows, then study after study, inside the time limit, whatever the studies hold."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from lumbar.budget import Budget, Clock, Effort, parse_time_limit
from lumbar.chain import MAIN, Chain, Outcome, baseline_chain, load_baseline
from lumbar.errors import CohortError, LumbarError, ManifestError
from lumbar.labels import COLUMNS, row_ids
from lumbar.manifest import FILE_NAME, Manifest, verify
from lumbar.numba_cache import use_numba_cache
from lumbar.record import build_record, write_extras
from lumbar.submission import Submission, check_writable, expected_studies, validate
from lumbar.tables import PROBLEMS, list_studies, read_series
from lumbar.text import guard_log, one_line
from lumbar.worker import Setup, Worker, cpu_threads

log = guard_log()

N_PICTURED = 10  # studies with pictures in the report: 720 studies stay under a few MB
_POLL_S = 0.5  # how often the clock is looked at while the workers work
_RESTARTS = 3  # of workers that ended by themselves, in all


def predict(
    root: str | Path,
    weights: str | Path,
    out: str | Path | None = None,
    split: str = "test",
    chain: str | Chain = "main",
    time_limit: str | float = "8.5h",
    report: str | Path | None = None,
    record: str | Path | None = None,
    studies: int | Sequence[int] | None = None,
    workers: int | None = None,
    *,
    manifest_hash: str | None = None,
    clock: Clock = time.monotonic,
    progress: bool = False,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Predict every study of a split.

    Args:
        root: a competition folder with ``{split}_images`` and ``{split}_series_descriptions.csv``.
        weights: a bundle: ``weights_manifest.json`` and the files that it names.
        out: submission.csv, whole and valid from the first write on; None writes none.
        split: ``test`` or ``train``.
        chain: ``main``, ``baseline``, or a ``Chain``.
        time_limit: ``8.5h``, ``30m``, ``90s`` or seconds, from this call on.
        report: report.html; record: the run record as JSON.
        studies: the first N only, or these ids; None for all.
        workers: processes; None for one a GPU, or this process where there is none.
        manifest_hash: the manifest that the caller was made for; None takes any.
        clock: monotonic seconds.
        progress: show a bar.

    Returns:
        The submission's frame (25 rows a study) and the run record (DESIGN.md).

    Raises:
        ManifestError: the bundle is broken, stale, or fails a probe; nothing was written.
        CohortError: the folder is no competition folder, or an output cannot be written.
    """
    limit_s = parse_time_limit(time_limit)
    budget = Budget(limit_s, 0, clock=clock)
    use_numba_cache()
    manifest = verify(weights, manifest_hash)
    functions = chain_of(chain, manifest)
    root = Path(root)
    for path in (out, report, record):
        if path is not None:
            check_writable(path)
    study_ids, descriptions = _studies(root, split, studies)
    doubts: dict[int | None, list[str]] = dict(descriptions.attrs.get(PROBLEMS, {}))
    for line in [*doubts.get(None, []), *(line for study_id in study_ids for line in doubts.get(study_id, []))]:
        log.warning("%s_series_descriptions.csv: %s", split, line)

    run = _Run(budget, manifest, functions, root, split, study_ids, descriptions, progress)
    run.pictured = frozenset(study_ids[:N_PICTURED] if report is not None else ())
    run.start(workers)
    log.info(
        "manifest %s verified, %d studies to predict on %s, at most %.0f s",
        manifest.hash[:12], len(study_ids), ", ".join(run.devices) or "no device", limit_s,
    )  # fmt: skip
    submission = Submission(study_ids, manifest.prior, out)
    try:
        outcomes = run.studies(submission)
    finally:
        run.stop()
    if out is not None:
        submission.write()
        validate(out, [row_id for study_id in study_ids for row_id in row_ids(study_id)])
    for outcome in outcomes:
        outcome.problems[:0] = [line for line in doubts.get(outcome.study_id, []) if line not in outcome.problems]
    data = build_record(manifest, run.devices, run.load_s, outcomes, doubts.get(None, []))
    write_extras(data, outcomes, submission, manifest, limit_s, record, report)
    return submission.frame(), data


def chain_of(chain: str | Chain, manifest: Manifest) -> Chain:
    """The functions of a chain by name.

    Raises:
        ManifestError: the bundle holds no weights for it, or there is no such chain.
    """
    if isinstance(chain, Chain):
        return chain
    if chain == "main":
        return MAIN
    if chain == "baseline" and manifest.of_stage("baseline"):
        return baseline_chain(manifest)
    stages = sorted({entry.stage for entry in manifest.weights})
    raise ManifestError(f"{manifest.folder / FILE_NAME}: chain {chain!r} has no weights here, found stages {stages}")


def _studies(root: Path, split: str, wanted: int | Sequence[int] | None) -> tuple[list[int], pd.DataFrame]:
    """Ids to predict, in the order of the file, and the table of series."""
    table = read_series(root, split)
    tabled = table.studies()
    study_ids = expected_studies(root, split, list_studies(root, split, tabled), tabled)
    if isinstance(wanted, int):
        study_ids = study_ids[:wanted]
    elif wanted is not None:
        chosen = {int(study_id) for study_id in wanted}
        study_ids = [study_id for study_id in study_ids if study_id in chosen]
    if not study_ids:
        raise CohortError(f"{root}: found none of the studies {wanted}, expected at least one")
    return study_ids, table.frame


def cuda_devices() -> list[str]:
    """Names of the CUDA devices of this machine as torch counts them."""
    import torch

    return [f"cuda:{index}" for index in range(torch.cuda.device_count())]


class _Run:
    """The workers of a run, the studies that wait, and the clock that decides."""

    def __init__(
        self,
        budget: Budget,
        manifest: Manifest,
        chain: Chain,
        root: Path,
        split: str,
        study_ids: list[int],
        descriptions: pd.DataFrame,
        progress: bool,
    ) -> None:
        self.budget, self.manifest, self.chain = budget, manifest, chain
        self.root, self.split, self.descriptions = root, split, descriptions
        self.study_ids = study_ids
        self.progress = progress
        self.pictured: frozenset[int] = frozenset()
        self.pending = deque(study_ids)
        self.outcomes: dict[int, Outcome] = {}
        self.workers: list[Worker] = []
        self.devices: list[str] = []
        self.load_s = 0.0
        self.restarts_left = _RESTARTS
        self.n_threads: int | None = None
        budget.n_left = len(study_ids)

    # ---- workers --------------------------------------------------------------------------------------------------

    def start(self, n_workers: int | None) -> None:
        """Start the workers and wait until one is ready.

        Raises:
            LumbarError: none can load the weights; the first refusal is the message.
        """
        devices = cuda_devices() if self.chain.load in (MAIN.load, load_baseline) else []
        count = max(1, n_workers if n_workers is not None else len(devices))
        is_process = bool(devices) or count > 1
        self.n_threads = cpu_threads(count)
        self.budget.n_workers = count
        for index in range(count):
            self._add(devices[index % len(devices)] if devices else "cpu", is_process)
        refusals: list[Exception] = []
        while self.workers and not any(worker.is_ready for worker in self.workers):
            if self.budget.remaining_s() <= 0:
                log.warning("time limit reached while the weights were loading")
                return
            for worker, message in self._messages():
                if message is not None and message[0] == "refused":
                    refusals.append(message[1])
                self._handle_start(worker, message)
        if not self.workers:
            raise refusals[0] if refusals else LumbarError("no worker could load the weights, expected at least one")

    def _add(self, device: str, is_process: bool) -> None:
        first = self.pending.popleft() if self.pending and self.budget.remaining_s() > 0 else None
        setup = Setup(
            root=self.root,
            split=self.split,
            descriptions=self.descriptions,
            manifest=self.manifest,
            prior=np.array([self.manifest.prior[column] for column in COLUMNS]),
            chain=self.chain,
            device=device,
            n_threads=self.n_threads,
            first_study=first,
        )
        self.workers.append(Worker(setup, is_process))

    def _messages(self) -> list[tuple[Worker, Any]]:
        """What the workers say within one poll; None for a worker that is gone."""
        by_connection = {worker.connection: worker for worker in self.workers}
        found: list[tuple[Worker, Any]] = []
        for connection in wait(list(by_connection), timeout=_POLL_S):
            worker = by_connection[connection]  # type: ignore[index]
            try:
                found.append((worker, worker.connection.recv()))
            except (EOFError, ConnectionResetError, OSError):
                found.append((worker, None))
        return found

    def _handle_start(self, worker: Worker, message: Any) -> None:
        """A worker that is ready, refuses the bundle, or is gone."""
        if message is not None and message[0] == "ready":
            worker.is_ready, worker.device = True, message[1]
            self.devices.append(message[1])
            self.load_s = max(self.load_s, message[2])
            return
        self._remove(worker, message[1] if message is not None else None)

    def _remove(self, worker: Worker, error: Exception | None = None) -> None:
        """Take a worker out; what waited for it waits for the others."""
        if error is not None:
            log.error("%s: %s", worker.setup.device, one_line(error))
        self.pending.extendleft(reversed(worker.assigned))
        worker.assigned = []
        worker.stop(patience_s=1.0)
        self.workers.remove(worker)

    def stop(self) -> None:
        """End all workers."""
        for worker in self.workers:
            worker.stop()

    # ---- studies --------------------------------------------------------------------------------------------------

    def studies(self, submission: Submission) -> list[Outcome]:
        """Predict until all are done or the time is over; every study has an outcome, in the order of the file."""
        with tqdm(total=len(self.study_ids), unit="study", disable=not self.progress) as bar:
            while self.workers and len(self.outcomes) < len(self.study_ids):
                if self.budget.remaining_s() <= 0 or not self._feed():
                    break
                for worker, message in self._messages():
                    if message is None:
                        self._lost(worker)
                    elif message[0] == "done":
                        self._done(worker, message[1], submission)
                    else:
                        self._handle_start(worker, message)
                bar.update(len(self.outcomes) - bar.n)
        for study_id in self.study_ids:
            if study_id not in self.outcomes:
                reason = "time limit reached" if self.workers else "no worker left"
                self._fail(Outcome(study_id, failure=f"{reason} before it was predicted"))
        return [self.outcomes[study_id] for study_id in self.study_ids]

    def _feed(self) -> bool:
        """Give every idle worker a study, and every worker one to read ahead; False when none may start any more."""
        is_over = self.budget.is_over()
        ready = [worker for worker in self.workers if worker.is_ready]
        for wanted in (1, 2):  # first something to do for each, then something to read ahead
            for worker in ready:
                if len(worker.assigned) < wanted and self.pending and not is_over:
                    worker.assigned.append(self.pending.popleft())
                    worker.send("read", worker.assigned[-1])
        for worker in ready:
            if worker.assigned and not worker.is_busy and not is_over:
                worker.effort = self._effort()
                worker.is_busy, worker.started_s = True, self.budget.elapsed_s()
                study_id = worker.assigned[0]
                worker.send("predict", study_id, worker.effort, study_id in self.pictured)
        return not is_over or any(worker.is_busy for worker in self.workers)

    def _effort(self) -> Effort:
        before = self.budget.effort
        effort = self.budget.next_effort()
        if effort != before:
            log.warning("%s, to end in time: %d studies left", effort.title, self.budget.n_left)
        return effort

    def _done(self, worker: Worker, outcome: Outcome, submission: Submission) -> None:
        worker.is_busy = False
        worker.assigned.remove(outcome.study_id)
        self.budget.finished(self.budget.elapsed_s() - worker.started_s, worker.effort)
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
        if outcome.is_device_lost:
            log.error("%s: lost, its worker is replaced", worker.device)
            self._replace(worker)

    def _fail(self, outcome: Outcome) -> None:
        name = f"study {outcome.study_id}:"
        line = outcome.failure if outcome.failure.startswith(name) else f"{name} {outcome.failure}"
        log.warning("%s; its prior stays", line)
        outcome.problems.append(line)
        self.outcomes[outcome.study_id] = outcome

    def _lost(self, worker: Worker) -> None:
        """A worker is gone: the study in it keeps its prior, the others go on elsewhere."""
        ending = worker.ending()
        log.error("%s: %s", worker.device or worker.setup.device, ending)
        if worker.is_busy:
            study_id = worker.assigned.pop(0)
            self.budget.finished(self.budget.elapsed_s() - worker.started_s, worker.effort)
            self._fail(Outcome(study_id, failure=f"worker lost while predicting ({ending})"))
        worker.is_busy = False
        self._replace(worker)

    def _replace(self, worker: Worker) -> None:
        self._remove(worker)
        if self.restarts_left > 0 and self.pending:
            self.restarts_left -= 1
            self._add(worker.setup.device, worker.is_process)
