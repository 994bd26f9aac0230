"""Where compiled kernels are kept: numba needs a folder that can be written, and a bundle is mounted read-only."""

from __future__ import annotations

import os
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
