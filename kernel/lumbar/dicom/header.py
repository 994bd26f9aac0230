"""DICOM headers: what a file says about its image, by a compiled walk over the elements it holds.

Everything is read that can be read: a missing preamble or file meta (as pydicom's ``force=True``), implicit, explicit,
big-endian and deflated encodings, sequences of undefined length. No tag is required here; who needs one says so.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np

from lumbar.dicom import _scan
from lumbar.errors import DicomError

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"

_HEAD_BYTES = 32 * 1024  # enough for nearly every header; the rest of the file is read only if it was not
_MAX_INFLATED = 1 << 30


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says about its image; ``None`` where the tag is absent, empty or not what its type allows.

    Fields are DICOM keywords in snake_case (PS3.6). Lengths are in mm, times in ms, field strength in tesla.
    ``image_orientation_patient`` holds the direction of a row (increasing column), then of a column (increasing row);
    ``pixel_spacing`` the distance between rows, then between columns.
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
    series_instance_uid: str | None
    study_instance_uid: str | None
    sop_class_uid: str | None
    series_description: str | None
    modality: str | None
    manufacturer: str | None

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


@dataclass(frozen=True, slots=True)
class File:
    """A parsed file: its header, its bytes and where the pixel data lie in them."""

    header: Header
    source: np.ndarray  # (n,) uint8, read-only view; the file, or what it inflates to
    is_big: bool
    pixels_start: int  # offset of the pixel data's value; -1 where there is none
    pixels_length: int  # its length; -1 where undefined (encapsulated)
    pixels_vr: str  # two letters; empty in implicit encoding
    offset_table: tuple[np.ndarray, np.ndarray] | None  # extended offset table: offsets and lengths, uint64


def _text(raw: bytes) -> str | None:
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
    for value in values:
        if not math.isfinite(value):
            return None
    return values


def _float(raw: bytes) -> float | None:
    values = _floats(raw)
    return values[0] if values else None


def _floats_of(count: int) -> Callable[[bytes], tuple[float, ...] | None]:
    def convert(raw: bytes) -> tuple[float, ...] | None:
        values = _floats(raw)
        return values if values is not None and len(values) == count else None

    return convert


def _spacing(raw: bytes) -> tuple[float, ...] | None:
    values = _floats(raw)
    return values if values is not None and len(values) == 2 and values[0] > 0 and values[1] > 0 else None


def _integer(raw: bytes) -> int | None:
    try:
        return int(raw.split(b"\\", 1)[0].strip(b" \0"))
    except ValueError:
        value = _float(raw)
        return int(value) if value is not None else None


def _short_little(raw: bytes) -> int | None:
    return raw[0] | raw[1] << 8 if len(raw) >= 2 else None


def _short_big(raw: bytes) -> int | None:
    return raw[0] << 8 | raw[1] if len(raw) >= 2 else None


# Header field -> tag, conversion from the value's bytes. The order is that of the fields, after path and syntax.
_FIELDS: dict[str, tuple[int, Callable[[bytes], object]]] = {
    "rows": (0x00280010, _short_little),
    "columns": (0x00280011, _short_little),
    "bits_allocated": (0x00280100, _short_little),
    "bits_stored": (0x00280101, _short_little),
    "high_bit": (0x00280102, _short_little),
    "pixel_representation": (0x00280103, _short_little),
    "samples_per_pixel": (0x00280002, _short_little),
    "planar_configuration": (0x00280006, _short_little),
    "number_of_frames": (0x00280008, _integer),
    "photometric_interpretation": (0x00280004, _text),
    "image_position_patient": (0x00200032, _floats_of(3)),
    "image_orientation_patient": (0x00200037, _floats_of(6)),
    "pixel_spacing": (0x00280030, _spacing),
    "slice_thickness": (0x00180050, _float),
    "spacing_between_slices": (0x00180088, _float),
    "rescale_slope": (0x00281053, _float),
    "rescale_intercept": (0x00281052, _float),
    "slice_location": (0x00201041, _float),
    "magnetic_field_strength": (0x00180087, _float),
    "repetition_time": (0x00180080, _float),
    "echo_time": (0x00180081, _float),
    "window_center": (0x00281050, _floats),
    "window_width": (0x00281051, _floats),
    "instance_number": (0x00200013, _integer),
    "series_number": (0x00200011, _integer),
    "series_instance_uid": (0x0020000E, _text),
    "study_instance_uid": (0x0020000D, _text),
    "sop_class_uid": (0x00080016, _text),
    "series_description": (0x0008103E, _text),
    "modality": (0x00080060, _text),
    "manufacturer": (0x00080070, _text),
}
assert tuple(_FIELDS) == tuple(field.name for field in fields(Header))[2:]

_OFFSETS, _OFFSET_LENGTHS = 0x7FE00001, 0x7FE00002  # extended offset table (PS3.3 section C.7.6.3.1.8)
_TAGS = np.array(
    sorted([tag for tag, _ in _FIELDS.values()] + [_OFFSETS, _OFFSET_LENGTHS, _scan.PIXEL_DATA]), dtype=np.int64
)
_INDEX = {int(tag): index for index, tag in enumerate(_TAGS)}
_LITTLE = tuple((_INDEX[tag], convert) for tag, convert in _FIELDS.values())
_BIG = tuple((index, _short_big if convert is _short_little else convert) for index, convert in _LITTLE)
_META_TAGS = np.array([0x00020010], dtype=np.int64)
_ABSENT = np.full((len(_TAGS), 2), -1, dtype=np.int64)
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
    try:
        descriptor = os.open(name, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except (OSError, ValueError) as error:
        raise DicomError(f"{name}: found {_os_reason(error)}, expected a DICOM file") from error
    try:
        size = os.fstat(descriptor).st_size
        if limit is not None and limit < size:
            source = _read(descriptor, limit)
            try:
                return parse(name, source, is_whole=False)
            except DicomError:
                os.lseek(descriptor, 0, os.SEEK_SET)
        source = _read(descriptor, size)
    except OSError as error:
        raise DicomError(f"{name}: found {_os_reason(error)}, expected a DICOM file") from error
    finally:
        os.close(descriptor)
    return parse(name, source)


def _os_reason(error: Exception) -> str:
    return (error.strerror or "no file") if isinstance(error, OSError) else str(error)


def _read(descriptor: int, size: int) -> np.ndarray:
    """The next ``size`` bytes, or fewer at the end of the file, in an array of our own (bytes would be read-only)."""
    source = np.empty(size, dtype=np.uint8)
    view = source.data
    done = os.readv(descriptor, [view])
    while done < size:
        count = os.readv(descriptor, [view[done:]])
        if count == 0:
            return source[:done]
        done += count
    return source


def parse(name: str, source: np.ndarray, is_whole: bool = True) -> File:
    """Parse the bytes of a file, ``source`` (n,) uint8; with ``is_whole`` false they are only its beginning.

    Raises:
        DicomError: not DICOM, or ended inside the header (with ``is_whole`` false also: the pixel data not reached).
    """
    source = source.view()
    source.flags.writeable = False
    start = 132 if source.size >= 132 and source[128:132].tobytes() == b"DICM" else 0
    place = np.zeros(2, dtype=np.int64)
    meta = np.full((1, 2), -1, dtype=np.int64)
    code = _scan.scan(source, start, True, False, True, _META_TAGS, meta, place)
    if code < 0:
        raise _refusal(name, code, place, source.size)
    dataset = int(place[0])
    offset, length = meta.tolist()[0]
    has_meta = offset >= 0
    syntax = (_text(source[offset : offset + length].tobytes()) or "") if has_meta else ""
    if syntax == DEFLATED:
        if not is_whole:
            raise DicomError(f"{name}: found a part of a deflated file, expected the whole")
        source = _inflate(name, source, dataset)
        dataset = 0

    first = source[dataset : dataset + 6].tobytes()
    is_explicit = len(first) == 6 and 65 <= first[4] <= 90 and 65 <= first[5] <= 90
    is_big = syntax == EXPLICIT_BIG
    if not syntax:
        # A group of 0x0400 and more at the start is a small one in the other byte order (as pydicom guesses)
        is_big = is_explicit and first[1] >= 4
        syntax = EXPLICIT_BIG if is_big else EXPLICIT_LITTLE if is_explicit else IMPLICIT_LITTLE

    spans = _ABSENT.copy()
    code = _scan.scan(source, dataset, is_explicit, is_big, False, _TAGS, spans, place)
    if code < 0:
        raise _refusal(name, code, place, source.size)
    if code == _scan.END and not is_whole:
        raise DicomError(f"{name}: found the end of the part read, expected pixel data")
    end, vr = place.tolist()
    found = spans.tolist()
    head = source[:end].tobytes()
    values: list = []
    for index, convert in _BIG if is_big else _LITTLE:
        offset, length = found[index]
        values.append(convert(head[offset : offset + length]) if offset >= 0 else None)
    if start == 0 and not has_meta and all(value is None for value in values):
        raise DicomError(f"{name}: found no DICM prefix and no known element in {source.size} bytes, expected DICOM")
    header = Header(name, syntax, *values)
    if code == _scan.END:
        return File(header, source, is_big, -1, 0, "", None)
    length = found[-1][1]
    table = _offset_table(head, found) if found[_INDEX[_OFFSETS]][0] >= 0 else None
    letters = chr(vr >> 8) + chr(vr & 255) if vr else ""
    return File(header, source, is_big, end, -1 if length == _scan.UNDEFINED else length, letters, table)


def _offset_table(head: bytes, found: list[list[int]]) -> tuple[np.ndarray, np.ndarray] | None:
    """The extended offset table, or ``None`` where its two halves do not match."""
    halves = []
    for tag in (_OFFSETS, _OFFSET_LENGTHS):
        offset, length = found[_INDEX[tag]]
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
    inflated = np.empty(len(plain), dtype=np.uint8)
    inflated[:] = np.frombuffer(plain, dtype=np.uint8)
    view = inflated.view()
    view.flags.writeable = False
    return view


def _refusal(name: str, code: int, place: np.ndarray, size: int) -> DicomError:
    return DicomError(f"{name}: found {_REASONS[code]} at offset {int(place[0])} of {size}, expected a DICOM data set")
