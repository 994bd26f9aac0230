"""Versions of two environments compared: where a bundle runs, and where it was rehearsed."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

from lumbar import __version__

# Part of the bundle, not of the image that it runs on: the kernel's own version, and whether its code was changed.
_OURS = ("lumbar", "code")

_LIBRARIES = ("torch", "torchvision", "timm", "safetensors", "numpy", "pandas", "numba", "opencv-python-headless",
              "opencv-python", "opencv-contrib-python", "pydicom")  # fmt: skip


def versions() -> dict[str, str]:
    """Versions of ours, of Python, and of the libraries that the chain uses, as installed."""
    installed = {"lumbar": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def releases(versions: Mapping[str, Any]) -> dict[str, str]:
    """Versions in the form in which they are compared: name → release.

    Of Python the minor version counts, of a library the release, whatever its build (``2.10.0+cu128`` is ``2.10.0``).
    The builds of OpenCV (``opencv-python-headless`` and others) are one library.
    """
    compared: dict[str, str] = {}
    for name, version in versions.items():
        release = str(version).partition("+")[0]
        if name == "python":
            release = ".".join(release.split(".")[:2])
        if name not in _OURS:
            compared["opencv" if name.startswith("opencv") else name] = release
    return compared


def differences(here: Mapping[str, Any], rehearsed: Mapping[str, Any]) -> list[str]:
    """What differs between an environment and the one of a rehearsal, one text a library; empty where nothing does.

    Args:
        here: versions as a run record has them.
        rehearsed: the same of the rehearsal.
    """
    ours, theirs = releases(here), releases(rehearsed)
    return [
        f"{name} {ours.get(name, 'missing')} (rehearsed {theirs.get(name, 'without')})"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]


def rehearsal_line(here: Mapping[str, Any], rehearsed: Mapping[str, Any] | None) -> str:
    """One line that compares a run with the rehearsal that its bundle notes; empty for a bundle that notes none."""
    if not rehearsed:
        return ""
    changed = differences(here, rehearsed)
    return f"on other versions: {', '.join(changed)}" if changed else "on the same versions"
