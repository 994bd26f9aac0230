"""The files below a folder, however a PACS or a CD nested them."""

from __future__ import annotations

import os
from pathlib import Path

from lumbar.errors import CohortError

_IGNORED = frozenset(("dicomdir", "thumbs.db", "desktop.ini", "lockfile", "version"))
_MARK = b"DICM"
_MARK_AT = 128
_BARE_ENDINGS = (".dcm", ".ima", ".dic", ".dicom", "")  # names of files that may be DICOM without a preamble
_MAX_BARE_BYTES = 1 << 28


def list_tree(root: Path) -> list[str]:
    """The paths of all files below ``root``, sorted; hidden ones and DICOMDIR are ignored.

    Links to folders are followed once each, so that a circle of links ends.

    Raises:
        CohortError: the folder cannot be listed.
    """
    try:
        os.listdir(root)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CohortError(f"{root}: cannot be listed ({reason}), expected a folder of DICOM files") from None
    paths: list[str] = []
    seen: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        try:
            status = os.stat(folder)
        except OSError:
            folders.clear()
            continue
        place = (status.st_dev, status.st_ino)
        if place in seen:
            folders.clear()
            continue
        seen.add(place)
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
        paths += [os.path.join(folder, name) for name in names if _is_candidate(name)]
    return sorted(paths)


def _is_candidate(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in _IGNORED


def may_be_dicom(path: str) -> bool:
    """Whether a file begins as a DICOM file does, or by its name may be one without a preamble (PS3.10 section 7.1)."""
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            if file.read(_MARK_AT + len(_MARK))[_MARK_AT:] == _MARK:
                return True
            size = os.fstat(file.fileno()).st_size
    except (OSError, ValueError):
        return False
    ending = os.path.splitext(path)[1].lower()
    is_numbered = ending[1:].isdigit()  # the last part of a UID
    return 0 < size <= _MAX_BARE_BYTES and (ending in _BARE_ENDINGS or is_numbered)


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a FIFO would wait for a writer
