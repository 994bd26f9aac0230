"""JPEG-LS entropy decoding (ITU-T T.87, annex A), compiled: lines and scans.

It is fast for four reasons. Stuffing bits are removed in one pass beforehand, so that the next 64 bits always lie in
two words. The gradients in the line above are quantised for a whole line at once. Each context stores its Golomb
parameter and its sign rule, which are computed when it is updated and not when they are needed. And decisions that
noise makes unpredictable (signs, corrections, clamps) are computed without branches.
"""

from __future__ import annotations

import numpy as np

from lumbar.dicom._jit import kernel
from lumbar.dicom.codecs._bits import I64, ONE, U64, peek
from lumbar.dicom.codecs.jpeg_ls_bits import golomb, golomb_parameter, unstuff
from lumbar.dicom.codecs.jpeg_ls_samples import (
    INVERSION,
    N_CONTEXTS,
    RUN_ORDERS,
    STRIDE_BITS,
    A,
    C,
    Coding,
    K,
    N,
    Work,
    interruption,
    predict,
    regular,
    run_length,
    update,
)
from lumbar.dicom.codecs.jpeg_restarts import INVALID, TRUNCATED, skip_restart

ZERO, TWO = np.uint64(0), np.uint64(2)


@kernel
def _run(
    work: Work, coding: Coding, i: I64, position: U64, n_bits: U64, previous: np.ndarray, current: np.ndarray, x: U64
) -> tuple[I64, U64]:
    """Decode a run from column ``x`` and the sample that ends it. Returns (column after it or code, position)."""
    columns = current.size - 2
    a = np.int64(current[x])
    length, position = run_length(work, i, position, n_bits, np.int64(columns) - np.int64(x))
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
    value, position = interruption(work, coding, position, a, b, is_flat, order)
    if value < 0:
        return value, position
    work.run_index[i] = max(work.run_index[i] - 1, 0)
    current[x + ONE] = value
    return np.int64(x) + 1, position


@kernel
def _start_line(work: Work, coding: Coding, i: I64, previous: np.ndarray, current: np.ndarray) -> None:
    """Set the border samples (A.2.1) and ``gradients``, the part 81 Q1 + 9 Q2 (A.3.4) that the line above gives."""
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
        predicted = predict(a, b, c) + ((contexts[base + C] ^ sign) - sign)
        predicted = predicted if predicted > 0 else 0
        predicted = predicted if predicted < maxval else maxval
        value, length = golomb(peek(words, position), np.int64(contexts[base + K]), limit, qbpp)
        if np.uint64(value) > np.uint64(maxval + 1):  # no encoder writes it, and A must not overflow; -1 is included
            return np.int64(INVALID), position
        position += np.uint64(length)
        error = (value >> 1) ^ -(value & 1) ^ contexts[base + INVERSION]
        a = (predicted + ((error ^ sign) - sign)) & maxval
        update(contexts, base, error, 1, reset)
        x += ONE
        current[x] = a
        c = b
        b = np.int64(previous[x + ONE])
    return np.int64(0), position


@kernel
def _line_general(
    work: Work, coding: Coding, i: I64, position: U64, n_bits: U64, previous: np.ndarray, current: np.ndarray
) -> tuple[I64, U64]:
    """Decode one line of one component, any parameters. Returns (0 or code, position)."""
    words, contexts, quantised, gradients = work.words, work.contexts, work.quantised, work.gradients[i]
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
        value, length = regular(contexts, coding, peek(words, position), q, a, b, c)
        if value < 0:
            return value, position
        position += length
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
            count, position = run_length(work, 0, position, n_bits, np.int64(columns - x))
            if count < 0:
                return count, position
            for i in range(n):
                for j in range(x, x + count):
                    current[i, j + 1] = current[i, x]
            x += count
            if x == columns:
                break
        order = RUN_ORDERS[run_index[0]]
        for i in range(n):
            a, b, c = np.int64(current[i, x]), np.int64(previous[i, x + 1]), np.int64(previous[i, x])
            if is_run:
                value, position = interruption(work, coding, position, a, b, np.int64(0), order)
            else:
                q = np.int64(gradients[i, x]) + quantised[c - a + coding.maxval]
                value, length = regular(work.contexts, coding, peek(work.words, position), q, a, b, c)
                position += length
            if value < 0:
                return value, position
            current[i, x + 1] = value
        if is_run:
            run_index[0] = max(run_index[0] - 1, 0)
        x += 1
    return np.int64(0), position


@kernel
def _start_interval(work: Work, coding: Coding) -> None:
    """Set the state at the start of a scan and of each restart interval (A.2.1)."""
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
        start = skip_restart(data, stop, n_restarts)
        if start < 0:
            return start
        n_restarts += 1
