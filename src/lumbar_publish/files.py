"""Files and folders, written whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lumbar.errors import ManifestError
from lumbar.submission import write_atomically


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` in one step; a file that already says this is left alone (its time stamp tells the truth).

    Raises:
        CohortError: it cannot be written.
    """
    if not (path.is_file() and path.read_bytes() == text.encode()):
        path.parent.mkdir(parents=True, exist_ok=True)
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
        if folder.exists():
            folder.rename(work / "old")
        try:
            new.rename(folder)
        except OSError:
            (work / "old").rename(folder)
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
