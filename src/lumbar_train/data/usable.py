"""What of a cohort can be trained on: studies of which some series could be read. The rest is dropped and counted."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from lumbar.errors import CohortError
from lumbar_train.data.studies import Studies
from lumbar_train.data.tables import Cohort
from lumbar_train.files import write_text

FILE = "dropped.json"
SUSPECT_COUNTS = "denoise/counts.json"
CONSISTENCY_COUNTS = "consistency/counts.json"
NO_SERIES = "studies: no readable series"
NO_SLICE = "series: no usable slice"


def drop_unreadable(cohort: Cohort, studies: Studies) -> Cohort:
    """The cohort without the studies of which no series could be read; those and unusable series are counted.

    A study without images can teach nothing and be scored by nothing but the prior, so it takes no part in a run.

    Raises:
        CohortError: no study is left.
    """
    gone, n_series = [], 0
    by_study = cohort.series.groupby("study_id")["series_id"].apply(set).to_dict()
    for study_id in map(int, cohort.study_ids):
        there = _usable_series(studies, study_id)
        n_series += len({str(k) for k in by_study.get(study_id, ())} - there)
        if not there:
            gone.append(study_id)
    if len(gone) == len(cohort):
        raise CohortError(f"{cohort.root}: none of {len(gone)} studies has a readable series, expected at least one")
    counts = {reason: n for reason, n in ((NO_SERIES, len(gone)), (NO_SLICE, n_series)) if n}
    return cohort.without(gone, counts)


def _usable_series(studies: Studies, study_id: int) -> set[str]:
    if study_id not in studies:  # no series of it is described, or no folder of those is there
        return set()
    return {stack.series_id for stacks in studies.study(study_id).series.values() for stack in stacks}


def write_dropped(run: Path, whole: Cohort, kept: Cohort) -> None:
    """Note in a run folder what was left out and why, for its report."""
    gone = np.setdiff1d(whole.study_ids, kept.study_ids).tolist()
    write_text(run / FILE, json.dumps({"studies": gone, "counts": kept.dropped}, indent=1) + "\n")


def read_dropped(run: Path) -> dict[str, Any]:
    """``studies`` that a run left out, and ``counts`` by reason; both empty where nothing is noted."""
    path = run / FILE
    noted = json.loads(path.read_text("utf-8")) if path.is_file() else {"studies": [], "counts": {}}
    for more in (run / CONSISTENCY_COUNTS, run / SUSPECT_COUNTS):
        if more.is_file():
            noted["counts"] |= json.loads(more.read_text("utf-8"))
    return dict(noted)


def write_suspect_counts(run: Path, counts: dict[str, int]) -> None:
    """Write by reason how many labels the second training left out, for the report of a run that is resumed."""
    write_text(run / SUSPECT_COUNTS, json.dumps({reason: n for reason, n in counts.items() if n}, indent=1) + "\n")


def as_trained(run: Path, cohort: Cohort) -> Cohort:
    """A cohort as a run saw it: without the studies that it left out, with its counts of what was dropped."""
    noted = read_dropped(run)
    known = set(cohort.study_ids.tolist())
    out = cohort.without(_among(noted["studies"], known), {})
    out.dropped.update(noted["counts"])
    return out


def _among(study_ids: Iterable[int], known: set[int]) -> list[int]:
    return [int(study_id) for study_id in study_ids if int(study_id) in known]
