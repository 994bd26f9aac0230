"""When a reading or a study has taken so long that waiting on would cost the run more than giving it up.

All limits are generous: a disk that is slow for everybody raises the mean and with it the limit.
"""

from __future__ import annotations

# A reading: at least five minutes, or this many times the mean of those done.
READING_S = 300.0
READING_MULTIPLE = 20.0
# Before any reading of the run is done, decoders are being compiled beside it.
FIRST_READING_MULTIPLE = 2.0
# Networks that never answer: half an hour, or this many times what a study takes.
NETWORKS_S = 1800.0
NETWORKS_MULTIPLE = 50.0
# A worker in which a reading hangs may finish the study in its networks: a minute, or this many times what one takes.
RETIRING_S = 60.0
RETIRING_MULTIPLE = 10.0


class ReadingTimes:
    """The running mean of seconds a reading, and the limit that follows from it."""

    def __init__(self) -> None:
        self._n_done = 0
        self._n_counted = 0
        self._mean_s = 0.0

    def done(self, seconds: float, is_first: bool) -> None:
        """Note a reading that ended; a worker's first one is not counted in the mean: decoders were compiled in it."""
        self._n_done += 1
        if not is_first:
            self._n_counted += 1
            self._mean_s += (seconds - self._mean_s) / self._n_counted

    def limit_s(self) -> float:
        """Seconds after which a reading is given up."""
        if not self._n_done:
            return READING_S * FIRST_READING_MULTIPLE
        return max(READING_S, READING_MULTIPLE * self._mean_s)


def networks_limit_s(study_s: float | None) -> float:
    """Seconds after which networks are given up that have not answered; ``study_s`` is what a study takes."""
    return max(NETWORKS_S, NETWORKS_MULTIPLE * (study_s or 0.0))


def retiring_limit_s(study_s: float | None) -> float:
    """Seconds that a study in the networks gets while a reading beside it hangs."""
    return max(RETIRING_S, RETIRING_MULTIPLE * (study_s or 0.0))
