"""What a chain is and what it returns: the types that a run, its workers and its report share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lumbar.budget import Effort
from lumbar.bundle.manifest import Manifest
from lumbar.stages.points import Localisation

Probs = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawn slice for the report; ``png`` is the content of a PNG file."""

    title: str
    png: bytes


@dataclass
class Outcome:
    """What became of one study. ``probs`` is (25, 3), or None where its prior stays."""

    study_id: int
    probs: Probs | None = None
    problems: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    sagittal_points: list[dict[str, Any]] = field(default_factory=list)
    axial_levels: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    failure: str = ""  # one line that says why the prior stays
    is_device_lost: bool = False  # the device does not respond any more: the worker must be replaced

    @property
    def status(self) -> str:
        """``predicted`` or ``prior``, as in the run record."""
        return "prior" if self.probs is None else "predicted"


@dataclass
class StudyResult:
    """Probabilities (25, 3) in the order of ``labels.COLUMNS``, the points behind them, and seconds by stage."""

    probs: Probs
    localisation: Localisation
    problems: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Chain:
    """The functions of a chain. Each must be importable by name, so that a worker process finds it.

    Attributes:
        read: (root, split, study_id, descriptions, workers) → a study.
        load: (manifest, device) → the networks, which passed their probes.
        predict: (study, networks, prior, effort) → a result with ``probs``, ``localisation``, ``problems`` and
            ``seconds`` (``StudyResult``).
        draw: (study, result) → pictures for the report.
        uses_gpu: whether the networks run on a GPU where there is one.
    """

    read: Callable[[Path, str, int, pd.DataFrame, int | None], Any]
    load: Callable[[Manifest, str], Any]
    predict: Callable[[Any, Any, Probs, Effort], Any]
    draw: Callable[[Any, Any], list[Picture]]
    uses_gpu: bool = False


def draw_nothing(_study: Any, _result: Any) -> list[Picture]:
    """Return no pictures."""
    return []
