"""How long the hidden test would take, projected from the seconds of a rehearsal."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lumbar.competitions.contract import Competition
from lumbar.competitions.lumbar_spine import COMPETITION as LUMBAR_SPINE
from lumbar.errors import CohortError
from lumbar.io.progress import duration
from lumbar_publish.files import write_text

_NOTE = "timing.json"
_BUSY = 0.3  # share of waiting from which a projection says more of other processes than of this machine
# Seconds before a rehearsal was ever timed here, idle and busy or compiling: what happens once, and each study, as
# measured on two cores.
_ONCE_S, _STUDY_S = (40.0, 150.0), (5.0, 20.0)


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
    competition: Competition = LUMBAR_SPINE
    waiting_share: float = 0.0  # of the rehearsal's time, in which no processor worked for it

    @property
    def hours(self) -> float:
        """Projected hours of the hidden test on this machine."""
        return (self.once_s + self.competition.hidden_studies * self.study_s) / 3600

    def lines(self) -> list[str]:
        """The lines that a rehearsal prints."""
        n_hidden = self.competition.hidden_studies
        how = f"{self.once_s:.1f} s + {n_hidden} x {self.study_s:.2f} s, measured here"
        return [
            f"seconds      {self.study_s:.2f} a study over {self.n_studies} studies, {self.once_s:.1f} once",
            f"projection   {self.hours:.2f} of {self.competition.hours:g} hours for {n_hidden} studies "
            f"({how} on {os.cpu_count()} cores, {self.devices})",
        ]

    def require_fit(self) -> None:
        """Raise when the hidden test would not end in time.

        Raises:
            CohortError: the projection exceeds the limit.
        """
        if reason := self.misfit():
            raise CohortError(reason)

    def misfit(self) -> str:
        """Why the hidden test would not end in time at this speed; empty where it would."""
        limit = self.competition.hours
        if self.hours <= limit:
            return ""
        text = (
            f"the hidden test would take {self.hours:.1f} hours at this speed, expected at most {limit:g}: "
            "the kernel would fall back to less effort, then to prior rows"
        )
        if self.waiting_share > _BUSY:
            idle = self.hours * (1.0 - self.waiting_share)
            text += f"; {self.waiting_share:.0%} of the time was waiting, without it about {idle:.1f} hours"
        return text


def estimate(
    record: dict[str, Any], seconds: float, competition: Competition = LUMBAR_SPINE, waiting_share: float = 0.0
) -> Estimate:
    """Split a rehearsal's wall seconds into what happens once and what each study adds.

    With several studies the first is left out of the mean where it is the slowest: it warms compilers up, which
    happens once. Workers that predict side by side divide the seconds of their studies.

    Raises:
        CohortError: a record without studies.
    """
    each = [float(study["seconds"]) for study in record["studies"]]
    if not each:
        raise CohortError("record.json: no studies, expected at least one")
    steady = each[1:] if len(each) > 1 and each[0] == max(each) else each
    workers = list(map(str, record.get("devices") or []))
    study_s = sum(steady) / len(steady) / max(1, min(len(workers), len(each)))
    devices = ", ".join(_times(workers.count(name), name) for name in dict.fromkeys(workers)) or "devices unknown"
    once_s = max(seconds - study_s * len(each), 0.0)
    return Estimate(once_s, study_s, len(each), devices, competition, waiting_share)


def _times(count: int, device: str) -> str:
    return device if count == 1 else f"{count} x {device}"


@dataclass(frozen=True)
class Timing:
    """What the last rehearsal in a folder took, to say how long the next one will."""

    once_s: float
    study_s: float

    @classmethod
    def read(cls, out: Path) -> Timing | None:
        """The note of the last rehearsal; None where there is none."""
        try:
            data = json.loads((out / _NOTE).read_text(encoding="utf-8"))
            return cls(float(data["once_s"]), float(data["study_s"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, out: Path) -> None:
        """Leave the note."""
        write_text(out / _NOTE, json.dumps({"once_s": self.once_s, "study_s": self.study_s}) + "\n")


def expected_s(n_studies: int, timing: Timing | None) -> str:
    """How long a rehearsal will take, in words."""
    if timing is None:
        low_s, high_s = _ONCE_S[0] + n_studies * _STUDY_S[0], _ONCE_S[1] + n_studies * _STUDY_S[1]
        return f"about {duration(low_s)} on an idle machine, up to {duration(high_s)} the first time or on a busy one"
    return f"about {duration(timing.once_s + n_studies * timing.study_s)}, going by the last one here"
