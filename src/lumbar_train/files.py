"""Writes files that are whole or absent, as ``lumbar.io.files`` does; makes folders, and raises TrainingError."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from lumbar.io import files
from lumbar.io.files import DISK_FULL, Sync
from lumbar_train.errors import TrainingError

__all__ = ["DISK_FULL", "atomic_file", "make_folder", "read_object", "write_bytes", "write_text", "write_with"]


@contextmanager
def atomic_file(path: Path, sync: Sync = "folder") -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path``; on success it takes the name at once, on any failure it is removed.

    A kill at any moment leaves the former file, or none, and at worst a ``.tmp-*`` file that the next run removes.

    Raises:
        TrainingError: the disk is full, or the folder cannot be written.
    """
    make_folder(path.parent)
    with files.atomic_file(path, TrainingError, sync) as file:
        yield file


def write_bytes(path: Path, data: bytes, sync: Sync = "folder") -> None:
    """Write ``data`` atomically."""
    make_folder(path.parent)
    files.write_atomically(path, data, TrainingError, sync)


def write_text(path: Path, text: str, sync: Sync = "folder") -> None:
    """Write UTF-8 text atomically."""
    make_folder(path.parent)
    files.write_atomically(path, text, TrainingError, sync)


def write_with(path: Path, writer: Callable[[BinaryIO], object], sync: Sync = "folder") -> None:
    """Let ``writer(file)`` fill the file, atomically."""
    with atomic_file(path, sync) as file:
        writer(file)


def read_object(path: Path) -> dict[str, Any]:
    """Content of a JSON object that a run wrote for itself; empty if the file is absent, damaged or no object."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, where they are not there.

    Raises:
        TrainingError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(
            f"{folder}: cannot be made ({error.strerror}), expected a folder that can be written"
        ) from error
