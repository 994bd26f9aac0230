"""The bytes of a file: regular files only, of bounded size, read without waiting for anybody."""

from __future__ import annotations

import os
import stat

import numpy as np

from lumbar.dicom._scratch import fresh
from lumbar.dicom.limits import MAX_FILE_BYTES
from lumbar.errors import DicomError

# A FIFO without a writer would hold up whoever opens it
_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)


def open_file(name: str) -> tuple[int, int]:
    """Descriptor and size of the regular file ``name``; the caller closes the descriptor.

    Raises:
        DicomError: it cannot be opened, is no regular file, or is larger than ``MAX_FILE_BYTES``.
    """
    try:
        descriptor = os.open(name, _FLAGS)
    except (OSError, ValueError) as error:
        kind = _unopened(name)
        if kind:
            raise DicomError(f"{name}: found {kind}, expected a regular file") from error
        raise DicomError(f"{name}: found {_reason(error)}, expected a DICOM file") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise DicomError(f"{name}: found {_kind(status.st_mode)}, expected a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise DicomError(f"{name}: found {status.st_size} bytes, expected at most {MAX_FILE_BYTES}")
    except DicomError:
        os.close(descriptor)
        raise
    return descriptor, status.st_size


def _kind(mode: int) -> str:
    return next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")


def _unopened(name: str) -> str:
    """What ``name`` is, where it is something that cannot be opened, such as a socket; empty for regular files."""
    try:
        mode = os.stat(name).st_mode
    except (OSError, ValueError):
        return ""
    return "" if stat.S_ISREG(mode) else _kind(mode)


def _reason(error: Exception) -> str:
    return (error.strerror or "no file") if isinstance(error, OSError) else str(error)


def read_start(name: str, descriptor: int, size: int) -> np.ndarray:
    """The first ``size`` bytes, or fewer at the end of the file, as (n,) uint8 (bytes would be read-only).

    Raises:
        DicomError: they cannot be read, or there is no memory for them.
    """
    try:
        source = fresh((size,), np.uint8, "file")
        done = os.preadv(descriptor, (source.data,), 0)
        while done < size:
            count = os.preadv(descriptor, (source[done:].data,), done)
            if count == 0:
                return source[:done]
            done += count
    except OSError as error:
        raise DicomError(f"{name}: found {_reason(error)}, expected a DICOM file") from error
    except MemoryError as error:
        raise DicomError(f"{name}: found no memory for {size} bytes, expected fewer") from error
    return source


def read_bytes(path: str | os.PathLike[str], size: int) -> np.ndarray:
    """The first ``size`` bytes of the file at ``path``, (n,) uint8, or fewer where it has fewer.

    Raises:
        DicomError: the file cannot be read.
    """
    name = os.fspath(path)
    descriptor, _ = open_file(name)
    try:
        return read_start(name, descriptor, size)
    finally:
        os.close(descriptor)
