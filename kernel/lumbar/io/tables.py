"""Values in tables: ids, numbers, descriptions; and the table of series. The kernel and training use the same reader.

Ids are parsed from text: ``123``, ``123.0``, ``1.23E+02``, `` 123 `` and ``"123"`` are the same id. A problem in one
row is reported for that row and does not change how others are read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lumbar.errors import CohortError
from lumbar.io.text import csv_cell, known_words, masked_name, printable
from lumbar.io.text_table import TableError, TextTable, read_text_table
from lumbar.labels import DESCRIPTIONS, SEVERITY_COLUMNS

MAX_ID = (1 << 63) - 1
PROBLEMS = "problems"  # key in a frame's attrs: lines by study
FILES = "files"  # column of a table of series made from an index: paths of the files of each
SPELLED = "spelled"  # key in a frame's attrs: names of the columns as the file has them
IDS = ("study_id", "series_id")
SERIES_COLUMNS = ("study_id", "series_id", "series_description")
# What spreadsheets and programs write for an empty cell, in lower case, as pandas knows them.
BLANKS = frozenset(("", "#n/a", "#n/a n/a", "#na", "<na>", "n/a", "na", "nan", "-nan", "none", "null"))

_MOST_LINES = 20  # about rows of the table, for one study (or for rows of no study)
_WHOLE = re.compile(r"[+-]?[0-9]+")
_GROUPS = r"([ '’])[0-9]{3}(?:\2[0-9]{3})*|,[0-9]{3}(?:,[0-9]{3})+|\.[0-9]{3}(?:\.[0-9]{3})+"
_GROUPED = re.compile(rf"([+-]?[0-9]{{1,3}}(?:{_GROUPS}))(?:[.,]0{{0,2}})?")
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+(?:[.,][0-9]*)?|[.,][0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_ROUNDED_DIGITS = 4  # a number with so many digits and a larger exponent was rounded by a spreadsheet
_DESCRIPTIONS = {re.sub(r"[\s_/-]+", "", name.lower()): name for name in DESCRIPTIONS}


@dataclass(frozen=True, slots=True)
class RowProblem:
    """What is wrong with one row, and what the kernel does with it.

    Attributes:
        row: its number as a spreadsheet shows it.
        study_id: the row's study; None where the row does not say.
        text: row, value found, value expected.
        remedy: what the kernel does with the row.
        is_fatal: False where the row is only repeated or empty; training refuses a table with a fatal problem.
    """

    row: int
    study_id: int | None
    text: str
    remedy: str = "unused"
    is_fatal: bool = True


@dataclass(frozen=True, slots=True)
class SeriesTable:
    """The table of series.

    Attributes:
        frame: the good rows: study_id, series_id (int64), series_description. ``frame.attrs[PROBLEMS]`` holds lines
            by study, and under None those that belong to no known study; copies of the frame keep them.
        problems: what is wrong, row by row.
        study_column: the column of study ids.
        inputs: of a table that an index of files made: by study, what the record says of each series.
        index: and what it says of the index itself.
    """

    frame: pd.DataFrame
    problems: list[RowProblem] = field(default_factory=list)
    study_column: str = "study_id"
    inputs: Mapping[int | str, list[dict[str, Any]]] = field(default_factory=dict)
    index: Mapping[str, Any] = field(default_factory=dict)

    def studies(self) -> list[int]:
        """Ids in any row, also in bad ones: these studies are expected, even if nothing of them can be read."""
        named = [problem.study_id for problem in self.problems if problem.study_id is not None]
        return list(dict.fromkeys([*map(int, self.frame[self.study_column]), *named]))


# ---- from cells to values -----------------------------------------------------------------------------------------


def is_blank(cell: object) -> bool:
    """Whether a cell is empty, in one of the ways in which programs write that."""
    if isinstance(cell, str):
        return len(cell) < 40 and cell.strip().lower() in BLANKS
    return cell is None or (isinstance(cell, float) and cell != cell) or str(cell).strip().lower() in BLANKS


def parse_integer(value: object) -> int:
    """Parse a whole number as tables write it: ``123``, ``123.0``, ``1.23E+02``, ``1,391,030,535``, ``="123"``.

    Raises:
        ValueError: it is not one, or a spreadsheet rounded it (``1.39103E+09``); the message says what was expected.
    """
    if isinstance(value, str) and len(value) <= 18 and value.isascii() and value.isdecimal():
        return int(value)  # the usual form
    text = re.sub(r'^(?:=?"(.*)"|\'(.*))$', lambda match: match[1] or match[2] or "", str(value).strip()).strip()
    if _WHOLE.fullmatch(text) and len(text) <= 40:
        return int(text)
    if (match := _GROUPED.fullmatch(text)) and len(text) <= 40:
        return int(re.sub(r"[^0-9+-]", "", match[1]))
    if not _DECIMAL.fullmatch(text) or len(text) > 40 or re.search(r",[0-9]{3}$", text):  # 1,000 may mean 1 or 1000
        raise ValueError("a whole number")
    mantissa, _, exponent = text.lower().replace(",", ".").partition("e")
    decimals = len(mantissa.partition(".")[2])
    if exponent and int(exponent) > decimals and sum(map(str.isdigit, mantissa)) >= _ROUNDED_DIGITS:
        raise ValueError("all digits, which a spreadsheet rounded away")
    try:
        number = Decimal(text.replace(",", "."))
    except InvalidOperation:
        raise ValueError("a whole number") from None
    if abs(number) > MAX_ID or number != number.to_integral_value():
        raise ValueError("a whole number")
    return int(number)


def parse_id(value: object) -> int:
    """Parse the id of a study or series: a whole number from 0 to 2**63 - 1.

    Raises:
        ValueError: it is not one; the message says what was expected.
    """
    number = parse_integer(value)
    if not 0 <= number <= MAX_ID:
        raise ValueError("a whole number of at least 0" if number < 0 else "a whole number below 2**63")
    return number


def parse_number(value: object, has_decimal_comma: bool = False) -> float:
    """Parse a number as tables write it.

    Raises:
        ValueError: it is not one.
    """
    if isinstance(value, str):
        value = value.replace(",", ".") if has_decimal_comma and value.count(",") == 1 and "." not in value else value
        if "_" in value:  # Python's own grouping, which no table uses
            raise ValueError("a number")
    return float(value)  # type: ignore[arg-type]


def shown(cell: object) -> str:
    """A cell as a message may show it: numbers and known words unchanged, anything else masked."""
    text = str(cell)
    if re.fullmatch(r"[0-9+\-.,eE' ]{1,40}", text):
        return repr(text)
    words = known_words(text)
    return repr(words if " " in text.strip() or "…" not in words else printable(masked_name(text), 64))


def description_of(cell: object) -> str | None:
    """The one of the three descriptions that a cell means, regardless of case and blanks; None for any other text."""
    if cell in DESCRIPTIONS:
        return str(cell)
    return _DESCRIPTIONS.get(re.sub(r"[\s_/-]+", "", str(cell).lower()))


# ---- the table of series ------------------------------------------------------------------------------------------


def read_series_table(path: str | os.PathLike[str]) -> SeriesTable:
    """Read ``{split}_series_descriptions.csv`` row by row; a bad row is reported and left out.

    Raises:
        TableError: the file is no table, or a column is missing.
        OSError: the file cannot be opened.
    """
    table = read_text_table(path, SERIES_COLUMNS)
    missing = [name for name in SERIES_COLUMNS if name not in table.columns]
    if missing:
        columns = [printable(name, 40) for name in table.columns[:12]]
        raise TableError(f"found columns {columns}, expected also {missing}", f"found no column {', '.join(missing)}")
    places = [table.columns.index(name) for name in SERIES_COLUMNS]
    good: dict[tuple[int, int], tuple[str, int]] = {}
    problems = bare_rows(table)
    for number, row, length in zip(table.numbers, table.rows, table.lengths, strict=True):
        cells = [row[place] for place in places]
        problem = _add_row(good, number, cells, length, len(table.columns))
        if problem is not None:
            problems.append(problem)
    frame = pd.DataFrame(
        [(*key, description) for key, (description, _) in good.items()], columns=list(SERIES_COLUMNS)
    ).astype({"study_id": "int64", "series_id": "int64", "series_description": object})
    problems.sort(key=lambda problem: problem.row)
    frame.attrs[PROBLEMS] = lines_by_study(problems)
    return SeriesTable(frame, problems)


def lines_by_study(problems: Iterable[RowProblem]) -> dict[int | None, list[str]]:
    """What is said of each study's rows; under None what cannot be told to belong to one."""
    lines: dict[int | None, list[str]] = {}
    for problem in problems:
        lines.setdefault(problem.study_id, []).append(f"table of series, {problem.text}; {problem.remedy}")
    for key, texts in lines.items():
        if len(texts) > _MOST_LINES:
            lines[key] = [*texts[:_MOST_LINES], f"table of series, and {len(texts) - _MOST_LINES} more rows"]
    return lines


def bare_rows(table: TextTable) -> list[RowProblem]:
    """One problem for all rows without any value, since a spreadsheet may add a thousand of them."""
    if not table.bare:
        return []
    rows = f"row {table.bare[0]}" + (f" and {len(table.bare) - 1} more" if len(table.bare) > 1 else "")
    return [RowProblem(table.bare[0], None, f"{rows}: found separators alone, expected values", "left out", False)]


def _add_row(
    good: dict[tuple[int, int], tuple[str, int]], number: int, cells: Sequence[str], length: int, width: int
) -> RowProblem | None:
    """Add a row to the good ones, or return why that is not possible."""
    ids: list[int | None] = []
    reasons: list[str] = []
    for name, cell in zip(SERIES_COLUMNS[:2], cells, strict=False):
        try:
            ids.append(parse_id(cell))
        except ValueError as expected:
            ids.append(None)
            reasons.append(f"{name} is {'blank' if is_blank(cell) else shown(cell)}, expected {expected}")
    study_id, series_id = ids
    description = description_of(cells[2])
    whose = f"row {number}" if series_id is None else f"row {number}: series {series_id}"
    if length > width:
        reasons.append(f"found {length} cells, expected {width}")
    if description is None:
        text = "blank" if is_blank(cells[2]) else shown(cells[2])
        reasons.append(f"found description {text}, expected {', '.join(DESCRIPTIONS)}")
    if reasons or study_id is None or series_id is None or description is None:
        return RowProblem(number, study_id, f"{whose}: {'; '.join(reasons)}")
    before, row = good.setdefault((study_id, series_id), (description, number))
    if row == number:
        return None
    if before == description:
        return RowProblem(number, study_id, f"{whose}: found again, expected in row {row} alone", "read once", False)
    both = f"row {number}: series {series_id} is described as {before} and {description}, expected one of them"
    return RowProblem(number, study_id, both, f"row {row} holds")


def read_series(root: str | os.PathLike[str], split: str) -> SeriesTable:
    """Read the table of series of a split in a competition folder.

    Raises:
        CohortError: the file is missing, is no table, or does not have all columns.
    """
    path = Path(root) / f"{split}_series_descriptions.csv"
    if not path.exists():
        raise CohortError(f"{path}: not found, expected the competition's table of series")
    try:
        return read_series_table(path)
    except TableError as error:
        what = str(error) if str(error).startswith("found columns") else f"not a CSV table ({error.reason})"
        raise CohortError(f"{path}: {what}") from None
    except OSError as error:
        raise CohortError(f"{path}: cannot be read ({error.strerror}), expected the table of series") from None


def read_descriptions(root: str | os.PathLike[str], split: str) -> pd.DataFrame:
    """Read the good rows of a split's table of series: study_id, series_id (int64), series_description (str).

    Raises:
        CohortError: as ``read_series``.
    """
    return read_series(root, split).frame


def list_studies(
    root: str | os.PathLike[str],
    split: str,
    tabled: Iterable[int] | None = None,
    folder: str = "",
) -> list[int]:
    """List the ids of all studies in the table or with a folder, ascending.

    Args:
        root: competition folder.
        split: ``train`` or ``test``.
        tabled: studies of the table of series, where it was read already.
        folder: of the images; empty for ``{split}_images``.

    Raises:
        CohortError: no image folder, or no study at all.
    """
    images = Path(root) / (folder or f"{split}_images")
    if not images.is_dir():
        raise CohortError(f"{images}: not found, expected a folder with one folder a study")
    try:
        ids = {int(name.name) for name in images.iterdir() if re.fullmatch(r"[0-9]{1,18}", name.name) and name.is_dir()}
    except OSError as error:
        raise CohortError(f"{images}: cannot be listed ({error.strerror}), expected one folder a study") from None
    ids |= {int(study_id) for study_id in (read_descriptions(root, split)["study_id"] if tabled is None else tabled)}
    if not ids:
        raise CohortError(f"{images}: found no study, expected folders named by study_id")
    return sorted(ids)


def files_of(table: pd.DataFrame, study_id: int | str) -> list[str] | None:
    """The files of a study in a table that an index made; None for a table of a competition's folder."""
    if FILES not in table.columns:
        return None
    return [path for paths in table.loc[table["study_id"] == study_id, FILES] for path in paths]


def read_typed_table(
    path: str | os.PathLike[str],
    name: str,
    wanted: Iterable[str],
    ids: Sequence[str] = IDS,
    numbers: Sequence[str] | None = SEVERITY_COLUMNS,
) -> pd.DataFrame:
    """Read a CSV file as ``typed_frame`` gives it.

    Args:
        path: the file.
        name: what was expected, for the message.
        wanted: names of columns that help to tell the separator.
        ids: columns of ids.
        numbers: columns of numbers; None takes each column that holds nothing else.

    Raises:
        CohortError: the file is missing, empty or not a CSV table.
    """
    try:
        return typed_frame(read_text_table(path, wanted), ids, numbers)
    except OSError as error:
        raise CohortError(f"{path}: cannot be read ({error.strerror}), expected {name}") from None
    except TableError as error:
        raise CohortError(f"{path}: not a CSV table ({error.reason}), expected {name}") from None


def typed_frame(
    table: TextTable, ids: Sequence[str] = IDS, numbers: Sequence[str] | None = SEVERITY_COLUMNS
) -> pd.DataFrame:
    """A table's cells as values: ids and probabilities become numbers, empty cells None.

    A cell that is no number stays text, so that the caller can report it; the other cells still become numbers.
    ``numbers`` None takes each column that holds nothing but numbers.

    Raises:
        TableError: a row has more cells than there are columns, or two columns have the same name.
    """
    for number, length in zip(table.numbers, table.lengths, strict=True):
        if length > len(table.columns):
            raise TableError(f"row {number}: found {length} cells, expected {len(table.columns)}")
    twice = [name for index, name in enumerate(table.columns) if name in table.columns[:index]]
    if twice:
        raise TableError(f"found column {printable(twice[0], 40)!r} twice, expected once")
    columns: dict[str, pd.Series] = {}
    for place, name in enumerate(table.columns):
        cells: list[object] = [None if is_blank(row[place]) else row[place] for row in table.rows]
        typed = cells
        if name in ids:
            typed = cells = [_value(cell, parse_id) for cell in cells]
        elif numbers is None or name in numbers:
            typed = [_value(cell, partial(parse_number, has_decimal_comma=table.has_decimal_comma)) for cell in cells]
            cells = cells if numbers is None and any(isinstance(c, str) for c in typed) else typed
        is_numeric = (numbers is None or name in (*ids, *numbers)) and not any(isinstance(c, str) for c in typed)
        columns[name] = pd.Series(cells) if is_numeric else pd.Series(cells, dtype=object)
    frame = pd.DataFrame(columns)
    frame.attrs[SPELLED] = table.spelled
    return frame


def _value(cell: object, parse: Callable[[object], float]) -> object:
    try:
        return None if cell is None else parse(cell)
    except (ValueError, OverflowError):
        return cell


def csv_text(frame: pd.DataFrame, float_format: str | None = None) -> str:
    """A frame as CSV without its index; text that a spreadsheet would run as a formula is quoted (``csv_cell``)."""
    safe = frame.copy()
    for place, kind in enumerate(safe.dtypes):
        if kind.kind not in "biufcmM":
            cells = np.empty(len(safe), dtype=object)
            cells[:] = [csv_cell(cell) for cell in safe.iloc[:, place]]
            safe.isetitem(place, cells)
    safe.columns = pd.Index([csv_cell(name) for name in safe.columns])
    return safe.to_csv(index=False, float_format=float_format)
