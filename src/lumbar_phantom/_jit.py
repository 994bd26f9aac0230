"""The one numba decorator of the phantom: cached, without the GIL, IEEE arithmetic (same seed, same bytes).

Numba's cache looks only at the file of a kernel, not at the kernels in other files that it calls. The cache is
therefore in a folder named by a hash of the sources of all kernels: if one is edited, all are compiled again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba

from lumbar.io.numba_cache import is_compiled

Function = TypeVar("Function", bound=Callable[..., Any])

_HERE = Path(__file__).parent
_CONFIG: Any = numba.config
_CONSTANTS = ("anatomy.py", "tissue_labels.py", "_jit.py")  # compiled into the kernels


def _cache_folder() -> str | None:
    base = _CONFIG.CACHE_DIR or (str(_HERE / "__pycache__") if os.access(_HERE, os.W_OK) else "")
    if not base:
        return None
    digest = hashlib.sha256()
    for path in sorted(_HERE.glob("*.py")):
        source = path.read_bytes()
        if b"@kernel" in source or path.name in _CONSTANTS:
            digest.update(source)
    return str(Path(base) / f"lumbar_phantom-{digest.hexdigest()[:12]}")


_FOLDER = _cache_folder()


def compiling() -> str:
    """The line for a command that has to compile the kernels first; empty where they are kept."""
    if _FOLDER is not None and is_compiled(_HERE, _FOLDER):
        return ""
    how_often = "once on this machine" if _FOLDER else "each time, as no folder for compiled code can be written"
    return f"compiling what draws the phantoms: {how_often}, some minutes"


def kernel(function: Function) -> Function:
    """Compile a function on its first call; the machine code is kept in `_FOLDER`."""
    configured = _CONFIG.CACHE_DIR
    if _FOLDER:
        _CONFIG.CACHE_DIR = _FOLDER
    try:
        compiled: Function = numba.njit(function, cache=True, nogil=True, error_model="numpy")
        return compiled
    finally:
        _CONFIG.CACHE_DIR = configured
