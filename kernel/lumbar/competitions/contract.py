"""What a competition is: its name, the layout of its data, the form of its answer, its metric, its limits.

Every constant of a competition stands in one instance of ``Competition``; the run, the submission, the report, sealing,
rehearsal and publishing take it from there. ``docs/another-competition.md`` walks through a second one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lumbar.errors import LumbarError, ManifestError
from lumbar.rules import Boolean, Integer, ListOf, Real, Rule, Text, require, shown
from lumbar.workers.budget import parse_time_limit

if TYPE_CHECKING:
    import pandas as pd

    from lumbar.io.tables import SeriesTable

SPLITS = ("test", "train")
ONE_ROW = "study"  # key of the prior of a competition that asks for one row a study

_PART = r"[A-Za-z0-9_{][A-Za-z0-9_.{}-]*"
_FILE = Text(200, rf"{_PART}(/{_PART})*", "a relative path of letters, digits and _.-")
_COLUMN = Text(100, r"[A-Za-z0-9_][A-Za-z0-9_ ./()-]*", "a column's name of letters, digits and _ ./()-")
_TITLE = Text(100, r".+", "a text of 1 to 100 characters")
_RULES: dict[str, Rule] = {
    "slug": Text(100, r"[a-z0-9]+(-[a-z0-9]+)*", "the name in kaggle.com/competitions/NAME"),
    "title": _TITLE,
    "values": ListOf(_COLUMN, 1, 200, is_set=True),
    "rows": ListOf(Text(100, r"[A-Za-z0-9_.-]*", "letters, digits and _.-"), 1, 2000, is_set=True),
    "id_column": _COLUMN,
    "sums_to_one": Boolean(),
    "study_column": _COLUMN,
    "images": _FILE,
    "sample": _FILE,
    "solution": _FILE,
    "labels_are_numbers": Boolean(),
    "split_names": ListOf(Text(40, r"[A-Za-z0-9_-]+", "letters, digits, _ and -"), 2, 2, is_set=True),
    "inputs": ListOf(_FILE, 0, 100),
    "hidden_studies": Integer(1, 10**7),
    "hours": Real(0.0, 24.0, above=True),
    "row_titles": ListOf(_TITLE, 0, 2000),
    "column_titles": ListOf(Text(100), 0, 2000),
    "value_titles": ListOf(_TITLE, 0, 200),
}


@dataclass(frozen=True)
class Competition:
    """A competition of studies, each a folder of images, and an answer of numbers from 0 to 1.

    A study's answer is an array (rows, values).

    Attributes:
        slug: its name in ``kaggle.com/competitions/NAME``.
        title: what the report calls it.
        values: the submission's columns of probabilities, in their order, spelled as there.
        score: the metric: (solution, submission) → name → value, ``total`` first, or that alone. A function of a
            module, so that a worker process finds it.
        rows: what follows ``<study_id>_`` in the name of each of a study's rows, in their order; one empty text where
            a study has one row that its id names.
        id_column: the submission's column of row names.
        sums_to_one: whether each row is one distribution; else each value is a probability of its own.
        study_column: the column of study ids in tables.
        images: folder with one folder a study, named by its id, a whole number.
        table: CSV file with rows about studies or series, given to the chain's ``read``; empty where there is none.
        read_table: reads it, from the competition's folder and a split; None takes ``study_column`` as whole numbers
            and the other cells as text.
        sample: the sample submission; it leads the order of the rows.
        solution: labels of the test studies, where a rehearsal has them: it is scored then.
        labels_are_numbers: whether the columns of ``solution`` that hold numbers alone reach the metric as numbers.
        split_names: what ``{split}`` stands for in paths, for the splits ``test`` and ``train``.
        inputs: further files of the folder that no output may overwrite.
        hidden_studies: about how many the hidden test has, for the projection of a rehearsal.
        hours: what the competition allows a notebook.
        time_limit: what the notebook allows itself, such as ``8.5h``.
        full_title: heading of the notebook; empty for ``title``.
        row_form: a row's name in words, for messages.
        row_titles: titles of the report's table, down; empty for the rows' own names.
        column_titles: and across: ``rows`` are laid out row by row; empty for one column.
        value_titles: titles of the values; empty for their names.

    Raises:
        ManifestError: a field that is not what it must be.
    """

    slug: str
    title: str
    values: tuple[str, ...]
    score: Callable[[pd.DataFrame, pd.DataFrame], Mapping[str, float] | float]
    rows: tuple[str, ...] = ("",)
    id_column: str = "row_id"
    sums_to_one: bool = True
    study_column: str = "study_id"
    images: str = "{split}_images"
    table: str = ""
    read_table: Callable[[Path, str], SeriesTable] | None = None
    sample: str = "sample_submission.csv"
    solution: str = "solution.csv"
    labels_are_numbers: bool = True
    split_names: tuple[str, str] = SPLITS
    inputs: tuple[str, ...] = ("train.csv",)
    hidden_studies: int = 1000
    hours: float = 9.0
    time_limit: str = "8.5h"
    full_title: str = ""
    row_form: str = ""
    row_titles: tuple[str, ...] = ()
    column_titles: tuple[str, ...] = ()
    value_titles: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        where = f"competition {shown(self.slug)}: "
        for name, rule in _RULES.items():
            require(f"{where}{name}", getattr(self, name), rule)
        self._require(where, callable(self.score), "score", "a function of solution and submission")
        self._require(where, self.rows == ("",) or "" not in self.rows, "rows", "an empty text alone or none")
        self._require(where, self.id_column not in self.values, "values", f"columns beside {self.id_column}")
        self._require(where, "{split}" in self.images, "images", "a folder with {split} in its name")
        if self.table:
            require(f"{where}table", self.table, _FILE)
        n_titles = len(self.grid_rows) * len(self.grid_columns)
        self._require(where, n_titles == len(self.rows), "row_titles", f"titles of a grid of {len(self.rows)} rows")
        n_values = len(self.value_titles) or len(self.values)
        self._require(where, n_values == len(self.values), "value_titles", f"{len(self.values)} titles")
        try:
            limit_s = parse_time_limit(self.time_limit)
        except LumbarError as error:
            raise ManifestError(f"{where}{error}") from None
        self._require(where, 0 < limit_s <= 3600 * self.hours, "time_limit", f"more than 0 and at most {self.hours:g}h")

    def _require(self, where: str, is_good: bool, name: str, expected: str) -> None:
        if not is_good:
            raise ManifestError(f"{where}{name}: found {shown(getattr(self, name))}, expected {expected}")

    # ---- the answer -----------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and values of a study's answer."""
        return len(self.rows), len(self.values)

    @property
    def header(self) -> list[str]:
        """The submission's columns."""
        return [self.id_column, *self.values]

    @property
    def keys(self) -> tuple[str, ...]:
        """What the manifest calls each row in its prior: the row's name, ``study`` for a study's only row."""
        return tuple(row or ONE_ROW for row in self.rows)

    def row_ids(self, study_id: int | str) -> list[str]:
        """The names of a study's rows in their order."""
        return [f"{study_id}_{row}" if row else f"{study_id}" for row in self.rows]

    def split_row_id(self, row_id: str) -> tuple[str, str]:
        """The study's part of a row's name and the row's; the second is empty where a study has one row.

        A study's id may hold ``_``, so a row that the competition has decides where the id ends.
        """
        if self.rows == ("",):
            return row_id, ""
        text = row_id.rstrip().lower()
        known = max((row for row in self.rows if text.endswith(f"_{row.lower()}")), key=len, default="")
        if not known:
            head, _, row = row_id.partition("_")
            return head, row
        length = len(row_id.rstrip()) - len(known)
        return row_id[: length - 1], row_id[length:]

    @property
    def form(self) -> str:
        """A row's name in words."""
        return self.row_form or ("<study_id>" if self.rows == ("",) else "<study_id>_<row>")

    @property
    def grid_rows(self) -> tuple[str, ...]:
        """Titles of the report's table, down."""
        return self.row_titles or tuple(key.replace("_", " ") for key in self.keys)

    @property
    def grid_columns(self) -> tuple[str, ...]:
        """Titles of the report's table, across."""
        return self.column_titles or ("",)

    @property
    def heading(self) -> str:
        """Heading of the notebook."""
        return self.full_title or self.title

    @property
    def titles(self) -> tuple[str, ...]:
        """Titles of the values."""
        return self.value_titles or tuple(value.replace("_", " ") for value in self.values)

    # ---- the folder -----------------------------------------------------------------------------------------------

    def path(self, template: str, split: str) -> str:
        """``images`` or ``table`` for the split ``test`` or ``train``."""
        return template.replace("{split}", dict(zip(SPLITS, self.split_names, strict=True))[split])

    def files(self) -> list[str]:
        """Tables of the competition's folder, which no output may overwrite."""
        tables = [self.path(self.table, split) for split in SPLITS] if self.table else []
        return [self.sample, self.solution, *self.inputs, *tables]

    def image_folders(self) -> list[str]:
        """Image folders of all splits."""
        return [self.path(self.images, split) for split in SPLITS]
