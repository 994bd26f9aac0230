"""Folds by study, stratified by severity, and the guard that no study sits on both sides of a split."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from lumbar import labels
from lumbar.errors import CohortError
from lumbar.io.tables import csv_text, parse_id, shown
from lumbar_train.data.tables import Cohort, read_cells
from lumbar_train.errors import LeakError
from lumbar_train.files import write_text

FULL = -1  # the reference solution's number of the fit on all data; -2, -3, … are the same fit with other seeds


def is_full(fold: int) -> bool:
    """Whether a fit has seen all data, with whatever seed."""
    return fold <= FULL


def fold_name(fold: int) -> str:
    """``fold0`` …, ``full``, and ``full2``, ``full3`` … for the same fit with other seeds."""
    if fold == FULL:
        return "full"
    return f"full{-fold}" if is_full(fold) else f"fold{fold}"


def strata(cohort: Cohort, n_folds: int) -> np.ndarray:
    """Class of each study for stratification: (N,) int64.

    A severe canal decides a quarter of the metric, so it comes first; within each half, thirds of the mean severity
    weight over the labelled columns. A class too small to reach every fold is joined to its neighbour.
    """
    values = cohort.labels
    spinal = values[:, : len(labels.LEVELS)]
    is_severe = (spinal == 2).any(axis=1)
    is_known = values >= 0
    weights = np.where(is_known, np.array([*labels.SEVERITY_WEIGHTS, 0.0])[values], 0.0)
    load = weights.sum(axis=1) / np.maximum(is_known.sum(axis=1), 1)
    thirds = np.zeros(len(cohort), dtype=np.int64)
    for flag in (False, True):
        rows = np.flatnonzero(is_severe == flag)
        ranks = np.argsort(np.argsort(load[rows], kind="stable"), kind="stable")
        thirds[rows] = ranks * 3 // max(len(rows), 1)
    classes = is_severe * 3 + thirds
    for small in range(5, 0, -1):  # towards the milder neighbour; the mildest may still be small, see below
        if 0 < (classes == small).sum() < n_folds:
            classes[classes == small] = small - 1
    mildest = classes == classes.min()
    if mildest.sum() < n_folds and not mildest.all():
        classes[mildest] = np.unique(classes)[1]
    return np.asarray(classes, dtype=np.int64)


def make_folds(cohort: Cohort, n_folds: int, seed: int) -> pd.DataFrame:
    """Assign every study to one of ``n_folds`` folds: columns ``study_id, fold`` (0-based).

    Raises:
        CohortError: fewer studies than folds, or fewer than two folds.
    """
    if not 2 <= n_folds <= len(cohort):
        raise CohortError(
            f"{cohort.root}: {n_folds} folds of {len(cohort)} studies, expected 2 folds or more, each filled"
        )
    from sklearn.model_selection import StratifiedKFold  # a second to import; loaders and ranks of a fit never split

    splitter = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    classes = strata(cohort, n_folds)
    folds = np.zeros(len(cohort), dtype=np.int64)
    for fold, (_, held_out) in enumerate(splitter.split(np.zeros(len(cohort)), classes)):
        folds[held_out] = fold
    return pd.DataFrame({"study_id": cohort.study_ids, "fold": folds})


def write_folds(path: Path, folds: pd.DataFrame) -> None:
    """Write ``folds.csv`` atomically."""
    write_text(path, csv_text(folds[["study_id", "fold"]]))


def read_folds(path: Path | str, cohort: Cohort, left_out: Iterable[int] = ()) -> pd.DataFrame:
    """Read ``folds.csv`` or any table with ``study_id`` and ``fold``, such as ``train_folded_v1.csv``.

    Args:
        path: the table.
        cohort: every study of it must have one fold.
        left_out: studies that training dropped; the table may name them.

    Raises:
        CohortError: not a table, a column absent, a fold that is no number, a study unknown, absent, or named twice.
        LeakError: a study in two folds.
    """
    path = Path(path)
    folds = _parsed_folds(path)
    folds = folds[~folds["study_id"].isin(list(left_out))]
    check_folds(folds, cohort, path)
    return folds.sort_values("study_id", ignore_index=True)


def read_own_folds(path: Path) -> pd.DataFrame:
    """A run's own ``folds.csv``, without the cohort that it belongs to.

    Raises:
        CohortError, LeakError: as ``read_folds``, but for what only the cohort tells.
    """
    folds = _parsed_folds(path)
    _check_one_fold_each(folds, path)
    _check_several(folds, path)
    return folds.sort_values("study_id", ignore_index=True)


def _parsed_folds(path: Path) -> pd.DataFrame:
    frame = read_cells(path, ("study_id", "fold"))
    out = {}
    for column in ("study_id", "fold"):
        values = []
        for row, cell in zip(frame.index, frame[column], strict=True):
            try:
                values.append(parse_id(cell))
            except ValueError:
                text = shown(cell) if str(cell).strip() else "blank"
                raise CohortError(f"{path}: row {row}: {column} is {text}, expected 0, 1, 2, ...") from None
        out[column] = np.array(values, dtype=np.int64)
    return pd.DataFrame(out)


def check_folds(folds: pd.DataFrame, cohort: Cohort, path: Path | str = "folds") -> None:
    """Refuse folds that do not place each study of the cohort exactly once.

    Raises:
        CohortError, LeakError: as in ``read_folds``.
    """
    _check_one_fold_each(folds, path)
    unknown = np.setdiff1d(folds["study_id"].to_numpy(), cohort.study_ids)
    if unknown.size:
        raise CohortError(f"{path}: study {unknown[0]} is not in the cohort ({unknown.size} unknown studies)")
    absent = np.setdiff1d(cohort.study_ids, folds["study_id"].to_numpy())
    if absent.size:
        raise CohortError(f"{path}: study {absent[0]} of the cohort has no fold ({absent.size} studies without)")
    _check_several(folds, path)


def _check_one_fold_each(folds: pd.DataFrame, path: Path | str) -> None:
    n_folds = folds.groupby("study_id")["fold"].nunique()
    if (n_folds > 1).any():
        study = n_folds.index[n_folds > 1][0]
        named = sorted(folds.loc[folds["study_id"] == study, "fold"].unique())
        raise LeakError(f"{path}: study {study} is in folds {', '.join(map(str, named))}, expected one")
    twice = folds.loc[folds["study_id"].duplicated(), "study_id"]
    if len(twice):
        raise CohortError(f"{path}: study {twice.iloc[0]} has several rows, expected one ({len(twice)} rows too many)")


def _check_several(folds: pd.DataFrame, path: Path | str) -> None:
    if folds["fold"].nunique() < 2:
        raise CohortError(f"{path}: found one fold, expected two or more, so that each is predicted by others")


def split(folds: pd.DataFrame, fold: int) -> tuple[np.ndarray, np.ndarray]:
    """Study ids to train on and to hold out; ``FULL`` trains on all and holds out none.

    Raises:
        CohortError: no study is in the fold.
    """
    ids = folds["study_id"].to_numpy(np.int64)
    if is_full(fold):
        return ids, ids[:0]
    is_held_out = folds["fold"].to_numpy() == fold
    if not is_held_out.any():
        known = ", ".join(map(str, sorted(folds["fold"].unique())))
        raise CohortError(f"fold {fold}: no study is in it; found folds {known}")
    return ids[~is_held_out], ids[is_held_out]


def check_split(train: Iterable[int], held_out: Iterable[int]) -> None:
    """Refuse a study on both sides, however it came there (a copy made by upsampling before the split, for one).

    Raises:
        LeakError: naming the first such study.
    """
    both = sorted(set(map(int, train)) & set(map(int, held_out)))
    if both:
        raise LeakError(f"study {both[0]} is both trained on and held out ({len(both)} such studies), expected none")


def with_seeds(folds: list[int], n_seeds: int) -> list[int]:
    """The fit on all data as several, one for each seed: -1, -2, and so on.

    Raises:
        CohortError: fewer than one.
    """
    if n_seeds < 1:
        raise CohortError(f"--full-seeds: found {n_seeds}, expected 1 or more")
    return folds + [FULL - k for k in range(1, n_seeds) if FULL in folds]


def parse_folds(text: str | None, folds: pd.DataFrame) -> list[int]:
    """``"0,1,full"`` as fold numbers, ``full`` as ``FULL``; without a text all folds of the table, then ``FULL``.

    Raises:
        CohortError: a word that is neither ``full`` nor a fold of the table, or one named twice.
    """
    known = {str(fold): int(fold) for fold in sorted(folds["fold"].unique())} | {"full": FULL}
    if text is None:
        return list(known.values())
    words = [word.strip() for word in text.split(",") if word.strip()]
    for word in words:
        if word not in known:
            raise CohortError(f"--folds: found {word!r}, expected of {', '.join(known)}")
    if not words or len(set(words)) != len(words):
        raise CohortError(f"--folds: found {text!r}, expected each fold once, of {', '.join(known)}")
    return [known[word] for word in words]
