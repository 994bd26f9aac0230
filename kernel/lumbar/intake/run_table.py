"""The index as a run takes it: a table of series with their files, and what the record says of each series."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pandas as pd

from lumbar.bundle.manifest import Manifest
from lumbar.intake.by_image import decide_by_images
from lumbar.intake.ids import StudyId
from lumbar.intake.index import Index, IndexedStudy, index_folder
from lumbar.intake.inner_folders import competition_hint
from lumbar.intake.kinds import UNDECIDED
from lumbar.io.tables import FILES, PROBLEMS, SeriesTable

log = logging.getLogger("lumbar")

_LEFT_OUT = "left out"


def series_table(folder: Path, manifest: Manifest, progress: bool = False) -> SeriesTable:
    """Index a folder, and give the table of series of its studies.

    Args:
        folder: any folder of DICOM.
        manifest: of the bundle, whose network tells contrasts that headers leave open.
        progress: say how far it has come.

    Raises:
        CohortError: it holds no study of a lumbar spine by MR.
        ManifestError: the network does not fit this code.
    """
    index = index_folder(folder, progress=progress)
    index.require_usable()
    log.info("%s", index.summary)
    if hint := competition_hint(index, folder):
        log.warning("%s", hint)
    decide_by_images(index, manifest)
    return table_of(index)


def table_of(index: Index) -> SeriesTable:
    """The table of series of a folder: study_id, series_id, series_description and the files of each, as objects.

    ``frame.attrs`` holds lines by study (``PROBLEMS``). Studies that are refused have no row, only a line.
    """
    rows = [
        (study.study_id, series_id, decision.kind, decision.part.files)
        for study in index.usable()
        for series_id, decision in zip(study.series_ids, study.decisions, strict=True)
        if decision.kind and decision.kind != UNDECIDED
    ]
    names = ("study_id", "series_id", "series_description", FILES)
    columns = {name: pd.Series([row[k] for row in rows], dtype=object) for k, name in enumerate(names)}
    frame = pd.DataFrame(columns)
    lines: dict[StudyId | None, list[str]] = {study.study_id: study_lines(study) for study in index.usable()}
    refused = [f"study {study.study_id}: {study.refusal}; left out" for study in index.studies if study.refusal]
    lines[None] = [*index.problems, *refused]
    frame.attrs[PROBLEMS] = {key: some for key, some in lines.items() if some}
    inputs = {study.study_id: study_inputs(study) for study in index.usable()}
    about = {"files": index.n_files, "dicom": index.n_dicom, "seconds": round(index.seconds, 3)}
    return SeriesTable(frame, inputs=inputs, index=about)


def study_inputs(study: IndexedStudy) -> list[dict[str, Any]]:
    """What the record says of a study's series: what each is taken for, why, and with which doubt."""
    return [
        {
            "series_id": str(series_id),
            "slices": decision.part.n_slices,
            "kind": kind_shown(decision.kind),
            "reason": decision.reason,
            "doubt": decision.doubt,
        }
        for series_id, decision in zip(study.series_ids, study.decisions, strict=True)
    ]


def kind_shown(kind: str) -> str:
    """A kind in words."""
    return _LEFT_OUT if not kind else f"{_LEFT_OUT} ({UNDECIDED})" if kind == UNDECIDED else kind


def study_lines(study: IndexedStudy) -> list[str]:
    """The lines about a study: of its files, and of each series that is used in spite of a doubt, or open."""
    lines = list(study.problems)
    for series_id, decision in zip(study.series_ids, study.decisions, strict=True):
        if decision.kind == UNDECIDED:
            lines.append(f"series {series_id}: {decision.reason}; left out")
        elif decision.kind and decision.doubt:
            lines.append(f"series {series_id}: taken as {decision.kind} ({decision.reason}), but {decision.doubt}")
    return lines


def as_text(index: Index) -> str:
    """The index as a table for a terminal: study, series, slices, kind, why."""
    rows = [("study", "series", "slices", "kind", "why")]
    for study in index.studies:
        for number, entry in enumerate(study_inputs(study)):
            why = entry["reason"] + (f" — doubt: {entry['doubt']}" if entry["doubt"] else "")
            rows.append((str(study.study_id) if not number else "", entry["series_id"], str(entry["slices"]),
                         entry["kind"], why))  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row[:4], widths, strict=True)), row[4]]) for row in rows
    ]
    lines += [f"study {study.study_id}: {line}" for study in index.studies for line in study.problems]
    lines += [
        f"study {study.study_id}: {study.refusal}; predict leaves it out" for study in index.studies if study.refusal
    ]
    return "\n".join([*lines, *index.problems, index.summary])
