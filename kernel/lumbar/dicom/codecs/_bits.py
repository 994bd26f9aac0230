"""Kernels for bits: leading zeros in one instruction, 64 bits of a stream, bits in use, loads and stores of words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numba import config, types
from numba.extending import intrinsic

from lumbar.dicom._jit import inner_kernel, kernel

I64: TypeAlias = Any  # np.int64, or an int in code that is not compiled; their difference does not matter to mypy
U64: TypeAlias = Any  # np.uint64

ONE, EIGHT, W63, W64 = np.uint64(1), np.uint64(8), np.uint64(63), np.uint64(64)
NO_TOP_BIT = np.uint64(0x7FFFFFFFFFFFFFFF)

if config.DISABLE_JIT:  # type: ignore[attr-defined]

    def leading_zeros(value: Any) -> int:
        """Return the number of zero bits above the highest set bit of a uint64, 64 for 0."""
        return 64 - int(value).bit_length()

else:

    @intrinsic
    def leading_zeros(typing_context: Any, value: Any) -> tuple[Any, Callable] | None:
        """Return the number of zero bits above the highest set bit of a uint64, 64 for 0, as int64 (``llvm.ctlz``)."""
        if value != types.uint64:
            return None

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.ctlz(arguments[0], context.get_constant(types.boolean, False))

        return types.int64(types.uint64), generate


@kernel
def peek(words: np.ndarray, position: U64) -> U64:
    """Return the 64 bits of ``words`` from bit ``position`` (uint64) on."""
    i = position >> _6
    shift = position & W63
    return (words[i] << shift) | ((words[i + ONE] >> ONE) >> (W63 - shift))


@kernel
def gather_bits(words: np.ndarray, is_signed: bool) -> int:
    """Return all bits that are set in any of ``words`` (n,), an array of unsigned integers.

    With ``is_signed`` the bits of ``word ^ (word << 1)`` are taken instead: a bit is set there where two neighbouring
    bits differ, so copies of the sign give none. The loops have no branch and no wider type, so that they use whole
    vector registers.
    """
    kind = words.dtype.type
    bits = kind(0)
    if is_signed:
        for index in range(words.size):
            bits = kind(bits | kind(words[index] ^ kind(words[index] << kind(1))))
    else:
        for index in range(words.size):
            bits = kind(bits | words[index])
    return int(bits)


_1, _2, _3, _4, _5, _6, _7 = (np.uint64(n) for n in range(1, 8))
_BIT8, _BIT16, _BIT24, _BIT32, _BIT40, _BIT48, _BIT56 = (np.uint64(8 * n) for n in range(1, 8))
_BYTE = np.uint64(0xFF)


@inner_kernel
def load_little(source: np.ndarray, at: U64) -> U64:
    """Load eight bytes as one little-endian word, which LLVM compiles to a single load."""
    low = np.uint64(source[at]) | np.uint64(source[at + _1]) << _BIT8 | np.uint64(source[at + _2]) << _BIT16
    middle = np.uint64(source[at + _3]) << _BIT24 | np.uint64(source[at + _4]) << _BIT32
    high = np.uint64(source[at + _5]) << _BIT40 | np.uint64(source[at + _6]) << _BIT48
    return low | middle | high | np.uint64(source[at + _7]) << _BIT56


@inner_kernel
def load_big(source: np.ndarray, at: U64) -> U64:
    """Load eight bytes as one big-endian word, compiled to a load and a byte swap."""
    high = np.uint64(source[at]) << _BIT56 | np.uint64(source[at + _1]) << _BIT48
    middle = np.uint64(source[at + _2]) << _BIT40 | np.uint64(source[at + _3]) << _BIT32
    low = np.uint64(source[at + _4]) << _BIT24 | np.uint64(source[at + _5]) << _BIT16
    return high | middle | low | np.uint64(source[at + _6]) << _BIT8 | np.uint64(source[at + _7])


@inner_kernel
def store_little(target: np.ndarray, at: U64, word: U64) -> None:
    """Store one little-endian word as eight bytes, compiled to a single store."""
    target[at] = np.uint8(word & _BYTE)
    target[at + _1] = np.uint8(word >> _BIT8 & _BYTE)
    target[at + _2] = np.uint8(word >> _BIT16 & _BYTE)
    target[at + _3] = np.uint8(word >> _BIT24 & _BYTE)
    target[at + _4] = np.uint8(word >> _BIT32 & _BYTE)
    target[at + _5] = np.uint8(word >> _BIT40 & _BYTE)
    target[at + _6] = np.uint8(word >> _BIT48 & _BYTE)
    target[at + _7] = np.uint8(word >> _BIT56)
