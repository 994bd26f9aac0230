"""The two tables of the truth, which hold the rows of both splits: reading what stands of them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from lumbar.errors import CohortError

CONTRASTS = "truth_contrasts.csv"  # what the table of series does not tell: T2 or STIR, and how far from any sequence
TRUTH = "truth.parquet"
_UNREADABLE = (OSError, ValueError, LookupError, TypeError, NotImplementedError)  # of pandas and pyarrow


def read_truth_file(root: Path, name: str) -> pd.DataFrame | None:
    """The rows of a table of the truth; None where there is no such file.

    Args:
        root: the cohort's folder.
        name: ``CONTRASTS`` or ``TRUTH``.

    Raises:
        CohortError: it is damaged, or no table of studies.
    """
    path = root / name
    if not path.is_file():
        return None
    try:
        rows = pd.read_parquet(path) if name == TRUTH else pd.read_csv(path)
        rows["study_id"].astype("int64")
    except _UNREADABLE:
        raise CohortError(f"{path}: found a damaged file, expected a table with the column study_id") from None
    return rows
