"""What one study adds to the cohort's tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(slots=True)
class StudyTables:
    """Rows of the cohort's tables for one study."""

    study_id: int
    case_labels: np.ndarray
    narrowing: np.ndarray
    grades: np.ndarray
    descriptions: list[tuple[Any, ...]] = field(default_factory=list)
    coordinates: list[tuple[Any, ...]] = field(default_factory=list)
    truth: list[tuple[Any, ...]] = field(default_factory=list)
