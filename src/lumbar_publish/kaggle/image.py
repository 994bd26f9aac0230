"""The versions that a run on Kaggle had, beside those of the rehearsals of the same bundle on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lumbar.errors import LumbarError
from lumbar_publish.sealing.seal import read_json

_RECORDS = "*/kaggle/working/record.json"  # of dry-run, parity and parity-next, below dist
_OURS = "lumbar"  # part of the bundle, not of the image


def image_line(record: dict[str, Any], dist: Path) -> str:
    """One line that compares a run's versions with the rehearsal that comes nearest.

    Args:
        record: ``record.json`` of the run.
        dist: folder that holds the rehearsals; those of another manifest do not count.
    """
    ran = _versions(record)
    if not ran:
        return "image: the run's record names no versions"
    rehearsals = {}
    for path in sorted(dist.glob(_RECORDS)):
        try:
            other = read_json(path)
        except LumbarError:
            continue
        if other.get("manifest_hash") == record.get("manifest_hash") and _versions(other):
            rehearsals[path.relative_to(dist).parts[0]] = _versions(other)
    if not rehearsals:
        shown = ", ".join(f"{name} {version}" for name, version in ran.items())
        return f"image: {shown}; this bundle was not rehearsed here (`make parity` does that)"
    differences = {name: _differing(ran, versions) for name, versions in rehearsals.items()}
    nearest = min(differences, key=lambda name: len(differences[name]))
    if not differences[nearest]:
        return f"image: the versions of the rehearsal in {dist.name}/{nearest}"
    return f"image: differs from the rehearsal in {dist.name}/{nearest}: {', '.join(differences[nearest])}"


def _versions(record: dict[str, Any]) -> dict[str, str]:
    """Versions as they are compared: of Python the minor version, of a library the release, whatever its build."""
    listed = record.get("versions")
    releases: dict[str, str] = {}
    for name, version in (listed if isinstance(listed, dict) else {}).items():
        release = str(version).partition("+")[0]
        if name == "python":
            release = ".".join(release.split(".")[:2])
        if name != _OURS:
            releases["opencv" if name.startswith("opencv") else name] = release
    return releases


def _differing(ran: dict[str, str], rehearsed: dict[str, str]) -> list[str]:
    return [
        f"{name} {ran.get(name, 'missing')} (rehearsed {rehearsed.get(name, 'without')})"
        for name in sorted(ran.keys() | rehearsed.keys())
        if ran.get(name) != rehearsed.get(name)
    ]
