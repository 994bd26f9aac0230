"""One study on the report's page: its pictures with the points on them, and next to each grade its picture."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lumbar.bundle.manifest import Manifest
from lumbar.chains.contract import Mark, Outcome, Picture, Probs, SliceView
from lumbar.competitions.contract import Competition
from lumbar.competitions.registry import DEFAULT
from lumbar.io.file_names import file_stem
from lumbar.labels import LEVELS, SEVERITIES, level_title
from lumbar.output.findings import NO_POINT, NOT_GRADED, rows_at_prior
from lumbar.output.findings_table import normalised_prior
from lumbar.output.notes import Distance, Distances, distances_of, is_note, notes_of
from lumbar.output.truth import TruePoint, Truth, column_of
from lumbar.stages.point_probability import NEAR_MM

PROBLEMS_LISTED = 12
_DETAIL_MM = {"canal": 56.0, "left foramen": 56.0, "right foramen": 56.0, "axial": 70.0}  # side of a grade's picture
_GRADE_COLUMNS = (  # kind of view, and the sides graded on it
    ("canal", (None,)),
    ("left foramen", ("left",)),
    ("right foramen", ("right",)),
    ("axial", ("left", "right")),
)
_FLIPPED = 0.66  # further right than this share of a sagittal picture, a label stands to the left of its cross
_PNG = b"\x89PNG"


@dataclass(frozen=True)
class _Answer:
    """A study's answer beside what is known of it.

    Attributes:
        probs: (rows, values), the rows that stand.
        is_prior: (rows,), which of them no network graded.
        grades: (25,), true classes; None where they are not known.
        points: true points.
        distances: of the points from them.
    """

    probs: Probs
    is_prior: NDArray[np.bool_]
    grades: NDArray[np.int64] | None
    points: Sequence[TruePoint]
    distances: Distances

    def cell(self, index: int, sums_to_one: bool = True) -> dict[str, Any]:
        """One row (values,) of the answer in per cent, with its true grade where that is known."""
        row, grade = self.probs[index], -1 if self.grades is None else int(self.grades[index])
        return {
            "percent": _whole(row * 100.0) if sums_to_one else [round(float(value) * 100) for value in row],
            "is_prior": bool(self.is_prior[index]),
            "truth": SEVERITIES[grade].lower() if grade >= 0 else "",
            "truth_index": grade,
        }


@dataclass(frozen=True)
class _Shown:
    """A picture with its name on the page."""

    name: str
    picture: Picture
    view: SliceView


def study_block(
    outcome: Outcome, probs: Probs, manifest: Manifest, truth: Truth, n_problems: int = PROBLEMS_LISTED
) -> dict[str, Any]:
    """What the page shows of a study.

    Args:
        outcome: with its pictures; those with a view are drawn with their points, others as they are.
        probs: (rows, values), the rows that stand.
        manifest: of the bundle, whose competition lays out the plain table of the answer.
        truth: grades and points of all studies, as far as they are known.
        n_problems: how many of the study's problems are listed.
    """
    anchor = file_stem(outcome.study_id)
    points = truth.points.get(outcome.study_id, [])
    is_prior = rows_at_prior(outcome, probs, normalised_prior(manifest))
    distances = distances_of(outcome.pictures, points)
    answer = _Answer(probs, is_prior, truth.grades.get(outcome.study_id), points, distances)
    shown = [
        _Shown(f"p{anchor}-{number}", picture, picture.view)
        for number, picture in enumerate(outcome.pictures)
        if picture.view is not None
    ]
    return {
        "study_id": outcome.study_id,
        "anchor": anchor,
        "status": outcome.status,
        "localised": _localised(outcome) if manifest.competition_name == DEFAULT else "",
        "n_prior": int(is_prior.sum()),
        "n_rows": len(is_prior),
        "notes": notes_of(outcome, is_prior, distances, what_of(manifest)),
        "problems": _problems(outcome, n_problems),
        "rows": _rows(answer, manifest.competition),
        "pictures": [_plain(picture) for picture in outcome.pictures if picture.view is None],
        "images": [_image(one) for one in shown],
        "figures": [_figure(one, points) for one in shown if one.view.is_main and one.view.kind != "axial"],
        "axials": [_figure(one, points) for one in shown if one.view.kind == "axial"],
        "extras": [_figure(one, points) for one in shown if not one.view.is_main],
        "levels": [_level_row(level, shown, answer) for level in LEVELS] if shown else [],
        "has_truth": answer.grades is not None or bool(points),
    }


def what_of(manifest: Manifest) -> str:
    """What the pages call the answers of a competition."""
    return "grades" if manifest.competition_name == DEFAULT else "answers"


def _localised(outcome: Outcome) -> str:
    n_canal = len({p["level"] for p in outcome.sagittal_points if p["side"] is None}.difference(outcome.not_seen))
    n_foraminal = len({(p["level"], p["side"]) for p in outcome.sagittal_points if p["side"] is not None})
    n_axial = len({level["level"] for level in outcome.axial_levels})
    placed = f" ({len(outcome.not_seen)} more placed by the others)" if outcome.not_seen else ""
    return f" · {n_canal} of 5 levels on sagittal{placed}, {n_axial} of 5 on axial images; {n_foraminal} of 10 foramina"


def _problems(outcome: Outcome, n_problems: int) -> list[str]:
    lines = [line for line in outcome.problems if not is_note(line)]  # they stand above the pictures
    return lines[:n_problems] + ([f"and {len(lines) - n_problems} more"] if len(lines) > n_problems else [])


def within(pictures: Sequence[Picture], room_bytes: int) -> list[Picture]:
    """The first pictures that fit into so many bytes of a page, in which their data stand as base64."""
    kept, size = [], 0
    for picture in pictures:
        size += 4 * len(picture.png) // 3
        if size > room_bytes:
            break
        kept.append(picture)
    return kept


# ---- pictures -----------------------------------------------------------------------------------------------------


def _plain(picture: Picture) -> dict[str, Any]:
    return {"title": picture.title, "data": _data_url(picture), "is_sagittal": picture.title.startswith("Sagittal")}


def _data_url(picture: Picture) -> str:
    kind = "png" if picture.png.startswith(_PNG) else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture.png).decode()}"


def _image(shown: _Shown) -> dict[str, Any]:
    width, height = shown.view.size_px
    return {"name": shown.name, "data": _data_url(shown.picture), "width": width, "height": height}


def _figure(shown: _Shown, points: Iterable[TruePoint]) -> dict[str, Any]:
    """A whole picture with its crosses, circles and labels."""
    width, height = shown.view.size_px
    labels = [_label(mark, shown.view) for mark in shown.view.marks]
    return {
        "name": shown.name,
        "title": shown.picture.title,
        "width": width,
        "height": height,
        "edges": shown.view.edges,
        "heading": level_title(shown.view.level) if shown.view.level else "",
        "away": None if shown.view.distance_mm is None else f"{shown.view.distance_mm:.1f}",
        "crosses": [_cross(mark) for mark in shown.view.marks],
        "circles": _circles(shown.view, points),
        "labels": labels,
    }


def _label(mark: Mark, view: SliceView) -> dict[str, Any]:
    width, height = view.size_px
    is_axial = view.level is not None
    is_to_left = mark.x < width / 2 if is_axial else mark.x > _FLIPPED * width
    return {
        "text": str(mark.side)[0].upper() if is_axial else level_title(mark.level),
        "level": mark.level,
        "left": round(100 * mark.x / width, 2),
        "top": round(100 * mark.y / height, 2),
        "is_to_left": is_to_left,
        "other_slice": mark.other_slice,
    }


def _cross(mark: Mark) -> dict[str, Any]:
    side = f" {mark.side}" if mark.side else ""
    text = f"{level_title(mark.level)}{side}"
    if mark.other_slice is not None:
        text += f", on slice {mark.other_slice}"
    if mark.probability is not None:
        text += f"; within {NEAR_MM:.0f} mm of the true point with {mark.probability:.0%}"
    elif mark.confidence is not None:
        text += f"; height of the heatmap's peak {mark.confidence:.2f} (0 to 1, no probability)"
    return {
        "x": round(mark.x, 1),
        "y": round(mark.y, 1),
        "level": mark.level,
        "is_on_slice": mark.other_slice is None,
        "text": text,
    }


def _circles(view: SliceView, points: Iterable[TruePoint], level: str | None = None) -> list[dict[str, Any]]:
    """The true points of a view's kind on its series; of one level where it is named."""
    circles = []
    for point in points:
        if point.kind != view.kind or point.series_id != view.series_id or level not in (None, point.level):
            continue
        if view.level not in (None, point.level):
            continue
        is_on_slice = point.instance_number == view.instance_number
        x, y = view.place(point.x_px, point.y_px)
        if (
            0 <= x <= view.size_px[0]
            and 0 <= y <= view.size_px[1]
            and (is_on_slice or view.is_main or level is not None)
        ):
            title = level_title(point.level)
            circles.append(
                {
                    "x": round(x, 1),
                    "y": round(y, 1),
                    "is_on_slice": is_on_slice,
                    "text": f"truth, {title}, slice {point.instance_number}",
                    "label": title if view.level is None else "",
                    "left": round(100 * x / view.size_px[0], 2),
                    "top": round(100 * y / view.size_px[1], 2),
                    "is_to_left": x <= _FLIPPED * view.size_px[0],  # on the side that its cross's label leaves free
                }
            )
    return circles


# ---- grades -------------------------------------------------------------------------------------------------------


def _rows(answer: _Answer, competition: Competition) -> list[dict[str, Any]]:
    """The answer alone, as the competition lays it out."""
    n_columns = len(competition.grid_columns)
    cells = [answer.cell(index, competition.sums_to_one) for index in range(len(answer.probs))]
    return [
        {"title": title, "cells": cells[number * n_columns : (number + 1) * n_columns]}
        for number, title in enumerate(competition.grid_rows)
    ]


def _whole(percent: NDArray[np.float64]) -> list[int]:
    """Three percentages as whole numbers that sum to 100: the rest goes to the largest remainders."""
    floors = np.floor(percent).astype(int)
    for index in np.argsort(floors - percent)[: 100 - int(floors.sum())]:
        floors[index] += 1
    return [int(value) for value in floors]


def _level_row(level: str, shown: Sequence[_Shown], answer: _Answer) -> dict[str, Any]:
    """One level: for each kind of view the picture around its point, and the grades read from it."""
    cells = []
    for kind, sides in _GRADE_COLUMNS:
        graded = [{"side": side or "", **answer.cell(column_of(kind, side, level))} for side in sides]
        away = [d for side in sides if (d := answer.distances.get((kind, level, side))) is not None and d.is_far]
        cells.append(
            {
                "kind": kind,
                "detail": _detail(kind, level, shown, answer.points),
                "without": _without_point([cell["is_prior"] for cell in graded]),
                "grades": graded,
                "away": _away(max(away, key=lambda distance: distance.mm)) if away else "",
            }
        )
    return {"title": level_title(level), "level": level, "cells": cells}


def _away(distance: Distance) -> str:
    """Where a point lies that is far from the truth."""
    if not distance.is_on_slice:  # the distance in its plane says nothing then
        return f"slice of {level_title(distance.level)} by the truth"
    return f"{distance.mm:.0f} mm from the truth"


def _without_point(is_prior: Sequence[bool]) -> str:
    """What stands in the place of a picture: where the grades beside it come from."""
    if all(is_prior):
        return f"{NO_POINT}; {NOT_GRADED}"
    return NO_POINT if any(is_prior) else f"{NO_POINT}: the grade comes from other images"


def _detail(kind: str, level: str, shown: Sequence[_Shown], points: Sequence[TruePoint]) -> dict[str, Any] | None:
    """The part of a picture around a level's point, on the very slice that the point lies on; None without one."""
    for one in shown:
        marks = [mark for mark in one.view.marks if mark.level == level and mark.other_slice is None]
        if one.view.kind != kind or not marks:
            continue
        width, height = one.view.size_px
        side = min(_DETAIL_MM[kind] / one.view.mm_px, width, height)
        middle_x, middle_y = np.mean([(mark.x, mark.y) for mark in marks], axis=0)
        left = float(np.clip(middle_x - side / 2, 0, width - side))
        top = float(np.clip(middle_y - side / 2, 0, height - side))
        return {
            "name": one.name,
            "title": one.picture.title,
            "box": f"{left:.1f} {top:.1f} {side:.1f} {side:.1f}",
            "crosses": [_cross(mark) for mark in marks],
            "circles": _circles(one.view, points, level),
            "slice": one.view.instance_number,
        }
    return None
