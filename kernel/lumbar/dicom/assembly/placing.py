"""The geometry of each image of a series: its own, that of the others, or a guess that is reported.

Any geometric tag may be missing. An image without orientation or spacing takes that of the others where they agree.
Where no image of the series has a tag, a default is taken, and the stacks are marked as guessed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from lumbar.dicom.assembly.images import Image

Value = TypeVar("Value")

# Angled blocks of an axial series differ by degrees, slices of one block only by the rounding of their cosines.
_SAME_ORIENTATION = math.cos(math.radians(0.5))
_SAME_SPACING = 1e-3  # relative
_SPACINGS_MM = (1e-3, 1e3)  # smaller and larger spacings are taken for errors
_MAX_MM = 1e6  # from the scanner's origin; positions farther away are taken for errors
_SHOWN = 8  # numbers or names that a line shows; of the others it gives the number

# Direction of a row and of a column where ImageOrientationPatient is missing.
DEFAULT_ORIENTATIONS = {
    "sagittal": (0.0, 1.0, 0.0, 0.0, 0.0, -1.0),
    "coronal": (1.0, 0.0, 0.0, 0.0, 0.0, -1.0),
    "axial": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
}


@dataclass(slots=True)
class PlacedImage:
    """An image with its geometry."""

    image: Image
    cosines: tuple[float, ...]  # (6,) unit directions of a row and of a column
    spacing: tuple[float, float]  # mm between rows, between columns
    origin: tuple[float, float, float] | None  # mm
    is_guessed: bool  # orientation, spacing or position is a default
    is_spacing_guessed: bool  # spacing is


@dataclass(slots=True)
class Notes:
    """Lines about a series, collected while its stacks are made; ``guesses`` are those about guessed geometry."""

    problems: list[str] = field(default_factory=list)
    guesses: list[str] = field(default_factory=list)

    def guess(self, line: str) -> None:
        """Add a line about guessed geometry."""
        self.problems.append(line)
        self.guesses.append(line)


def listed(items: list[int] | list[str]) -> str:
    """The first few of a list, and how many more there are."""
    shown = ", ".join(map(str, items[:_SHOWN]))
    return shown if len(items) <= _SHOWN else f"{shown} and {len(items) - _SHOWN} more"


def place(images: list[Image], fallback_orientation: str, notes: Notes) -> list[PlacedImage]:
    """Find the geometry of each image; those that cannot be placed among the others are left out with a line.

    Args:
        images: of a series.
        fallback_orientation: taken where no image has an orientation.
        notes: receives the lines.
    """
    origins = _origins(images)
    has_origins = any(origins)
    if has_origins and None in origins:
        without = [image for image, origin in zip(images, origins, strict=True) if origin is None]
        has_frames = any(image.frame is not None for image in without)
        names = listed([image.name if has_frames else str(image.instance_number) for image in without])
        pairs = [(image, origin) for image, origin in zip(images, origins, strict=True) if origin is not None]
        images, origins = [image for image, _ in pairs], [origin for _, origin in pairs]
        notes.problems.append(
            f"slices [{names}] without ImagePositionPatient left out, the other {len(images)} have it"
        )
    cosines = _unit_cosines([image.header.image_orientation_patient for image in images])
    declared = [image.header.pixel_spacing for image in images]
    good = {spacing: _usable(spacing) for spacing in set(declared)}  # mostly one
    spacings = [good[spacing] for spacing in declared]
    is_spacing_guessed = not any(spacings)
    is_guessed = not has_origins or not any(cosines) or is_spacing_guessed
    if not any(cosines):
        notes.guess(_without(images, images, "ImageOrientationPatient", f"taken as {fallback_orientation}"))
        cosines = [DEFAULT_ORIENTATIONS[fallback_orientation]] * len(images)
    elif None in cosines:
        cosines = _completed(images, cosines, is_same_orientation, "ImageOrientationPatient", notes)
    if is_spacing_guessed:
        notes.guess(_without(images, images, "PixelSpacing", "taken as 1 mm"))
        spacings = [(1.0, 1.0)] * len(images)
    elif None in spacings:
        spacings = _completed(images, spacings, is_same_spacing, "PixelSpacing", notes)
    return [
        PlacedImage(image, own_cosines, own_spacing, origin, is_guessed, is_spacing_guessed)
        for image, own_cosines, own_spacing, origin in zip(images, cosines, spacings, origins, strict=True)
        if own_cosines is not None and own_spacing is not None
    ]


def is_same_orientation(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether both directions of two orientations agree within half a degree."""
    if one == other:
        return True
    products = [a * b for a, b in zip(one, other, strict=True)]
    return sum(products[:3]) > _SAME_ORIENTATION and sum(products[3:]) > _SAME_ORIENTATION


def is_same_spacing(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether two spacings agree within a thousandth."""
    return all(abs(a - b) <= _SAME_SPACING * b for a, b in zip(one, other, strict=True))


def _origins(images: list[Image]) -> list[tuple[float, float, float] | None]:
    """Position of each image; ``None`` where it has none, or one that is impossibly far away."""
    origins = [image.header.image_position_patient for image in images]
    known = [origin for origin in origins if origin is not None]
    if known and not np.abs(np.array(known)).max() <= _MAX_MM:
        return [
            None if origin is None or max(origin) > _MAX_MM or min(origin) < -_MAX_MM else origin for origin in origins
        ]
    return origins


def _usable(spacing: tuple[float, float] | None) -> tuple[float, float] | None:
    if spacing is None or not _SPACINGS_MM[0] <= min(spacing) <= max(spacing) <= _SPACINGS_MM[1]:
        return None
    return spacing


def _without(some: list[Image], images: list[Image], keyword: str, consequence: str) -> str:
    return f"{len(some)} of {len(images)} slices without {keyword}, {consequence}"


def _completed(
    images: list[Image],
    values: list[Value | None],
    is_same: Callable[[Value, Value], bool],
    keyword: str,
    notes: Notes,
) -> list[Value | None]:
    """Fill gaps in the images' values: from all other images if they agree, else from the neighbours.

    Neighbours are the images of the same size before and after in the order of the instance numbers. Where those two
    differ the gap stays, and the image is reported as left out.
    """
    known = [value for value in values if value is not None]
    completed = list(values)
    gaps = [index for index, value in enumerate(values) if value is None]
    if all(is_same(value, known[0]) for value in known):
        for index in gaps:
            completed[index] = known[0]
    else:
        before, after = _neighbours(images, values), _neighbours(images, values, is_backwards=True)
        for index in gaps:
            one, other = before.get(index), after.get(index)
            if one is not None and other is not None and is_same(one, other):
                completed[index] = one
    for lines, consequence in (
        ([images[i] for i in gaps if completed[i] is not None], "taken from the others"),
        ([images[i] for i in gaps if completed[i] is None], "left out, the others' differ"),
    ):
        if lines:
            names = listed([image.name for image in lines])
            notes.problems.append(_without(lines, images, keyword, f"{consequence} ({names})"))
    return completed


def _neighbours(images: list[Image], values: list[Value | None], is_backwards: bool = False) -> dict[int, Value]:
    """The last value before each gap, among images of its size in the order of their instance numbers."""
    order = sorted(range(len(images)), key=lambda i: (images[i].instance_number, images[i].frame or 0))
    last: dict[tuple[int, ...], Value] = {}
    values_before: dict[int, Value] = {}
    for index in reversed(order) if is_backwards else order:
        value, shape = values[index], images[index].shape
        if value is not None:
            last[shape] = value
        elif shape in last:
            values_before[index] = last[shape]
    return values_before


def _unit_cosines(orientations: list[tuple[float, ...] | None]) -> list[tuple[float, ...] | None]:
    """Orientations with both directions of unit length; ``None`` where they are not at right angles."""
    distinct = list(dict.fromkeys(orientations))  # mostly one
    pairs = np.array([orientation or (0.0,) * 6 for orientation in distinct]).reshape(-1, 2, 3)
    with np.errstate(over="ignore"):
        lengths = np.linalg.norm(pairs, axis=2)
    is_good = np.all(np.abs(lengths - 1) <= 0.1, axis=1)
    pairs /= np.where(is_good[:, None], lengths, np.inf)[..., None]
    is_good &= np.abs(np.sum(pairs[:, 0] * pairs[:, 1], axis=1)) < 0.05
    units = {
        orientation: tuple(row) if good else None
        for orientation, row, good in zip(distinct, pairs.reshape(-1, 6).tolist(), is_good.tolist(), strict=True)
    }
    return [units[orientation] for orientation in orientations]
