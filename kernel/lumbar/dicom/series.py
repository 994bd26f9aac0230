"""A series' folder to stacks: grouped by orientation and size, ordered in space, decoded by threads.

Instance numbers are not an order in space; a series may hold blocks of several angles, images of several sizes, several
images of one position and files of many frames; and any optional tag may be missing. Images that can be placed are
placed (``assembly``); the others are named in ``problems``.

Headers are read first. They decide which images make the volumes, and only those are decoded (and a few others, to find
damage). Threads then decode the files straight into the volumes. Each thread uses the same working memory for all its
slices, because new memory takes longer than decoding.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from lumbar.dicom._scratch import recycled, reused
from lumbar.dicom.assembly.decoding import Job, decode, make_jobs, rescaling_of
from lumbar.dicom.assembly.images import Image, ImageFile, list_files, open_images
from lumbar.dicom.assembly.ordering import Plan, arrange
from lumbar.dicom.assembly.padding import declared_range, padding_ends, reason_to_ignore_padding
from lumbar.dicom.assembly.placing import Notes, place
from lumbar.dicom.assembly.repeats import Excluded
from lumbar.dicom.limits import check_volumes
from lumbar.dicom.stack import Stack
from lumbar.errors import DicomError

Argument = TypeVar("Argument")
Result = TypeVar("Result")

_MAX_EXPANSION = 64  # bytes of a volume for each byte of its files; with more, slices are tried before it is made
# One thread reads headers from cached files faster than several that take turns: it works alone for so long.
_SINGLE_THREAD_S = 5e-3
_MAX_REPLANS = 8  # how often other slices are tried in the place of damaged ones
_MAX_EXTRAS = 16  # images beside the volumes that are decoded all the same, to find damage


@dataclass
class Series:
    """A series: its stacks, the largest first, and its problems, a line each.

    ``guesses`` are those of the problems that say which geometry was guessed.
    """

    series_id: str
    stacks: list[Stack]
    problems: list[str] = field(default_factory=list)
    guesses: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _ThreadTeam:
    """``count`` threads: the caller's and those of a pool."""

    pool: ThreadPoolExecutor
    count: int

    def map(self, function: Callable[[Argument], Result], items: list[Argument], alone_s: float = 0.0) -> list[Result]:
        """Call ``function`` for each of ``items``, and return the results in order.

        The caller's thread works alone for ``alone_s`` seconds; then the pool's threads help. They work on items that
        are far apart, because neighbouring slices of a volume share large memory pages, and two threads that touch a
        new page at the same time both wait for it. What ``function`` reads from a file is valid only until it reads
        the next file.
        """
        results: dict[int, Result] = {}
        chunk = max(1, -(-len(items) // self.count))
        left = iter([index for first in range(chunk) for index in range(first, len(items), chunk)])

        def work(until: float = math.inf) -> None:
            with reused():
                for index in left:  # shared by all threads, so that a slow one takes fewer items
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
    """Read a series from the ``*.dcm`` files of a folder.

    Slices that cannot be read or placed are left out and named in ``problems``. Where no slice has a position, they are
    stacked in the order of SliceLocation or of their instance numbers.

    Args:
        folder: the series' folder.
        workers: threads; None for one per core, at most 4.
        fallback_orientation: ``sagittal``, ``axial`` or ``coronal``, where no slice has an orientation.
        prefers_long_echo: of several echoes at the same positions, take the longest for the volume, not the shortest.

    Raises:
        DicomError: the folder cannot be listed, holds no ``*.dcm`` file, or none that can be read.
    """
    root = os.fspath(folder)
    files = list_files(root)
    series_id = os.path.basename(os.path.normpath(root))
    return _with_threads(root, series_id, files, workers, fallback_orientation, prefers_long_echo)


def read_series_files(
    series_id: str,
    paths: Sequence[str],
    workers: int | None = None,
    fallback_orientation: str = "sagittal",
    prefers_long_echo: bool = False,
) -> Series:
    """Read a series from its files, wherever they lie and whatever their names are; else as ``read_series``.

    Args:
        series_id: its name in problems and results.
        paths: of its files; their order counts where their headers have no instance numbers.
        workers: as ``read_series``.
        fallback_orientation: as ``read_series``.
        prefers_long_echo: as ``read_series``.

    Raises:
        DicomError: none of the files can be read.
    """
    files = [ImageFile(path, os.path.basename(path), index, False) for index, path in enumerate(paths)]
    name = f"series {series_id}"
    return _with_threads(name, series_id, files, workers, fallback_orientation, prefers_long_echo)


def _with_threads(
    root: str,
    series_id: str,
    files: list[ImageFile],
    workers: int | None,
    fallback_orientation: str,
    prefers_long_echo: bool,
) -> Series:
    count = max(1, min(len(files), workers if workers is not None else min(4, os.cpu_count() or 1)))
    with ThreadPoolExecutor(max(1, count - 1)) as pool:
        for _ in range(count - 1):  # start the threads now: they are ready once the headers are read
            pool.submit(int)
        return _read(root, series_id, files, _ThreadTeam(pool, count), fallback_orientation, prefers_long_echo)


def _read(
    root: str,
    series_id: str,
    files: list[ImageFile],
    team: _ThreadTeam,
    fallback_orientation: str,
    prefers_long_echo: bool,
) -> Series:
    """Plan the stacks from the headers, decode them, and plan again without the slices that turn out to be damaged."""
    opened = team.map(open_images, files, alone_s=_SINGLE_THREAD_S)
    images = [image for result in opened if isinstance(result, list) for image in result]
    for attempt in range(len(images) + 1):
        failures = _failures(opened)
        good = [image for image in images if not image.failure and (attempt < _MAX_REPLANS or image.is_decoded)]
        if not good:
            raise DicomError(f"{root}: found no readable slice in {len(files)} files, expected some ({failures[0]})")
        notes, excluded = Notes(failures), Excluded()
        if n_untried := sum(not image.failure for image in images) - len(good):
            notes.problems.append(f"{n_untried} slices left out, found {_MAX_REPLANS} damaged ones in their stead")
        plans = arrange(place(good, fallback_orientation, notes), notes, excluded, prefers_long_echo)
        if not _try_implausible(plans, team):
            continue
        stacks = _make_stacks(series_id, plans)
        extras = [] if attempt else [image for image, _ in excluded.doubles + excluded.copies]
        jobs = _fill(stacks, plans, extras[:_MAX_EXTRAS], team)
        if not any(job.has_failed for job in jobs):
            break
    problems = _summary(_decoding_problems(good, jobs)) + _set_padding(stacks, plans)
    notes.problems.extend(f"{series_id}: {line}" for line in problems)
    stacks.sort(key=lambda stack: -len(stack.instance_numbers))
    return Series(series_id, stacks, notes.problems, notes.guesses)


def _failures(opened: list[list[Image] | DicomError]) -> list[str]:
    """The errors so far, in the order of the files, once for all frames of a file."""
    lines: dict[str, None] = {}
    for result in opened:
        if isinstance(result, list):
            lines.update((image.failure, None) for image in result if image.failure)
        else:
            lines[str(result)] = None
    return list(lines)


def _try_implausible(plans: list[Plan], team: _ThreadTeam) -> bool:
    """Decode the slices of stacks that are far larger than their files, before there is a volume of that size.

    Their headers may claim a size that is not true.

    Returns:
        Whether all of them could be decoded.
    """
    doubtful = [image for plan in plans for image in _implausible(plan) if not image.is_decoded]
    if not doubtful:
        return True
    team.map(decode, make_jobs((image, None) for image in doubtful))
    return not any(image.failure for image in doubtful)


def _implausible(plan: Plan) -> list[Image]:
    """A stack's images, where the volume would be too large for their files; else none."""
    images = [slice_.image for slice_ in plan.slices]
    claimed = sum([4 * image.shape[0] * image.shape[1] for image in images])
    return images if claimed > _MAX_EXPANSION * sum([image.size for image in images]) else []


def _make_stacks(series_id: str, plans: list[Plan]) -> list[Stack]:
    """The stacks, with volumes that are still to be filled.

    Raises:
        DicomError: the volumes are larger than the files may ask for, or there is no memory for them.
    """
    images = [slice_.image for plan in plans for slice_ in plan.slices]
    n_pixels = sum([image.shape[0] * image.shape[1] for image in images])
    check_volumes(series_id, n_pixels, sum([image.size for image in images]))
    return [_make_stack(series_id, plan) for plan in plans]


def _make_stack(series_id: str, plan: Plan) -> Stack:
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
        is_spacing_guessed=plan.slices[0].is_spacing_guessed,
    )
    if any(image.frame is not None for image in images):
        stack.frame_numbers = [image.frame or 0 for image in images]
    return stack


def _fill(stacks: list[Stack], plans: list[Plan], extras: list[Image], team: _ThreadTeam) -> list[Job]:
    """Decode all slices into the volumes, and ``extras`` only to find damage; the jobs say what went wrong."""
    targets = [
        (slice_.image, out)
        for plan, stack in zip(plans, stacks, strict=True)
        for slice_, out in zip(plan.slices, stack.volume, strict=True)
    ]
    jobs = make_jobs([*targets, *((image, None) for image in extras)])
    team.map(decode, jobs)
    return jobs


def _decoding_problems(images: list[Image], jobs: list[Job]) -> list[tuple[str, str]]:
    """Lines (path, problem) about headers, once for all frames of a file, and about pixels."""
    headers = {image.path: image.header for image in images}
    lines = [(path, line) for path, header in headers.items() for line in header.problems]
    return lines + [(job.image.path, line) for job in jobs for line in job.problems]


def _set_padding(stacks: list[Stack], plans: list[Plan]) -> list[str]:
    """Note in the stacks what their files declare to be padding; a line where that is not believed.

    Padding is believed for all stacks of a series or for none (``reason_to_ignore_padding``).
    """
    is_range = False
    declared = []
    for stack, plan in zip(stacks, plans, strict=True):
        headers = [slice_.image.header for slice_ in plan.slices]
        if all([header.pixel_padding_value is None and header.pixel_data == "PixelData" for header in headers]):
            continue
        if all(padding_ends(header)[0] is None for header in headers):
            continue
        ranges = [declared_range(slice_.image.header, *rescaling_of(slice_.image)[:2]) for slice_ in plan.slices]
        stack.padding = np.array([own or (math.nan, math.nan) for own in ranges], dtype=np.float32)
        declared.append(stack)
        is_range = is_range or any(padding_ends(header)[1] is not None for header in headers)
    if not declared or not (reason := reason_to_ignore_padding(declared, is_range)):
        return []
    for stack in declared:
        stack.padding = None
    return [f"declared padding (PixelPaddingValue) counts as image, {reason}"]


def _summary(lines: list[tuple[str, str]]) -> list[str]:
    """One line for all problems that differ in nothing but numbers, with the first as the example."""
    kinds: dict[str, list[tuple[str, str]]] = {}
    for path, line in lines:
        line = line.removeprefix(f"{path}: ")
        kinds.setdefault(re.sub(r"\d+", "0", line), []).append((os.path.basename(path), line))
    summary = []
    for (name, line), *others in kinds.values():
        n_others = len({other for other, _ in others} - {name})
        summary.append(f"{name}{f' and {n_others} more files' if n_others else ''}: {line}")
    return summary
