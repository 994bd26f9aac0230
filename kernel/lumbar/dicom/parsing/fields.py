"""A header's fields, from its bytes and the workspace of the walk.

They are made in parts (``PARTS``): the fields of one part take no more time together than one of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from lumbar.dicom.parsing import numbers as _numbers
from lumbar.dicom.parsing import scan
from lumbar.dicom.parsing.values import number_of, text_of, vr_text

if TYPE_CHECKING:
    from lumbar.dicom.parsing.functional_groups import FunctionalGroups

_CHARACTER_SPAN = scan.span_of(scan.CHARACTER_SET)
_IMAGE = frozenset([*(field for field, _ in scan.SHORTS), "number_of_frames", "photometric_interpretation"])
_NAMES = tuple(scan.STRINGS)
# The fields that place a slice, which are needed for every slice: numbers 6 to 20
_GEOMETRY = _NAMES[6:13]  # position, orientation, spacing, thickness, distance, slope, intercept
_SINGLES = _NAMES[13:-2]  # before the windows
_GEOMETRY_BITS = sum(1 << _NAMES.index(field) for field in _GEOMETRY)
_PHOTOMETRIC_SPAN = scan.span_of(scan.TEXTS["photometric_interpretation"])
_TEXT_SPANS = tuple((field, scan.span_of(tag)) for field, tag in scan.TEXTS.items() if field not in _IMAGE)

_IRREGULAR = {field: (scan.span_of(tag), kind, count) for field, (tag, kind, count) in scan.NUMBERS.items()}

Groups: TypeAlias = "FunctionalGroups | None"


def _image_fields(head: bytes, workspace: np.ndarray, numbers: np.ndarray, groups: Groups) -> dict[str, object]:
    """The fields that decoding needs."""
    at = workspace.item
    fields: dict[str, object] = {field: None if (value := at(place)) < 0 else value for field, place in scan.SHORTS}
    if at(scan.HAS_IRREGULAR_SHORTS):
        for field, place in scan.SHORTS:
            if fields[field] is None and at(place - 1):
                fields[field] = _read_irregular(field, head, workspace)
    if fields["pixel_representation"] == 1:  # padding is stored as the pixels are (PS3.3 section C.7.5.1.1.2)
        for field in ("pixel_padding_value", "pixel_padding_range_limit"):
            padding = fields[field]
            if isinstance(padding, int) and 1 << 15 <= padding < 1 << 16:
                fields[field] = padding - (1 << 16)
    frames = numbers.item(0)  # NaN where absent, as in nearly all files; only NaN differs from itself
    is_read = frames != frames and not at(scan.UNPARSED) & 1
    fields["number_of_frames"] = None if is_read else _number_of_frames(head, workspace, numbers)
    start = at(_PHOTOMETRIC_SPAN)
    photometric = text_of(head[start : start + at(_PHOTOMETRIC_SPAN + 1)])
    fields["photometric_interpretation"] = photometric and photometric.upper()
    return fields


def _number_of_frames(head: bytes, workspace: np.ndarray, numbers: np.ndarray) -> object:
    if workspace.item(scan.UNPARSED) & 1:
        return _read_irregular("number_of_frames", head, workspace)
    frames = numbers.item(0)
    return None if frames != frames else int(frames)  # only NaN differs from itself


def _geometry_fields(head: bytes, workspace: np.ndarray, numbers: np.ndarray, groups: Groups) -> dict[str, object]:
    """The fields that place a slice and rescale it."""
    x, y, z, *cosines, between_rows, between_columns, thickness, distance, slope, intercept = [
        None if value != value else value for value in numbers[6:21].tolist()
    ]
    fields: dict[str, object] = {
        "image_position_patient": None if z is None else (x, y, z),
        "image_orientation_patient": None if cosines[5] is None else tuple(cosines),
        "pixel_spacing": None if between_columns is None else (between_rows, between_columns),
        "slice_thickness": thickness,
        "spacing_between_slices": distance,
        "rescale_slope": slope,
        "rescale_intercept": intercept,
    }
    if left := workspace.item(scan.UNPARSED) & _GEOMETRY_BITS:
        _read_unparsed(fields, left, head, workspace)
    spacing = fields["pixel_spacing"]
    if spacing is not None and min(spacing) <= 0:  # type: ignore[call-overload]
        fields["pixel_spacing"] = None
    if groups is not None:
        _add_groups(fields, _number_of_frames(head, workspace, numbers), groups)
    return fields


def _number_fields(head: bytes, workspace: np.ndarray, numbers: np.ndarray, groups: Groups) -> dict[str, object]:
    """The other fields that are numbers: acquisition, windows."""
    values = [None if value != value else value for value in numbers.tolist()]
    fields: dict[str, object] = {
        field: None if value is None else int(value) for field, value in zip(_NAMES[1:6], values[1:6], strict=True)
    }
    fields["window_center"] = None if values[-2] is None else (values[-2],)
    fields["window_width"] = None if values[-1] is None else (values[-1],)
    fields.update(zip(_SINGLES, values[21:-2], strict=True))
    if left := workspace.item(scan.UNPARSED) & ~_GEOMETRY_BITS & ~1:  # bit 0, number_of_frames, is in ``_IMAGE``
        _read_unparsed(fields, left, head, workspace)
    if groups is not None:
        _add_groups(fields, _number_of_frames(head, workspace, numbers), groups)
    return fields


def _read_unparsed(fields: dict[str, object], left: int, head: bytes, workspace: np.ndarray) -> None:
    """Parse the fields that the walk left to Python, given by their bits."""
    while left:
        field = _NAMES[(left & -left).bit_length() - 1]
        fields[field] = _read_irregular(field, head, workspace)
        left &= left - 1


def _text_fields(head: bytes, workspace: np.ndarray, numbers: np.ndarray, groups: Groups) -> dict[str, object]:
    """The other fields, which are texts."""
    at = workspace.item
    # An absent value has length 0
    raws = {field: head[(start := at(span)) : start + at(span + 1)] for field, span in _TEXT_SPANS}
    fields: dict[str, object]
    if length := at(_CHARACTER_SPAN + 1):
        start = at(_CHARACTER_SPAN)
        character_set = head[start : start + length]
        fields = {field: text_of(raw, character_set) for field, raw in raws.items()}
    else:
        fields = {field: text_of(raw) for field, raw in raws.items()}
    if groups is not None:
        _add_groups(fields, _number_of_frames(head, workspace, numbers), groups)
    return fields


def _float_fields(head: bytes, workspace: np.ndarray, numbers: np.ndarray, groups: Groups) -> dict[str, object]:
    """The padding of floating-point pixels."""
    fields: dict[str, object] = {}
    for field, (tag, usual) in scan.FLOATS.items():
        span = scan.span_of(tag)
        start, length, _, letters = workspace[span : span + 4].tolist()
        vr = vr_text(letters)
        raw = head[start : start + length]  # an absent value has length 0
        vr = usual if vr in ("", "UN") else vr
        fields[field] = number_of(raw, vr, workspace.item(scan.IS_BIG) != 0, False, 1) if length else None
    return fields


def _add_groups(fields: dict[str, object], n_frames: object, groups: FunctionalGroups) -> None:
    """Fill fields without a value from the functional groups that all frames share; of a single frame also its own."""
    own = {} if isinstance(n_frames, int) and n_frames > 1 else groups.frame(0)
    for field, value in (groups.shared() | own).items():
        if field in fields and fields[field] is None:
            fields[field] = value


PARTS = (
    (_IMAGE, _image_fields),
    (frozenset(_GEOMETRY), _geometry_fields),
    (frozenset(scan.STRINGS) - _IMAGE - frozenset(_GEOMETRY), _number_fields),
    (frozenset(field for field, _ in _TEXT_SPANS), _text_fields),
    (frozenset(scan.FLOATS), _float_fields),
)


def _read_irregular(field: str, head: bytes, workspace: np.ndarray) -> int | float | tuple[float, ...] | None:
    """Parse a number that the walk left to Python, because of its form or its VR."""
    span, kind, count = _IRREGULAR[field]
    start, length, _, letters = workspace[span : span + 4].tolist()
    vr, is_big = vr_text(letters), workspace.item(scan.IS_BIG) != 0
    raw = head[start : start + length]
    if kind == _numbers.SHORT and vr in ("", "UN"):
        return None  # the walk has read it if it is a number of two bytes
    value = number_of(raw, vr, is_big, kind != _numbers.DECIMAL, count)
    if kind == _numbers.SHORT and isinstance(value, int) and not -(1 << 15) <= value < 1 << 32:
        return None
    if field == "pixel_spacing" and value is None:
        side = number_of(raw, vr, is_big, False, 0)
        return side * 2 if isinstance(side, tuple) and len(side) == 1 else None  # a single value is taken for both
    return value
