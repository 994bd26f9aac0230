"""How far a long work has come: one bar on a terminal; elsewhere a line a minute with what is left and when it ends."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO, TypeVar

from lumbar.io.text import counted

LINE_S = 60.0  # between two lines where nobody looks at a terminal
_DRAW_S = 0.2  # between two states of a terminal's bar
_WHOLE_DAY_S = 86400.0
T = TypeVar("T")


class Progress:
    """Shows how many parts of a whole are done. Silent unless ``is_shown``.

    On a terminal there is one bar, redrawn in place. Elsewhere (a log file, a notebook in a batch run) a line says
    where the work stands: at the start, after the first part (the first estimate of the whole), and then once a minute,
    also while one part takes longer than that. An estimate is shown only once there is one.

    Args:
        total: parts to do.
        unit: what a part is, in the singular.
        title: what is done, put before each line.
        n_before: parts that were done earlier; they are counted, and the pace is that of the others.
        is_shown: False shows nothing.
        is_part: belongs to a longer work that has lines of its own, so that only the lines once a minute are written
            and the bar is removed at the end.
        has_bar: False writes lines on a terminal too, for work that goes on in several processes.
        write: takes a line where there is no terminal; None writes to ``stream``.
        stream: decides whether there is a terminal; None for standard error.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        total: int,
        unit: str,
        *,
        title: str = "",
        n_before: int = 0,
        is_shown: bool = True,
        is_part: bool = False,
        has_bar: bool = True,
        write: Callable[[str], None] | None = None,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.unit, self.n_done = total, unit, n_before
        self._title, self._n_before, self._is_part = title and f"{title}: ", n_before, is_part
        self._clock, self._stream = clock, stream or sys.stderr
        self._write = write or self._print
        self._is_shown = is_shown and total > 0
        self._has_bar = has_bar and _is_terminal(self._stream)
        self._bar: Any = None
        self._started_s = self._line_s = clock()
        self._first_s: float | None = None  # when the first part was done: it pays for what happens once
        self._left: tuple[float, float] | None = None  # the caller's estimate, and when it was made
        self._lock, self._has_ended = threading.RLock(), threading.Event()

    def __enter__(self) -> Progress:
        if not self._is_shown:
            return self
        if self._has_bar:
            self._open_bar()
            return self
        if not self._is_part:
            some = counted(self.total - self.n_done, self.unit)
            self._say(f"{some} to do" + ("; the first one tells how long all take" if self.total > 1 else ""))
        threading.Thread(target=self._say_each_minute, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._has_ended.set()
        with self._lock:
            if self._bar is not None:
                self._bar.close()
            elif self._is_shown and not self._is_part and self.n_done > self._n_before:
                self._say(f"{self._counts()} done in {duration(self._clock() - self._started_s)}")

    def each(self, parts: Iterable[T]) -> Iterator[T]:
        """The parts in their order, each counted once the next one is asked for."""
        with self:
            for part in parts:
                yield part
                self.update(self.n_done + 1)

    def say(self, line: str) -> None:
        """Print a line on standard output, above the bar where there is one."""
        with self._lock:
            if self._bar is not None:
                self._bar.write(line)
            else:
                print(line, flush=True)

    def update(self, n_done: int, left_s: float | None = None, note: str = "") -> None:
        """Say that ``n_done`` parts are done by now; call it as often as you like.

        Args:
            n_done: parts done.
            left_s: seconds that the others are expected to take; None lets the pace so far tell.
            note: a figure to be shown on a terminal's bar.
        """
        now = self._clock()
        with self._lock:
            is_first = self._first_s is None and n_done > self._n_before
            if is_first:
                self._first_s = now
            has_more, self.n_done = n_done > self.n_done, n_done
            self._left = None if left_s is None else (left_s, now)
            if not self._is_shown:
                return
            is_due = now - self._line_s >= LINE_S
            if self._bar is not None:
                is_last = n_done >= self.total
                if is_last or is_due or (has_more and (is_first or now - self._line_s >= _DRAW_S)):
                    self._draw(now, note)
            elif n_done < self.total and ((is_first and not self._is_part) or is_due):
                self._say_where(now)

    def _open_bar(self) -> None:
        from tqdm import tqdm

        form = f"{{percentage:3.0f}} %|{{bar:30}}| {{n_fmt}} of {{total_fmt}} {_plural(self.unit)}{{postfix}}"
        self._bar = tqdm(
            total=self.total, initial=self.n_done, file=self._stream, bar_format=_escaped(self._title) + form,
            dynamic_ncols=True, leave=not self._is_part,
        )  # fmt: skip
        if not self._is_part:
            self._bar.set_postfix_str("the first one tells how long all take")

    def _draw(self, now: float, note: str) -> None:
        parts = (note, self._rest(now))
        self._bar.set_postfix_str(", ".join(part for part in parts if part), refresh=False)
        self._bar.update(self.n_done - self._bar.n)
        self._bar.refresh()
        self._line_s = now

    def _say_each_minute(self) -> None:
        """Runs in a thread: a part that takes minutes, inside which nobody calls ``update``, leaves its lines too."""
        while not self._has_ended.wait(max(_DRAW_S, LINE_S - (self._clock() - self._line_s))):
            with self._lock:
                now = self._clock()
                if not self._has_ended.is_set() and now - self._line_s >= LINE_S and self.n_done < self.total:
                    self._say_where(now)

    def _say_where(self, now: float) -> None:
        self._line_s = now
        rest = self._rest(now)
        self._say(f"{self._counts()} done after {duration(now - self._started_s)}" + (rest and f", {rest}"))

    def _rest(self, now: float) -> str:
        """What is left and when it ends; empty while nobody knows."""
        n_left = self.total - self.n_done
        if self._first_s is None or n_left <= 0:
            return ""
        if self._left is not None:
            left_s = self._left[0] - (now - self._left[1])
        else:
            n_new, pace = self.n_done - self._n_before, self._first_s - self._started_s
            if n_new > 1:
                pace = (now - self._first_s) / (n_new - 1)
            left_s = pace * n_left
        return f"{n_left} left: about {duration(left_s)}, until about {_time_of_day(left_s)}"

    def _counts(self) -> str:
        return f"{self.n_done} of {counted(self.total, self.unit)}"

    def _say(self, line: str) -> None:
        self._write(self._title + line)

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


def _escaped(text: str) -> str:
    """Text for a form in which curly brackets name values."""
    return text.replace("{", "{{").replace("}", "}}")


def _plural(unit: str) -> str:
    return counted(2, unit).partition(" ")[2]


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError):  # no stream at all, or a closed one
        return False
