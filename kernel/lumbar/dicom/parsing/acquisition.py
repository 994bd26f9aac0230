"""Attributes of a file that no pixel needs: who, what and how was imaged. Read for an index of headers, not for slices.

The compiled walk keeps to what decoding and placing need; these are read from the same bytes by a walk in Python.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lumbar.dicom.header import Header, read_file
from lumbar.dicom.parsing import scan
from lumbar.dicom.parsing.elements import Element, Elements, OutOfBounds
from lumbar.dicom.parsing.values import numbers_of, text_of, uid_of

_HEAD_BYTES = 32 * 1024
_MAX_ELEMENTS = 20_000
_META_BYTES = 4096
_MAX_DEPTH = 4  # of sequences inside a functional group
_META_CLASS, _META_INSTANCE = 0x00020002, 0x00020003
_SOP_CLASS, _SOP_INSTANCE, _CHARACTER_SET = 0x00080016, 0x00080018, 0x00080005
_UIDS = (_META_CLASS, _META_INSTANCE, _SOP_CLASS, _SOP_INSTANCE, _CHARACTER_SET)
_SHARED_GROUPS, _FRAME_GROUPS = 0x52009229, 0x52009230
# Keyword: (tag, VR where the encoding is implicit) (PS3.6)
TAGS: dict[str, tuple[int, str]] = {
    "StudyDescription": (0x00081030, "LO"),
    "AcquisitionContrast": (0x00089209, "CS"),
    "PatientName": (0x00100010, "PN"),
    "PatientID": (0x00100020, "LO"),
    "ContrastBolusAgent": (0x00180010, "LO"),
    "BodyPartExamined": (0x00180015, "CS"),
    "ScanningSequence": (0x00180020, "CS"),
    "SequenceName": (0x00180024, "SH"),
    "InversionTime": (0x00180082, "DS"),
    "EchoTrainLength": (0x00180091, "IS"),
    "ProtocolName": (0x00181030, "LO"),
    "FlipAngle": (0x00181314, "DS"),
    "EchoPulseSequence": (0x00189008, "CS"),
    "InversionTimes": (0x00189079, "FD"),
    "DiffusionBValue": (0x00189087, "FD"),
    "RequestedProcedureDescription": (0x00321060, "LO"),
}
_KEYWORDS = {tag: keyword for keyword, (tag, _) in TAGS.items()}


@dataclass(slots=True)
class Attributes:
    """A header with the further attributes of its file.

    Attributes:
        header: as ``read_header`` gives it.
        has_pixels: whether the file holds an image.
        has_mark: whether it begins with a preamble and ``DICM``.
        sop_class, sop_uid: SOPClassUID and SOPInstanceUID, of the file meta where the data set has none.
        frame_orientation, frame_position: of the first frame of a file with several, where its groups have them.
    """

    header: Header
    has_pixels: bool
    has_mark: bool
    sop_class: str = ""
    sop_uid: str = ""
    frame_orientation: tuple[float, ...] | None = None
    frame_position: tuple[float, ...] | None = None
    _raw: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    _character_set: bytes = b""
    _is_big: bool = False

    def text(self, keyword: str) -> str:
        """The text of an attribute in ``TAGS``; empty where it is absent."""
        raw, _ = self._raw.get(keyword, (b"", ""))
        return text_of(raw, self._character_set) or ""

    def number(self, keyword: str) -> float | None:
        """The first number of an attribute in ``TAGS``; None where there is none."""
        keyword = "InversionTimes" if keyword == "InversionTime" and keyword not in self._raw else keyword
        raw, vr = self._raw.get(keyword, (b"", ""))
        values = numbers_of(raw, vr or TAGS[keyword][1], self._is_big, 0) if raw else None
        return values[0] if values else None


def read_attributes(path: str) -> Attributes:
    """Read the header of a file with the attributes in ``TAGS``, without its pixels.

    Raises:
        DicomError: the file cannot be opened, is not DICOM, or ends inside the header.
    """
    file = read_file(path, limit=_HEAD_BYTES)
    header = file.header
    head, workspace, *_ = header.__dict__["_unread"]
    is_big, is_explicit = workspace.item(scan.IS_BIG) != 0, workspace.item(scan.IS_EXPLICIT) != 0
    start = workspace.item(scan.DATASET)
    data = head or file.source.tobytes()  # of an object without pixels: all its bytes
    attributes = Attributes(header, file.pixels_start >= 0, bytes(file.source[128:132]) == b"DICM")
    attributes._is_big = is_big
    meta = _Walk(Elements(file.source[:_META_BYTES].tobytes(), False, True, _MAX_ELEMENTS))
    if attributes.has_mark:
        meta.meta()
    walk = _Walk(Elements(data, is_big, is_explicit, _MAX_ELEMENTS))
    walk.data_set(start)
    values = meta.values | walk.values
    uids = {tag: uid_of(values[tag][0]) for tag in _UIDS if tag in values}
    attributes.sop_class = uids.get(_SOP_CLASS) or uids.get(_META_CLASS, "")
    attributes.sop_uid = uids.get(_SOP_INSTANCE) or uids.get(_META_INSTANCE, "")
    attributes._character_set = values.get(_CHARACTER_SET, (b"", ""))[0]
    attributes._raw = {_KEYWORDS[tag]: value for tag, value in values.items() if tag in _KEYWORDS}
    if (header.number_of_frames or 1) > 1:
        first = header.of_frame(0)
        attributes.frame_orientation = first.image_orientation_patient
        attributes.frame_position = first.image_position_patient
    return attributes


class _Walk:
    """The wanted elements that a walk meets, by tag; of several with the same tag the first."""

    def __init__(self, elements: Elements) -> None:
        self.elements = elements
        self.values: dict[int, tuple[bytes, str]] = {}

    def meta(self) -> None:
        """Walk over the file meta information (PS3.10 section 7.1)."""
        at, end = 132, len(self.elements.data)
        try:
            while at + 8 <= end and self.elements.tag(at) >> 16 == 2:
                at = self._keep(self.elements.read(at, end)).after
        except OutOfBounds:
            return

    def data_set(self, at: int) -> None:
        """Walk over a data set from ``at`` on; functional groups are entered, other sequences are passed over."""
        end = len(self.elements.data)
        try:
            while at + 8 <= end:
                element = self.elements.read(at, end)
                if element.tag in (_SHARED_GROUPS, _FRAME_GROUPS):
                    self._enter(element, 0)
                at = self._keep(element).after
        except OutOfBounds:
            return

    def _enter(self, sequence: Element, depth: int) -> None:
        """The first item of a sequence, and of the sequences inside it."""
        items = self.elements.items(sequence.start, sequence.stop)
        if not items or depth > _MAX_DEPTH:
            return
        at, end = items[0].start, items[0].stop
        while at + 8 <= end:
            element = self.elements.read(at, end)
            if element.vr == "SQ" or (not element.vr and element.is_undefined):
                self._enter(element, depth + 1)
            at = self._keep(element).after

    def _keep(self, element: Element) -> Element:
        tag = element.tag
        if tag in _KEYWORDS or tag in _UIDS:
            self.values.setdefault(tag, (self.elements.data[element.start : element.stop], element.vr))
        return element
