"""Numbers out of header values, compiled: integer strings and decimal strings (PS3.5 section 6.2).

A decimal string of at most 15 or so digits is an integer and a power of ten that doubles hold exactly, so that one
multiplication or division rounds correctly (Clinger, 1990) and the result is what ``float()`` gives. Everything else,
long or odd, is left to Python.
"""

from __future__ import annotations

import numpy as np

from lumbar.dicom._jit import inner_kernel, kernel

# Kinds of fields
SHORT = 0
INTEGER = 1
DECIMAL = 2

_GOOD = 1
_EMPTY = 0
_ODD = -1
_EXACT = 1 << 53
_POWERS = np.array([10.0**exponent for exponent in range(23)])
_BACKSLASH = 92
_DS, _IS = (ord(vr[0]) << 8 | ord(vr[1]) for vr in ("DS", "IS"))


@kernel
def parse_numbers(source: np.ndarray, spans: np.ndarray, plan: np.ndarray, numbers: np.ndarray) -> int:
    """Fill ``numbers`` (float64) from the strings at ``spans`` of ``source``; slots of absent fields are left.

    ``plan`` (fields, 4) int64: place in ``spans`` (int64) of the value's offset (negative where absent), length, first
    bytes and VR; kind, number of values, first slot. Returns a mask with bit ``field`` set for each value that Python
    has to read.
    """
    left = 0
    for field in range(plan.shape[0]):
        index, kind, count, slot = plan[field, 0], plan[field, 1], plan[field, 2], plan[field, 3]
        start, length, vr = spans[index], spans[index + 1], spans[index + 3]
        stop = start + length
        if start < 0 or length == 0 or stop > source.size:
            continue
        if vr != 0 and vr != _DS and vr != _IS:
            left |= 1 << field
            continue
        n_good = 0
        position = start
        is_odd = False
        while position <= stop:
            end = position
            while end < stop and source[end] != _BACKSLASH:
                end += 1
            value, status = _decimal(source, position, end)
            if status == _GOOD and n_good < count and (kind == DECIMAL or value == np.floor(value)):
                numbers[slot + n_good] = value
                n_good += 1
            elif status != _EMPTY or n_good > 0 or end < stop:
                is_odd = True
                break
            position = end + 1
        if is_odd or (n_good > 0 and n_good != count):
            left |= 1 << field
    return left


@inner_kernel
def _decimal(source: np.ndarray, start: int, stop: int) -> tuple[float, int]:
    """Value of one decimal string, and whether it is good, empty or odd."""
    position = start
    while position < stop and source[position] == 32:
        position += 1
    while stop > position and (source[stop - 1] == 32 or source[stop - 1] == 0):
        stop -= 1
    if position == stop:
        return 0.0, _EMPTY
    is_negative = source[position] == 45
    if is_negative or source[position] == 43:
        position += 1
    mantissa = 0
    exponent = 0
    n_digits = 0
    is_fraction = False
    while position < stop:
        digit = int(source[position]) - 48
        if 0 <= digit <= 9:
            mantissa = mantissa * 10 + digit
            if mantissa >= _EXACT:
                return 0.0, _ODD
            n_digits += 1
            if is_fraction:
                exponent -= 1
        elif digit == -2 and not is_fraction:
            is_fraction = True
        else:
            break
        position += 1
    if n_digits == 0:
        return 0.0, _ODD
    if position < stop:  # only an exponent may follow
        if source[position] != 69 and source[position] != 101:
            return 0.0, _ODD
        position += 1
        sign = 1
        if position < stop and (source[position] == 45 or source[position] == 43):
            sign = -1 if source[position] == 45 else 1
            position += 1
        power = 0
        n_digits = 0
        while position < stop and 48 <= source[position] <= 57 and n_digits < 4:
            power = power * 10 + int(source[position]) - 48
            position += 1
            n_digits += 1
        if n_digits == 0 or position < stop:
            return 0.0, _ODD
        exponent += sign * power
    if exponent < -22 or exponent > 22:
        return 0.0, _ODD
    value = float(mantissa)
    value = value / _POWERS[-exponent] if exponent < 0 else value * _POWERS[exponent]
    return (-value if is_negative else value), _GOOD
