"""The stages of a run, in their order: one table, from which all that walks over stages is derived.

A new stage is one row here; ``docs/add-a-stage.md`` goes through an example.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from lumbar.config import CLASSIFIERS, FUSION
from lumbar.errors import CohortError
from lumbar.stages.series_contrast import STAGE as SERIES_CONTRAST
from lumbar_train.outputs.run_folder import RunFolder
from lumbar_train.recipes import Recipe
from lumbar_train.stages import contrast, denoise
from lumbar_train.stages import localisers as places
from lumbar_train.stages.aggregate_folds import run_aggregator
from lumbar_train.stages.classifiers import (
    LOCALISE_TABLES,
    crops_data,
    find_suspect_labels,
    logits_of,
    predict_training_studies,
    write_logits,
)
from lumbar_train.stages.denoise import FIRST
from lumbar_train.stages.fuse_folds import fuse_fold
from lumbar_train.stages.localisers import LOCALISE, LOCALISERS
from lumbar_train.stages.losses import graded_loss, slice_role_loss
from lumbar_train.stages.pseudo import PSEUDO, predictions_path
from lumbar_train.stages.stage import Fitted, Need, Predicted, Stage, in_every_recipe


def _is_denoised(recipe: Recipe) -> bool:
    return recipe.denoise is not None


def _is_softened(recipe: Recipe) -> bool:
    return recipe.pseudo is not None


def _is_fused(recipe: Recipe) -> bool:
    return recipe.fusion is not None


_SOFTENED = tuple(Need(f"{name}{PSEUDO}", "the same fold, or all data") for name in CLASSIFIERS)


def _predictor(name: str) -> Stage:
    """The row that predicts a classifier's training studies, which softens the labels of its last round."""
    return Stage(
        f"{name}{PSEUDO}",
        "predicts the studies that a fit learns from, by networks that saw neither them nor the fold",
        needs=(Need(LOCALISE, "all folds"), Need(denoise.NAME, "all folds at once")),
        on_fold=predict_training_studies,
        leaves=lambda run, fold: predictions_path(run, name, fold),
        runs_on="every fold, once on all data",
        recipe_name=name,
        options=("augment", "mixing"),
        is_part_of=_is_softened,
    )


def _classifier(name: str, does: str, *, is_first_round: bool = False) -> Stage:
    """One classifier's row; the first round of a recipe with denoising is a stage of its own."""
    stage = f"{name}{FIRST}" if is_first_round else name
    points = Need(LOCALISE, "all folds")  # the fold that is held out is not trained on, but predicted
    return Stage(
        stage,
        does,
        needs=(points,) if is_first_round else (points, Need(denoise.NAME, "all folds at once"), *_SOFTENED),
        fitted=Fitted(partial(crops_data, suffix=FIRST if is_first_round else ""), lambda config: graded_loss),
        predicted=Predicted(logits_of, partial(write_logits, stage=stage)),
        tables=("oof",),
        runs_on="held-out folds" if is_first_round else "every fold",
        recipe_name=name,
        options=("augment", "mixing"),
        is_exported=not is_first_round,
        is_part_of=_is_denoised if is_first_round else in_every_recipe,
    )


_GRADES = {
    "sagittal_classifier": "grades canal and foramina on sagittal crops",
    "axial_subarticular": "grades the recesses on axial crops",
    "axial_all": "grades all conditions on axial crops",
}

STAGES: tuple[Stage, ...] = (
    Stage(
        "sagittal_xy",
        "finds canal and foraminal points on sagittal slices",
        fitted=Fitted(places.sagittal_xy_data, places.sagittal_xy_loss),
        predicted=Predicted(places.canal_points, places.write_canal_points),
        tables=("oof",),
        is_exported=True,
    ),
    Stage(
        "sagittal_z",
        "tells which sagittal slices show canal and foramina",
        needs=(Need("sagittal_xy", "the other folds"),),
        fitted=Fitted(places.sagittal_z_data, lambda config: slice_role_loss),
        is_exported=True,
    ),
    Stage(
        "axial_xy",
        "finds the two subarticular points on axial slices",
        fitted=Fitted(places.axial_xy_data, places.axial_xy_loss),
        is_exported=True,
    ),
    Stage(
        LOCALISE,
        "localises held-out studies by the three networks before it",
        needs=tuple(Need(name, "the same fold") for name in LOCALISERS),
        predicted=Predicted(places.localise_studies, places.write_all_points, places.load_localisers),
        tables=LOCALISE_TABLES,
        runs_on="held-out folds",
    ),
    *(_classifier(name, f"{_GRADES[name]}, on all labels", is_first_round=True) for name in CLASSIFIERS),
    Stage(
        denoise.NAME,
        "finds the labels that the first round contradicts",
        needs=tuple(Need(f"{name}{FIRST}", "all folds") for name in CLASSIFIERS),
        action=find_suspect_labels,
        tables=("suspect_labels",),
        runs_on="all folds at once",
        is_part_of=_is_denoised,
    ),
    *(_predictor(name) for name in CLASSIFIERS),
    *(_classifier(name, _GRADES[name]) for name in CLASSIFIERS),
    Stage(
        FUSION,
        "grades all conditions on the features of all classifiers of the fold, which stay as they are",
        needs=(Need(LOCALISE, "all folds"), *(Need(name, "the same fold") for name in CLASSIFIERS)),
        on_fold=fuse_fold,
        leaves=lambda run, fold: RunFolder(run).weights(FUSION, fold),
        tables=("oof",),
        options=(),
        is_exported=True,
        is_part_of=_is_fused,
    ),
    Stage(
        "aggregator",
        "joins the classifiers' logits",
        needs=tuple(Need(name, "all folds") for name in (*CLASSIFIERS, FUSION)),
        action=run_aggregator,
        tables=("oof",),
        runs_on="all folds at once",
        options=(),
        is_exported=True,
    ),
    Stage(
        SERIES_CONTRAST,
        "tells T1, T2 and STIR by images, for series whose headers do not",
        fitted=Fitted(contrast.contrast_data, lambda config: contrast.contrast_loss),
        runs_on="fits that ship",
        is_exported=True,
        is_part_of=contrast.has_contrast,
    ),
)


def stages_of(recipe: Recipe) -> tuple[Stage, ...]:
    """The stages of a recipe, in their order."""
    return tuple(stage.of_recipe(recipe) for stage in STAGES if stage.is_part_of(recipe))


def stage_by_name(name: str, recipe: Recipe | None = None) -> Stage:
    """A stage of the table, as a recipe has it where one is given.

    Raises:
        CohortError: there is none of that name.
    """
    for stage in STAGES:
        if stage.name == name:
            return stage if recipe is None else stage.of_recipe(recipe)
    raise CohortError(f"stage: found {name!r}, expected one of {', '.join(stage.name for stage in STAGES)}")


def chosen_stages(recipe: Recipe, names: Iterable[str] | None) -> list[Stage]:
    """The stages of a recipe that are asked for (None: all), in their order whatever the order of the names.

    Raises:
        CohortError: the recipe has no stage of a name.
    """
    stages = stages_of(recipe)
    wanted = {stage.name for stage in stages} if names is None else set(names)
    if not wanted:
        raise CohortError("--stages: found none, expected at least one, or all by leaving it out")
    if unknown := sorted(wanted - {stage.name for stage in stages}):
        known = ", ".join(stage.name for stage in stages)
        raise CohortError(f"--stages: found {', '.join(unknown)}, expected of {known}")
    return [stage for stage in stages if stage.name in wanted]
