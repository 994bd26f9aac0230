"""Competitions by name: the name is that of a module here, so that only code that was sealed is ever imported."""

from __future__ import annotations

import importlib
import pkgutil

import lumbar.competitions
from lumbar.competitions import lumbar_spine
from lumbar.competitions.contract import Competition
from lumbar.errors import ManifestError
from lumbar.io.text import one_line
from lumbar.rules import Text, shown

DEFAULT = lumbar_spine.NAME
_NAME = Text(64, r"[a-z][a-z0-9_]*", "a module's name")
_OTHERS = ("contract", "registry", "scoring", "tables")  # modules here that are no competition


def competition_names() -> list[str]:
    """Every competition of this package."""
    modules = pkgutil.iter_modules(lumbar.competitions.__path__)
    return sorted(module.name for module in modules if module.name not in _OTHERS)


def competition_named(name: str) -> Competition:
    """The competition of a module of ``lumbar.competitions``.

    Raises:
        ManifestError: there is no such module, it cannot be imported, or it holds no competition.
    """
    if name == DEFAULT:
        return lumbar_spine.COMPETITION
    place = f"{lumbar.competitions.__name__}.{name}"
    if not _NAME.accepts(name) or name in _OTHERS:
        raise ManifestError(f"competition {shown(name)}: expected one of {', '.join(competition_names())}")
    try:
        module = importlib.import_module(place)
    except (Exception, SystemExit) as error:  # whatever somebody's module does while it is imported
        if isinstance(error, ModuleNotFoundError) and error.name == place:
            known = ", ".join(competition_names())
            raise ManifestError(
                f"competition {shown(name)}: no such module in lumbar/competitions, expected one of {known}"
            ) from None
        reason = one_line(error)
        raise ManifestError(f"{place}: cannot be imported ({reason}), expected a module with COMPETITION") from None
    competition = getattr(module, "COMPETITION", None)
    if not isinstance(competition, Competition):
        raise ManifestError(f"{place}: COMPETITION: found {shown(competition)}, expected a Competition")
    return competition
