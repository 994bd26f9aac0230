"""Write ``constraints.txt`` from what is installed: ``python tools/constraints.py`` (``make constraints``).

Every installed distribution is pinned, except those in ``EXEMPT``, which no requirement of ours brings. Pins of
packages that this environment does not have (the extras ``bench`` and ``tensorboard``) stay as they are in the file.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
CONSTRAINTS = REPOSITORY / "constraints.txt"
# The project itself, and packages that come with a virtual environment.
EXEMPT = {"lumbar-kit", "pip", "setuptools", "wheel", "distribute"}
HEADER = """\
# Versions this project is tested with (Python 3.11 and 3.12): every package of a development environment.
# Used as constraints by the Makefile; nothing here is installed unless pyproject.toml asks for it.
# Generated: `make constraints` writes this file anew from .venv.
"""


def canonical(name: str) -> str:
    """A distribution's name in its normalised form (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> dict[str, str]:
    """Version of every distribution that this interpreter can import; of two with one name, the first on the path."""
    versions: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        # A local label such as "+cu128" names a build of a release; package indexes list the release without it
        versions.setdefault(canonical(distribution.metadata["Name"]), distribution.version.partition("+")[0])
    return {name: version for name, version in versions.items() if name not in EXEMPT}


def pinned(path: Path = CONSTRAINTS) -> dict[str, str]:
    """Version of every package that a constraints file pins."""
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    pins = (line.split("==", 1) for line in lines if "==" in line)
    return {canonical(name): version.strip() for name, version in pins}


def text(pins: dict[str, str]) -> str:
    """The file's content."""
    return HEADER + "".join(f"{name}=={version}\n" for name, version in sorted(pins.items()))


def main() -> int:
    """Write the file and print how many pins changed."""
    new = pinned() | installed()
    print(f"{CONSTRAINTS}: {len(new)} pins, {sum(pinned().get(name) != new[name] for name in new)} changed")
    CONSTRAINTS.write_text(text(new), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
