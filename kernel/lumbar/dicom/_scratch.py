"""Working memory of decoders, the thread's own, kept from frame to frame.

Taking half a megabyte from the system and giving it back costs more page faults than decoding costs time.
"""

from __future__ import annotations

import threading

import numpy as np

_MAX_KEPT = 1 << 24
_local = threading.local()


def scratch(size: int) -> np.ndarray:
    """``(size,)`` uint8 of any content, valid until the same thread asks again; large ones are not kept."""
    kept: np.ndarray | None = getattr(_local, "kept", None)
    if kept is None or kept.size < size:
        kept = np.empty(size, dtype=np.uint8)
        if size <= _MAX_KEPT:
            _local.kept = kept
    return kept[:size]
