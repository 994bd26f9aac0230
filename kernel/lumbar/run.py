"""A whole run: verify the bundle, write prior rows, then predict study after study, inside the time limit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lumbar.bundle.code_hash import code_mismatch
from lumbar.bundle.manifest import Manifest, verify
from lumbar.chains.contract import Chain, Outcome
from lumbar.chains.registry import chain_of
from lumbar.competitions.contract import SPLITS, Competition
from lumbar.competitions.registry import DEFAULT
from lumbar.competitions.tables import read_studies
from lumbar.errors import CohortError
from lumbar.io.competition import folder_to_index
from lumbar.io.numba_cache import use_numba_cache
from lumbar.io.progress import duration
from lumbar.io.tables import FILES, PROBLEMS, SeriesTable, list_studies
from lumbar.io.text import counted, printable_log
from lumbar.output.destinations import check_destinations, refuse_inputs
from lumbar.output.extras import PAGES, Extras, Outputs, check_outputs, with_pages
from lumbar.output.record import add_inputs, build_record, write_extras
from lumbar.output.submission import Submission, expected_studies, validate
from lumbar.output.truth import read_truth
from lumbar.workers.budget import Budget, Clock, parse_time_limit
from lumbar.workers.devices import cpu_threads, cuda_devices
from lumbar.workers.schedule import Schedule
from lumbar.workers.worker import Setup

log = printable_log()


@dataclass(frozen=True)
class _Inputs:
    """What a run reads, checked before any work."""

    root: Path
    split: str
    manifest: Manifest
    chain: Chain
    study_ids: list[int | str]
    table: SeriesTable

    @property
    def descriptions(self) -> pd.DataFrame:
        """The rows about series or studies."""
        return self.table.frame

    def table_problems(self, study_id: int | str | None) -> list[str]:
        """Lines about a study's rows in the table of series; None: about rows that belong to no study."""
        lines: dict[int | str | None, list[str]] = self.descriptions.attrs.get(PROBLEMS, {})
        return lines.get(study_id, [])

    def add_table_problems(self, outcome: Outcome) -> None:
        """Put the table's lines about a study before its other problems, each once."""
        lines = self.table_problems(outcome.study_id)
        outcome.problems[:0] = [line for line in lines if line not in outcome.problems]


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
    manifest_hash: str | None = None,
    clock: Clock = time.monotonic,
    started: float | None = None,
    processes: bool = True,
    progress: bool = False,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Predict every study of a split, in worker processes: a study that crashes one costs itself and no other.

    Args:
        root: a competition folder, for the lumbar spine ``{split}_images`` and ``{split}_series_descriptions.csv``; or
            any folder of DICOM, whose headers tell studies and series apart (``lumbar.intake``).
        weights: a bundle: ``weights_manifest.json`` and the files that it names.
        out: submission.csv, whole and valid from the first write on; None writes none.
        split: ``test`` or ``train``.
        chain: ``main``, ``baseline``, or a ``Chain``; one that cannot be sent to a process runs in threads.
        time_limit: ``8.5h``, ``30m``, ``90s`` or seconds, from ``started`` on.
        report: the report as HTML; of more than ten studies an index, with their pages in a folder beside it.
        record: the run record as JSON.
        studies: the first N only, or these ids.
        workers: how many, at most one a study; None for one a GPU, or one where there is none.
        pictures: a folder for PNG files of every study, with the points drawn in.
        table: a CSV file with one row a study, condition, level and side (docs/findings-table.md).
        markups: a folder for the points of every study as 3D Slicer markups.
        report_layout: ``auto``, ``single`` (one page, pictures of the first ten studies) or ``pages`` (an index).
        manifest_hash: the manifest that the caller was made for; None takes any.
        clock: monotonic seconds.
        started: the clock's value from which the time limit counts; None for this call.
        processes: False runs the workers as threads, where a crash ends the caller too.
        progress: say how far it has come: a bar on a terminal, else a line a minute in the log.

    Returns:
        The submission's frame (25 rows a study for the lumbar spine) and the run record (docs/architecture.md).

    Raises:
        ManifestError: the bundle is broken, stale, or fails a probe; nothing was written.
        CohortError: the folder is no competition folder, or an output cannot be written or is an input.
        LumbarError: no worker could load the weights.
    """
    budget = Budget(parse_time_limit(time_limit), 0, clock=clock, start_s=started)
    outputs: Outputs = dict(out=out, report=report, record=record, pictures=pictures, table=table, markups=markups)
    inputs = _check_inputs(Path(root), weights, manifest_hash, chain, split, studies, outputs, report_layout, progress)
    devices, extras = _devices(inputs.chain, workers, len(inputs.study_ids)), _extras(inputs, outputs, report_layout)
    schedule = Schedule(budget, _setup(inputs, len(devices)), inputs.study_ids, extras.drawn, progress)
    return _run(inputs, schedule, devices, processes, extras)


def _check_inputs(
    root: Path,
    weights: str | Path,
    manifest_hash: str | None,
    chain: str | Chain,
    split: str,
    studies: int | Sequence[int | str] | None,
    outputs: Outputs,
    layout: str,
    progress: bool,
) -> _Inputs:
    """Verify the bundle, then the places of the outputs, then the tables: in this order, and before any work."""
    if split not in SPLITS:
        raise CohortError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
    use_numba_cache()
    manifest = verify(weights, manifest_hash)
    functions = chain_of(chain, manifest)
    check_outputs(outputs, layout, manifest)
    check_destinations(outputs, root, manifest)
    is_known = manifest.competition_name == DEFAULT
    folder = folder_to_index(root, split) if is_known else None
    table = read_folder(folder, manifest, progress) if folder else read_studies(root, split, manifest.competition)
    refuse_inputs(outputs, (path for paths in table.frame.get(FILES, ()) for path in paths))
    study_ids = _studies(root, split, studies, manifest.competition, table, folder)
    inputs = _Inputs(root, split, manifest, functions, study_ids, table)
    source = "index" if folder else manifest.competition.path(manifest.competition.table, split)
    for study_id in (None, *study_ids):
        for line in inputs.table_problems(study_id):
            log.warning("%s: %s%s", source, f"study {study_id}: " if folder and study_id is not None else "", line)
    return inputs


def read_folder(folder: Path, manifest: Manifest, progress: bool) -> SeriesTable:
    """Any folder of DICOM as a table of series, from an index of its headers.

    Raises:
        CohortError: it holds no study of a lumbar spine by MR.
    """
    from lumbar.intake.run_table import series_table  # late: it loads numba, which a competition's folder does not need

    return series_table(folder, manifest, progress)


def _extras(inputs: _Inputs, outputs: Outputs, layout: str) -> Extras:
    """What is written beside submission and record; the folder of the report's pages is checked as the others were."""
    outputs = with_pages(outputs, layout, len(inputs.study_ids))
    check_destinations(outputs, inputs.root, inputs.manifest)
    is_known = inputs.manifest.competition_name == DEFAULT
    truth = partial(read_truth, inputs.root, inputs.split, inputs.study_ids) if is_known else None
    return Extras(outputs, inputs.study_ids, inputs.manifest, truth)


def _setup(inputs: _Inputs, n_workers: int) -> Setup:
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
        n_threads=cpu_threads(n_workers),
        first_study=None,
    )


def _run(
    inputs: _Inputs,
    schedule: Schedule,
    devices: list[str],
    processes: bool,
    extras: Extras,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Start the workers, predict all studies, and write submission, record and report."""
    manifest, study_ids, limit_s = inputs.manifest, inputs.study_ids, schedule.budget.limit_s
    competition, outputs = manifest.competition, extras.outputs
    try:
        schedule.start(devices, processes)
        log.info(
            "manifest %s verified, %s to predict on %s, in at most %s",
            manifest.hash[:12], counted(len(study_ids), "study"), ", ".join(schedule.devices) or "no device",
            duration(limit_s),
        )  # fmt: skip
        if mismatch := code_mismatch(manifest.code_sha256):
            log.info("%s", mismatch)
        submission = Submission(study_ids, manifest.prior, outputs["out"], competition)
        outcomes = schedule.run(submission, partial(_finished, inputs, extras, submission))
    finally:
        schedule.stop()
    if (out := outputs["out"]) is not None:
        submission.write()
        validate(out, [row_id for study_id in study_ids for row_id in competition.row_ids(study_id)], competition)
    for outcome in outcomes:
        inputs.add_table_problems(outcome)
    record = build_record(manifest, schedule.devices, schedule.load_s, outcomes, inputs.table_problems(None), mismatch)
    add_inputs(record, inputs.table)
    page = outputs["report"] if outputs[PAGES] is None else None
    write_extras(record, outcomes, submission, manifest, limit_s, outputs["record"], page, extras.truth)
    extras.finish(record, outcomes, submission, limit_s)
    return submission.frame(), record


def _finished(inputs: _Inputs, extras: Extras, submission: Submission, outcome: Outcome) -> None:
    """Write what belongs to a study that was predicted."""
    inputs.add_table_problems(outcome)
    extras.add(outcome, submission)


def _devices(chain: Chain, workers: int | None, n_studies: int) -> list[str]:
    """The device of each worker; there are at most as many workers as studies."""
    gpus = cuda_devices() if chain.uses_gpu else []
    count = max(1, min(n_studies, workers if workers is not None else len(gpus)))
    return [gpus[index % len(gpus)] if gpus else "cpu" for index in range(count)]


def _studies(
    root: Path,
    split: str,
    wanted: int | Sequence[int | str] | None,
    competition: Competition,
    table: SeriesTable,
    indexed: Path | None,
) -> list[int | str]:
    """The ids to predict, in the order of the submission.

    Args:
        root: the folder that was named.
        split: of a competition's folder.
        wanted: the first N only, or these ids; None for all.
        competition: whose answer is asked for.
        table: of its series or studies.
        indexed: the folder whose files made the table; None for a competition's own.
    """
    study_ids: list[int | str] = list(table.inputs)
    if indexed is None:
        tabled = table.studies()
        present = list_studies(root, split, tabled, competition.path(competition.images, split))
        study_ids = expected_studies(root, split, present, tabled, competition)
    elif indexed != root:  # a competition's images without its table: the sample still leads the order
        study_ids = expected_studies(root, split, study_ids, study_ids, competition)
    if isinstance(wanted, int):
        study_ids = study_ids[:wanted]
    elif wanted is not None:
        chosen = set(map(str, wanted))
        study_ids = [study_id for study_id in study_ids if str(study_id) in chosen]
    if not study_ids:
        raise CohortError(f"{root}: found none of the studies {wanted}, expected at least one")
    return study_ids
