"""A hash of the code that turns files into pixels: what was decoded by other code must not be taken for today's."""

from __future__ import annotations

import ast
import hashlib
from functools import lru_cache
from pathlib import Path

import lumbar

# Imported on the way from file to pixel, but without a say in any pixel: messages, tables, names.
WITHOUT_PIXELS = frozenset({"lumbar", "lumbar.errors", "lumbar.labels", "lumbar.io.text", "lumbar.io.tables"})
_ALWAYS = "lumbar.dicom"  # whole: its codecs are imported by name


@lru_cache(maxsize=8)
def code_key(*roots: str) -> str:
    """sha256 over the sources of the modules ``roots`` and of all of ``lumbar`` that they import, at any depth.

    ``WITHOUT_PIXELS`` and what only those import are left out: a new wording does not cost a new cache.
    """
    digest = hashlib.sha256()
    for name, path in sorted(used_sources(roots).items()):
        digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def used_sources(roots: tuple[str, ...]) -> dict[str, Path]:
    """Module name to file of everything that ``code_key`` looks at."""
    modules = _modules()
    left = [*roots, *(name for name in modules if name == _ALWAYS or name.startswith(f"{_ALWAYS}."))]
    used: dict[str, Path] = {}
    while left:
        name = left.pop()
        if name in used or name in WITHOUT_PIXELS:
            continue
        used[name] = modules[name]
        left += [other for other in _imports(modules[name]) if other in modules]
    return used


def _modules() -> dict[str, Path]:
    root = Path(lumbar.__file__).parent
    modules = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root.parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def _imports(path: Path) -> list[str]:
    """Names of modules that a file imports, also inside functions; packages on the way are left out."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names
