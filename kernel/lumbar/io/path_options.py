"""Options that name a file or a folder: what each is for, and one check of all of them before a command begins.

``FOLDER`` and the others are the ``type`` of an option of ``argparse``, which makes its value a path; ``check_paths``
then refuses a file where a folder is meant, a folder where a file is meant, a file to write whose name has no ending, a
place that may not be written, and a slip of the pen in a name. An input that is missing without any name like it is
left to the command, which knows more.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from lumbar.errors import CohortError
from lumbar.io.arguments import nearest
from lumbar.io.competition import is_competition
from lumbar.io.text import masked_name

_MOST_NAMES = 5000  # of a folder that are looked at
_LIKE = 0.7  # share of letters in common from which a name counts as a slip of another
_FIRST_BYTES = 4096
_OUR_NAMES = ("data", "mine")  # of README
_EXAMPLES = {"out": "submission", "table": "findings"}  # option → what README calls its file, where it is another name


@dataclass(frozen=True)
class PathUse:
    """How a command uses the path of an option.

    Attributes:
        kind: ``folder``, ``file``, or ``file or folder``.
        is_input: whether it must be there.
        ending: of a file that is written, such as ``.csv``; a file of another kind is then not written over.
        is_private: a name beside it may be a patient's, and is printed only where it cannot be one.
    """

    kind: str
    is_input: bool
    ending: str = ""
    is_private: bool = False

    def __call__(self, text: str) -> Path:
        """The option's value."""
        return Path(text)

    def may_show(self, path: Path) -> bool:
        """Whether a path that was not given may be printed."""
        is_plain = path.name in _OUR_NAMES or masked_name(path.name) == path.name
        return not self.is_private or is_plain or is_competition(path)


FOLDER, FILE, PLACE = (PathUse(kind, True) for kind in ("folder", "file", "file or folder"))
STUDIES, STUDIES_OR_FILE = (PathUse(kind, True, is_private=True) for kind in ("folder", "file or folder"))
NEW_FOLDER, NEW_FILE = PathUse("folder", False), PathUse("file", False)
NEW_CSV, NEW_HTML, NEW_JSON = (PathUse("file", False, ending) for ending in (".csv", ".html", ".json"))


def check_paths(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Look at every path that was given, as its option says what it is for.

    Raises:
        CohortError: a path of another kind, or one that is missing beside a name that is almost the same.
    """
    for action, use in _path_options(parser, options):
        value = getattr(options, action.dest, None)
        for path in value if isinstance(value, list | tuple) else [value]:
            if isinstance(path, Path):
                name = action.option_strings[-1] if action.option_strings else "PATH"
                _check(f"{name} {path}", path, use)
                if use.ending:
                    _check_ending(name, path, _EXAMPLES.get(action.dest, action.dest) + use.ending)


def did_you_mean_path(
    path: str | os.PathLike[str], kind: str = PLACE.kind, may_show: Callable[[Path], bool] = lambda _: True
) -> str:
    """`` (did you mean …?)`` for a path that is not there, where names beside it differ by a slip of the pen.

    Args:
        path: as it was given.
        kind: of what is meant: ``folder``, ``file``, or ``file or folder``.
        may_show: whether a path that was not given may be printed.
    """
    if os.path.lexists(path):
        return ""
    mended, parts = Path(), Path(path).parts
    for number, part in enumerate(parts, 1):
        step = mended / part
        if not os.path.lexists(step):
            close = _nearest_name(part, _names_in(mended, kind if number == len(parts) else "folder"))
            step = mended / (close or "")
            if close is None or not may_show(step):
                return ""
        mended = step
    return f" (did you mean {mended}?)"


def _nearest_name(name: str, names: list[str]) -> str | None:
    """The name that is most like another one; of those with the same ending the part before it counts."""
    stem, ending = os.path.splitext(name)
    same = [other for other in names if os.path.splitext(other)[1].lower() == ending.lower()]
    close = nearest(stem, [os.path.splitext(other)[0] for other in same], _LIKE)
    if close is not None:
        return next(other for other in same if os.path.splitext(other)[0] == close)
    return nearest(name, [other for other in names if other not in same], _LIKE)


def _path_options(
    parser: argparse.ArgumentParser, options: argparse.Namespace
) -> Iterator[tuple[argparse.Action, PathUse]]:
    """The options that name paths, those of the command that was given included."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            chosen: Any = action.choices.get(getattr(options, action.dest, ""))
            if chosen is not None:
                yield from _path_options(chosen, options)
        elif isinstance(action.type, PathUse):
            yield action, action.type


def _check_ending(option: str, path: Path, example: str) -> None:
    """Refuse a file to write whose name has no ending: most often a folder was meant."""
    is_device = os.path.exists(path) and not os.path.isfile(path)  # a folder, which is refused as one, or /dev/null
    if not path.suffix and not is_device:
        raise CohortError(f"{option}: found {str(path)!r}, expected a file's name such as {path / example}")


def _check(what: str, path: Path, use: PathUse) -> None:
    if not use.is_input:
        _check_place(what, path, use)
    if not os.path.lexists(path):
        if use.is_input and (hint := did_you_mean_path(path, use.kind, use.may_show)):
            raise CohortError(f"{what}: no such {use.kind}, expected one that exists{hint}")
        return
    if use.kind == "folder" and os.path.exists(path) and not os.path.isdir(path):
        raise CohortError(f"{what}: found a file, expected a folder")
    if use.kind == "file" and os.path.isdir(path):
        name = "" if use.is_input else f" to write, such as {path / f'name{use.ending}'}"
        raise CohortError(f"{what}: found a folder, expected a file{name}")
    if use.ending and _is_of_another_kind(path, use.ending):
        raise CohortError(
            f"{what}: found a file that is no {use.ending} and would be lost, expected the name of a new file"
        )


def _check_place(what: str, path: Path, use: PathUse) -> None:
    """Look at the folder to write into, or at the nearest one above it that is there."""
    places = (path, *path.absolute().parents) if use.kind == "folder" else path.absolute().parents
    folder = next((place for place in places if os.path.lexists(place)), None)
    if folder is None or not os.path.exists(folder):
        return  # a link to nowhere, or a name that cannot be one: refused where it is written
    shown = path if folder == path else Path(os.path.relpath(folder)) if not path.is_absolute() else folder
    if not os.path.isdir(folder):
        raise CohortError(f"{what}: {shown} is a file, expected a folder to write into")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CohortError(f"{what}: {shown} cannot be written (permission denied), expected a writable folder")


def _is_of_another_kind(path: Path, ending: str) -> bool:
    """Whether a file has another ending than it would be written with, and does not begin like such a file either."""
    if path.suffix.lower() in (ending, "") or not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            first = file.read(_FIRST_BYTES).lstrip()
    except OSError:
        return False  # refused where it is to be written
    line = first.partition(b"\n")[0]
    begins = {
        ".csv": b"," in line,
        ".html": line.lower().startswith((b"<!doctype html", b"<html")),
        ".json": line[:1] in (b"{", b"["),
    }
    return bool(first) and not begins[ending]


def _names_in(folder: Path, kind: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            some = [entry for entry in islice(entries, _MOST_NAMES) if not entry.name.startswith(".")]
            return sorted(entry.name for entry in some if ("folder" if entry.is_dir() else "file") in kind)
    except (OSError, ValueError):
        return []
