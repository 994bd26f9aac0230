"""Checks of submissions for rehearsal and publishing; ``lumbar.output.submission`` knows what a valid one is."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from lumbar.errors import CohortError
from lumbar.labels import COLUMNS
from lumbar.metric import align_submission, read_table
from lumbar.output.submission import read_row_ids, validate


def check_submission(path: Path, sample: Path | None = None) -> pd.DataFrame:
    """Read and check a submission against ``sample_submission.csv``; None asks for whole studies only.

    Raises:
        CohortError: what is wrong, with the file's name.
    """
    if sample is not None:
        return validate(path, read_row_ids(sample))
    return validate(path, [f"{study}_{column}" for study in study_ids(path) for column in COLUMNS])


def study_ids(path: Path) -> list[int]:
    """The studies whose rows a table holds, ascending.

    Raises:
        CohortError: no table, or a row name that does not start with a study's number.
    """
    heads = {row_id.partition("_")[0] for row_id in read_row_ids(path)}
    wrong = sorted(head for head in heads if not head.isdigit())
    if wrong or not heads:
        raise CohortError(f"{path}: found {wrong[0] if wrong else 'no rows'}, expected rows that start with a study_id")
    return sorted(map(int, heads))


def largest_difference(a: Path, b: Path) -> float:
    """Largest difference of any probability between two submissions of the same studies.

    Raises:
        CohortError: not the same rows, or no submissions.
    """
    studies = study_ids(a)
    first, second = (align_submission(read_table(path, "a submission"), studies) for path in (a, b))
    return float(abs(first - second).max())
