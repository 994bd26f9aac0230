"""A file of records that only grows, each with its checksum: whatever ends the process, no finished record is lost.

A line is ``crc32 TAB head TAB body``: eight hex digits over the rest of the line, then two JSON objects. The head is
what is read of every record when the file is opened again, the body only where it is asked for. A record that was cut
while it was written is dropped, and so is a line whose checksum is wrong; all others stand.

The file is locked as long as a process writes it. The system gives the lock back when the process ends, however it
ends, so no lock is ever left behind.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from lumbar.errors import CohortError
from lumbar.io.files import DISK_FULL

try:
    import fcntl
except ImportError:  # not on every system
    fcntl = None  # type: ignore[assignment]

_SYNC_S = 5.0  # a power cut costs at most the records of so many seconds; the end of the process costs none
_CRC = 8  # hex digits
_encode = json.JSONEncoder(check_circular=False, separators=(",", ":")).encode


class Place(NamedTuple):
    """Where a record's line lies in the file, in bytes."""

    offset: int
    length: int


class CheckedLines:
    """The file, opened for reading and appending, and locked against other processes.

    Args:
        path: the file; made where it is missing.
        clock: monotonic seconds.

    Raises:
        CohortError: the file cannot be opened, or another process has it open for writing.
    """

    def __init__(self, path: str | os.PathLike[str], clock: Callable[[], float] = time.monotonic) -> None:
        self.path = Path(path)
        self._clock = clock
        self._fd = self._open()
        self._end = os.fstat(self._fd).st_size
        self._synced_s = clock()
        self.is_empty = self._end == 0

    def _open(self) -> int:
        while True:
            try:
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
            except (OSError, ValueError) as error:
                raise CohortError(
                    f"{self.path}: cannot be opened ({getattr(error, 'strerror', None) or error}), expected a writable "
                    "file"
                ) from None
            if not _lock(descriptor):
                os.close(descriptor)
                raise CohortError(f"{self.path}: found it in use{_owner(self.path)}, expected one process at a time")
            with suppress(OSError):
                if os.path.samestat(os.stat(self.path), os.fstat(descriptor)):
                    return descriptor
            os.close(descriptor)  # another process set the file aside before it was locked

    def records(self) -> Iterator[tuple[Place, dict[str, Any]]]:
        """The place and head of every good record; a cut last record is taken off the file."""
        end = 0
        for place, head in read_heads(self.path):
            if head is not None:
                yield place, head
            end = place.offset + place.length
        if end < self._end:
            self._truncate(end)

    def append(self, head: dict[str, Any], body: dict[str, Any] | None = None) -> Place:
        """Add a record; it stands whole in the file, or not at all.

        Raises:
            CohortError: it cannot be written; the records before it stand.
        """
        data = line(head, body or {})
        written = 0
        try:
            os.lseek(self._fd, self._end, os.SEEK_SET)
            while written < len(data):
                written += os.write(self._fd, data[written:])
        except OSError as error:
            if written:
                self._truncate(self._end)
            note = ": the disk is full" if error.errno in DISK_FULL else ""
            raise CohortError(
                f"{self.path}: cannot be written ({error.strerror}), expected room for a record{note}; what it holds "
                "stands"
            ) from None
        place = Place(self._end, len(data))
        self._end += len(data)
        if self._clock() - self._synced_s > _SYNC_S:
            self.sync()
        return place

    def body(self, place: Place) -> tuple[dict[str, Any], dict[str, Any]]:
        """Head and body of a record.

        Raises:
            CohortError: the file was changed by somebody else.
        """
        os.lseek(self._fd, place.offset, os.SEEK_SET)
        parts = _parts(os.read(self._fd, place.length).removesuffix(b"\n"))
        if parts is None:
            raise CohortError(f"{self.path}: byte {place.offset}: found a changed record, expected it as written")
        return json.loads(parts[0]), json.loads(parts[1])

    def sync(self) -> None:
        """Flush to the disk what was written."""
        self._synced_s = self._clock()
        with suppress(OSError):  # some file systems cannot
            os.fsync(self._fd)

    def set_aside(self) -> Path:
        """Rename the file to ``NAME.old`` and begin an empty one.

        Raises:
            CohortError: the folder cannot be written.
        """
        aside = self.path.with_name(f"{self.path.name}.old")
        try:
            os.replace(self.path, aside)
        except OSError as error:
            raise CohortError(f"{aside}: cannot be written ({error.strerror}), expected a writable folder") from None
        former, self._fd = self._fd, self._open()
        os.close(former)
        self._end, self.is_empty = 0, True
        return aside

    def close(self, remove: bool = False) -> None:
        """Flush and close the file, and give the lock back; with ``remove`` the file goes as well."""
        if self._fd < 0:
            return
        self.sync()
        if remove:
            with suppress(OSError):
                self.path.unlink()
        os.close(self._fd)
        self._fd = -1

    def _truncate(self, end: int) -> None:
        with suppress(OSError):
            os.ftruncate(self._fd, end)
        self._end = end  # where the file could not be cut, the next record overwrites what is left


def line(head: dict[str, Any], body: dict[str, Any]) -> bytes:
    """One record as its line. JSON writes tabs and line feeds in texts as escapes, so the separators are safe."""
    text = f"{_encode(head)}\t{_encode(body)}".encode()
    return b"%08x\t%s\n" % (zlib.crc32(text), text)


def read_heads(path: str | os.PathLike[str]) -> Iterator[tuple[Place, dict[str, Any] | None]]:
    """The place of every whole line and its head; None where the checksum is wrong.

    Raises:
        CohortError: the file cannot be read.
    """
    offset = 0
    try:
        with open(path, "rb") as file:
            for data in file:
                if not data.endswith(b"\n"):
                    return  # cut while it was written
                parts = _parts(data[:-1])
                yield Place(offset, len(data)), None if parts is None else json.loads(parts[0])
                offset += len(data)
    except OSError as error:
        raise CohortError(f"{path}: cannot be read ({error.strerror}), expected a journal") from None


def read_record(path: Path, place: Place) -> tuple[dict[str, Any], dict[str, Any]]:
    """Head and body of a record of a file that this process does not write.

    Raises:
        CohortError: the file cannot be read, or was changed.
    """
    try:
        with open(path, "rb") as file:
            file.seek(place.offset)
            parts = _parts(file.read(place.length).removesuffix(b"\n"))
    except OSError as error:
        raise CohortError(f"{path}: cannot be read ({error.strerror}), expected a journal") from None
    if parts is None:
        raise CohortError(f"{path}: byte {place.offset}: found a changed record, expected it as written")
    return json.loads(parts[0]), json.loads(parts[1])


def _parts(data: bytes) -> tuple[bytes, bytes] | None:
    """Head and body of a line; None where it is no record, or not the one that was written."""
    crc, text = data[:_CRC], data[_CRC + 1 :]
    try:
        is_good = data[_CRC : _CRC + 1] == b"\t" and int(crc, 16) == zlib.crc32(text)
    except ValueError:
        return None
    head, separator, body = text.partition(b"\t")
    return (head, body) if is_good and separator else None


def _lock(descriptor: int) -> bool:
    """Lock the file for this process; False where another one has it. Systems without locks let everybody pass."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a network file system without locks
        return True
    return True


def _owner(path: Path) -> str:
    """Who writes the file, as its last record of a session says."""
    last: dict[str, Any] = {}
    with suppress(CohortError):
        for _, head in read_heads(path):
            if head is not None and "pid" in head:
                last = head
    return f" by process {last['pid']} on {last.get('host')} since {last.get('since')}" if last else ""
