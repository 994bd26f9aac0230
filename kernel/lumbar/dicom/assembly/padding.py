"""Pixels that a file declares to be padding: outside of the image, and of no intensity.

PixelPaddingValue (0028,0120), or the range from it to PixelPaddingRangeLimit (0028,0121), PS3.3 section C.7.5.1.1.2,
and (0028,0122) to (0028,0125) of pixels that are floating-point numbers. All are stored values; a stack keeps the range
in the rescaled units of its volume, one for each slice. The volume itself stays as it was read: who looks at
intensities asks ``Stack.padding_mask`` which pixels are none.
"""

from __future__ import annotations

import numpy as np

from lumbar.dicom.header import Header
from lumbar.dicom.stack import Stack

MAX_FLOAT = 1e20  # floating-point pixels and their padding are cut off here, so that float32 holds them rescaled
_MAX_SHARE = 0.95  # of all pixels; more than that is no padding, or there is no image
_N_BESIDE = 4  # values on either side that a padding value among tissue is compared with
_PEAK = 4.0  # times as frequent as those values a padding value is
_FLOAT_EDGE = 1e-6  # of a floating-point padding value, for what float32 rounds away
_SAMPLES = 1 << 20  # pixels of a series that are looked at


def declared_range(header: Header, slope: float, intercept: float) -> tuple[float, float] | None:
    """Lowest and highest rescaled value of the declared padding, ``None`` where none is declared.

    The range is half of a stored value's step wider on each side in sum, so that rounding to float32 changes nothing.
    """
    value, limit = padding_ends(header)
    if value is None:
        return None
    ends = value, value if limit is None else limit
    if header.pixel_data == "PixelData":
        ends = _as_stored(int(ends[0]), header), _as_stored(int(ends[1]), header)
        edge = 0.25
    else:
        ends = max(-MAX_FLOAT, min(ends[0], MAX_FLOAT)), max(-MAX_FLOAT, min(ends[1], MAX_FLOAT))
        edge = _FLOAT_EDGE * max(abs(ends[0]), abs(ends[1]))
    low, high = (min(ends) - edge) * slope + intercept, (max(ends) + edge) * slope + intercept
    return min(low, high), max(low, high)


def padding_ends(header: Header) -> tuple[float | None, float | None]:
    """The padding value and the limit of its range, of the kind that the pixels are; ``None`` where absent."""
    if header.pixel_data == "FloatPixelData":
        return header.float_pixel_padding_value, header.float_pixel_padding_range_limit
    if header.pixel_data == "DoubleFloatPixelData":
        return header.double_float_pixel_padding_value, header.double_float_pixel_padding_range_limit
    return header.pixel_padding_value, header.pixel_padding_range_limit


def _as_stored(value: int, header: Header) -> int:
    """A padding value as the pixels are read: the stored bits of it, signed where they are."""
    bits = min(header.stored_bits or 16, 64)
    value &= (1 << bits) - 1
    return value - (1 << bits) if header.pixel_representation == 1 and value >> (bits - 1) else value


def sampled_padding(stack: Stack, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Range of padding, low and high (n,), of every ``step``-th pixel of a stack that declares one; NaN: none."""
    assert stack.padding is not None
    n_slices, rows, columns = stack.volume.shape
    which = np.arange(0, n_slices * rows * columns, step) // (rows * columns)
    return stack.padding[which, 0], stack.padding[which, 1]


def reason_to_ignore_padding(stacks: list[Stack], is_range: bool) -> str:
    """Why the padding that a series' stacks declare is not to be believed; empty where it is.

    It is not where nearly every pixel has it, nor where tissue has the declared value: where that lies among other
    values and is not much more frequent than its neighbours (with ``is_range`` false: it is one value a slice).
    """
    stacks = [stack for stack in stacks if stack.padding is not None]
    step = max(1, sum(stack.volume.size for stack in stacks) // _SAMPLES)
    n_pixels = n_padded = n_beside = n_below = n_above = 0
    for stack in stacks:
        values = stack.volume.reshape(-1)[::step]
        low, high = sampled_padding(stack, step)
        reach = 2 * _N_BESIDE * (high - low)  # the range of one value is half a step wide
        is_below, is_above = values < low, values > high
        n_pixels += values.size
        n_padded += int(np.count_nonzero((low <= values) & (values <= high)))
        n_beside += int(np.count_nonzero((low - reach <= values) & is_below | is_above & (values <= high + reach)))
        n_below, n_above = n_below + int(np.count_nonzero(is_below)), n_above + int(np.count_nonzero(is_above))
    if n_padded > _MAX_SHARE * n_pixels:
        return f"{100 * n_padded / n_pixels:.0f} % of the pixels have it"
    if not is_range and n_padded and n_below and n_above and n_padded < _PEAK * n_beside / (2 * _N_BESIDE):
        return "it is no more frequent than the values beside it"
    return ""
