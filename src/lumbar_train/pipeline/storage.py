"""Whether decoded studies are kept in a cache, or slices decoded when asked for: by its size and the disk's room."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from lumbar_train.data import dicom_folder
from lumbar_train.data.cache import can_write, holds_studies
from lumbar_train.data.tables import Cohort
from lumbar_train.errors import TrainingError
from lumbar_train.pipeline.counts import CohortCounts, count_cohort
from lumbar_train.pipeline.options import NO_CACHE, TrainOptions

_FOR_RUN = 4 * 2**30  # bytes that a cache leaves for weights and tables, or as many as it takes itself
_TOO_MUCH = 1.25  # an estimate is within a quarter: only a cache that is larger by more is refused at once
INDEX_BYTES = 70  # of the index for each slice, compressed; measured on phantoms (docs/measurements.md)
_ON_DEMAND = "slices are decoded when asked for"


@dataclass(frozen=True)
class Storage:
    """Where decoded slices go.

    Attributes:
        cache: the folder; None where they are kept nowhere.
        why: where nobody asked for that, the reason; else empty.
    """

    cache: Path | None
    why: str = ""


def choose_storage(options: TrainOptions, cohort: Cohort, counts: CohortCounts | None = None) -> Storage:
    """The cache that was asked for, or ``RUN/cache`` where the disk has room for it, or none.

    Args:
        options: of the run.
        cohort: to be decoded.
        counts: of the cohort, where they are known.

    Raises:
        TrainingError: the disk has no room for the cache that was asked for.
    """
    if options.cache == NO_CACHE:
        return Storage(None)
    folder = options.cache or options.out / "cache"
    has_index = (options.out / dicom_folder.FOLDER).is_dir()
    if options.cache is None and has_index and not holds_studies(folder):
        return Storage(None, f"as before in this run, {_ON_DEMAND}")
    if _is_complete(folder, len(cohort)) or (holds_studies(folder) and not can_write(folder)):
        return Storage(folder)
    size = (counts or count_cohort(cohort)).cache_bytes
    needed, free = max(0.0, size - _used(folder)), _free(folder)
    room = f"{in_units(size)} of decoded slices, and {in_units(free)} are free in {folder.parent}"
    if options.cache is not None:
        if needed > _TOO_MUCH * free:
            raise TrainingError(f"--cache {folder}: about {room}, expected room for them; --cache none takes none")
        return Storage(folder)
    if needed + min(needed, _FOR_RUN) > free:
        return Storage(None, f"about {room}; {_ON_DEMAND} (--cache DIR keeps them elsewhere)")
    return Storage(folder)


def cache_line(options: TrainOptions, cohort: Cohort, counts: CohortCounts) -> str:
    """What a plan says of the cache.

    Raises:
        TrainingError: as ``choose_storage``.
    """
    storage = choose_storage(options, cohort, counts)
    size = f"{in_units(counts.cache_bytes)} (decoded slices)"
    if storage.cache is not None:
        return f"cache {size}"
    return (
        f"index {in_units(INDEX_BYTES * counts.slices)}; no cache: {storage.why or f'as asked; it would take {size}'}"
    )


def _is_complete(folder: Path, n_studies: int) -> bool:
    """Whether a cache knows as many studies as the cohort has, so that little can be left to decode."""
    return sum(1 for _ in (folder / "index").glob("*.json")) >= n_studies


def _used(folder: Path) -> float:
    return float(sum(path.stat().st_size for path in (folder / "objects").glob("*/*.bin")))


def _free(folder: Path) -> float:
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return float(shutil.disk_usage(above).free)


def in_units(n_bytes: float) -> str:
    """A number of bytes in KiB, MiB or GiB."""
    if n_bytes >= 2**30:
        return f"{n_bytes / 2**30:.1f} GiB"
    return f"{n_bytes / 2**20:.0f} MiB" if n_bytes >= 2**20 else f"{n_bytes / 2**10:.0f} KiB"
