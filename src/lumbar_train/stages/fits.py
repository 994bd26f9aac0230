"""The fits that a stage makes on a fold: one, one with a second round, or one for each part of the training studies."""

from __future__ import annotations

from dataclasses import dataclass

from lumbar.config import CLASSIFIERS
from lumbar_train.data.folds import fold_name
from lumbar_train.recipes import Recipe
from lumbar_train.stages.pseudo import PSEUDO, part_suffix
from lumbar_train.stages.stage import Stage

METRIC = "-metric"  # ends the name of the folder of a classifier's second round, on the metric itself


@dataclass(frozen=True)
class FitOf:
    """One fit of a stage on a fold.

    Attributes:
        suffix: of its folder, after the fold's name.
        epochs: of it.
        share: of the fold's training studies that it learns from.
        is_metric: the samples are whole studies.
    """

    suffix: str
    epochs: int
    share: float = 1.0
    is_metric: bool = False

    def folder(self, stage: str, fold: int) -> str:
        """Its folder inside the run folder."""
        return f"{stage}/{fold_name(fold)}{self.suffix}"


def fits_of(recipe: Recipe, stage: Stage, fold: int) -> list[FitOf]:
    """The fits of a stage on a fold in their order; none for a stage that fits no network in the training loop."""
    if stage.name.endswith(PSEUDO) and recipe.pseudo is not None:
        epochs, parts = stage.recipe_of(recipe).for_fold(fold).fit.epochs, recipe.pseudo.parts
        return [FitOf(part_suffix(k), epochs, 1 - 1 / parts) for k in range(parts)]
    if stage.fitted is None:
        return []
    fit = stage.recipe_of(recipe).for_fold(fold).fit
    has_second = fit.metric_epochs and stage.recipe_name in CLASSIFIERS
    second = [FitOf(METRIC, fit.metric_epochs, is_metric=True)] if has_second else []
    return [FitOf("", fit.epochs), *second]


def epochs_after(recipe: Recipe, stage: Stage, fold: int, suffix: str) -> int:
    """Epochs of the fits of a stage on a fold that follow the one of a suffix."""
    fits = fits_of(recipe, stage, fold)
    place = next((k for k, fit in enumerate(fits) if fit.suffix == suffix), len(fits))
    return sum(fit.epochs for fit in fits[place + 1 :])
