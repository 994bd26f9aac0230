"""The walk over a data set's elements, compiled: where each wanted value lies, and nothing else.

A data element (PS3.5 section 7.1.2, 7.1.3), all numbers in the data set's byte order::

    explicit, short VR   group 2 | element 2 | VR 2 | length 2 | value
    explicit, long VR    group 2 | element 2 | VR 2 | zero 2   | length 4 | value     (OB, OW, SQ, UN, UT ...)
    implicit             group 2 | element 2 | length 4 | value
    item, delimiter      FFFE    | element 2 | length 4 | value                       (in every encoding)

A value of undefined length (FFFFFFFF) is walked: a sequence holds items, an item holds elements, and each ends with its
delimiter (PS3.5 section 7.5). The nesting alternates, so one counter says what is expected: odd inside a sequence, even
inside an item. A value of defined length is jumped over, whatever it holds.
"""

from __future__ import annotations

import numpy as np

from lumbar.dicom._jit import kernel

END = 0  # the data ends after a whole element
PIXELS = 1  # the pixel data element was reached; its value starts at the place returned
TRUNCATED = -1  # an element's header or value passes the end
BAD_ITEM = -2  # something other than an item inside a sequence

PIXEL_DATA = 0x7FE00010
UNDEFINED = 0xFFFFFFFF
_ITEM = 0xFFFEE000
_ITEM_END = 0xFFFEE00D
_SEQUENCE_END = 0xFFFEE0DD


@kernel
def scan(
    source: np.ndarray,
    start: int,
    is_explicit: bool,
    is_big: bool,
    is_meta: bool,
    tags: np.ndarray,
    spans: np.ndarray,
    place: np.ndarray,
) -> int:
    """Walk the elements from ``start``; return END, PIXELS or a negative code.

    ``source`` is the file, uint8; ``tags`` (n,) int64, ascending, are the wanted ones; ``spans`` (n, 2) int64 receives
    offset and length (UNDEFINED for an undefined one) of each tag's value, untouched where the tag is absent;
    ``place`` (2,) int64 receives the offset at which the walk ended and the last VR (two characters, big-endian).
    With ``is_meta`` the walk ends at the first element outside group 2.
    """
    size = source.size
    position = start
    depth = 0
    wanted = 0
    last_tag = 0
    while True:
        place[0] = position
        if position + 8 > size:
            return TRUNCATED if depth > 0 else END
        b0 = int(source[position])
        b1 = int(source[position + 1])
        b2 = int(source[position + 2])
        b3 = int(source[position + 3])
        b4 = int(source[position + 4])
        b5 = int(source[position + 5])
        b6 = int(source[position + 6])
        b7 = int(source[position + 7])
        if is_big:
            tag = b0 << 24 | b1 << 16 | b2 << 8 | b3
            length = b4 << 24 | b5 << 16 | b6 << 8 | b7
        else:
            tag = b1 << 24 | b0 << 16 | b3 << 8 | b2
            length = b7 << 24 | b6 << 16 | b5 << 8 | b4
        if is_meta and tag >> 16 != 2:
            return END
        value = position + 8

        if depth & 1:  # inside a sequence: items until the delimiter
            if tag == _SEQUENCE_END:
                depth -= 1
                position = value
            elif tag != _ITEM:
                return BAD_ITEM
            elif length == UNDEFINED:
                depth += 1
                position = value
            elif length > size - value:
                return TRUNCATED
            else:
                position = value + length
            continue
        if depth > 0 and tag == _ITEM_END:
            depth -= 1
            position = value
            continue

        # Letters where a VR belongs mean explicit encoding. Anything else is an element written implicitly, as some
        # writers do inside sequences, and as PS3.5 section 6.2.2 asks inside UN of undefined length.
        if is_explicit and 65 <= b4 <= 90 and 65 <= b5 <= 90:
            place[1] = b4 << 8 | b5
            # O*, SQ, SV, UC, UN, UR, UT, UV have four bytes of length (PS3.5 table 7.1-1)
            is_long = b4 == 79 or (b4 == 83 and (b5 == 81 or b5 == 86))
            is_long = is_long or (b4 == 85 and (b5 == 67 or b5 == 78 or b5 == 82 or b5 == 84 or b5 == 86))
            if is_long:
                if position + 12 > size:
                    return TRUNCATED
                c0 = int(source[position + 8])
                c1 = int(source[position + 9])
                c2 = int(source[position + 10])
                c3 = int(source[position + 11])
                length = c0 << 24 | c1 << 16 | c2 << 8 | c3 if is_big else c3 << 24 | c2 << 16 | c1 << 8 | c0
                value = position + 12
            else:
                length = b6 << 8 | b7 if is_big else b7 << 8 | b6
        else:
            place[1] = 0

        if depth == 0:
            if tag < last_tag:  # out of order: not allowed, but seen
                wanted = 0
            last_tag = tag
            while wanted < tags.size and tags[wanted] < tag:
                wanted += 1
            if wanted < tags.size and tags[wanted] == tag:
                spans[wanted, 0] = value
                spans[wanted, 1] = length
            if tag == PIXEL_DATA:
                place[0] = value
                return PIXELS
        if length == UNDEFINED:
            depth += 1
            position = value
        elif length > size - value:
            return TRUNCATED
        else:
            position = value + length
