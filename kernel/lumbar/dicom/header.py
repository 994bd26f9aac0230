"""DICOM headers: what a file says about its image, read by a compiled walk over its data elements.

Files are read without preamble or file meta (as with pydicom's ``force=True``), in implicit, explicit, big-endian and
deflated encodings, and with sequences of undefined length. No tag is required here; code that needs one checks it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from lumbar.dicom.codecs._bits import gather_bits
from lumbar.dicom.limits import MAX_RECOVERED_BYTES
from lumbar.dicom.parsing import scan
from lumbar.dicom.parsing.fields import PARTS
from lumbar.dicom.parsing.files import inflate, open_file, read_bytes, read_start
from lumbar.dicom.parsing.values import uid_of, vr_text
from lumbar.errors import DicomError

__all__ = ["File", "Header", "parse", "read_bytes", "read_file", "read_header"]

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"

_HEAD_BYTES = 32 * 1024  # enough for nearly every header; the rest of the file is read only if it was not
_PREFIX_END = 132
_LITTLE = (EXPLICIT_LITTLE, IMPLICIT_LITTLE)
_SPECIAL = (DEFLATED, EXPLICIT_BIG)


def _absent() -> None:
    """Default of fields that are parsed later: a plain default would be an attribute of the class and hide them."""


@dataclass(frozen=True)
class Header:
    """What a file says about its image; ``None`` where a tag is absent, empty or has a value that its type forbids.

    Fields are DICOM keywords in snake_case (PS3.6). Lengths are in mm, times in ms, field strength in tesla.
    ``image_orientation_patient`` holds the direction of a row (increasing column), then of a column (increasing row);
    ``pixel_spacing`` the distance between rows, then between columns. ``image_type`` is the text with its backslashes;
    the limits of padding are stored values, signed where the pixels are. ``problems`` holds a line for each malformed
    element in spite of which the file was read. A header from a file parses its fields when they are first used.
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
    float_pixel_padding_value: float | None = field(default_factory=_absent)
    float_pixel_padding_range_limit: float | None = field(default_factory=_absent)
    double_float_pixel_padding_value: float | None = field(default_factory=_absent)
    double_float_pixel_padding_range_limit: float | None = field(default_factory=_absent)
    complex_image_component: str | None = field(default_factory=_absent)  # MAGNITUDE, PHASE ... of enhanced objects
    problems: tuple[str, ...] = ()
    pixel_data: str = "PixelData"  # keyword of the element with the pixels: also FloatPixelData, DoubleFloatPixelData

    if not TYPE_CHECKING:  # or every name would count as an attribute

        def __getattr__(self, name: str) -> object:
            """Parse a field that is not there yet, together with those that take no extra time."""
            fields = self.__dict__
            unread = fields.get("_unread")
            if unread is not None:
                for names, make in PARTS:
                    if name in names:
                        fields.update(make(*unread))
                        if len(fields) > len(self.__dataclass_fields__):  # all of them
                            fields.pop("_unread", None)
            if name in fields:
                return fields[name]
            raise AttributeError(f"'Header' object has no attribute {name!r}")

    def __getstate__(self) -> dict[str, object]:
        """Return the fields only, because the bytes that they come from may hold the patient's name."""
        return {field: getattr(self, field) for field in self.__dataclass_fields__}

    def of_frame(self, index: int) -> Header:
        """The header of the frame ``index`` (from 0), with number_of_frames 1.

        Values are taken from the functional groups of that frame, else from the data set outside of the groups, else
        from the groups that all frames share. A header that was pickled has no groups, since they may name the patient.

        Raises:
            DicomError: there is no such frame.
        """
        n_frames = max(1, self.number_of_frames or 1)
        if not 0 <= index < n_frames:
            raise DicomError(f"{self.path}: found frame {index}, expected 0 to {n_frames - 1}")
        groups = self.__dict__.get("_groups")
        changes = groups.frame(index) if groups is not None and n_frames > 1 else {}
        return replace(self, number_of_frames=1, **changes)

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
        """The type of one decoded sample: as many bits as allocated, signed where PixelRepresentation is 1, or float.

        Raises:
            DicomError: allocated bits are not 1, 8, 16, 32 or 64, or stored bits do not fit into them.
        """
        allocated, stored = self.bits_allocated, self.stored_bits
        if self.pixel_data != "PixelData":
            dtype = _FLOATS[self.pixel_data]
            if allocated != 8 * dtype.itemsize:
                raise DicomError(
                    f"{self.path}: found BitsAllocated {allocated}, expected {8 * dtype.itemsize} for {self.pixel_data}"
                )
            return dtype
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
_FLOATS: dict[str, np.dtype] = {"FloatPixelData": np.dtype("f4"), "DoubleFloatPixelData": np.dtype("f8")}
_FLOAT_TAGS = {scan.FLOAT_PIXEL_DATA: "FloatPixelData", scan.DOUBLE_FLOAT_PIXEL_DATA: "DoubleFloatPixelData"}


@dataclass(slots=True)
class File:
    """A parsed file: its header, its bytes, and where in them the pixel data are."""

    header: Header
    source: np.ndarray  # (n,) uint8; the file's bytes, inflated where they are deflated
    is_big: bool
    pixels_start: int  # offset of the pixel data's value; -1 where there is none
    pixels_length: int  # its length; -1 where undefined (encapsulated)
    pixels_vr: str  # two letters; empty in implicit encoding
    offset_table: tuple[np.ndarray, np.ndarray] | None  # extended offset table: offsets and lengths, uint64
    plain: np.ndarray | None  # (rows, columns), a view of the pixels, for one frame of 16-bit gray without compression
    size: int = 0  # bytes of the file, where there is one


_TABLE_SPANS = scan.span_of(scan.OFFSETS), scan.span_of(scan.OFFSET_LENGTHS)
_GROUP_SPANS = scan.span_of(scan.SHARED_GROUPS), scan.span_of(scan.PER_FRAME_GROUPS)
_REASONS = {
    scan.TRUNCATED: "an element that passes the end of the data",
    scan.BAD_ITEM: "something else than an item inside a sequence",
    scan.MALFORMED_ELEMENT: "an element without a VR, outside its sequence or longer than it",
}


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read the header of the DICOM file at ``path``, without its pixels.

    Raises:
        DicomError: the file cannot be opened, is not DICOM, or ends inside the header.
    """
    return read_file(path, limit=_HEAD_BYTES).header


def read_file(path: str | os.PathLike[str], limit: int | None = None) -> File:
    """Read and parse the file at ``path``; only its first ``limit`` bytes where those hold the whole header.

    Raises:
        DicomError: the file cannot be opened, is not DICOM, or ends inside the header.
    """
    name = os.fspath(path)
    descriptor, size = open_file(name)
    try:
        if limit is not None and limit < size:
            source = read_start(name, descriptor, limit)
            try:
                file = parse(name, source, is_whole=False)
                file.size = size
                return file
            except DicomError:
                pass  # try again with the whole file
        source = read_start(name, descriptor, size)
    finally:
        os.close(descriptor)
    file = parse(name, source)
    file.size = size
    return file


def parse(name: str, source: np.ndarray, is_whole: bool = True) -> File:
    """Parse the bytes of a file, ``source`` (n,) uint8; with ``is_whole`` false they are only its beginning.

    Raises:
        DicomError: the bytes are not DICOM, or end inside the header (with ``is_whole`` false: before the pixel data).
    """
    workspace, numbers = scan.WORKSPACE.copy(), scan.NO_NUMBERS.copy()
    code = scan.read_elements(source, False, workspace, numbers)
    places = workspace[: scan.SPANS].tolist()
    start, length = places[scan.SYNTAX], places[scan.SYNTAX + 1]
    head = source[: places[scan.END_AT]].tobytes() if code == scan.PIXELS else b""
    raw = head[start : start + length] if head else source[start : start + length].tobytes()
    syntax = uid_of(raw) if length else ""
    if code == scan.NEEDS_SYNTAX or syntax in _SPECIAL:
        code, syntax, source = _read_special(name, source, syntax, is_whole, workspace, numbers)
        places, head = workspace[: scan.SPANS].tolist(), b""
    if (code < 0 or code == scan.END) and is_whole:
        recovered = _recovered(name, source, syntax, code, workspace)
        if recovered is not None:
            return recovered
    if code < 0:
        raise DicomError(
            f"{name}: found {_REASONS[code]} at offset {workspace[scan.END_AT]} of {source.size}, "
            f"expected a DICOM data set"
        )
    if code == scan.END and not is_whole:
        raise DicomError(f"{name}: found the end of the part read, expected pixel data")
    end, vr, _, _, _, is_big, stored, is_signed, rows, columns, tag, length, has_groups, *_ = places
    head = head or source[:end].tobytes()
    header = _header(name, syntax, head, workspace, numbers, has_groups)
    if code == scan.END:
        return File(header, source, is_big != 0, -1, 0, "", None, None)
    if stored and syntax in _LITTLE:
        pixels = np.ndarray((rows, columns), _DTYPES[16][is_signed], source, end)
        words = source[end : end + pixels.nbytes].view(np.uint16)
        if stored == 16 or not gather_bits(words, is_signed != 0) >> stored:
            return File(header, source, False, end, pixels.nbytes, "", None, pixels)
    if tag != scan.PIXEL_DATA:
        header.__dict__["pixel_data"] = _FLOAT_TAGS[tag]
    table = _offset_table(head, workspace) if workspace[_TABLE_SPANS[0]] >= 0 else None
    return File(header, source, is_big != 0, end, -1 if length == scan.UNDEFINED else length, vr_text(vr), table, None)


def _header(name: str, syntax: str, head: bytes, workspace: np.ndarray, numbers: np.ndarray, has_groups: int) -> Header:
    """Make a header that parses its fields at first use."""
    header = object.__new__(Header)
    groups = None
    if has_groups:
        from lumbar.dicom.parsing.functional_groups import FunctionalGroups  # late: slices of one frame have none

        shared, per_frame = (tuple(workspace[span : span + 2].tolist()) for span in _GROUP_SPANS)
        flags = workspace.item(scan.IS_BIG) != 0, workspace.item(scan.IS_EXPLICIT) != 0
        groups = FunctionalGroups(head, *flags, shared, per_frame)
        header.__dict__["_groups"] = groups
    header.__dict__.update(
        path=name,
        transfer_syntax_uid=syntax,
        problems=(),
        pixel_data="PixelData",
        _unread=(head, workspace, numbers, groups),
    )
    return header


def _recovered(name: str, source: np.ndarray, syntax: str, code: int, workspace: np.ndarray) -> File | None:
    """Read a file in spite of malformed elements, where its pixels are certain all the same; else ``None``."""
    has_image = workspace[scan.SPANS + 2 :: 4].max() >= 0  # else there is nothing to compare the pixels' size with
    if source.size > MAX_RECOVERED_BYTES or not syntax or (code == scan.END and not has_image):
        return None
    from lumbar.dicom.parsing.recovery import recover  # late: nearly all files are well-formed

    is_big, start = syntax == EXPLICIT_BIG, workspace.item(scan.DATASET)
    is_encapsulated = syntax not in (*_LITTLE, *_SPECIAL)
    letters = source[start + 4 : start + 6].tobytes()
    # The form of the first element decides, as in the walk, unless it is malformed itself
    is_explicit = syntax != IMPLICIT_LITTLE if not workspace[scan.IS_EXPLICIT] else letters.isalpha()
    recovered = recover(source.tobytes(), start, is_big, is_explicit, is_encapsulated)
    if recovered is None:
        return None
    places, numbers = scan.WORKSPACE.copy(), scan.NO_NUMBERS.copy()
    places[scan.IS_BIG] = is_big
    if scan.read_elements(np.frombuffer(recovered.head, np.uint8), True, places, numbers) != scan.PIXELS:
        return None
    header = _header(name, syntax, recovered.head, places, numbers, places.item(scan.HAS_GROUPS))
    header.__dict__["problems"] = tuple(f"{name}: {problem}" for problem in recovered.problems)
    header.__dict__["pixel_data"] = _FLOAT_TAGS.get(recovered.pixel_tag, "PixelData")
    length = -1 if recovered.pixels_length == scan.UNDEFINED else recovered.pixels_length
    table = _offset_table(recovered.head, places)
    return File(header, source, is_big, recovered.pixels_start, length, recovered.pixels_vr, table, None)


def _read_special(
    name: str, source: np.ndarray, syntax: str, is_whole: bool, workspace: np.ndarray, numbers: np.ndarray
) -> tuple[int, str, np.ndarray]:
    """Read a data set whose transfer syntax is missing, deflated or big-endian.

    Returns:
        The walk's code, the transfer syntax, and the bytes that the data set was read from.
    """
    dataset = workspace.item(scan.DATASET)
    workspace[scan.SPANS :] = scan.WORKSPACE[scan.SPANS :]
    if syntax == DEFLATED:
        if not is_whole:
            raise DicomError(f"{name}: found a part of a deflated file, expected the whole")
        source = inflate(name, source, dataset)
        workspace[scan.DATASET] = 0
    is_bare = not syntax  # no file meta
    if is_bare:
        first = source[dataset : dataset + 6].tobytes()
        is_explicit = len(first) == 6 and 65 <= first[4] <= 90 and 65 <= first[5] <= 90
        # A group number of 0x0400 or more at the start is a small number in the other byte order (as in pydicom)
        is_big = is_explicit and first[1] >= 4
        syntax = EXPLICIT_BIG if is_big else EXPLICIT_LITTLE if is_explicit else IMPLICIT_LITTLE
    workspace[scan.IS_BIG] = int(syntax == EXPLICIT_BIG)
    code = scan.read_elements(source, True, workspace, numbers)
    if is_bare and dataset < _PREFIX_END and code >= 0 and np.all(workspace[scan.SPANS :: 4] < 0):
        raise DicomError(f"{name}: found no DICM prefix and no known element in {source.size} bytes, expected DICOM")
    return code, syntax, source


def _offset_table(head: bytes, workspace: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The extended offset table (offsets, lengths), or ``None`` where the two do not match."""
    halves = []
    for span in _TABLE_SPANS:
        offset, length = workspace[span : span + 2].tolist()
        if offset < 0 or length % 8 or length == 0:
            return None
        halves.append(np.frombuffer(head[offset : offset + length], dtype="<u8"))
    return (halves[0], halves[1]) if halves[0].size == halves[1].size else None
