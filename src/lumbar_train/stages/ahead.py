"""What a run has still to fit beyond the fit at hand, so that a fit's pace tells how long the whole will take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Ahead:
    """The work that is left: by stage and fold, in any unit that grows with the time it takes, such as operations.

    Attributes:
        costs: of all epochs of a stage on a fold, for what was unfinished when the run began.
        later: the sum over the stages after the one at hand.
        jobs: fits at a time.
    """

    costs: Mapping[tuple[str, int], float] = field(default_factory=dict)
    later: float = 0.0
    jobs: int = 1

    def epochs_beyond(self, stage: str, fold: int, folds: Sequence[int], epochs: int) -> float:
        """The time beyond a fit, in epochs of that fit: 0 where it is the last.

        Args:
            stage: the stage at hand.
            fold: the fold at hand.
            folds: all folds of the stage, in the order in which they are taken.
            epochs: of the stage on this fold.
        """
        own = self.costs.get((stage, fold), 0.0)
        if own <= 0 or epochs <= 0:
            return 0.0
        todo = [k for k in folds if (stage, k) in self.costs]
        place = todo.index(fold)
        beside = self.jobs - 1 - place % self.jobs  # those that follow at once run at the same time
        waiting = sum(self.costs[stage, k] for k in todo[place + 1 + beside :])
        return (waiting + self.later) / self.jobs / (own / epochs)
