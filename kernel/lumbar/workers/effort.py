"""How much work a study gets: the levels that a run goes down as its deadline comes near, and up again with slack.

First the mirrored views go, then all folds but one, then members of the ensemble one after another, in the manifest's
order. A bundle whose members' seconds are not known leaves out in one step all that it can spare.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

# Until a level has been measured, it is assumed to take this share of the time of the level above it.
STEP_SHARE = 0.6
UNKNOWN_TIMES = (1.0, STEP_SHARE, STEP_SHARE**2)
_LEAST_SHARE = 0.05  # of the time with one fold: reading and localisation are never free, whatever a manifest says


class Effort(enum.IntEnum):
    """How much work a study gets; each level does less than the one before."""

    FULL = 0  # every model, every fold, test-time augmentation
    NO_AUGMENTATION = 1  # every model, every fold, one view
    ONE_FOLD = 2  # every model, one set of weights each
    ONE_MODEL = 3  # the fewest classifiers that cover all columns, one set of weights each

    @property
    def uses_augmentation(self) -> bool:
        """Whether test-time augmentation runs."""
        return self < Effort.NO_AUGMENTATION

    @property
    def uses_all_folds(self) -> bool:
        """Whether every fold's weights run, instead of the first only."""
        return self < Effort.ONE_FOLD

    @property
    def uses_all_models(self) -> bool:
        """Whether every classifier runs, instead of the fewest that cover the 25 columns."""
        return self < Effort.ONE_MODEL

    @property
    def left_out(self) -> tuple[str, ...]:
        """Members that are left out by name: none."""
        return ()

    def skips(self, spared: Iterable[str]) -> frozenset[str]:
        """The classifiers that do not run, of a bundle that can spare these."""
        return frozenset() if self.uses_all_models else frozenset(spared)

    @property
    def title(self) -> str:
        """The level in words, for the log and the report."""
        return ("full effort", "no test-time augmentation", "one fold", "one model")[self]


@dataclass(frozen=True)
class FewerMembers:
    """One set of weights each, and some members of the ensemble left out: what follows on ``Effort.ONE_FOLD``.

    Attributes:
        left_out: their names, those that went first in front.
    """

    left_out: tuple[str, ...]
    uses_augmentation: ClassVar[bool] = False
    uses_all_folds: ClassVar[bool] = False
    uses_all_models: ClassVar[bool] = False

    def skips(self, spared: Iterable[str]) -> frozenset[str]:
        """The classifiers that do not run, of a bundle that can spare these."""
        return frozenset(self.left_out) & frozenset(spared)

    @property
    def title(self) -> str:
        """The level in words, for the log and the report."""
        return f"{Effort.ONE_FOLD.title}, without {', '.join(self.left_out)}"


Level = Effort | FewerMembers


@dataclass(frozen=True)
class Spared:
    """A member that can be left out.

    Attributes:
        name: of the classifier.
        share: of a study's time at ``Effort.ONE_FOLD`` that goes with it; None where it is not known.
    """

    name: str
    share: float | None = None


class Ladder:
    """The levels of a run from most to least work, each with its expected time.

    Args:
        spared: the members that can be left out, in the order in which they go.
        times: expected seconds, in any unit, of a study at full effort, without mirrored views, and with one fold.
    """

    def __init__(self, spared: Sequence[Spared] = (), times: Sequence[float] = UNKNOWN_TIMES) -> None:
        self.levels: list[Level] = [Effort.FULL, Effort.NO_AUGMENTATION, Effort.ONE_FOLD]
        self._times = list(times)
        whole = self._times[-1]
        names = tuple(member.name for member in spared)
        if names and all(member.share is not None for member in spared):
            for count, member in enumerate(spared, start=1):
                less = self._times[-1] - whole * (member.share or 0.0)
                self.levels.append(FewerMembers(names[:count]))
                self._times.append(max(less, _LEAST_SHARE * whole))
        else:
            self.levels.append(FewerMembers(names) if names else Effort.ONE_MODEL)
            self._times.append(whole * STEP_SHARE)

    @property
    def lowest(self) -> Level:
        """The level of least work."""
        return self.levels[-1]

    def place(self, level: Level) -> int:
        """Which step of the ladder a level is, from 0; ``Effort.ONE_MODEL`` is always the last."""
        return self.levels.index(level) if level in self.levels else len(self.levels) - 1

    def ratio(self, level: Level, other: Level) -> float:
        """Expected time of a level as a multiple of that of another one."""
        return self._times[self.place(level)] / self._times[self.place(other)]
