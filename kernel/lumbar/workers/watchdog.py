"""Time limits of a reading and of a prediction, after which it is better to give it up than to wait longer.

All limits are generous, and relative to the mean: a slow disk raises the mean and with it the limit.
"""

from __future__ import annotations

# A reading: five minutes, or this many times the mean of those done, whichever is longer.
READING_S = 300.0
READING_MULTIPLE = 20.0
# The limit of the first readings is this many times longer, since the decoders are compiled at the same time.
FIRST_READING_MULTIPLE = 2.0
# A prediction: half an hour, or this many times the seconds of a study, whichever is longer.
NETWORKS_S = 1800.0
NETWORKS_MULTIPLE = 50.0
# A worker in which a reading hangs may still finish the study in its networks, within a minute or this many times the
# seconds of a study, whichever is longer.
RETIRING_S = 60.0
RETIRING_MULTIPLE = 10.0


class ReadingTimes:
    """The running mean of the seconds of a reading, and the limit that follows from it."""

    def __init__(self) -> None:
        self._n_done = 0
        self._n_counted = 0
        self._mean_s = 0.0

    def done(self, seconds: float, is_first: bool) -> None:
        """Note a reading that ended. A worker's first one does not count for the mean: decoders were compiled in it."""
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
    """Seconds after which a prediction is given up; ``study_s`` are the seconds of a study, None if not known yet."""
    return max(NETWORKS_S, NETWORKS_MULTIPLE * (study_s or 0.0))


def retiring_limit_s(study_s: float | None) -> float:
    """Seconds that a study in the networks may still take while a reading in the same worker hangs."""
    return max(RETIRING_S, RETIRING_MULTIPLE * (study_s or 0.0))
