"""A series' folder to stacks: grouped by orientation and size, ordered in space, decoded by threads.

Instance numbers are no spatial order, one series may hold blocks of several angles, images of several sizes, several
images of one place, files of many frames, and any optional tag may be missing: what can be placed is placed
(``placing``, ``ordering``, ``repeats``), what cannot is named in ``problems``.

Headers are read first. They decide which images make the volumes, and no other is decoded (but a few, to name damage).
Threads then decode files straight into the volumes, each in the same memory for one slice after the other: fresh pages
cost more than decoding does.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from lumbar.dicom._scratch import recycled, reused
from lumbar.dicom.assembly.ordering import Plan, arrange
from lumbar.dicom.assembly.padding import MAX_FLOAT, declared_range, padding_ends, reason_to_ignore_padding
from lumbar.dicom.assembly.placing import Image, Notes, place
from lumbar.dicom.assembly.repeats import Excluded
from lumbar.dicom.direct import find_fast_path
from lumbar.dicom.header import File, Header, read_file
from lumbar.dicom.limits import check_memory, check_volumes
from lumbar.dicom.pixels import read_slice
from lumbar.dicom.stack import Stack
from lumbar.errors import DicomError

Argument = TypeVar("Argument")
Result = TypeVar("Result")

_MAX_EXPANSION = 64  # bytes of a volume for each byte of its files, beyond which slices are tried before it is made
_HEAD_BYTES = 1 << 13  # of a file, for its header; where they do not do, the whole file is read
_SINGLE_THREAD_S = (
    5e-3  # headers from a cached file are read more quickly by one thread than by several that take turns
)
_MAX_RESCALE = 1e9  # beyond this slope or intercept is damage, and float32 would overflow
_MAX_REPLANS = 8  # slices that stand in for damaged ones are tried so many times
_MAX_EXTRAS = 16  # doubles that are decoded only to name damage
_MIN_FRAME_BYTES = 8  # of a file for each frame that it claims: an item's tag and length


@dataclass
class Series:
    """One series' folder: its stacks, the largest first, and what was wrong with it, one line each.

    ``guesses`` are those of the problems that say which geometry was guessed.
    """

    series_id: str
    stacks: list[Stack]
    problems: list[str] = field(default_factory=list)
    guesses: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Job:
    """A file to decode: ``image`` into ``out`` (rows, columns) float32, or only to try; of many frames also ``more``.

    A series makes one for each slice, so that it holds no list of its own: such objects cost garbage collection.
    """

    image: Image
    out: np.ndarray | None
    more: list[tuple[Image, np.ndarray | None]] | None = None
    problems: tuple[str, ...] = ()

    @property
    def targets(self) -> list[tuple[Image, np.ndarray | None]]:
        """All images, each with where it goes."""
        return [(self.image, self.out), *(self.more or ())]


@dataclass(slots=True)
class _ThreadTeam:
    """``count`` threads: the caller's and those of a pool."""

    pool: ThreadPoolExecutor
    count: int

    def map(self, function: Callable[[Argument], Result], items: list[Argument], alone_s: float = 0.0) -> list[Result]:
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
    folder: str | os.PathLike[str],
    workers: int | None = None,
    fallback_orientation: str = "sagittal",
    prefers_long_echo: bool = False,
) -> Series:
    """Read every ``*.dcm`` file of ``folder`` with ``workers`` threads (default: one per core, at most 4).

    Slices that cannot be read or placed are left out and named in ``problems``. Where no slice says where it lies they
    are stacked in the order of SliceLocation or of their instance numbers, in ``fallback_orientation`` (``sagittal``,
    ``axial`` or ``coronal``) if they do not say that either. Where several echoes lie at the same places the shortest
    makes the volume, or the longest with ``prefers_long_echo``.

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
        return _read(root, series_id, files, _ThreadTeam(pool, count), fallback_orientation, prefers_long_echo)


def _read(
    root: str,
    series_id: str,
    files: list[tuple[str, str, int]],
    crew: _ThreadTeam,
    fallback_orientation: str,
    prefers_long_echo: bool,
) -> Series:
    opened = crew.map(_open, files, alone_s=_SINGLE_THREAD_S)
    images: list[Image] = []
    for result in opened:
        if isinstance(result, Image):
            images.append(result)
        elif isinstance(result, list):
            images.extend(result)
    for attempt in range(len(images) + 1):
        failures = _failures(opened)
        good = [image for image in images if not image.failure and (attempt < _MAX_REPLANS or image.is_decoded)]
        if not good:
            raise DicomError(f"{root}: found no readable slice in {len(files)} files, expected some ({failures[0]})")
        notes, left = Notes(failures), Excluded()
        if n_untried := sum(not image.failure for image in images) - len(good):
            notes.problems.append(f"{n_untried} slices left out, found {_MAX_REPLANS} damaged ones in their stead")
        plans = arrange(place(good, fallback_orientation, notes), notes, left, prefers_long_echo)
        doubtful = [image for plan in plans for image in _implausible(plan) if not image.is_decoded]
        if doubtful:  # before there is a volume of the size that they claim
            crew.map(_decode, _jobs((image, None) for image in doubtful))
            if any(image.failure for image in doubtful):
                continue
        planned = [slice_.image for plan in plans for slice_ in plan.slices]
        n_pixels = sum([image.shape[0] * image.shape[1] for image in planned])
        check_volumes(series_id, n_pixels, sum([image.size for image in planned]))
        stacks = [_build(series_id, plan) for plan in plans]
        targets = [
            (slice_.image, out)
            for plan, stack in zip(plans, stacks, strict=True)
            for slice_, out in zip(plan.slices, stack.volume, strict=True)
        ]
        extras = [] if attempt else [image for image, _ in left.doubles + left.copies]
        jobs = _jobs([*targets, *((image, None) for image in extras[:_MAX_EXTRAS])])
        crew.map(_decode, jobs)
        if not any(job.image.failure or (job.more and any(image.failure for image, _ in job.more)) for job in jobs):
            break
    headers = {image.path: image.header for image in good}  # of all frames one
    lines = [(path, line) for path, header in headers.items() for line in header.problems]
    problems = _summary(lines + [(job.image.path, line) for job in jobs for line in job.problems])
    problems += _set_padding(stacks, plans)
    notes.problems.extend(f"{series_id}: {line}" for line in problems)
    return Series(
        series_id, sorted(stacks, key=lambda stack: -len(stack.instance_numbers)), notes.problems, notes.guesses
    )


def _failures(opened: list[Image | list[Image] | DicomError]) -> list[str]:
    """What failed so far, in the files' order, once for all frames of a file."""
    lines: dict[str, None] = {}
    for result in opened:
        if isinstance(result, Image):
            if result.failure:
                lines[result.failure] = None
        elif isinstance(result, list):
            lines.update((image.failure, None) for image in result if image.failure)
        else:
            lines[str(result)] = None
    return list(lines)


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


def _open(file: tuple[str, str, int]) -> Image | list[Image] | DicomError:
    """The image or images of a file (path, name, place among the names), where its header says that they are gray."""
    path, name, index = file
    try:
        parsed = read_file(path, limit=_HEAD_BYTES)
        header = parsed.header
        shape = header.frame_shape
        n_frames = header.number_of_frames or 1
        if len(shape) != 2:
            raise DicomError(f"{path}: found pixels of shape {shape}, expected 2-D")
        number, is_inverted = _instance_number(name, header, index), header.photometric_interpretation == "MONOCHROME1"
        if n_frames <= 1:
            return Image(path, number, header, shape, is_inverted, parsed.size, find_fast_path(parsed))
        _check_frames(parsed, n_frames)
        needed = n_frames * shape[0] * shape[1] * (header.pixel_dtype.itemsize + 4)  # as decoded, and in the volume
        n_held = max(parsed.size, parsed.source.size)
        check_memory(path, needed, n_held, f"{n_frames} frames of {shape[0]} x {shape[1]} pixels")
        return [
            Image(path, number, header.of_frame(k), shape, is_inverted, parsed.size // n_frames, None, k + 1)
            for k in range(n_frames)
        ]
    except DicomError as error:
        return error


def _check_frames(parsed: File, n_frames: int) -> None:
    """Refuse a number of frames that the file is too small for, before anything is made for each of them.

    Raises:
        DicomError: the frames cannot lie in the file.
    """
    header = parsed.header
    n_bytes = float(_MIN_FRAME_BYTES)
    if parsed.pixels_length >= 0:  # not encapsulated
        n_bytes = math.prod(header.frame_shape) * (header.bits_allocated or 8) / 8
    n_held = max(parsed.size, parsed.source.size)  # more than the file where it was deflated
    most = int(n_held / n_bytes)
    if n_frames > most:
        raise DicomError(f"{header.path}: found NumberOfFrames {n_frames} in {n_held} bytes, expected at most {most}")


def _implausible(plan: Plan) -> list[Image]:
    """A stack's images where their files are smaller than one would expect from what the headers say: those may lie."""
    images = [slice_.image for slice_ in plan.slices]
    claimed = sum([4 * image.shape[0] * image.shape[1] for image in images])
    return images if claimed > _MAX_EXPANSION * sum([image.size for image in images]) else []


def _build(series_id: str, plan: Plan) -> Stack:
    """A stack whose volume is still to be filled."""
    images = [slice_.image for slice_ in plan.slices]
    shape = (len(images), *images[0].shape)
    try:
        volume = recycled(shape, np.float32)
    except MemoryError as error:
        raise DicomError(f"series {series_id}: found no memory for a volume of {shape}, expected less") from error
    stack = Stack(
        series_id,
        volume,
        plan.origins_mm,
        plan.row_mm,
        plan.column_mm,
        [image.instance_number for image in images],
        images[0].is_inverted,
        step_mm=plan.step_mm,
        is_geometry_guessed=plan.is_guessed,
    )
    if any(image.frame is not None for image in images):
        stack.frame_numbers = [image.frame or 0 for image in images]
    return stack


def _jobs(targets: Iterable[tuple[Image, np.ndarray | None]]) -> list[_Job]:
    """One job for each file, whose frames go to where its images' places are."""
    jobs: list[_Job] = []
    by_path: dict[str, _Job] = {}
    for image, out in targets:
        job = None if image.frame is None else by_path.get(image.path)
        if job is not None:
            job.more = job.more or []
            job.more.append((image, out))
            continue
        job = _Job(image, out)
        jobs.append(job)
        if image.frame is not None:
            by_path[image.path] = job
    return jobs


def _decode(job: _Job) -> None:
    """Decode one file's images, or say in each what failed."""
    image = job.image
    try:
        if image.fast_path is not None and job.out is not None:
            slope, intercept, problem = _scale(image)
            if image.fast_path.fill(job.out, slope, intercept):
                image.is_decoded = True
                job.problems = (problem,) if problem else ()
                return
        read = read_slice(image.path)
    except DicomError as error:
        for failed, _ in job.targets:
            failed.failure = str(error)
        return
    problems = list(getattr(read, "problems", ()))
    for image, out in job.targets:
        pixels = read.pixels
        if image.frame is not None and pixels.ndim == 3 and image.frame <= len(pixels):
            pixels = pixels[image.frame - 1]
        if pixels.shape != image.shape:  # a plugin's doing, or another file by now
            image.failure = f"{image.path}: found pixels of shape {read.pixels.shape}, expected {image.shape}"
            continue
        image.is_decoded = True
        slope, intercept, problem = _scale(image)
        problems += [problem] if problem else []
        if out is not None:
            _rescale(pixels, slope, intercept, out)
    job.problems = tuple(problems)


def _scale(image: Image) -> tuple[float, float, str]:
    """Slope and intercept of the rescaled units, and what is wrong with them."""
    header = image.header
    slope = 1.0 if header.rescale_slope is None else header.rescale_slope
    intercept = 0.0 if header.rescale_intercept is None else header.rescale_intercept
    if slope == 0 or abs(slope) > _MAX_RESCALE or abs(intercept) > _MAX_RESCALE:
        return 1.0, 0.0, f"found slope {slope} and intercept {intercept}, expected some below 1e9; not rescaled"
    return slope, intercept, ""


def _rescale(pixels: np.ndarray, slope: float, intercept: float, out: np.ndarray) -> None:
    """Write pixels in rescaled units to ``out`` (rows, columns) float32; what is no number becomes the lowest one."""
    if pixels.dtype.kind == "f":
        with np.errstate(invalid="ignore"):  # signalling NaNs
            pixels = np.asarray(pixels, dtype=np.float64)
        is_number = np.isfinite(pixels)
        lowest = pixels.min(where=is_number, initial=np.inf)
        pixels = np.where(is_number, pixels, lowest if math.isfinite(lowest) else 0.0)
        pixels = np.clip(pixels, -MAX_FLOAT, MAX_FLOAT)
    out[...] = pixels
    if slope != 1:
        out *= np.float32(slope)
    if intercept != 0:
        out += np.float32(intercept)


def _set_padding(stacks: list[Stack], plans: list[Plan]) -> list[str]:
    """Note in the stacks what their files declare to be padding; a line where that is not believed."""
    is_range = False
    declared = []
    for stack, plan in zip(stacks, plans, strict=True):
        headers = [slice_.image.header for slice_ in plan.slices]
        if all([header.pixel_padding_value is None and header.pixel_data == "PixelData" for header in headers]):
            continue
        if all(padding_ends(header)[0] is None for header in headers):
            continue
        ranges = [declared_range(slice_.image.header, *_scale(slice_.image)[:2]) for slice_ in plan.slices]
        stack.padding = np.array([own or (math.nan, math.nan) for own in ranges], dtype=np.float32)
        declared.append(stack)
        is_range = is_range or any(padding_ends(header)[1] is not None for header in headers)
    if not declared or not (doubt := reason_to_ignore_padding(declared, is_range)):
        return []
    for stack in declared:
        stack.padding = None
    return [f"declared padding (PixelPaddingValue) counts as image, {doubt}"]


def _summary(lines: list[tuple[str, str]]) -> list[str]:
    """Lines (path, problem) of which those that differ in nothing but numbers become one, with the first as example."""
    kinds: dict[str, list[tuple[str, str]]] = {}
    for path, line in lines:
        line = line.removeprefix(f"{path}: ")
        kinds.setdefault(re.sub(r"\d+", "0", line), []).append((os.path.basename(path), line))
    summary = []
    for (name, line), *others in kinds.values():
        n_others = len({other for other, _ in others} - {name})
        summary.append(f"{name}{f' and {n_others} more files' if n_others else ''}: {line}")
    return summary
