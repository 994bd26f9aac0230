"""The walk over a data set's elements, compiled: the offset of each wanted value, and the values of numbers.

A data element (PS3.5 section 7.1.2, 7.1.3), all numbers in the data set's byte order::

    explicit, short VR   group 2 | element 2 | VR 2 | length 2 | value
    explicit, long VR    group 2 | element 2 | VR 2 | zero 2   | length 4 | value     (OB, OW, SQ, UN, UT ...)
    implicit             group 2 | element 2 | length 4 | value
    item, delimiter      FFFE    | element 2 | length 4 | value                       (in every encoding)

The walk goes into a value of undefined length (FFFFFFFF): a sequence holds items, an item holds elements, and each ends
with its delimiter (PS3.5 section 7.5). Sequences and items alternate, so that one counter of the depth tells what is
expected: it is odd inside a sequence and even inside an item. A value of defined length is skipped, whatever it holds.
"""

from __future__ import annotations

import numpy as np

from lumbar.dicom._jit import inner_kernel, kernel
from lumbar.dicom.codecs._bits import I64
from lumbar.dicom.parsing import numbers as _numbers
from lumbar.dicom.parsing.numbers import DECIMAL, INTEGER, SHORT

END = 0  # the data ends after a whole element
PIXELS = 1  # the pixel data element was reached; its value starts at workspace[END_AT]
TRUNCATED = -1  # an element's header or value passes the end
BAD_ITEM = -2  # something other than an item inside a sequence
MALFORMED_ELEMENT = -3  # an element outside sequences that cannot stand there as it is written

PIXEL_DATA = 0x7FE00010
FLOAT_PIXEL_DATA, DOUBLE_FLOAT_PIXEL_DATA = 0x7FE00008, 0x7FE00009
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
    "pixel_padding_value": (0x00280120, SHORT, 1),
    "pixel_padding_range_limit": (0x00280121, SHORT, 1),
    "number_of_frames": (0x00280008, INTEGER, 1),
    "instance_number": (0x00200013, INTEGER, 1),
    "series_number": (0x00200011, INTEGER, 1),
    "acquisition_number": (0x00200012, INTEGER, 1),
    "echo_number": (0x00180086, INTEGER, 1),
    "temporal_position_identifier": (0x00200100, INTEGER, 1),
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
    "image_type": 0x00080008,
    "complex_image_component": 0x00089208,
    "photometric_interpretation": 0x00280004,
    "series_instance_uid": 0x0020000E,
    "study_instance_uid": 0x0020000D,
    "sop_class_uid": 0x00080016,
    "series_description": 0x0008103E,
    "modality": 0x00080060,
    "manufacturer": 0x00080070,
}
# Floating-point numbers, which few files have: tag, VR where the encoding is implicit
FLOATS = {
    "float_pixel_padding_value": (0x00280122, "FL"),
    "double_float_pixel_padding_value": (0x00280123, "FD"),
    "float_pixel_padding_range_limit": (0x00280124, "FL"),
    "double_float_pixel_padding_range_limit": (0x00280125, "FD"),
}
OFFSETS, OFFSET_LENGTHS = 0x7FE00001, 0x7FE00002  # extended offset table (PS3.3 section C.7.6.3.1.8)
CHARACTER_SET = 0x00080005
SHARED_GROUPS, PER_FRAME_GROUPS = 0x52009229, 0x52009230  # functional groups (PS3.3 section C.7.6.16)
_OTHERS = (OFFSETS, OFFSET_LENGTHS, CHARACTER_SET, SHARED_GROUPS, PER_FRAME_GROUPS)
WANTED = sorted(
    [*(tag for tag, _, _ in NUMBERS.values()), *TEXTS.values(), *(tag for tag, _ in FLOATS.values()), *_OTHERS]
)
_TAGS = np.array(WANTED, np.int64)
_SYNTAX_TAG = 0x00020010
_US, _SS, _SQ, _UN = (ord(vr[0]) << 8 | ord(vr[1]) for vr in ("US", "SS", "SQ", "UN"))


def span_of(tag: int) -> int:
    """Place in the workspace of the four numbers that ``_store`` writes for ``tag``."""
    return SPANS + 4 * int(np.searchsorted(_TAGS, tag))


# Indices in the workspace, int64: where the walk ended, the last VR, a mask of the numbers left to Python, the start of
# the data set, whether it is explicit and big-endian; bits stored of plain pixels (0: there are none), whether they are
# signed, their rows and columns; tag and length of the pixel data as the file gives them; whether there are functional
# groups, and whether there are two-byte numbers that Python has to parse.
# Then four numbers for the transfer syntax and for each wanted tag: offset and length of the value (-1 and 0 where it
# is absent); its first two bytes as a number (-1 where it is not a two-byte number); its VR as a number (0: implicit).
END_AT, LAST_VR, UNPARSED, DATASET, IS_EXPLICIT, IS_BIG = 0, 1, 2, 3, 4, 5
PLAIN, PLAIN_SIGN, PLAIN_ROWS, PLAIN_COLUMNS = 6, 7, 8, 9
PIXEL_TAG, PIXEL_LENGTH, HAS_GROUPS, HAS_IRREGULAR_SHORTS = 10, 11, 12, 13
SYNTAX = 14
SPANS = 18
WORKSPACE = np.array([0] * SYNTAX + [-1, 0, -1, 0] * (1 + len(_TAGS)), np.int64)
NEEDS_SYNTAX = 2  # the transfer syntax is missing, or may be deflated or big-endian: the caller decides and calls again
SHORTS = tuple((field, span_of(tag) + 2) for field, (tag, kind, _) in NUMBERS.items() if kind == SHORT)
STRINGS = {field: row for field, row in NUMBERS.items() if row[1] != SHORT}  # parsed from text, in this order
NO_NUMBERS = np.full(sum(max(1, count) for _, _, count in STRINGS.values()), np.nan)


def _plan() -> np.ndarray:
    """The plan of ``parse_numbers``: the span of each tag, its kind, number of values and first index."""
    rows, slot = [], 0
    for tag, kind, count in STRINGS.values():
        rows.append((span_of(tag), kind, max(count, 1), slot))
        slot += max(count, 1)
    return np.array(rows, np.int64)


_PLAN = _plan()
_ROWS, _COLUMNS, _ALLOCATED, _STORED, _HIGH, _SIGN, _SAMPLES, _PLANAR, *_ = (place for _, place in SHORTS)
_SHORT_SPANS = np.array([place - 2 for _, place in SHORTS], np.int64)
_FRAMES = span_of(NUMBERS["number_of_frames"][0])
_SHARED, _PER_FRAME = span_of(SHARED_GROUPS), span_of(PER_FRAME_GROUPS)
_PHOTOMETRIC = span_of(TEXTS["photometric_interpretation"])


@kernel
def read_elements(source: np.ndarray, is_dataset: bool, workspace: np.ndarray, numbers: np.ndarray) -> int:
    """Find the header's values in ``source`` (n,) uint8: a file, or with ``is_dataset`` from workspace[DATASET] on.

    ``workspace``, a copy of ``WORKSPACE``, receives what its indices stand for; ``numbers``, a copy of ``NO_NUMBERS``,
    receives the numbers in the order of ``STRINGS``. Returns END, PIXELS, NEEDS_SYNTAX or a negative code.
    """
    code = _walk(source, not is_dataset, workspace)
    if code >= 0 and code != NEEDS_SYNTAX:
        workspace[UNPARSED] = _numbers.parse_numbers(source, workspace, _PLAN, numbers)
        workspace[HAS_GROUPS] = 1 if workspace[_SHARED] >= 0 or workspace[_PER_FRAME] >= 0 else 0
        # Two-byte numbers: the first two bytes of the value where its VR allows that; else Python parses it
        for index in range(_SHORT_SPANS.size):
            span = _SHORT_SPANS[index]
            at, length, vr = workspace[span], workspace[span + 1], workspace[span + 3]
            if length >= 2 and (vr == 0 or vr == _US or vr == _SS or (vr == _UN and length == 2)):
                first, second = int(source[at]), int(source[at + 1])
                workspace[span + 2] = first << 8 | second if workspace[IS_BIG] != 0 else second << 8 | first
            elif length > 0:
                workspace[HAS_IRREGULAR_SHORTS] = 1
        if code == PIXELS and not is_dataset and workspace[HAS_IRREGULAR_SHORTS] == 0:
            workspace[PLAIN] = _find_plain(source, workspace)
    return code


@inner_kernel
def _find_plain(source: np.ndarray, workspace: np.ndarray) -> int:
    """BitsStored of one frame of 16-bit gray that is complete and uncompressed, and needs no decoding; else 0."""
    start, length, photometric = workspace[END_AT], workspace[PIXEL_LENGTH], workspace[_PHOTOMETRIC]
    rows, columns = workspace[_ROWS], workspace[_COLUMNS]
    stored = workspace[_STORED] if workspace[_STORED] >= 0 else 16
    if workspace[_ALLOCATED] != 16 or rows < 1 or columns < 1 or stored < 1 or stored > 16:
        return 0
    # One sample and one frame of MONOCHROME1 or 2; anything else is checked in Python
    if abs(workspace[_SAMPLES]) != 1 or workspace[_FRAMES + 1] != 0:
        return 0
    if photometric < 0 or workspace[_PHOTOMETRIC + 1] < 11 or source[photometric] != 77:
        return 0
    if start & 1 or length == UNDEFINED or length < 2 * rows * columns or length > source.size - start:
        return 0
    if workspace[PIXEL_TAG] != PIXEL_DATA:
        return 0
    workspace[PLAIN_SIGN] = 1 if workspace[_SIGN] == 1 else 0
    workspace[PLAIN_ROWS], workspace[PLAIN_COLUMNS] = rows, columns
    return stored


@inner_kernel
def _store(place: np.ndarray, span: int, value: int, length: int, vr: int, size: int) -> None:
    """Store a value's offset and length at ``place[span]``; nothing else writes them.

    A value that does not lie completely within ``size`` bytes counts as absent; one of undefined length is stored with
    its offset and length 0. So both can be used later without checking them against the size again.
    """
    place[span], place[span + 1], place[span + 3] = -1, 0, vr
    if 0 <= value <= size:
        if length == UNDEFINED:
            place[span] = value
        elif 0 <= length <= size - value:
            place[span], place[span + 1] = value, length


@inner_kernel
def _walk(source: np.ndarray, is_file: bool, place: np.ndarray) -> int:
    """Walk the elements; return END, PIXELS, NEEDS_SYNTAX or a negative code.

    ``source`` is the file, uint8; ``place`` the workspace, of which the numbers of absent tags are not changed. With
    ``is_file`` the walk begins with the file meta, which is explicit and little-endian, and ends at the first element
    outside of group 2; else it begins at place[DATASET]. Both are one loop, without functions for parts that are used
    only once, because the compiler would take a tenth of a second and more for each of them.
    """
    size = source.size
    position = 0 if is_file else place[DATASET]
    if is_file and size >= 132 and source[128] == 68 and source[129] == 73 and source[130] == 67 and source[131] == 77:
        position = 132
    is_meta = is_explicit = True
    is_big = place[IS_BIG] != 0 and not is_file
    depth = 0
    wanted = 0
    last_tag = 0
    while True:
        place[END_AT] = position
        is_end = position + 8 > size
        if is_end and (depth > 0 or not is_meta):
            return TRUNCATED if depth > 0 else END
        tag: I64 = np.int64(0)
        b4, b5 = 0, 0
        if not is_end:
            tag = _read_long(source, position, is_big)
            if not is_big:
                tag = (tag & 0xFFFF) << 16 | tag >> 16
            b4, b5 = int(source[position + 4]), int(source[position + 5])
        has_letters = 65 <= b4 <= 90 and 65 <= b5 <= 90
        if is_meta and (tag >> 16 != 2 or not is_file):  # the data set begins
            place[DATASET] = position
            if is_file:
                # A UID whose last character is 9 or 2 may mean deflated or big-endian: the caller, who has the text,
                # decides, and also where there is no UID. It may be padded by one blank or NUL.
                at, n_letters = place[SYNTAX], place[SYNTAX + 1]
                last = 0
                if n_letters > 1:
                    last = int(source[at + n_letters - 1])
                    if last == 0 or last == 32:
                        last = int(source[at + n_letters - 2])
                if last <= 32 or last == 57 or (last == 50 and n_letters > 18):
                    return NEEDS_SYNTAX
            is_meta = False
            # The form of the first element decides, whatever the transfer syntax says
            is_explicit = has_letters
            place[IS_EXPLICIT] = 1 if is_explicit else 0
            depth = 0
            continue

        # Capital letters in the place of a VR mean an explicit element. Anything else is an implicit one, which some
        # programs write inside sequences, and which PS3.5 section 6.2.2 asks for inside UN of undefined length.
        value, length_at, is_short = position + 8, position + 4, False
        vr = 0
        if is_explicit and has_letters and tag >> 16 != 0xFFFE:
            vr = b4 << 8 | b5
            # O*, SQ, SV, UC, UN, UR, UT, UV have four bytes of length (PS3.5 table 7.1-1)
            is_long = b4 == 79 or (b4 == 83 and (b5 == 81 or b5 == 86))
            is_long = is_long or (b4 == 85 and (b5 == 67 or b5 == 78 or b5 == 82 or b5 == 84 or b5 == 86))
            is_short = not is_long
            if is_long:
                if position + 12 > size:
                    return TRUNCATED
                value, length_at = position + 12, position + 8
        place[LAST_VR] = vr
        length: I64 = _read_long(source, length_at, is_big)
        if is_short:  # the last two of the four bytes
            length = length & 0xFFFF if is_big else length >> 16

        if depth & 1:  # inside a sequence: items until the delimiter
            if tag == _SEQUENCE_END:
                depth -= 1
                position = value
                continue
            if tag != _ITEM:
                return BAD_ITEM
        elif depth > 0 and tag == _ITEM_END:
            depth -= 1
            position = value
            continue

        span = -1
        if is_meta:
            if tag == _SYNTAX_TAG and depth == 0:
                span = SYNTAX
        elif depth == 0:
            # After delimiters or items without a sequence, or an element without a VR among those with one, the next
            # element may be read from a wrong offset
            if tag >> 16 == 0xFFFE or (is_explicit and vr == 0):
                return MALFORMED_ELEMENT
            if tag == PIXEL_DATA or tag == FLOAT_PIXEL_DATA or tag == DOUBLE_FLOAT_PIXEL_DATA:
                place[END_AT], place[PIXEL_TAG], place[PIXEL_LENGTH] = value, tag, length
                return PIXELS
            # A sequence that ends inside its first item (FFFE,E000) declares too few bytes
            if (vr == 0 or vr == _SQ) and 8 <= length <= size - value and source[value] >= 0xFE:
                inner = _read_long(source, value + 4, is_big)
                if inner != UNDEFINED and inner > length - 8 and int(source[value]) + int(source[value + 1]) == 0x1FD:
                    return MALFORMED_ELEMENT
            if tag < last_tag:  # out of order, which is not allowed but exists
                wanted = 0
            last_tag = tag
            while wanted < _TAGS.size and _TAGS[wanted] < tag:
                wanted += 1
            if wanted < _TAGS.size and _TAGS[wanted] == tag:
                span = SPANS + 4 * wanted
        if span >= 0:
            _store(place, span, value, length, vr, size)
        if length == UNDEFINED:
            depth += 1
            position = value
        elif length > size - value:
            return TRUNCATED
        else:
            position = value + length


@inner_kernel
def _read_long(source: np.ndarray, at: int, is_big: bool) -> I64:
    """Return four bytes as an unsigned number."""
    b0, b1, b2, b3 = int(source[at]), int(source[at + 1]), int(source[at + 2]), int(source[at + 3])
    return np.int64(b0 << 24 | b1 << 16 | b2 << 8 | b3 if is_big else b3 << 24 | b2 << 16 | b1 << 8 | b0)
