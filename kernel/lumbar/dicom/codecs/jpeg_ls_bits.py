"""The bits of JPEG-LS (ITU-T T.87, A.1 and A.5.3), compiled: removing stuffing bits, and Golomb codes."""

from __future__ import annotations

import numpy as np

from lumbar.dicom._jit import kernel
from lumbar.dicom.codecs._bits import EIGHT, I64, NO_TOP_BIT, ONE, U64, W63, W64, leading_zeros

SIX, SEVEN = np.uint64(6), np.uint64(7)
LOW7 = np.uint64(0x7F7F7F7F7F7F7F7F)
ALL_ONES = np.uint64(0xFFFFFFFFFFFFFFFF)


@kernel
def unstuff(data: np.ndarray, start: I64, words: np.ndarray) -> tuple[I64, I64]:
    """Copy entropy-coded bits to big-endian ``words`` (uint64) without stuffing: after 0xFF a byte has 7 bits (A.1).

    ``words`` needs data.size // 8 + 8 entries; at least 256 zero bits follow the last bit. Returns (number of bits,
    offset of the marker or of the end of the data).
    """
    size = np.uint64(data.size)
    i = np.uint64(start)
    o = np.uint64(0)
    word = np.uint64(0)
    n_word = np.uint64(0)  # bits in ``word``, from the top, always below 64
    n_byte = EIGHT  # bits in the next byte
    is_marker: bool | np.bool = False
    while i < size and not is_marker:
        if n_byte == EIGHT and i + EIGHT <= size:
            chunk = np.uint64(0)
            for j in range(8):
                chunk = (chunk << EIGHT) | np.uint64(data[i + np.uint64(j)])
            flipped = chunk ^ ALL_ONES
            if (((flipped & LOW7) + LOW7) | flipped | LOW7) == ALL_ONES:  # no byte of ``chunk`` is 0xFF
                words[o] = word | (chunk >> n_word)
                word = (chunk << ONE) << (W63 - n_word)
                o += ONE
                i += EIGHT
                continue
        for _ in range(8):
            if i >= size:
                break
            byte = np.uint64(data[i])
            is_marker = byte == np.uint64(0xFF) and i + ONE < size and data[i + ONE] > 0x7F
            if is_marker:
                break
            bits = byte << (W64 - n_byte)
            word |= bits >> n_word
            n_word += n_byte
            if n_word >= W64:
                words[o] = word
                o += ONE
                n_word -= W64
                word = (bits << ONE) << (n_byte - n_word - ONE)
            n_byte = SEVEN if byte == np.uint64(0xFF) else EIGHT
            i += ONE
    words[o] = word
    for j in range(1, 6):
        words[o + np.uint64(j)] = 0
    return np.int64((o << SIX) + n_word), np.int64(i)


@kernel
def golomb(bits: U64, k: I64, limit: I64, qbpp: I64) -> tuple[I64, I64]:
    """Decode one limited-length Golomb code (A.5.3) from the top of ``bits``; ``limit`` zeros mark an escape.

    Returns (value, length in bits); a value of -1 says that no such code exists.
    """
    zeros = leading_zeros(bits)
    if zeros < limit:
        value = (np.int64(zeros) << k) | np.int64(((bits << np.uint64(zeros)) & NO_TOP_BIT) >> np.uint64(63 - k))
        return value, zeros + 1 + k
    if zeros > limit:
        return np.int64(-1), np.int64(0)
    return np.int64(((bits << np.uint64(zeros)) & NO_TOP_BIT) >> np.uint64(63 - qbpp)) + 1, zeros + 1 + qbpp


@kernel
def golomb_parameter(a: I64, n: I64) -> I64:
    """Return the smallest k with n << k >= a (A.5.1); a, n > 0."""
    k = leading_zeros(np.uint64(n)) - leading_zeros(np.uint64(a))
    k = k if k > 0 else 0
    return k + ((n << k) < a)
