"""Ctrl-C, SIGTERM and a closed terminal end a command in order, with one line, and within seconds whatever it does.

The first signal raises ``KeyboardInterrupt`` in the main thread; others change nothing. Python answers a signal between
two of its own instructions: a main thread inside one long call of a library answers late, or never. So a thread of its
own learns of the signal too (``signal.set_wakeup_fd``), and ends the process once ``GRACE_S`` are over.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import multiprocessing.util
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import resource_tracker
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from lumbar.io.streams import READER_GONE, ReaderGone, end_with_reader

GRACE_S = 4.3  # from the first signal on, for a command to end in order
TIDY_S = 0.5  # then, for the last line, and for what the system keeps beyond a process
_REASONS = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "the terminal was closed"}


class _Process:
    """Whether this process is a command's own (``run_as_process``): else it is the caller's, and is never ended."""

    is_own = False
    is_interrupted = False  # by a signal
    watch: tuple[int, int] | None = None  # the pipe of ``watch``, ours and the system's end


def run_as_process(command: Callable[[], int], ends_with_reader: bool = True) -> NoReturn:
    """Run a command as this process, and end it with the status that the command returns.

    Args:
        command: does the work.
        ends_with_reader: end it in silence once nobody reads its output; False for one that sees to that itself.
    """
    _Process.is_own = True
    if ends_with_reader:
        end_with_reader()
    try:
        status = command()
    except ReaderGone:
        status = READER_GONE
    except SystemExit as end:  # of argparse: after its help, or a refusal
        if _flushed(0) == READER_GONE and not end.code:
            leave(READER_GONE)
        raise
    leave(status)


def in_order(work: Callable[[], int], tell: Callable[[str], None]) -> int:
    """Do a command's work; when a signal ends it, tell the reason, once, and return 1.

    A signal that the caller ignores (``nohup`` ignores SIGHUP) stays ignored.

    Args:
        work: returns the exit status.
        tell: prints the one line; is given the reason in words.
    """
    tell = _once(tell)
    former: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        former = _handle_signals()
        if _Process.is_own:
            watch(tell)
    try:
        return work()
    except KeyboardInterrupt as interrupt:
        note_interrupt()
        tell(reason_of(interrupt))
        return 1
    finally:
        for number, handler in former.items() if not _Process.is_own else ():
            signal.signal(number, handler)


def note_interrupt() -> None:
    """Say that a signal ends this process's command, which ``leave`` then does at once."""
    _Process.is_interrupted = True


def reason_of(interrupt: KeyboardInterrupt) -> str:
    """What ended the command, in words."""
    return str(interrupt) or _REASONS["SIGINT"]


def watch(tell: Callable[[str], None]) -> None:
    """From the first signal on this process has ``GRACE_S`` left: then the reason is told, and it is ended.

    Only in a process's main thread, of a process that may be ended.
    """
    _Process.watch = ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
    threading.Thread(target=_end_late, args=(ours, tell), name="signals", daemon=True).start()


def _forget_in_child() -> None:
    """In a forked copy of a command's process: a signal to the copy must not count as one to the command."""
    _Process.is_own = _Process.is_interrupted = False
    if _Process.watch is not None:
        with contextlib.suppress(ValueError):  # a thread that may not set it
            signal.set_wakeup_fd(-1)
        for end in _Process.watch:
            os.close(end)
        _Process.watch = None


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_forget_in_child)


def _end_late(signals: int, tell: Callable[[str], None]) -> None:
    names = {int(getattr(signal, name)): name for name in _REASONS if hasattr(signal, name)}
    ours = [number for number in names if signal.getsignal(number) != signal.SIG_IGN]
    number = next(byte for byte in iter(lambda: os.read(signals, 1)[0], None) if byte in ours)
    note_interrupt()
    time.sleep(GRACE_S)
    tracker = vars(resource_tracker)["_resource_tracker"]._pid  # it removes what the others leave, and then ends
    for pid in descendants(os.getpid()):
        if pid != tracker:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    def tidy() -> None:
        tell(_REASONS[names[number]])
        vars(multiprocessing.util)["_run_finalizers"](0)  # gives names of semaphores back

    last = threading.Thread(target=tidy, daemon=True)  # as both may wait for what does not answer any more
    last.start()
    last.join(TIDY_S)
    os._exit(1)


def leave(status: int) -> NoReturn:
    """End this process, which is a command's own, even where a study that was given up still runs in a thread of it."""
    for number in _numbers():
        with contextlib.suppress(ValueError, OSError):
            signal.signal(number, signal.SIG_IGN)  # too late to change anything
    status = _flushed(status)
    if _Process.is_interrupted:  # Python would take seconds to tidy up large libraries, in which no thread may end it
        getattr(atexit, "_run_exitfuncs")()  # noqa: B009
        os._exit(status)
    is_held = any(thread.name.startswith("lumbar-") for thread in threading.enumerate())
    if is_held or multiprocessing.active_children():  # Python would wait for them
        os._exit(status)
    sys.exit(status)


def _flushed(status: int) -> int:
    """Write what is buffered; the status, or that of a reader who is gone where it was 0."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except ReaderGone:
            status = status or READER_GONE
    return status


def descendants(pid: int) -> list[int]:
    """Children, their children and so on, where the system lists them (proc(5): field 4 of /proc/<pid>/stat)."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parent = int(path.read_text(errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    below, level = [], [pid]
    while level:
        level = [child for one in level for child in children.get(one, [])]
        below += level
    return below


def _handle_signals() -> dict[int, Any]:
    """Let the three signals raise ``KeyboardInterrupt``; the handlers that they had."""
    seen: list[int] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        seen.append(number)
        if len(seen) == 1 or not _Process.is_own:
            raise KeyboardInterrupt(_REASONS[signal.Signals(number).name])

    former: dict[int, Any] = {}
    for number in _numbers():
        handler = signal.getsignal(number)
        if handler in (signal.SIG_DFL, signal.default_int_handler):
            former[number] = signal.signal(number, handle)
    return former


def _numbers() -> list[signal.Signals]:
    return [getattr(signal, name) for name in _REASONS if hasattr(signal, name)]  # Windows has no SIGHUP


def _once(tell: Callable[[str], None]) -> Callable[[str], None]:
    """The same, but of several calls, in whatever threads, the first alone counts."""
    is_free = threading.Lock()

    def tell_once(reason: str) -> None:
        if is_free.acquire(blocking=False):
            with contextlib.suppress(OSError, ValueError, ReaderGone):  # the terminal is gone
                tell(reason)

    return tell_once
