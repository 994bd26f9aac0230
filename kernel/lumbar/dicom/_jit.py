"""The one place that decorates compiled kernels, so that all share cache, threading and error model.

Kernels take C-contiguous arrays, read-only for input (``np.frombuffer`` and views made by ``lumbar.dicom`` are), never
raise, never allocate, check bounds before every access, and return a count or a negative code. Index arithmetic in
inner loops is unsigned (``np.uint64`` on both sides of every operator): numba then leaves out the test for negative
indices.

``NUMBA_DISABLE_JIT=1`` runs kernels as plain Python and ``NUMBA_BOUNDSCHECK=1`` (with a ``NUMBA_CACHE_DIR`` of its own)
checks every index; both are numba's, nothing here stands in their way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable)


def kernel(function: Function) -> Function:
    """Compile ``function`` at its first call: cached, without the GIL, numpy's error model (no division checks)."""
    return _compiled(function)


def inner_kernel(function: Function) -> Function:
    """As ``kernel``, for what only kernels call: without the wrapper for Python, a sixth of the compiler's time."""
    return _compiled(function, no_cpython_wrapper=True)


def _compiled(function: Function, **options: Any) -> Function:
    # A wrapper for callers in C, which nobody is, would take its time, too
    options = {"cache": True, "nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True, **options}
    compiled: Any = numba.njit(**options)(function)
    return cast(Function, compiled)
