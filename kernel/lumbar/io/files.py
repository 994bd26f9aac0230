"""How this kit writes all files: completely or not at all, with nothing left behind.

A file is written under another name in the same folder, flushed to the disk, and renamed over the old one. At any
moment, and after a kill or a power cut, ``path`` is either the former file or the new one.
"""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import time
import uuid
from collections.abc import Iterable, Iterator
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

``folder``: the content and the folder's entry, so that even after a power cut the new file is there. ``file``: only the
content, so that after a power cut either the former or the new file is there, complete. ``none``: nothing, for many
small files that count only once another file is written after them.
"""

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PREFIX = ".tmp-"
_LEFTOVER = re.compile(r"\.tmp-.*-[0-9a-f]{12}", re.DOTALL)
_OLD_SECONDS = 3600.0  # on systems without locks, a temporary file that was not touched for so long was left behind
_LONGEST_NAME = 180  # bytes of the target's name that the temporary name repeats; a file name has at most 255
_cleaned_folders: set[str] = set()  # folders in which this process has removed leftovers


class _TrackedFile(io.FileIO):
    """A file that keeps the error of a write that failed, since libraries replace it by errors of their own."""

    failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failure = error
            raise


def write_atomically(
    path: str | os.PathLike[str],
    content: str | bytes | bytearray,
    error: type[LumbarError] = CohortError,
    sync: Sync = "folder",
) -> None:
    """Replace ``path`` in one step by ``content``; text is written as UTF-8.

    Raises:
        error: the file cannot be written; the former file at ``path`` is unchanged.
    """
    # A lone surrogate (from a file name that is not UTF-8) must not make the write fail.
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    with atomic_file(path, error, sync) as file:
        file.write(data)


@contextmanager
def atomic_file(
    path: str | os.PathLike[str], error: type[LumbarError] = CohortError, sync: Sync = "folder"
) -> Iterator[BinaryIO]:
    """Open a new file for writing, which gets the name ``path`` when the block ends without an error.

    Any error in the block, and an interrupt too, removes it.

    Raises:
        error: the file cannot be written, even where a library in the block replaced the error by its own.
    """
    with _temporary(path, error, sync) as (_, descriptor):
        raw = _TrackedFile(os.dup(descriptor), "wb")
        file = io.BufferedWriter(raw)
        try:
            yield cast(BinaryIO, file)
            file.flush()
        except Exception as failure:
            # A library's own error, even an OSError of its words, says less than the one that the system gave.
            if raw.failure is not None and getattr(failure, "errno", None) is None:
                raise raw.failure from failure
            raise
        finally:
            raw.close()  # not the buffered file, which after a failure would try to write its buffer and fail again


@contextmanager
def atomic_path(
    path: str | os.PathLike[str], error: type[LumbarError] = CohortError, sync: Sync = "folder"
) -> Iterator[Path]:
    """As ``atomic_file``, for libraries that open the file by its name: the block writes to the path that it gets.

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
    """Check before any work that ``path`` can be written, without changing it.

    Raises:
        error: it cannot be written.
    """
    target = _target(path, error)
    try:
        temporary, descriptor = _create(target)
        os.close(descriptor)
        temporary.unlink()
    except OSError as failure:
        raise _refusal(path, failure, error) from None


def make_folder(path: str | os.PathLike[str], error: type[LumbarError] = CohortError) -> Path:
    """Make a folder, with those above it, and find out whether it can be written.

    Raises:
        error: it cannot.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary, descriptor = _create(folder / "folder")
        os.close(descriptor)
        temporary.unlink()
    except (OSError, ValueError) as failure:
        is_full = isinstance(failure, OSError) and failure.errno in DISK_FULL
        reason = _file_in_the_way(folder) or getattr(failure, "strerror", None) or str(failure)
        note = ": the disk is full" if is_full else ""
        raise error(f"{folder}: cannot be written ({reason}), expected a folder to write into{note}") from None
    return folder


@contextmanager
def without_empty_folders(folders: Iterable[str | os.PathLike[str]]) -> Iterator[None]:
    """Remove, where a block fails or is interrupted, the folders that were made in it and are still empty.

    Args:
        folders: that the block may make, with those above them; one that is there already stays.
    """
    whole = [Path(os.path.abspath(folder)) for folder in folders]
    missing = {place for folder in whole for place in (folder, *folder.parents) if not os.path.lexists(place)}
    try:
        yield
    except BaseException:
        for place in sorted(missing, key=lambda path: len(path.parts), reverse=True):
            with suppress(OSError):  # it was not made, or holds something
                place.rmdir()
        raise


def _file_in_the_way(folder: Path) -> str:
    """The part of a folder's path that is no folder, in words; empty where there is none."""
    for path in (folder, *folder.parents):
        if os.path.lexists(path):
            return "" if os.path.isdir(path) or not os.path.exists(path) else f"{path} is a file"
    return ""


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
        if failure.errno == errno.ENAMETOOLONG:  # writing would not notice it: the temporary name is shorter
            raise _refusal(path, failure, error) from None
        return target  # it does not exist yet, or writing will report the problem
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
        reason += f": {failure.filename}"  # the block failed at another file
    note = ": the disk is full" if failure.errno in DISK_FULL else ""
    untouched = "what was there before is untouched"
    return error(f"{path}: cannot be written ({reason}), expected a writable file{note}; {untouched}")


def _create(target: Path) -> tuple[Path, int]:
    """Make a new file with a unique name beside the target, locked as long as its descriptor is open."""
    stem = os.fsdecode(os.fsencode(target.name)[:_LONGEST_NAME])
    while True:
        temporary = target.with_name(f"{_PREFIX}{stem}-{uuid.uuid4().hex[:12]}")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
        if not _lock(descriptor) or _is_same_file(temporary, descriptor):
            return temporary, descriptor
        os.close(descriptor)  # another process removed it as a leftover before it was locked


def _lock(descriptor: int) -> bool:
    """Mark a file as in use, until its process ends. False where the system has no locks."""
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
    """Flush the content to the disk, also where a library has replaced the open file by another one."""
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
    """Flush the folder's entries to the disk, on systems that can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove_leftovers(target: Path) -> None:
    """Remove the temporary files of processes that were killed while they wrote; once for each folder and process."""
    folder = os.fspath(target.parent)
    if folder in _cleaned_folders:
        return
    _cleaned_folders.add(folder)
    with suppress(OSError), os.scandir(folder or ".") as entries:
        for entry in entries:
            if entry.name == f".{target.name}.tmp":  # as older versions of the kit named it
                with suppress(OSError):
                    os.unlink(entry.path)
            elif _LEFTOVER.fullmatch(entry.name):
                with suppress(OSError):
                    _remove_abandoned(entry.path)


def _remove_abandoned(path: str) -> None:
    """Remove a temporary file unless a process still writes it: its lock shows that, or its age on systems without."""
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
            os.unlink(path)  # while this process holds the lock, so that no other starts to use the file
    finally:
        os.close(descriptor)
