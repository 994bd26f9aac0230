"""Reading tables as people and spreadsheets write them, to cells of text; no row influences how another is read.

Separators may be commas, semicolons, tabs or bars; encodings UTF-8 (with or without mark), UTF-16, UTF-32 or the
Windows code page. Cells may be quoted, line ends and the case of column names are free, and gzip is unpacked.
"""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
import stat
import unicodedata
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from lumbar.errors import CohortError

MAX_TABLE_BYTES = 1 << 28  # of an unpacked table: the competition's largest has 4 MB
_SEPARATORS = (",", ";", "\t", "|")


class TableError(CohortError):
    """A file that is not a table; ``reason`` says why, without the file's name."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or message

    def __reduce__(self) -> tuple[type[TableError], tuple[str, str]]:
        return TableError, (str(self), self.reason)


@dataclass(frozen=True, slots=True)
class TextTable:
    """A table's cells as trimmed text.

    Attributes:
        columns: names in lower case, with underscores for blanks.
        spelled: names as the file has them.
        rows: the cells of each row that is not empty, one for every column.
        numbers: the rows' numbers as a spreadsheet shows them; row 1 has the column names.
        lengths: how many cells each row had.
        bare: numbers of the rows that hold only separators.
        has_decimal_comma: whether ``12,5`` may be a number, because the separator is not a comma.
    """

    columns: list[str]
    spelled: list[str]
    rows: list[list[str]]
    numbers: list[int]
    lengths: list[int]
    bare: list[int]
    has_decimal_comma: bool

    def frame(self) -> pd.DataFrame:
        """The cells as a frame of text, with the rows' numbers as index; of columns with the same name the first."""
        frame = pd.DataFrame(self.rows, columns=self.columns, index=self.numbers, dtype=object)
        return frame.loc[:, ~frame.columns.duplicated()]


def read_text_table(path: str | os.PathLike[str], wanted: Iterable[str] = ()) -> TextTable:
    """Read a CSV file, or one packed by gzip.

    Args:
        path: a regular file of at most ``MAX_TABLE_BYTES``.
        wanted: names of expected columns, by which the separator is recognised.

    Raises:
        TableError: the file is not text, too large, or empty.
        OSError: it cannot be opened.
    """
    text = _decode(_read_bytes(path))
    lines = text.split("\n", 1)
    separator = ""
    if match := re.fullmatch(r'"?sep=(.)"?\r?', lines[0].strip(" ")):  # a line that Excel writes
        separator, text = match[1], lines[1] if len(lines) > 1 else ""
    separator = separator or _separator(text, {column_name(name) for name in wanted})
    rows = _rows(text, separator)
    try:
        first = next(index for index, row in enumerate(rows) if any(row))
    except StopIteration:
        raise TableError("No columns to parse from file") from None
    columns = [column_name(cell) for cell in rows[first]]
    while columns and not columns[-1]:
        columns.pop()
    width = len(columns)
    spelled = [cell.strip() for cell in rows[first][:width]]
    table = TextTable(columns, spelled, [], [], [], [], separator != ",")
    for number, row in enumerate(rows[first + 1 :], start=first + 2):
        if any(row):
            table.rows.append(row if len(row) == width else (row + [""] * width)[:width])
            table.numbers.append(number)
            table.lengths.append(len(row) if row[-1] else max(index for index, cell in enumerate(row) if cell) + 1)
        elif len(row) > 1:
            table.bare.append(number)
    return table


def _read_bytes(path: str | os.PathLike[str]) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise TableError("found a folder, pipe or device, expected a file")
        data = file.read(MAX_TABLE_BYTES + 1)
    if data[:2] == b"\x1f\x8b":
        data = _unpack(data)
    if len(data) > MAX_TABLE_BYTES:
        raise TableError(f"found more than {MAX_TABLE_BYTES >> 20} MB, expected a table")
    return data


def _unpack(data: bytes) -> bytes:
    """The content of a gzip file, of at most one byte more than is allowed."""
    out = b""
    while data[:2] == b"\x1f\x8b" and len(out) <= MAX_TABLE_BYTES:
        unpacker = zlib.decompressobj(31)
        try:
            out += unpacker.decompress(data, MAX_TABLE_BYTES + 1 - len(out))
        except zlib.error as error:
            raise TableError(f"gzip data are damaged: {error}") from None
        if not unpacker.eof and len(out) <= MAX_TABLE_BYTES:
            raise TableError("gzip data end too soon")
        data = unpacker.unused_data
    return out


def _decode(data: bytes) -> str:
    for magic, kind in ((b"PK\x03\x04", "a workbook (.xlsx) or archive"), (b"\xd0\xcf\x11\xe0", "a workbook (.xls)"),
                        (b"PAR1", "a parquet file"), (b"\x89PNG", "a picture"), (b"%PDF", "a PDF")):  # fmt: skip
        if data.startswith(magic):
            raise TableError(f"found {kind}, expected text with separators; save it as CSV")
    text = _as_text(data)
    start = text[:4096]
    n_odd = sum(
        char == "\ufffd" or (unicodedata.category(char) == "Cc" and char not in "\t\r\n\0\x1a") for char in start
    )
    if n_odd > 0.02 * len(start) or start.count("\0") > 0.3 * len(start):
        raise TableError("found bytes that are no text")
    return text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\x1a")  # the end mark of old systems


def _as_text(data: bytes) -> str:
    for mark, encoding in ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"),
                           (codecs.BOM_UTF32_BE, "utf-32-be"), (codecs.BOM_UTF16_LE, "utf-16-le"),
                           (codecs.BOM_UTF16_BE, "utf-16-be")):  # fmt: skip
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, "replace").lstrip("\ufeff")
    sample = data[:4096]
    for offset, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):  # without a mark: half of all bytes are zero
        if len(sample) > 3 and sample[offset::2].count(0) > 0.8 * (len(sample) // 2):
            return data.decode(encoding, "replace")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")  # Latin-1 except for 27 characters


def _separator(text: str, wanted: set[str]) -> str:
    """The separator with which the first row has most of the wanted columns, and then most columns."""
    head = next((line for line in text.split("\n") if line.strip(" ,;\t|\"'\0")), "")

    def merit(separator: str) -> tuple[int, int]:
        names = {column_name(cell) for row in _rows(head, separator)[:1] for cell in row}
        return len(names & wanted), len(names)

    return max(_SEPARATORS, key=merit)


def _rows(text: str, separator: str) -> list[list[str]]:
    """The trimmed cells of all rows; a row without cells is an empty list."""
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
        return [[_trim(cell) for cell in row] for row in reader]
    except csv.Error:
        pass
    # A single quote would swallow the rows behind it, and a cell may be too long: so each line is read by itself
    most = csv.field_size_limit(MAX_TABLE_BYTES)
    try:
        lines = (next(csv.reader([line], delimiter=separator, skipinitialspace=True), []) for line in text.split("\n"))
        return [[_trim(cell) for cell in row] for row in lines]
    except csv.Error as error:
        raise TableError(str(error)) from None
    finally:
        csv.field_size_limit(most)


def _trim(cell: str) -> str:
    if not cell.isascii():
        cell = unicodedata.normalize("NFKC", cell).replace("\ufeff", "").replace("\u200b", "")
    return cell.strip(" \t\r\n\v\f\0")


def column_name(cell: str) -> str:
    """A column's name as ``TextTable`` has it: lower case, blanks and hyphens as underscores."""
    return re.sub(r"[\s-]+", "_", cell.strip(" \t\r\n\0\"'").lower())
