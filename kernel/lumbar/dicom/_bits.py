"""What kernels that read bits share: leading zeros by one instruction, and the next 64 bits of a stream of words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numba import config, types
from numba.extending import intrinsic

from lumbar.dicom._jit import kernel

I64: TypeAlias = Any  # np.int64 or int64: compiled code tells them apart by width and sign, mypy need not
U64: TypeAlias = Any  # np.uint64

ONE, EIGHT, W63, W64 = np.uint64(1), np.uint64(8), np.uint64(63), np.uint64(64)
NO_TOP_BIT = np.uint64(0x7FFFFFFFFFFFFFFF)
_SIX = np.uint64(6)

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
    """Return the 64 bits from bit ``position`` (uint64)."""
    i = position >> _SIX
    shift = position & W63
    return (words[i] << shift) | ((words[i + ONE] >> ONE) >> (W63 - shift))
