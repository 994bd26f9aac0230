"""The stages that find places: what the localisers train on, and how they localise studies that they never saw."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from lumbar.config import HeatmapConfig, SagittalRegressionConfig
from lumbar.labels import SAGITTAL_T1, SAGITTAL_T2
from lumbar.models.inference import Networks
from lumbar.stages.heat import sagittal_heat
from lumbar.stages.localise import localise
from lumbar.stages.place import fuse_levels
from lumbar.stages.points import Localisation, Xyz
from lumbar_train.data.masks import MaskReader
from lumbar_train.engine.optimisation import LossFunction
from lumbar_train.outputs.store import levels_frame, read_levels, write_localisations, write_piece
from lumbar_train.recipes import StageRecipe
from lumbar_train.stages.context import RunContext
from lumbar_train.stages.fitting import load_network
from lumbar_train.stages.locate import AxialXY, SagittalRegression, SagittalXY, SliceRoles
from lumbar_train.stages.losses import axial_regression_loss, heatmap_loss, sagittal_regression_loss

LOCALISERS = ("sagittal_xy", "sagittal_z", "axial_xy")
LOCALISE = "localise"
_MIN_LEVELS = 3  # fewer canal points give no box around the levels


# Sagittal points


def sagittal_xy_data(run: RunContext, stage: StageRecipe, study_ids: list[int]) -> SagittalXY:
    """Slices of sagittal series with their points, for the kind of network that the recipe has."""
    targets = {k: run.targets[k] for k in study_ids}
    config, augment, repeats = stage.network, stage.augment, stage.fit.repeats
    if isinstance(config, SagittalRegressionConfig):
        return SagittalRegression(run.cache, targets, config, augment, repeats=repeats)
    masks = MaskReader(run.cohort.root)
    return SagittalXY(run.cache, targets, config, augment, repeats=repeats, masks=masks if masks.is_there else None)


def sagittal_xy_loss(config: Any) -> LossFunction:
    """Of heatmaps, or of coordinates."""
    return heatmap_loss if isinstance(config, HeatmapConfig) else sagittal_regression_loss


def canal_points(run: RunContext, network: nn.Module, study_ids: Iterable[int]) -> dict[int, dict[str, Xyz]]:
    """Canal points by level of each study, in patient space."""
    levels: dict[int, dict[str, Xyz]] = {}
    for study_id in study_ids:
        study, localisation = run.cache.study(study_id), Localisation()
        # one description is enough to place a box; localisation proper uses every series
        description = SAGITTAL_T2 if study.series[SAGITTAL_T2] else SAGITTAL_T1
        maps = [sagittal_heat(study, description, k, [network]) for k in range(len(study.series[description]))]
        if maps:
            fuse_levels(maps, localisation)
        levels[study_id] = localisation.levels_mm
    return levels


def write_canal_points(run: RunContext, fold: int, levels: dict[int, dict[str, Xyz]]) -> None:
    """Leave a fold's canal points as a table."""
    write_piece(run.out / "sagittal_xy", fold, levels_frame(levels, run.fold_of))


# Slice roles and axial points


def sagittal_z_data(run: RunContext, stage: StageRecipe, study_ids: list[int]) -> SliceRoles:
    """Sagittal series cut to the boxes around out-of-fold canal points."""
    levels = read_levels(run.out_of_fold("sagittal_xy"))
    usable = {k: v for k, v in levels.items() if len(v) >= _MIN_LEVELS}
    return SliceRoles(run.cache, {k: run.targets[k] for k in study_ids}, usable, stage.network, stage.augment)


def axial_xy_data(run: RunContext, stage: StageRecipe, study_ids: list[int]) -> AxialXY:
    """Labelled axial slices with their two points."""
    return AxialXY(run.cache, {k: run.targets[k] for k in study_ids}, stage.network, stage.augment)


def axial_xy_loss(config: Any) -> LossFunction:
    """Of heatmaps, or of coordinates."""
    return heatmap_loss if isinstance(config, HeatmapConfig) else axial_regression_loss


# Localisation proper


def load_localisers(run: RunContext, fold: int) -> Networks:
    """The three localisers that never saw a fold's studies."""
    return Networks({stage: [load_network(run, stage, fold)] for stage in LOCALISERS})


def localise_studies(run: RunContext, networks: Networks, study_ids: Iterable[int]) -> dict[int, Localisation]:
    """All points of each study.

    One view is a third of the time, and points as good as these are what classifiers should bear; but how sure
    localisation is, an aggregator must learn from the views that the kernel takes. Levels that were not seen stay out:
    where they are put says nothing of whether a label is right.
    """
    all_views = bool(run.recipe.stages["aggregator"].network.confidence)
    return {k: localise(run.cache.study(k), networks, augment=all_views, fill=False) for k in study_ids}


def write_all_points(run: RunContext, fold: int, localisations: dict[int, Localisation]) -> None:
    """Leave a fold's localisations as tables."""
    write_localisations(run.out / LOCALISE, localisations, run.fold_of, fold)
