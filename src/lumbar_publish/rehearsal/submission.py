"""Checks of submissions for rehearsal and publishing; ``lumbar.output.submission`` knows what a valid one is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lumbar.competitions.contract import Competition
from lumbar.competitions.lumbar_spine import COMPETITION as LUMBAR_SPINE
from lumbar.errors import CohortError

if TYPE_CHECKING:  # pandas is imported once there is a submission to check
    import pandas as pd


def check_submission(path: Path, sample: Path | None = None, competition: Competition = LUMBAR_SPINE) -> pd.DataFrame:
    """Read and check a submission against the competition's sample; None asks for whole studies only.

    Raises:
        CohortError: what is wrong, with the file's name.
    """
    from lumbar.competitions.tables import read_answer, require_columns
    from lumbar.output.submission import read_row_ids, validate

    if sample is not None:
        require_columns(sample, read_answer(sample, "a sample submission", competition), competition)
        return validate(path, read_row_ids(sample, competition), competition)
    expected = [row_id for study in study_ids(path, competition) for row_id in competition.row_ids(study)]
    return validate(path, expected, competition)


def study_ids(path: Path, competition: Competition = LUMBAR_SPINE) -> list[int]:
    """The studies whose rows a table holds, ascending.

    Raises:
        CohortError: no table, or a row name that does not start with a study's number.
    """
    from lumbar.output.submission import read_row_ids

    heads = {competition.split_row_id(row_id)[0] for row_id in read_row_ids(path, competition)}
    wrong = sorted(head for head in heads if not head.isdigit())
    if wrong or not heads:
        raise CohortError(f"{path}: found {wrong[0] if wrong else 'no rows'}, expected rows that start with a study_id")
    return sorted(map(int, heads))


def largest_difference(a: Path, b: Path, competition: Competition = LUMBAR_SPINE) -> float:
    """Largest difference of any probability between two submissions of the same studies.

    Raises:
        CohortError: not the same rows, or no submissions.
    """
    from lumbar.output.submission import read_row_ids, validate

    expected = read_row_ids(a, competition)
    first, second = (
        validate(path, expected, competition).set_index(competition.id_column).loc[expected] for path in (a, b)
    )
    return float(abs(first.to_numpy(dtype=float) - second.to_numpy(dtype=float)).max())
