"""The one numba decorator of the phantom: cached, no GIL, IEEE arithmetic (same seed, same bytes)."""

from __future__ import annotations

import numba

kernel = numba.njit(cache=True, nogil=True, error_model="numpy")
