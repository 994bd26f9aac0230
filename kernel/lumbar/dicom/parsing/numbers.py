"""Parsing the numbers in header values, compiled: integer strings and decimal strings (PS3.5 section 6.2).

A decimal string of up to about 15 digits is the product of an integer and a power of ten that doubles hold exactly. So
one multiplication or division rounds correctly (Clinger, 1990), and the result is that of ``float()``. Longer numbers
and irregular ones are left to Python.
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
_IRREGULAR = -1
_EXACT = 1 << 53
_POWERS = np.array([10.0**exponent for exponent in range(23)])
_BACKSLASH = 92
# The part of a number that was read last: blanks, digits, digits of the fraction, an E, digits behind it, blanks again
_LEADING, _WHOLE, _FRACTION, _POWER, _POWER_DIGITS, _TRAILING = range(6)
_DS, _IS = (ord(vr[0]) << 8 | ord(vr[1]) for vr in ("DS", "IS"))


@kernel
def parse_numbers(source: np.ndarray, spans: np.ndarray, plan: np.ndarray, numbers: np.ndarray) -> int:
    """Fill ``numbers`` (float64) from the strings at ``spans`` of ``source``; those of absent fields are not changed.

    Each row of ``plan`` (fields, 4) int64 gives the index in ``spans`` (int64) of a value's offset (negative where it
    is absent), length, first bytes and VR; then the field's kind, its number of values, and its first index in
    ``numbers``. Returns a mask with bit ``field`` set for each value that Python has to parse.
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
            value, status, end = _decimal(source, position, stop)
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
def _decimal(source: np.ndarray, start: int, stop: int) -> tuple[float, int, int]:
    """Parse one decimal string up to a backslash or ``stop``: value, _GOOD, _EMPTY or _IRREGULAR, and its end.

    It is one loop over the bytes, because each further loop would take the compiler more time than it saves.
    """
    stage = _LEADING
    is_negative = False
    mantissa, exponent, power, sign = 0, 0, 0, 1
    n_digits = 0
    end = start
    while end < stop:
        byte = int(source[end])
        if byte == _BACKSLASH:
            break
        end += 1
        if 48 <= byte <= 57:
            if stage >= _TRAILING:
                return 0.0, _IRREGULAR, end
            if stage >= _POWER:
                power = power * 10 + byte - 48
                stage = _POWER_DIGITS
            else:
                mantissa = mantissa * 10 + byte - 48
                n_digits += 1
                exponent -= 1 if stage == _FRACTION else 0
                stage = _FRACTION if stage == _FRACTION else _WHOLE
            if mantissa >= _EXACT or power > 999:
                return 0.0, _IRREGULAR, end
        elif byte == 32 or byte == 0:
            if stage == _POWER:
                return 0.0, _IRREGULAR, end
            stage = _LEADING if stage == _LEADING else _TRAILING
        elif byte == 46 and stage < _FRACTION:
            stage = _FRACTION
        elif (byte == 69 or byte == 101) and stage < _POWER and n_digits > 0:
            stage = _POWER
        elif (byte == 43 or byte == 45) and stage == _LEADING:
            is_negative = byte == 45
            stage = _WHOLE
        elif (byte == 43 or byte == 45) and stage == _POWER and source[end - 2] > 57:  # a sign directly after the E
            sign = 44 - byte
        else:
            return 0.0, _IRREGULAR, end
    if stage == _LEADING:
        return 0.0, _EMPTY, end
    exponent += sign * power
    if n_digits == 0 or stage == _POWER or exponent < -22 or exponent > 22:
        return 0.0, _IRREGULAR, end
    value = float(mantissa)
    value = value / _POWERS[-exponent] if exponent < 0 else value * _POWERS[exponent]
    return (-value if is_negative else value), _GOOD, end
