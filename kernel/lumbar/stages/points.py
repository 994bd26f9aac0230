"""The result of localisation: points in patient space and axial slices by level, as the run record writes them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

Xyz = tuple[float, float, float]
Xy = tuple[float, float]

NUMBERING_DOUBT = "the numbering may be one level off"  # how the warning begins, so that a report knows it
NOT_SEEN = "levels not seen, placed by the others"  # the same of this one


@dataclass(frozen=True)
class SagittalPoint:
    """A canal point (``side`` None) or foraminal point of one level on one sagittal series.

    ``x_px, y_px`` are 0-based pixel centres in the original slice ``instance_number`` (of a multi-frame file its
    ``frame``, from 1); ``xyz_mm`` is LPS and may lie between slices; ``confidence`` is the height of the heatmap's
    peak in 0..1; ``probability`` is that of lying near the true point, None where the bundle does not tell it.
    """

    series_id: str
    level: str
    side: str | None
    instance_number: int
    x_px: float
    y_px: float
    xyz_mm: Xyz
    confidence: float
    stack: int = 0  # index among the study's stacks of that description
    slice_index: int = 0
    description: str = ""
    frame: int | None = None
    probability: float | None = None

    def record(self) -> dict[str, Any]:
        """The point as plain JSON types with the run record's keys; ``probability`` and ``frame`` only where known."""
        return {
            "series_id": self.series_id,
            "description": self.description,
            "level": self.level,
            "side": self.side,
            "instance_number": int(self.instance_number),
            "x_px": round(float(self.x_px), 3),
            "y_px": round(float(self.y_px), 3),
            "xyz_mm": [round(float(value), 3) for value in self.xyz_mm],
            "confidence": round(float(self.confidence), 4),
            **_optional(self.probability, self.frame),
        }


@dataclass(frozen=True)
class AxialLevel:
    """The slice of one axial series nearest to a level, with the left and right subarticular points on it (x, y)."""

    series_id: str
    level: str
    instance_number: int
    distance_mm: float
    left_px: Xy
    right_px: Xy
    confidence: float = 1.0
    stack: int = 0
    slice_index: int = 0
    frame: int | None = None
    probability: float | None = None  # of both points, as of a sagittal point

    def record(self) -> dict[str, Any]:
        """The slice as plain JSON types with the run record's keys; ``probability`` and ``frame`` only where known."""
        return {
            "series_id": self.series_id,
            "level": self.level,
            "instance_number": int(self.instance_number),
            "distance_mm": round(float(self.distance_mm), 3),
            "left_px": [round(float(value), 3) for value in self.left_px],
            "right_px": [round(float(value), 3) for value in self.right_px],
            "confidence": round(float(self.confidence), 4),
            **_optional(self.probability, self.frame),
        }


@dataclass(frozen=True)
class Numbering:
    """Probabilities, summing to 1, that the column of levels lies as it was read, a disc higher or lower, or elsewhere.

    ``one_higher`` is the probability that each level truly lies one disc higher than its points.
    """

    confidence: float
    one_higher: float
    one_lower: float
    elsewhere: float

    def record(self) -> dict[str, float]:
        """The probabilities with the keys of the run record."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


@dataclass
class Localisation:
    """All points of a study. ``levels_mm`` are the fused canal points in patient space, absent levels left out.

    ``numbering`` is None where the bundle does not tell it. Where it is in doubt, ``readings`` holds the points of the
    column one disc higher or lower, each with its probability. ``moved`` says by how many discs the column was moved
    after it was read: -1 is one higher, 1 one lower. ``filled`` are levels that were not seen and lie where the others
    leave them a place.
    """

    sagittal_points: list[SagittalPoint] = field(default_factory=list)
    axial_levels: list[AxialLevel] = field(default_factory=list)
    levels_mm: dict[str, Xyz] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    numbering: Numbering | None = None
    readings: list[tuple[float, Localisation]] = field(default_factory=list)
    moved: int = 0
    filled: list[str] = field(default_factory=list)

    def best(
        self, description: str, level: str, side: str | None, series_id: str | None = None
    ) -> SagittalPoint | None:
        """The most confident point of a kind on a description's series, or on the one named, or None."""
        points = [
            p
            for p in self.sagittal_points
            if p.description == description and p.level == level and p.side == side and series_id in (None, p.series_id)
        ]
        return max(points, key=lambda p: p.confidence) if points else None

    def sagittal_series(self, description: str, level: str | None = None) -> list[str]:
        """The series of a description that show a level, or any level: the order of the study's stacks, each once."""
        shown = [p for p in self.sagittal_points if p.description == description and level in (None, p.level)]
        return list(dict.fromkeys(p.series_id for p in sorted(shown, key=lambda p: p.stack)))

    def axial_series(self, level: str | None = None) -> list[str]:
        """The axial series that show a level (None: any), each once, in the order of the study's stacks."""
        shown = [a for a in self.axial_levels if level in (None, a.level)]
        return list(dict.fromkeys(a.series_id for a in sorted(shown, key=lambda a: a.stack)))

    def axial(self, level: str, series_id: str | None = None) -> AxialLevel | None:
        """The axial slice nearest to a level over all series, or of the one named, or None."""
        levels = [a for a in self.axial_levels if a.level == level and series_id in (None, a.series_id)]
        return min(levels, key=lambda a: abs(a.distance_mm)) if levels else None


def as_xyz(values: Any) -> Xyz:
    """An array of three numbers as a tuple of floats."""
    x, y, z = np.asarray(values, dtype=float)
    return (float(x), float(y), float(z))


def _optional(probability: float | None, frame: int | None) -> dict[str, float]:
    """The keys that not every point has."""
    told = {} if probability is None else {"probability": round(float(probability), 4)}
    return told if frame is None else told | {"frame": int(frame)}
