"""What a reader of a study must know before its grades: doubtful numbering, distance from the truth, the prior."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lumbar.chains.contract import Mark, Outcome, Picture, SliceView
from lumbar.labels import LEVELS, titles_of
from lumbar.output.truth import TruePoint
from lumbar.stages.points import NOT_SEEN, NUMBERING_DOUBT

FAR_MM = 10.0  # a point further from the truth is at another place; neighbouring discs are 30 to 45 mm apart


@dataclass(frozen=True, slots=True)
class Note:
    """A line above a study's pictures; ``is_alarm`` where its grades may belong to other levels."""

    text: str
    is_alarm: bool = False


@dataclass(frozen=True, slots=True)
class Distance:
    """How far a point lies from the true one.

    Attributes:
        mm: in the plane of the picture.
        level: of the true point that lies nearest, of the same kind.
        is_on_slice: of an axial point, whether its slice is nearest to its own level's; True for sagittal ones.
    """

    mm: float
    level: str
    is_on_slice: bool = True

    @property
    def is_far(self) -> bool:
        """Whether the point lies at another place."""
        return self.mm > FAR_MM or not self.is_on_slice


Place = tuple[str, str, str | None]  # kind of view, level and side
Distances = Mapping[Place, Distance]


def own_problems(outcome: Outcome) -> list[str]:
    """The problems of a study, without its id in front."""
    return [line.removeprefix(f"study {outcome.study_id}: ") for line in outcome.problems]


def is_note(line: str) -> bool:
    """Whether a problem stands above the pictures: the numbering of the levels is in doubt, or one was not seen."""
    return NUMBERING_DOUBT in line or NOT_SEEN in line


def notes_of(outcome: Outcome, is_prior: NDArray[np.bool_], distances: Distances, what: str = "grades") -> list[Note]:
    """The notes of one study, the gravest first.

    Args:
        outcome: what became of the study.
        is_prior: (rows,), which of its answers are the prior (``findings.rows_at_prior``).
        distances: of its points from the truth, where that is known (``distances_of``).
        what: the answers are called.
    """
    told = [line for line in own_problems(outcome) if is_note(line)]
    notes = [Note(line, True) for line in told if NUMBERING_DOUBT in line]
    notes += [Note(line, True) for line in far_from_truth(distances)]
    if outcome.probs is not None and is_prior.any():
        notes.append(Note(f"{int(is_prior.sum())} of {len(is_prior)} {what} are the prior: not graded from images"))
    notes += [Note(line) for line in told if NUMBERING_DOUBT not in line]
    return notes + [Note(line) for line in unreached_levels(outcome)]


def lines_of(outcome: Outcome, is_prior: NDArray[np.bool_], distances: Distances, what: str = "grades") -> list[str]:
    """All that is to be told of one study, its notes first (``notes_of``), then its other problems."""
    lines = [note.text for note in notes_of(outcome, is_prior, distances, what)]
    return lines + [line for line in own_problems(outcome) if not is_note(line)]


def unreached_levels(outcome: Outcome) -> list[str]:
    """A line on the levels found on sagittal images that no axial slice reaches; none where there is none at all."""
    reached = {entry["level"] for entry in outcome.axial_levels}
    seen = {point["level"] for point in outcome.sagittal_points if point["side"] is None}
    missing = [level for level in LEVELS if level in seen and level not in reached]
    return [f"axial slices do not reach {titles_of(missing)}"] if reached and missing else []


def far_from_truth(distances: Distances) -> list[str]:
    """A line on the points that lie far from the truth, or on a wrong axial slice, where there are any."""
    far = {place: distance for place, distance in distances.items() if distance.is_far}
    if not far:
        return []
    elsewhere = sum(distance.level != level for (_, level, _), distance in far.items())
    guess = " (one level off?)" if 2 * elsewhere > len(far) else ""
    where = f"more than {FAR_MM:.0f} mm from the truth, or on another level's slice"
    return [f"{len(far)} of {len(distances)} points lie {where}{guess}"]


def distances_of(pictures: Iterable[Picture], points: Iterable[TruePoint]) -> dict[Place, Distance]:
    """How far each point on a study's pictures lies from the true point of its level, where that is on the same series.

    Args:
        pictures: of the study; those without a view are left out.
        points: its true points.
    """
    distances: dict[Place, Distance] = {}
    known = list(points)
    for view in (picture.view for picture in pictures if picture.view is not None):
        same = [point for point in known if point.kind == view.kind and point.series_id == view.series_id]
        for mark in view.marks:
            place = (view.kind, mark.level, mark.side)
            distance = _distance(view, mark, [point for point in same if point.side == mark.side])
            if distance is not None and (place not in distances or mark.other_slice is None):
                distances[place] = distance
    return distances


def _distance(view: SliceView, mark: Mark, points: list[TruePoint]) -> Distance | None:
    own = next((point for point in points if point.level == mark.level), None)
    if own is None:
        return None
    away_mm = {point.level: _away_mm(view, mark, point) for point in points}
    if view.kind != "axial":
        return Distance(away_mm[mark.level], min(away_mm, key=lambda level: away_mm[level]))
    # Millimetres between axial slices are not known here, but levels are many slices apart.
    slices = {point.level: abs(point.instance_number - view.instance_number) for point in points}
    nearest = min(slices, key=lambda level: (slices[level], level != mark.level))
    return Distance(away_mm[mark.level], nearest, nearest == mark.level)


def _away_mm(view: SliceView, mark: Mark, point: TruePoint) -> float:
    x, y = view.place(point.x_px, point.y_px)
    return math.hypot(x - mark.x, y - mark.y) * view.mm_px
