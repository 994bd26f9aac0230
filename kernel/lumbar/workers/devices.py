"""The devices of this machine, found without importing torch, which would take seconds and 300 MB."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

from lumbar.workers.machine import cores

_TIMEOUT_S = 60.0  # of the process that asks the driver

# Run in a process of its own, because a process that has started the driver must not fork any more.
_COUNT = """
import ctypes
driver, count = ctypes.CDLL({library!r}), ctypes.c_int(0)
found = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
print(0 if found else count.value)
"""


def cuda_devices() -> list[str]:
    """Names of the CUDA devices that torch will count.

    torch itself is asked where it is loaded already, or is built for something else than CUDA. Otherwise the driver is
    asked (``cuDeviceGetCount``, which follows CUDA_VISIBLE_DEVICES as torch does). A torch that is built without CUDA,
    or a system without the driver's library, has no devices.
    """
    if "torch" in sys.modules:
        return _torch_devices()
    build = _torch_build()
    if build is None:
        return _torch_devices()
    library = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
    if not build or not _is_there(library):
        return []
    count = _count(library)
    return _torch_devices() if count is None else [f"cuda:{index}" for index in range(count)]


def _torch_devices() -> list[str]:
    import torch

    return [f"cuda:{index}" for index in range(torch.cuda.device_count())]


def _torch_build() -> bool | None:
    """Whether the installed torch is built for CUDA; None where its ``version.py`` does not say."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return None
    try:
        text = (Path(spec.submodule_search_locations[0]) / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    builds = {
        name: value for name, value in re.findall(r"^(cuda|hip|xpu)\b[^=\n]*=\s*(None|'[^']*'|\"[^\"]*\")", text, re.M)
    }
    if "cuda" not in builds or builds.get("hip", "None") != "None":
        return None
    return builds["cuda"] != "None"


def _is_there(library: str) -> bool:
    try:
        ctypes.CDLL(library)  # only loaded: the driver is not started
    except OSError:
        return False
    return True


def _count(library: str) -> int | None:
    """Devices that the driver counts; None where asking failed."""
    command = [sys.executable, "-I", "-c", _COUNT.format(library=library)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)
        return int(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def cpu_threads(n_workers: int) -> int | None:
    """CPU threads for each of several workers; None for a single worker, which may use all."""
    if n_workers <= 1:
        return None
    return max(1, cores() // n_workers)
