"""What every stage of a run is given: cohort, folds, recipe, decoded studies, run folder, this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch

from lumbar.io.progress import Progress
from lumbar_train.data.folds import is_full
from lumbar_train.data.studies import Studies
from lumbar_train.data.tables import Cohort
from lumbar_train.data.targets import StudyTargets, study_targets
from lumbar_train.engine.distributed import Distributed
from lumbar_train.engine.interrupts import TimeLimitReached, until_time_is_up, was_cut
from lumbar_train.outputs.run_folder import RunFolder
from lumbar_train.recipes import Recipe
from lumbar_train.stages.ahead import Ahead
from lumbar_train.stages.initial import Initial
from lumbar_train.stages.pretrained import Start

T = TypeVar("T")


@dataclass
class RunContext:
    """One training run: what is trained on what, and where it is left. It can be sent to another process.

    Attributes:
        cohort: the labelled studies that are trained on.
        folds: ``study_id, fold``.
        recipe: networks and how each is fitted.
        folder: where everything is left.
        cache: the studies, decoded or to be decoded.
        use_folds: the folds of this call; -1 is the fit on all data, -2, -3, … the same with other seeds.
        seed: of everything random.
        other_seeds: of the stages whose fits another run has made.
        resume: whether fits that were interrupted go on.
        distributed: this process and its peers.
        devices: for folds side by side; none: this process's own.
        loop: options of the training loop that no recipe sets.
        start: what backbones start from.
        initial: another run whose weights fits start from.
        changes: what the command line changed in the recipe, in its words.
        points_use: external points ``beside`` the competition's, or ``instead`` of them.
        command: the beginning of a command line that continues this run.
        ahead: what is left to fit after the stage at hand.
    """

    cohort: Cohort
    folds: pd.DataFrame
    recipe: Recipe
    folder: RunFolder
    cache: Studies
    use_folds: list[int]
    seed: int = 0
    other_seeds: Mapping[str, int] = field(default_factory=dict)
    resume: bool = False
    distributed: Distributed = field(default_factory=Distributed)
    devices: tuple[torch.device, ...] = ()
    loop: dict[str, Any] = field(default_factory=dict)
    start: Start = field(default_factory=Start)
    initial: Initial | None = None
    changes: tuple[str, ...] = ()
    points_use: str = "beside"
    command: str = "python -m lumbar_train train"
    ahead: Ahead = field(default_factory=Ahead)
    targets: dict[int, StudyTargets] = field(default_factory=dict, init=False)
    fold_of: dict[int, int] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.fold_of = {int(s): int(f) for s, f in zip(self.folds["study_id"], self.folds["fold"], strict=True)}
        grouped = dict(list(self.cohort.points.groupby("study_id")))
        empty = self.cohort.points.iloc[:0]
        for study_id in map(int, self.cohort.study_ids):
            self.targets[study_id] = study_targets(
                self.cache.study(study_id), grouped.get(study_id, empty), self.points_use
            )

    @property
    def out(self) -> Path:
        """The run folder's path."""
        return self.folder.path

    def seed_of(self, stage: str) -> int:
        """The seed of a stage's fits."""
        return self.other_seeds.get(stage, self.seed)

    def labels(self) -> dict[int, np.ndarray]:
        """Labels (25,) by study."""
        return {int(s): row for s, row in zip(self.cohort.study_ids, self.cohort.labels, strict=True)}

    def full_fits(self) -> list[int]:
        """The fits on all data of this call."""
        return [fold for fold in self.use_folds if is_full(fold)]

    def all_folds(self) -> list[int]:
        """Every fold that holds out studies, whether it is of this call or not."""
        return sorted(set(self.fold_of.values()))

    def out_of_fold(self, stage: str, table: str = "oof") -> Path:
        """Path of an earlier stage's table, once no row of it is known to leak; see ``RunFolder.out_of_fold``."""
        return self.folder.out_of_fold(stage, table, self.folds)

    def held_out_studies(self, fold: int, title: str, stages: Iterable[str]) -> Iterable[int]:
        """This process's share of the studies that a fold holds out, until the time is up; says how far it has come.

        Args:
            fold: a fit on all data holds out none.
            title: of what is done with them.
            stages: those whose weights will predict the studies.

        Raises:
            LeakError: the weights of one of the stages have seen one of the studies.
        """
        ids = [] if is_full(fold) else sorted(k for k, held in self.fold_of.items() if held == fold)
        for stage in stages if ids else ():
            self.folder.check_unseen(stage, fold, ids)
        mine = ids[self.distributed.rank :: self.distributed.world]
        shown = Progress(
            len(mine), "study", title=f"{title} (out of fold {fold})", is_shown=self.distributed.is_main, is_part=True,
            has_bar=self.loop.get("progress", True),
        )  # fmt: skip
        return until_time_is_up(shown.each(mine), is_one_of_many=self.distributed.world > 1)

    def join_outputs(self, outputs: dict[int, T], write: Callable[[dict[int, T]], None]) -> None:
        """Join the processes' outputs by study; the main process writes them before any goes on to read."""
        every = joined(self.distributed, outputs, is_cut=was_cut())
        self.distributed.on_main(lambda: write(dict(sorted(every.items()))))


def joined(distributed: Distributed, outputs: dict[int, T], *, is_cut: bool) -> dict[int, T]:
    """The outputs of every process by study, on each of them.

    Args:
        distributed: this process and its peers.
        outputs: of its share.
        is_cut: this process was out of time before it had all of its share.

    Raises:
        TimeLimitReached: a process was.
    """
    parts = distributed.gather((outputs, is_cut))
    if any(was for _, was in parts):
        raise TimeLimitReached
    return {study_id: value for part, _ in parts for study_id, value in part.items()}
