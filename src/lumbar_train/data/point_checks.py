"""Points against the images that they were set in: the slice exists, holds the point, and sides are true."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lumbar import labels
from lumbar.errors import CohortError, DicomError
from lumbar.io.progress import Progress
from lumbar_train.data.external_points import in_own_pixels

SAGITTAL_SIDES_APART_MM = 10.0  # foramina lie 25-45 mm apart; less means both sides marked on one side's slices


def check_series_folders(images: Path, series: pd.DataFrame, dropped: Counter[str]) -> pd.DataFrame:
    """Leave out described series whose folder is gone.

    Raises:
        CohortError: no series has a folder, so that the path itself must be wrong.
    """
    exists = np.array(
        [(images / str(r.study_id) / str(r.series_id)).is_dir() for r in series.itertuples(index=False)], dtype=bool
    )
    if len(series) and not exists.any():
        raise CohortError(f"{images}: none of {len(series)} described series has a folder here")
    dropped["series: folder missing"] += int((~exists).sum())
    return series[exists].reset_index(drop=True)


def check_points(
    images: Path,
    points: pd.DataFrame,
    dropped: Counter[str],
    *,
    progress: bool = True,
    read_header: Callable[[Path], Any] | None = None,
) -> pd.DataFrame:
    """Leave out points on absent or unreadable slices, outside their image, or with sides exchanged; count each.

    Args:
        images: ``ROOT/train_images``.
        points: as in ``Cohort.points``.
        dropped: counted into, by reason.
        progress: say how far it has come.
        read_header: how a slice's header is read; ``lumbar.dicom.read_header`` unless a test brings its own.

    Raises:
        CohortError: most left points lie to the right of their partners: the whole table has its sides exchanged.
    """
    if not len(points):
        return points
    reader = read_header
    if reader is None:
        from lumbar import dicom

        reader = dicom.read_header
    slices = points[["study_id", "series_id", "instance_number"]].drop_duplicates()
    paths = [images / str(s) / str(e) / f"{i}.dcm" for s, e, i in slices.itertuples(index=False)]
    with ThreadPoolExecutor(8) as pool:  # opening files waits on the disk far more than on the processor
        shown = Progress(len(paths), "slice", title="points", is_shown=progress, is_part=True)
        headers = list(shown.each(pool.map(lambda path: _geometry(path, reader), paths)))
    table = dict(zip(slices.itertuples(index=False, name=None), headers, strict=True))
    keys = points[["study_id", "series_id", "instance_number"]].itertuples(index=False, name=None)
    geometry = [table[key] for key in keys]
    points = in_own_pixels(points, geometry)
    reasons, x_mm = _look(points, geometry)
    reasons = _sides(points, x_mm, reasons)
    for reason in reasons:
        if reason:
            dropped[reason] += 1
    return points[[not reason for reason in reasons]].reset_index(drop=True)


def _geometry(path: Path, read_header: Callable[[Path], Any]) -> Any:
    """The slice's header, or the reason why there is none."""
    if not path.is_file():
        return "points: slice missing"
    try:
        header = read_header(path)
    except DicomError:
        return "points: slice unreadable"
    if header.rows is None or header.columns is None:
        return "points: slice unreadable"
    return header


def _look(points: pd.DataFrame, geometry: list[Any]) -> tuple[list[str], np.ndarray]:
    """Reason against each point (or ""), and its patient x in mm (+ is left; NaN where geometry is absent)."""
    reasons: list[str] = []
    x_mm = np.full(len(points), np.nan)
    for place, (x, y, header) in enumerate(zip(points["x_px"], points["y_px"], geometry, strict=True)):
        if isinstance(header, str):
            reasons.append(header)
            continue
        # The outer edges of the border pixels are still the image.
        is_inside = -0.5 <= x <= header.columns and -0.5 <= y <= header.rows
        reasons.append("" if is_inside else "points: outside the image")
        origin, cosines, spacing = (
            header.image_position_patient, header.image_orientation_patient, header.pixel_spacing,
        )  # fmt: skip
        if origin and cosines and spacing:
            x_mm[place] = origin[0] + x * spacing[1] * cosines[0] + y * spacing[0] * cosines[3]
    return reasons, x_mm


def _sides(points: pd.DataFrame, x_mm: np.ndarray, reasons: list[str]) -> list[str]:
    """Mark pairs whose left point does not lie on the patient's left of its right partner."""
    reasons = list(reasons)
    by_key: dict[tuple[Any, ...], dict[str, int]] = {}
    for place, row in enumerate(points.itertuples(index=False)):
        if row.side in labels.SIDES and not reasons[place]:
            finding = str(row.condition).split("_", 1)[1]
            by_key.setdefault((row.study_id, row.series_id, finding, row.level), {})[str(row.side)] = place
    pairs = [(key, pair["left"], pair["right"]) for key, pair in by_key.items() if len(pair) == 2]
    n_wrong = 0
    for (_, _, finding, _), left, right in pairs:
        apart = x_mm[left] - x_mm[right]
        is_axial = finding == "subarticular_stenosis"
        if np.isnan(apart) and is_axial:  # without geometry: by the radiological convention left lies at the larger x
            apart = points["x_px"].iloc[left] - points["x_px"].iloc[right]
        n_wrong += bool(apart < 0)
        if apart < 0:
            reason = "points: sides swapped"
        elif apart < SAGITTAL_SIDES_APART_MM and not is_axial:
            reason = "points: both sides marked on one side"
        else:
            continue
        reasons[left] = reasons[right] = reason
    if n_wrong > 0.5 * len(pairs) and len(pairs) >= 10:
        raise CohortError(
            f"points: in {n_wrong} of {len(pairs)} pairs the left point lies on the patient's right; "
            "expected left at the larger x (LPS)"
        )
    return reasons
