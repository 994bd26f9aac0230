"""How many samples and slices a cohort has, from its tables and from the number of files of each series alone."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lumbar.config import AxialClassifierConfig, SagittalClassifierConfig, SliceRoleConfig
from lumbar.dicom import read_header
from lumbar.errors import DicomError
from lumbar.labels import AXIAL_T2, SPINAL
from lumbar_train.data.tables import Cohort

Counts = NDArray[np.int64]
_MIN_LEVELS = 3  # canal points that a study needs to be localised
_LEVELS = 5
_NEAR_LEVEL = 1.4 / _LEVELS  # share of an axial series within 0.7 gaps of one level, if it covers all five
_HEADERS = 24  # slices whose size is looked at
_USUAL_SLICE = 2 * 512 * 512  # bytes, where no header can be read


@dataclass(frozen=True)
class CohortCounts:
    """What of a cohort decides how long training takes.

    Attributes:
        studies: that have labels.
        located: studies with at least three canal points.
        sagittal: slices of each sagittal series.
        axial: slices of each axial series.
        axial_pairs: axial slices with points of one level.
        labels: (studies, 5 conditions, 5 levels), -1 missing.
        file_bytes: of a decoded file, on average; nearly all have one slice.
    """

    studies: int
    located: int
    sagittal: Counts
    axial: Counts
    axial_pairs: int
    labels: NDArray[np.int8]
    file_bytes: float

    @property
    def slices(self) -> int:
        """All slices of the cohort."""
        return int(self.sagittal.sum() + self.axial.sum())

    @property
    def cache_bytes(self) -> float:
        """Of all decoded slices together, as a cache keeps them."""
        return self.slices * self.file_bytes

    def samples(self, name: str, stage: Any) -> int:
        """Samples of an epoch of a stage's fit on all studies; an upper bound, since some prove unusable."""
        if name == "sagittal_xy":
            return self.located * int(stage.fit.repeats)
        if name == "sagittal_z":
            return len(self.sagittal)
        if name == "axial_xy":
            return self.axial_pairs
        if name == "aggregator":
            return self.studies
        if name == "series_contrast":
            return len(self.sagittal)
        targets = getattr(stage.network, "conditions", (0, 1, 2))
        return int((self.labels[:, list(targets)] >= 0).any(axis=1).sum())

    def images(self, config: Any) -> Counts:
        """Images that samples of a network's fit have, one number for each kind of sample that may be drawn."""
        if isinstance(config, SliceRoleConfig):
            return self.sagittal if len(self.sagittal) else np.ones(1, np.int64)
        most = getattr(config, "max_slices", 0)
        if isinstance(config, SagittalClassifierConfig):
            if not most:
                return np.array([3 * config.window])
            each = np.minimum(self.sagittal, most) if len(self.sagittal) else np.ones(1, np.int64)
            return 2 * each
        if isinstance(config, AxialClassifierConfig):
            if not most:
                return np.array([config.window])
            near = np.ceil(_NEAR_LEVEL * self.axial).astype(np.int64)
            return np.clip(near, 1, most) if len(near) else np.ones(1, np.int64)
        return np.ones(1, np.int64)


def classifier_images(config: Any, counts: CohortCounts) -> float:
    """Images that one fit of a classifier looks at to predict a mean study.

    Of five levels, in each of their series where it looks at every one, mirrored views included.
    """
    views = 1 if getattr(config, "share_sides", False) else 2
    studies = max(counts.studies, 1)
    looks = 1.0
    if getattr(config, "per_series", False):
        is_sagittal = isinstance(config, SagittalClassifierConfig)
        looks = (len(counts.sagittal) / 2 if is_sagittal else len(counts.axial)) / studies
    return _LEVELS * float(counts.images(config).mean()) * views * max(looks, 1.0)


def count_cohort(cohort: Cohort) -> CohortCounts:
    """Count a cohort; folders are listed, a few headers read, and nothing is decoded."""
    root = cohort.root / f"{cohort.split}_images"
    rows = list(zip(*(cohort.series[name] for name in ("study_id", "series_id", "series_description")), strict=True))
    n_slices = {(study, series): _count(root / str(study) / str(series)) for study, series, _ in rows}
    is_axial = np.array([description == AXIAL_T2 for _, _, description in rows], dtype=bool)
    each = np.array([n_slices[row[:2]] for row in rows], dtype=np.int64)
    points = cohort.points
    canal = points[points["condition"] == SPINAL].groupby("study_id")["level"].nunique()
    axial_series = {row[1] for row, axial in zip(rows, is_axial, strict=True) if axial}
    pairs = points[points["series_id"].isin(axial_series)]
    folders = [root / str(study) / str(series) for (study, series), n in n_slices.items() if n]
    return CohortCounts(
        studies=len(cohort),
        located=int((canal >= _MIN_LEVELS).sum()),
        sagittal=each[~is_axial & (each > 0)],
        axial=each[is_axial & (each > 0)],
        axial_pairs=len(pairs[["series_id", "instance_number", "level"]].drop_duplicates()),
        labels=cohort.labels.reshape(-1, 5, _LEVELS),
        file_bytes=_file_bytes(folders),
    )


def _count(folder: Path) -> int:
    try:
        with os.scandir(folder) as entries:
            return sum(entry.name.endswith(".dcm") for entry in entries)
    except OSError:  # a series that is described and not there is left out when it is read
        return 0


def _file_bytes(folders: list[Path]) -> float:
    """Mean size of a decoded file, from the headers of a few that lie evenly over the cohort."""
    sizes = []
    for folder in folders[:: max(1, len(folders) // _HEADERS)]:
        try:
            header = read_header(min(folder.glob("*.dcm")))
        except (DicomError, OSError, ValueError):
            continue
        if header.rows and header.columns:
            sizes.append(2.0 * header.rows * header.columns * max(1, header.number_of_frames or 1))
    return float(np.mean(sizes)) if sizes else float(_USUAL_SLICE)


def largest_batch(images: Counts, samples: int, n_parts: int, rng: np.random.Generator) -> int:
    """The most images that a part of some batch will have: samples drawn as an epoch does, cut into parts.

    Args:
        images: of each sample that may be drawn.
        samples: of a batch.
        n_parts: that a batch is cut into.
        rng: draws batches.
    """
    size = -(-samples // n_parts)
    if images.min() == images.max():
        return int(images[0]) * size
    order = rng.permutation(np.resize(images, max(len(images), 4 * size)))
    rows = order[: len(order) // size * size].reshape(-1, size)
    return int(rows.sum(axis=1).max())
