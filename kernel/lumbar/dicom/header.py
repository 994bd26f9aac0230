"""DICOM headers: what a file says about its image, by a compiled walk over the elements it holds.

Everything is read that can be read: a missing preamble or file meta (as pydicom's ``force=True``), implicit, explicit,
big-endian and deflated encodings, sequences of undefined length. No tag is required here; who needs one says so.
"""

from __future__ import annotations

import math
import os
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from lumbar.dicom import _numbers, _scan
from lumbar.dicom._bits import gather_bits
from lumbar.dicom._scratch import fresh
from lumbar.errors import DicomError

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"

_HEAD_BYTES = 32 * 1024  # enough for nearly every header; the rest of the file is read only if it was not
_MAX_INFLATED = 1 << 30
_MAX_TRUSTED = 1 << 30
_LITTLE = (EXPLICIT_LITTLE, IMPLICIT_LITTLE)


@dataclass(frozen=True)
class Header:
    """What a file says about its image; ``None`` where the tag is absent, empty or not what its type allows.

    Fields are DICOM keywords in snake_case (PS3.6). Lengths are in mm, times in ms, field strength in tesla.
    ``image_orientation_patient`` holds the direction of a row (increasing column), then of a column (increasing row);
    ``pixel_spacing`` the distance between rows, then between columns. ``image_type`` is the text with its backslashes;
    the two limits of padding are stored values, signed where the pixels are. ``problems`` holds a line for each element
    that was malformed and recovered from. A header read from a file makes its fields when they are first asked for.
    """

    path: str
    transfer_syntax_uid: str
    rows: int | None
    columns: int | None
    bits_allocated: int | None
    bits_stored: int | None
    high_bit: int | None
    pixel_representation: int | None
    samples_per_pixel: int | None
    planar_configuration: int | None
    number_of_frames: int | None
    photometric_interpretation: str | None
    image_position_patient: tuple[float, float, float] | None
    image_orientation_patient: tuple[float, float, float, float, float, float] | None
    pixel_spacing: tuple[float, float] | None
    slice_thickness: float | None
    spacing_between_slices: float | None
    rescale_slope: float | None
    rescale_intercept: float | None
    slice_location: float | None
    magnetic_field_strength: float | None
    repetition_time: float | None
    echo_time: float | None
    window_center: tuple[float, ...] | None
    window_width: tuple[float, ...] | None
    instance_number: int | None
    series_number: int | None
    acquisition_number: int | None
    echo_number: int | None  # EchoNumbers (0018,0086), the first where there are several
    temporal_position_identifier: int | None
    pixel_padding_value: int | None
    pixel_padding_range_limit: int | None
    image_type: str | None
    series_instance_uid: str | None
    study_instance_uid: str | None
    sop_class_uid: str | None
    series_description: str | None
    modality: str | None
    manufacturer: str | None
    problems: tuple[str, ...] = ()

    if not TYPE_CHECKING:  # or every name would count as an attribute

        def __getattr__(self, name: str) -> object:
            """Fields that are not there yet, and with each those that come at the same cost."""
            fields = self.__dict__
            unread = fields.get("_unread")
            if unread is not None:
                for names, make in _PARTS:
                    if name in names:
                        fields.update(make(*unread))
                        if len(fields) > len(self.__dataclass_fields__):  # all of them
                            fields.pop("_unread", None)
            if name in fields:
                return fields[name]
            raise AttributeError(f"'Header' object has no attribute {name!r}")

    def __getstate__(self) -> dict[str, object]:
        """Fields only: the bytes that they come from may hold the patient's name."""
        return {field: getattr(self, field) for field in self.__dataclass_fields__}

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """``(rows, columns)``, or ``(rows, columns, samples)`` for colour.

        Raises:
            DicomError: a size is missing or not positive, or samples per pixel are neither 1 nor 3.
        """
        rows, columns = self.rows, self.columns
        samples = 1 if self.samples_per_pixel is None else self.samples_per_pixel
        if not rows or not columns:
            raise DicomError(f"{self.path}: found Rows {rows}, Columns {columns}, expected 1 to 65535 of each")
        if samples == 1:
            return rows, columns
        if samples != 3:
            raise DicomError(f"{self.path}: found SamplesPerPixel {samples}, expected 1 or 3")
        return rows, columns, samples

    @property
    def pixel_dtype(self) -> np.dtype:
        """The type of one decoded sample: as many bits as allocated, signed where PixelRepresentation is 1.

        Raises:
            DicomError: allocated bits are not 1, 8, 16, 32 or 64, or stored bits do not fit into them.
        """
        allocated, stored = self.bits_allocated, self.stored_bits
        if allocated is None or allocated not in _DTYPES:
            raise DicomError(f"{self.path}: found BitsAllocated {allocated}, expected 1, 8, 16, 32 or 64")
        if not 1 <= stored <= allocated:
            raise DicomError(f"{self.path}: found BitsStored {stored}, expected 1 to {allocated} (BitsAllocated)")
        return _DTYPES[allocated][1 if self.pixel_representation == 1 else 0]

    @property
    def stored_bits(self) -> int:
        """BitsStored, or BitsAllocated where it is absent; 0 where both are."""
        return (self.bits_allocated or 0) if self.bits_stored is None else self.bits_stored


_DTYPES: dict[int, tuple[np.dtype, np.dtype]] = {
    1: (np.dtype("u1"), np.dtype("u1")),
    8: (np.dtype("u1"), np.dtype("i1")),
    16: (np.dtype("u2"), np.dtype("i2")),
    32: (np.dtype("u4"), np.dtype("i4")),
    64: (np.dtype("u8"), np.dtype("i8")),
}


@dataclass(slots=True)
class File:
    """A parsed file: its header, its bytes and where the pixel data lie in them."""

    header: Header
    source: np.ndarray  # (n,) uint8; the file, or what it inflates to
    is_big: bool
    pixels_start: int  # offset of the pixel data's value; -1 where there is none
    pixels_length: int  # its length; -1 where undefined (encapsulated)
    pixels_vr: str  # two letters; empty in implicit encoding
    offset_table: tuple[np.ndarray, np.ndarray] | None  # extended offset table: offsets and lengths, uint64
    plain: np.ndarray | None  # (rows, columns), a view: the pixels, where one frame of 16-bit gray needs no decoding
    size: int = 0  # bytes of the file itself, where it was read from one


@lru_cache(maxsize=1024)
def _text(raw: bytes) -> str | None:
    """Text of a value; the same few come again with every slice of a series."""
    stripped = raw.strip(b" \0")
    if not stripped:
        return None
    try:
        return stripped.decode("utf-8")
    except UnicodeDecodeError:
        return stripped.decode("latin-1")


def _floats(raw: bytes) -> tuple[float, ...] | None:
    try:
        values = tuple([float(part) for part in raw.rstrip(b" \0").split(b"\\")])
    except ValueError:
        return None
    return values if all(map(math.isfinite, values)) else None


def _odd_number(raw: bytes, kind: int, count: int) -> int | float | tuple[float, ...] | None:
    """A value that the compiled parser left: several where one is usual, many digits, or no number at all.

    ``count`` 0 stands for any number of values.
    """
    values = _floats(raw)
    if values is None:
        # The first of several may still be good
        values = _floats(raw.split(b"\\", 1)[0]) if count == 1 else None
    if values is None or (count > 1 and len(values) != count):
        return None
    if kind == _numbers.INTEGER:
        return int(values[0])
    return values[0] if count == 1 else values


_IMAGE = frozenset([*(field for field, _ in _scan.SHORTS), "number_of_frames", "photometric_interpretation"])
_INTEGERS = tuple(_scan.STRINGS)[1:6]
_SINGLES = tuple(_scan.STRINGS)[9:-2]  # after six integers, position, orientation and spacing, before the windows
_PHOTOMETRIC_SPAN = _scan.span_of(_scan.TEXTS["photometric_interpretation"])
_TEXT_SPANS = tuple((field, _scan.span_of(tag)) for field, tag in _scan.TEXTS.items() if field not in _IMAGE)
_TABLE_SPANS = _scan.span_of(_scan.OFFSETS), _scan.span_of(_scan.OFFSET_LENGTHS)
_PIXEL_SPAN = _scan.span_of(_scan.PIXEL_DATA)
_CLOSED_ON_EXEC = getattr(os, "O_CLOEXEC", 0)
_REASONS = {
    _scan.TRUNCATED: "an element that passes the end of the data",
    _scan.BAD_ITEM: "something else than an item inside a sequence",
}


def read_header(path: str | os.PathLike[str]) -> Header:
    """Header of the DICOM file at ``path``; the pixels are not read.

    Raises:
        DicomError: the file cannot be opened, or is not DICOM, or ends inside the header.
    """
    return read_file(path, limit=_HEAD_BYTES).header


def read_file(path: str | os.PathLike[str], limit: int | None = None) -> File:
    """Parse the file at ``path``, reading at first no more than ``limit`` bytes of it.

    Raises:
        DicomError: the file cannot be opened, or is not DICOM, or ends inside the header.
    """
    name = os.fspath(path)
    descriptor = _open(name)
    try:
        size = _size(descriptor)
        if limit is not None and limit < size:
            source = _read(descriptor, limit)
            try:
                file = parse(name, source, is_whole=False)
                file.size = size
                return file
            except DicomError:
                pass  # the whole file may do
        source = _read(descriptor, size)
    except OSError as error:
        raise DicomError(f"{name}: found {_os_reason(error)}, expected a DICOM file") from error
    finally:
        os.close(descriptor)
    file = parse(name, source)
    file.size = size
    return file


def read_bytes(path: str | os.PathLike[str], size: int) -> np.ndarray:
    """The first ``size`` bytes of the file at ``path``, (n,) uint8, or fewer where it has fewer.

    Raises:
        DicomError: the file cannot be read.
    """
    name = os.fspath(path)
    descriptor = _open(name)
    try:
        return _read(descriptor, size)
    except OSError as error:
        raise DicomError(f"{name}: found {_os_reason(error)}, expected a DICOM file") from error
    finally:
        os.close(descriptor)


def _open(name: str) -> int:
    try:
        return os.open(name, os.O_RDONLY | _CLOSED_ON_EXEC)
    except (OSError, ValueError) as error:
        raise DicomError(f"{name}: found {_os_reason(error)}, expected a DICOM file") from error


def _os_reason(error: Exception) -> str:
    return (error.strerror or "no file") if isinstance(error, OSError) else str(error)


def _size(descriptor: int) -> int:
    """Bytes of the file, by the cheapest call there is; what it says of folders and devices is not to be trusted."""
    try:
        size = os.lseek(descriptor, 0, os.SEEK_END)
    except OSError:
        size = -1
    return size if 0 <= size < _MAX_TRUSTED else os.fstat(descriptor).st_size


def _read(descriptor: int, size: int) -> np.ndarray:
    """The first ``size`` bytes, or fewer at the end of the file, in an array (bytes would be read-only)."""
    source = fresh((size,), np.uint8, "file")
    done = os.preadv(descriptor, (source.data,), 0)
    while done < size:
        count = os.preadv(descriptor, (source[done:].data,), done)
        if count == 0:
            return source[:done]
        done += count
    return source


def parse(name: str, source: np.ndarray, is_whole: bool = True) -> File:
    """Parse the bytes of a file, ``source`` (n,) uint8; with ``is_whole`` false they are only its beginning.

    Raises:
        DicomError: not DICOM, or ended inside the header (with ``is_whole`` false also: the pixel data not reached).
    """
    workspace, numbers = _scan.WORKSPACE.copy(), _scan.NO_NUMBERS.copy()
    code = _scan.read_elements(source, False, workspace, numbers)
    syntax = ""
    if code == _scan.NEEDS_SYNTAX:
        code, syntax, source = _read_special(name, source, is_whole, workspace, numbers)
    if code < 0:
        raise DicomError(
            f"{name}: found {_REASONS[code]} at offset {workspace[_scan.END_AT]} of {source.size}, "
            f"expected a DICOM data set"
        )
    if code == _scan.END and not is_whole:
        raise DicomError(f"{name}: found the end of the part read, expected pixel data")
    end, vr, _, _, _, is_big, start, length, stored, is_signed, rows, columns = workspace[: _scan.SPANS].tolist()
    head = source[:end].tobytes()
    if not syntax:
        syntax = _text(head[start : start + length]) or ""
    header = object.__new__(Header)  # its fields are made at first use
    header.__dict__.update(path=name, transfer_syntax_uid=syntax, problems=(), _unread=(head, workspace, numbers))
    if code == _scan.END:
        return File(header, source, is_big != 0, -1, 0, "", None, None)
    if stored and syntax in _LITTLE:
        pixels = np.ndarray((rows, columns), _DTYPES[16][is_signed], source, end)
        words = source[end : end + pixels.nbytes].view(np.uint16)
        if stored == 16 or not gather_bits(words, is_signed != 0) >> stored:
            return File(header, source, False, end, pixels.nbytes, "", None, pixels)
    length = int(workspace[_PIXEL_SPAN + 1])
    letters = chr(vr >> 8) + chr(vr & 255) if vr else ""
    table = _offset_table(head, workspace) if workspace[_TABLE_SPANS[0]] >= 0 else None
    return File(header, source, is_big != 0, end, -1 if length == _scan.UNDEFINED else length, letters, table, None)


def _read_special(
    name: str, source: np.ndarray, is_whole: bool, workspace: np.ndarray, numbers: np.ndarray
) -> tuple[int, str, np.ndarray]:
    """Finish a file whose syntax is missing, deflated or big-endian: code, syntax, the bytes that offsets count in."""
    dataset, offset, length = (int(workspace[place]) for place in (_scan.DATASET, _scan.SYNTAX, _scan.SYNTAX + 1))
    syntax = (_text(source[offset : offset + length].tobytes()) or "") if offset >= 0 else ""
    if syntax == DEFLATED:
        if not is_whole:
            raise DicomError(f"{name}: found a part of a deflated file, expected the whole")
        source = _inflate(name, source, dataset)
        workspace[_scan.DATASET] = 0
    is_bare = not syntax
    if is_bare:
        first = source[dataset : dataset + 6].tobytes()
        is_explicit = len(first) == 6 and 65 <= first[4] <= 90 and 65 <= first[5] <= 90
        # A group of 0x0400 and more at the start is a small one in the other byte order (as pydicom guesses)
        is_big = is_explicit and first[1] >= 4
        syntax = EXPLICIT_BIG if is_big else EXPLICIT_LITTLE if is_explicit else IMPLICIT_LITTLE
    workspace[_scan.IS_BIG] = int(syntax == EXPLICIT_BIG)
    code = _scan.read_elements(source, True, workspace, numbers)
    if is_bare and dataset == 0 and code >= 0 and np.all(workspace[_scan.SPANS :: 3] < 0):
        raise DicomError(f"{name}: found no DICM prefix and no known element in {source.size} bytes, expected DICOM")
    return code, syntax, source


def _image_fields(head: bytes, workspace: np.ndarray, numbers: np.ndarray) -> dict[str, object]:
    """The fields that decoding needs, from a header's bytes and what the walk found in them."""
    at = workspace.item
    fields: dict[str, object] = {field: None if (value := at(place)) < 0 else value for field, place in _scan.SHORTS}
    frames = numbers.item(0)
    fields["number_of_frames"] = None if frames != frames else int(frames)  # NaN alone differs from itself
    start = at(_PHOTOMETRIC_SPAN)
    fields["photometric_interpretation"] = _text(head[start : start + at(_PHOTOMETRIC_SPAN + 1)])
    if fields["pixel_representation"] == 1:  # padding is stored as the pixels are (PS3.3 section C.7.5.1.1.2)
        for field in ("pixel_padding_value", "pixel_padding_range_limit"):
            value = fields[field]
            if isinstance(value, int) and value >= 1 << 15:
                fields[field] = value - (1 << 16)
    if at(_scan.LEFT) & 1:
        fields["number_of_frames"] = _read_odd("number_of_frames", head, workspace.tolist())
    return fields


def _number_fields(head: bytes, workspace: np.ndarray, numbers: np.ndarray) -> dict[str, object]:
    """The other fields that are numbers: geometry, rescaling, acquisition."""
    values = [None if value != value else value for value in numbers.tolist()]
    x, y, z, *cosines, between_rows, between_columns = values[6:17]
    fields: dict[str, object] = {
        field: None if value is None else int(value) for field, value in zip(_INTEGERS, values[1:6], strict=True)
    }
    fields |= {
        "image_position_patient": None if z is None else (x, y, z),
        "image_orientation_patient": None if cosines[5] is None else tuple(cosines),
        "pixel_spacing": None if between_columns is None else (between_rows, between_columns),
        "window_center": None if values[-2] is None else (values[-2],),
        "window_width": None if values[-1] is None else (values[-1],),
    }
    fields.update(zip(_SINGLES, values[17:-2], strict=True))
    if workspace.item(_scan.LEFT) > 1:
        places = workspace.tolist()
        for index, field in enumerate(_scan.STRINGS):
            if index and places[_scan.LEFT] >> index & 1:
                fields[field] = _read_odd(field, head, places)
    spacing = fields["pixel_spacing"]
    if spacing is not None and min(spacing) <= 0:  # type: ignore[call-overload]
        fields["pixel_spacing"] = None
    return fields


def _text_fields(head: bytes, workspace: np.ndarray, numbers: np.ndarray) -> dict[str, object]:
    """The other fields that are texts."""
    at = workspace.item
    # An absent value has length 0
    return {field: _text(head[(start := at(span)) : start + at(span + 1)]) for field, span in _TEXT_SPANS}


_PARTS = (
    (_IMAGE, _image_fields),
    (frozenset(_scan.STRINGS) - _IMAGE, _number_fields),
    (frozenset(field for field, _ in _TEXT_SPANS), _text_fields),
)


def _read_odd(field: str, head: bytes, places: list[int]) -> object:
    """A number that the walk left to Python."""
    tag, kind, count = _scan.STRINGS[field]
    span = _scan.span_of(tag)
    return _odd_number(head[places[span] : places[span] + places[span + 1]], kind, count)


def _offset_table(head: bytes, workspace: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The extended offset table, or ``None`` where its two halves do not match."""
    halves = []
    for span in _TABLE_SPANS:
        offset, length = workspace[span : span + 2].tolist()
        if offset < 0 or length % 8 or length == 0 or length == _scan.UNDEFINED:
            return None
        halves.append(np.frombuffer(head[offset : offset + length], dtype="<u8"))
    return (halves[0], halves[1]) if halves[0].size == halves[1].size else None


def _inflate(name: str, source: np.ndarray, start: int) -> np.ndarray:
    """The data set of a deflated file (PS3.5 section A.5: raw deflate after the file meta)."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        plain = inflater.decompress(source[start:].data, _MAX_INFLATED)
    except zlib.error as error:
        raise DicomError(f"{name}: found {error} at offset {start}, expected a deflated data set") from error
    if not inflater.eof:
        raise DicomError(f"{name}: found an unfinished deflate stream at offset {start}, expected its end")
    return np.frombuffer(plain, dtype=np.uint8).copy()
