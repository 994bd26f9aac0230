"""A competition folder's tables, read and checked: labels, points, series.

What is merely dirty (a point beside its image, a row twice) is dropped and counted with its reason; what means that
the tables cannot be trusted (a column absent, a label unknown, two truths for one study) is refused.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from lumbar import labels
from lumbar.errors import CohortError
from lumbar.io.tables import (
    SERIES_COLUMNS,
    csv_text,
    is_blank,
    parse_id,
    parse_integer,
    parse_number,
    read_series_table,
    shown,
)
from lumbar.io.text import printable
from lumbar.io.text_table import TableError, read_text_table
from lumbar_train.data.external_points import EXTERNAL, SIZE_COLUMNS, check_external
from lumbar_train.files import write_text

_Number = TypeVar("_Number", int, float)

MISSING = -1
_IDS = ("study_id", "series_id")
_DECIMAL_COMMA = "has_decimal_comma"  # of a frame's attrs
POINT_COLUMNS = ("study_id", "series_id", "instance_number", "condition", "level", "side", "x_px", "y_px", "source")
LABELS = "labels.csv"  # in a run folder: the labels of the studies that it was trained on
_LABEL_FILES = {"train": "train.csv", "test": "solution.csv"}


@dataclass(frozen=True)
class Cohort:
    """The labelled studies of a competition folder.

    Attributes:
        root: the folder.
        split: ``train`` or ``test``; images lie in ``{split}_images``.
        study_ids: (N,) int64, ascending.
        labels: (N, 25) int8 class indices in the order of ``labels.COLUMNS``; -1 is missing.
        points: one row a point: ``study_id, series_id, instance_number, condition, level, side, x_px, y_px, source``.
            Condition and level are spelled as in the columns; side is ``left``, ``right`` or None; x, y are pixels of
            the original image. ``source`` is ``competition`` or ``external``; an external point that names no
            condition has the condition ``disc``: a sagittal disc level, without a claim about any label.
        series: ``study_id, series_id, series_description``.
        dropped: what was left out, by reason.
        fingerprint: sha256 over the three tables as kept.
    """

    root: Path
    split: str
    study_ids: np.ndarray
    labels: np.ndarray
    points: pd.DataFrame
    series: pd.DataFrame
    dropped: dict[str, int] = field(default_factory=dict)
    fingerprint: str = ""

    def __len__(self) -> int:
        """Number of studies."""
        return len(self.study_ids)

    @property
    def is_synthetic(self) -> bool:
        """It consists of phantoms, whose truth lies beside them."""
        return (self.root / "truth.parquet").is_file()

    def rows(self, study_ids: Iterable[int]) -> np.ndarray:
        """Row indices of the studies, in the order asked for.

        Raises:
            CohortError: a study is not in the cohort.
        """
        wanted = np.asarray(list(study_ids), dtype=np.int64)
        places = np.searchsorted(self.study_ids, wanted)
        places = np.minimum(places, max(len(self) - 1, 0))
        unknown = wanted[self.study_ids[places] != wanted] if len(self) else wanted
        if unknown.size:
            raise CohortError(f"{self.root}: study {unknown[0]} is not in the cohort of {len(self)} studies")
        return places

    def without(self, study_ids: Iterable[int], dropped: dict[str, int]) -> Cohort:
        """The cohort less some studies, with the reasons counted; the fingerprint stays that of the tables as read."""
        gone = np.array(sorted(study_ids), dtype=np.int64)
        keep = ~np.isin(self.study_ids, gone)
        counts = Counter(self.dropped) + Counter(dropped)
        return replace(
            self,
            study_ids=self.study_ids[keep],
            labels=self.labels[keep],
            points=self.points[~self.points["study_id"].isin(gone)].reset_index(drop=True),
            series=self.series[~self.series["study_id"].isin(gone)].reset_index(drop=True),
            dropped={reason: int(n) for reason, n in sorted(counts.items())},
        )

    def frame(self, study_ids: Iterable[int] | None = None) -> pd.DataFrame:
        """Labels as ``train.csv`` spells them (missing: None), for the metric and the prior."""
        rows = np.arange(len(self)) if study_ids is None else self.rows(study_ids)
        names = np.array([*labels.SEVERITIES, None], dtype=object)  # -1 picks the last
        body = pd.DataFrame(names[self.labels[rows]], columns=list(labels.COLUMNS))
        body.insert(0, "study_id", self.study_ids[rows])
        return body

    def prior(self, study_ids: Iterable[int] | None = None) -> np.ndarray:
        """Weighted (1/2/4) frequencies of the studies: (25, 3) float64, rows sum to one."""
        from lumbar.metric import prior_table

        table = prior_table(self.frame(study_ids))
        return np.array([table[column] for column in labels.COLUMNS], dtype=np.float64)


def read_cohort(
    root: Path | str,
    *,
    split: str = "train",
    points_file: Path | str | None = None,
    check_images: bool = True,
    progress: bool = True,
) -> Cohort:
    """Read and check a competition folder. ``split="test"`` takes the labels from ``solution.csv``.

    Args:
        root: folder with ``train.csv`` and its companions.
        split: which images and descriptions.
        points_file: an external table ``series_id, instance_number, level, x, y`` (``.csv`` or ``.csv.gz``), with a
            point a slice and level or fewer; ``img_h, img_w``: the image that the pixels refer to, if not the slice.
        check_images: look that each point's slice exists, holds the point, and that left lies left of right.
        progress: say how far it has come while slices are looked at.

    Raises:
        CohortError: a table or column absent, an unknown label, condition or level, contradicting rows, no study left.
    """
    root = Path(root)
    dropped: Counter[str] = Counter()
    study_ids, values = _read_labels(root / _LABEL_FILES[split], dropped)
    series = _read_descriptions(root / f"{split}_series_descriptions.csv", study_ids, dropped)
    points = _read_points(root / f"{split}_label_coordinates.csv", dropped, is_required=split == "train")
    if points_file is not None:
        points = pd.concat([points, _read_external(Path(points_file), series, dropped)], ignore_index=True)
    points = _keep(points, points["study_id"].isin(study_ids), "points: study without labels", dropped)
    pairs = pd.MultiIndex.from_frame(points[["study_id", "series_id"]])
    known = pd.MultiIndex.from_frame(series[["study_id", "series_id"]])
    points = _keep(points, pairs.isin(known), "points: series not described", dropped)
    if check_images:
        from lumbar_train.data.point_checks import check_points, check_series_folders

        series = check_series_folders(root / f"{split}_images", series, dropped)
        points = check_points(root / f"{split}_images", points, dropped, progress=progress)
    elif set(SIZE_COLUMNS) & set(points.columns):
        raise CohortError(f"{points_file}: img_h and img_w need the images, expected to look at them")
    points = points.sort_values(list(POINT_COLUMNS[:5]), kind="stable", ignore_index=True)
    counts = {reason: int(n) for reason, n in sorted(dropped.items()) if n}
    print_ = _fingerprint(study_ids, values, points, series)
    return Cohort(root, split, study_ids, values, points, series, counts, print_)


def read_cells(path: Path, columns: Iterable[str]) -> pd.DataFrame:
    """Read a CSV as text cells, the rows' numbers in the file as index; refuse an absent file or column.

    ``frame.attrs`` says whether a number may have a decimal comma.
    """
    columns = list(columns)
    try:
        table = read_text_table(path, columns)
    except FileNotFoundError as error:
        raise CohortError(f"{path}: not found; expected a table with columns {', '.join(columns)}") from error
    except OSError as error:
        reason = error.strerror or error
        raise CohortError(f"{path}: not a readable CSV ({reason}); expected columns {', '.join(columns)}") from error
    except TableError as error:
        raise CohortError(
            f"{path}: not a readable CSV ({error.reason}); expected columns {', '.join(columns)}"
        ) from error
    missing = [column for column in columns if column not in table.columns]
    if missing:
        more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        raise CohortError(f"{path}: found no column {', '.join(missing[:4])}{more}; found {len(table.columns)} columns")
    for number, length in zip(table.numbers, table.lengths, strict=True):
        if length > len(table.columns):
            raise CohortError(f"{path}: row {number}: found {length} cells, expected {len(table.columns)}")
    frame = table.frame()
    frame.attrs[_DECIMAL_COMMA] = table.has_decimal_comma
    return frame


def read_study_ids(path: Path) -> set[int]:
    """The studies that a table with a column ``study_id`` names.

    Raises:
        CohortError: no such table or column, or a cell that is no id.
    """
    return set(map(int, _integers(read_cells(path, ["study_id"]), "study_id", path)))


def _parsed(frame: pd.DataFrame, column: str, path: Path, parse: Callable[[object], _Number]) -> list[_Number]:
    values = []
    for number, cell in zip(frame.index, frame[column], strict=True):
        try:
            values.append(parse(cell))
        except ValueError as error:
            # In the place of an id a path or a folder's name may stand, and with it a patient's.
            text = shown(cell) if column in _IDS else repr(printable(cell, 64))
            raise CohortError(f"{path}: row {number}: {column} is {text}, expected {error}") from None
    return values


def _integers(frame: pd.DataFrame, column: str, path: Path) -> pd.Series:
    parse = parse_id if column in _IDS else parse_integer
    return pd.Series(_parsed(frame, column, path, parse), index=frame.index, dtype="int64")


def _numbers(frame: pd.DataFrame, column: str, path: Path) -> pd.Series:
    has_comma = bool(frame.attrs.get(_DECIMAL_COMMA))

    def parse(cell: object) -> float:
        try:
            value = parse_number(cell, has_comma)
        except ValueError:
            value = np.nan
        if not np.isfinite(value):
            raise ValueError("a number")
        return value

    return pd.Series(_parsed(frame, column, path, parse), index=frame.index, dtype="float64")


def _keep(frame: pd.DataFrame, mask: pd.Series | np.ndarray, reason: str, dropped: Counter[str]) -> pd.DataFrame:
    keep = np.asarray(mask, dtype=bool)
    dropped[reason] += int((~keep).sum())
    return frame[keep].reset_index(drop=True)


def _titles(frame: pd.DataFrame, column: str, path: Path, known: dict[str, str]) -> pd.Series:
    """Map a column of titles (or column-style names) to column-style names."""
    cleaned = frame[column].astype(str).str.strip().str.lower().str.replace(r"[ /]", "_", regex=True)
    bad = ~cleaned.isin(known).to_numpy()
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        cell = printable(frame[column].iloc[row], 64)
        raise CohortError(
            f"{path}: row {frame.index[row]}: unknown {column} {cell!r}, expected one of {', '.join(known)}"
        )
    return cleaned.map(known)


def _read_labels(path: Path, dropped: Counter[str]) -> tuple[np.ndarray, np.ndarray]:
    frame = read_cells(path, ("study_id", *labels.COLUMNS))
    frame["study_id"] = _integers(frame, "study_id", path)
    codes = {name.lower(): code for code, name in enumerate(labels.SEVERITIES)}
    values = np.full((len(frame), len(labels.COLUMNS)), MISSING, dtype=np.int8)
    for place, column in enumerate(labels.COLUMNS):
        cells = frame[column]
        text = cells.astype(str).str.strip().str.lower().to_numpy()
        empty = np.array([is_blank(cell) for cell in cells], dtype=bool)
        known = np.array([codes.get(cell, MISSING) for cell in text])
        bad = np.flatnonzero((known == MISSING) & ~empty)
        if bad.size:
            raise CohortError(
                f"{path}: study {frame['study_id'].iloc[bad[0]]}: {column} is {printable(cells.iloc[bad[0]], 64)!r}, "
                f"expected {', '.join(labels.SEVERITIES)} or empty"
            )
        values[~empty, place] = known[~empty]
    return _one_row_a_study(frame["study_id"].to_numpy(np.int64), values, path, dropped)


def read_labels(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A table of labels as ``train.csv`` has it: ids (N,) ascending, and labels (N, 25) int8, -1 missing.

    Raises:
        CohortError: not such a table, a label that is none, or two truths for one study.
    """
    return _read_labels(path, Counter())


def write_labels(path: Path, cohort: Cohort) -> None:
    """Write the labels of a cohort in the form of ``train.csv``."""
    write_text(path, csv_text(cohort.frame()))


def _one_row_a_study(
    ids: np.ndarray, values: np.ndarray, path: Path, dropped: Counter[str]
) -> tuple[np.ndarray, np.ndarray]:
    unique, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    contradicting = np.flatnonzero((values != values[first][inverse]).any(axis=1))
    if contradicting.size:
        raise CohortError(f"{path}: study {ids[contradicting[0]]} has two rows with different labels, expected one row")
    dropped["labels: row twice"] += len(ids) - len(unique)
    if not len(unique):
        raise CohortError(f"{path}: no studies, expected at least one row")
    return unique, values[first]


def _read_descriptions(path: Path, study_ids: np.ndarray, dropped: Counter[str]) -> pd.DataFrame:
    """The table of series by the kernel's own reader; what that leaves out and names ends the reading here."""
    try:
        table = read_series_table(path)
    except FileNotFoundError as error:
        raise CohortError(f"{path}: not found; expected a table with columns {', '.join(SERIES_COLUMNS)}") from error
    except OSError as error:
        raise CohortError(f"{path}: not a readable CSV ({error.strerror}), expected the table of series") from error
    except TableError as error:
        is_column = error.reason.startswith("found no column")
        raise CohortError(
            f"{path}: {error.reason if is_column else f'not a readable CSV ({error.reason})'}, "
            f"expected columns {', '.join(SERIES_COLUMNS)}"
        ) from error
    for problem in table.problems:
        if problem.is_fatal:
            raise CohortError(f"{path}: {problem.text}")
    dropped["series: row twice"] += sum(problem.study_id is not None for problem in table.problems)
    frame = table.frame
    frame.attrs.clear()
    frame = _keep(frame, frame["study_id"].isin(study_ids), "series: study without labels", dropped)
    return frame.sort_values(list(SERIES_COLUMNS[:2]), ignore_index=True)


def _read_points(path: Path, dropped: Counter[str], *, is_required: bool) -> pd.DataFrame:
    columns = ("study_id", "series_id", "instance_number", "condition", "level", "x", "y")
    if not is_required and not path.exists():
        return pd.DataFrame({column: pd.Series(dtype=_DTYPES[column]) for column in POINT_COLUMNS})
    return _point_frame(read_cells(path, columns), path, "competition", dropped)


_DTYPES = {
    "study_id": "int64", "series_id": "int64", "instance_number": "int64", "condition": "object", "level": "object",
    "side": "object", "x_px": "float64", "y_px": "float64", "source": "object",
}  # fmt: skip
_SIDES = {c: next((side for side in labels.SIDES if c.startswith(side)), None) for c in (*labels.CONDITIONS, "disc")}


def _read_external(path: Path, series: pd.DataFrame, dropped: Counter[str]) -> pd.DataFrame:
    """Points of another system; study (found through the series) and condition (``disc``) may be absent."""
    frame = read_cells(path, ("series_id", "instance_number", "level", "x", "y"))
    owner = series.drop_duplicates("series_id").set_index("series_id")["study_id"]
    ids = _integers(frame, "series_id", path)
    if "study_id" not in frame.columns:
        known = ids.isin(owner.index).to_numpy()
        if not known.any():
            raise CohortError(f"{path}: none of {ids.nunique()} series is described in this cohort, expected its own")
        dropped["points: external series not described"] += int((~known).sum())
        frame = frame[known].copy()
        frame["study_id"] = ids[known].map(owner).to_numpy()
    if "condition" not in frame.columns:
        frame["condition"] = "disc"
    return check_external(_point_frame(frame, path, "external", dropped), series, path, dropped)


def _point_frame(frame: pd.DataFrame, path: Path, source: str, dropped: Counter[str]) -> pd.DataFrame:
    out = pd.DataFrame({c: _integers(frame, c, path) for c in ("study_id", "series_id", "instance_number")})
    out["condition"] = _titles(frame, "condition", path, {c: c for c in (*labels.CONDITIONS, "disc")}).astype(object)
    out["level"] = _titles(frame, "level", path, {level: level for level in labels.LEVELS}).astype(object)
    out["side"] = pd.Series([_SIDES[c] for c in out["condition"]], dtype=object, index=out.index)
    out["x_px"], out["y_px"] = _numbers(frame, "x", path), _numbers(frame, "y", path)
    out["source"] = pd.Series([source] * len(out), dtype=object, index=out.index)
    key = ["study_id", "series_id", "condition", "level"]
    if source == EXTERNAL:  # a point a slice, perhaps in the pixels of another image
        key.append("instance_number")
        for name in SIZE_COLUMNS:
            if name in frame.columns:
                out[name] = _numbers(frame, name, path)
    out = _keep(out, ~out.duplicated(), "points: row twice", dropped)
    return _keep(out, ~out.duplicated(key), "points: second point for one label in a series", dropped)


def _fingerprint(study_ids: np.ndarray, values: np.ndarray, points: pd.DataFrame, series: pd.DataFrame) -> str:
    """sha256 over the tables as kept; independent of row order, line ends and number formatting of the files."""
    digest = hashlib.sha256()
    digest.update(np.ascontiguousarray(study_ids, dtype="<i8").tobytes())
    digest.update(np.ascontiguousarray(values, dtype=np.int8).tobytes())
    for frame in (points, series):
        for row in frame.itertuples(index=False):
            digest.update(("\x1f".join(repr(cell) if isinstance(cell, float) else str(cell) for cell in row)).encode())
            digest.update(b"\x1e")
    return digest.hexdigest()
