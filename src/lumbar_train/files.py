"""Files that are either whole or absent: written beside, flushed to disk, then renamed."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError

from lumbar_train.errors import TrainingError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path``; on success it takes the name at once, on any failure it is removed.

    A kill at any moment leaves the former file, or none, and at worst a ``.tmp-*`` file that nothing reads.

    Raises:
        TrainingError: the disk is full, or the folder cannot be written.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".tmp-{path.name}-", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it private; a cache or run folder is often shared
        os.replace(temporary, path)
    except OSError as error:
        reason = "the disk is full" if error.errno in DISK_FULL else str(error)
        raise TrainingError(f"{path}: cannot be written: {reason}; what was there before is untouched") from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` atomically."""
    with atomic_file(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_at(path: Path, writer: Callable[[Path], object]) -> None:
    """Let ``writer(another path)`` make the file, for libraries that open it themselves; atomically all the same.

    Raises:
        TrainingError: as ``atomic_file``.
    """
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer(temporary)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        is_full = getattr(error, "errno", None) in DISK_FULL or "No space left" in str(error)
        reason = "the disk is full" if is_full else " ".join(str(error).split())[:200]
        raise TrainingError(f"{path}: cannot be written: {reason}; what was there before is untouched") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_with(path: Path, writer: Callable[[BinaryIO], object]) -> None:
    """Let ``writer(file)`` fill the file, atomically."""
    with atomic_file(path) as file:
        writer(file)
