"""Reading a series by its description in the table of series, for ``predict`` and for ``inspect``."""

from __future__ import annotations

import os
from collections.abc import Sequence

from lumbar.dicom.series import Series, read_series, read_series_files
from lumbar.labels import AXIAL_T2, SAGITTAL_T1, SAGITTAL_T2

# The orientation that a description stands for: expected of the stacks, and assumed where no file has one.
ORIENTATIONS = {SAGITTAL_T1: "sagittal", SAGITTAL_T2: "sagittal", AXIAL_T2: "axial"}
UNKNOWN_ORIENTATION = "sagittal"  # for a series without a description


def orientation_of(description: str | None) -> str:
    """The orientation that a description stands for; if unknown, ``sagittal``, as most series of a spine are."""
    return ORIENTATIONS.get(description or "", UNKNOWN_ORIENTATION)


def read_described(
    folder: str | os.PathLike[str],
    description: str | None,
    workers: int | None = None,
    files: Sequence[str] | None = None,
) -> Series:
    """Read a series' folder, with the orientation and the echo that its description stands for.

    For T2 that is the longest of several echoes at the same positions. ``None`` stands for no description. With
    ``files`` the series is these files, and ``folder`` only its name.

    Raises:
        DicomError: as ``read_series``.
    """
    orientation, is_t2 = orientation_of(description), description in (SAGITTAL_T2, AXIAL_T2)
    if files is not None:
        return read_series_files(os.path.basename(os.fspath(folder)), files, workers, orientation, is_t2)
    return read_series(folder, workers, orientation, is_t2)
