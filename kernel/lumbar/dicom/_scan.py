"""The walk over a data set's elements, compiled: where each wanted value lies, and the numbers among them.

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

from lumbar.dicom import _numbers
from lumbar.dicom._jit import kernel
from lumbar.dicom._numbers import DECIMAL, INTEGER, SHORT

END = 0  # the data ends after a whole element
PIXELS = 1  # the pixel data element was reached; its value starts at the place returned
TRUNCATED = -1  # an element's header or value passes the end
BAD_ITEM = -2  # something other than an item inside a sequence

PIXEL_DATA = 0x7FE00010
UNDEFINED = 0xFFFFFFFF
_ITEM = 0xFFFEE000
_ITEM_END = 0xFFFEE00D
_SEQUENCE_END = 0xFFFEE0DD


# Number fields of the header: tag, kind, how many values (0: any number, usually one). Text fields: tag.
NUMBERS = {
    "rows": (0x00280010, SHORT, 1),
    "columns": (0x00280011, SHORT, 1),
    "bits_allocated": (0x00280100, SHORT, 1),
    "bits_stored": (0x00280101, SHORT, 1),
    "high_bit": (0x00280102, SHORT, 1),
    "pixel_representation": (0x00280103, SHORT, 1),
    "samples_per_pixel": (0x00280002, SHORT, 1),
    "planar_configuration": (0x00280006, SHORT, 1),
    "number_of_frames": (0x00280008, INTEGER, 1),
    "instance_number": (0x00200013, INTEGER, 1),
    "series_number": (0x00200011, INTEGER, 1),
    "image_position_patient": (0x00200032, DECIMAL, 3),
    "image_orientation_patient": (0x00200037, DECIMAL, 6),
    "pixel_spacing": (0x00280030, DECIMAL, 2),
    "slice_thickness": (0x00180050, DECIMAL, 1),
    "spacing_between_slices": (0x00180088, DECIMAL, 1),
    "rescale_slope": (0x00281053, DECIMAL, 1),
    "rescale_intercept": (0x00281052, DECIMAL, 1),
    "slice_location": (0x00201041, DECIMAL, 1),
    "magnetic_field_strength": (0x00180087, DECIMAL, 1),
    "repetition_time": (0x00180080, DECIMAL, 1),
    "echo_time": (0x00180081, DECIMAL, 1),
    "window_center": (0x00281050, DECIMAL, 0),
    "window_width": (0x00281051, DECIMAL, 0),
}
TEXTS = {
    "photometric_interpretation": 0x00280004,
    "series_instance_uid": 0x0020000E,
    "study_instance_uid": 0x0020000D,
    "sop_class_uid": 0x00080016,
    "series_description": 0x0008103E,
    "modality": 0x00080060,
    "manufacturer": 0x00080070,
}
OFFSETS, OFFSET_LENGTHS = 0x7FE00001, 0x7FE00002  # extended offset table (PS3.3 section C.7.6.3.1.8)
_TAGS = np.array(
    sorted([*(tag for tag, _, _ in NUMBERS.values()), *TEXTS.values(), OFFSETS, OFFSET_LENGTHS, PIXEL_DATA]), np.int64
)
_SYNTAX_TAGS = np.array([0x00020010], np.int64)
N_INTEGERS = sum(kind != DECIMAL for _, kind, _ in NUMBERS.values())


def _plan() -> np.ndarray:
    """Rows for the number parser: index of the tag, kind, number of values, slot of the first."""
    rows, slot = [], 0
    for tag, kind, count in NUMBERS.values():
        rows.append((int(np.searchsorted(_TAGS, tag)), kind, max(count, 1), slot))
        slot += max(count, 1)
    return np.array(rows, np.int64)


_PLAN = _plan()

# Places in the workspace, int64: where the walk ended, last VR, numbers left to Python, start of the data set, whether
# it is explicit and big-endian; then offset and length of the transfer syntax and of each wanted tag.
END_AT, LAST_VR, LEFT, DATASET, IS_EXPLICIT, IS_BIG, SYNTAX = 0, 1, 2, 3, 4, 5, 6
SPANS = 8
WORKSPACE = np.array([0, 0, 0, 0, 0, 0, -1, 0, *([-1, 0] * len(_TAGS))], np.int64)
NO_NUMBERS = np.full(sum(max(1, count) for _, _, count in NUMBERS.values()), np.nan)
NEEDS_SYNTAX = 2  # none, or one that may be deflated or big-endian: settled by the caller, who calls again


def span_of(tag: int) -> int:
    """Place in the workspace of the offset of ``tag``; its length follows."""
    return SPANS + 2 * int(np.searchsorted(_TAGS, tag))


@kernel
def read_elements(source: np.ndarray, is_dataset: bool, workspace: np.ndarray, numbers: np.ndarray) -> int:
    """Find the header's values in ``source`` (n,) uint8, a file or (``is_dataset``) from workspace[DATASET] on.

    ``workspace`` is a copy of ``WORKSPACE`` and receives what its places say; ``numbers`` a copy of ``NO_NUMBERS`` and
    receives the numbers in the order of ``NUMBERS``. Returns END, PIXELS, NEEDS_SYNTAX or a negative code.
    """
    if not is_dataset:
        start = 0
        if source.size >= 132 and source[128] == 68 and source[129] == 73 and source[130] == 67 and source[131] == 77:
            start = 132
        # Typed numbers for flags: numba compiles the walk anew for each literal
        code = _walk(
            source, start, np.int64(1), np.int64(0), np.int64(1), _SYNTAX_TAGS, workspace[SYNTAX:SPANS], workspace
        )
        if code < 0:
            return code
        workspace[DATASET] = workspace[END_AT]
        offset, length = workspace[SYNTAX], workspace[SYNTAX + 1]
        if offset < 0:
            return NEEDS_SYNTAX
        # Deflated and big-endian syntaxes end in 9 and in 2; the caller, who sees the text, knows whether it is one
        while length > 0 and (source[offset + length - 1] == 0 or source[offset + length - 1] == 32):
            length -= 1
        if length == 0 or source[offset + length - 1] == 57 or (length == 19 and source[offset + 18] == 50):
            return NEEDS_SYNTAX
    start = workspace[DATASET]
    is_big = workspace[IS_BIG]
    # What the first element looks like decides, whatever the syntax says
    is_explicit = start + 6 <= source.size and 65 <= source[start + 4] <= 90 and 65 <= source[start + 5] <= 90
    workspace[IS_EXPLICIT] = 1 if is_explicit else 0
    code = _walk(source, start, workspace[IS_EXPLICIT], is_big, np.int64(0), _TAGS, workspace[SPANS:], workspace)
    if code >= 0:
        workspace[LEFT] = _numbers.parse_numbers(source, is_big != 0, workspace[SPANS:], _PLAN, numbers)
    return code


@kernel
def _walk(
    source: np.ndarray,
    start: int,
    is_explicit: np.int64,
    is_big: np.int64,
    is_meta: np.int64,
    tags: np.ndarray,
    spans: np.ndarray,
    place: np.ndarray,
) -> int:
    """Walk the elements from ``start``; return END, PIXELS or a negative code.

    ``source`` is the file, uint8; ``tags`` (n,) int64, ascending, are the wanted ones; ``spans`` (2 n,) int64 receives
    offset and length (UNDEFINED for an undefined one) of each tag's value, untouched where the tag is absent;
    ``place[0]`` receives the offset at which the walk ended, ``place[1]`` the last VR (two characters, big-endian).
    Flags are 0 or 1. With ``is_meta`` the walk ends at the first element outside group 2.
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
        if is_big != 0:
            tag = b0 << 24 | b1 << 16 | b2 << 8 | b3
            length = b4 << 24 | b5 << 16 | b6 << 8 | b7
        else:
            tag = b1 << 24 | b0 << 16 | b3 << 8 | b2
            length = b7 << 24 | b6 << 16 | b5 << 8 | b4
        if is_meta != 0 and tag >> 16 != 2:
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
        if is_explicit != 0 and 65 <= b4 <= 90 and 65 <= b5 <= 90:
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
                length = c0 << 24 | c1 << 16 | c2 << 8 | c3 if is_big != 0 else c3 << 24 | c2 << 16 | c1 << 8 | c0
                value = position + 12
            else:
                length = b6 << 8 | b7 if is_big != 0 else b7 << 8 | b6
        else:
            place[1] = 0

        if depth == 0:
            if tag < last_tag:  # out of order: not allowed, but seen
                wanted = 0
            last_tag = tag
            while wanted < tags.size and tags[wanted] < tag:
                wanted += 1
            if wanted < tags.size and tags[wanted] == tag:
                spans[2 * wanted] = value
                spans[2 * wanted + 1] = length
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
