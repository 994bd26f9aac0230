"""What a stage is: what it needs of earlier ones, what it trains on and how, what it leaves for later ones.

The stages themselves stand in ``lumbar_train.stages.registry``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from lumbar_train.data.folds import FULL, is_full
from lumbar_train.engine.optimisation import LossFunction
from lumbar_train.engine.sampling import Dataset
from lumbar_train.recipes import Recipe, StageRecipe
from lumbar_train.stages.context import RunContext

Pair = tuple[str, int]  # a stage on a fold
RunsOn = Literal[
    "every fold", "every fold, once on all data", "held-out folds", "all folds at once", "all data", "fits that ship"
]
NeededFolds = Literal[
    "the same fold", "the same fold, or all data", "the other folds", "all folds", "all folds at once"
]


@dataclass(frozen=True)
class Need:
    """An earlier stage whose outputs a stage learns from, or predicts from."""

    stage: str
    folds: NeededFolds

    def pairs(self, fold: int, folds: Sequence[int]) -> set[Pair]:
        """What must be done before the stage may run on ``fold``; ``folds`` are all that hold out studies."""
        needed: dict[str, Iterable[int]] = {
            "the same fold": (fold,),
            "the same fold, or all data": (FULL if is_full(fold) else fold,),
            "the other folds": [k for k in folds if k != fold],
            "all folds": folds,
            "all folds at once": (FULL,),
        }
        return {(self.stage, k) for k in needed[self.folds]}


class StageDataset(Dataset, Protocol):
    """A data set of the loop that says whose data it gives, which the guard against leaks asks."""

    @property
    def studies(self) -> set[int]:
        """Every study whose images or labels are given."""


@dataclass(frozen=True)
class Fitted:
    """How a stage's network is fitted on one fold.

    Attributes:
        dataset: ``dataset(run, stage recipe, study ids)``: the samples of these studies.
        loss: ``loss(network configuration)``: what is minimised.
    """

    dataset: Callable[[RunContext, StageRecipe, list[int]], StageDataset]
    loss: Callable[[Any], LossFunction]


@dataclass(frozen=True)
class Predicted:
    """How a stage's outputs for the studies of a held-out fold are made and written.

    Attributes:
        predict: ``predict(run, stage recipe, network, study ids)``: outputs by study.
        write: ``write(run, fold, outputs)``: leaves them as the stage's tables.
        load: ``load(run, fold)``: what takes the network's place for a stage that fits none.
    """

    predict: Callable[[RunContext, Any, Iterable[int]], dict[int, Any]]
    write: Callable[[RunContext, int, dict[int, Any]], None]
    load: Callable[[RunContext, int], Any] | None = None


def in_every_recipe(recipe: Recipe) -> bool:
    """Most stages are part of every recipe."""
    return True


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
        name: its folder in the run, and its name in ``--stages``.
        does: what it is for, in a few words.
        needs: earlier stages; those that the recipe leaves out are not waited for.
        fitted: how its network is fitted on each fold; None for a stage that fits none, or all at once.
        predicted: how it predicts the studies of a held-out fold; None where no later stage asks for that.
        action: what it does instead of both, once, with the outputs of all folds.
        on_fold: what it does instead of both, on each fold.
        leaves: the file in the run folder that says it is done on a fold, where neither weights nor tables do.
        tables: the tables that it leaves in its folder, without ``.parquet``.
        runs_on: the folds that it runs on; ``fits that ship`` for a stage whose outputs nothing in the run reads.
        recipe_name: the recipe's entry that holds its network, where that is not its own name.
        options: what of its recipe may be set beside ``network`` and ``fit``.
        is_exported: whether its networks ship.
        is_part_of: whether a recipe has this stage.
    """

    name: str
    does: str
    needs: tuple[Need, ...] = ()
    fitted: Fitted | None = None
    predicted: Predicted | None = None
    action: Callable[[RunContext], None] | None = None
    on_fold: Callable[[RunContext, Stage, int], None] | None = None
    leaves: Callable[[Path, int], Path] | None = None
    tables: tuple[str, ...] = ()
    runs_on: RunsOn = "every fold"
    recipe_name: str = ""
    options: tuple[str, ...] = ("augment",)
    is_exported: bool = False
    is_part_of: Callable[[Recipe], bool] = in_every_recipe

    def recipe_of(self, recipe: Recipe) -> StageRecipe:
        """The entry of a recipe that this stage is fitted by."""
        return recipe.stages[self.recipe_name or self.name]

    def folds(self, use_folds: Iterable[int]) -> list[int]:
        """Of the folds of a call those that this stage runs on, fits on all data first: they take longest."""
        if self.runs_on == "all folds at once":
            return [FULL]
        if self.runs_on == "every fold, once on all data":
            return sorted({FULL if is_full(k) else k for k in use_folds})
        if self.runs_on == "all data":
            return sorted(k for k in use_folds if is_full(k))
        return sorted(k for k in use_folds if self.runs_on != "held-out folds" or not is_full(k))

    def of_recipe(self, recipe: Recipe) -> Stage:
        """The stage as a recipe has it: what only ships is fitted on folds only where fits on folds ship."""
        if self.runs_on != "fits that ship":
            return self
        return replace(self, runs_on="all data" if recipe.export == "full" else "every fold")

    def predictors(self) -> list[str]:
        """The stages whose weights predict held-out studies here: its own, or those that it needs of the same fold."""
        return [self.name] if self.fitted else [need.stage for need in self.needs if need.folds == "the same fold"]
