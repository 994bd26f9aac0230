"""Compiled parts of JPEG Lossless: unstuffing, look-up tables, Huffman decoding, prediction.

One look-up of 13 bits yields a whole difference and its length, wherever code and magnitude fit into 13 bits, as they
do for nearly every sample of a 12-bit slice; a window of 64 bits serves four look-ups before it is loaded again. The
entropy-coded bytes are unstuffed first, so that the window is a plain load.
"""

from __future__ import annotations

import numpy as np

from lumbar.dicom._jit import inner_kernel, kernel
from lumbar.dicom._rescale import rescale
from lumbar.dicom.codecs._bits import load_big, load_little, store_little

TRUNCATED = -1  # a restart interval ends before its samples do
INVALID = -2  # bits that are no code of the table
NO_RESTART = -3  # not the restart marker that is due

PAD = 64  # bytes of zeros behind the stream; what is read ends at most 16 bytes past the end that was checked
LOOKUP_BITS = 13
TABLE_SIZE = 1 << LOOKUP_BITS

_0, _ONE, _EIGHT, _SIXTEEN = (np.uint64(n) for n in (0, 1, 8, 16))
_BATCH = np.uint64(4)  # 4 look-ups of 13 bits fit into the 56 that a full window holds at least
_FULL = np.uint64(56)
_3, _7, _63 = (np.uint64(n) for n in (3, 7, 63))
_LOW_SEVEN, _EVERY_ONE, _EVERY_HIGH = (np.uint64(n * 0x0101010101010101) for n in (0x7F, 0x01, 0x80))
_WORD = np.uint64(0xFFFF)
_SHIFT = np.uint64(64 - LOOKUP_BITS)
_64 = np.uint64(64)

# A look-up is two arrays, since the next one waits only for the length: ``lengths`` uint8, all bits of the sample, and
# ``differences`` uint16, modulo 65536. Where 13 bits do not hold the whole the length is 0, and the difference is the
# code's length << 5 | its category, or 0 where not even the code ends within them.
_CATEGORY, _CODE_SHIFT = np.uint64(31), np.uint64(5)


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
    source: np.ndarray,
    start: int,
    stream: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
    differences: np.ndarray,
    bounds: np.ndarray,
    values: np.ndarray,
    line: np.ndarray,
    rows_per_interval: int,
    predictor: int,
    initial: int,
    planes: np.ndarray,
    shift: int,
) -> int:
    """Decode the scan whose entropy-coded bytes begin at ``start`` of ``source``: ``unstuff``, then ``decode_scan``.

    ``shift`` is the point transform. Returns where in ``source`` the scan ended, or a negative code.
    """
    stop = unstuff(source, start, stream, starts)
    if stop < 0:
        return stop
    code = decode_scan(
        stream, starts, lengths, differences, bounds, values, planes, line, rows_per_interval, predictor, initial
    )
    if code < 0:
        return code
    if shift > 0:
        flat = planes.reshape(-1)
        for index in range(flat.size):
            flat[index] = np.uint16(flat[index] << np.uint16(shift))
    return stop


@kernel
def decode_rescaled(
    source: np.ndarray,
    start: int,
    stream: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
    differences: np.ndarray,
    bounds: np.ndarray,
    values: np.ndarray,
    line: np.ndarray,
    rows_per_interval: int,
    predictor: int,
    initial: int,
    planes: np.ndarray,
    shift: int,
    mask: int,
    sign: int,
    slope: float,
    intercept: float,
    out: np.ndarray,
) -> int:
    """As ``decode_stream`` for one component; its samples go on to ``out`` (n,) float32 as ``rescale`` describes."""
    stop = decode_stream(
        source,
        start,
        stream,
        starts,
        lengths,
        differences,
        bounds,
        values,
        line,
        rows_per_interval,
        predictor,
        initial,
        planes,
        shift,
    )
    if stop < 0:
        return stop
    code = rescale(planes.reshape(-1), mask, sign, slope, intercept, out)
    return stop if code == 0 else code


@kernel
def fill_table(
    counts: np.ndarray, values: np.ndarray, lengths: np.ndarray, differences: np.ndarray, bounds: np.ndarray
) -> int:
    """Fill the look-up, ``lengths`` and ``differences`` (TABLE_SIZE,), of a Huffman table (T.81 annex C, F.2.2.3).

    ``counts`` (16,) codes of each length, ``values`` their categories in order; ``bounds`` (17, 2) int64 receives for
    each length one more than its largest code (left-aligned to 16 bits) and the offset from code to index in
    ``values``. Returns 0, or INVALID for a category above 16.
    """
    code = 0
    index = 0
    for length in range(1, 17):
        bounds[length, 1] = index - code
        for _ in range(int(counts[length - 1])):
            category = int(values[index])
            if category > 16:
                return INVALID
            index += 1
            if length <= LOOKUP_BITS:
                _fill_code(lengths, differences, code, length, category)
            code += 1
        bounds[length, 0] = code << (16 - length)
        code <<= 1
    return 0


@inner_kernel
def _fill_code(lengths: np.ndarray, differences: np.ndarray, code: int, length: int, category: int) -> None:
    """Write the entries of one code: all look-ups that begin with it."""
    rest = LOOKUP_BITS - length
    n_bits = 0 if category == 16 else category  # category 16 is 32768, without further bits (H.1.2.2)
    for low in range(1 << rest):
        place = code << rest | low
        if place >= lengths.size:  # never, for tables whose code lengths were checked
            return
        if n_bits > rest:
            lengths[place] = 0
            differences[place] = length << 5 | category
            continue
        bits = low >> (rest - n_bits)
        difference = bits
        if category == 16:
            difference = 32768
        elif n_bits > 0 and bits < 1 << (n_bits - 1):
            difference = bits - (1 << n_bits) + 1
        lengths[place] = length + n_bits
        differences[place] = difference & 0xFFFF


@inner_kernel
def decode_scan(
    stream: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
    differences: np.ndarray,
    bounds: np.ndarray,
    values: np.ndarray,
    planes: np.ndarray,
    line: np.ndarray,
    rows_per_interval: int,
    predictor: int,
    initial: int,
) -> int:
    """Decode one scan into ``planes`` (components, rows, columns) uint16, before the point transform.

    ``lengths`` and ``differences`` (components, TABLE_SIZE), ``bounds`` (components, 17, 2) and ``values``
    (components, 256) are each component's; ``line`` (columns * components,) uint16 is scratch. Returns 0 or a negative
    code.
    """
    n_components, n_rows = planes.shape[0], planes.shape[1]
    bit = np.uint64(0)
    end = np.uint64(0)
    for row in range(n_rows):
        is_first = row % rows_per_interval == 0
        if is_first:
            interval = row // rows_per_interval
            bit = np.uint64(starts[interval]) * _EIGHT
            end = np.uint64(starts[interval + 1]) * _EIGHT
        # The first row of an interval predicts from the left, whatever the scan says (H.1.2.1)
        kind = 1 if is_first else predictor
        if n_components == 1 and kind == 1:
            left = np.uint64(initial) if is_first else np.uint64(planes[0, row - 1, 0])
            used = _read_row(
                stream, bit, end, lengths[0], differences[0], bounds[0], values[0], planes[0, row], left, _WORD
            )
            if used < 0:
                return used
        else:
            if n_components == 1:
                used = _read_row(stream, bit, end, lengths[0], differences[0], bounds[0], values[0], line, _0, _0)
            else:
                used = _read_mixed(stream, bit, end, lengths, differences, bounds, values, line)
            if used < 0:
                return used
            for component in range(n_components):
                start = initial if is_first else int(planes[component, row - 1, 0])
                above = planes[component, max(row - 1, 0)]
                _predict(planes[component, row], above, line, component, n_components, kind, start)
        bit = np.uint64(used)
        if bit > end:
            return TRUNCATED
    return 0


@inner_kernel
def _read_row(
    stream: np.ndarray,
    bit: np.uint64,
    end: np.uint64,
    lengths: np.ndarray,
    differences: np.ndarray,
    bounds: np.ndarray,
    values: np.ndarray,
    row: np.ndarray,
    left: np.uint64,
    kept: np.uint64,
) -> int:
    """Samples of one ``row`` (columns,) uint16 of one component, each predicted by its left neighbour.

    ``left`` predicts the first. With ``kept`` 0 instead of 65535 nothing is predicted: the row receives the differences
    themselves, modulo 65536. Returns the next bit or a negative code.

    The window holds ``n_bits`` bits that count and, behind them, as many of those that follow as there was room for.
    What refills it is loaded from a place that is known four samples earlier, so that no sample waits for it.
    """
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
                packed = _read_long(window, difference, bounds, values)
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
def _open_window(stream: np.ndarray, bit: np.uint64) -> tuple[np.uint64, np.uint64, np.uint64]:
    """Where to go on loading, the window from ``bit`` on, and how many of its bits count: 49 to 56."""
    place, shift = bit >> _3, bit & _7
    return place + _7, load_big(stream, place) << shift, _FULL - shift


@inner_kernel
def _read_mixed(
    stream: np.ndarray,
    bit: np.uint64,
    end: np.uint64,
    lengths: np.ndarray,
    differences: np.ndarray,
    bounds: np.ndarray,
    values: np.ndarray,
    line: np.ndarray,
) -> int:
    """The differences of samples of several components in turn, modulo 65536, into ``line``."""
    component = 0
    for index in range(line.size):
        if bit > end:
            return TRUNCATED
        window = load_big(stream, bit >> _3) << (bit & _7)
        entry = window >> _SHIFT
        length = np.uint64(lengths[component, entry])
        difference = np.uint64(differences[component, entry])
        if length == _0:
            difference = _read_long(window, difference, bounds[component], values[component])
            if difference == _0:
                return INVALID
            length = difference >> _SIXTEEN
        line[index] = np.uint16(difference & _WORD)
        bit += length
        component += 1
        if component == lengths.shape[0]:
            component = 0
    return int(np.int64(bit))


@inner_kernel
def _read_long(window: np.uint64, entry: np.uint64, bounds: np.ndarray, values: np.ndarray) -> np.uint64:
    """A difference that one look-up did not yield: its length << 16 | its value modulo 65536; 0 where there is none."""
    length = entry >> _CODE_SHIFT
    category = entry & _CATEGORY
    if entry == _0:
        code = int(np.int64(window >> np.uint64(48)))
        n_bits = LOOKUP_BITS + 1
        while n_bits <= 16 and code >= bounds[n_bits, 0]:
            n_bits += 1
        if n_bits > 16:
            return _0
        index = (code >> (16 - n_bits)) + bounds[n_bits, 1]
        if index < 0 or index >= values.size:
            return _0
        length = np.uint64(n_bits)
        category = np.uint64(values[index])
    if category == _SIXTEEN:
        return length << _SIXTEEN | np.uint64(32768)
    if category == _0:
        return length << _SIXTEEN
    bits = int(np.int64(window << length >> (_64 - category)))
    n_bits = int(np.int64(category))
    if bits < 1 << (n_bits - 1):
        bits += 1 - (1 << n_bits)
    return (length + category) << _SIXTEEN | np.uint64(bits & 0xFFFF)


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
    """Samples of one ``row`` (columns,) uint16 from differences line[first::step] and the row ``above`` (T.81 H.1.2.1).

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
