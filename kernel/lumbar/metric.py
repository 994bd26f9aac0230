"""The competition's score: three sample-weighted log losses and one for any severe canal, averaged.

It is the competition's metric, with probabilities clipped to the machine epsilon as scikit-learn's ``log_loss`` clips
them; written with numpy only, for speed and because the kernel ships without scikit-learn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lumbar.errors import CohortError
from lumbar.io.tables import is_blank, parse_id, read_typed_table
from lumbar.io.text import printable
from lumbar.labels import COLUMNS, GROUPS, LEVELS, SEVERITIES, SEVERITY_COLUMNS, SEVERITY_WEIGHTS

_EPS = float(np.finfo(np.float64).eps)  # scikit-learn clips probabilities to [eps, 1 - eps]
_SEVERE = SEVERITIES.index("Severe")
_WEIGHTS = np.array((*SEVERITY_WEIGHTS, 0.0))  # by class index; the last, index -1, is "no label": it does not count

Prior = dict[str, NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Score:
    """The metric and its four terms; lower is better. ``total`` is the mean of the other four."""

    total: float
    spinal: float
    foraminal: float
    subarticular: float
    any_severe: float


def score(solution: pd.DataFrame, submission: pd.DataFrame) -> Score:
    """Score a submission as the competition does.

    Args:
        solution: as train.csv: ``study_id`` and the 25 label columns, ``Normal/Mild``, ``Moderate``, ``Severe`` or
            empty. An empty label weighs nothing; other columns are ignored.
        submission: as sample_submission.csv: ``row_id``, ``normal_mild``, ``moderate``, ``severe``, rows in any
            order; each row is divided by its sum. Exactly the solution's 25 rows a study.

    Raises:
        CohortError: wrong columns or rows, values that are not numbers, not finite or negative, a row summing to 0,
            an unknown label, or no label at all in one of the groups.
    """
    study_ids, labels = read_labels(solution)
    return score_arrays(labels, align_submission(submission, study_ids))


def score_arrays(labels: NDArray[np.int64], probs: NDArray[np.float64]) -> Score:
    """Score arrays: ``labels`` (studies, 25), a class index or -1, and ``probs`` (studies, 25, 3), rows summing to 1.

    Raises:
        CohortError: no label at all in one of the groups.
    """
    n_levels = len(LEVELS)
    weights = _WEIGHTS[labels]  # (studies, 25)
    picked = np.take_along_axis(probs, np.maximum(labels, 0)[..., None], axis=2)[..., 0]
    losses = -np.log(np.clip(picked, _EPS, 1.0 - _EPS))
    terms: dict[str, float] = {}
    for group, conditions in GROUPS.items():
        columns = np.concatenate([np.arange(n_levels) + c * n_levels for c in conditions])
        terms[group] = _mean(losses[:, columns], weights[:, columns], group)

    is_severe = (labels[:, :n_levels] == _SEVERE).any(axis=1)
    any_severe = np.clip(probs[:, :n_levels, _SEVERE].max(axis=1), _EPS, 1.0 - _EPS)
    loss = -np.where(is_severe, np.log(any_severe), np.log1p(-any_severe))
    terms["any_severe"] = _mean(loss, weights[:, :n_levels].max(axis=1), "any severe canal")
    return Score(total=float(np.mean(list(terms.values()))), **terms)


def _mean(losses: NDArray[np.float64], weights: NDArray[np.float64], group: str) -> float:
    total = float(weights.sum())
    if total == 0.0:
        raise CohortError(f"solution: found no {group} label, expected at least one")
    return float((losses * weights).sum() / total)


def read_labels(solution: pd.DataFrame) -> tuple[list[int], NDArray[np.int64]]:
    """Read a solution: study ids, and labels (studies, 25) as class index 0..2, -1 where empty.

    Labels are in the order of ``labels.COLUMNS``.

    Raises:
        CohortError: a column is missing, a study appears twice, a study_id is no number, or a label is unknown.
    """
    missing = [name for name in ("study_id", *COLUMNS) if name not in solution.columns]
    if missing:
        raise CohortError(f"solution: {_some(missing)} missing, expected study_id and the 25 label columns")
    study_ids: list[int] = []
    for value in solution["study_id"]:
        try:
            study_ids.append(parse_id(value))
        except ValueError:
            cell = "blank" if is_blank(value) else repr(printable(value, 40))
            raise CohortError(
                f"solution: found a study_id that is no number, expected integers ({cell} in row {len(study_ids) + 2})"
            ) from None
    if len(set(study_ids)) != len(study_ids):
        twice = pd.Series(study_ids)
        raise CohortError(f"solution: study {twice[twice.duplicated()].iloc[0]} appears twice, expected once")
    text = solution[list(COLUMNS)].to_numpy(dtype=object)
    labels = np.full(text.shape, -1, dtype=np.int64)
    known = pd.isna(text) | (text == "")
    for index, severity in enumerate(SEVERITIES):
        labels[text == severity] = index
        known |= text == severity
    for row, column in np.argwhere(~known):  # blanks around a label, or instead of one
        value = str(text[row, column]).strip()
        labels[row, column] = SEVERITIES.index(value) if value in SEVERITIES else -1
        known[row, column] = value in SEVERITIES or is_blank(value)
    if not known.all():
        row, column = np.argwhere(~known)[0]
        raise CohortError(
            f"solution: study {study_ids[row]} {COLUMNS[column]}: found {printable(text[row, column], 40)!r}, "
            f"expected one of {', '.join(SEVERITIES)} or nothing"
        )
    return study_ids, labels


def align_submission(submission: pd.DataFrame, study_ids: list[int]) -> NDArray[np.float64]:
    """Read a submission: probabilities (studies, 25, 3) in the order of ``study_ids``, each row divided by its sum.

    Raises:
        CohortError: as ``score``.
    """
    wanted = ["row_id", *SEVERITY_COLUMNS]
    columns = [printable(name, 40) for name in submission.columns]
    if missing := [name for name in wanted if name not in columns]:
        raise CohortError(f"submission: {_some(missing)} missing, expected {', '.join(wanted)}")
    if len(columns) != len(wanted):
        raise CohortError(f"submission: found columns {', '.join(columns)}, expected {', '.join(wanted)} alone")
    order = _row_order(submission["row_id"].astype(str).to_list(), study_ids)
    values = _numbers(submission)
    return np.asarray(values[order].reshape(len(study_ids), len(COLUMNS), len(SEVERITIES)))


def _row_order(row_ids: list[str], study_ids: list[int]) -> NDArray[np.int64]:
    expected = [f"{study_id}_{column}" for study_id in study_ids for column in COLUMNS]
    index = pd.Index(row_ids)
    if not index.is_unique:
        raise CohortError(f"submission: {_some(list(index[index.duplicated()]))} found twice, expected each row once")
    order = index.get_indexer(pd.Index(expected))
    if (order < 0).any():
        missing = [name for name, place in zip(expected, order, strict=True) if place < 0]
        raise CohortError(f"submission: {_some(missing)} missing, found {len(row_ids)} rows, expected {len(expected)}")
    if len(row_ids) != len(expected):
        extra = sorted(set(row_ids) - set(expected))
        raise CohortError(f"submission: unexpected rows {_some(extra)}, found {len(row_ids)}, expected {len(expected)}")
    return np.asarray(order, dtype=np.int64)


def _numbers(submission: pd.DataFrame) -> NDArray[np.float64]:
    """Values (rows, 3) divided by each row's sum."""
    columns = list(SEVERITY_COLUMNS)
    try:
        values = submission[columns].to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError):
        raise CohortError("submission: found text among the probabilities, expected numbers") from None
    total = values.sum(axis=1, keepdims=True)
    for is_bad, wanted in (
        (~np.isfinite(values), "finite"),
        (values < 0, "0 or more"),
        (np.repeat(~(total > 0) | ~np.isfinite(total), 3, axis=1), "a row sum above 0"),
    ):
        if is_bad.any():
            row, column = np.argwhere(is_bad)[0]
            name = printable(submission["row_id"].iloc[int(row)], 80)
            raise CohortError(f"submission: row {name}: {columns[column]} is {values[row, column]}, expected {wanted}")
    return np.asarray(values / total)


def _some(names: list[str]) -> str:
    """The first name, and how many more there are."""
    first = printable(names[0], 80)
    return first if len(names) == 1 else f"{first} and {len(names) - 1} more"


def uniform_table() -> Prior:
    """The table with a third for every class of every column."""
    return {column: np.full(3, 1.0 / 3.0) for column in COLUMNS}


def prior_table(train: pd.DataFrame) -> Prior:
    """Class frequencies (3,) of each of the 25 columns, weighted 1/2/4: the best constant under the metric.

    A class that a column does not have counts as a tenth of a case, so that no probability is 0.

    Raises:
        CohortError: as for a solution.
    """
    _, labels = read_labels(train)
    table: Prior = {}
    for index, column in enumerate(COLUMNS):
        counts = np.array([(labels[:, index] == k).sum() for k in range(3)], dtype=np.float64)
        weighted = np.maximum(counts, 0.1) * np.array(SEVERITY_WEIGHTS)
        table[column] = weighted / weighted.sum()
    return table


def constant_submission(study_ids: list[int], table: Mapping[str, NDArray[np.float64]]) -> pd.DataFrame:
    """A submission that gives every study the same probabilities."""
    rows = np.array([table[column] for column in COLUMNS])  # (25, 3)
    frame = pd.DataFrame(np.tile(rows, (len(study_ids), 1)), columns=list(SEVERITY_COLUMNS))
    frame.insert(0, "row_id", [f"{study_id}_{column}" for study_id in study_ids for column in COLUMNS])
    return frame


def read_table(path: str | Path, name: str) -> pd.DataFrame:
    """Read a CSV file as a frame, column names in lower case; ``name`` says in messages what was expected.

    ``study_id`` and probabilities become numbers; cells that are no number stay text, and empty cells are missing.

    Raises:
        CohortError: the file is missing, empty or not a CSV table.
    """
    return read_typed_table(path, name, ("row_id", *SEVERITY_COLUMNS, "study_id", *COLUMNS))
