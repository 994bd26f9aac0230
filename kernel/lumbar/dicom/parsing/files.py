"""The bytes of a file: regular files only, of bounded size, read without waiting for anybody."""

from __future__ import annotations

import os
import stat

import numpy as np

from lumbar.dicom._scratch import fresh_bytes
from lumbar.dicom.limits import MAX_FILE_BYTES
from lumbar.errors import DicomError

# A FIFO without a writer would hold up whoever opens it
_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
_KIND_MASK = stat.S_IFMT(0xFFFF)  # of a mode: the bits that say what a path is
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
    status = os.fstat(descriptor)
    mode, size = status.st_mode, status.st_size
    if mode & _KIND_MASK == stat.S_IFREG and size <= MAX_FILE_BYTES:
        return descriptor, size
    os.close(descriptor)
    if not stat.S_ISREG(mode):
        raise DicomError(f"{name}: found {_kind(mode)}, expected a regular file")
    raise DicomError(f"{name}: found {size} bytes, expected at most {MAX_FILE_BYTES}")


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
        source = fresh_bytes(size, "file")
        done = os.preadv(descriptor, (source.data,), 0)
        while done < size:  # seldom
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


def reread(name: str, size: int) -> np.ndarray:
    """As ``read_bytes``, of a file that was a regular one a moment ago: looked at again only where a byte is missing.

    A system call less for each slice of a series. What is no file any more cannot be read at a place, or has no bytes.

    Raises:
        DicomError: the file cannot be read.
        MemoryError: there is no memory for it.
    """
    try:
        descriptor = os.open(name, _FLAGS)
    except OSError:
        return read_bytes(name, size)  # says why
    try:
        source = fresh_bytes(size, "file")
        if os.preadv(descriptor, (source.data,), 0) == size:
            return source
    except OSError:
        pass
    finally:
        os.close(descriptor)
    return read_bytes(name, size)
