"""Stored values to values of a volume, compiled: clears unused bits, extends the sign, applies slope and intercept."""

from __future__ import annotations

import numpy as np

from lumbar.dicom._jit import kernel

DONE, UNSUPPORTED = 0, -99


@kernel
def rescale(words: np.ndarray, mask: int, sign: int, slope: float, intercept: float, out: np.ndarray) -> int:
    """Fill ``out`` (n,) float32 from ``words`` (>= n,) uint16.

    Only the bits of ``mask`` count. ``sign`` is the one of them that marks negative numbers, or 0 where values are
    unsigned. Returns DONE, or UNSUPPORTED for too few words.
    """
    bits, flip, offset = np.uint16(mask), np.uint16(sign), np.int32(sign)
    factor, term = np.float32(slope), np.float32(intercept)
    if words.size < out.size:
        return UNSUPPORTED
    for index in range(out.size):  # wider types than these would halve the values that fit into a vector register
        number = np.int32(np.int32(np.uint16(np.uint16(words[index] & bits) ^ flip)) - offset)
        out[index] = np.float32(number) * factor + term
    return DONE
