"""Files and folders, written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lumbar.errors import CohortError, ManifestError
from lumbar.files import write_atomically


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` in one step; a file that already says this is left alone (its time stamp tells the truth).

    Raises:
        CohortError: it cannot be written.
    """
    try:
        if path.is_file() and path.read_bytes() == text.encode():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CohortError(f"{path}: cannot be written ({error.strerror}), expected a writable file") from None
    write_atomically(path, text)


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """A new empty folder that takes the place of ``folder`` when the block ends well; otherwise nothing changes.

    Raises:
        ManifestError: the place cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as error:
        raise ManifestError(f"{folder}: cannot be written: {error.strerror or error}") from None
    try:
        new = work / "new"
        new.mkdir()
        yield new
        _flush(new)
        if folder.exists():
            folder.rename(work / "old")
        try:
            new.rename(folder)
        except OSError:
            if (work / "old").exists():
                (work / "old").rename(folder)
            raise
    except OSError as error:  # a full disk above all, wherever in the block it showed
        raise ManifestError(
            f"{folder}: cannot be written ({error.strerror or error}); what was there before is untouched"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _flush(folder: Path) -> None:
    """All files of a folder to the disk, before it takes another's place."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
