"""A series read by what the table of series says it is: the same in ``predict`` and in ``inspect``."""

from __future__ import annotations

import os

from lumbar.dicom.series import Series, read_series
from lumbar.labels import AXIAL_T2, SAGITTAL_T1, SAGITTAL_T2

# The orientation of a described series: expected of its stacks, and assumed where no file says one.
ORIENTATIONS = {SAGITTAL_T1: "sagittal", SAGITTAL_T2: "sagittal", AXIAL_T2: "axial"}
UNKNOWN_ORIENTATION = "sagittal"  # of a series that no table describes


def orientation_of(description: str | None) -> str:
    """The orientation of a series with that description; of an unknown one ``sagittal``, as most of a spine's are."""
    return ORIENTATIONS.get(description or "", UNKNOWN_ORIENTATION)


def read_described(folder: str | os.PathLike[str], description: str | None, workers: int | None = None) -> Series:
    """Read a series' folder as what the table of series says that it is; ``None``: no table says.

    Of several echoes at the same places T2 means the longest.

    Raises:
        DicomError: as ``read_series``.
    """
    return read_series(
        folder,
        workers=workers,
        fallback_orientation=orientation_of(description),
        prefers_long_echo=description in (SAGITTAL_T2, AXIAL_T2),
    )
