"""Ctrl-C, SIGTERM and a closed terminal end a training in order and within seconds.

A fit that runs is ended between two optimiser steps, after its state was saved; where that takes too long it is ended
at once, and goes on later from the state that was saved last. A second signal ends it at once too.

A time limit (``ends_in_time``) ends a training at the same places, and nowhere else: between two steps of a fit, which
is saved then, between two studies of an out-of-fold pass, and before whatever comes next. What has begun in between is
finished, however long it takes.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.util
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

# After a signal; ``lumbar.io.signals.GRACE_S`` after it the command ends whatever still runs.
STEP_S = 2.0  # how long a fit may go on to the end of its step and save itself
STOP_S = 3.2  # after which a process of a pool is killed
_REASONS = {"SIGINT": "", "SIGTERM": "terminated", "SIGHUP": "the terminal was closed"}  # as lumbar.io.signals
T = TypeVar("T")
clock = time.monotonic  # of time limits: the same in every process of a machine


class TimeLimitReached(Exception):
    """The time that a training was given is over; ``has_saved``: something was left in it to go on from."""

    def __init__(self, has_saved: bool = False) -> None:
        super().__init__(has_saved)
        self.has_saved = has_saved


class _State:
    """What this process knows of a signal that it was sent; signals are one process's business, so there is one."""

    reason: str | None = None  # of the first signal
    is_fitting = False  # inside ``ends_between_steps``
    is_worker = False
    timer: threading.Timer | None = None  # ends the step that a signal waits for
    is_late = False  # and has come to its end
    ends_at: float | None = None  # of ``clock``; None: no time limit
    is_time_up = False  # stays so once it is: what was saved for it must be answered
    is_cut = False  # a pass of this process, one of a group, has been cut short
    has_saved = False


def listen() -> None:
    """From now on signals raise ``KeyboardInterrupt``, or end a fit between two steps.

    A signal that the caller ignores (``nohup`` ignores SIGHUP) stays ignored. Only in a process's main thread.
    """
    for name in _REASONS:
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            with contextlib.suppress(ValueError, OSError):
                signal.signal(number, _handle)


def listen_in_worker() -> None:
    """In a process of a pool SIGTERM, which its parent sends, ends a fit between two steps, and the process."""
    _State.is_worker = True
    signal.signal(signal.SIGTERM, _handle)


@contextmanager
def ends_between_steps() -> Iterator[Callable[[], None]]:
    """While a fit runs in this block, a signal does not interrupt its step.

    Yields:
        a function to be called where the fit has been saved: it raises ``KeyboardInterrupt`` once a signal has come,
        or ``TimeLimitReached``. ``is_asked_to_end`` tells whether it will.
    """
    former = None
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # called from a program or a notebook
        former = signal.signal(signal.SIGINT, _handle)
    _State.is_fitting = True
    try:
        yield _raise_if_asked
    finally:
        _State.is_fitting = False
        if _State.timer is not None:  # or it would end the next fit of a program
            _State.timer.cancel()
            _State.timer, _State.is_late = None, False
        if former is not None:
            signal.signal(signal.SIGINT, former)
            _State.reason = None


def is_asked_to_end() -> bool:
    """Whether a signal has come since the fit began, or the time is up."""
    return _State.reason is not None or is_time_up()


@contextmanager
def ends_in_time(ends_at: float | None) -> Iterator[None]:
    """In this block training ends in order once ``clock`` has come to ``ends_at``; None is no limit."""
    former = _State.ends_at, _State.is_time_up, _State.has_saved
    _State.ends_at, _State.is_time_up, _State.has_saved = ends_at, False, False
    try:
        yield
    finally:
        _State.ends_at, _State.is_time_up, _State.has_saved = former


def clock_now() -> float:
    """The time on the clock of time limits."""
    return clock()


def time_limit() -> float | None:
    """When training has to end, for another process on this machine."""
    return _State.ends_at


def is_time_up() -> bool:
    """Whether the time limit is reached."""
    if _State.ends_at is not None and not _State.is_time_up:
        _State.is_time_up = clock() >= _State.ends_at
    return _State.is_time_up


def end_if_time_is_up() -> None:
    """Raise ``TimeLimitReached`` once the time is up."""
    if is_time_up():
        raise TimeLimitReached(_State.has_saved)


def note_saved() -> None:
    """Say that something was left from which training can go on."""
    _State.has_saved = True


def until_time_is_up(studies: Iterable[T], *, is_one_of_many: bool) -> Iterator[T]:
    """Studies of a pass, as long as there is time; then ``TimeLimitReached``.

    One process of a group stops giving studies instead, and all of them end when they join what they have (``is_cut``):
    the others would wait for one that has ended.
    """
    for study in studies:
        if is_time_up():
            if not is_one_of_many:
                raise TimeLimitReached(_State.has_saved)
            _State.is_cut = True
            return
        yield study


def was_cut() -> bool:
    """Whether the pass of this process has been cut short; asked once for each."""
    was, _State.is_cut = _State.is_cut, False
    return was


def end_worker(interrupt: KeyboardInterrupt) -> None:
    """End this process of a pool silently, with its loaders if it has any; in any other raise the interrupt again."""
    if _State.is_worker:
        if multiprocessing.active_children():
            # Otherwise Python warns of semaphores that were left behind
            multiprocessing.util._exit_function()  # type: ignore[attr-defined]
        os._exit(1)
    raise interrupt


@contextmanager
def held_back() -> Iterator[None]:
    """Signals of a terminal wait until the end of the block; a process that is started in it never receives them.

    Its parent receives them, and tells it by SIGTERM: else each would answer Ctrl-C with a traceback of its own.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _raise_if_asked() -> None:
    if _State.reason is not None:
        raise KeyboardInterrupt(_State.reason)
    if _State.is_time_up:
        raise TimeLimitReached(_State.has_saved)


def _handle(number: int, _frame: FrameType | None) -> None:
    is_first = _State.reason is None
    if is_first:
        _State.reason = _REASONS[signal.Signals(number).name]
    if is_first and _State.is_fitting:
        main = threading.main_thread().ident
        _State.timer = threading.Timer(STEP_S, _again, (main, number))
        _State.timer.daemon = True
        _State.timer.start()
        return
    if _State.is_worker and _State.is_fitting and not _State.is_late:
        return  # the executor sends SIGTERM once more to all its processes when the first of them has ended
    if _State.is_worker:
        os._exit(1)
    raise KeyboardInterrupt(_State.reason)


def _again(thread: int, number: int) -> None:
    """The step took too long: the same signal once more ends it."""
    if _State.is_fitting:
        _State.is_late = True
        signal.pthread_kill(thread, number)
