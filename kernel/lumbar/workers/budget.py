"""The time limit: how much work the next study gets, and when to stop.

Near the deadline test-time augmentation is left out first, then folds, then members of the ensemble one after another
(``lumbar.workers.effort``; docs/architecture.md, "When something fails"). Every decision rests on the measured seconds
per study, in which slow disks and slow networks (the models) count alike.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lumbar.errors import CohortError
from lumbar.workers.effort import UNKNOWN_TIMES, Ladder, Level, Spared
from lumbar.workers.effort import Effort as Effort

Clock = Callable[[], float]

_IMPORTED_S = time.monotonic()
_START_UP_S = 60.0  # at most, between a process's start and this import; after more, another program ran in it before

NO_LIMIT = "none"  # a time limit without end
_UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0}


def parse_time_limit(text: str | float) -> float:
    """Return the seconds of ``8.5h``, ``30m``, ``90s`` or a bare number of seconds; without end for ``none``.

    Raises:
        CohortError: not a duration, or negative.
    """
    if str(text).strip().lower() == NO_LIMIT:
        return math.inf
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([hms]?)\s*", str(text).lower())
    if match is None:
        raise CohortError(f"time limit {text!r}: expected a duration such as 8.5h, 30m or 90s, or none")
    return float(match[1]) * _UNITS_S[match[2] or "s"]


def process_start() -> float:
    """Return when this process was started, on the clock of ``time.monotonic``.

    Linux gives it in clock ticks since boot (proc(5): field 22 of /proc/self/stat). On other systems, and where the
    time given is that of a shell which became Python by ``exec``, it is when this module was imported.
    """
    try:
        after_name = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
        started_s = int(after_name.split()[19]) / os.sysconf("SC_CLK_TCK")
        age_s = float(Path("/proc/uptime").read_text(encoding="utf-8").split()[0]) - started_s
    except (OSError, ValueError, IndexError, AttributeError):
        return _IMPORTED_S
    start_s = time.monotonic() - age_s
    return start_s if 0.0 <= _IMPORTED_S - start_s <= _START_UP_S else _IMPORTED_S


class Budget:
    """Estimates when a run will end from the studies done, and lowers the effort so that it ends in time.

    Args:
        limit_s: seconds from the start to the deadline.
        n_studies: studies to do.
        n_workers: studies done at the same time.
        clock: monotonic seconds; tests pass their own.
        reserve_s: seconds kept free for the last write, the report and the end of the process; default 2 % of the
            limit, at least 5 s (or half of a limit below 10 s) and at most 90 s.
        start_s: the clock's value at the start; default now.
    """

    # The effort is raised again only if the studies left fit with so much of the time left to spare: else it would
    # change back and forth. Of a small step, which costs little if it is taken back, half of what it adds is enough.
    _UP_SLACK = 0.2
    _UP_SHARE = 0.5
    # Weight of the newest study in the running mean: recent studies say most about the machine as it is now.
    _NEWEST = 0.2
    # What was measured of a level long ago, perhaps while the machine was slow, gives way to what the levels in use
    # say of it: by this share a study.
    _AGEING = 0.03
    # Ending the workers, writing record and report, and leaving Python take so long on a busy machine.
    _LEAST_RESERVE_S = 5.0

    def __init__(
        self,
        limit_s: float,
        n_studies: int,
        *,
        n_workers: int = 1,
        clock: Clock = time.monotonic,
        reserve_s: float | None = None,
        start_s: float | None = None,
    ) -> None:
        self._clock = clock
        self.start_s = clock() if start_s is None else start_s
        self.limit_s = limit_s
        default_s = min(max(0.02 * limit_s, self._LEAST_RESERVE_S), 90.0, 0.5 * limit_s)
        self.reserve_s = default_s if reserve_s is None else reserve_s
        self.n_left = n_studies
        self.n_workers = max(1, n_workers)
        self.effort: Level = Effort.FULL
        self._ladder = Ladder()
        self._seen: dict[Level, tuple[int, float]] = {}  # studies done and their mean seconds

    def spare(self, members: Sequence[Spared], times: Sequence[float] = UNKNOWN_TIMES) -> None:
        """Take over which members can be left out, and what levels cost (``Ladder``); before the first study."""
        self._ladder = Ladder(members, times)

    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return self._clock() - self.start_s

    def remaining_s(self) -> float:
        """Seconds that studies may still use: until the deadline, less the reserve."""
        return self.limit_s - self.reserve_s - self.elapsed_s()

    def gave_up(self) -> None:
        """Note one study that will not be done; the time spent on it says nothing about the others."""
        self.n_left = max(0, self.n_left - 1)

    def finished(self, seconds: float, effort: Level) -> None:
        """Note one study done at ``effort`` in ``seconds`` of one worker."""
        self.n_left = max(0, self.n_left - 1)
        count, mean = self._seen.get(effort, (0, 0.0))
        # The first study of a level also fills caches and compiles kernels: the second replaces it in the mean.
        share = 1.0 if count <= 1 else max(self._NEWEST, 1.0 / count)
        self._seen[effort] = (count + 1, mean + share * (seconds - mean))
        if count:
            self._age_others(effort)

    def _age_others(self, newest: Level) -> None:
        """Move what is known of other levels towards what the level just measured says of them."""
        mean = self._seen[newest][1]
        for level, (count, old) in self._seen.items():
            if level != newest:
                expected = mean * self._ladder.ratio(level, newest)
                self._seen[level] = (count, old + self._AGEING * (expected - old))

    def study_seconds(self, effort: Level) -> float | None:
        """Expected seconds of one study at ``effort``; None before any study is done."""
        if not self._seen:
            return None
        place = self._ladder.place
        # The first study of a level took longer for that reason: it counts only while there is nothing better.
        known = {level: mean for level, (count, mean) in self._seen.items() if count > 1}
        if not known:
            lowest = max(self._seen, key=place)
            known = {lowest: self._seen[lowest][1]}
        nearest = min(known, key=lambda level: abs(place(level) - place(effort)))
        return known[nearest] * self._ladder.ratio(effort, nearest)

    def projected_s(self, effort: Level) -> float | None:
        """Seconds still needed for all studies left at ``effort``; None before any study is done."""
        each = self.study_seconds(effort)
        return None if each is None else each * self.n_left / self.n_workers

    def next_effort(self) -> Level:
        """The highest level at which all studies left still fit; the lowest where none does."""
        remaining = self.remaining_s()
        for level in self._ladder.levels:
            projected = self.projected_s(level)
            if projected is None:
                return self.effort
            if projected <= remaining * (1.0 - self._slack(level)):
                self.effort = level
                return level
        self.effort = self._ladder.lowest
        return self.effort

    def _slack(self, level: Level) -> float:
        """The share of the time left that must stay free where the effort is raised to ``level``; else none."""
        if self._ladder.place(level) >= self._ladder.place(self.effort):
            return 0.0
        added = 1.0 - self._ladder.ratio(self.effort, level)
        return min(self._UP_SLACK, self._UP_SHARE * added)

    def is_over(self, side_by_side: int = 1) -> bool:
        """Whether one more study at the lowest effort is not expected to end in time.

        Args:
            side_by_side: how many studies share a worker's networks with it, itself counted: each waits for the others.
        """
        least = self.study_seconds(self._ladder.lowest) or 0.0
        return self.remaining_s() <= least * side_by_side
