"""Where compiled kernels are kept: numba needs a folder that can be written, and a bundle is mounted read-only."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from pathlib import Path


def use_numba_cache() -> None:
    """Set ``NUMBA_CACHE_DIR`` to a folder that can be written, unless it is set already.

    Must run before numba is imported. Without any such folder each process compiles the kernels again.
    """
    if os.environ.get("NUMBA_CACHE_DIR"):
        return
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    user = os.getuid() if hasattr(os, "getuid") else "user"
    for folder in (Path(home) / "lumbar-numba", Path(tempfile.gettempdir()) / f"lumbar-numba-{user}"):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Compiled code is loaded from here, so a folder that belongs to another user is not used.
            if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
                continue
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError:
            continue
        os.environ["NUMBA_CACHE_DIR"] = str(folder)
        return


_DECODERS = Path(os.path.abspath(__file__)).parent.parent / "dicom" / "parsing"  # every file needs these first


def compiling_decoders() -> str:
    """The line for a command that will read DICOM and has to compile the decoders first; empty where they are kept."""
    if is_compiled(_DECODERS):
        return ""
    return "compiling the DICOM decoders: once on this machine, a minute or more where the processor is busy"


def is_compiled(sources: Path, base: str | None = None) -> bool:
    """Whether numba's cache holds kernels from the files of a folder; numba itself is not loaded.

    Args:
        sources: the folder of the kernels' source files.
        base: the folder of the cache; None for ``NUMBA_CACHE_DIR``, or what numba takes where that is not set.
    """
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        return True  # nothing is compiled at all
    base = os.environ.get("NUMBA_CACHE_DIR") if base is None else base
    if base:  # numba.core.caching: the folder's name and the SHA-1 of its path
        digest = hashlib.sha1(str(sources).encode(), usedforsecurity=False).hexdigest()
        folder = Path(base) / f"{sources.name}_{digest}"
    else:
        folder = sources / "__pycache__"
    version = f"{sys.version_info.major}{sys.version_info.minor}"
    return next(folder.glob(f"*.py{version}*.nbi"), None) is not None
