"""The words of ``--runs``: paths, each with the name that its run has in tables and messages. Imports nothing heavy."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from lumbar.errors import CohortError
from lumbar.io.path_options import did_you_mean_path
from lumbar.io.text import printable

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_. +-]{0,59}")
RESERVED = ("uniform", "prior", "floor")  # rows that a comparison shows beside the runs


def named_runs(words: Sequence[str], least: int = 2) -> dict[str, Path]:
    """Paths by name, from words of ``--runs``: ``PATH`` (named as its last part) or ``NAME=PATH``, in the order given.

    Args:
        words: of the command line.
        least: how many there must be.

    Raises:
        CohortError: too few, a path that is not there, two of one name, one path twice, or a name that is taken.
    """
    if len(words) < least:
        raise CohortError(f"--runs: found {len(words)}, expected {least} or more, as PATH or NAME=PATH")
    runs: dict[str, Path] = {}
    for word in words:
        name, path = _split(word)
        if not os.path.lexists(path):
            hint = did_you_mean_path(path)
            raise CohortError(f"--runs {printable(path)}: no such folder, expected a run or a sealed bundle{hint}")
        if not _NAME.fullmatch(name) or name in RESERVED:
            raise CohortError(
                f"--runs {printable(word)}: found name {printable(name)!r}, expected letters, digits, _ . + -, and "
                f"none of {', '.join(RESERVED)}; give another as NAME={printable(path)}"
            )
        if name in runs:
            raise CohortError(
                f"--runs: found two runs named {name} ({printable(runs[name])} and {printable(path)}), expected "
                f"different names; give one as NAME={printable(path)}"
            )
        twice = [other for other, known in runs.items() if os.path.realpath(known) == os.path.realpath(path)]
        if twice:
            raise CohortError(f"--runs: found {printable(path)} twice ({twice[0]} and {name}), expected different runs")
        runs[name] = path
    return runs


def named_folders(words: Sequence[str]) -> list[tuple[str, Path]]:
    """Name and path of each word of ``--external``: ``FOLDER``, whose name is empty, or ``NAME=FOLDER``.

    Raises:
        CohortError: a folder that is not there, or one that is given twice.
    """
    folders: list[tuple[str, Path]] = []
    for word in words:
        name, path = _split(word)
        if not os.path.isdir(path):
            hint = did_you_mean_path(path)
            raise CohortError(f"--external {printable(path)}: no such folder, expected an external member{hint}")
        if any(os.path.realpath(path) == os.path.realpath(known) for _, known in folders):
            raise CohortError(f"--external: found {printable(path)} twice, expected different folders")
        folders.append((name if word != str(path) and word.startswith(f"{name}=") else "", path))
    return folders


def _split(word: str) -> tuple[str, Path]:
    name, equals, rest = word.partition("=")
    if equals and not os.path.lexists(word):
        return name, Path(rest)
    path = Path(word)
    own = path.name or path.resolve().name
    return own.removesuffix(".csv"), path
