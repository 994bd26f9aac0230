"""How far a long work has come: one bar on a terminal; elsewhere a line a minute with what is left and when it ends."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from lumbar.io.text import counted

LINE_S = 60.0  # between two lines where nobody looks at a terminal
_WHOLE_DAY_S = 86400.0


class Progress:
    """Shows how many parts of a whole are done. Silent unless ``is_shown``.

    On a terminal there is one bar, redrawn in place. Elsewhere (a log file, a notebook in a batch run) a line says
    where the work stands: at the start, after the first part (the first estimate of the whole), and then once a minute.
    An estimate is shown only once there is one.

    Args:
        total: parts to do.
        unit: what a part is, in the singular.
        is_shown: False shows nothing.
        write: takes a line where there is no terminal; None writes to ``stream``.
        stream: decides whether there is a terminal; None for standard error.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        total: int,
        unit: str,
        *,
        is_shown: bool = True,
        write: Callable[[str], None] | None = None,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.unit, self.n_done = total, unit, 0
        self._clock, self._stream = clock, stream or sys.stderr
        self._write = write or self._print
        self._is_shown = is_shown
        self._bar: Any = None
        self._started_s = self._line_s = clock()
        self._first_s: float | None = None  # when the first part was done: it pays for what happens once

    def __enter__(self) -> Progress:
        if not self._is_shown:
            return self
        if _is_terminal(self._stream):
            from tqdm import tqdm

            form = f"{{percentage:3.0f}} %|{{bar:30}}| {{n_fmt}} of {{total_fmt}} {_plural(self.unit)}{{postfix}}"
            self._bar = tqdm(total=self.total, file=self._stream, bar_format=form, dynamic_ncols=True)
            self._bar.set_postfix_str("the first one tells how long all take")
        else:
            some = counted(self.total, self.unit)
            self._write(f"{some} to do" + ("; the first one tells how long all take" if self.total > 1 else ""))
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._is_shown and self.n_done:
            self._write(f"{self._counts()} done in {duration(self._clock() - self._started_s)}")

    def update(self, n_done: int, left_s: float | None = None) -> None:
        """Say that ``n_done`` parts are done by now; call it as often as you like.

        Args:
            n_done: parts done.
            left_s: seconds that the others are expected to take; None lets the pace so far tell.
        """
        now = self._clock()
        is_first = self._first_s is None and n_done > 0
        if is_first:
            self._first_s = now
        has_more, self.n_done = n_done > self.n_done, n_done
        if not self._is_shown or not (has_more or now - self._line_s >= LINE_S):
            return
        rest = self._rest(now, left_s)
        if self._bar is not None:
            self._bar.set_postfix_str(rest.removeprefix(", "), refresh=False)
            self._bar.update(n_done - self._bar.n)
            self._bar.refresh()
            self._line_s = now
        elif n_done < self.total and (is_first or now - self._line_s >= LINE_S):
            self._line_s = now
            self._write(f"{self._counts()} done after {duration(now - self._started_s)}{rest}")

    def _rest(self, now: float, left_s: float | None) -> str:
        """What is left and when it ends; empty while nobody knows."""
        n_left = self.total - self.n_done
        if self._first_s is None or n_left <= 0:
            return ""
        if left_s is None:
            pace = self._first_s - self._started_s
            if self.n_done > 1:
                pace = (now - self._first_s) / (self.n_done - 1)
            left_s = pace * n_left
        return f", {n_left} left: about {duration(left_s)}, until about {_time_of_day(left_s)}"

    def _counts(self) -> str:
        return f"{self.n_done} of {counted(self.total, self.unit)}"

    def _print(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


def duration(seconds: float) -> str:
    """Seconds as a person says them: ``45 s``, ``12 min``, ``1 h 20 min``."""
    seconds = max(1.0, seconds)
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _time_of_day(left_s: float) -> str:
    end = time.localtime(time.time() + left_s)
    is_today = end.tm_yday == time.localtime().tm_yday and left_s < _WHOLE_DAY_S
    return time.strftime("%H:%M %Z" if is_today else "%a %H:%M %Z", end)


def _plural(unit: str) -> str:
    return counted(2, unit).partition(" ")[2]


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError):  # no stream at all, or a closed one
        return False
