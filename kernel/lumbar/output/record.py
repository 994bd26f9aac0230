"""The run record (docs/architecture.md), and how it and the report are written after the submission."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lumbar.bundle.manifest import Manifest
from lumbar.chains.contract import Outcome
from lumbar.io.files import atomic_file, write_atomically
from lumbar.io.tables import SeriesTable
from lumbar.io.text import PublicText, one_line, public_values
from lumbar.output.left_out import add_left_out
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
    seconds: dict[str, float] = {}
    left_out: dict[str, int] = {}
    for outcome in outcomes:
        add_seconds(seconds, outcome)
        add_left_out(left_out, outcome.left_out)
    libraries = versions() | ({"code": own_code} if own_code else {})
    head = record_head(manifest.hash, libraries, devices, {"load": load_s, **seconds}, problems, left_out=left_out)
    return with_studies(head, outcomes)


def add_seconds(seconds: dict[str, float], outcome: Outcome) -> None:
    """Add a study's seconds to the sums by part of the work."""
    for stage, value in outcome.seconds.items():
        if stage != "study":
            seconds[stage] = seconds.get(stage, 0.0) + value


def record_head(
    manifest_hash: str,
    libraries: Mapping[str, str],
    devices: Sequence[str],
    seconds: Mapping[str, float],
    problems: Sequence[str] = (),
    index: Mapping[str, Any] | None = None,
    left_out: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """The run record without its studies; arguments as of ``build_record``.

    Beside these ``index``, what is told of an indexed folder, and ``left_out``, in how many studies each member of the
    ensemble did not run for lack of time.
    """
    head = {
        "manifest_hash": manifest_hash,
        "versions": dict(libraries),
        "devices": list(devices) or ["cpu"],
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
        "studies": [],
    }
    if problems:
        head["problems"] = list(problems)
    if left_out:
        head["left_out"] = dict(left_out)
    if index:
        head["index"] = dict(index)
    return dict(public_values(head))


def with_studies(head: Mapping[str, Any], outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """The whole run record."""
    return {**head, "studies": [_entry(outcome) for outcome in outcomes]}


def write_record(path: str | Path, head: Mapping[str, Any], outcomes: Iterable[Outcome]) -> None:
    """Write the run record study by study, so that it never lies in memory as a whole.

    Raises:
        CohortError: it cannot be written.
    """
    # Inside a text JSON has no line feed, so the mark stands for the list of studies alone.
    before, mark, after = json.dumps({**head, "studies": []}, indent=1).partition('\n "studies": [')
    with atomic_file(path) as file:
        file.write((before + mark).encode())
        separator = "\n  "
        for outcome in outcomes:
            file.write((separator + json.dumps(_entry(outcome), indent=1).replace("\n", "\n  ")).encode())
            separator = ",\n  "
        file.write((("\n " if separator.startswith(",") else "") + after + "\n").encode())


def _entry(outcome: Outcome) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "study_id": outcome.study_id,
        "status": outcome.status,
        "problems": outcome.problems,
        "seconds": round(outcome.seconds.get("study", 0.0), 3),
        "sagittal_points": outcome.sagittal_points,
        "axial_levels": outcome.axial_levels,
    }
    if outcome.numbering is not None:
        entry["numbering"] = outcome.numbering
    if outcome.not_seen:
        entry["levels_not_seen"] = outcome.not_seen
    if outcome.inputs is not None:
        entry["inputs"] = outcome.inputs
    return dict(public_values(entry))


def inputs_of(table: SeriesTable) -> Callable[[int | str], list[dict[str, Any]] | None]:
    """The function that tells which series a study has and what each was taken for, with reason and doubt.

    Args:
        table: of series; those of a competition's folder are what its table says. Tables of other competitions may have
            none: then it tells None of every study.
    """
    frame, inputs = table.frame, table.inputs
    if inputs or table.index:
        return lambda study_id: inputs.get(study_id, [])
    if "series_description" not in frame.columns:
        return lambda study_id: None
    places: dict[int, list[int]] = {}
    for place, study_id in enumerate(frame["study_id"]):
        places.setdefault(int(study_id), []).append(place)
    series, descriptions = frame["series_id"].tolist(), frame["series_description"].tolist()

    def told(study_id: int | str) -> list[dict[str, Any]]:
        own = places.get(study_id, ()) if isinstance(study_id, int) else ()
        return [
            {"series_id": str(series[k]), "kind": descriptions[k], "reason": "table of series", "doubt": ""}
            for k in own
        ]

    return told


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
        data: the run record; its studies may be missing, since they are taken from ``outcomes``.
        outcomes: what became of each study.
        submission: the rows that stand.
        manifest: of the bundle that was used.
        limit_s: the time limit in seconds.
        record: where the record goes; None: nowhere.
        report: where the report goes; None: nowhere.
        truth: reads the labels of the studies, for the report alone; None: no truth is shown.
    """

    def write_report(path: str | Path) -> None:
        from lumbar.output.report import render

        write_atomically(path, render(data, outcomes, submission, manifest, limit_s, truth() if truth else None))

    extras: list[tuple[str | Path | None, Callable[[str | Path], None]]] = [
        (record, partial(write_record, head=data, outcomes=outcomes)),
        (report, write_report),
    ]
    for path, write in extras:
        if path is not None:
            try:
                write(path)
            except Exception as error:
                log.error("%s: not written (%s)", Path(path).name, one_line(error, PublicText([Path(path).parent])))
