"""What the compiled JPEG and JPEG-LS decoders share: error codes, and the restart marker between two intervals."""

from __future__ import annotations

import numpy as np

from lumbar.dicom._jit import inner_kernel
from lumbar.dicom.codecs._bits import I64

TRUNCATED = -1  # the data, or a restart interval, end before their samples do
INVALID = -2  # bits that are no code
NO_RESTART = -3  # another marker than the restart marker that is due

REASONS = {
    TRUNCATED: "the end of the data",
    INVALID: "a code that no table holds",
    NO_RESTART: "no restart marker in turn",
}


@inner_kernel
def skip_restart(data: np.ndarray, stop: I64, n_restarts: I64) -> I64:
    """Return the offset behind the restart marker that is due at ``stop``, or TRUNCATED or NO_RESTART.

    ``n_restarts`` restart markers came before it: they count from RST0 to RST7 and start again (T.81 B.2.1). Fill
    bytes (0xFF) may stand before a marker (T.81 B.1.1.2).
    """
    while stop + 2 < data.size and data[stop + 1] == 0xFF:
        stop += 1
    if stop + 2 > data.size:
        return np.int64(TRUNCATED)
    if data[stop + 1] != 0xD0 + (n_restarts & 7):
        return np.int64(NO_RESTART)
    return np.int64(stop + 2)
