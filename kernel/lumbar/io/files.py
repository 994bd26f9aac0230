"""The one way in which this kit writes files: whole or not at all, and nothing left behind.

A file is written under another name in the same folder, flushed to the disk, and renamed over the old one. Whoever
reads ``path``, at any moment and after any kill or power cut, finds the former file or the new one.
"""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from lumbar.errors import CohortError, LumbarError

try:
    import fcntl
except ImportError:  # not on every system
    fcntl = None  # type: ignore[assignment]

Sync = Literal["folder", "file", "none"]
"""How far a write is flushed before it counts as done.

``folder``: file and folder entry, so that even after a power cut the new file is there. ``file``: the content alone,
so that after a power cut the former or the new file is there, whole. ``none``: for many small files that another file,
written after them, vouches for.
"""

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PREFIX = ".tmp-"
_LEFTOVER = re.compile(r"\.tmp-.*-[0-9a-f]{12}", re.DOTALL)
_OLD_SECONDS = 3600.0  # without locks, a temporary file that nobody has touched for so long is taken as left behind
_LONGEST_NAME = 180  # bytes of the target's name that the temporary name repeats; a name has at most 255
_cleaned_folders: set[str] = set()  # folders in which this process has looked for leftovers


class _TrackedFile(io.FileIO):
    """A file that remembers why a write failed: libraries turn the reason into errors of their own."""

    failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failure = error
            raise


def write_atomically(
    path: str | os.PathLike[str], content: str | bytes, error: type[LumbarError] = CohortError, sync: Sync = "folder"
) -> None:
    """Replace ``path`` in one step by ``content``, text as UTF-8.

    Raises:
        error: the file cannot be written; what stood at ``path`` still stands.
    """
    # A lone surrogate (of a file name that is no UTF-8) must not cost the whole file.
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    with atomic_file(path, error, sync) as file:
        file.write(data)


@contextmanager
def atomic_file(
    path: str | os.PathLike[str], error: type[LumbarError] = CohortError, sync: Sync = "folder"
) -> Iterator[BinaryIO]:
    """A new file, open for writing, that takes the name ``path`` when the block ends well.

    Whatever ends the block otherwise, an interrupt included, removes it.

    Raises:
        error: the file cannot be written, even where a library in the block reports that in its own words.
    """
    with _temporary(path, error, sync) as (_, descriptor):
        raw = _TrackedFile(os.dup(descriptor), "wb")
        file = io.BufferedWriter(raw)
        try:
            yield cast(BinaryIO, file)
            file.flush()
        except Exception as failure:
            if raw.failure is not None and not isinstance(failure, OSError):
                raise raw.failure from failure
            raise
        finally:
            raw.close()  # what is buffered after a failure is not worth another one


@contextmanager
def atomic_path(
    path: str | os.PathLike[str], error: type[LumbarError] = CohortError, sync: Sync = "folder"
) -> Iterator[Path]:
    """As ``atomic_file``, for libraries that open the file by its name: the block writes the path that it is given.

    Raises:
        error: the file cannot be written.
    """
    with _temporary(path, error, sync) as (temporary, _):
        try:
            yield temporary
        except Exception as failure:
            if "No space left" in str(failure) and not isinstance(failure, OSError):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from failure
            raise


def check_writable(path: str | os.PathLike[str], error: type[LumbarError] = CohortError) -> None:
    """Find out before any work whether ``path`` can be written, leaving what stands there as it is.

    Raises:
        error: it cannot.
    """
    target = _target(path, error)
    try:
        temporary, descriptor = _create(target)
        os.close(descriptor)
        temporary.unlink()
    except OSError as failure:
        raise _refusal(path, failure, error) from None


@contextmanager
def _temporary(path: str | os.PathLike[str], error: type[LumbarError], sync: Sync) -> Iterator[tuple[Path, int]]:
    """A locked file beside the target; renamed over it at the end of the block, removed on any failure."""
    target = _target(path, error)
    temporary: Path | None = None
    descriptor = -1
    try:
        _remove_leftovers(target)
        temporary, descriptor = _create(target)
        yield temporary, descriptor
        _flush(temporary, descriptor, sync)
        os.replace(temporary, target)
        temporary = None
        if sync == "folder":
            _flush_folder(target.parent)
    except OSError as failure:
        raise _refusal(path, failure, error) from failure
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()
        if descriptor >= 0:
            os.close(descriptor)


def _target(path: str | os.PathLike[str], error: type[LumbarError]) -> Path:
    """The file to replace: what a symbolic link points to; never a folder, a device or a pipe."""
    target = Path(os.path.realpath(path)) if os.path.islink(path) else Path(path)
    try:
        mode = os.stat(target).st_mode
    except OSError as failure:
        if failure.errno == errno.ENAMETOOLONG:  # the temporary name would not be
            raise _refusal(path, failure, error) from None
        return target  # not there yet, or a problem that writing will name
    except ValueError as failure:  # a zero byte in the name
        raise error(f"{path!r}: cannot be written ({failure}), expected a file's name") from None
    if stat.S_ISDIR(mode):
        raise error(f"{path}: is a folder, expected a file's name")
    if not stat.S_ISREG(mode):
        raise error(f"{path}: is a device or pipe, expected a file's name")
    return target


def _refusal(path: str | os.PathLike[str], failure: OSError, error: type[LumbarError]) -> LumbarError:
    reason = failure.strerror or str(failure)
    if failure.filename is not None and _PREFIX not in str(failure.filename):
        reason += f": {failure.filename}"  # another file's failure, inside the block
    note = ": the disk is full" if failure.errno in DISK_FULL else ""
    untouched = "what was there before is untouched"
    return error(f"{path}: cannot be written ({reason}), expected a writable file{note}; {untouched}")


def _create(target: Path) -> tuple[Path, int]:
    """A new file with a name of its own beside the target, locked for as long as the descriptor is open."""
    stem = os.fsdecode(os.fsencode(target.name)[:_LONGEST_NAME])
    while True:
        temporary = target.with_name(f"{_PREFIX}{stem}-{uuid.uuid4().hex[:12]}")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
        if not _lock(descriptor) or _is_same_file(temporary, descriptor):
            return temporary, descriptor
        os.close(descriptor)  # another process took it for a leftover before it was locked


def _lock(descriptor: int) -> bool:
    """Mark a file as in use; the system takes the mark away with the process. False where there are no locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def _is_same_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except OSError:
        return False


def _flush(temporary: Path, descriptor: int, sync: Sync) -> None:
    """The content to the disk; a library may have put another file in the place of the one that is open."""
    if sync == "none":
        return
    os.fsync(descriptor)
    if not _is_same_file(temporary, descriptor):
        other = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(other)
        finally:
            os.close(other)


def _flush_folder(folder: Path) -> None:
    """The folder's entry to the disk, where the system knows how."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove_leftovers(target: Path) -> None:
    """Once a folder and process: remove the temporary files of processes that were killed while they wrote."""
    folder = os.fspath(target.parent)
    if folder in _cleaned_folders:
        return
    _cleaned_folders.add(folder)
    with suppress(OSError), os.scandir(folder or ".") as entries:
        for entry in entries:
            if entry.name == f".{target.name}.tmp":  # what versions without locks wrote
                with suppress(OSError):
                    os.unlink(entry.path)
            elif _LEFTOVER.fullmatch(entry.name):
                with suppress(OSError):
                    _remove_abandoned(entry.path)


def _remove_abandoned(path: str) -> None:
    """Remove the file unless somebody still writes it, which its lock says or, where there are none, its age."""
    descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        try:
            has_locks = fcntl is not None
            if has_locks:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        except OSError:
            has_locks = False
        if has_locks or time.time() - os.fstat(descriptor).st_mtime > _OLD_SECONDS:
            os.unlink(path)  # while the lock is held, or its owner could take it in between
    finally:
        os.close(descriptor)
