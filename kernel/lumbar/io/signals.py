"""Ctrl-C, SIGTERM and a closed terminal end a command in order, with one line."""

from __future__ import annotations

import contextlib
import signal
from types import FrameType

_REASONS = {"SIGTERM": "terminated", "SIGHUP": "the terminal was closed"}


def end_in_order() -> None:
    """From now on SIGTERM and SIGHUP raise ``KeyboardInterrupt`` as Ctrl-C does; its text says which it was.

    A signal that the caller ignores (``nohup`` ignores SIGHUP) stays ignored. Only in a process's main thread.
    """
    for name in _REASONS:
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is None or signal.getsignal(number) == signal.SIG_IGN:
            continue
        with contextlib.suppress(ValueError, OSError):
            signal.signal(number, _interrupt)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt(_REASONS[signal.Signals(number).name])


def reason_of(interrupt: KeyboardInterrupt) -> str:
    """What ended the command, in words."""
    return str(interrupt) or "interrupted"
