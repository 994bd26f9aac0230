"""How long the hidden test would take, projected from the seconds of a rehearsal."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from lumbar.errors import CohortError
from lumbar_publish.names import HIDDEN_STUDIES, KAGGLE_HOURS


@dataclass(frozen=True)
class Estimate:
    """Seconds measured, and what they project to for the hidden test.

    ``once_s`` is all that a study does not repeat (start, imports, compilation, weights, report); ``study_s`` is the
    wall time that one more study adds.
    """

    once_s: float
    study_s: float
    n_studies: int
    devices: str

    @property
    def hours(self) -> float:
        """Projected hours of the hidden test on this machine."""
        return (self.once_s + HIDDEN_STUDIES * self.study_s) / 3600

    def lines(self) -> list[str]:
        """The lines that a rehearsal prints."""
        how = f"{self.once_s:.1f} s + {HIDDEN_STUDIES} x {self.study_s:.2f} s, measured here"
        return [
            f"seconds      {self.study_s:.2f} a study over {self.n_studies} studies, {self.once_s:.1f} once",
            f"projection   {self.hours:.2f} of {KAGGLE_HOURS:g} hours for {HIDDEN_STUDIES} studies "
            f"({how} on {os.cpu_count()} cores, {self.devices})",
        ]

    def require_fit(self) -> None:
        """Raise when the hidden test would not end in time.

        Raises:
            CohortError: the projection exceeds the limit.
        """
        if self.hours > KAGGLE_HOURS:
            raise CohortError(
                f"the hidden test would take {self.hours:.1f} hours at this speed, expected at most {KAGGLE_HOURS:g}: "
                "the kernel would fall back to less effort, then to prior rows"
            )


def estimate(record: dict[str, Any], seconds: float) -> Estimate:
    """Split a rehearsal's wall seconds into what happens once and what each study adds.

    With several studies the first is left out of the mean where it is the slowest: it warms compilers up, which
    happens once.

    Raises:
        CohortError: a record without studies.
    """
    each = [float(study["seconds"]) for study in record["studies"]]
    if not each:
        raise CohortError("record.json: no studies, expected at least one")
    steady = each[1:] if len(each) > 1 and each[0] == max(each) else each
    study_s = sum(steady) / len(steady)
    devices = ", ".join(map(str, record.get("devices") or [])) or "devices unknown"
    return Estimate(max(seconds - study_s * len(each), 0.0), study_s, len(each), devices)
