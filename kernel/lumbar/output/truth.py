"""Labels and marked points of the studies predicted, where they lie beside the images: a rehearsal's, or train.csv.

Read for the report alone, once an answer stands, by the process that collects the answers. Nothing that predicts
imports this module.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lumbar.errors import LumbarError
from lumbar.io.tables import parse_id, parse_number
from lumbar.io.text import PublicText, one_line
from lumbar.labels import (
    CONDITIONS,
    LEFT_FORAMINAL,
    LEFT_SUBARTICULAR,
    LEVELS,
    RIGHT_FORAMINAL,
    RIGHT_SUBARTICULAR,
    SPINAL,
    condition_from_title,
    level_from_title,
)
from lumbar.metric import read_labels, read_table

log = logging.getLogger("lumbar")

LABEL_FILES = {"test": "solution.csv", "train": "train.csv"}
KIND_OF_CONDITION = {  # → kind of view and side
    SPINAL: ("canal", None),
    LEFT_FORAMINAL: ("left foramen", "left"),
    RIGHT_FORAMINAL: ("right foramen", "right"),
    LEFT_SUBARTICULAR: ("axial", "left"),
    RIGHT_SUBARTICULAR: ("axial", "right"),
}


@dataclass(frozen=True, slots=True)
class TruePoint:
    """A marked point: ``kind`` as of a view, place in pixels of the slice ``instance_number``."""

    series_id: str
    instance_number: int
    kind: str
    level: str
    side: str | None
    x_px: float
    y_px: float


@dataclass(frozen=True)
class Truth:
    """By study: grades (25,) as class index, -1 where not labelled, and the marked points."""

    grades: Mapping[int | str, NDArray[np.int64]] = field(default_factory=dict)
    points: Mapping[int | str, list[TruePoint]] = field(default_factory=dict)


def read_truth(root: Path, split: str, study_ids: Sequence[int | str]) -> Truth:
    """What the folder knows of the studies; a table that is missing or cannot be read leaves its part empty."""
    wanted = set(study_ids)
    grades: dict[int | str, NDArray[np.int64]] = {}
    points: dict[int | str, list[TruePoint]] = {}
    labels, coordinates = root / LABEL_FILES[split], root / f"{split}_label_coordinates.csv"
    try:
        if labels.is_file():
            ids, rows = read_labels(read_table(labels, "the labels"))
            grades = {study_id: row for study_id, row in zip(ids, rows, strict=True) if study_id in wanted}
        if coordinates.is_file():
            points = _points(read_table(coordinates, "the marked points"), wanted)
    except (LumbarError, ValueError, KeyError) as error:
        log.warning("the report shows no truth: %s", one_line(error, PublicText([root])))
    return Truth(grades, points)


def _points(table: pd.DataFrame, wanted: set[int | str]) -> dict[int | str, list[TruePoint]]:
    """The points of a table like train_label_coordinates.csv; a row that says nothing usable is left out."""
    points: dict[int | str, list[TruePoint]] = {}
    columns = ("study_id", "series_id", "instance_number", "condition", "level", "x", "y")
    for study_id, series_id, number, condition, level, x, y in zip(*(table[name] for name in columns), strict=True):
        try:
            study = parse_id(study_id)
            kind, side = KIND_OF_CONDITION[condition_from_title(str(condition))]
            place = LEVELS.index(level_from_title(str(level)))
            point = TruePoint(
                str(parse_id(series_id)), parse_id(number), kind, LEVELS[place], side, parse_number(x), parse_number(y)
            )
        except (ValueError, KeyError, TypeError):
            continue
        if study in wanted:
            points.setdefault(study, []).append(point)
    return points


def column_of(kind: str, side: str | None, level: str) -> int:
    """Index into the 25 columns of what a view of a kind shows of a level."""
    condition = next(name for name, place in KIND_OF_CONDITION.items() if place == (kind, side))
    return CONDITIONS.index(condition) * len(LEVELS) + LEVELS.index(level)
