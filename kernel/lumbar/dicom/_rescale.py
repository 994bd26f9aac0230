"""Stored values to a volume's, compiled: unused bits off, sign, slope and intercept."""

from __future__ import annotations

import numpy as np

from lumbar.dicom._jit import kernel

DONE, UNSUPPORTED = 0, -99


@kernel
def rescale(words: np.ndarray, mask: int, sign: int, slope: float, intercept: float, out: np.ndarray) -> int:
    """Fill ``out`` (n,) float32 from ``words`` (>= n,) uint16, of which the bits of ``mask`` count.

    ``sign`` is the bit of them that stands for a negative number, or 0. Returns DONE, or UNSUPPORTED for too few words.
    """
    bits, flip, offset = np.uint16(mask), np.uint16(sign), np.int32(sign)
    factor, term = np.float32(slope), np.float32(intercept)
    if words.size < out.size:
        return UNSUPPORTED
    for index in range(out.size):  # no wider type than these, or it would not run in full registers
        number = np.int32(np.int32(np.uint16(np.uint16(words[index] & bits) ^ flip)) - offset)
        out[index] = np.float32(number) * factor + term
    return DONE
