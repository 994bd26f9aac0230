"""What a worker process sets for itself: that it ends with the run, and how it keeps memory."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing.connection import wait

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEPT_BLOCK = 32 << 20  # larger blocks go back to the system at once: the most that glibc takes
_KEPT = 1 << 30


def end_with_parent() -> None:
    """Make this process end with the run, even if the run is killed.

    A thread waits for the end of the parent process. On Linux the system itself ends this process as well (prctl(2),
    PR_SET_PDEATHSIG), which works even while a library holds the interpreter's lock.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def follow() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, name="lumbar-parent", daemon=True).start()
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def keep_memory() -> None:
    """Let this process keep freed memory for the next layer, instead of giving it back to the system each time.

    Getting it anew, page by page, took a fifth of a study's time on a CPU. glibc alone has the setting (mallopt(3)).
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, _KEPT_BLOCK)
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT)
