"""Tables that one stage leaves for the next in a run folder: out-of-fold localisations and logits, as parquet."""

from __future__ import annotations

import dataclasses
import fcntl
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lumbar.errors import CohortError
from lumbar.labels import CONDITIONS, LEVELS
from lumbar.stages.points import AxialLevel, Localisation, SagittalPoint, Xyz
from lumbar_train.files import write_with

Logits = NDArray[np.float32]
Mask = NDArray[np.bool_]

_LOGITS = "logit_normal_mild", "logit_moderate", "logit_severe"
_POINT_FIELDS = [field.name for field in dataclasses.fields(SagittalPoint)]
_AXIAL_FIELDS = [field.name for field in dataclasses.fields(AxialLevel)]


def write_frame(path: Path, frame: pd.DataFrame) -> None:
    """Write a table as parquet, whole or not at all."""
    write_with(path, lambda file: frame.to_parquet(file, index=False))


def write_piece(folder: Path, fold: int, frame: pd.DataFrame, name: str = "oof") -> None:
    """Write one fold's out-of-fold rows, then the table of all folds there are.

    Folds may run side by side: each writes its own piece, and they join the pieces one after the other, under a lock.
    """
    write_frame(folder / "pieces" / f"{name}.fold{fold}.parquet", frame)
    with open(folder / "pieces" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        pieces = [pd.read_parquet(path) for path in sorted((folder / "pieces").glob(f"{name}.fold*.parquet"))]
        filled = [piece for piece in pieces if len(piece)] or pieces[:1]
        write_frame(folder / f"{name}.parquet", pd.concat(filled, ignore_index=True))


def folds_of(folder: Path, name: str = "oof") -> set[int]:
    """The folds whose out-of-fold rows a stage's table holds, those with no row to give included."""
    pieces = (folder / "pieces").glob(f"{name}.fold*.parquet")
    folds = {int(path.stem.removeprefix(f"{name}.fold")) for path in pieces}
    table = folder / f"{name}.parquet"
    return folds | (set(map(int, pd.read_parquet(table, columns=["fold"])["fold"])) if table.is_file() else set())


def read_frame(path: Path) -> pd.DataFrame:
    """Read a stage's table.

    Raises:
        CohortError: it is not there, because the stage has not run.
    """
    if not path.is_file():
        raise CohortError(
            f"{path}: not found, expected the out-of-fold output of an earlier stage; run that stage first"
        )
    return pd.read_parquet(path)


def levels_frame(levels_mm: Mapping[int, Mapping[str, Xyz]], folds: Mapping[int, int]) -> pd.DataFrame:
    """Canal points by study as a table: study_id, fold, level, x_mm, y_mm, z_mm."""
    rows = [
        (study_id, folds[study_id], level, *xyz)
        for study_id, levels in sorted(levels_mm.items())
        for level, xyz in levels.items()
    ]
    return pd.DataFrame(rows, columns=["study_id", "fold", "level", "x_mm", "y_mm", "z_mm"])


def read_levels(path: Path) -> dict[int, dict[str, Xyz]]:
    """Inverse of ``levels_frame``."""
    out: dict[int, dict[str, Xyz]] = {}
    for row in cast(list[dict[str, Any]], read_frame(path).to_dict("records")):
        out.setdefault(int(row["study_id"]), {})[row["level"]] = (row["x_mm"], row["y_mm"], row["z_mm"])
    return out


def write_localisations(
    folder: Path, localisations: Mapping[int, Localisation], folds: Mapping[int, int], fold: int
) -> None:
    """Write all points of one fold's studies: ``levels``, ``points`` and ``axial`` tables in a folder."""
    write_piece(folder, fold, levels_frame({k: v.levels_mm for k, v in localisations.items()}, folds), "levels")
    points = [
        {"study_id": study_id, "fold": folds[study_id], **dataclasses.asdict(point)}
        for study_id, place in sorted(localisations.items())
        for point in place.sagittal_points
    ]
    axial = [
        {"study_id": study_id, "fold": folds[study_id], **dataclasses.asdict(level)}
        for study_id, place in sorted(localisations.items())
        for level in place.axial_levels
    ]
    write_piece(folder, fold, pd.DataFrame(points, columns=["study_id", "fold", *_POINT_FIELDS]), "points")
    write_piece(folder, fold, pd.DataFrame(axial, columns=["study_id", "fold", *_AXIAL_FIELDS]), "axial")


def read_localisations(folder: Path, study_ids: Iterable[int]) -> dict[int, Localisation]:
    """Inverse of ``write_localisations``; a study without any point gets an empty localisation."""
    levels = read_levels(folder / "levels.parquet")
    out = {int(study_id): Localisation(levels_mm=levels.get(int(study_id), {})) for study_id in study_ids}
    for row in cast(list[dict[str, Any]], read_frame(folder / "points.parquet").to_dict("records")):
        if row["study_id"] in out:
            values = _values(row, _POINT_FIELDS)
            values["xyz_mm"] = tuple(float(value) for value in values["xyz_mm"])
            out[row["study_id"]].sagittal_points.append(SagittalPoint(**values))
    for row in cast(list[dict[str, Any]], read_frame(folder / "axial.parquet").to_dict("records")):
        if row["study_id"] in out:
            values = _values(row, _AXIAL_FIELDS)
            for name in ("left_px", "right_px"):
                values[name] = tuple(float(value) for value in values[name])
            out[row["study_id"]].axial_levels.append(AxialLevel(**values))
    return out


def _values(row: Mapping[str, Any], fields: Iterable[str]) -> dict[str, Any]:
    """The fields of a row; an older run may lack the newest, and what is not known (None) is NaN beside numbers."""
    values = {name: row[name] for name in fields if name in row}
    for name in ("side", "frame", "probability"):
        if name in values and pd.isna(values[name]):
            values[name] = None
    if values.get("frame") is not None:
        values["frame"] = int(values["frame"])
    return values


def logits_frame(logits: Mapping[int, Logits], masks: Mapping[int, Mask], folds: Mapping[int, int]) -> pd.DataFrame:
    """One classifier's out-of-fold logits (5 conditions, 5 levels, 3) by study as a table, masked ones left out."""
    rows = []
    for study_id, values in sorted(logits.items()):
        for c, level in np.argwhere(masks[study_id]):
            rows.append((study_id, folds[study_id], CONDITIONS[c], LEVELS[level], *map(float, values[c, level])))
    columns = ["study_id", "fold", "condition", "level", *_LOGITS]
    return pd.DataFrame(rows, columns=columns)


def read_logits(path: Path, study_ids: Iterable[int]) -> tuple[Logits, Mask]:
    """Logits (N, 5, 5, 3) and mask (N, 5, 5) of the studies in the order given."""
    return logits_of(read_frame(path), study_ids)


def logits_of(frame: pd.DataFrame, study_ids: Iterable[int]) -> tuple[Logits, Mask]:
    """Logits (N, 5, 5, 3) and mask (N, 5, 5) of the studies in the order given, from a table as ``logits_frame``."""
    order = {int(study_id): k for k, study_id in enumerate(study_ids)}
    logits = np.zeros((len(order), 5, 5, 3), np.float32)
    mask = np.zeros((len(order), 5, 5), bool)
    frame = frame[frame["study_id"].isin(order.keys())]
    n = frame["study_id"].map(order).to_numpy(dtype=int)
    c = frame["condition"].map({name: k for k, name in enumerate(CONDITIONS)}).to_numpy(dtype=int)
    level = frame["level"].map({name: k for k, name in enumerate(LEVELS)}).to_numpy(dtype=int)
    logits[n, c, level] = frame[list(_LOGITS)].to_numpy(dtype=np.float32)
    mask[n, c, level] = True
    return logits, mask
