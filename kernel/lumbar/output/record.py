"""The run record (docs/architecture.md), and how it and the report are written after the submission."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lumbar.bundle.manifest import Manifest
from lumbar.chains.contract import Outcome
from lumbar.io.files import write_atomically
from lumbar.io.tables import SeriesTable
from lumbar.io.text import PublicText, one_line, public_values
from lumbar.output.submission import Submission
from lumbar.output.truth import Truth
from lumbar.output.versions import versions

log = logging.getLogger("lumbar")


def build_record(
    manifest: Manifest,
    devices: Sequence[str],
    load_s: float,
    outcomes: Sequence[Outcome],
    problems: Sequence[str] = (),
    own_code: str = "",
) -> dict[str, Any]:
    """Build the run record in plain JSON types, with all text safe to print; seconds are summed over studies.

    Args:
        manifest: of the bundle that was used.
        devices: of the workers.
        load_s: seconds that loading the weights took.
        outcomes: what became of each study.
        problems: lines that belong to no study, such as those about rows of the table of series that name none; the
            record has the key only where there are some.
        own_code: a sentence that other code ran than was sealed with the bundle; empty where it is the same.
    """
    seconds: dict[str, float] = {"load": load_s}
    for outcome in outcomes:
        for stage, value in outcome.seconds.items():
            if stage != "study":
                seconds[stage] = seconds.get(stage, 0.0) + value
    record = {
        "manifest_hash": manifest.hash,
        "versions": versions() | ({"code": own_code} if own_code else {}),
        "devices": list(devices) or ["cpu"],
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
        "studies": [
            {
                "study_id": outcome.study_id,
                "status": outcome.status,
                "problems": outcome.problems,
                "seconds": round(outcome.seconds.get("study", 0.0), 3),
                "sagittal_points": outcome.sagittal_points,
                "axial_levels": outcome.axial_levels,
            }
            for outcome in outcomes
        ],
    }
    if problems:
        record["problems"] = list(problems)
    return dict(public_values(record))


def add_inputs(record: dict[str, Any], table: SeriesTable) -> None:
    """Add to each study of a record which series it has and what each was taken for, with reason and doubt.

    Args:
        record: as ``build_record`` gives it; of an indexed folder it gets ``index`` too.
        table: of series; those of a competition's folder are what its table says.
    """
    frame = table.frame
    inputs = table.inputs
    if not inputs and "series_description" not in frame.columns:
        return  # of another competition
    if not inputs:
        told: dict[int | str, list[dict[str, Any]]] = {}
        columns = (frame[name] for name in ("study_id", "series_id", "series_description"))
        for study_id, series_id, description in zip(*columns, strict=True):
            entry = {"series_id": str(series_id), "kind": description, "reason": "table of series", "doubt": ""}
            told.setdefault(int(study_id), []).append(entry)
        inputs = told
    for study in record["studies"]:
        study["inputs"] = public_values(inputs.get(study["study_id"], []))
    if table.index:
        record["index"] = dict(table.index)


def write_extras(
    data: dict[str, Any],
    outcomes: Sequence[Outcome],
    submission: Submission,
    manifest: Manifest,
    limit_s: float,
    record: str | Path | None,
    report: str | Path | None,
    truth: Callable[[], Truth] | None = None,
) -> None:
    """Write record and report beside a submission that already stands: a failure here is a line in the log.

    Args:
        data: the run record.
        outcomes: what became of each study.
        submission: the rows that stand.
        manifest: of the bundle that was used.
        limit_s: the time limit in seconds.
        record: where the record goes; None: nowhere.
        report: where the report goes; None: nowhere.
        truth: reads the labels of the studies, for the report alone; None: no truth is shown.
    """

    def write_record(path: str | Path) -> None:
        write_atomically(path, json.dumps(data, indent=1) + "\n")

    def write_report(path: str | Path) -> None:
        from lumbar.output.report import render

        write_atomically(path, render(data, outcomes, submission, manifest, limit_s, truth() if truth else None))

    extras: list[tuple[str | Path | None, Callable[[str | Path], None]]] = [
        (record, write_record),
        (report, write_report),
    ]
    for path, write in extras:
        if path is not None:
            try:
                write(path)
            except Exception as error:
                log.error("%s: not written (%s)", Path(path).name, one_line(error, PublicText([Path(path).parent])))
