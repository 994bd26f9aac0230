"""One sample of JPEG-LS (ITU-T T.87, A.4-A.7), compiled: contexts, prediction, errors, runs and their ends.

One context is eight int32 in ``Work.contexts``: A, B, C, N of the standard, then k and the inversion (0 or -1) that
A.5.2 derives from them. Rows 365 and 366 are the contexts of run interruptions: A, Nn, -, N.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lumbar.dicom._jit import kernel
from lumbar.dicom.codecs._bits import I64, NO_TOP_BIT, ONE, U64, peek
from lumbar.dicom.codecs.jpeg_ls_bits import golomb, golomb_parameter
from lumbar.dicom.codecs.jpeg_restarts import INVALID, TRUNCATED

# Columns of ``contexts``.
A, B, C, N, K, INVERSION = np.uint64(0), np.uint64(1), np.uint64(2), np.uint64(3), np.uint64(4), np.uint64(5)
N_CONTEXTS = 367
STRIDE_BITS = np.uint64(3)  # eight int32 a context
RUN_CONTEXT = 365

# T.87 A.2.1: orders of the run-length code.
RUN_ORDERS = np.array([0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [4, 4, 5, 5, 6, 6, 7, 7, 8, 9, 10, 11, 12, 13, 14, 15])


class Coding(NamedTuple):
    """The parameters of a scan, named as in the standard (T.87 A.2.1, C.2.4.1.1)."""

    maxval: int
    near: int
    range: int
    qbpp: int
    limit: int
    reset: int


class Work(NamedTuple):
    """Arrays that the kernels work in, allocated by the caller for ``n`` components of a scan.

    ``words``: (data.size // 8 + 8,) uint64, bits without stuffing. ``quantised``: (2 MAXVAL + 1,) int8, region of the
    gradient i - MAXVAL (A.3.3). ``lines``: (2, n, columns + 2) int32, the line above and the current one, a border
    sample on either side. ``gradients``: (n, columns) int32. ``contexts``: (367 * 8,) int32. ``run_index``: (n,) int64.
    ``progress``: (2,) int64, the line and the byte reached.
    """

    words: np.ndarray
    quantised: np.ndarray
    lines: np.ndarray
    gradients: np.ndarray
    contexts: np.ndarray
    run_index: np.ndarray
    progress: np.ndarray


@kernel
def update(contexts: np.ndarray, base: U64, error: I64, step: I64, reset: I64) -> None:
    """Update one context with an error (A.6), and compute k and the inversion for its next use."""
    a = contexts[base + A] + (error if error >= 0 else -error)
    b = contexts[base + B] + error * step
    n = np.int64(contexts[base + N])
    if n == reset:  # stored and loaded again, so that this is compiled to a branch, which is faster here than selects
        contexts[base + A] = a >> 1
        contexts[base + B] = b >> 1
        contexts[base + N] = n >> 1
        a, b, n = np.int64(contexts[base + A]), np.int64(contexts[base + B]), np.int64(contexts[base + N])
    n += 1
    is_low = np.int64(b + n <= 0)
    is_high = np.int64(b > 0)
    shift = is_low - is_high
    c = contexts[base + C] - shift
    if c < -128 or c > 127:
        c = np.int64(contexts[base + C])
    b += n * shift
    b = b if b > 1 - n else 1 - n
    b = b if b < 0 else 0
    k = golomb_parameter(a, n)
    contexts[base + A] = a
    contexts[base + B] = b
    contexts[base + C] = c
    contexts[base + N] = n
    contexts[base + K] = k
    contexts[base + INVERSION] = -np.int64((k == 0) & (2 * b <= -n) & (step == 1))


@kernel
def _reconstruct(predicted: I64, error: I64, coding: Coding) -> I64:
    """Add a signed error to a prediction, modulo RANGE, within 0..MAXVAL (A.4.5)."""
    maxval, near = coding.maxval, coding.near
    step = 2 * near + 1
    value = predicted + error * step
    if value < -near:
        value += coding.range * step
    elif value > maxval + near:
        value -= coding.range * step
    value = value if value > 0 else 0
    return value if value < maxval else maxval


@kernel
def predict(a: I64, b: I64, c: I64) -> I64:
    """Return the median of a, b and a + b - c (A.4.1)."""
    low = a if a < b else b
    high = b if a < b else a
    plane = a + b - c
    plane = plane if plane > low else low
    return plane if plane < high else high


@kernel
def interruption(
    work: Work, coding: Coding, position: U64, a: I64, b: I64, is_flat: I64, order: I64
) -> tuple[I64, U64]:
    """Decode the sample that ends a run (A.7.2); ``is_flat`` is RItype. Returns (sample or code, position)."""
    contexts = work.contexts
    base = np.uint64((RUN_CONTEXT + is_flat) * 8)
    total, negatives, n = np.int64(contexts[base + A]), np.int64(contexts[base + B]), np.int64(contexts[base + N])
    k = golomb_parameter(total + (n >> 1) * is_flat, n)
    limit = coding.limit - order - 1 - coding.qbpp - 1
    value, length = golomb(peek(work.words, position), k, limit, coding.qbpp)
    if value < 0 or value > coding.range:
        return np.int64(INVALID), position
    folded = value + is_flat
    error = (folded + 1) >> 1
    if ((k != 0) | (2 * negatives >= n)) == (folded & 1):
        error = -error
    if error < 0:
        negatives += 1
    total += (value + 1 - is_flat) >> 1
    if n == coding.reset:
        total >>= 1
        n >>= 1
        negatives >>= 1
    contexts[base + A] = total
    contexts[base + B] = negatives
    contexts[base + N] = n + 1
    if is_flat == 0 and a > b:
        error = -error
    return _reconstruct(a if is_flat else b, error, coding), position + np.uint64(length)


@kernel
def run_length(work: Work, i: I64, position: U64, n_bits: U64, remaining: I64) -> tuple[I64, U64]:
    """Decode the length of a run (A.7.1) of at most ``remaining`` samples. Returns (length or code, position)."""
    index = work.run_index[i]
    length = np.int64(0)
    while True:
        if position > n_bits:
            return np.int64(TRUNCATED), position
        bits = peek(work.words, position)
        order = RUN_ORDERS[np.uint64(index)]
        if bits > NO_TOP_BIT:
            position += ONE
            whole = np.int64(1) << order
            if whole > remaining - length:
                return remaining, position
            length += whole
            index = index + 1 if index < 31 else index
            work.run_index[i] = index
            if length == remaining:
                return length, position
        else:
            length += np.int64(bits >> np.uint64(63 - order))
            if length >= remaining:
                return np.int64(INVALID), position
            return length, position + np.uint64(1 + order)


@kernel
def regular(contexts: np.ndarray, coding: Coding, bits: U64, q: I64, a: I64, b: I64, c: I64) -> tuple[I64, U64]:
    """Decode one sample in regular mode, any parameters (A.4-A.6), from the next 64 ``bits``.

    Returns (sample or code, length in bits).
    """
    maxval, qbpp = coding.maxval, coding.qbpp
    sign = q >> 63
    base = np.uint64((q ^ sign) - sign) << STRIDE_BITS
    predicted = predict(a, b, c) + ((contexts[base + C] ^ sign) - sign)
    predicted = predicted if predicted > 0 else 0
    predicted = predicted if predicted < maxval else maxval
    value, length = golomb(bits, np.int64(contexts[base + K]), coding.limit - qbpp - 1, qbpp)
    if np.uint64(value) > np.uint64(coding.range):  # -1 is included
        return np.int64(INVALID), np.uint64(0)
    error = (value >> 1) ^ -(value & 1) ^ contexts[base + INVERSION]
    update(contexts, base, error, 2 * coding.near + 1, coding.reset)
    return _reconstruct(predicted, (error ^ sign) - sign, coding), np.uint64(length)
