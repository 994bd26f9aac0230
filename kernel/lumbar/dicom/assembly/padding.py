"""Pixels that a file declares to be padding: they lie outside of the image and have no intensity.

They have PixelPaddingValue (0028,0120), or lie between it and PixelPaddingRangeLimit (0028,0121), PS3.3 section
C.7.5.1.1.2; floating-point pixels use (0028,0122) to (0028,0125). All these are stored values; a stack keeps the range
in the rescaled units of its volume, for each slice. The volume itself is not changed: ``Stack.padding_mask`` tells
which pixels are padding.
"""

from __future__ import annotations

import numpy as np

from lumbar.dicom.header import Header
from lumbar.dicom.stack import Stack

MAX_FLOAT = 1e20  # floating-point pixels and padding are clipped here, so that float32 holds them after rescaling
_MAX_SHARE = 0.95  # of all pixels; where more have the padding value, it is not padding, or there is no image
_N_BESIDE = 4  # values on either side that a padding value between those of tissue is compared with
_PEAK = 4.0  # how many times as frequent as those values it must be
_FLOAT_EDGE = 1e-6  # share by which the range of floating-point padding is widened, for the rounding of float32
_SAMPLES = 1 << 20  # pixels of a series that are checked


def declared_range(header: Header, slope: float, intercept: float) -> tuple[float, float] | None:
    """Lowest and highest rescaled value of the declared padding; ``None`` where none is declared.

    The range is a quarter of a stored value wider on each side, so that rounding to float32 changes nothing.
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
    """The padding value and the limit of its range, of the type of the pixels; ``None`` where absent."""
    if header.pixel_data == "FloatPixelData":
        return header.float_pixel_padding_value, header.float_pixel_padding_range_limit
    if header.pixel_data == "DoubleFloatPixelData":
        return header.double_float_pixel_padding_value, header.double_float_pixel_padding_range_limit
    return header.pixel_padding_value, header.pixel_padding_range_limit


def _as_stored(value: int, header: Header) -> int:
    """A padding value as the pixels are read: only its stored bits, signed where the pixels are."""
    bits = min(header.stored_bits or 16, 64)
    value &= (1 << bits) - 1
    return value - (1 << bits) if header.pixel_representation == 1 and value >> (bits - 1) else value


def sampled_padding(stack: Stack, step: int) -> tuple[np.ndarray, np.ndarray]:
    """The range of padding, low and high (n,), for every ``step``-th pixel of a stack that declares one; NaN: none."""
    assert stack.padding is not None
    n_slices, rows, columns = stack.volume.shape
    which = np.arange(0, n_slices * rows * columns, step) // (rows * columns)
    return stack.padding[which, 0], stack.padding[which, 1]


def reason_to_ignore_padding(stacks: list[Stack], is_range: bool) -> str:
    """Why the padding that a series' stacks declare is ignored; empty where it is believed.

    It is ignored where nearly every pixel has it, and where tissue has the declared value as well: then the value lies
    between others and is not much more frequent than its neighbours. The latter is checked with ``is_range`` false,
    where the declared padding is one value and not a range.
    """
    stacks = [stack for stack in stacks if stack.padding is not None]
    step = max(1, sum(stack.volume.size for stack in stacks) // _SAMPLES)
    n_pixels = n_padded = n_beside = n_below = n_above = 0
    for stack in stacks:
        values = stack.volume.reshape(-1)[::step]
        low, high = sampled_padding(stack, step)
        reach = 2 * _N_BESIDE * (high - low)  # the range of a single value is half a stored value wide
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
