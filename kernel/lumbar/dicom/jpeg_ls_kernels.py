"""JPEG-LS entropy decoding (ITU-T T.87, annex A), compiled.

What makes it fast: stuffing bits are taken out in one pass beforehand, so that the next 64 bits are always two words
away; the gradients that lie in the line above are quantised for a whole line at once; each context keeps its Golomb
parameter and the sign rule ready, worked out when it was updated instead of when it is waited for; and what noise makes
unpredictable (signs, corrections, clamps) is arithmetic, not branches.

One context is eight int32 in ``contexts``: A, B, C, N of the standard, then k and the inversion (0 or -1) that A.5.2
derives from them. Rows 365 and 366 are the contexts of run interruptions: A, Nn, -, N.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lumbar.dicom._bits import I64, NO_TOP_BIT, ONE, U64, peek
from lumbar.dicom._jit import kernel
from lumbar.dicom.jpeg_ls_bits import golomb, golomb_parameter, unstuff

TRUNCATED, INVALID, NO_RESTART = -1, -2, -3

# Columns of ``contexts``.
A, B, C, N, K, INVERSION = np.uint64(0), np.uint64(1), np.uint64(2), np.uint64(3), np.uint64(4), np.uint64(5)
N_CONTEXTS = 367
STRIDE_BITS = np.uint64(3)  # eight int32 a context
RUN_CONTEXT = 365

# T.87 A.2.1: orders of the run-length code.
RUN_ORDERS = np.array([0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [4, 4, 5, 5, 6, 6, 7, 7, 8, 9, 10, 11, 12, 13, 14, 15])

ZERO, TWO = np.uint64(0), np.uint64(2)


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
def _update(contexts: np.ndarray, base: U64, error: I64, step: I64, reset: I64) -> None:
    """Update one context with an error (A.6), and work out k and the inversion for its next use."""
    a = contexts[base + A] + (error if error >= 0 else -error)
    b = contexts[base + B] + error * step
    n = np.int64(contexts[base + N])
    if n == reset:  # by way of memory: a branch is cheaper here than three selects
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
def _predict(a: I64, b: I64, c: I64) -> I64:
    """Return the median of a, b and a + b - c (A.4.1)."""
    low = a if a < b else b
    high = b if a < b else a
    plane = a + b - c
    plane = plane if plane > low else low
    return plane if plane < high else high


@kernel
def _interruption(
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
def _run_length(work: Work, i: I64, position: U64, n_bits: U64, remaining: I64) -> tuple[I64, U64]:
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
def _run(
    work: Work, coding: Coding, i: I64, position: U64, n_bits: U64, previous: np.ndarray, current: np.ndarray, x: U64
) -> tuple[I64, U64]:
    """Decode a run from column ``x`` and the sample that ends it. Returns (column after it or code, position)."""
    columns = current.size - 2
    a = np.int64(current[x])
    length, position = _run_length(work, i, position, n_bits, np.int64(columns) - np.int64(x))
    if length < 0:
        return length, position
    for _ in range(length):
        x += ONE
        current[x] = a
    if x == np.uint64(columns):
        return np.int64(x), position
    b = np.int64(previous[x + ONE])
    is_flat = np.int64(abs(a - b) <= coding.near)
    order = RUN_ORDERS[np.uint64(work.run_index[i])]
    value, position = _interruption(work, coding, position, a, b, is_flat, order)
    if value < 0:
        return value, position
    work.run_index[i] = max(work.run_index[i] - 1, 0)
    current[x + ONE] = value
    return np.int64(x) + 1, position


@kernel
def _start_line(work: Work, coding: Coding, i: I64, previous: np.ndarray, current: np.ndarray) -> None:
    """Set the border samples (A.2.1) and ``gradients``: 81 Q1 + 9 Q2 (A.3.4), the share of the line above."""
    gradients, quantised = work.gradients[i], work.quantised
    columns = gradients.size
    previous[columns + 1] = previous[columns]
    current[0] = previous[1]
    before = np.int64(quantised[np.uint64(np.int64(previous[1]) - previous[0] + coding.maxval)])
    for column in range(columns):
        x = np.uint64(column)
        after = np.int64(quantised[np.uint64(np.int64(previous[x + TWO]) - previous[x + ONE] + coding.maxval)])
        gradients[x] = 81 * after + 9 * before
        before = after


@kernel
def _line_lossless(
    work: Work, coding: Coding, i: I64, position: U64, n_bits: U64, previous: np.ndarray, current: np.ndarray
) -> tuple[I64, U64]:
    """Decode a line without loss, MAXVAL + 1 a power of two: the hot loop. Returns (0 or code, position)."""
    words, contexts, quantised, gradients = work.words, work.contexts, work.quantised, work.gradients[i]
    maxval, reset, qbpp = coding.maxval, coding.reset, coding.qbpp
    limit = coding.limit - qbpp - 1
    columns = np.uint64(gradients.size)
    x = ZERO
    a, b, c = np.int64(current[0]), np.int64(previous[1]), np.int64(previous[0])
    while x < columns:
        q = np.int64(gradients[x]) + quantised[np.uint64(c - a + maxval)]
        if q == 0:
            end, position = _run(work, coding, i, position, n_bits, previous, current, x)
            if end < 0:
                return end, position
            x = np.uint64(end)
            a, b, c = np.int64(current[x]), np.int64(previous[x + ONE]), np.int64(previous[x])
            continue
        sign = q >> 63
        base = np.uint64((q ^ sign) - sign) << STRIDE_BITS
        predicted = _predict(a, b, c) + ((contexts[base + C] ^ sign) - sign)
        predicted = predicted if predicted > 0 else 0
        predicted = predicted if predicted < maxval else maxval
        value, length = golomb(peek(words, position), np.int64(contexts[base + K]), limit, qbpp)
        if np.uint64(value) > np.uint64(maxval + 1):  # no encoder writes it, and A must not overflow; catches -1, too
            return np.int64(INVALID), position
        position += np.uint64(length)
        error = (value >> 1) ^ -(value & 1) ^ contexts[base + INVERSION]
        a = (predicted + ((error ^ sign) - sign)) & maxval
        _update(contexts, base, error, 1, reset)
        x += ONE
        current[x] = a
        c = b
        b = np.int64(previous[x + ONE])
    return np.int64(0), position


@kernel
def _regular(work: Work, coding: Coding, position: U64, q: I64, a: I64, b: I64, c: I64) -> tuple[I64, U64]:
    """Decode one sample in regular mode, any parameters (A.4-A.6). Returns (sample or code, position)."""
    contexts, maxval, qbpp = work.contexts, coding.maxval, coding.qbpp
    sign = q >> 63
    base = np.uint64((q ^ sign) - sign) << STRIDE_BITS
    predicted = _predict(a, b, c) + ((contexts[base + C] ^ sign) - sign)
    predicted = predicted if predicted > 0 else 0
    predicted = predicted if predicted < maxval else maxval
    k = np.int64(contexts[base + K])
    value, length = golomb(peek(work.words, position), k, coding.limit - qbpp - 1, qbpp)
    if value < 0 or value > coding.range:
        return np.int64(INVALID), position
    error = (value >> 1) ^ -(value & 1) ^ contexts[base + INVERSION]
    _update(contexts, base, error, 2 * coding.near + 1, coding.reset)
    return _reconstruct(predicted, (error ^ sign) - sign, coding), position + np.uint64(length)


@kernel
def _line_general(
    work: Work, coding: Coding, i: I64, position: U64, n_bits: U64, previous: np.ndarray, current: np.ndarray
) -> tuple[I64, U64]:
    """Decode one line of one component, any parameters. Returns (0 or code, position)."""
    gradients, quantised = work.gradients[i], work.quantised
    columns = np.uint64(gradients.size)
    x = ZERO
    while x < columns:
        a, b, c = np.int64(current[x]), np.int64(previous[x + ONE]), np.int64(previous[x])
        q = np.int64(gradients[x]) + quantised[np.uint64(c - a + coding.maxval)]
        if q == 0:
            value, position = _run(work, coding, i, position, n_bits, previous, current, x)
            if value < 0:
                return value, position
            x = np.uint64(value)
            continue
        value, position = _regular(work, coding, position, q, a, b, c)
        if value < 0:
            return value, position
        x += ONE
        current[x] = value
    return np.int64(0), position


@kernel
def _line_sample(
    work: Work, coding: Coding, position: U64, n_bits: U64, previous: np.ndarray, current: np.ndarray
) -> tuple[I64, U64]:
    """Decode one line of sample-interleaved components, (n, columns + 2) each: a run is one of them all (A.8, B.2)."""
    gradients, quantised, run_index = work.gradients, work.quantised, work.run_index
    n, columns = gradients.shape
    x = 0
    while x < columns:
        is_run = True
        for i in range(n):
            region = quantised[np.int64(previous[i, x]) - current[i, x] + coding.maxval]
            is_run &= np.int64(gradients[i, x]) + region == 0
        if is_run:
            length, position = _run_length(work, 0, position, n_bits, np.int64(columns - x))
            if length < 0:
                return length, position
            for i in range(n):
                for j in range(x, x + length):
                    current[i, j + 1] = current[i, x]
            x += length
            if x == columns:
                break
        order = RUN_ORDERS[run_index[0]]
        for i in range(n):
            a, b, c = np.int64(current[i, x]), np.int64(previous[i, x + 1]), np.int64(previous[i, x])
            if is_run:
                value, position = _interruption(work, coding, position, a, b, np.int64(0), order)
            else:
                q = np.int64(gradients[i, x]) + quantised[c - a + coding.maxval]
                value, position = _regular(work, coding, position, q, a, b, c)
            if value < 0:
                return value, position
            current[i, x + 1] = value
        if is_run:
            run_index[0] = max(run_index[0] - 1, 0)
        x += 1
    return np.int64(0), position


@kernel
def _start_interval(work: Work, coding: Coding) -> None:
    """Set the state that the standard has at the start of a scan and of each restart interval (A.2.1)."""
    work.lines[:] = 0
    work.run_index[:] = 0
    start = max(2, (coding.range + 32) >> 6)
    k = golomb_parameter(start, np.int64(1))
    contexts = work.contexts
    contexts[:] = 0
    for i in range(N_CONTEXTS):
        base = np.uint64(8 * i)
        contexts[base + A] = start
        contexts[base + N] = 1
        contexts[base + K] = k


@kernel
def _next_line(work: Work, coding: Coding, y: I64, position: U64, n_bits: U64, is_sample: bool) -> tuple[I64, U64]:
    """Decode line ``y`` of every component into ``work.lines``. Returns (0 or code, position)."""
    previous, current = work.lines[y & 1], work.lines[1 - (y & 1)]
    is_plain = coding.near == 0 and (coding.maxval & (coding.maxval + 1)) == 0
    code = np.int64(0)
    for i in range(work.lines.shape[1]):
        _start_line(work, coding, i, previous[i], current[i])
        if is_sample or code < 0:
            continue
        if is_plain:
            code, position = _line_lossless(work, coding, i, position, n_bits, previous[i], current[i])
        else:
            code, position = _line_general(work, coding, i, position, n_bits, previous[i], current[i])
    if is_sample:
        code, position = _line_sample(work, coding, position, n_bits, previous, current)
    return code, position


@kernel
def decode_scan(
    data: np.ndarray, start: I64, out: np.ndarray, first: I64, is_sample: bool, restart: I64, coding: Coding, work: Work
) -> I64:
    """Decode one scan from byte ``start`` into ``out`` (rows, columns, samples) uint16, from sample ``first`` on.

    ``is_sample``: sample-interleaved, else line-interleaved or a single component. ``restart``: lines between restart
    markers, 0 for none. Returns 0 or a negative code; ``work.progress`` says how far it came.
    """
    rows, columns, _ = out.shape
    y = 0
    n_restarts = 0
    while True:
        n_bits, stop = unstuff(data, start, work.words)
        work.progress[1] = stop
        end = np.uint64(n_bits)
        position = ZERO
        _start_interval(work, coding)
        last = min(rows, y + restart) if restart > 0 else rows
        while y < last:
            work.progress[0] = y
            code, position = _next_line(work, coding, y, position, end, is_sample)
            if code < 0 or position > end:
                return np.int64(TRUNCATED) if position >= end else code
            current = work.lines[1 - (y & 1)]
            for i in range(current.shape[0]):
                for x in range(columns):
                    out[y, x, first + i] = current[i, x + 1]
            y += 1
        if y == rows:
            return np.int64(0)
        work.progress[0] = y
        while stop + 2 < data.size and data[stop + 1] == 0xFF:  # fill bytes
            stop += 1
        if stop + 2 > data.size:
            return np.int64(TRUNCATED)
        if data[stop + 1] != 0xD0 + (n_restarts & 7):
            return np.int64(NO_RESTART)
        n_restarts += 1
        start = stop + 2
