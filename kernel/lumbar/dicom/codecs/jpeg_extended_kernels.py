"""Sequential DCT decoding of JPEG (ITU-T T.81, annexes A and F), 8 and 12 bits, compiled.

The inverse transform is that of Loeffler, Ligtenberg and Moschytz (ICASSP 1989) in scaled integers. The standard leaves
its rounding open, so there are two: with libjpeg's constants and rounding ("islow") all pixels are equal to libjpeg's,
and with those of the library in pylibjpeg (github.com/thorfdbg/libjpeg) they are equal to pydicom's.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lumbar.dicom._jit import kernel
from lumbar.dicom.codecs._bits import EIGHT, I64, NO_TOP_BIT, ONE, U64, W64, peek
from lumbar.dicom.codecs.jpeg_restarts import INVALID, TRUNCATED, skip_restart

# T.81 figure A.6: index in the block (8 row + column) of each coefficient in the stream.
ZIGZAG = np.array([
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5,
    12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51,
    58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
])  # fmt: skip
MAX_DC = 1 << 16  # a quantised DC coefficient of 12-bit samples has 15 bits; larger ones mean damage
# The factors of the transform: cosines of multiples of pi / 16, and sums of them
_FACTORS = (
    0.541196100, 0.765366865, 1.847759065, 1.175875602, 0.899976223, 2.562915447,
    1.961570560, 0.390180644, 0.298631336, 2.053119869, 3.072711026, 1.501321110,
)  # fmt: skip
_LIBJPEG_BITS, _PYLIBJPEG_BITS = 13, 9  # of fraction in the factors
_LIBJPEG = tuple(int(factor * (1 << _LIBJPEG_BITS) + 0.5) for factor in _FACTORS)
_PYLIBJPEG = tuple(int(factor * (1 << _PYLIBJPEG_BITS) + 0.5) for factor in _FACTORS)
_PYLIBJPEG_SAMPLE_BITS = 4  # of fraction in coefficients and samples, as in pylibjpeg
PADDING = 40  # zero words after the bits: one block takes at most 64 codes of 16 + 15 bits


class Work(NamedTuple):
    """Arrays that the kernels work in, allocated by the caller for the ``n`` components of a scan.

    ``words``: (data.size // 8 + 1 + PADDING,) uint64. ``dc``, ``ac``: (n, 65536) uint16, 256 length + symbol for every
    16 bits, 0 where no code is. ``quantisation``: (n, 64) int64 in zigzag order. ``predictors``: (n,) int64. ``block``:
    (64,) int64. ``progress``: (2,) int64, the row of blocks and the byte reached.
    """

    words: np.ndarray
    dc: np.ndarray
    ac: np.ndarray
    quantisation: np.ndarray
    predictors: np.ndarray
    block: np.ndarray
    progress: np.ndarray


@kernel
def unstuff(data: np.ndarray, start: I64, words: np.ndarray) -> tuple[I64, I64]:
    """Copy entropy-coded bytes to big-endian ``words`` without the zero after each 0xFF (B.1.1.5), and zero words.

    Returns (number of bits, offset of the marker or of the end of the data).
    """
    i, n = np.uint64(start), np.uint64(0)
    size = np.uint64(data.size)
    word = np.uint64(0)
    while i < size:
        byte = np.uint64(data[i])
        if byte == np.uint64(0xFF):
            if i + ONE < size and data[i + ONE] != 0:
                break
            i += ONE
        i += ONE
        word = (word << EIGHT) | byte
        n += ONE
        if n & np.uint64(7) == 0:
            words[(n >> np.uint64(3)) - ONE] = word
    o = n >> np.uint64(3)
    rest = n & np.uint64(7)
    for j in range(PADDING):
        words[o + np.uint64(j)] = 0
    if rest:
        words[o] = word << (W64 - EIGHT * rest)
    return np.int64(n * EIGHT), np.int64(min(i, size))


@kernel
def _extend(bits: U64, size: I64) -> I64:
    """Return the signed value of the ``size`` bits at the top of ``bits`` (F.2.2.1, EXTEND); 0 for none."""
    if size == 0:
        return np.int64(0)
    value = np.int64(bits >> np.uint64(64 - size))
    return value if bits > NO_TOP_BIT else value - (np.int64(1) << size) + 1


@kernel
def _decode_block(work: Work, i: I64, position: U64) -> tuple[I64, U64]:
    """Decode and dequantise one block into ``work.block`` (F.2.2). Returns (0 or code, position)."""
    block, quantisation, ac = work.block, work.quantisation[i], work.ac[i]
    block[:] = 0
    bits = peek(work.words, position)
    entry = np.int64(work.dc[i, bits >> np.uint64(48)])
    length, size = entry >> 8, entry & 0xFF
    if length == 0 or size > 15:
        return np.int64(INVALID), position
    value = work.predictors[i] + _extend(bits << np.uint64(length), size)
    if value > MAX_DC or value < -MAX_DC:
        return np.int64(INVALID), position
    work.predictors[i] = value
    block[0] = value * quantisation[0]
    position += np.uint64(length + size)
    k = np.int64(1)
    while k < 64:
        bits = peek(work.words, position)
        entry = np.int64(ac[bits >> np.uint64(48)])
        length, run, size = entry >> 8, (entry >> 4) & 15, entry & 15
        if length == 0:
            return np.int64(INVALID), position
        position += np.uint64(length + size)
        if size == 0:
            if run != 15:
                break
            k += 16
            continue
        k += run
        if k > 63:
            return np.int64(INVALID), position
        block[ZIGZAG[k]] = _extend(bits << np.uint64(length), size) * quantisation[k]
        k += 1
    return np.int64(0), position


@kernel
def _transform(block: np.ndarray, start: I64, step: I64, factors: tuple[int, ...], bits: I64, shift: I64) -> None:
    """Transform eight values of ``block``, from ``start`` on and ``step`` apart, and round off ``shift`` bits.

    ``factors`` are those of ``_FACTORS`` with ``bits`` bits of fraction.
    """
    i0, i1, i2, i3 = start, start + step, start + 2 * step, start + 3 * step
    i4, i5, i6, i7 = start + 4 * step, start + 5 * step, start + 6 * step, start + 7 * step
    rounding = np.int64(1) << (shift - 1)
    z1 = (block[i2] + block[i6]) * factors[0]
    even2 = z1 - block[i6] * factors[2]
    even3 = z1 + block[i2] * factors[1]
    even0 = ((block[i0] + block[i4]) << bits) + rounding
    even1 = ((block[i0] - block[i4]) << bits) + rounding
    a0, a3, a1, a2 = even0 + even3, even0 - even3, even1 + even2, even1 - even2
    t0, t1, t2, t3 = block[i7], block[i5], block[i3], block[i1]
    z5 = (t0 + t2 + t1 + t3) * factors[3]
    z1, z2 = (t0 + t3) * -factors[4], (t1 + t2) * -factors[5]
    z3, z4 = (t0 + t2) * -factors[6] + z5, (t1 + t3) * -factors[7] + z5
    b0 = t0 * factors[8] + z1 + z3
    b1 = t1 * factors[9] + z2 + z4
    b2 = t2 * factors[10] + z2 + z3
    b3 = t3 * factors[11] + z1 + z4
    block[i0], block[i7] = (a0 + b3) >> shift, (a0 - b3) >> shift
    block[i1], block[i6] = (a1 + b2) >> shift, (a1 - b2) >> shift
    block[i2], block[i5] = (a2 + b1) >> shift, (a2 - b1) >> shift
    block[i3], block[i4] = (a3 + b0) >> shift, (a3 - b0) >> shift


@kernel
def inverse_dct(block: np.ndarray, precision: I64) -> None:
    """Transform ``block`` (64,) int64 from coefficients to samples around 0, rounded as libjpeg does."""
    kept = 2 if precision == 8 else 1  # bits of fraction between the two passes, as in libjpeg
    for column in range(8):
        _transform(block, column, 8, _LIBJPEG, _LIBJPEG_BITS, _LIBJPEG_BITS - kept)
    for row in range(8):
        _transform(block, 8 * row, 1, _LIBJPEG, _LIBJPEG_BITS, _LIBJPEG_BITS + kept + 3)


@kernel
def inverse_dct_of_pylibjpeg(block: np.ndarray) -> None:
    """As ``inverse_dct``, rounded as pylibjpeg does: rows first, and no bits of fraction between the passes."""
    for i in range(64):
        block[i] <<= _PYLIBJPEG_SAMPLE_BITS
    for row in range(8):
        _transform(block, 8 * row, 1, _PYLIBJPEG, _PYLIBJPEG_BITS, _PYLIBJPEG_BITS)
    for column in range(8):
        _transform(block, column, 8, _PYLIBJPEG, _PYLIBJPEG_BITS, _PYLIBJPEG_BITS + 3)
    for i in range(64):
        block[i] = (block[i] + (1 << (_PYLIBJPEG_SAMPLE_BITS - 1))) >> _PYLIBJPEG_SAMPLE_BITS


@kernel
def _store(block: np.ndarray, out: np.ndarray, y: I64, x: I64, sample: I64, precision: I64) -> None:
    """Shift samples to 0 .. 2 ** precision - 1 (A.3.1), and store those inside the image at row y, column x."""
    centre, largest = np.int64(1) << (precision - 1), (np.int64(1) << precision) - 1
    for i in range(min(8, out.shape[0] - y)):
        for j in range(min(8, out.shape[1] - x)):
            out[y + i, x + j, sample] = min(max(block[8 * i + j] + centre, 0), largest)


@kernel
def decode_scan(
    data: np.ndarray,
    start: I64,
    out: np.ndarray,
    first: I64,
    restart: I64,
    precision: I64,
    is_as_pylibjpeg: bool,
    work: Work,
) -> I64:
    """Decode one scan from byte ``start`` into ``out`` (rows, columns, samples) uint16, from sample ``first`` on.

    ``restart``: blocks of each component between restart markers, 0 for none. ``is_as_pylibjpeg``: whether samples are
    rounded as in pylibjpeg. Returns 0 or a negative code; ``work.progress`` says how far it came.
    """
    n_blocks = np.int64((out.shape[1] + 7) // 8)
    total = n_blocks * np.int64((out.shape[0] + 7) // 8)
    done = np.int64(0)
    n_restarts = np.int64(0)
    while True:
        n_bits, stop = unstuff(data, start, work.words)
        work.progress[1] = stop
        position, end = np.uint64(0), np.uint64(n_bits)
        work.predictors[:] = 0
        last = min(total, done + restart) if restart > 0 else total
        while done < last:
            y, x = done // n_blocks * 8, done % n_blocks * 8
            work.progress[0] = y
            for i in range(work.predictors.size):
                code, position = _decode_block(work, i, position)
                if position > end:
                    return np.int64(TRUNCATED)
                if code < 0:
                    return code
                if is_as_pylibjpeg:
                    inverse_dct_of_pylibjpeg(work.block)
                else:
                    inverse_dct(work.block, precision)
                _store(work.block, out, y, x, first + i, precision)
            done += 1
        if done == total:
            return np.int64(0)
        start = skip_restart(data, stop, n_restarts)
        if start < 0:
            return start
        n_restarts += 1
