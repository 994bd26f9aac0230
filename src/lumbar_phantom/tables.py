"""The rows that one study adds to the cohort's tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(slots=True)
class StudyTables:
    """Rows of the cohort's tables for one study.

    Attributes:
        study_id: of the study.
        case_labels: (5, 5) grades as in train.csv, -1 where a label is missing.
        narrowing: (5, 5) true narrowing, 0..1.
        grades: (5, 5) grades, none missing.
        descriptions: rows of the table of series.
        coordinates: rows of the table of label coordinates.
        truth: rows of truth.parquet.
        contrasts: rows of truth_contrasts.csv.
    """

    study_id: int
    case_labels: np.ndarray
    narrowing: np.ndarray
    grades: np.ndarray
    descriptions: list[tuple[Any, ...]] = field(default_factory=list)
    coordinates: list[tuple[Any, ...]] = field(default_factory=list)
    truth: list[tuple[Any, ...]] = field(default_factory=list)
    contrasts: list[tuple[Any, ...]] = field(default_factory=list)
