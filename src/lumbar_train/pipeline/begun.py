"""Which fits of a run have begun, as its folder tells: these go on as they are, the others follow the call at hand."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from lumbar_train.data.folds import FULL
from lumbar_train.outputs.run_folder import RunFolder
from lumbar_train.recipes import Recipe
from lumbar_train.stages.fits import fits_of
from lumbar_train.stages.registry import stages_of
from lumbar_train.stages.stage import Stage


def begun_folds(stage: Path) -> list[int]:
    """Of the two kinds of fits (a fold: 0, all data) those that a stage has begun; ``stage`` is its folder."""
    marks = [*stage.glob("*.safetensors"), *(path.parent for path in stage.glob("*/checkpoint.pt"))]
    marks += [path.parent for path in stage.glob("*/fit.json")]
    return sorted({FULL if path.name.startswith("full") else 0 for path in marks})


def begun_entries(run: Path, recipe: Recipe) -> set[str]:
    """The entries of a recipe of which a fit has begun; a classifier's rounds share one."""
    return {stage.recipe_name or stage.name for stage in stages_of(recipe) if begun_folds(run / stage.name)}


def entries_to_begin(
    runs: Collection[RunFolder], recipe: Recipe, stages: Iterable[Stage], use_folds: Iterable[int]
) -> set[str]:
    """The entries of a recipe of which a fit is still to begin; second rounds, which go on from a first, do not count.

    Args:
        runs: folders; what has begun in any of them has begun.
        recipe: of the run.
        stages: that are asked for.
        use_folds: of the call.
    """
    folds = list(use_folds)
    return {
        stage.recipe_name or stage.name
        for stage in stages
        for fold in stage.folds(folds)
        for fit in fits_of(recipe, stage, fold)
        if not fit.is_metric and not any(run.has_begun(stage.name, fold, fit.suffix) for run in runs)
    }
