"""Tissue labels of a synthetic cohort (``truth_masks``), the auxiliary target of the sagittal localiser."""

from __future__ import annotations

import zlib
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from lumbar.dicom import Stack
from lumbar.errors import CohortError
from lumbar.geometry import Grid

FOLDER = "truth_masks"
KEPT_SERIES = 4096  # in memory, packed: about 60 kB each
SACRUM, S1 = 4, 5  # from S1 on: parts of the sacrum, which networks with fewer segments know as one
UNKNOWN = -1


def for_segments(labels: NDArray[np.int64], segments: int) -> NDArray[np.int64]:
    """Labels as a network with so many segments knows them; what it has no segment for is unknown to it."""
    if segments <= S1:
        labels = np.where(labels >= S1, SACRUM, labels)
    return np.where(labels < segments, labels, UNKNOWN)


class MaskReader:
    """Reads ``truth_masks/<study>/<series>.npz``: ``masks`` (slices, rows, columns) uint8, ``instance_numbers``.

    A file is unpacked once, and its slices are kept packed one by one: a sample needs one slice of one series, and
    series come in random order.
    """

    def __init__(self, root: Path) -> None:
        self.folder = Path(root) / FOLDER
        self._read = lru_cache(maxsize=KEPT_SERIES)(self._load)

    def __getstate__(self) -> dict[str, Path]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Path]) -> None:
        self.folder = state["folder"]
        self._read = lru_cache(maxsize=KEPT_SERIES)(self._load)

    @property
    def is_there(self) -> bool:
        """Whether the cohort has masks."""
        return self.folder.is_dir()

    def sampled(
        self, study_id: int, stack: Stack, index: int, grid: Grid, stride: int, empty: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Labels of a slice at the heatmaps' resolution (h, w), nearest neighbour; ``empty`` where there are none."""
        shape, slices = self._read(study_id, stack.series_id)
        packed = slices.get(int(stack.instance_numbers[index]))
        if packed is None:
            return empty
        labels = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(shape)
        # heat pixel (x, y) lies at grid pixel (x + 0.5) * stride - 0.5
        scale = np.array([[stride, 0, (stride - 1) / 2], [0, stride, (stride - 1) / 2], [0, 0, 1]])
        matrix = grid.matrix @ scale
        flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
        return np.asarray(cv2.warpAffine(labels, matrix, empty.shape[::-1], flags=flags), dtype=np.int64)

    def _load(self, study_id: int, series_id: str) -> tuple[tuple[int, ...], dict[int, bytes]]:
        """Rows and columns of a series' slices, and each slice packed, by its instance number."""
        path = self.folder / str(study_id) / f"{series_id}.npz"
        if not path.is_file():
            return (), {}
        try:
            with np.load(path, allow_pickle=False) as file:
                labels, numbers = file["masks"], file["instance_numbers"]
        except (OSError, KeyError, ValueError) as error:
            raise CohortError(f"{path}: found {error}, expected arrays masks and instance_numbers") from None
        slices = zip(map(int, numbers), labels.astype(np.uint8), strict=True)
        return labels.shape[1:], {number: zlib.compress(image.tobytes(), 1) for number, image in slices}
