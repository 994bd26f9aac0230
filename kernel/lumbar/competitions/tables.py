"""A competition's tables as frames: submissions, labels, and the rows about studies that a chain reads."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from lumbar.competitions.contract import Competition
from lumbar.competitions.lumbar_spine import COMPETITION as LUMBAR_SPINE
from lumbar.errors import CohortError
from lumbar.io.tables import (
    PROBLEMS,
    SPELLED,
    RowProblem,
    SeriesTable,
    bare_rows,
    is_blank,
    lines_by_study,
    parse_id,
    read_typed_table,
    shown,
)
from lumbar.io.text import printable
from lumbar.io.text_table import TableError, column_name, read_text_table


def read_answer(path: str | Path, name: str, competition: Competition) -> pd.DataFrame:
    """A submission, or a table like one: probabilities as numbers, row names as text; ``name`` says what was expected.

    Raises:
        CohortError: the file is missing, empty or no CSV table.
    """
    frame = read_typed_table(path, name, competition.header, ids=(), numbers=_lower(competition.values))
    return frame.rename(columns={column_name(column): column for column in competition.header})


def require_columns(path: Path, frame: pd.DataFrame, competition: Competition) -> None:
    """Refuse a sample submission with other columns than the competition's; row names alone are enough.

    The lumbar spine's columns are known: a sample that a spreadsheet has rewritten still leads the order of its rows.

    Raises:
        CohortError: other columns, or the same in other letters: Kaggle tells cases apart.
    """
    if competition.slug == LUMBAR_SPINE.slug:
        return
    names = frame.attrs[SPELLED]
    values = set(names) - {competition.id_column}
    if competition.id_column not in names or values not in (set(), set(competition.values)):
        listed = [printable(name, 40) for name in names[:12]]
        raise CohortError(f"{path}: found columns {listed}, expected {', '.join(competition.header)}")


def read_solution(path: str | Path, name: str, competition: Competition) -> pd.DataFrame:
    """A table of labels: study ids as whole numbers, columns of numbers alone as numbers where the competition asks.

    Column names are in lower case, but for those that the competition spells.

    Raises:
        CohortError: the file is missing, empty or no CSV table.
    """
    ours = (competition.study_column, *competition.rows, *competition.values)
    numbers = None if competition.labels_are_numbers else ()
    frame = read_typed_table(path, name, ours, ids=_lower((competition.study_column,)), numbers=numbers)
    return frame.rename(columns={column_name(column): column for column in ours if column})


def _lower(columns: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(column_name(column) for column in columns)


def read_studies(root: Path, split: str, competition: Competition) -> SeriesTable:
    """The competition's table of a split; without one, an empty table.

    Raises:
        CohortError: the file is missing, is no table, or lacks a column.
    """
    if competition.read_table is not None:
        return competition.read_table(root, split)
    if competition.table:
        return read_study_table(root / competition.path(competition.table, split), competition.study_column)
    frame = pd.DataFrame({competition.study_column: pd.Series([], dtype="int64")})
    return SeriesTable(frame, study_column=competition.study_column)


def read_study_table(path: Path, study_column: str) -> SeriesTable:
    """A table whose rows name studies: ``study_column`` as whole numbers, all other cells as text.

    The columns' names are in lower case, but for ``study_column``. A row that names no study is left out and said.

    Raises:
        CohortError: the file is missing, is no table, or lacks the column.
    """
    try:
        table = read_text_table(path, (study_column,))
    except TableError as error:
        raise CohortError(f"{path}: not a CSV table ({error.reason}), expected a table with {study_column}") from None
    except OSError as error:
        raise CohortError(f"{path}: cannot be read ({error.strerror}), expected a table with {study_column}") from None
    column = column_name(study_column)
    if column not in table.columns:
        names = [printable(name, 40) for name in table.columns[:12]]
        raise CohortError(f"{path}: found columns {names}, expected {study_column}")
    frame = table.frame()
    study_ids: list[int | None] = []
    problems = bare_rows(table)
    for number, cell in zip(frame.index, frame[column], strict=True):
        try:
            study_ids.append(parse_id(cell))
        except ValueError as expected:
            study_ids.append(None)
            value = "blank" if is_blank(cell) else shown(cell)
            problems.append(RowProblem(number, None, f"row {number}: {study_column} is {value}, expected {expected}"))
    frame = frame.rename(columns={column: study_column})
    frame[study_column] = pd.Series(study_ids, index=frame.index, dtype=object)
    frame = frame[[study_id is not None for study_id in study_ids]].astype({study_column: "int64"})
    frame.attrs[PROBLEMS] = lines_by_study(problems)
    return SeriesTable(frame.reset_index(drop=True), problems, study_column)
