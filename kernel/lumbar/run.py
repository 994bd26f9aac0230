"""A whole run: manifest first, prior rows, then study after study, inside the time limit, whatever the studies hold."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lumbar.budget import Budget, Clock, parse_time_limit
from lumbar.bundle.code_hash import code_mismatch
from lumbar.bundle.manifest import verify
from lumbar.chains.contract import Chain
from lumbar.chains.registry import chain_of
from lumbar.errors import CohortError
from lumbar.io.tables import PROBLEMS, list_studies, read_series
from lumbar.io.text import printable_log
from lumbar.labels import COLUMNS, row_ids
from lumbar.numba_cache import use_numba_cache
from lumbar.output.destinations import check_destinations
from lumbar.output.record import build_record, write_extras
from lumbar.output.submission import Submission, expected_studies, validate
from lumbar.workers.devices import cpu_threads, cuda_devices
from lumbar.workers.schedule import Schedule
from lumbar.workers.worker import Setup

log = printable_log()

N_PICTURED = 10  # studies with pictures in the report: 720 studies stay under a few MB


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
    started: float | None = None,
    processes: bool = True,
    progress: bool = False,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Predict every study of a split.

    The work is done in processes of their own, so that a study that crashes one costs itself and nothing else. A chain
    that cannot be sent to a process (a function that no module holds by name) runs in threads of this one instead.

    Args:
        root: a competition folder with ``{split}_images`` and ``{split}_series_descriptions.csv``.
        weights: a bundle: ``weights_manifest.json`` and the files that it names.
        out: submission.csv, whole and valid from the first write on; None writes none.
        split: ``test`` or ``train``.
        chain: ``main``, ``baseline``, or a ``Chain``.
        time_limit: ``8.5h``, ``30m``, ``90s`` or seconds, from ``started`` on.
        report: report.html; record: the run record as JSON.
        studies: the first N only, or these ids; None for all.
        workers: how many, at most one a study; None for one a GPU, or one where there is none.
        manifest_hash: the manifest that the caller was made for; None takes any.
        clock: monotonic seconds.
        started: the clock's value from which the time limit counts; None for this call.
        processes: False runs the workers as threads, where a crash ends the caller too.
        progress: show a bar.

    Returns:
        The submission's frame (25 rows a study) and the run record (docs/architecture.md).

    Raises:
        ManifestError: the bundle is broken, stale, or fails a probe; nothing was written.
        CohortError: the folder is no competition folder, or an output cannot be written or is an input.
        LumbarError: no worker could load the weights.
    """
    limit_s = parse_time_limit(time_limit)
    budget = Budget(limit_s, 0, clock=clock, start_s=started)
    use_numba_cache()
    manifest = verify(weights, manifest_hash)
    functions = chain_of(chain, manifest)
    root = Path(root)
    check_destinations({"out": out, "report": report, "record": record}, root, manifest)
    study_ids, descriptions = _studies(root, split, studies)
    table_problems: dict[int | None, list[str]] = dict(descriptions.attrs.get(PROBLEMS, {}))
    for key in (None, *study_ids):
        for line in table_problems.get(key, []):
            log.warning("%s_series_descriptions.csv: %s", split, line)
    devices = _devices(functions, workers, len(study_ids))
    setup = Setup(
        root=root,
        split=split,
        descriptions=descriptions,
        manifest=manifest,
        prior=np.array([manifest.prior[column] for column in COLUMNS]),
        chain=functions,
        device="",
        n_threads=cpu_threads(len(devices)),
        first_study=None,
    )
    pictured = frozenset(study_ids[:N_PICTURED] if report is not None else ())
    schedule = Schedule(budget, setup, study_ids, pictured, progress)
    try:
        schedule.start(devices, processes)
        log.info(
            "manifest %s verified, %d studies to predict on %s, at most %.0f s",
            manifest.hash[:12], len(study_ids), ", ".join(schedule.devices) or "no device", limit_s,
        )  # fmt: skip
        if own_code := code_mismatch(manifest.code_sha256):
            log.info("%s", own_code)
        submission = Submission(study_ids, manifest.prior, out)
        outcomes = schedule.run(submission)
    finally:
        schedule.stop()
    if out is not None:
        submission.write()
        validate(out, [row_id for study_id in study_ids for row_id in row_ids(study_id)])
    for outcome in outcomes:
        outcome.problems[:0] = [
            line for line in table_problems.get(outcome.study_id, []) if line not in outcome.problems
        ]
    data = build_record(manifest, schedule.devices, schedule.load_s, outcomes, table_problems.get(None, []), own_code)
    write_extras(data, outcomes, submission, manifest, limit_s, record, report)
    return submission.frame(), data


def _devices(chain: Chain, workers: int | None, n_studies: int) -> list[str]:
    """The device of each worker; more workers than studies would have nothing to do."""
    gpus = cuda_devices() if chain.uses_gpu else []
    count = max(1, min(n_studies, workers if workers is not None else len(gpus)))
    return [gpus[index % len(gpus)] if gpus else "cpu" for index in range(count)]


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
