"""What a study's answer says of each condition, level and side, with the point that it was graded at.

The table, the markups and the report's index are made from it (docs/findings-table.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lumbar.chains.contract import Outcome, Probs
from lumbar.labels import (
    CONDITIONS,
    LEVELS,
    SAGITTAL_T1,
    SAGITTAL_T2,
    SEVERITIES,
    SEVERITY_WEIGHTS,
    SIDES,
    SPINAL,
    level_title,
)

NEAR_MM = 3.0  # an axial slice further away than this does not cut the disc's middle: the row says so
NOT_GRADED = "not graded from images: the prior"  # of an answer that no network gave: table and report say the same
NO_POINT = "no point found"
_PRIOR_TOLERANCE = 1e-9
_AXIAL = "subarticular_stenosis"


@dataclass(frozen=True, slots=True)
class Point:
    """Where a finding was graded.

    Attributes:
        series_id, instance_number, frame: the slice; ``frame`` only where its file has several.
        x_px, y_px: 0-based pixel centre (column, row) in that slice.
        xyz_mm: in patient space (LPS); None where the record does not have it.
        confidence: 0 to 1, no probability; None where the record does not have it.
        probability: that it lies near the true point; None where the bundle does not tell it.
        distance_mm: of an axial slice from the level's canal point.
    """

    series_id: str
    instance_number: int
    frame: int | None
    x_px: float
    y_px: float
    xyz_mm: tuple[float, float, float] | None
    confidence: float | None
    distance_mm: float | None = None
    probability: float | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One of a study's 25 answers.

    Attributes:
        condition: without its side, such as ``neural_foraminal_narrowing``.
        level: such as ``l4_l5``.
        side: ``left``, ``right``, or None for the canal.
        probs: (3,) normal/mild, moderate, severe, as in the submission.
        is_prior: no network graded it: its probabilities are the prior's.
        point: where it was graded; None where no point was found.
    """

    condition: str
    level: str
    side: str | None
    probs: tuple[float, ...]
    is_prior: bool
    point: Point | None

    @property
    def grade(self) -> str:
        """The grade of highest expected benefit: of probability times the competition's weight (1, 2, 4)."""
        return SEVERITIES[int(np.argmax(np.array(self.probs) * SEVERITY_WEIGHTS))]

    @property
    def likeliest_grade(self) -> str:
        """The grade of the highest probability."""
        return SEVERITIES[int(np.argmax(self.probs))]


def rows_at_prior(outcome: Outcome, probs: Probs, prior: Probs) -> NDArray[np.bool_]:
    """Which of a study's answers are the prior, since no network graded them; table and report both ask here.

    Args:
        outcome: what became of the study.
        probs: (rows, values), the rows that stand.
        prior: (rows, values), normalised as they are.

    Returns:
        (rows,); all of them where the study was not predicted.
    """
    if outcome.probs is None:
        return np.ones(len(probs), dtype=np.bool_)
    return np.asarray(np.abs(np.asarray(probs) - prior).max(axis=1) <= _PRIOR_TOLERANCE)


def findings_of(outcome: Outcome, probs: Probs, prior: Probs) -> list[Finding]:
    """The findings of one study, in the order of ``labels.COLUMNS``.

    Args:
        outcome: what became of the study, with its points.
        probs: (25, 3), the rows that stand.
        prior: (25, 3), normalised as they are.
    """
    is_prior = rows_at_prior(outcome, probs, prior)
    findings = []
    for index, (name, level) in enumerate((name, level) for name in CONDITIONS for level in LEVELS):
        condition, side = _split(name)
        findings.append(
            Finding(
                condition,
                level,
                side,
                tuple(float(value) for value in probs[index]),
                bool(is_prior[index]),
                _point(outcome, condition, level, side),
            )
        )
    return findings


def _split(name: str) -> tuple[str, str | None]:
    """``left_subarticular_stenosis`` as condition and side."""
    side, _, rest = name.partition("_")
    return (rest, side) if side in SIDES else (name, None)


def _point(outcome: Outcome, condition: str, level: str, side: str | None) -> Point | None:
    """The point of a finding: on the series that its condition is read from, the most confident, the nearest slice."""
    if condition == _AXIAL:
        slices = [entry for entry in outcome.axial_levels if entry["level"] == level]
        nearest = min(slices, key=lambda entry: abs(entry["distance_mm"]), default=None)
        return None if nearest is None else _axial_point(nearest, str(side))
    points = [p for p in outcome.sagittal_points if p["level"] == level and p["side"] == side]
    wanted = SAGITTAL_T2 if condition == SPINAL else SAGITTAL_T1
    # A record of an older version does not tell the descriptions: then any series counts.
    points = [p for p in points if p.get("description", wanted) == wanted]
    best = max(points, key=lambda p: p["confidence"], default=None)
    return None if best is None else _as_point(best, best["x_px"], best["y_px"], best["xyz_mm"])


def _axial_point(entry: Mapping[str, Any], side: str) -> Point:
    x_px, y_px = entry[f"{side}_px"]
    return _as_point(entry, x_px, y_px, entry.get(f"{side}_mm"))


def _as_point(entry: Mapping[str, Any], x_px: float, y_px: float, xyz_mm: Sequence[float] | None) -> Point:
    distance = entry.get("distance_mm")
    return Point(
        str(entry["series_id"]),
        int(entry["instance_number"]),
        entry.get("frame"),
        float(x_px),
        float(y_px),
        None if xyz_mm is None else (float(xyz_mm[0]), float(xyz_mm[1]), float(xyz_mm[2])),
        entry.get("confidence"),
        None if distance is None else abs(float(distance)),
        entry.get("probability"),
    )


def warnings_of(finding: Finding, problems: Sequence[str]) -> list[str]:
    """What a reader of one finding should know: about its own row, then the study's problems that concern its level.

    Args:
        finding: the row.
        problems: of the whole study; a line that names other levels alone is left out.
    """
    lines = []
    if finding.is_prior:
        lines.append(NOT_GRADED)
    if finding.point is None:
        lines.append(NO_POINT)
    elif finding.point.distance_mm is not None and finding.point.distance_mm > NEAR_MM:
        lines.append(f"nearest axial slice {finding.point.distance_mm:.1f} mm from the level")
    return lines + [line for line in problems if _concerns(line, finding.level)]


def _concerns(line: str, level: str) -> bool:
    named = [name for name in LEVELS if name in line or level_title(name) in line]
    return not named or level in named
