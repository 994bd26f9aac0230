"""Tears in knee MR: two findings a study, one row a study, the mean of two log losses. An invented competition.

Every process imports this module, so it stays light: no torch, no numba.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from lumbar.competitions.contract import Competition
from lumbar.errors import CohortError

FINDINGS = ("acl_tear", "meniscus_tear")


def score(solution: pd.DataFrame, submission: pd.DataFrame) -> dict[str, float]:
    """The mean log loss of each finding, and their mean as the total; lower is better."""
    answers = submission.set_index(submission["study_id"].astype(int))
    if missing := set(solution["study_id"]) - set(answers.index):
        raise CohortError(f"submission: found no row of study {min(missing)}, expected one of each study")
    terms = {}
    for finding in FINDINGS:
        p = answers.loc[solution["study_id"], finding].to_numpy(dtype=float).clip(1e-15, 1 - 1e-15)
        y = solution[finding].to_numpy(dtype=float)
        terms[finding] = float(-(y * np.log(p) + (1 - y) * np.log(1 - p)).mean())
    return {"total": float(np.mean(list(terms.values()))), **terms}


COMPETITION = Competition(
    slug="knee-mr-tears",
    title="Knee",
    values=FINDINGS,
    score=score,
    id_column="study_id",
    sums_to_one=False,
    images="{split}",
    table="{split}_studies.csv",
    solution="test_labels.csv",
    inputs=("train_labels.csv",),
    hidden_studies=300,
    hours=6.0,
    time_limit="5.5h",
)
