"""A whole run: verify the bundle, write prior rows, then predict study after study, inside the time limit."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from lumbar.bundle.code_hash import code_mismatch
from lumbar.bundle.manifest import Manifest, read_manifest
from lumbar.bundle.shared_memory import can_share, share
from lumbar.bundle.turns import shared_words
from lumbar.chains.contract import Chain
from lumbar.chains.registry import chain_of, modules_of, spared_members
from lumbar.competitions.registry import DEFAULT
from lumbar.errors import CohortError, LumbarError
from lumbar.io.files import without_empty_folders
from lumbar.io.numba_cache import use_numba_cache
from lumbar.io.progress import duration
from lumbar.io.text import counted, printable_log
from lumbar.output.destinations import check_destinations, output_folders
from lumbar.output.extras import PAGES, Extras, Outputs, with_pages
from lumbar.output.journal import Journal
from lumbar.output.left_out import left_out_words
from lumbar.output.outcome_json import outcome_from
from lumbar.output.record import record_head, with_studies, write_extras
from lumbar.output.report_layout import MOST_ON_ONE_PAGE
from lumbar.output.submission import Submission
from lumbar.output.truth import read_truth
from lumbar.output.versions import versions
from lumbar.workers.budget import Budget, Clock, parse_time_limit
from lumbar.workers.devices import cpu_threads, cuda_devices
from lumbar.workers.machine import Layout, cpu_layout
from lumbar.workers.processes import WorkerProcesses
from lumbar.workers.run_inputs import Request, RunInputs, check_inputs, part_outputs
from lumbar.workers.schedule import Schedule
from lumbar.workers.shards import Shard

log = printable_log()

_MOST_EARLY = 8  # workers that are started before it is known whether there is anything to do


@dataclass(frozen=True)
class _Options:
    """How a run works, as ``predict`` describes it."""

    budget: Budget
    processes: bool
    resume: bool
    workers: int | None
    in_memory: bool


def predict(
    root: str | Path,
    weights: str | Path,
    out: str | Path | None = None,
    split: str = "test",
    chain: str | Chain = "main",
    time_limit: str | float = "8.5h",
    report: str | Path | None = None,
    record: str | Path | None = None,
    studies: int | Sequence[int | str] | None = None,
    workers: int | None = None,
    *,
    pictures: str | Path | None = None,
    table: str | Path | None = None,
    markups: str | Path | None = None,
    report_layout: str = "auto",
    shard: str | Shard | None = None,
    resume: bool = False,
    manifest_hash: str | None = None,
    clock: Clock = time.monotonic,
    started: float | None = None,
    processes: bool = True,
    progress: bool = False,
    in_memory: bool = True,
    trust_members: bool = False,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Predict every study of a split; returns the submission's frame and the run record (docs/architecture.md).

    Args:
        root: a competition folder, or any folder of DICOM, whose headers tell studies apart (``lumbar.intake``).
        weights: a bundle: ``weights_manifest.json`` and the files that it names.
        out: submission.csv, whole and valid from the first write on, its journal beside it; None writes none.
        split: ``test`` or ``train``.
        chain: ``main``, ``baseline``, or a ``Chain``; one that cannot be sent to a process runs in threads.
        time_limit: ``8.5h``, ``30m``, ``90s``, seconds, or ``none``, from ``started`` on.
        report: the report as HTML; of more than ten studies an index, with their pages in a folder beside it.
        record: the run record as JSON.
        studies: the first N only, or these ids; None for all.
        workers: at most one a study; None for one a GPU, without any one a core (docs/many-machines.md).
        pictures: a folder for PNG files of every study, with the points drawn in.
        table: a CSV file with one row a study, condition, level and side (docs/findings-table.md).
        markups: a folder for the points of every study as 3D Slicer markups.
        report_layout: ``auto``, ``single`` (one page, pictures of the first ten studies) or ``pages`` (an index).
        shard: ``I/N`` for part I of N, from 0, or ``auto`` (docs/many-machines.md); it names the files of the part.
        resume: go on from the journal beside ``out``; False begins anew.
        manifest_hash: the manifest that the caller was made for; None takes any.
        clock: monotonic seconds.
        started: the clock's value from which the time limit counts; None for this call.
        processes: a study that crashes one costs itself alone; False: threads, where a crash ends the caller too.
        progress: say how far it has come: a bar on a terminal, else a line a minute in the log.
        in_memory: False leaves the answers in the files: the frame is empty, the record has ``totals``, no studies.
        trust_members: run the code of external members that the bundle brings (docs/security.md).

    Raises:
        LumbarError: a bundle, folder or output that cannot be used, before any work; or no worker loads the weights.
    """
    what = Path(root), weights, split, chain, studies
    asked = Request(*what, shard, manifest_hash, report_layout, progress, trust_members)
    paths = dict(out=out, report=report, record=record, pictures=pictures, table=table, markups=markups)
    return _predict(asked, _Options(_budget(time_limit, clock, started), processes, resume, workers, in_memory), paths)


def _budget(time_limit: str | float, clock: Clock, started: float | None) -> Budget:
    return Budget(parse_time_limit(time_limit), 0, clock=clock, start_s=started)


def _predict(request: Request, options: _Options, outputs: Outputs) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Predict; a call that fails or is interrupted leaves no empty folder behind."""
    outputs = part_outputs(outputs, request.part)
    with without_empty_folders(output_folders(with_pages(outputs, "pages", 0))):
        return _predict_staffed(request, options, outputs)


def _predict_staffed(request: Request, options: _Options, outputs: Outputs) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Check what is read while the first workers import their libraries, then go on."""
    staff = _start_early(request, options)
    try:
        inputs = check_inputs(request, outputs)
        if staff is not None and staff.manifest_hash != inputs.manifest.hash:
            staff.processes.stop()
            staff = None
        staff = staff or _staff(request, options, inputs.manifest, inputs.chain)
        return _predict_rest(request, options, inputs, outputs, staff)
    finally:
        if staff is not None:
            staff.processes.stop()


@dataclass(frozen=True)
class _Staff:
    """The workers that a run will have, and where their processes come from."""

    manifest_hash: str
    layout: Layout
    processes: WorkerProcesses


def _start_early(request: Request, options: _Options) -> _Staff | None:
    """Start the first workers of a chain with a name; None where the bundle does not say yet what they import."""
    if not options.processes or not isinstance(request.chain, str):
        return None
    try:
        manifest = read_manifest(request.weights)
        chain = chain_of(request.chain, manifest)
    except LumbarError:  # told when the inputs are checked
        return None
    use_numba_cache()
    staff = _staff(request, options, manifest, chain)
    wanted = request.studies
    n_studies = _MOST_EARLY if wanted is None else wanted if isinstance(wanted, int) else len(wanted)
    staff.processes.prepare(len(staff.layout.of(min(n_studies, _MOST_EARLY))))
    return staff


def _staff(request: Request, options: _Options, manifest: Manifest, chain: Chain) -> _Staff:
    layout = _layout(chain, manifest, options, request.part)
    modules = modules_of(request.chain, manifest) if isinstance(request.chain, str) else ()
    shared = share(manifest) if layout.shares_weights and chain.uses_gpu and options.processes else None
    return _Staff(manifest.hash, layout, WorkerProcesses(layout.n_threads, modules, shared))


def _predict_rest(
    request: Request, options: _Options, inputs: RunInputs, outputs: Outputs, staff: _Staff
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Open the journal, and do what it does not have yet."""
    if options.resume and outputs["out"] is None:
        raise CohortError("resume: found no out, expected the submission whose journal to go on with")
    extras = _extras(inputs, outputs, request.layout)
    # Of the first studies the journal keeps the pictures in any case, for one report of all parts
    pictured = None if extras.outputs[PAGES] is None else frozenset(inputs.study_ids[:MOST_ON_ONE_PAGE])
    journal = Journal(outputs["journal"], inputs.rows, pictured)
    has_failed = True
    try:
        journal.begin(inputs.header, options.resume, inputs.fingerprints)
        options.budget.spare(*spared_members(request.chain, inputs.manifest))
        schedule = Schedule(
            options.budget,
            inputs.setup(staff.layout.n_threads),
            inputs.study_ids,
            extras.drawn,
            request.progress,
            journal,
            staff.processes,
        )
        devices = staff.layout.of(schedule.budget.n_left)
        if schedule.budget.n_left:
            log.info("%s", staff.layout.words(devices))
            if staff.layout.shares_weights and "classifiers" in inputs.manifest.data:
                log.info("%s", shared_words(inputs.manifest))
        result = _run(inputs, schedule, journal, devices, options, extras)
        has_failed = False
        return result
    finally:
        journal.close(has_failed)


def _extras(inputs: RunInputs, outputs: Outputs, layout: str) -> Extras:
    """What is written beside submission and record; the folder of the report's pages is checked as the others were."""
    outputs = with_pages(outputs, layout, len(inputs.study_ids))
    check_destinations(outputs, inputs.root, inputs.manifest)
    is_known = inputs.manifest.competition_name == DEFAULT
    truth = partial(read_truth, inputs.root, inputs.split, inputs.study_ids) if is_known else None
    return Extras(outputs, inputs.study_ids, inputs.manifest, truth)


class Collector:
    """A run whose studies are predicted elsewhere, by ``lumbar.workers.predictor``: it keeps what comes back.

    As a ``with`` block: the submission is whole from its start on, and the block's end writes it.

    Args:
        root, weights, out, split, studies: as of ``predict``.
        chain: its name, as the predictors got it.
        resume: leave out what the journal beside ``out`` has.

    Raises:
        LumbarError: as ``predict`` before any work.
    """

    def __init__(
        self,
        root: str | Path,
        weights: str | Path,
        out: str | Path,
        split: str = "test",
        studies: int | Sequence[int | str] | None = None,
        chain: str | Chain = "main",
        resume: bool = True,
    ) -> None:
        outputs = part_outputs({"out": out}, None)
        with without_empty_folders(output_folders(outputs)):
            inputs = check_inputs(Request(Path(root), weights, split, chain, studies), outputs)
        self._journal = Journal(outputs["journal"], inputs.rows)
        try:
            self._journal.begin(inputs.header, resume, inputs.fingerprints)
            manifest = inputs.manifest
            answers = self._journal.answers
            self.submission = Submission(inputs.study_ids, manifest.prior, out, manifest.competition, answers)
        except BaseException:
            self._journal.close(has_failed=True)
            raise
        self._journal.note_run([], 0.0, math.inf, inputs.table_problems(None), index=inputs.table.index)
        self.left = [study_id for study_id in inputs.study_ids if study_id not in self._journal]

    def add(self, text: str) -> None:
        """Keep the outcome of one study, as ``Predictor.text`` gives it.

        Raises:
            CohortError: the submission cannot be written; the outcome is in the journal.
        """
        outcome = outcome_from(text)
        self._journal[outcome.study_id] = outcome
        if outcome.probs is not None:
            self.submission.replace(outcome.study_id, outcome.probs, is_normalised=True)

    def __enter__(self) -> Collector:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.submission.write()
            self.submission.check()
        finally:
            self._journal.close()


def _run(
    inputs: RunInputs,
    schedule: Schedule,
    journal: Journal,
    devices: list[str],
    options: _Options,
    extras: Extras,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Start the workers, predict all studies, and write submission, record and report."""
    manifest, study_ids, limit_s = inputs.manifest, inputs.study_ids, schedule.budget.limit_s
    problems, index, earlier = inputs.table_problems(None), inputs.table.index, frozenset(journal)
    try:
        schedule.start(devices, options.processes)
        log.info(
            "manifest %s verified: %s; %s to predict on %s%s",
            manifest.hash[:12], manifest.origin, counted(schedule.budget.n_left, "study"),
            ", ".join(dict.fromkeys(schedule.devices)) or "no device",
            "" if limit_s == math.inf else f", in at most {duration(limit_s)}",
        )  # fmt: skip
        if mismatch := code_mismatch(manifest.code_sha256, manifest.data.get("code_files")):
            log.info("%s", mismatch)
        submission = Submission(study_ids, manifest.prior, extras.outputs["out"], manifest.competition, journal.answers)
        journal.answers.clear()
        journal.note_run(schedule.devices, schedule.load_s, limit_s, problems, mismatch, index)
        schedule.run(submission, partial(extras.add, submission=submission))
    finally:
        schedule.stop()
    submission.write()
    submission.check()
    outcomes = journal.in_order(study_ids)
    libraries = versions() | ({"code": mismatch} if mismatch else {})
    seconds = {"load": schedule.load_s, **journal.seconds}
    record = record_head(manifest.hash, libraries, schedule.devices, seconds, problems, index, journal.left_out)
    if words := left_out_words(journal.left_out):
        log.warning("%s", words)
    if options.in_memory:
        record = with_studies(record, outcomes)
    page = extras.outputs["report"] if extras.outputs[PAGES] is None else None
    write_extras(record, outcomes, submission, manifest, limit_s, extras.outputs["record"], page, extras.truth)
    extras.finish(record, outcomes, submission, limit_s, earlier)
    if options.in_memory:
        return submission.frame(), record
    n_rows = len(study_ids) * len(manifest.competition.rows)
    totals = {"rows": n_rows, "studies": len(study_ids), "predicted": journal.n_predicted}
    return pd.DataFrame(columns=manifest.competition.header), record | {"totals": totals}


def _layout(chain: Chain, manifest: Manifest, options: _Options, part: Shard | None) -> Layout:
    """One worker a GPU; without any, one a core for the networks of a chain; or as many as were asked for."""
    gpus = cuda_devices() if chain.uses_gpu else []
    gpus = part.devices(gpus) if part else gpus
    local_count = part.local_count if part else 1
    if options.workers is None and not gpus and chain.uses_gpu and options.processes:
        return cpu_layout(manifest, local_count, can_share())
    count = options.workers if options.workers is not None else max(1, len(gpus))
    return Layout(gpus or ["cpu"], count, cpu_threads(count * local_count))
