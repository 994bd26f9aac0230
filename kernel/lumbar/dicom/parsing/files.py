"""Reading the bytes of a file: only regular files, of limited size, without waiting for other processes; inflating."""

from __future__ import annotations

import os
import stat
import zlib

import numpy as np

from lumbar.dicom._scratch import fresh_bytes
from lumbar.dicom.limits import MAX_FILE_BYTES, MAX_INFLATED_BYTES, MAX_INFLATED_PER_BYTE, MIN_INFLATED_BYTES
from lumbar.errors import DicomError

_INFLATED_AT_ONCE = 1 << 23
# Without O_NONBLOCK, opening a FIFO would wait for a writer
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
    """Open the regular file ``name``: its descriptor, which the caller must close, and its size.

    Raises:
        DicomError: it cannot be opened, is not a regular file, or is larger than ``MAX_FILE_BYTES``.
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
    """What kind of file ``name`` is, where that is why it cannot be opened (a socket); empty for regular files."""
    try:
        mode = os.stat(name).st_mode
    except (OSError, ValueError):
        return ""
    return "" if stat.S_ISREG(mode) else _kind(mode)


def _reason(error: Exception) -> str:
    return (error.strerror or "no file") if isinstance(error, OSError) else str(error)


def read_start(name: str, descriptor: int, size: int) -> np.ndarray:
    """Read the first ``size`` bytes, or fewer where the file ends, as a writable array (n,) uint8.

    Raises:
        DicomError: they cannot be read, or there is no memory for them.
    """
    try:
        source = fresh_bytes(size, "file")
        done = os.preadv(descriptor, (source.data,), 0)
        while done < size:  # rarely needed
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
    """Read the first ``size`` bytes of the file at ``path``, or fewer where it has fewer, as (n,) uint8.

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
    """As ``read_bytes``, for a file that was checked a moment ago: it is checked again only where a byte is missing.

    This saves a system call for each slice of a series. Where the file was replaced by something else, reading fails or
    gives no bytes.

    Raises:
        DicomError: the file cannot be read.
        MemoryError: there is no memory for it.
    """
    try:
        descriptor = os.open(name, _FLAGS)
    except OSError:
        return read_bytes(name, size)  # which raises an error that says why
    try:
        source = fresh_bytes(size, "file")
        if os.preadv(descriptor, (source.data,), 0) == size:
            return source
    except OSError:
        pass
    finally:
        os.close(descriptor)
    return read_bytes(name, size)


def inflate(name: str, source: np.ndarray, start: int) -> np.ndarray:
    """Inflate the data set of a deflated file, which begins at ``start`` (PS3.5 section A.5: raw deflate).

    Raises:
        DicomError: the data are damaged, or inflate to more bytes than a file of this size may ask for.
    """
    most = min(MAX_INFLATED_BYTES, max(MIN_INFLATED_BYTES, MAX_INFLATED_PER_BYTE * source.size))
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    plain, rest = bytearray(), source[start:].tobytes()
    try:
        while rest and not inflater.eof and len(plain) <= most:
            plain += inflater.decompress(rest, _INFLATED_AT_ONCE)
            rest = inflater.unconsumed_tail
    except zlib.error as error:
        raise DicomError(f"{name}: found {error} at offset {start}, expected a deflated data set") from error
    except MemoryError as error:
        raise DicomError(f"{name}: found no memory to inflate {source.size} bytes, expected fewer") from error
    if len(plain) > most:
        raise DicomError(
            f"{name}: found a deflated data set of more than {most} bytes in a file of {source.size}, expected fewer"
        )
    if not inflater.eof:
        raise DicomError(f"{name}: found an unfinished deflate stream at offset {start}, expected its end")
    return np.frombuffer(plain, dtype=np.uint8)
