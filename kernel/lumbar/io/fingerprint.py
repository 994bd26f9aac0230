"""Whether the files of a folder are still those that were read: their names, sizes and times of change."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from lumbar.io.tables import FILES

_MOST_LEVELS = 8  # folders below folders; a link to a folder above would otherwise have no end
MISSING = "missing"
UNKNOWN = ""  # equal to no fingerprint, not even to itself


def folder_fingerprint(folder: str | os.PathLike[str]) -> str:
    """Hash the relative name, size and time of change of every file below a folder, links followed.

    Returns:
        32 hex digits; ``MISSING`` where there is no such folder, ``UNKNOWN`` where it cannot be listed.
    """
    if not os.path.isdir(folder):
        return MISSING
    try:
        return _hashed(_files(os.fspath(folder), "", 0))
    except OSError:
        return UNKNOWN


def files_fingerprint(root: str | os.PathLike[str], paths: Iterable[str]) -> str:
    """Hash name below ``root``, size and time of change of single files; as ``folder_fingerprint`` returns it."""
    files = []
    try:
        for path in paths:
            status = os.stat(path)
            files.append((os.path.relpath(path, root), status.st_size, status.st_mtime_ns))
    except FileNotFoundError:
        return MISSING
    except (OSError, ValueError):
        return UNKNOWN
    return _hashed(files) if files else MISSING


def _hashed(files: Iterable[tuple[str, int, int]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, size, changed_ns in sorted(files):
        digest.update(f"{name}\0{size}\0{changed_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def is_same(one: str, other: str) -> bool:
    """Whether two fingerprints are known and equal."""
    return one == other != UNKNOWN


def _files(folder: str, above: str, depth: int) -> list[tuple[str, int, int]]:
    """Name relative to the top, size and time of change of each file."""
    files = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = f"{above}{entry.name}"
            if entry.is_dir():
                if depth < _MOST_LEVELS:
                    files += _files(entry.path, f"{name}/", depth + 1)
                continue
            try:
                status = entry.stat()
            except FileNotFoundError:  # a link that leads nowhere
                files.append((name, -1, 0))
                continue
            files.append((name, status.st_size, status.st_mtime_ns))
    return files


def study_fingerprint(root: Path, images: str, study_id: int | str, files: Iterable[str] | None = None) -> str:
    """The fingerprint of a study's files.

    Args:
        root: the folder that was named.
        images: of a competition folder, the folder with a folder for each study.
        study_id: whose files.
        files: of an indexed folder, the study's own; None for a competition folder.
    """
    if files is not None:
        return files_fingerprint(root, files)
    return folder_fingerprint(os.path.join(root, images, str(study_id)))


def fingerprints(root: Path, images: str, table: pd.DataFrame) -> Callable[[int | str], str]:
    """The function that gives a study's fingerprint, from a table of series or studies that is gone through once."""
    if FILES not in table.columns:
        return lambda study_id: study_fingerprint(root, images, study_id)
    own: dict[int | str, list[str]] = {}
    for study_id, paths in zip(table["study_id"], table[FILES], strict=True):
        own.setdefault(study_id, []).extend(paths)
    return lambda study_id: study_fingerprint(root, images, study_id, own.get(study_id, []))


def row_digests(table: pd.DataFrame, study_column: str) -> dict[Any, str]:
    """The hash of each study's rows of a table: another description of a series is another study to predict.

    Paths of files are left out, which a folder that is mounted elsewhere changes; ``study_fingerprint`` has them.
    """
    if table.empty or study_column not in table.columns:
        return {}
    digests: dict[Any, Any] = {}
    names = [name for name in table.columns if name != FILES]
    for study_id, *cells in zip(table[study_column], *(table[name] for name in names), strict=True):
        digest = digests.setdefault(study_id, hashlib.blake2b(digest_size=8))
        digest.update(("\0".join(map(str, cells)) + "\n").encode("utf-8", "surrogateescape"))
    return {study_id: digest.hexdigest() for study_id, digest in digests.items()}
