"""The decorators of all compiled kernels, so that they share cache, threading and error model.

Kernels take C-contiguous arrays, read-only ones as input (as ``np.frombuffer`` makes them). They never raise, never
allocate, check bounds before every access, and return a count or a negative code. Indices in inner loops are computed
unsigned (``np.uint64`` on both sides of every operator), because numba then leaves out its test for negative indices.

With ``NUMBA_DISABLE_JIT=1`` numba runs kernels as plain Python, and with ``NUMBA_BOUNDSCHECK=1`` (and a separate
``NUMBA_CACHE_DIR``) it checks every index; the kernels work with both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable)


def kernel(function: Function) -> Function:
    """Compile ``function`` at its first call: cached, without the GIL, numpy's error model (no check of divisors)."""
    return _compiled(function)


def inner_kernel(function: Function) -> Function:
    """As ``kernel``, for functions that only kernels call: without a wrapper for Python they compile a sixth faster."""
    return _compiled(function, no_cpython_wrapper=True)


def _compiled(function: Function, **options: Any) -> Function:
    # No wrapper for callers in C: there are none, and it would take time to compile
    options = {"cache": True, "nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True, **options}
    compiled: Any = numba.njit(**options)(function)
    return cast(Function, compiled)
