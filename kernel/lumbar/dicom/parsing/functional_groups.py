"""Functional groups of enhanced objects: the attributes of all frames, and of each frame (PS3.3 section C.7.6.16).

Enhanced MR and legacy converted objects keep geometry, rescaling and times in two sequences, SharedFunctionalGroups
(one item) and PerFrameFunctionalGroups (one item for each frame). Each item holds small sequences of one item with the
values. They are read when a field is first used, and only in files that have them.
"""

from __future__ import annotations

from lumbar.dicom.limits import MAX_GROUP_ELEMENTS
from lumbar.dicom.parsing.elements import Element, Elements, OutOfBounds
from lumbar.dicom.parsing.values import number_of, text_of

# Field: (sequence, tag, VR where the encoding is implicit, number of values, 0 for any), in the order of preference.
_CONVERTED = (0x00209170, 0x00209171)  # attributes of converted objects, shared and per frame (PS3.3 C.7.6.16.2.25)
_FIELDS: dict[str, tuple[tuple[int, int, str, int], ...]] = {
    "image_position_patient": ((0x00209113, 0x00200032, "DS", 3),),
    "image_orientation_patient": ((0x00209116, 0x00200037, "DS", 6),),
    "pixel_spacing": ((0x00289110, 0x00280030, "DS", 2),),
    "slice_thickness": ((0x00289110, 0x00180050, "DS", 1),),
    "spacing_between_slices": ((0x00289110, 0x00180088, "DS", 1),),
    "rescale_slope": ((0x00289145, 0x00281053, "DS", 1),),
    "rescale_intercept": ((0x00289145, 0x00281052, "DS", 1),),
    "window_center": ((0x00289132, 0x00281050, "DS", 0),),
    "window_width": ((0x00289132, 0x00281051, "DS", 0),),
    "echo_time": ((0x00189114, 0x00189082, "FD", 1), *((tag, 0x00180081, "DS", 1) for tag in _CONVERTED)),
    "repetition_time": ((0x00189112, 0x00180080, "DS", 1), *((tag, 0x00180080, "DS", 1) for tag in _CONVERTED)),
    "slice_location": tuple((tag, 0x00201041, "DS", 1) for tag in _CONVERTED),
    "echo_number": tuple((tag, 0x00180086, "IS", 1) for tag in _CONVERTED),
    "acquisition_number": (
        (0x00209111, 0x00209156, "US", 1),
        *((tag, 0x00200012, "IS", 1) for tag in _CONVERTED),
    ),
    "temporal_position_identifier": (
        (0x00209111, 0x00209128, "UL", 1),
        *((tag, 0x00200100, "IS", 1) for tag in _CONVERTED),
    ),
}
_INTEGERS = ("echo_number", "acquisition_number", "temporal_position_identifier")
_FRAME_TYPE = 0x00189226  # MRImageFrameTypeSequence
_FRAME_TEXTS = {"image_type": 0x00089007, "complex_image_component": 0x00089208}  # FrameType, ComplexImageComponent


class FunctionalGroups:
    """The two sequences of a file. Groups that cannot be read count as absent.

    Args:
        data: the header's bytes.
        is_big: whether they are big-endian.
        is_explicit: whether VRs are written.
        shared: offset (negative: absent) and length (0: undefined) of SharedFunctionalGroups in ``data``.
        per_frame: the same of PerFrameFunctionalGroups.
    """

    def __init__(
        self, data: bytes, is_big: bool, is_explicit: bool, shared: tuple[int, int], per_frame: tuple[int, int]
    ) -> None:
        self._elements = Elements(data, is_big, is_explicit, MAX_GROUP_ELEMENTS)
        self._spans = shared, per_frame
        self._groups: tuple[list[Element], list[Element]] | None = None

    def _read(self) -> tuple[list[Element], list[Element]]:
        """The items of the shared groups and of the frames' groups, which are read only once."""
        if self._groups is None:
            groups: list[list[Element]] = []
            for offset, length in self._spans:
                end = offset + length if length else len(self._elements.data)
                try:
                    groups.append(self._elements.items(offset, end) if offset >= 0 else [])
                except OutOfBounds:
                    groups.append([])
            self._groups = groups[0], groups[1]
        return self._groups

    def shared(self) -> dict[str, object]:
        """Header fields that hold for all frames."""
        return self._fields(self._read()[0][:1])

    def frame(self, index: int) -> dict[str, object]:
        """Header fields that hold only for the frame with this ``index``."""
        return self._fields(self._read()[1][index : index + 1])

    def _fields(self, items: list[Element]) -> dict[str, object]:
        fields: dict[str, object] = {}
        groups = self._members(items)
        sequences = {tag: self._only_item(groups[tag]) for tag in groups if tag in _SEQUENCES}
        for field, places in _FIELDS.items():
            for sequence, tag, vr, count in places:
                element = sequences.get(sequence, {}).get(tag)
                value = None if element is None else self._number(field, element, vr, count)
                if value is not None:
                    fields[field] = value
                    break
        frame_type = sequences.get(_FRAME_TYPE, {})
        for field, tag in _FRAME_TEXTS.items():
            element = frame_type.get(tag)
            if element is not None and (text := text_of(self._elements.data[element.start : element.stop])):
                fields[field] = text
        return fields

    def _only_item(self, sequence: Element) -> dict[int, Element]:
        try:
            return self._members(self._elements.items(sequence.start, sequence.stop))
        except OutOfBounds:
            return {}

    def _members(self, items: list[Element]) -> dict[int, Element]:
        """Elements of the first item; none where there is no item or it cannot be read."""
        try:
            return self._elements.members(items[0]) if items else {}
        except OutOfBounds:
            return {}

    def _number(self, field: str, element: Element, vr: str, count: int) -> object:
        elements = self._elements
        raw = elements.data[element.start : element.stop]
        value = number_of(raw, element.vr or vr, elements.is_big, field in _INTEGERS, count)
        if field == "pixel_spacing" and isinstance(value, tuple) and min(value) <= 0:
            return None
        return value


_SEQUENCES = frozenset([place[0] for places in _FIELDS.values() for place in places] + [_FRAME_TYPE])
