"""A series' folder to stacks: grouped by orientation and size, ordered in space, decoded by threads.

Instance numbers are no spatial order, one series may hold blocks of several angles and images of several sizes, and any
optional tag may be missing: what can be placed is placed, what cannot is named in ``problems``.

Headers are read first. Then every slice's place is known, and threads decode files straight into the volumes, each in
the same memory for one slice after the other: fresh pages cost more than decoding does.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from lumbar.dicom._scratch import recycled, reused
from lumbar.dicom.direct import Usual, find_usual
from lumbar.dicom.header import Header, read_file
from lumbar.dicom.pixels import read_slice
from lumbar.dicom.stack import Stack, plane_normal
from lumbar.errors import DicomError

Item = TypeVar("Item")
Result = TypeVar("Result")

# Angled blocks of an axial series differ by degrees, slices of one block by the rounding of their cosines.
_SAME_ORIENTATION_DEGREES = 0.5
_SAME_SPACING = 1e-3  # relative
_SAME_POSITION_MM = 1e-2
_MAX_EXPANSION = 64  # bytes of a volume for each byte of its files, beyond which slices are tried before it is made
_HEAD_BYTES = 1 << 13  # of a file, for its header; where they do not do, the whole file is read
_PATIENCE_S = 5e-3  # headers from a cached file are read more quickly by one thread than by several that take turns
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


@dataclass(slots=True)
class _Image:
    """A file whose header was read, as one image of ``shape`` (rows, columns)."""

    path: str
    instance_number: int
    header: Header
    shape: tuple[int, ...]
    is_inverted: bool
    size: int  # bytes of the file
    usual: Usual | None
    failure: str = ""  # why its pixels cannot be read, once that was tried


@dataclass(slots=True)
class _Placed:
    """An image with the geometry that grouping and ordering go by."""

    image: _Image
    cosines: tuple[float, ...]  # (6,) unit directions of a row and of a column
    spacing: tuple[float, float]  # mm between rows, between columns
    origin: tuple[float, float, float] | None  # mm


@dataclass(slots=True)
class _Job:
    """An image to decode into ``out`` (rows, columns) float32, or only to try."""

    image: _Image
    out: np.ndarray | None = None
    problem: str = ""


@dataclass(slots=True)
class _Crew:
    """``count`` threads: the caller's and those of a pool."""

    pool: ThreadPoolExecutor
    count: int

    def map(self, function: Callable[[Item], Result], items: list[Item], alone_s: float = 0.0) -> list[Result]:
        """Results of ``function``, in order; whatever it reads from a file is overwritten by what it reads next.

        The pool's threads join in when the caller has worked for ``alone_s`` seconds. All work far apart from each
        other: neighbours in a volume share large pages, and two threads that touch a new one both wait for it.
        """
        results: dict[int, Result] = {}
        chunk = max(1, -(-len(items) // self.count))
        left = iter([index for first in range(chunk) for index in range(first, len(items), chunk)])

        def work(until: float = math.inf) -> None:
            with reused():
                for index in left:  # shared: who is held up takes fewer
                    results[index] = function(items[index])
                    if time.perf_counter() > until:
                        return

        if alone_s:
            work(time.perf_counter() + alone_s)
        others = [self.pool.submit(work) for _ in range(min(self.count - 1, len(items) - len(results)))]
        work()
        for future in others:
            future.result()
        return [results[index] for index in range(len(items))]


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
    files = [(os.path.join(root, name), name, index) for index, name in enumerate(_list_files(root))]
    series_id = os.path.basename(os.path.normpath(root))
    count = max(1, min(len(files), workers if workers is not None else min(4, os.cpu_count() or 1)))
    with ThreadPoolExecutor(max(1, count - 1)) as pool:
        for _ in range(count - 1):  # they are up by the time that headers are read
            pool.submit(int)
        crew = _Crew(pool, count)
        found = crew.map(_open, files, alone_s=_PATIENCE_S)
        images = [item for item in found if isinstance(item, _Image)]
        is_tried = not _is_plausible(images)
        if is_tried:
            crew.map(_decode, [_Job(image) for image in images])
        while True:
            problems = [line for item in found if (line := item.failure if isinstance(item, _Image) else str(item))]
            good = [image for image in images if not image.failure]
            if not good:
                raise DicomError(
                    f"{root}: found no readable slice in {len(files)} files, expected some ({problems[0]})"
                )
            built = [_build(series_id, group) for group in _group(_place(good, fallback_orientation, problems))]
            jobs = [job for _, stack_jobs in built for job in stack_jobs]
            if not is_tried:  # damage is named in slices that others stand in for, too
                placed = {job.image.path for job in jobs}
                jobs += [_Job(image) for image in good if image.path not in placed]
                is_tried = True
            crew.map(_decode, jobs)
            if not any(image.failure for image in good):
                break
    for stack, stack_jobs in built:
        stack.problems.extend(job.problem for job in stack_jobs if job.problem)
        problems.extend(f"{series_id}: {problem}" for problem in stack.problems)
    stacks = [stack for stack, _ in built]
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


def _open(file: tuple[str, str, int]) -> _Image | DicomError:
    """The header of a file (path, name, place among the names), where that says that it is one image of gray."""
    path, name, index = file
    try:
        parsed = read_file(path, limit=_HEAD_BYTES)
        header = parsed.header
        shape = header.frame_shape
    except DicomError as error:
        return error
    n_frames = header.number_of_frames or 1
    if n_frames > 1:
        shape = (n_frames, *shape)
    if len(shape) != 2:
        return DicomError(f"{path}: found pixels of shape {shape}, expected 2-D")
    number, is_inverted = _instance_number(name, header, index), header.photometric_interpretation == "MONOCHROME1"
    return _Image(path, number, header, shape, is_inverted, parsed.size, find_usual(parsed))


def _is_plausible(images: list[_Image]) -> bool:
    """Whether files are as large as one would expect from what their headers say; else those may lie."""
    claimed = sum([4 * image.shape[0] * image.shape[1] for image in images])
    return claimed <= _MAX_EXPANSION * sum([image.size for image in images])


def _decode(job: _Job) -> None:
    """Decode one image, or say in it what failed."""
    image, out = job.image, job.out
    slope, intercept, job.problem = _scale(image)
    try:
        if image.usual is not None and out is not None and image.usual.fill(out, slope, intercept):
            return
        pixels = read_slice(image.path).pixels
    except DicomError as error:
        image.failure = str(error)
        return
    if pixels.shape != image.shape:  # a plugin's doing, or another file by now
        image.failure = f"{image.path}: found pixels of shape {pixels.shape}, expected {image.shape}"
    elif out is not None:
        _rescale(pixels, slope, intercept, out)


def _place(images: list[_Image], fallback_orientation: str, problems: list[str]) -> list[_Placed]:
    """Geometry of each slice; those without a position are left out where others have one."""
    default = _DEFAULT_ORIENTATIONS[fallback_orientation]
    cosines = _unit_cosines([image.header.image_orientation_patient for image in images])
    spacings = [image.header.pixel_spacing for image in images]
    placed = [
        _Placed(image, own or default, spacing or (1.0, 1.0), image.header.image_position_patient)
        for image, own, spacing in zip(images, cosines, spacings, strict=True)
    ]
    if None in cosines:
        problems.append(
            f"{cosines.count(None)} of {len(placed)} slices without ImageOrientationPatient, taken as "
            f"{fallback_orientation}"
        )
    if None in spacings:
        problems.append(f"{spacings.count(None)} of {len(placed)} slices without PixelSpacing, taken as 1 mm")
    with_origin = [item for item in placed if item.origin is not None]
    if len(with_origin) == len(placed):
        return placed
    if with_origin:
        numbers = [item.image.instance_number for item in placed if item.origin is None]
        problems.append(f"slices {numbers} without ImagePositionPatient left out, the other {len(with_origin)} have it")
        return with_origin
    problems.append(f"{len(placed)} slices without ImagePositionPatient, ordered by instance number")
    return placed


def _unit_cosines(orientations: list[tuple[float, ...] | None]) -> list[tuple[float, ...] | None]:
    """Orientations with both directions of unit length; ``None`` where they are no right angle."""
    pairs = np.array([orientation or (0.0,) * 6 for orientation in orientations]).reshape(-1, 2, 3)
    with np.errstate(over="ignore"):
        lengths = np.linalg.norm(pairs, axis=2)
    is_good = np.all(np.abs(lengths - 1) <= 0.1, axis=1)
    pairs /= np.where(is_good[:, None], lengths, np.inf)[..., None]
    is_good &= np.abs(np.sum(pairs[:, 0] * pairs[:, 1], axis=1)) < 0.05
    rows = pairs.reshape(-1, 6).tolist()
    return [tuple(row) if good else None for row, good in zip(rows, is_good.tolist(), strict=True)]


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
    if one.image.shape != other.image.shape or one.image.is_inverted != other.image.is_inverted:
        return False
    if any(abs(a - b) > _SAME_SPACING * b for a, b in zip(one.spacing, other.spacing, strict=True)):
        return False
    products = [a * b for a, b in zip(one.cosines, other.cosines, strict=True)]
    return sum(products[:3]) > least_cosine and sum(products[3:]) > least_cosine


def _build(series_id: str, group: list[_Placed]) -> tuple[Stack, list[_Job]]:
    """One stack from slices of one plane, and what there is to do until its volume is filled."""
    problems: list[str] = []
    group = sorted(group, key=lambda item: item.image.instance_number)
    cosines, spacing = np.array(group[0].cosines), group[0].spacing
    row_mm, column_mm = cosines[3:] * spacing[0], cosines[:3] * spacing[1]
    normal = plane_normal(row_mm, column_mm)
    first = group[0].image
    step_mm = _step(first.header)
    if group[0].origin is None:
        rows, columns = first.shape
        corner = -(rows - 1) / 2 * row_mm - (columns - 1) / 2 * column_mm
        middle = (len(group) - 1) / 2
        origins = np.array([corner + (index - middle) * step_mm * normal for index in range(len(group))])
    else:
        group, origins = _order(group, normal, problems)
    shape = (len(group), *first.shape)
    try:
        volume = recycled(shape, np.float32)
    except MemoryError as error:
        raise DicomError(f"series {series_id}: found no memory for a volume of {shape}, expected less") from error
    numbers = [item.image.instance_number for item in group]
    stack = Stack(series_id, volume, origins, row_mm, column_mm, numbers, first.is_inverted, problems, step_mm=step_mm)
    return stack, [_Job(item.image, out) for item, out in zip(group, volume, strict=True)]


def _order(group: list[_Placed], normal: np.ndarray, problems: list[str]) -> tuple[list[_Placed], np.ndarray]:
    """Slices by increasing place along the normal, the first of several at one place, and their origins ``(n, 3)``."""
    origins = np.array([item.origin for item in group], dtype=np.float64)
    places = np.sum(origins * normal, axis=1).tolist()
    kept: list[int] = []
    for index in sorted(range(len(group)), key=lambda index: places[index]):
        if kept and places[index] - places[kept[-1]] < _SAME_POSITION_MM:
            first, second = sorted((kept[-1], index))
            kept[-1] = first
            numbers = group[second].image.instance_number, group[first].image.instance_number
            problems.append(f"slice {numbers[0]} left out, at the same place as slice {numbers[1]}")
        else:
            kept.append(index)
    return [group[index] for index in kept], origins[kept]


def _step(header: Header) -> float:
    """Distance between slices that the header names, for stacks whose positions do not tell."""
    for value in (header.spacing_between_slices, header.slice_thickness):
        if value is not None and 0.1 <= abs(value) <= 100:
            return abs(value)
    return _DEFAULT_STEP_MM


def _scale(image: _Image) -> tuple[float, float, str]:
    """Slope and intercept of the rescaled units, and what is wrong with them."""
    header = image.header
    slope = 1.0 if header.rescale_slope is None else header.rescale_slope
    intercept = 0.0 if header.rescale_intercept is None else header.rescale_intercept
    if slope == 0 or abs(slope) > _MAX_RESCALE or abs(intercept) > _MAX_RESCALE:
        problem = f"slice {image.instance_number} with slope {slope} and intercept {intercept}, not rescaled"
        return 1.0, 0.0, problem
    return slope, intercept, ""


def _rescale(pixels: np.ndarray, slope: float, intercept: float, out: np.ndarray) -> None:
    """Write pixels in rescaled units to ``out`` (rows, columns) float32."""
    out[...] = pixels
    if slope != 1:
        out *= np.float32(slope)
    if intercept != 0:
        out += np.float32(intercept)
