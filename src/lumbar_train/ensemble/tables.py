"""The tables of an ensemble's run folder: folds, labels, and the out-of-fold outputs of what it joins."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd

from lumbar.errors import CohortError
from lumbar_train.data.folds import write_folds
from lumbar_train.data.tables import LABELS, Cohort, write_labels
from lumbar_train.data.usable import read_dropped, write_dropped
from lumbar_train.ensemble.export import ExternalShipped, Member
from lumbar_train.ensemble.external import read_table
from lumbar_train.ensemble.members import Candidates
from lumbar_train.files import make_folder
from lumbar_train.outputs.store import write_frame

_OF_LOCALISER = (
    "localise/levels.parquet",
    "localise/points.parquet",
    "localise/axial.parquet",
    "sagittal_xy/oof.parquet",
)


def write_tables(part: Path, candidates: Candidates, shipped: list[Member], localiser: Path, whole: Cohort) -> None:
    """Write what the members and the localisers said of studies that they had not seen, and what these studies are.

    Args:
        part: the run folder.
        candidates: with the studies, their folds and their labels.
        shipped: the members that were kept.
        localiser: the run whose localisers ship.
        whole: the cohort, of which the runs may have dropped studies.

    Raises:
        CohortError: the localiser's run lacks a table.
    """
    ids = candidates.cohort.study_ids
    folds = [candidates.fold_of[int(study)] for study in ids]
    write_folds(part / "folds.csv", pd.DataFrame({"study_id": ids, "fold": folds}))
    write_labels(part / LABELS, candidates.cohort)
    gone = sorted(set(whole.study_ids.tolist()) - set(ids.tolist()))
    write_dropped(part, whole, whole.without(gone, dict(read_dropped(localiser)["counts"])))
    for one in shipped:
        source = one.source
        if isinstance(one, ExternalShipped) and not source.classifier:
            write_frame(part / source.name / "oof.parquet", read_table(one.member))
        else:
            _copy(source.table, part / source.name / "oof.parquet")
    for place in _OF_LOCALISER:
        if not (localiser / place).is_file():
            raise CohortError(f"{localiser / place}: not found, expected the localiser's out-of-fold points")
        _copy(localiser / place, part / place)


def _copy(source: Path, target: Path) -> None:
    make_folder(target.parent)
    shutil.copyfile(source, target)
