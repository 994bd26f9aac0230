"""Leading zeros by one instruction, for kernels that read unary codes and magnitudes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from numba import config, types
from numba.extending import intrinsic

I64: TypeAlias = Any  # np.int64 or int64: compiled code tells them apart by width and sign, mypy need not
U64: TypeAlias = Any  # np.uint64

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
