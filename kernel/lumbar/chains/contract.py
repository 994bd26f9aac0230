"""What a chain is and what it returns: the types that a run, its workers and its report share."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lumbar.bundle.manifest import Manifest
from lumbar.stages.points import Localisation
from lumbar.workers.effort import Level

# Of the points of each level, RGB; told apart by colour-blind readers too (Okabe and Ito).
LEVEL_COLOURS = {
    "l1_l2": (86, 180, 233),
    "l2_l3": (0, 190, 140),
    "l3_l4": (240, 228, 66),
    "l4_l5": (240, 160, 20),
    "l5_s1": (224, 130, 190),
}

Probs = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Mark:
    """A point of one level on a picture.

    Attributes:
        level: such as ``l4_l5``.
        side: ``left``, ``right``, or None for a canal point.
        x, y: place in picture pixels from the picture's upper left corner.
        other_slice: instance number of the slice that the point lies on, where that is not the slice shown.
        confidence: peak of the network's heatmap in 0..1, which is no probability.
        probability: that the point lies near the true one; None where the bundle does not tell it.
    """

    level: str
    side: str | None
    x: float
    y: float
    other_slice: int | None = None
    confidence: float | None = None
    probability: float | None = None


@dataclass(frozen=True, slots=True)
class SliceView:
    """Which part of which slice a picture shows, and the points on it.

    Attributes:
        kind: one of ``VIEW_KINDS``.
        level: the level of an axial slice; None for a sagittal one.
        is_main: the one picture of its kind (and level) that gives the overview; others only show single points.
        size_px: width and height of the picture.
        origin_px, scale: a slice's pixel centre (x, y) lies at ``((x + 0.5, y + 0.5) - origin_px) * scale``.
        mm_px: millimetres a picture pixel.
        edges: what of the patient lies beyond the left and the right edge, such as ``("R", "L")``.
        distance_mm: of an axial slice, how far its plane lies from the level's canal point.
    """

    kind: str
    series_id: str
    instance_number: int
    frame: int | None
    size_px: tuple[int, int]
    origin_px: tuple[float, float]
    scale: tuple[float, float]
    mm_px: float
    edges: tuple[str, str]
    marks: tuple[Mark, ...] = ()
    level: str | None = None
    is_main: bool = True
    distance_mm: float | None = None

    def place(self, x_px: float, y_px: float) -> tuple[float, float]:
        """A pixel centre of the slice as a place on the picture."""
        return (
            (x_px + 0.5 - self.origin_px[0]) * self.scale[0],
            (y_px + 0.5 - self.origin_px[1]) * self.scale[1],
        )


VIEW_KINDS = ("canal", "left foramen", "right foramen", "axial")


class Drawn(enum.Flag):
    """Which pictures of a study are drawn."""

    NOTHING = 0
    PAGE = 1  # for its page in the report
    FILES = 2  # PNG files with the points drawn in


@dataclass(frozen=True, slots=True)
class Picture:
    """A slice as a picture.

    Attributes:
        title: what it shows.
        png: a whole PNG or JPEG file.
        view: where the points lie: the report's page draws them itself. None where the picture needs none.
        name: of its file, without the study's and the extension, such as ``sagittal_t2``; may be empty.
    """

    title: str
    png: bytes
    view: SliceView | None = None
    name: str = ""


@dataclass
class Outcome:
    """What became of one study. ``probs`` is (rows, values) of its competition, or None where its prior stays."""

    study_id: int | str
    probs: Probs | None = None
    problems: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    sagittal_points: list[dict[str, Any]] = field(default_factory=list)
    axial_levels: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)  # for the report's page
    picture_files: list[Picture] = field(default_factory=list)  # PNG files
    failure: str = ""  # one line that says why the prior stays
    is_device_lost: bool = False  # the device does not respond any more: the worker must be replaced
    is_final: bool = True  # False: time, memory or a worker was missing, so that another try may end better
    inputs: list[dict[str, Any]] | None = None  # what the record says of its series; None for other competitions
    files: str = ""  # fingerprint of the study's files as they were before they were read
    left_out: list[str] = field(default_factory=list)  # members of the ensemble that did not run, for lack of time
    numbering: dict[str, float] | None = None  # probabilities of the numbering, where the bundle tells them
    not_seen: list[str] = field(default_factory=list)  # levels that were placed by the others

    @property
    def status(self) -> str:
        """``predicted`` or ``prior``, as in the run record."""
        return "prior" if self.probs is None else "predicted"


@dataclass
class StudyResult:
    """Probabilities (rows, values) in the competition's order, the points behind them, and seconds by stage.

    For the lumbar spine (25, 3), rows in the order of ``labels.COLUMNS``; ``localisation`` is empty for others.
    ``axial_mm`` has ``left_mm`` and ``right_mm`` (patient space) for each of the localisation's axial levels.
    """

    probs: Probs
    localisation: Localisation = field(default_factory=Localisation)
    problems: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    axial_mm: list[dict[str, list[float]]] = field(default_factory=list)


@dataclass(frozen=True)
class Chain:
    """The functions of a chain. Each must be importable by name, so that a worker process finds it.

    Attributes:
        read: (root, split, study_id, table, workers) → a study: an object with ``study_id`` and ``problems`` (lines
            for log and report). The id is a whole number, or a text where a folder without tables is read.
            Where it has ``series`` (name → stacks) and they hold nothing, it keeps its prior. ``table`` holds
            the rows of the competition's table of series or studies.
        load: (manifest, device) → the networks, which passed their probes.
        predict: (study, networks, prior, effort) → a ``StudyResult``; ``prior`` and its ``probs`` have the shape (rows,
            values) of the competition.
        draw: (study, result) → pictures for the report.
        uses_gpu: whether the networks run on a GPU where there is one.
        draw_files: (study, result) → PNG pictures with the points drawn in, each with a name; None: those of ``draw``.
        gpu_studies: how many studies ``predict`` and ``draw`` may have open at the same time on a GPU, each in a thread
            of its own; more than 1 only where these functions allow it.
    """

    read: Callable[[Path, str, Any, pd.DataFrame, int | None], Any]
    load: Callable[[Manifest, str], Any]
    predict: Callable[[Any, Any, Probs, Level], Any]
    draw: Callable[[Any, Any], list[Picture]]
    uses_gpu: bool = False
    draw_files: Callable[[Any, Any], list[Picture]] | None = None
    gpu_studies: int = 1

    def studies_at_once(self, device: str) -> int:
        """How many studies a worker may have in its networks at the same time."""
        return self.gpu_studies if device.startswith("cuda") else 1


def draw_nothing(_study: Any, _result: Any) -> list[Picture]:
    """Return no pictures."""
    return []
