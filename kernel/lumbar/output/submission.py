"""submission.csv: it begins with prior rows, each study replaces its own, and the file on disk is valid at any time."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lumbar.errors import CohortError
from lumbar.io.files import check_writable, write_atomically
from lumbar.io.tables import is_blank, parse_id
from lumbar.io.text import printable
from lumbar.labels import COLUMNS, SEVERITY_COLUMNS
from lumbar.metric import read_table

__all__ = ["Submission", "check_writable", "expected_studies", "normalise", "read_row_ids", "validate",
           "write_atomically"]  # fmt: skip

log = logging.getLogger("lumbar")

HEADER = ",".join(("row_id", *SEVERITY_COLUMNS))
_FLOOR = 1e-6  # of every probability: a wrong row with probability 0 would cost 36 nats
_SUM_TOLERANCE = 1e-6


def normalise(probs: NDArray[np.floating] | Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """Check one study's probabilities (25, 3), and make them at least 1e-6 with rows summing to 1.

    Raises:
        CohortError: another shape, a value that is not finite or is negative, or a row that sums to 0.
    """
    values = np.asarray(probs, dtype=np.float64)
    if values.shape != (len(COLUMNS), 3):
        raise CohortError(f"probabilities: found shape {values.shape}, expected ({len(COLUMNS)}, 3)")
    for is_bad, wanted in ((~np.isfinite(values), "finite"), (values < 0, "0 or more")):
        if is_bad.any():
            row, column = np.argwhere(is_bad)[0]
            name = f"{COLUMNS[row]} {SEVERITY_COLUMNS[column]}"
            raise CohortError(f"probabilities: {name} is {values[row, column]}, expected {wanted}")
    total = values.sum(axis=1, keepdims=True)
    if not (total > 0).all():
        raise CohortError(f"probabilities: {COLUMNS[int(np.argmin(total))]} sums to 0, expected above 0")
    values = np.maximum(values / total, _FLOOR)
    return np.asarray(values / values.sum(axis=1, keepdims=True))


class Submission:
    """The rows of all studies, in memory and in a file that is always complete.

    Args:
        study_ids: in the order of the file.
        prior: (normal_mild, moderate, severe) for each of the 25 columns, for studies that are not predicted.
        path: the CSV file, written again at every change; None: no file.
    """

    def __init__(
        self, study_ids: Iterable[int], prior: Mapping[str, Sequence[float]], path: str | Path | None = None
    ) -> None:
        self.path = None if path is None else Path(path)
        table = normalise([list(prior[column]) for column in COLUMNS])
        self._probs: dict[int, NDArray[np.float64]] = {int(study_id): table for study_id in study_ids}
        self._text = {study_id: _rows(study_id, table) for study_id in self._probs}
        self.write()

    def replace(self, study_id: int, probs: NDArray[np.floating]) -> None:
        """Replace a study's prior by its own probabilities (25, 3), in the file as well.

        Raises:
            CohortError: as ``normalise``; then nothing changes.
        """
        values = normalise(probs)
        self._probs[study_id] = values
        self._text[study_id] = _rows(study_id, values)
        self.write()

    def probs(self, study_id: int) -> NDArray[np.float64]:
        """The probabilities (25, 3) that a study has now."""
        return self._probs[study_id]

    def frame(self) -> pd.DataFrame:
        """The file's content as a frame: row_id, normal_mild, moderate, severe."""
        return pd.read_csv(io.StringIO(self.text()), dtype={"row_id": object})

    def text(self) -> str:
        """The file's content."""
        return HEADER + "\n" + "".join(self._text.values())

    def write(self) -> None:
        """Write the file in one step, so that at any moment either the old or the new one is there.

        Raises:
            CohortError: the file cannot be written.
        """
        if self.path is not None:
            write_atomically(self.path, self.text())


def _rows(study_id: int, probs: NDArray[np.float64]) -> str:
    lines = zip(COLUMNS, probs.tolist(), strict=True)
    return "".join(f"{study_id}_{column},{a:.8f},{b:.8f},{c:.8f}\n" for column, (a, b, c) in lines)


def expected_studies(root: str | Path, split: str, present: Sequence[int], tabled: Sequence[int]) -> list[int]:
    """Return the studies of the submission, in the order of the file.

    Of the test set sample_submission.csv decides, because one row too many or too few makes the submission invalid.
    Studies that are only in the table of series are added: the sample may not have been replaced with the test set. A
    sample that shares no study with the data belongs to another test set and is ignored. A folder that is in neither of
    the two gets no rows.

    Args:
        root: the competition folder.
        split: ``test`` or ``train``.
        present: studies that are in the table of series or have a folder.
        tabled: studies that are in the table of series.

    Raises:
        CohortError: sample_submission.csv has no row_id column, or no row_id of the form <study_id>_<column>.
    """
    path = Path(root) / "sample_submission.csv"
    if split != "test" or not path.is_file():
        return list(present)
    listed, wrong = _listed_studies(read_row_ids(path))
    if wrong and not listed:
        raise CohortError(f"{path}: found row_id {wrong[0]}, expected <study_id>_<condition>_<level>")
    if wrong:
        log.warning(
            "%s: found row_id %s, expected <study_id>_<condition>_<level>; %d such rows left aside",
            path.name, wrong[0], len(wrong),
        )  # fmt: skip
    if listed.keys().isdisjoint(present):
        log.warning("%s: none of its %d studies has images or series, so it is left aside", path.name, len(listed))
        return list(present)
    known = set(tabled)
    studies = dict.fromkeys([*listed, *(study_id for study_id in present if study_id in known)])
    if extra := [study_id for study_id in present if study_id not in studies]:
        log.warning("%d study folders in no table get no rows, first %d", len(extra), extra[0])
    return list(studies)


def _listed_studies(row_ids: Iterable[str]) -> tuple[dict[int, None], list[str]]:
    """The studies of a sample's rows in their order, and the rows that name none, as a message may show them."""
    listed: dict[int, None] = {}
    wrong: list[str] = []
    for row_id in row_ids:
        head, _, column = row_id.partition("_")
        try:
            study_id = parse_id(head)
        except ValueError:
            column = ""
        if column.strip().lower() in COLUMNS:
            listed[study_id] = None
        else:
            wrong.append("blank" if is_blank(row_id) else repr(printable(row_id, 80)))
    return listed, wrong


def read_row_ids(path: str | Path) -> list[str]:
    """Read the row_id column of a table like a submission.

    Raises:
        CohortError: the file is no table, or does not have the column.
    """
    table = read_table(path, "a table with the column row_id")
    if "row_id" not in table.columns:
        raise CohortError(f"{path}: found columns {_names(table)}, expected row_id")
    return ["" if row_id is None else str(row_id) for row_id in table["row_id"]]


def _names(table: pd.DataFrame) -> list[str]:
    return [printable(name, 40) for name in table.columns]


def validate(path: str | Path, expected_row_ids: Sequence[str]) -> pd.DataFrame:
    """Check a finished submission file as the competition does, and return it.

    Raises:
        CohortError: wrong columns, missing, repeated or unexpected rows, values that are not finite, negative, or
            rows that do not sum to 1; the message names the first.
    """
    frame = read_table(path, "a submission")
    wanted = ["row_id", *SEVERITY_COLUMNS]
    if list(frame.columns) != wanted:
        raise CohortError(f"{path}: found columns {_names(frame)}, expected {wanted}")
    row_ids = [str(row_id) for row_id in frame["row_id"]]
    if len(set(row_ids)) != len(row_ids):
        raise CohortError(f"{path}: found {len(row_ids) - len(set(row_ids))} repeated rows, expected each row_id once")
    missing, extra = set(expected_row_ids) - set(row_ids), set(row_ids) - set(expected_row_ids)
    if missing or extra:
        name = min(missing or extra)
        raise CohortError(
            f"{path}: found {len(row_ids)} rows, expected {len(expected_row_ids)}: "
            f"{len(missing)} missing, {len(extra)} unexpected, first {printable(name, 80)}"
        )
    try:
        values = frame[list(SEVERITY_COLUMNS)].to_numpy(dtype=np.float64)
    except (TypeError, ValueError):
        raise CohortError(f"{path}: found text among the probabilities, expected numbers") from None
    is_good = np.isfinite(values).all(axis=1) & (values >= 0).all(axis=1)
    is_good &= np.abs(values.sum(axis=1) - 1.0) < _SUM_TOLERANCE
    if not is_good.all():
        row = int(np.argmin(is_good))
        raise CohortError(
            f"{path}: row {row_ids[row]}: found {values[row].tolist()}, expected 3 probabilities that sum to 1"
        )
    return frame
