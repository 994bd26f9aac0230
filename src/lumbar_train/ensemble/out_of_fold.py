"""The out-of-fold answers of runs, under guard, and the studies that all of them have answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lumbar.errors import CohortError
from lumbar.io.text import counted
from lumbar.labels import COLUMNS
from lumbar.metric import align_submission
from lumbar_train.data.folds import read_own_folds
from lumbar_train.data.tables import LABELS, Cohort, read_labels
from lumbar_train.data.usable import read_dropped
from lumbar_train.ensemble.guards import check_same_folds, check_seen
from lumbar_train.files import read_object
from lumbar_train.outputs.oof import check_oof_frame
from lumbar_train.outputs.store import read_frame

Probs = NDArray[np.float64]
_ANSWERS = ("aggregator/oof.parquet", "oof.parquet")  # of a chain, of a baseline
_OF_STUDIES = "*/oof.parquet", "localise/*.parquet"  # tables of single stages, whose rows name their fold


@dataclass(frozen=True)
class OutOfFold:
    """What a run says of the studies that it held out.

    Attributes:
        name: of the run.
        path: its folder.
        fold_of: fold by study, of all studies that it was trained on.
        dropped: studies of its cohort that it left out.
        answers: the table of its answers, rows of a submission.
        answered: the studies that have rows there.
    """

    name: str
    path: Path
    fold_of: Mapping[int, int]
    dropped: frozenset[int]
    answers: pd.DataFrame
    answered: frozenset[int]

    def probs(self, study_ids: Sequence[int]) -> Probs:
        """Probabilities (N, 25, 3) of studies that are answered."""
        wanted = set(study_ids)
        rows = [int(str(row).split("_", 1)[0]) in wanted for row in self.answers["row_id"]]
        return align_submission(self.answers[rows], list(study_ids))


def read_out_of_fold(name: str, path: Path) -> OutOfFold:
    """A run's out-of-fold answers, once they are known not to leak.

    Raises:
        CohortError: no run, no such answers, or a whole fold without any.
        LeakError: a row, or a network, that does not hold the study out.
    """
    if not (path / "folds.csv").is_file():
        what = "a file" if path.is_file() else "no folds.csv"
        raise CohortError(f"{path}: found {what}, expected a run folder, since the others are compared out of fold")
    table = next((path / place for place in _ANSWERS if (path / place).is_file()), None)
    if table is None:
        raise CohortError(
            f"{path}: found no out-of-fold answers ({_ANSWERS[0]}), expected a run with all its folds; go on with the "
            "command that began it and --resume"
        )
    folds = read_own_folds(path / "folds.csv")
    fold_of = {int(study): int(fold) for study, fold in zip(folds["study_id"], folds["fold"], strict=True)}
    _check_tables(path, folds)
    check_seen(path, fold_of)
    answers = read_frame(table)
    answers = answers[[column for column in answers.columns if column not in ("study_id", "fold")]]
    answered = _answered(table, answers, fold_of)
    return OutOfFold(name, path, fold_of, frozenset(map(int, read_dropped(path)["studies"])), answers, answered)


def _check_tables(path: Path, folds: pd.DataFrame) -> None:
    for pattern in _OF_STUDIES:
        for table in sorted(path.glob(pattern)):
            frame = pd.read_parquet(table)
            if {"study_id", "fold"} <= set(frame.columns):
                check_oof_frame(frame, folds, table)


def _answered(table: Path, answers: pd.DataFrame, fold_of: Mapping[int, int]) -> frozenset[int]:
    try:
        answered = frozenset(int(str(row).split("_", 1)[0]) for row in answers["row_id"])
    except (KeyError, ValueError):
        raise CohortError(f"{table}: found no row_id such as 123_{COLUMNS[0]}, expected one a row") from None
    unknown = sorted(answered - fold_of.keys())
    if unknown:
        raise CohortError(f"{table}: found study {unknown[0]}, which folds.csv does not name, expected none such")
    for fold in sorted(set(fold_of.values())):
        studies = [study for study, own in fold_of.items() if own == fold]
        if not answered & set(studies):
            raise CohortError(
                f"{table}: found no answer for fold {fold} ({counted(len(studies), 'study')}), expected all folds; "
                f"train it with --folds {fold} and --resume"
            )
    return answered


def common_studies(runs: Sequence[OutOfFold]) -> tuple[list[int], dict[str, int]]:
    """The studies that every run has answered, ascending, and how many of the others' each run lacks.

    Raises:
        LeakError: the runs hold a study out in different folds.
        CohortError: they are of different cohorts, or no study is left.
    """
    names = [run.name for run in runs]
    check_same_folds(names, {run.name: run.fold_of for run in runs}, {run.name: run.path for run in runs})
    for run in runs[1:]:
        _check_same_cohort(runs[0], run)
    every = frozenset[int]().union(*(run.answered for run in runs))
    common = frozenset(every).intersection(*(run.answered for run in runs))
    if not common:
        raise CohortError(f"{', '.join(names)}: found no study that all have answered, expected one or more")
    return sorted(common), {run.name: len(every - run.answered) for run in runs if every - run.answered}


def _check_same_cohort(first: OutOfFold, other: OutOfFold) -> None:
    """Refuse a run of other studies: what one has and the other lacks must be among those that the other dropped.

    A run on the folds of another (``--folds FILE``) never sees what that one dropped, so that a subset is enough too.
    """
    prints = [read_object(run.path / "recipe.json").get("cohort") for run in (first, other)]
    if prints[0] is not None and prints[0] == prints[1]:
        return
    have = [run.fold_of.keys() for run in (first, other)]
    strange = [sorted(have[1 - k] - have[k] - run.dropped) for k, run in enumerate((first, other))]
    if all(strange):
        raise CohortError(
            f"{other.path}: found study {strange[0][0]}, which {first.name} does not have ({len(strange[0])} such), "
            f"and not {strange[1][0]} ({len(strange[1])} such), expected runs of one cohort"
        )


def labelled(runs: Mapping[str, Path], study_ids: Sequence[int], cohort: Cohort | None) -> Cohort:
    """The labels of studies: of a cohort that was given, or as the runs have noted them, which must agree.

    Args:
        runs: their folders by name; those of older versions have noted none.
        study_ids: ascending.
        cohort: what was given.

    Raises:
        CohortError: the cohort or all runs lack a study, or two runs have noted different labels.
    """
    if cohort is not None:
        return _cohort(cohort.root, cohort.split, study_ids, cohort.labels[cohort.rows(study_ids)])
    known: dict[int, NDArray[Any]] = {}
    owner: dict[int, str] = {}
    for name, path in runs.items():
        if not (path / LABELS).is_file():
            continue
        for study, row in zip(*read_labels(path / LABELS), strict=True):
            if not np.array_equal(known.setdefault(int(study), row), row):
                raise CohortError(
                    f"{path / LABELS}: found other labels of study {study} than in {owner[int(study)]}, expected the "
                    "same; add --data ROOT to choose"
                )
            owner.setdefault(int(study), name)
    absent = [study for study in study_ids if study not in known]
    if absent:
        raise CohortError(
            f"{', '.join(runs)}: found no labels of study {absent[0]} ({len(absent)} such) in {LABELS}, expected those "
            "of all; add --data ROOT"
        )
    root = next(iter(runs.values()))
    return _cohort(root, "train", study_ids, np.stack([known[study] for study in study_ids]))


def _cohort(root: Path, split: str, study_ids: Sequence[int], labels: NDArray[Any]) -> Cohort:
    return Cohort(root, split, np.asarray(study_ids, np.int64), labels, pd.DataFrame(), pd.DataFrame())


def prior_by_fold(cohort: Cohort, fold_of: Mapping[int, int]) -> Probs:
    """For each study the prior of the folds that do not hold it: (N, 25, 3)."""
    folds = np.array([fold_of[int(study)] for study in cohort.study_ids])
    out = np.zeros((len(folds), len(COLUMNS), 3))
    for fold in np.unique(folds):
        out[folds == fold] = cohort.prior(cohort.study_ids[folds != fold])
    return out
