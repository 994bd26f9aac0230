"""Headers grouped to studies, series, and the parts of a series: one plane, one Dixon part, one echo each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from lumbar.dicom.stack import plane_normal
from lumbar.intake import words
from lumbar.intake.headers import ImageHeader
from lumbar.io.text import counted

PLANES = ("sagittal", "coronal", "axial")  # normal along x, y, z (LPS)
_POSITION_MM = 0.5  # slices nearer than this have one position
_SHARED = 0.8  # share of positions that two series at the same place have in common
_TILTED = float(np.cos(np.radians(40.0)))  # a block that leans less from another one belongs to it
_DIXON_TYPES = {
    "opposed phase": {"OP", "OPP_PHASE", "OUT_PHASE", "OPPOSED_PHASE", "OPPOSED", "OUT_OF_PHASE", "OPP"},
    "fat": {"F", "FAT", "FAT_FRACTION", "FF"},
    "water": {"W", "WATER"},
    "in phase": {"IP", "IN_PHASE", "INPHASE", "IN"},
}


@dataclass
class Part:
    """Images of one series that show the same: one plane, one Dixon part, one echo.

    Attributes:
        study: key of the study: StudyInstanceUID, or a folder where that is absent.
        series: key of the series, in the same way.
        headers: of its files, by instance number.
        plane: sagittal, coronal, axial; empty where no file has an orientation.
        dixon: in phase, opposed phase, water or fat; empty for others.
        n_planes: planes that the whole series shows.
    """

    study: str
    series: str
    headers: list[ImageHeader]
    plane: str
    dixon: str
    n_planes: int = 1

    @property
    def first(self) -> ImageHeader:
        """The header that speaks for all: of the slice in the middle."""
        return self.headers[len(self.headers) // 2]

    @property
    def files(self) -> tuple[str, ...]:
        """Paths of its files, by instance number."""
        return tuple(header.path for header in self.headers)

    @cached_property
    def text(self) -> str:
        """All descriptions of the series, for words."""
        return " ; ".join(dict.fromkeys(header.description for header in self.headers))

    @cached_property
    def positions(self) -> frozenset[tuple[int, ...]]:
        """Positions of its slices in steps of 0.5 mm; empty where no file has one."""
        return frozenset(
            tuple(round(value / _POSITION_MM) for value in header.position)
            for header in self.headers
            if header.position is not None
        )

    @property
    def n_slices(self) -> int:
        """Slices, frames of files with several counted each."""
        return sum(header.frames for header in self.headers)

    @property
    def height_mm(self) -> float | None:
        """The field of view along the patient's axis that runs head to foot (in axial images front to back)."""
        header = self.first
        if header.spacing_mm is None or header.orientation is None:
            return None
        row, column = np.array(header.orientation[:3]), np.array(header.orientation[3:])
        axis = 1 if self.plane == "axial" else 2
        sides = header.shape[1] * header.spacing_mm[1] * row, header.shape[0] * header.spacing_mm[0] * column
        return float(max(abs(side[axis]) for side in sides))

    def corners(self) -> np.ndarray:
        """The corners (n, 3) of its slices in patient space, mm; empty where geometry is absent."""
        corners = []
        for header in self.headers:
            if header.position is None or header.orientation is None or header.spacing_mm is None:
                continue
            origin = np.array(header.position)
            across = header.shape[1] * header.spacing_mm[1] * np.array(header.orientation[:3])
            down = header.shape[0] * header.spacing_mm[0] * np.array(header.orientation[3:])
            corners += [origin, origin + across, origin + down, origin + across + down]
        return np.array(corners).reshape(-1, 3)

    def is_at(self, other: Part) -> bool:
        """Whether both parts have the same slices."""
        if not self.positions or not other.positions:
            return self.plane == other.plane and self.n_slices == other.n_slices
        shared = len(self.positions & other.positions)
        return shared >= _SHARED * min(len(self.positions), len(other.positions))


@dataclass
class StudyParts:
    """A study: its parts in the order of their files, and lines about its files."""

    key: str
    parts: list[Part] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def headers(self) -> list[ImageHeader]:
        """Of all its files."""
        return [header for part in self.parts for header in part.headers]


def plane_of(orientation: tuple[float, ...] | None) -> str:
    """The plane of direction cosines, by the axis nearest to the normal; empty where they make no plane."""
    if orientation is None or len(orientation) != 6 or not np.isfinite(orientation).all():
        return ""
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    if np.linalg.norm(np.cross(row, column)) < 0.1:
        return ""
    return PLANES[int(np.argmax(np.abs(plane_normal(row, column))))]


def dixon_of(header: ImageHeader) -> str:
    """The Dixon part that a file shows: in phase, opposed phase, water, fat; empty for other acquisitions."""
    terms = {term.replace("-", "_").replace(" ", "_") for term in header.image_type[2:]}
    for name, known in _DIXON_TYPES.items():
        if terms & known:
            return name
    return words.dixon_part(header.description) if words.names_dixon(header.description) else ""


def group_studies(headers: Iterable[ImageHeader], root: Path) -> list[StudyParts]:
    """Group headers by StudyInstanceUID and SeriesInstanceUID, without files that are there twice."""
    studies: dict[str, dict[str, list[ImageHeader]]] = {}
    for header in headers:
        folder = Path(header.path).parent
        above = folder.parent if folder != root else folder
        own = studies.setdefault(header.study_uid or f"folder {above}", {})
        own.setdefault(header.series_uid or f"folder {folder}", []).append(header)
    grouped = []
    for key, series in studies.items():
        study = StudyParts(key)
        n_doubles = 0
        seen: set[tuple[object, ...]] = set()
        for name, members in series.items():
            kept = _without_doubles(name, members, seen)
            n_doubles += len(members) - len(kept)
            study.parts += _split(key, name, kept)
        if n_doubles:
            study.problems.append(f"{counted(n_doubles, 'file')} left out, there twice (the same SOPInstanceUID)")
        grouped.append(study)
    return grouped


def _without_doubles(series: str, headers: list[ImageHeader], seen: set[tuple[object, ...]]) -> list[ImageHeader]:
    """Without files that an earlier one of the study repeats, in the same series or sent again as another.

    The instance UID alone is not enough: programs that write derived series do not always give them new ones.
    """
    kept = []
    for header in headers:
        image = header.sop_uid, header.instance_number, header.position, header.shape, header.image_type
        as_another = (*image, header.orientation, header.description, header.body_part, header.te_ms, header.tr_ms)
        keys = {(series, *image), as_another}
        if header.sop_uid and keys & seen:
            continue
        seen |= keys
        kept.append(header)
    return kept


def _split(study: str, series: str, headers: list[ImageHeader]) -> list[Part]:
    """The parts of one series."""
    planes = _planes(headers)
    echoes = _echoes(headers)
    groups: dict[tuple[str, str, float | None], list[ImageHeader]] = {}
    for header, plane in zip(headers, planes, strict=True):
        key = (plane, dixon_of(header), header.te_ms if echoes else None)
        groups.setdefault(key, []).append(header)
    return [
        Part(study, series, sorted(members, key=_order), plane, dixon, len(set(planes)))
        for (plane, dixon, _), members in groups.items()
    ]


def _planes(headers: list[ImageHeader]) -> list[str]:
    """The plane of each file of a series; files without orientation go with the plane of most others.

    So do blocks that are tilted from disc to disc. The block at a steep L5/S1 may lean by more than 45 degrees, but not
    far from that at L4/L5; the planes of a localiser stand across each other.
    """
    planes = [plane_of(header.orientation) for header in headers]
    counts = Counter(plane for plane in planes if plane)
    usual = counts.most_common(1)[0][0] if counts else ""
    if len(counts) < 2:
        return [usual] * len(planes)
    normals = [_normal(header) if plane else None for header, plane in zip(headers, planes, strict=True)]
    among = np.array([normal for normal, plane in zip(normals, planes, strict=True) if plane == usual])
    merged = []
    for normal, plane in zip(normals, planes, strict=True):
        is_tilted = normal is not None and plane != usual and np.abs(among @ normal).max() > _TILTED
        merged.append(usual if is_tilted else plane or usual)
    return merged


def _normal(header: ImageHeader) -> np.ndarray:
    assert header.orientation is not None
    return np.asarray(plane_normal(np.array(header.orientation[:3]), np.array(header.orientation[3:])))


def _order(header: ImageHeader) -> tuple[bool, int, str]:
    number = header.instance_number
    return number is None, number or 0, header.path


def _echoes(headers: list[ImageHeader]) -> set[float]:
    """The echo times of a series that shows each slice at several of them; empty for others."""
    by_echo: dict[float, set[tuple[float, ...]]] = {}
    for header in headers:
        if header.te_ms is None or header.position is None:
            return set()
        by_echo.setdefault(header.te_ms, set()).add(header.position)
    if len(by_echo) < 2 or len(by_echo) > 4:
        return set()
    first, *others = by_echo.values()
    return set(by_echo) if all(len(first & other) >= _SHARED * len(first) for other in others) else set()
