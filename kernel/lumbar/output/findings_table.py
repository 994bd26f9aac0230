"""findings.csv: one row a study, condition, level and side, for a statistics program (docs/findings-table.md)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lumbar.bundle.manifest import Manifest
from lumbar.chains.contract import Outcome, Probs
from lumbar.io.files import atomic_file
from lumbar.io.text import csv_cell
from lumbar.labels import SEVERITY_COLUMNS
from lumbar.output.findings import Finding, findings_of, warnings_of
from lumbar.output.notes import own_problems, unreached_levels
from lumbar.output.submission import Submission, normalise

COLUMNS = (
    "row_id", "study_id", "condition", "level", "side", "status", *SEVERITY_COLUMNS, "grade", "likeliest_grade",
    "series_id", "instance_number", "frame", "x_px", "y_px", "x_mm", "y_mm", "z_mm", "confidence",
    "point_probability", "warnings",
)  # fmt: skip
_WARNINGS_LISTED = 12
_WARNING_LENGTH = 300


def normalised_prior(manifest: Manifest) -> Probs:
    """The prior of a bundle as rows of the submission (rows, values)."""
    competition = manifest.competition
    return normalise([list(manifest.prior[key]) for key in competition.keys], competition)


def write_table(path: str | Path, outcomes: Iterable[Outcome], submission: Submission, manifest: Manifest) -> None:
    """Write the table of all studies in their order, a study at a time.

    Raises:
        CohortError: it cannot be written.
    """
    prior = normalised_prior(manifest)
    with atomic_file(path) as file:
        file.write(_lines([COLUMNS]))
        for outcome in outcomes:
            row_ids = manifest.competition.row_ids(outcome.study_id)
            file.write(_lines(_rows(outcome, row_ids, submission.probs(outcome.study_id), prior)))


def _lines(rows: Iterable[Iterable[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "backslashreplace")


def _rows(outcome: Outcome, row_ids: list[str], probs: Probs, prior: Probs) -> Iterator[list[Any]]:
    problems = [*unreached_levels(outcome), *own_problems(outcome)]
    for row_id, finding in zip(row_ids, findings_of(outcome, probs, prior), strict=True):
        cells = [row_id, str(outcome.study_id), *_cells(finding, problems)]
        yield [csv_cell(value) for value in cells]


def _cells(finding: Finding, problems: list[str]) -> list[Any]:
    return [
        finding.condition,
        finding.level,
        finding.side or "",
        "prior" if finding.is_prior else "predicted",
        *(format(value, ".8f") for value in finding.probs),
        finding.grade,
        finding.likeliest_grade,
        *_place(finding),
        _joined(warnings_of(finding, problems)),
    ]


def _place(finding: Finding) -> list[Any]:
    point = finding.point
    if point is None:
        return [""] * 10
    heights = ["" if value is None else f"{value:.4f}" for value in (point.confidence, point.probability)]
    xyz = ["", "", ""] if point.xyz_mm is None else [f"{value:.3f}" for value in point.xyz_mm]
    frame = "" if point.frame is None else point.frame
    place = [f"{point.x_px:.3f}", f"{point.y_px:.3f}", *xyz]
    return [point.series_id, point.instance_number, frame, *place, *heights]


def _joined(lines: list[str]) -> str:
    shown = [line[:_WARNING_LENGTH] for line in lines[:_WARNINGS_LISTED]]
    if len(lines) > len(shown):
        shown.append(f"and {len(lines) - len(shown)} more")
    return "; ".join(shown)
