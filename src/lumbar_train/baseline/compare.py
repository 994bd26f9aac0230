"""A chain's out-of-fold answers beside a baseline's, and the floor of a synthetic cohort."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lumbar.errors import CohortError
from lumbar.metric import align_submission
from lumbar_train.baseline.floor import floor_probs
from lumbar_train.data.folds import read_folds
from lumbar_train.data.tables import Cohort
from lumbar_train.outputs.store import read_frame

Probs = NDArray[np.float64]
_SEVERITIES = ["normal_mild", "moderate", "severe"]


def chain_oof(run: Path, cohort: Cohort, folds: pd.DataFrame) -> Probs:
    """A chain run's out-of-fold answers (N, 25, 3).

    Raises:
        CohortError: there are none, or the run has other studies or other folds.
    """
    chain_fold = read_folds(run / "folds.csv", cohort).set_index("study_id")["fold"]
    own_fold = folds.set_index("study_id")["fold"]
    differing = [int(study) for study in own_fold.index if int(chain_fold[study]) != int(own_fold[study])]
    if differing:
        raise CohortError(
            f"{run / 'folds.csv'}: study {differing[0]} is in another fold than here ({len(differing)} such), expected "
            f"the same folds: train the baseline with --folds {run / 'folds.csv'}"
        )
    frame = read_frame(run / "aggregator" / "oof.parquet")[["row_id", *_SEVERITIES]]
    answered = {int(row.split("_", 1)[0]) for row in frame["row_id"]}
    absent = [int(study) for study in cohort.study_ids if int(study) not in answered]
    if absent:
        raise CohortError(f"{run}: study {absent[0]} has no out-of-fold answer ({len(absent)} without), expected all")
    return align_submission(frame, list(map(int, cohort.study_ids)))


def with_floor(answers: Mapping[str, Probs], root: Path, split: str, study_ids: Iterable[int]) -> dict[str, Probs]:
    """The answers and, on a synthetic cohort, the floor."""
    floor = floor_probs(root, split, list(map(int, study_ids)))
    return dict(answers) if floor is None else {**answers, "floor": floor}
