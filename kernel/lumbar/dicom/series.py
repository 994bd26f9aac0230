"""A series' folder to stacks: read by threads, grouped by orientation and size, ordered in space.

Instance numbers are no spatial order, one series may hold blocks of several angles and images of several sizes, and any
optional tag may be missing: what can be placed is placed, what cannot is named in ``problems``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from lumbar.dicom.header import Header
from lumbar.dicom.pixels import Slice, read_slice
from lumbar.dicom.stack import Stack, plane_normal
from lumbar.errors import DicomError

# Angled blocks of an axial series differ by degrees, slices of one block by the rounding of their cosines.
_SAME_ORIENTATION_DEGREES = 0.5
_SAME_SPACING = 1e-3  # relative
_SAME_POSITION_MM = 1e-2
_MAX_RESCALE = 1e9  # beyond this slope or intercept is damage, and float32 would overflow

# Direction of a row and of a column where ImageOrientationPatient is missing.
_DEFAULT_ORIENTATIONS = {
    "sagittal": (0.0, 1.0, 0.0, 0.0, 0.0, -1.0),
    "coronal": (1.0, 0.0, 0.0, 0.0, 0.0, -1.0),
    "axial": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
}
_DEFAULT_STEP_MM = 4.0


@dataclass
class Series:
    """One series' folder: its stacks, the largest first, and what was wrong with it, one line each."""

    series_id: str
    stacks: list[Stack]
    problems: list[str] = field(default_factory=list)


@dataclass
class _Placed:
    """A slice with the geometry that grouping and ordering go by."""

    instance_number: int
    image: Slice
    cosines: np.ndarray  # (6,) unit directions of a row and of a column
    spacing: tuple[float, float]  # mm between rows, between columns
    origin: np.ndarray | None  # (3,) mm


def read_series(
    folder: str | os.PathLike[str], workers: int | None = None, fallback_orientation: str = "sagittal"
) -> Series:
    """Read every ``*.dcm`` file of ``folder`` with ``workers`` threads (default: one per core, at most 4).

    Slices that cannot be read or placed are left out and named in ``problems``. Where no slice says where it lies they
    are stacked in the order of their instance numbers, in ``fallback_orientation`` (``sagittal``, ``axial`` or
    ``coronal``) if they do not say that either.

    Raises:
        DicomError: the folder cannot be listed, holds no ``*.dcm`` file, or none that can be read.
    """
    root = os.fspath(folder)
    names = _list_files(root)
    series_id = os.path.basename(os.path.normpath(root))
    paths = [os.path.join(root, name) for name in names]
    count = max(1, min(len(paths), workers if workers is not None else min(4, os.cpu_count() or 1)))
    with ThreadPoolExecutor(count) as pool:
        outcomes: list[Slice | DicomError] = [DicomError("")] * len(paths)
        left = iter(range(len(paths)))  # shared: who is held up takes fewer
        for future in [pool.submit(_read_some, paths, left, outcomes) for _ in range(count)]:
            future.result()
        problems: list[str] = []
        images: list[tuple[int, Slice]] = []
        for index, (name, outcome) in enumerate(zip(names, outcomes, strict=True)):
            if isinstance(outcome, DicomError):
                problems.append(str(outcome))
            elif outcome.pixels.ndim != 2:
                problems.append(f"{paths[index]}: found pixels of shape {outcome.pixels.shape}, expected 2-D")
            else:
                images.append((_instance_number(name, outcome.header, index), outcome))
        if not images:
            raise DicomError(f"{root}: found no readable slice in {len(names)} files, expected some ({problems[0]})")
        groups = _group(_place(images, fallback_orientation, problems))
        stacks = [_build(series_id, group, pool, count) for group in groups]
    for stack in stacks:
        problems.extend(f"{series_id}: {problem}" for problem in stack.problems)
    return Series(series_id, sorted(stacks, key=lambda stack: -len(stack.instance_numbers)), problems)


def _list_files(root: str) -> list[str]:
    """Names of the folder's ``*.dcm`` files, in the order of their numbers."""
    try:
        names = [name for name in os.listdir(root) if name.lower().endswith(".dcm") and not name.startswith(".")]
    except (OSError, ValueError) as error:
        raise DicomError(f"{root}: found {getattr(error, 'strerror', error)}, expected a series' folder") from error
    if not names:
        raise DicomError(f"{root}: found no *.dcm file, expected a series' slices")
    return sorted(names, key=lambda name: (len(name), name) if _stem_number(name) is not None else (1000, name))


def _stem_number(name: str) -> int | None:
    stem = name[: name.rfind(".")]
    return int(stem) if stem.isascii() and stem.isdigit() else None


def _instance_number(name: str, header: Header, index: int) -> int:
    number = _stem_number(name)
    if number is None:
        number = header.instance_number
    return index + 1 if number is None else number


def _read_some(paths: list[str], left: Iterator[int], outcomes: list[Slice | DicomError]) -> None:
    for index in left:
        try:
            outcomes[index] = read_slice(paths[index])
        except DicomError as error:
            outcomes[index] = error


def _place(images: list[tuple[int, Slice]], fallback_orientation: str, problems: list[str]) -> list[_Placed]:
    """Geometry of each slice; those without a position are left out where others have one."""
    placed = []
    n_without_orientation = n_without_spacing = 0
    for number, image in images:
        header = image.header
        cosines = _unit_cosines(header.image_orientation_patient)
        if cosines is None:
            n_without_orientation += 1
            cosines = np.array(_DEFAULT_ORIENTATIONS[fallback_orientation])
        if header.pixel_spacing is None:
            n_without_spacing += 1
        position = header.image_position_patient
        origin = None if position is None else np.array(position)
        placed.append(_Placed(number, image, cosines, header.pixel_spacing or (1.0, 1.0), origin))
    if n_without_orientation:
        problems.append(
            f"{n_without_orientation} of {len(placed)} slices without ImageOrientationPatient, taken as "
            f"{fallback_orientation}"
        )
    if n_without_spacing:
        problems.append(f"{n_without_spacing} of {len(placed)} slices without PixelSpacing, taken as 1 mm")
    with_origin = [item for item in placed if item.origin is not None]
    if len(with_origin) == len(placed):
        return placed
    if with_origin:
        numbers = [item.instance_number for item in placed if item.origin is None]
        problems.append(f"slices {numbers} without ImagePositionPatient left out, the other {len(with_origin)} have it")
        return with_origin
    problems.append(f"{len(placed)} slices without ImagePositionPatient, ordered by instance number")
    return placed


def _unit_cosines(orientation: tuple[float, ...] | None) -> np.ndarray | None:
    """``(6,)`` orientation with both directions of unit length; ``None`` where they are no right angle."""
    if orientation is None:
        return None
    pair = np.array(orientation).reshape(2, 3)
    lengths = np.linalg.norm(pair, axis=1)
    if np.any(np.abs(lengths - 1) > 0.1):
        return None
    pair /= lengths[:, None]
    return pair.reshape(6) if abs(float(pair[0] @ pair[1])) < 0.05 else None


def _group(placed: list[_Placed]) -> list[list[_Placed]]:
    """Slices of one size, spacing, orientation and photometric sense each, in the order of the first of them."""
    limit = math.cos(math.radians(_SAME_ORIENTATION_DEGREES))
    groups: list[list[_Placed]] = []
    for item in placed:
        for group in groups:
            if _is_same_plane(item, group[0], limit):
                group.append(item)
                break
        else:
            groups.append([item])
    return groups


def _is_same_plane(one: _Placed, other: _Placed, least_cosine: float) -> bool:
    return (
        one.image.pixels.shape == other.image.pixels.shape
        and _is_inverted(one) == _is_inverted(other)
        and all(abs(a - b) <= _SAME_SPACING * b for a, b in zip(one.spacing, other.spacing, strict=True))
        and float(one.cosines[:3] @ other.cosines[:3]) > least_cosine
        and float(one.cosines[3:] @ other.cosines[3:]) > least_cosine
    )


def _is_inverted(item: _Placed) -> bool:
    return item.image.header.photometric_interpretation == "MONOCHROME1"


def _build(series_id: str, group: list[_Placed], pool: ThreadPoolExecutor, count: int) -> Stack:
    """One stack from slices of one plane."""
    problems: list[str] = []
    group = sorted(group, key=lambda item: item.instance_number)
    cosines, spacing = group[0].cosines, group[0].spacing
    row_mm, column_mm = cosines[3:] * spacing[0], cosines[:3] * spacing[1]
    normal = plane_normal(row_mm, column_mm)
    step_mm = _step(group[0].image.header)
    if group[0].origin is None:
        rows, columns = group[0].image.pixels.shape
        corner = -(rows - 1) / 2 * row_mm - (columns - 1) / 2 * column_mm
        middle = (len(group) - 1) / 2
        origins = np.array([corner + (index - middle) * step_mm * normal for index in range(len(group))])
    else:
        group, origins = _order(group, normal, problems)
    volume = np.empty((len(group), *group[0].image.pixels.shape), dtype=np.float32)

    def fill(start: int) -> list[str]:
        return [line for index in range(start, len(group), count) if (line := _rescale(group[index], volume[index]))]

    for lines in pool.map(fill, range(count)):
        problems.extend(lines)
    numbers = [item.instance_number for item in group]
    return Stack(
        series_id, volume, origins, row_mm, column_mm, numbers, _is_inverted(group[0]), problems, step_mm=step_mm
    )


def _order(group: list[_Placed], normal: np.ndarray, problems: list[str]) -> tuple[list[_Placed], np.ndarray]:
    """Slices by increasing place along the normal, the first of several at one place, and their origins ``(n, 3)``."""
    places = [float(item.origin @ normal) for item in group if item.origin is not None]
    kept: list[int] = []
    for index in sorted(range(len(group)), key=lambda index: places[index]):
        if kept and places[index] - places[kept[-1]] < _SAME_POSITION_MM:
            first, second = sorted((kept[-1], index))
            kept[-1] = first
            numbers = group[second].instance_number, group[first].instance_number
            problems.append(f"slice {numbers[0]} left out, at the same place as slice {numbers[1]}")
        else:
            kept.append(index)
    return [group[index] for index in kept], np.array([group[index].origin for index in kept], dtype=np.float64)


def _step(header: Header) -> float:
    """Distance between slices that the header names, for stacks whose positions do not tell."""
    for value in (header.spacing_between_slices, header.slice_thickness):
        if value is not None and 0.1 <= abs(value) <= 100:
            return abs(value)
    return _DEFAULT_STEP_MM


def _rescale(item: _Placed, out: np.ndarray) -> str:
    """Write the slice in rescaled units to ``out`` (rows, columns) float32; return a problem, or an empty line."""
    header = item.image.header
    slope = 1.0 if header.rescale_slope is None else header.rescale_slope
    intercept = 0.0 if header.rescale_intercept is None else header.rescale_intercept
    out[...] = item.image.pixels
    if slope == 0 or abs(slope) > _MAX_RESCALE or abs(intercept) > _MAX_RESCALE:
        return f"slice {item.instance_number} with slope {slope} and intercept {intercept}, not rescaled"
    if slope != 1:
        out *= np.float32(slope)
    if intercept != 0:
        out += np.float32(intercept)
    return ""
