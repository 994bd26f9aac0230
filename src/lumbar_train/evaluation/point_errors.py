"""How far localised points lie from the truth, and whether axial slices were given their true level."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lumbar.dicom import Header, read_header
from lumbar.errors import DicomError
from lumbar.labels import LEVELS, SIDES, SPINAL
from lumbar.stages.points import Localisation
from lumbar_train.data.tables import Cohort

MISSING_MM = 50.0  # what a point that was not found counts as
TRUTH_COLUMNS = ("study_id", "series_id", "instance_number", "condition", "level", "side", "x_mm", "y_mm", "z_mm")
_XYZ = ["x_mm", "y_mm", "z_mm"]


def truth_points(cohort: Cohort) -> pd.DataFrame:
    """True points in patient space: of ``truth.parquet`` where there is one, else the labelled points lifted.

    Returns:
        Columns ``TRUTH_COLUMNS``; LPS mm. Points on slices without geometry are left out.
    """
    path = cohort.root / "truth.parquet"
    if path.is_file():
        frame = pd.read_parquet(path)
        frame = frame[frame["study_id"].isin(cohort.study_ids)].reset_index(drop=True)
        frame["side"] = frame["side"].where(frame["side"].isin(SIDES), None)
        return frame[list(TRUTH_COLUMNS)]
    points = cohort.points[cohort.points["condition"] != "disc"].reset_index(drop=True)
    headers = read_headers(cohort, points)
    xyz = np.array([to_patient(h, x, y) for h, x, y in zip(headers, points["x_px"], points["y_px"], strict=True)])
    frame = points.assign(**dict(zip(_XYZ, xyz.reshape(-1, 3).T, strict=True)))
    return frame.loc[frame["x_mm"].notna(), list(TRUTH_COLUMNS)].reset_index(drop=True)


def read_headers(cohort: Cohort, slices: pd.DataFrame) -> list[Header | None]:
    """Headers of the slices that a table's rows name, each file read once; None where it cannot be read."""
    images = cohort.root / f"{cohort.split}_images"
    rows = zip(slices["study_id"], slices["series_id"], slices["instance_number"], strict=True)
    paths = [images / str(study) / str(series) / f"{instance}.dcm" for study, series, instance in rows]
    unique = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(8) as pool:
        headers = dict(zip(unique, pool.map(_header, unique), strict=True))
    return [headers[path] for path in paths]


def _header(path: Path) -> Header | None:
    try:
        return read_header(path)
    except (DicomError, OSError):
        return None


def to_patient(header: Header | None, x_px: float, y_px: float) -> tuple[float, float, float]:
    """Patient mm (LPS) of a pixel (PS3.3 C.7.6.2.1.1); NaN without geometry."""
    plane = _plane(header)
    if plane is None:
        return (np.nan, np.nan, np.nan)
    origin, column, row, _ = plane
    x, y, z = origin + x_px * column + y_px * row
    return (float(x), float(y), float(z))


def _plane(header: Header | None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
    """Origin, step of a column, step of a row, unit normal."""
    if header is None or header.image_position_patient is None or header.image_orientation_patient is None:
        return None
    between_rows, between_columns = header.pixel_spacing or (1.0, 1.0)
    cosines = np.array(header.image_orientation_patient)
    normal = np.cross(cosines[:3], cosines[3:])
    length = float(np.linalg.norm(normal))
    if length < 1e-6:
        return None
    return (
        np.array(header.image_position_patient),
        cosines[:3] * between_columns,
        cosines[3:] * between_rows,
        normal / length,
    )


def sagittal_errors(truth: pd.DataFrame, localisations: Mapping[int, Localisation]) -> pd.DataFrame:
    """One row a true canal or foraminal point, with the distance of the point that the same series was given.

    Returns:
        ``study_id, series_id, condition, level, side, error_mm, in_plane_mm, is_missing, slices_off, disc_mm``: 3-D
        distance; its part across the sagittal plane left out; how many instance numbers lie between the point's slice
        and the true one (NaN: missing, or a frame of a file with several); mean distance between neighbouring true
        canal points.
    """
    wanted = truth[~truth["condition"].str.contains("subarticular")]
    predicted = {
        (study, str(p.series_id), p.level, p.side): p
        for study, place in localisations.items()
        for p in sorted(place.sagittal_points, key=lambda point: point.confidence)  # the most confident stays
    }
    discs = _disc_distances(truth)
    rows = []
    for row in wanted.to_dict("records"):
        side = row["side"] if row["side"] in SIDES else None
        point = predicted.get((row["study_id"], str(row["series_id"]), row["level"], side))
        error, in_plane, off = MISSING_MM, MISSING_MM, np.nan
        if point is not None:
            off = abs(point.instance_number - row["instance_number"]) if point.frame is None else np.nan
            gap = np.array(point.xyz_mm) - np.array([row[name] for name in _XYZ])
            error, in_plane = float(np.linalg.norm(gap)), float(np.linalg.norm(gap[1:]))
        kept = {name: row[name] for name in ("study_id", "series_id", "condition", "level")}
        disc = discs.get(row["study_id"], np.nan)
        measured = {"error_mm": error, "in_plane_mm": in_plane, "is_missing": point is None, "slices_off": off}
        rows.append(kept | {"side": side} | measured | {"disc_mm": disc})
    columns = [
        "study_id", "series_id", "condition", "level", "side", "error_mm", "in_plane_mm", "is_missing", "slices_off",
        "disc_mm",
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def _disc_distances(truth: pd.DataFrame) -> dict[Any, float]:
    distances = {}
    for study, rows in truth[truth["condition"] == SPINAL].groupby("study_id"):
        points = {level: xyz for level, *xyz in rows[["level", *_XYZ]].itertuples(index=False)}
        gaps = [
            float(np.linalg.norm(np.subtract(points[a], points[b])))
            for a, b in pairwise(LEVELS)
            if a in points and b in points
        ]
        if gaps:
            distances[study] = float(np.mean(gaps))
    return distances


def axial_assignments(truth: pd.DataFrame, localisations: Mapping[int, Localisation], cohort: Cohort) -> pd.DataFrame:
    """One row for each level that an axial series truly shows: which level its slice belongs to.

    A slice belongs to the level whose true centre lies nearest to its plane. The level is right if the slice that was
    assigned to it belongs to it; a level without a slice is wrong.

    Returns:
        ``study_id, series_id, level, belongs_to`` (None: nothing assigned), ``is_right, left_mm, right_mm``: distance
        of the points from the true subarticular ones, 50 where missing.
    """
    axial = truth[truth["condition"].str.contains("subarticular")]
    shown = axial[["study_id", "series_id", "level"]].drop_duplicates().reset_index(drop=True)
    entries = {
        (study, str(entry.series_id), entry.level): entry
        for study, place in localisations.items()
        for entry in sorted(place.axial_levels, key=lambda entry: -abs(entry.distance_mm))  # the nearest stays
    }
    keys = [(int(r["study_id"]), str(r["series_id"]), str(r["level"])) for r in shown.to_dict("records")]
    picks = [entries.get(key) for key in keys]
    slices = shown.assign(instance_number=[-1 if pick is None else pick.instance_number for pick in picks])
    headers = read_headers(cohort, slices)
    centres = _centres(truth)
    true_xyz = {
        (r["study_id"], str(r["series_id"]), r["level"], r["side"]): np.array([r[name] for name in _XYZ])
        for r in axial.to_dict("records")
    }
    rows = []
    for key, pick, header in zip(keys, picks, headers, strict=True):
        belongs = None if pick is None else _nearest_level(header, centres.get(key[0], {}))
        errors = {}
        for side in SIDES:
            target, errors[f"{side}_mm"] = true_xyz.get((*key, side)), MISSING_MM
            if target is None:
                errors[f"{side}_mm"] = np.nan
            elif pick is not None:
                x, y = pick.left_px if side == "left" else pick.right_px
                gap = float(np.linalg.norm(np.array(to_patient(header, x, y)) - target))
                errors[f"{side}_mm"] = gap if np.isfinite(gap) else MISSING_MM
        rows.append((*key, belongs, belongs == key[2], errors["left_mm"], errors["right_mm"]))
    columns = ["study_id", "series_id", "level", "belongs_to", "is_right", "left_mm", "right_mm"]
    return pd.DataFrame(rows, columns=columns).astype({"is_right": bool})


def _centres(truth: pd.DataFrame) -> dict[Any, dict[str, np.ndarray]]:
    """Centre of each true level: its canal point, else the mean of whatever is marked there."""
    centres: dict[Any, dict[str, np.ndarray]] = {}
    for row in truth.groupby(["study_id", "level"])[_XYZ].mean().reset_index().to_dict("records"):
        centres.setdefault(row["study_id"], {})[row["level"]] = np.array([row[name] for name in _XYZ])
    for row in truth[truth["condition"] == SPINAL].to_dict("records"):
        centres[row["study_id"]][row["level"]] = np.array([row[name] for name in _XYZ])
    return centres


def _nearest_level(header: Header | None, centres: Mapping[str, np.ndarray]) -> str | None:
    plane = _plane(header)
    if plane is None or not centres:
        return None
    origin, _, _, normal = plane
    return min(centres, key=lambda level: abs(float((centres[level] - origin) @ normal)))


def summarise(errors: pd.DataFrame) -> dict[str, float]:
    """Median, 95th percentile, shares missing and within one slice, and median as a fraction of the disc distance.

    Points whose slice cannot be counted (frames of one file) are left out of the share within one slice.
    """
    if not len(errors):
        return {}
    error = errors["error_mm"].to_numpy(float)
    fraction = error / errors["disc_mm"].to_numpy(float)
    fraction = fraction[np.isfinite(fraction)]
    is_counted = errors["is_missing"] | errors["slices_off"].notna()
    is_near = errors.loc[is_counted, "slices_off"] <= 1  # of a missing point: no
    return {
        "n": float(len(errors)),
        "median_mm": float(np.median(error)),
        "p95_mm": float(np.percentile(error, 95)),
        "in_plane_median_mm": float(errors["in_plane_mm"].median()),
        "missing": float(errors["is_missing"].mean()),
        "slice_within_one": float(is_near.mean()),
        "median_of_disc": float(np.median(fraction)) if fraction.size else float("nan"),
    }
