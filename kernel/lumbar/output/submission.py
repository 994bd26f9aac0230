"""submission.csv: it begins with prior rows, each study replaces its own, and the file on disk is valid at any time."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lumbar.competitions.contract import Competition
from lumbar.competitions.lumbar_spine import COMPETITION as LUMBAR_SPINE
from lumbar.competitions.tables import read_answer, require_columns
from lumbar.errors import CohortError
from lumbar.io.files import check_writable, write_atomically
from lumbar.io.tables import is_blank, parse_id
from lumbar.io.text import printable

__all__ = ["Submission", "check_writable", "expected_studies", "normalise", "read_row_ids", "validate",
           "write_atomically"]  # fmt: skip

log = logging.getLogger("lumbar")

_FLOOR = 1e-6  # of every probability: a wrong row with probability 0 would cost 36 nats
_SUM_TOLERANCE = 1e-6
_ID = "\0"  # stands for the id in the text of a study's rows; no file holds it


def normalise(
    probs: NDArray[np.floating] | Sequence[Sequence[float]], competition: Competition = LUMBAR_SPINE
) -> NDArray[np.float64]:
    """Check one study's probabilities (rows, values), and make them at least 1e-6.

    Rows are divided by their sum where the competition's rows sum to 1; else each value becomes at most 1 - 1e-6.

    Raises:
        CohortError: another shape, a value that is not finite, negative or above 1, or a row that sums to 0.
    """
    values = np.asarray(probs, dtype=np.float64)
    if values.shape != competition.shape:
        raise CohortError(f"probabilities: found shape {values.shape}, expected {competition.shape}")
    checks = [(~np.isfinite(values), "finite"), (values < 0, "0 or more")]
    if not competition.sums_to_one:
        checks.append((values > 1, "1 or less"))
    for is_bad, wanted in checks:
        if is_bad.any():
            row, column = np.argwhere(is_bad)[0]
            name = f"{competition.keys[row]} {competition.values[column]}"
            raise CohortError(f"probabilities: {name} is {values[row, column]}, expected {wanted}")
    if not competition.sums_to_one:
        return np.clip(values, _FLOOR, 1.0 - _FLOOR)
    total = values.sum(axis=1, keepdims=True)
    if not (total > 0).all():
        raise CohortError(f"probabilities: {competition.keys[int(np.argmin(total))]} sums to 0, expected above 0")
    values = np.maximum(values / total, _FLOOR)
    return np.asarray(values / values.sum(axis=1, keepdims=True))


class Submission:
    """The rows of all studies, in memory and in a file that is always complete.

    A row is as long whatever its values are, so all rows lie in one array of bytes and a study's answer replaces its
    own. The file is written whole, at the start, when ``write_if_due`` says so, and at the end: a large one not after
    every study, so that the writing takes a few per cent of the run at most, however many studies there are.

    Args:
        study_ids: in the order of the file.
        prior: the values of each of the competition's rows, for studies that are not predicted.
        path: the CSV file; None: no file.
        competition: whose form the answer has.
        answers: of studies that were predicted before, normalised; they stand in the first write already.
        clock: monotonic seconds.
    """

    _SHARE = 0.03  # of the time since the first write that writing may take
    _ALLOWED_S = 1.0  # and so many seconds beyond: a small file is written after every study

    def __init__(
        self,
        study_ids: Iterable[int | str],
        prior: Mapping[str, Sequence[float]],
        path: str | Path | None = None,
        competition: Competition = LUMBAR_SPINE,
        answers: Mapping[int | str, NDArray[np.floating]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = None if path is None else Path(path)
        self.competition = competition
        self.n_writes = 0
        self._clock, self._written_s, self._began_s = clock, 0.0, clock()
        numbers = ",".join(["%.8f"] * len(competition.values))
        names = [name.replace("%", "%%") for name in competition.row_ids(_ID)]
        self._form = "".join(f"{name},{numbers}\n" for name in names)
        table = normalise([list(prior[key]) for key in competition.keys], competition)
        ids = (study_id if isinstance(study_id, str) else int(study_id) for study_id in study_ids)
        self._number = {study_id: number for number, study_id in enumerate(dict.fromkeys(ids))}
        self._probs = np.broadcast_to(table, (len(self._number), *table.shape)).copy()
        self._text = bytearray((",".join(competition.header) + "\n").encode())
        self._places = [len(self._text)]
        values = self._values(table)
        for study_id in self._number:
            self._text += self._rows(study_id, values)
            self._places.append(len(self._text))
        for study_id, probs in (answers or {}).items():
            self._put(study_id, probs)
        self.write()
        self._began_s, self._written_s = clock(), 0.0

    @property
    def study_ids(self) -> list[int | str]:
        """The studies, in the order of the file."""
        return list(self._number)

    def replace(self, study_id: int | str, probs: NDArray[np.floating], is_normalised: bool = False) -> None:
        """Replace a study's prior by its own probabilities (rows, values), in the file too where a write is due.

        ``is_normalised`` says that they come from ``normalise``, as those of an outcome do.

        Raises:
            CohortError: as ``normalise``; then nothing changes. Or the file cannot be written.
        """
        self._put(study_id, probs if is_normalised else normalise(probs, self.competition))
        self._is_dirty, self._has_failed = True, False
        self.write_if_due()

    def probs(self, study_id: int | str) -> NDArray[np.float64]:
        """The probabilities (rows, values) that a study has now."""
        return self._probs[self._number[study_id]]

    def frame(self) -> pd.DataFrame:
        """The file's content as a frame."""
        return pd.read_csv(io.BytesIO(self._text), dtype={self.competition.id_column: object})

    def text(self) -> str:
        """The file's content."""
        return self._text.decode("utf-8")

    def write(self) -> None:
        """Write the file in one step, so that at any moment either the old or the new one is there.

        Raises:
            CohortError: the file cannot be written.
        """
        self._is_dirty, self._has_failed = False, True
        began_s = self._clock()
        if self.path is not None:
            self.n_writes += 1
            try:
                write_atomically(self.path, self._text)
            except CohortError:
                self._is_dirty = True
                raise
            finally:
                self._written_s += self._clock() - began_s
        self._has_failed = False

    def write_if_due(self) -> None:
        """Write the file if it is behind and the writes so far have taken little time.

        Raises:
            CohortError: the file cannot be written; what stands there is whole. Only the next study tries again.
        """
        allowed_s = self._ALLOWED_S + self._SHARE * (self._clock() - self._began_s)
        if self._is_dirty and not self._has_failed and self._written_s <= allowed_s:
            self.write()

    def check(self) -> None:
        """Read the file back, and compare it with what it must hold.

        Raises:
            CohortError: it cannot be read, or something else has been written into it.
        """
        if self.path is None:
            return
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise CohortError(f"{self.path}: cannot be read ({error.strerror}), expected the submission") from None
        if content != self._text:
            raise CohortError(f"{self.path}: found other rows than were written, expected one process writing it")

    def _put(self, study_id: int | str, probs: NDArray[np.floating]) -> None:
        number = self._number[study_id]
        self._probs[number] = probs
        rows = self._rows(study_id, self._values(probs))
        self._text[self._places[number] : self._places[number + 1]] = rows

    def _values(self, probs: NDArray[np.floating]) -> str:
        """A study's rows, still without its id: always of the same length, since normalised values lie in 0..1."""
        return self._form % tuple(probs.ravel().tolist())

    @staticmethod
    def _rows(study_id: int | str, values: str) -> bytes:
        return values.replace(_ID, str(study_id)).encode("utf-8", "backslashreplace")


def expected_studies(
    root: str | Path,
    split: str,
    present: Sequence[int | str],
    tabled: Sequence[int | str],
    competition: Competition = LUMBAR_SPINE,
) -> list[int | str]:
    """Return the studies of the submission, in the order of the file.

    Of the test set the sample submission decides, because one row too many or too few makes the submission invalid.
    Studies that are only in the table of series are added: the sample may not have been replaced with the test set. A
    sample that shares no study with the data belongs to another test set and is ignored. A folder that is in neither of
    the two gets no rows.

    Args:
        root: the competition folder.
        split: ``test`` or ``train``.
        present: studies that are in the table of series or have a folder.
        tabled: studies that are in the table of series.
        competition: whose sample it is.

    Raises:
        CohortError: the sample has other columns than the competition, or no row of its form.
    """
    path = Path(root) / competition.sample
    if split != "test" or not path.is_file():
        return list(present)
    frame = _read_rows(path, competition)
    listed, wrong = _listed_studies(_row_ids(frame, competition), competition)
    name, form = competition.id_column, competition.form
    if wrong and not listed:
        raise CohortError(f"{path}: found {name} {wrong[0]}, expected {form}")
    require_columns(path, frame, competition)
    if wrong:
        log.warning(
            "%s: found %s %s, expected %s; %d such rows left aside", path.name, name, wrong[0], form, len(wrong)
        )
    if listed.keys().isdisjoint(present):
        log.warning("%s: none of its %d studies has images or series, so it is left aside", path.name, len(listed))
        return list(present)
    known = set(tabled)
    studies = dict.fromkeys([*listed, *(study_id for study_id in present if study_id in known)])
    if extra := [study_id for study_id in present if study_id not in studies]:
        log.warning("%d study folders in no table get no rows, first %s", len(extra), extra[0])
    return list(studies)


def _listed_studies(row_ids: Iterable[str], competition: Competition) -> tuple[dict[int | str, None], list[str]]:
    """The studies of a sample's rows in their order, and the rows that name none, as a message may show them."""
    known = {row.lower() for row in competition.rows}
    listed: dict[int | str, None] = {}
    wrong: list[str] = []
    for row_id in row_ids:
        head, row = competition.split_row_id(row_id)
        try:
            study_id: int | None = parse_id(head)
        except ValueError:
            study_id = None
        if study_id is not None and row.strip().lower() in known:
            listed[study_id] = None
        else:
            wrong.append("blank" if is_blank(row_id) else repr(printable(row_id, 80)))
    return listed, wrong


def read_row_ids(path: str | Path, competition: Competition = LUMBAR_SPINE) -> list[str]:
    """Read the row names of a table like a submission.

    Raises:
        CohortError: the file is no table, or does not have their column.
    """
    return _row_ids(_read_rows(path, competition), competition)


def _read_rows(path: str | Path, competition: Competition) -> pd.DataFrame:
    table = read_answer(path, f"a table with the column {competition.id_column}", competition)
    if competition.id_column not in table.columns:
        raise CohortError(f"{path}: found columns {_names(table)}, expected {competition.id_column}")
    return table


def _row_ids(table: pd.DataFrame, competition: Competition) -> list[str]:
    return ["" if row_id is None else str(row_id) for row_id in table[competition.id_column]]


def _names(table: pd.DataFrame) -> list[str]:
    return [printable(name, 40) for name in table.columns]


def validate(
    path: str | Path, expected_row_ids: Sequence[str], competition: Competition = LUMBAR_SPINE
) -> pd.DataFrame:
    """Check a finished submission file as the competition does, and return it.

    Raises:
        CohortError: wrong columns, missing, repeated or unexpected rows, values that are not finite, negative,
            above 1, or rows that do not sum to 1 where they must; the message names the first.
    """
    frame = read_answer(path, "a submission", competition)
    wanted = competition.header
    if list(frame.columns) != wanted:
        raise CohortError(f"{path}: found columns {_names(frame)}, expected {wanted}")
    row_ids = [str(row_id) for row_id in frame[competition.id_column]]
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
        values = frame[list(competition.values)].to_numpy(dtype=np.float64)
    except (TypeError, ValueError):
        raise CohortError(f"{path}: found text among the probabilities, expected numbers") from None
    is_good = np.isfinite(values).all(axis=1) & (values >= 0).all(axis=1)
    if competition.sums_to_one:
        is_good &= np.abs(values.sum(axis=1) - 1.0) < _SUM_TOLERANCE
    else:
        is_good &= (values <= 1).all(axis=1)
    if not is_good.all():
        row = int(np.argmin(is_good))
        expected = f"{len(competition.values)} probabilities{' that sum to 1' if competition.sums_to_one else ''}"
        raise CohortError(f"{path}: row {row_ids[row]}: found {values[row].tolist()}, expected {expected}")
    return frame
