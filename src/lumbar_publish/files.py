"""Files and folders, written completely or not at all."""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lumbar.errors import CohortError, ManifestError
from lumbar.io.files import write_atomically


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
        _restore_and_remove_leftovers(folder)
        work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        descriptor = os.open(work, os.O_RDONLY)
    except OSError as error:
        raise _refusal(folder, error) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # marks a folder in use; the system releases it when the process ends
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
        raise _refusal(folder, error) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
        os.close(descriptor)


def _refusal(folder: Path, error: OSError) -> ManifestError:
    where = f": {error.filename}" if error.filename and str(folder) not in str(error.filename) else ""
    return ManifestError(
        f"{folder}: cannot be written ({error.strerror or error}{where}), expected a folder that can be; "
        "what was there before is untouched"
    )


def _restore_and_remove_leftovers(folder: Path) -> None:
    """Put back what a killed run had set aside, where nothing took its place, and remove what else it left."""
    for work in folder.parent.glob(f".{glob.escape(folder.name)}.????????"):
        descriptor = os.open(work, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not folder.exists() and (work / "old").is_dir():
                (work / "old").rename(folder)
            shutil.rmtree(work, ignore_errors=True)
        except BlockingIOError:
            continue  # another run's, which is at work
        finally:
            os.close(descriptor)


def _flush(folder: Path) -> None:
    """Flush all files of a folder to the disk, before it replaces another."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
