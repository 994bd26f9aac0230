"""Compiled parts of JPEG Lossless: taking stuffing out, Huffman decoding, prediction.

The entropy-coded bytes are copied without stuffing first, so that the next 64 bits of the stream are a plain load. Such
a window serves four look-ups (``jpeg_lossless_tables``) before the next load.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lumbar.dicom._jit import inner_kernel, kernel
from lumbar.dicom._rescale import rescale
from lumbar.dicom.codecs._bits import U64, load_big, load_little, store_little
from lumbar.dicom.codecs.jpeg_lossless_tables import LOOKUP_BITS, Tables, read_long
from lumbar.dicom.codecs.jpeg_restarts import INVALID, NO_RESTART, TRUNCATED

PAD = 64  # bytes of zeros behind the stream; what is read ends at most 16 bytes past the end that was checked

_0, _ONE, _EIGHT, _SIXTEEN = (np.uint64(n) for n in (0, 1, 8, 16))
_BATCH = np.uint64(4)  # 4 look-ups of 13 bits fit into the 56 that a full window holds at least
_FULL = np.uint64(56)
_3, _7, _63 = (np.uint64(n) for n in (3, 7, 63))
_LOW_SEVEN, _EVERY_ONE, _EVERY_HIGH = (np.uint64(n * 0x0101010101010101) for n in (0x7F, 0x01, 0x80))
_WORD = np.uint64(0xFFFF)
_SHIFT = np.uint64(64 - LOOKUP_BITS)


class Coding(NamedTuple):
    """How a scan is coded."""

    predictor: int  # 1 to 7 (T.81 table H.1)
    initial: int  # what predicts the first sample of a restart interval
    point_transform: int  # bits that were shifted out of every sample
    rows_per_interval: int  # rows between restart markers; all rows where there are none


class Work(NamedTuple):
    """Arrays that the kernels work in, allocated by the caller."""

    stream: np.ndarray  # (>= source.size + PAD,) uint8, the entropy-coded bytes without stuffing
    starts: np.ndarray  # (intervals + 1,) int64, where in it each restart interval begins, and where the last one ends
    line: np.ndarray  # (columns * components,) uint16, the differences of one row


@kernel
def unstuff(source: np.ndarray, start: int, stream: np.ndarray, starts: np.ndarray) -> int:
    """Copy entropy-coded bytes without the zero that follows each FF (T.81 B.1.1.5) and without restart markers.

    ``source`` (n,) uint8 from ``start`` up to a marker or the end; ``stream`` (>= n + PAD,) uint8 receives the bytes;
    ``starts`` (intervals + 1,) int64 receives where in it each restart interval begins, and where the last one ends.
    Returns the offset in ``source`` at which the scan ended, or NO_RESTART.
    """
    size = source.size
    position = start
    done = 0
    interval = 0
    starts[0] = 0
    while position < size:
        while position + 8 <= size:
            word = load_little(source, np.uint64(position))
            if ((word & _LOW_SEVEN) + _EVERY_ONE) & word & _EVERY_HIGH:  # a byte is FF
                break
            store_little(stream, np.uint64(done), word)
            position += 8
            done += 8
        stop = min(position + 8, size)
        while position < stop:
            byte = int(source[position])
            if byte != 0xFF:
                stream[done] = byte
                done += 1
                position += 1
                continue
            if position + 1 >= size:
                position = size
                break
            follower = int(source[position + 1])
            if follower == 0:
                stream[done] = 0xFF
                done += 1
                position += 2
            elif follower == 0xFF:  # a fill byte
                position += 1
            elif 0xD0 <= follower <= 0xD7:
                if follower - 0xD0 != interval & 7 or interval + 2 >= starts.size:
                    return NO_RESTART
                interval += 1
                starts[interval] = done
                position += 2
            else:
                size = position  # another marker: the scan ends
                break
    if interval + 2 != starts.size:
        return NO_RESTART
    starts[interval + 1] = done
    for index in range(PAD):
        stream[done + index] = 0
    return position


@kernel
def decode_stream(
    source: np.ndarray, start: int, planes: np.ndarray, tables: Tables, coding: Coding, work: Work
) -> int:
    """Decode the scan whose entropy-coded bytes begin at ``start`` of ``source`` (n,) uint8.

    ``planes`` (components, rows, columns) uint16 receives the samples. Returns the offset in ``source`` at which the
    scan ended, or a negative code.
    """
    stop = unstuff(source, start, work.stream, work.starts)
    if stop < 0:
        return stop
    code = _decode_rows(planes, tables, coding, work)
    if code < 0:
        return code
    if coding.point_transform > 0:
        flat = planes.reshape(-1)
        for index in range(flat.size):
            flat[index] = np.uint16(flat[index] << np.uint16(coding.point_transform))
    return stop


@kernel
def decode_rescaled(
    source: np.ndarray,
    start: int,
    planes: np.ndarray,
    tables: Tables,
    coding: Coding,
    work: Work,
    mask: int,
    sign: int,
    slope: float,
    intercept: float,
    out: np.ndarray,
) -> int:
    """As ``decode_stream`` for one component; its samples go on to ``out`` (n,) float32 as ``rescale`` describes."""
    stop = decode_stream(source, start, planes, tables, coding, work)
    if stop < 0:
        return stop
    code = rescale(planes.reshape(-1), mask, sign, slope, intercept, out)
    return stop if code == 0 else code


@inner_kernel
def _decode_rows(planes: np.ndarray, tables: Tables, coding: Coding, work: Work) -> int:
    """Decode ``work.stream`` into ``planes``, before the point transform. Returns 0 or a negative code."""
    n_components, n_rows = planes.shape[0], planes.shape[1]
    stream, starts, line = work.stream, work.starts, work.line
    bit = np.uint64(0)
    end = np.uint64(0)
    for row in range(n_rows):
        is_first = row % coding.rows_per_interval == 0
        if is_first:
            interval = row // coding.rows_per_interval
            bit = np.uint64(starts[interval]) * _EIGHT
            end = np.uint64(starts[interval + 1]) * _EIGHT
        # The first row of an interval predicts from the left, whatever the scan says (H.1.2.1)
        predictor = 1 if is_first else coding.predictor
        if n_components == 1 and predictor == 1:
            left = np.uint64(coding.initial) if is_first else np.uint64(planes[0, row - 1, 0])
            used = _read_row(stream, bit, end, tables, planes[0, row], left, _WORD)
            if used < 0:
                return used
        else:
            if n_components == 1:
                used = _read_row(stream, bit, end, tables, line, _0, _0)
            else:
                used = _read_interleaved(stream, bit, end, tables, line)
            if used < 0:
                return used
            for component in range(n_components):
                start = coding.initial if is_first else int(planes[component, row - 1, 0])
                above = planes[component, max(row - 1, 0)]
                _predict(planes[component, row], above, line, component, n_components, predictor, start)
        bit = np.uint64(used)
        if bit > end:
            return TRUNCATED
    return 0


@inner_kernel
def _read_row(stream: np.ndarray, bit: U64, end: U64, tables: Tables, row: np.ndarray, left: U64, kept: U64) -> int:
    """Decode one ``row`` (columns,) uint16 of one component, each sample predicted by its left neighbour.

    ``left`` predicts the first. With ``kept`` 0 instead of 65535 nothing is predicted: the row receives the differences
    themselves, modulo 65536. Returns the next bit or a negative code.

    The window holds ``n_bits`` bits that count and, behind them, as many of those that follow as there was room for.
    What refills it is loaded from a place that is known four samples earlier, so that no sample waits for it.
    """
    lengths, differences = tables.lengths[0], tables.differences[0]
    index = np.uint64(0)
    size = np.uint64(row.size)
    place, window, n_bits = _open_window(stream, bit)
    while index < size:
        if (place << _3) - n_bits > end:
            return TRUNCATED
        window |= load_big(stream, place) >> n_bits
        place += (_63 - n_bits) >> _3
        n_bits |= _FULL
        stop = min(index + _BATCH, size)
        while index < stop:
            entry = window >> _SHIFT
            length = np.uint64(lengths[entry])
            difference = np.uint64(differences[entry])
            if length == _0:
                bit = (place << _3) - n_bits
                window = load_big(stream, bit >> _3) << (bit & _7)
                packed = read_long(window, difference, tables.bounds[0], tables.values[0])
                if packed == _0:
                    return INVALID
                left = (left & kept) + packed & _WORD
                row[index] = np.uint16(left)
                index += _ONE
                place, window, n_bits = _open_window(stream, bit + (packed >> _SIXTEEN))
                break
            left = (left & kept) + difference & _WORD
            row[index] = np.uint16(left)
            window <<= length
            n_bits -= length
            index += _ONE
    return int(np.int64((place << _3) - n_bits))


@inner_kernel
def _open_window(stream: np.ndarray, bit: U64) -> tuple[U64, U64, U64]:
    """Return the place of the next load, the window from ``bit`` on, and how many of its bits count: 49 to 56."""
    place, shift = bit >> _3, bit & _7
    return place + _7, load_big(stream, place) << shift, _FULL - shift


@inner_kernel
def _read_interleaved(stream: np.ndarray, bit: U64, end: U64, tables: Tables, line: np.ndarray) -> int:
    """Decode the differences of several components, sample by sample in turn, modulo 65536, into ``line``.

    Returns the next bit or a negative code.
    """
    component = 0
    for index in range(line.size):
        if bit > end:
            return TRUNCATED
        window = load_big(stream, bit >> _3) << (bit & _7)
        entry = window >> _SHIFT
        length = np.uint64(tables.lengths[component, entry])
        difference = np.uint64(tables.differences[component, entry])
        if length == _0:
            difference = read_long(window, difference, tables.bounds[component], tables.values[component])
            if difference == _0:
                return INVALID
            length = difference >> _SIXTEEN
        line[index] = np.uint16(difference & _WORD)
        bit += length
        component += 1
        if component == tables.lengths.shape[0]:
            component = 0
    return int(np.int64(bit))


@inner_kernel
def _predict(
    row: np.ndarray,
    above: np.ndarray,
    line: np.ndarray,
    first: int,
    step: int,
    predictor: int,
    start: int,
) -> None:
    """Compute one ``row`` (columns,) uint16 from its differences line[first::step] and the row ``above`` (H.1.2.1).

    ``start`` predicts the first sample. All arithmetic is modulo 65536.
    """
    left = (start + int(line[first])) & 0xFFFF
    row[0] = np.uint16(left)
    place = first
    if predictor == 1:
        for column in range(1, row.size):
            place += step
            left = (left + int(line[place])) & 0xFFFF
            row[column] = np.uint16(left)
        return
    corner = int(above[0])
    for column in range(1, row.size):
        place += step
        upper = int(above[column])
        if predictor == 2:
            guess = upper
        elif predictor == 3:
            guess = corner
        elif predictor == 4:
            guess = left + upper - corner
        elif predictor == 5:
            guess = left + ((upper - corner) >> 1)
        elif predictor == 6:
            guess = upper + ((left - corner) >> 1)
        else:
            guess = (left + upper) >> 1
        left = (guess + int(line[place])) & 0xFFFF
        row[column] = np.uint16(left)
        corner = upper
