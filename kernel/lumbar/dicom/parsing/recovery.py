"""Reading data sets with malformed elements, which the compiled walk refuses, where the pixels are certain.

Elements are read one by one. Where one is malformed (a blank or unknown VR, a length of another width, a sequence that
declares too few bytes), the ways to read it are tried in turn, and the first is taken after which a plausible element
begins: one with a larger tag, and a VR or a length that fits. Where there is no such way, the next plausible element is
searched. At the end the pixel data must have exactly the size that rows, columns, samples, bits and frames ask for, or
be fragments that end with a delimiter; else the file is refused.
"""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from lumbar.dicom.parsing import scan
from lumbar.dicom.parsing.elements import LONG_VRS, SEQUENCE_END, SHORT_VRS, UNDEFINED, Element, Elements, OutOfBounds
from lumbar.dicom.parsing.values import numbers_of

_WINDOW = 1 << 16  # bytes after a malformed element in which the next good one is searched
_MAX_ELEMENTS = 1 << 17
_MAX_SEARCHES = 256  # through the rest of the file, for any pattern
_MAX_READINGS = 8  # ways to read the element after the one in question
_MAX_PLACES = 1 << 12  # offsets that are tried for the next good element
_PIXEL_TAGS = {scan.PIXEL_DATA: None, scan.FLOAT_PIXEL_DATA: 32, scan.DOUBLE_FLOAT_PIXEL_DATA: 64}
_SEQUENCES = (scan.SHARED_GROUPS, scan.PER_FRAME_GROUPS)
_VRS = re.compile(b"|".join(sorted(SHORT_VRS | LONG_VRS)))
_ROWS, _COLUMNS, _SAMPLES, _BITS, _FRAMES = 0x00280010, 0x00280011, 0x00280002, 0x00280100, 0x00280008


@dataclass(frozen=True, slots=True)
class Recovered:
    """A data set that was read in spite of malformed elements."""

    head: bytes  # the wanted elements, written again without faults, and an empty element of the pixel data
    pixel_tag: int
    pixels_start: int
    pixels_length: int  # UNDEFINED for fragments
    pixels_vr: str
    problems: tuple[str, ...]  # one for each malformed element


def recover(data: bytes, start: int, is_big: bool, is_explicit: bool, is_encapsulated: bool) -> Recovered | None:
    """Read the data set from ``start`` on; ``None`` where its pixels are not certain."""
    try:
        return _Reader(data, is_big, is_explicit, is_encapsulated).read(start)
    except (OutOfBounds, struct.error):
        return None


class _Reader:
    """Reads one data set; ``elements_read`` holds VR and value of each wanted tag."""

    def __init__(self, data: bytes, is_big: bool, is_explicit: bool, is_encapsulated: bool) -> None:
        self.data, self.is_big, self.is_explicit = data, is_big, is_explicit
        self.is_encapsulated = is_encapsulated
        self.elements = Elements(data, is_big, is_explicit, _MAX_ELEMENTS)
        self.elements_read: dict[int, tuple[str, bytes]] = {}
        self.problems: list[str] = []
        self.searches = _MAX_SEARCHES

    def _find(self, pattern: bytes, at: int) -> int:
        """The next offset of ``pattern``; negative where there is none, or after too many searches."""
        self.searches -= 1
        return self.data.find(pattern, at) if self.searches >= 0 else -1

    def read(self, at: int) -> Recovered | None:
        """Read the elements from ``at`` to the pixel data."""
        tag = -1
        for _ in range(_MAX_ELEMENTS):
            here = self.elements.tag(at)
            if here in _PIXEL_TAGS:
                pixels = self._pixels(at)
                if pixels is not None and self.is_explicit and self.data[at + 4 : at + 6] not in LONG_VRS:
                    self._note(at, here, "read as the pixel data")
                return None if pixels is None else self._recovered(pixels)
            tag = max(tag, here if here >> 16 != 0xFFFE else -1)
            element, is_good = self._element(at, tag)
            if element is None:
                after = self._next_good(at + 8, tag)
                if after is None:
                    return self._only_pixels(at)
            else:
                after = element.after
                if here in scan.WANTED:
                    self.elements_read[here] = element.vr, self.data[element.start : element.stop]
            if not is_good:
                self._note(at, here, "read over" if element is None else "read as the elements around it ask")
            at = after
        return None

    def _note(self, at: int, tag: int, how: str) -> None:
        text = f"found a malformed element ({tag >> 16:04x},{tag & 0xFFFF:04x}) at offset {at}, {how}"
        self.problems.append(f"{text}, expected a VR and a length that fit")
        if len(self.problems) > 16:  # the file has more wrong with it than a program's mistake
            raise OutOfBounds

    def _element(self, at: int, tag: int) -> tuple[Element | None, bool]:
        """The first plausible reading of the element at ``at``, and whether that is the regular one."""
        for check in (self._is_plausible, self._precedes_good_element):
            is_first = True
            for element in self._readings(at):
                if element is not None and check(element.after, tag):
                    return element, is_first
                is_first = False
        return None, False

    def _readings(self, at: int) -> Iterator[Element | None]:
        """Ways to read the element at ``at``: first the regular one, or ``None`` where that is impossible."""
        size, letters = len(self.data), self.data[at + 4 : at + 6]
        tag, short, long = self.elements.tag(at), self.elements.short_at(self.data, at + 6)[0], 0
        implicit = self.elements.long_at(self.data, at + 4)[0]
        if at + 12 <= size:
            long = self.elements.long_at(self.data, at + 8)[0]
        is_vr = letters in SHORT_VRS or letters in LONG_VRS
        vr = letters.decode() if is_vr else "UN"
        explicit = [(vr, at + 8, short), (vr, at + 12, long if short == 0 and at + 12 <= size else size)]
        if letters in LONG_VRS:
            explicit.reverse()
        ways = (
            [*explicit, ("", at + 8, implicit)] if self.is_explicit and is_vr else [("", at + 8, implicit), *explicit]
        )
        if self.is_explicit and not is_vr:
            yield None
        for vr, start, length in ways:
            if length == UNDEFINED or (length >= 8 and self._is_item(start)):
                yield from self._sequences(tag, vr, start, length)
            if length != UNDEFINED:
                yield Element(tag, vr, start, start + length, start + length) if length <= size - start else None

    def _is_item(self, at: int) -> bool:
        return at + 8 <= len(self.data) and self.elements.tag(at) == 0xFFFEE000

    def _sequences(self, tag: int, vr: str, start: int, length: int) -> Iterator[Element | None]:
        """Ways to read a sequence: by its items, then up to each of the delimiters that follow."""
        size = len(self.data)
        vr = "SQ" if vr else ""
        try:
            if length == UNDEFINED:
                stop, after = self.elements.skip_items(start, size, 1)
            else:
                items = self.elements.items(start, size, 1)
                stop = after = items[-1].after if items else start
                if stop > start + length and stop + 8 <= size and self.elements.tag(stop) == SEQUENCE_END:
                    after = stop + 8
                if stop < start + length:  # its items end too early
                    return
            if length == UNDEFINED or stop == start + length:
                yield Element(tag, vr, start, stop, after)
            else:
                yield None
                yield Element(tag, vr, start, stop, after)
        except OutOfBounds:
            yield None
        pattern = struct.pack(">HHI" if self.is_big else "<HHI", SEQUENCE_END >> 16, SEQUENCE_END & 0xFFFF, 0)
        at = start
        while (at := self._find(pattern, at)) >= 0:
            yield Element(tag, vr, start, at, at + 8)
            at += 8

    def _is_plausible(self, at: int, tag: int) -> bool:
        """Whether an element with a tag larger than ``tag`` begins at ``at``."""
        if at + 8 > len(self.data):
            return False
        next_tag = self.elements.tag(at)
        if not tag < next_tag <= scan.PIXEL_DATA:
            return False
        letters = self.data[at + 4 : at + 6]
        if next_tag in _PIXEL_TAGS and self.is_explicit and letters not in LONG_VRS:
            return self._pixels(at) is not None
        if letters in SHORT_VRS:
            return self.is_explicit and self.elements.short_at(self.data, at + 6)[0] <= len(self.data) - at - 8
        if letters in LONG_VRS and self.is_explicit:
            return self.data[at + 6 : at + 8] == b"\0\0" or next_tag >> 16 & 1 == 1
        length = self.elements.long_at(self.data, at + 4)[0]
        return not self.is_explicit and (length == UNDEFINED or length <= len(self.data) - at - 8)

    def _precedes_good_element(self, at: int, tag: int) -> bool:
        """Whether another malformed element may begin at ``at``: a larger tag, and a plausible element after it."""
        if at + 8 > len(self.data) or not tag < (next_tag := self.elements.tag(at)) < scan.PIXEL_DATA:
            return False
        readings = itertools.islice(self._readings(at), _MAX_READINGS)
        return any(element is not None and self._is_plausible(element.after, next_tag) for element in readings)

    def _next_good(self, at: int, tag: int) -> int | None:
        """The next offset at which two plausible elements follow each other, found by their VRs."""
        if not self.is_explicit:
            return None
        for match in itertools.islice(_VRS.finditer(self.data, at, at + _WINDOW), _MAX_PLACES):
            place = match.start() - 4
            if place >= at and self._is_plausible(place, tag):
                here = self.elements.tag(place)
                if here in _PIXEL_TAGS:
                    return place if self._pixels(place) is not None else None
                element, is_good = self._element(place, here)
                if element is not None and is_good:
                    return place
        return None

    def _only_pixels(self, at: int) -> Recovered | None:
        """The pixel data after ``at``, where exactly one offset in the rest of the file can be their element's."""
        order = ">HH" if self.is_big else "<HH"
        pattern = struct.pack(order, scan.PIXEL_DATA >> 16, scan.PIXEL_DATA & 0xFFFF)
        places: list[tuple[int, str, int, int]] = []
        place = self._find(pattern, at)
        while place >= 0 and len(places) < 2:
            if (pixels := self._pixels(place)) is not None:
                places.append(pixels)
            place = self._find(pattern, place + 1)
        if self.searches < 0 or len(places) != 1:
            return None
        self._note(at, self.elements.tag(at), "and others up to the pixel data read over")
        return self._recovered(places[0])

    def _pixels(self, at: int) -> tuple[int, str, int, int] | None:
        """Tag, VR, offset and length of the pixel data whose element is at ``at``; ``None`` if they are not certain."""
        data, size, letters = self.data, len(self.data), self.data[at + 4 : at + 6]
        if at + 12 > size:
            return None
        tag, vr, start, length = self.elements.tag(at), "", at + 8, self.elements.long_at(data, at + 4)[0]
        if letters in LONG_VRS and data[at + 6 : at + 8] == b"\0\0":
            vr, start, length = letters.decode(), at + 12, self.elements.long_at(data, at + 8)[0]
        expected = self._expected_bytes(_PIXEL_TAGS[tag])
        if expected is not None and not vr and self.is_explicit and data[at + 6 : at + 8] == b"\0\0":
            claimed = self.elements.long_at(data, at + 8)[0]  # after two letters that are not a VR
            if claimed == (UNDEFINED if self.is_encapsulated else expected + (expected & 1)):
                vr, start, length = "OW", at + 12, claimed
        if expected is None or (length == UNDEFINED) != self.is_encapsulated:
            return None
        if length == UNDEFINED:
            try:
                stop, _ = self.elements.skip_items(start, size, 1)
            except OutOfBounds:
                return None
            return (tag, vr, start, length) if stop - start > 16 else None
        is_right = length == expected + (expected & 1) and length <= size - start
        return (tag, vr, start, length) if is_right else None

    def _expected_bytes(self, bits: int | None) -> int | None:
        """Bytes of uncompressed pixels according to the elements read; ``None`` where those do not tell."""
        values = [self._number(tag) for tag in (_ROWS, _COLUMNS, _BITS, _SAMPLES, _FRAMES)]
        rows, columns, allocated = values[:3]
        if not rows or not columns or not allocated or (bits is not None and allocated != bits):
            return None
        return (rows * columns * allocated * max(1, values[3] or 1) * max(1, values[4] or 1) + 7) // 8

    def _number(self, tag: int) -> int | None:
        vr, raw = self.elements_read.get(tag, ("", b""))
        values = numbers_of(raw, ("IS" if tag == _FRAMES else "US") if vr in ("", "UN") else vr, self.is_big, 1)
        return int(values[0]) if values and 0 <= values[0] < 1 << 32 else None

    def _recovered(self, pixels: tuple[int, str, int, int]) -> Recovered:
        tag, vr, start, length = pixels
        parts = [self._written(wanted, *self.elements_read[wanted]) for wanted in sorted(self.elements_read)]
        head = b"".join([*parts, self._written(tag, "OW", b"")])
        return Recovered(head, tag, start, length, vr, tuple(self.problems))

    def _written(self, tag: int, vr: str, raw: bytes) -> bytes:
        """An element written without faults."""
        order = ">" if self.is_big else "<"
        head = struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF)
        if not self.is_explicit:
            return head + struct.pack(f"{order}I", len(raw)) + raw
        letters = ("SQ" if tag in _SEQUENCES else vr or "UN").encode()
        if letters in LONG_VRS:
            return head + letters + b"\0\0" + struct.pack(f"{order}I", len(raw)) + raw
        return head + letters + struct.pack(f"{order}H", len(raw) & 0xFFFF) + raw
