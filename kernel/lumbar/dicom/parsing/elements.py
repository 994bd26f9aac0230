"""Data elements read one by one in Python, for what the compiled walk does not read.

These are functional groups, whose values lie in sequences, and files with malformed elements. No length is trusted:
every element that is returned lies within the bytes given.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
UNDEFINED = 0xFFFFFFFF
LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_MAX_DEPTH = 16


@dataclass(frozen=True, slots=True)
class Element:
    """A data element: its value is ``data[start:stop]``, and the next element begins at ``after``."""

    tag: int
    vr: str  # empty in implicit encoding
    start: int
    stop: int
    after: int
    is_undefined: bool = False  # its length is undefined; its delimiter lies between ``stop`` and ``after``


class OutOfBounds(Exception):
    """An element ends outside of what contains it, or sequences are nested too deep or hold too many elements."""


class Elements:
    """Reads elements from ``data``, at most ``limit`` of them."""

    def __init__(self, data: bytes, is_big: bool, is_explicit: bool, limit: int) -> None:
        order = ">" if is_big else "<"
        self.data, self.is_big, self.is_explicit, self.left = data, is_big, is_explicit, limit
        self.tag_at = struct.Struct(f"{order}HH").unpack_from
        self.long_at = struct.Struct(f"{order}I").unpack_from
        self.short_at = struct.Struct(f"{order}H").unpack_from

    def tag(self, at: int) -> int:
        """The tag at offset ``at``; eight bytes must be there."""
        group, number = self.tag_at(self.data, at)
        return int(group << 16 | number)

    def read(self, at: int, end: int, depth: int = 0) -> Element:
        """Read the element at offset ``at``; explicit and implicit ones may be mixed.

        In explicit encoding, letters of a VR make an element explicit. In implicit encoding they do so only where the
        bytes, taken as a length, do not fit.

        Raises:
            OutOfBounds: it ends after ``end``.
        """
        self.left -= 1
        if at + 8 > end or self.left < 0:
            raise OutOfBounds
        tag, letters = self.tag(at), self.data[at + 4 : at + 6]
        vr, start, length = "", at + 8, self.long_at(self.data, at + 4)[0]
        fits = length == UNDEFINED or length <= end - start
        if tag >> 16 != 0xFFFE and (self.is_explicit or not fits):
            if letters in SHORT_VRS:
                vr, length = letters.decode(), self.short_at(self.data, at + 6)[0]
            elif letters in LONG_VRS and at + 12 <= end:
                vr, start, length = letters.decode(), at + 12, self.long_at(self.data, at + 8)[0]
        if length == UNDEFINED:
            stop, after = self.skip_items(start, end, depth + 1)
            return Element(tag, vr, start, stop, after, True)
        if length > end - start:
            raise OutOfBounds
        return Element(tag, vr, start, start + length, start + length)

    def skip_items(self, at: int, end: int, depth: int) -> tuple[int, int]:
        """Where the delimiter of the sequence of undefined length at ``at`` begins, and where it ends."""
        for sequence_item in self.items(at, end, depth):
            at = sequence_item.after
        if at + 8 > end or self.tag(at) != SEQUENCE_END:
            raise OutOfBounds
        return at, at + 8

    def items(self, at: int, end: int, depth: int = 0) -> list[Element]:
        """The items from ``at`` on, up to ``end`` or to something else than an item."""
        if depth > _MAX_DEPTH:
            raise OutOfBounds
        items = []
        while at + 8 <= end and self.tag(at) == ITEM:
            self.left -= 1
            if self.left < 0:
                raise OutOfBounds
            length = self.long_at(self.data, at + 4)[0]
            if length == UNDEFINED:
                stop = self._item_end(at + 8, end, depth)
                items.append(Element(ITEM, "", at + 8, stop, stop + 8, True))
            elif length > end - at - 8:
                raise OutOfBounds
            else:
                items.append(Element(ITEM, "", at + 8, at + 8 + length, at + 8 + length))
            at = items[-1].after
        return items

    def _item_end(self, at: int, end: int, depth: int) -> int:
        while at + 8 <= end and self.tag(at) != ITEM_END:
            at = self.read(at, end, depth).after
        if at + 8 > end:
            raise OutOfBounds
        return at

    def members(self, sequence_item: Element) -> dict[int, Element]:
        """The elements of an item by their tag; of several with the same tag the last."""
        members, at = {}, sequence_item.start
        while at + 8 <= sequence_item.stop:
            element = self.read(at, sequence_item.stop)
            members[element.tag] = element
            at = element.after
        return members
