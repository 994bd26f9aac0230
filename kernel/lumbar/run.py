"""A whole run: verify the bundle, write prior rows, then predict study after study, inside the time limit."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lumbar.budget import Budget, Clock, parse_time_limit
from lumbar.bundle.code_hash import code_mismatch, own_code_sha256
from lumbar.bundle.manifest import Manifest, verify
from lumbar.chains.contract import Chain
from lumbar.chains.registry import chain_of
from lumbar.competitions.contract import SPLITS, Competition
from lumbar.competitions.registry import DEFAULT
from lumbar.competitions.tables import read_studies
from lumbar.errors import CohortError
from lumbar.io.fingerprint import row_digests, study_fingerprint
from lumbar.io.numba_cache import use_numba_cache
from lumbar.io.progress import duration
from lumbar.io.tables import PROBLEMS, SeriesTable, list_studies
from lumbar.io.text import counted, printable_log
from lumbar.output.destinations import check_destinations
from lumbar.output.journal import Header, Journal, Rows, cohort_hash, journal_path
from lumbar.output.outcome_json import outcome_from
from lumbar.output.record import record_head, with_studies, write_extras
from lumbar.output.submission import Submission, expected_studies
from lumbar.output.truth import read_truth
from lumbar.output.versions import versions
from lumbar.workers.devices import cpu_threads, cuda_devices
from lumbar.workers.schedule import Schedule
from lumbar.workers.shards import Shard, find_shard
from lumbar.workers.worker import Setup

log = printable_log()

N_PICTURED = 10  # studies with pictures in the report: 720 studies stay under a few MB


@dataclass(frozen=True)
class _Inputs:
    """What a run reads, checked before any work."""

    root: Path
    split: str
    manifest: Manifest
    chain: Chain
    study_ids: list[int]  # of this shard
    descriptions: pd.DataFrame
    cohort: list[int]  # the studies of all shards
    part: Shard | None
    chain_name: str
    study_column: str

    @property
    def images(self) -> str:
        """The folder of the split's images, in the competition's folder."""
        return self.manifest.competition.path(self.manifest.competition.images, self.split)

    def table_problems(self, study_id: int | None) -> list[str]:
        """Lines about a study's rows in the table of series; None: about rows that belong to no study."""
        lines: dict[int | None, list[str]] = self.descriptions.attrs.get(PROBLEMS, {})
        return lines.get(study_id, [])


@dataclass(frozen=True)
class _Options:
    """How a run works, as ``predict`` describes it."""

    processes: bool
    progress: bool
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
    studies: int | Sequence[int] | None = None,
    workers: int | None = None,
    *,
    shard: str | Shard | None = None,
    resume: bool = False,
    manifest_hash: str | None = None,
    clock: Clock = time.monotonic,
    started: float | None = None,
    processes: bool = True,
    progress: bool = False,
    in_memory: bool = True,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Predict every study of a split, in worker processes: a study that crashes one costs itself and no other.

    Args:
        root: a competition folder, for the lumbar spine ``{split}_images`` and ``{split}_series_descriptions.csv``.
        weights: a bundle: ``weights_manifest.json`` and the files that it names.
        out: submission.csv, whole and valid from the first write on, its journal beside it; None writes none.
        split: ``test`` or ``train``.
        chain: ``main``, ``baseline`` (of the lumbar spine alone), or a ``Chain``; one that cannot be sent to a process
            runs in threads. The bundle names its competition.
        time_limit: ``8.5h``, ``30m``, ``90s``, seconds, or ``none``, from ``started`` on.
        report: the report as HTML.
        record: the run record as JSON.
        studies: the first N only, or these ids; None for all.
        workers: how many, at most one a study; None for one a GPU, or one where there is none.
        shard: ``I/N`` for part I of N, from 0, or ``auto`` (docs/many-machines.md); it names the files of the part.
        resume: go on from the journal beside ``out``; False begins anew.
        manifest_hash: the manifest that the caller was made for; None takes any.
        clock: monotonic seconds.
        started: the clock's value from which the time limit counts; None for this call.
        processes: False runs the workers as threads, where a crash ends the caller too.
        progress: say how far it has come: a bar on a terminal, else a line a minute in the log.
        in_memory: False leaves the answers in the files: the frame is empty, the record has ``totals``, no studies.

    Returns:
        The submission's frame (25 rows a study for the lumbar spine) and the run record (docs/architecture.md).

    Raises:
        ManifestError: the bundle is broken, stale, or fails a probe; nothing was written.
        CohortError: no competition folder; an output that cannot be written, is an input, or is of other predictions.
        LumbarError: no worker could load the weights.
    """
    budget = Budget(parse_time_limit(time_limit), 0, clock=clock, start_s=started)
    part = find_shard(shard) if isinstance(shard, str) else shard
    outputs = _outputs(out, report, record, part)
    inputs = _check_inputs(Path(root), weights, manifest_hash, chain, split, studies, outputs, part)
    return _predict(inputs, budget, _Options(processes, progress, resume, workers, in_memory), outputs)


def _predict(
    inputs: _Inputs, budget: Budget, options: _Options, outputs: Mapping[str, str | Path | None]
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Open the journal, and do what it does not have yet."""
    if options.resume and outputs["out"] is None:
        raise CohortError("resume: found no out, expected the submission whose journal to go on with")
    use_numba_cache()
    part, journal = inputs.part, _journal(inputs, outputs)
    has_failed = True
    try:
        journal.begin(_header(inputs), options.resume, partial(study_fingerprint, inputs.root, inputs.images))
        devices = _devices(inputs.chain, options.workers, len(inputs.study_ids) - len(journal), part)
        pictured = frozenset(inputs.study_ids[:N_PICTURED] if outputs["report"] is not None else ())
        n_threads = cpu_threads(len(devices) * (part.local_count if part else 1))
        schedule = Schedule(budget, _setup(inputs, n_threads), inputs.study_ids, pictured, options.progress, journal)
        result = _run(inputs, schedule, journal, devices, options, outputs)
        has_failed = False
        return result
    finally:
        journal.close(has_failed)


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
        studies: int | Sequence[int] | None = None,
        chain: str | Chain = "main",
        resume: bool = True,
    ) -> None:
        outputs = _outputs(out, None, None, None)
        inputs = _check_inputs(Path(root), weights, None, chain, split, studies, outputs, None)
        self._journal = _journal(inputs, outputs)
        try:
            fingerprints = partial(study_fingerprint, inputs.root, inputs.images)
            self._journal.begin(_header(inputs), resume, fingerprints)
            manifest = inputs.manifest
            answers = self._journal.answers
            self.submission = Submission(inputs.study_ids, manifest.prior, out, manifest.competition, answers)
        except BaseException:
            self._journal.close(has_failed=True)
            raise
        self._journal.note_run([], 0.0, math.inf, inputs.table_problems(None))
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


def _journal(inputs: _Inputs, outputs: Mapping[str, str | Path | None]) -> Journal:
    """Open the journal."""
    table = inputs.descriptions
    rows = Rows(table.attrs.get(PROBLEMS, {}), row_digests(table, inputs.study_column))
    return Journal(outputs["journal"], rows)


def _outputs(
    out: str | Path | None, report: str | Path | None, record: str | Path | None, part: Shard | None
) -> dict[str, str | Path | None]:
    """The files of this part, by option; the journal lies beside the submission."""
    outputs: dict[str, str | Path | None] = {
        name: part.path(path) if part and path is not None else path
        for name, path in (("out", out), ("report", report), ("record", record))
    }
    written = outputs["out"]
    return outputs | {"journal": None if written is None else journal_path(written)}


def _header(inputs: _Inputs) -> Header:
    """What the journal says it holds."""
    own, part = set(inputs.study_ids), inputs.part
    return Header(
        manifest_hash=inputs.manifest.hash,
        code_sha256=own_code_sha256(),
        versions=versions(),
        split=inputs.split,
        chain=inputs.chain_name,
        shard=None if part is None else (part.index, part.count),
        cohort=cohort_hash(inputs.cohort),
        n_cohort=len(inputs.cohort),
        manifest=inputs.manifest.data,
        studies=inputs.study_ids,
        places=[place for place, study_id in enumerate(inputs.cohort) if study_id in own],
    )


def _check_inputs(
    root: Path,
    weights: str | Path,
    manifest_hash: str | None,
    chain: str | Chain,
    split: str,
    studies: int | Sequence[int] | None,
    outputs: Mapping[str, str | Path | None],
    part: Shard | None,
) -> _Inputs:
    """Verify the bundle, then the places of the outputs, then the tables: in this order, and before any work."""
    manifest = verify(weights, manifest_hash)
    functions = chain_of(chain, manifest)
    check_destinations(outputs, root, manifest)
    cohort, table = _studies(root, split, studies, manifest.competition)
    study_ids = cohort if part is None else part.own(cohort)
    name = chain if isinstance(chain, str) else "another"
    inputs = _Inputs(root, split, manifest, functions, study_ids, table.frame, cohort, part, name, table.study_column)
    table_name = manifest.competition.path(manifest.competition.table, split)
    for study_id in (None, *study_ids):
        for line in inputs.table_problems(study_id):
            log.warning("%s: %s", table_name, line)
    return inputs


def _setup(inputs: _Inputs, n_threads: int | None) -> Setup:
    """What every worker gets; the schedule adds its device and its first study."""
    manifest = inputs.manifest
    return Setup(
        root=inputs.root,
        split=inputs.split,
        descriptions=inputs.descriptions,
        manifest=manifest,
        prior=np.array([manifest.prior[key] for key in manifest.competition.keys]),
        chain=inputs.chain,
        device="",
        n_threads=n_threads,
        first_study=None,
    )


def _run(
    inputs: _Inputs,
    schedule: Schedule,
    journal: Journal,
    devices: list[str],
    options: _Options,
    outputs: Mapping[str, str | Path | None],
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Start the workers, predict all studies, and write submission, record and report."""
    manifest, study_ids, limit_s = inputs.manifest, inputs.study_ids, schedule.budget.limit_s
    problems = inputs.table_problems(None)
    try:
        schedule.start(devices, options.processes)
        log.info(
            "manifest %s verified, %s to predict on %s%s",
            manifest.hash[:12], counted(schedule.budget.n_left, "study"), ", ".join(schedule.devices) or "no device",
            "" if limit_s == math.inf else f", in at most {duration(limit_s)}",
        )  # fmt: skip
        if mismatch := code_mismatch(manifest.code_sha256):
            log.info("%s", mismatch)
        submission = Submission(study_ids, manifest.prior, outputs["out"], manifest.competition, journal.answers)
        journal.answers.clear()
        journal.note_run(schedule.devices, schedule.load_s, limit_s, problems, mismatch)
        schedule.run(submission)
    finally:
        schedule.stop()
    submission.write()
    submission.check()
    outcomes = journal.in_order(study_ids)
    libraries = versions() | ({"code": mismatch} if mismatch else {})
    seconds = {"load": schedule.load_s, **journal.seconds}
    record = record_head(manifest.hash, libraries, schedule.devices, seconds, problems)
    if options.in_memory:
        record = with_studies(record, outcomes)
    # For the report alone, once all answers stand
    is_known = manifest.competition_name == DEFAULT
    truth = partial(read_truth, inputs.root, inputs.split, study_ids) if is_known else None
    write_extras(record, outcomes, submission, manifest, limit_s, outputs["record"], outputs["report"], truth)
    if options.in_memory:
        return submission.frame(), record
    n_rows = len(study_ids) * len(manifest.competition.rows)
    totals = {"rows": n_rows, "studies": len(study_ids), "predicted": journal.n_predicted}
    return pd.DataFrame(columns=manifest.competition.header), record | {"totals": totals}


def _devices(chain: Chain, workers: int | None, n_studies: int, part: Shard | None) -> list[str]:
    """The device of each worker; there are at most as many workers as studies."""
    gpus = cuda_devices() if chain.uses_gpu else []
    gpus = part.devices(gpus) if part else gpus
    count = max(1, min(n_studies, workers if workers is not None else len(gpus)))
    return [gpus[index % len(gpus)] if gpus else "cpu" for index in range(count)]


def _studies(
    root: Path, split: str, wanted: int | Sequence[int] | None, competition: Competition
) -> tuple[list[int], SeriesTable]:
    """The ids to predict, in the order of the submission, and the competition's table of series or studies."""
    if split not in SPLITS:
        raise CohortError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
    table = read_studies(root, split, competition)
    tabled = table.studies()
    present = list_studies(root, split, tabled, competition.path(competition.images, split))
    study_ids = expected_studies(root, split, present, tabled, competition)
    if isinstance(wanted, int):
        study_ids = study_ids[:wanted]
    elif wanted is not None:
        chosen = {int(study_id) for study_id in wanted}
        study_ids = [study_id for study_id in study_ids if study_id in chosen]
    if not study_ids:
        raise CohortError(f"{root}: found none of the studies {wanted}, expected at least one")
    return study_ids, table
