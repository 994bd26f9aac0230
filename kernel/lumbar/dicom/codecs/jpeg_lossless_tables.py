"""Huffman tables of JPEG Lossless as look-ups, compiled.

One look-up of 13 bits gives a whole difference and its length, wherever the code and the bits behind it fit into 13
bits. That is so for nearly every sample of a 12-bit slice.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lumbar.dicom._jit import inner_kernel, kernel
from lumbar.dicom.codecs._bits import U64
from lumbar.dicom.codecs.jpeg_restarts import INVALID

LOOKUP_BITS = 13
TABLE_SIZE = 1 << LOOKUP_BITS

_0, _SIXTEEN, _64 = (np.uint64(n) for n in (0, 16, 64))
_CATEGORY, _CODE_SHIFT = np.uint64(31), np.uint64(5)  # parts of the difference of a look-up whose length is 0


class Tables(NamedTuple):
    """The Huffman table of each component of a scan, as look-ups.

    A look-up is split into two arrays, because the next look-up waits only for the length.

    Attributes:
        lengths: (components, TABLE_SIZE) uint8, all bits of the sample: its code and the bits behind it. 0 where 13
            bits do not hold them all.
        differences: (components, TABLE_SIZE) uint16, the difference modulo 65536. Where the length is 0: the code's
            length << 5 | its category, or 0 where not even the code ends within 13 bits.
        bounds: (components, 17, 2) int64, for each code length one more than its largest code (left-aligned to 16
            bits), and the offset from a code to its index in ``values``.
        values: (components, 256) uint8, the categories in the order of the codes.
    """

    lengths: np.ndarray
    differences: np.ndarray
    bounds: np.ndarray
    values: np.ndarray


@kernel
def fill_table(
    counts: np.ndarray, values: np.ndarray, lengths: np.ndarray, differences: np.ndarray, bounds: np.ndarray
) -> int:
    """Fill the look-up, ``lengths`` and ``differences`` (TABLE_SIZE,), of a Huffman table (T.81 annex C, F.2.2.3).

    ``counts`` (16,) is the number of codes of each length, ``values`` holds their categories in order; ``bounds`` is
    filled as ``Tables`` says. Returns 0, or INVALID for a category above 16.
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
def read_long(window: U64, entry: U64, bounds: np.ndarray, values: np.ndarray) -> U64:
    """Return a difference that one look-up did not give: its length << 16 | its value modulo 65536; 0 for no code.

    ``window`` holds the next 64 bits of the stream, ``entry`` the difference of the look-up (see ``Tables``).
    """
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
