"""The pixels of a series' images, decoded in rescaled units straight to their places in the volumes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from lumbar.dicom.assembly.images import Image
from lumbar.dicom.assembly.padding import MAX_FLOAT
from lumbar.dicom.pixels import read_slice
from lumbar.errors import DicomError

Target = tuple[Image, np.ndarray | None]
"""An image, and the (rows, columns) float32 array that it goes to; ``None``: it is decoded only to find damage."""

_MAX_RESCALE = 1e9  # a larger slope or intercept is damage, and float32 would overflow


@dataclass(slots=True)
class Job:
    """A file to decode: ``image`` to ``out``, and further frames of the same file to theirs.

    A series makes one for each slice, so a job of one image holds no list: that would cost garbage collection.
    """

    image: Image
    out: np.ndarray | None
    more: list[Target] | None = None
    problems: tuple[str, ...] = ()

    @property
    def targets(self) -> list[Target]:
        """All images, each with the array that it goes to."""
        return [(self.image, self.out), *(self.more or ())]

    @property
    def has_failed(self) -> bool:
        """Whether the pixels of any image could not be read."""
        return bool(self.image.failure) or (self.more is not None and any(image.failure for image, _ in self.more))


def make_jobs(targets: Iterable[Target]) -> list[Job]:
    """One job for each file."""
    jobs: list[Job] = []
    by_path: dict[str, Job] = {}
    for image, out in targets:
        job = None if image.frame is None else by_path.get(image.path)
        if job is not None:
            job.more = job.more or []
            job.more.append((image, out))
            continue
        job = Job(image, out)
        jobs.append(job)
        if image.frame is not None:
            by_path[image.path] = job
    return jobs


def decode(job: Job) -> None:
    """Decode one file's images, or note in each of them why that failed."""
    image = job.image
    try:
        if image.fast_path is not None and job.out is not None:
            slope, intercept, problem = rescaling_of(image)
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
        slope, intercept, problem = rescaling_of(image)
        problems += [problem] if problem else []
        if out is not None:
            _rescale(pixels, slope, intercept, out)
    job.problems = tuple(problems)


def rescaling_of(image: Image) -> tuple[float, float, str]:
    """Slope and intercept of the rescaled units, and what is wrong with those of the header (mostly nothing)."""
    header = image.header
    slope = 1.0 if header.rescale_slope is None else header.rescale_slope
    intercept = 0.0 if header.rescale_intercept is None else header.rescale_intercept
    if slope == 0 or abs(slope) > _MAX_RESCALE or abs(intercept) > _MAX_RESCALE:
        return 1.0, 0.0, f"found slope {slope} and intercept {intercept}, expected some below 1e9; not rescaled"
    return slope, intercept, ""


def _rescale(pixels: np.ndarray, slope: float, intercept: float, out: np.ndarray) -> None:
    """Write pixels in rescaled units to ``out`` (rows, columns) float32; NaN and infinity become the lowest value."""
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
