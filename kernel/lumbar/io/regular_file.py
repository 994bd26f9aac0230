"""Opening files of a bundle: regular files only, since reading a FIFO or a device may never end."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import BinaryIO

from lumbar.errors import ManifestError

_CHUNK = 1 << 20
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def kind_of(mode: int) -> str:
    """In words, what kind of file a mode (``st_mode``) describes."""
    return _KINDS.get(stat.S_IFMT(mode), "a regular file")


def open_regular(path: str | Path, what: str) -> BinaryIO:
    """Open a regular file for reading, without waiting where it is a FIFO.

    Args:
        path: the file; a symbolic link is followed.
        what: what was expected there, for the message.

    Raises:
        ManifestError: it cannot be opened, or is not a regular file.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        reason = getattr(error, "strerror", None) or str(error)
        raise ManifestError(f"{path}: cannot be read ({reason}), expected {what}") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise ManifestError(f"{path}: found {kind_of(mode)}, expected {what}")
    return os.fdopen(descriptor, "rb")


def read_regular(path: str | Path, max_bytes: int, what: str) -> bytes:
    """Read a regular file of at most ``max_bytes`` bytes.

    Raises:
        ManifestError: as ``open_regular``; also where there are more bytes or reading fails.
    """
    with open_regular(path, what) as file:
        try:
            content = file.read(max_bytes + 1)
        except OSError as error:
            raise ManifestError(f"{path}: cannot be read ({error.strerror}), expected {what}") from None
    if len(content) > max_bytes:
        raise ManifestError(f"{path}: found more than {max_bytes} bytes, expected {what} of at most that")
    return content


def file_sha256(path: str | Path) -> str:
    """Return the sha256 of a regular file in hex, reading it in pieces.

    Raises:
        ManifestError: as ``open_regular``; also where reading fails.
    """
    digest = hashlib.sha256()
    with open_regular(path, "a regular file") as file:
        try:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        except OSError as error:
            raise ManifestError(f"{path}: cannot be read ({error.strerror}), expected a readable file") from None
    return digest.hexdigest()
