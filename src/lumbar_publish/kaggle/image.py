"""The versions that a run on Kaggle had, beside those of the rehearsals of the same bundle on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lumbar.errors import LumbarError
from lumbar.output.versions import differences, releases
from lumbar_publish.sealing.seal import read_json

_RECORDS = "*/kaggle/working/record.json"  # of dry-run, parity and parity-next, below dist


def image_line(record: dict[str, Any], dist: Path) -> str:
    """One line that compares a run's versions with the rehearsal that comes nearest.

    Args:
        record: ``record.json`` of the run.
        dist: folder that holds the rehearsals; those of another manifest do not count.
    """
    ran = _versions(record)
    if not releases(ran):
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
        shown = ", ".join(f"{name} {version}" for name, version in releases(ran).items())
        return f"image: {shown}; this bundle was not rehearsed here (`make parity` does that)"
    changed = {name: differences(ran, versions) for name, versions in rehearsals.items()}
    nearest = min(changed, key=lambda name: len(changed[name]))
    if not changed[nearest]:
        return f"image: the versions of the rehearsal in {dist.name}/{nearest}"
    return f"image: differs from the rehearsal in {dist.name}/{nearest}: {', '.join(changed[nearest])}"


def _versions(record: dict[str, Any]) -> dict[str, Any]:
    listed = record.get("versions")
    return listed if isinstance(listed, dict) else {}
