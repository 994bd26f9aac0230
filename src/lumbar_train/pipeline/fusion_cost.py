"""What the stage ``fusion`` takes: passes of the frozen classifiers, and their features in memory for the head."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lumbar_train.data.folds import is_full
from lumbar_train.pipeline.cost import NetworkCost, meta_network
from lumbar_train.pipeline.counts import CohortCounts, classifier_images
from lumbar_train.recipes import Recipe
from lumbar_train.stages.fused_recipe import head_config, members_of

_LEVELS, _PLACES, _HALF = 5, 3, 2  # levels of a study, rows of a level's features, bytes of a number
_BACKWARD = 3  # a training step's operations, as a multiple of the forward pass


@dataclass(frozen=True)
class FusionCost:
    """All fits of a run's fusion together.

    Attributes:
        samples: shown studies of an epoch of a fit on all data.
        steps: optimiser steps of all fits.
        head: of the network that is fitted; its memory is that of all features.
        sample_flops: of one shown study: each classifier once, and the head in every epoch.
        flops: of all fits, the passes over held-out studies included.
        study_flops: that the head of one fit adds to the prediction of a study.
    """

    samples: int
    steps: int
    head: NetworkCost
    sample_flops: float
    flops: float
    study_flops: float


def fusion_cost(
    recipe: Recipe, costs: Mapping[str, NetworkCost], counts: CohortCounts, folds: Iterable[int]
) -> FusionCost:
    """Count the fusion of a recipe that has one.

    Args:
        recipe: of the run.
        costs: of its classifiers.
        counts: of the cohort.
        folds: that it is fitted on.
    """
    settings, config = recipe.fusion, head_config(recipe)
    assert settings is not None
    parameters = sum(p.numel() for p in meta_network(config).parameters())
    forward = 2.0 * parameters * _LEVELS
    once = held_out = 0.0
    for name in members_of(recipe):
        network = recipe.stages[name].network
        once += costs[name].forward_flops * float(counts.images(network).mean()) * _LEVELS
        held_out += costs[name].forward_flops * classifier_images(network, counts)
    samples = counts.studies * settings.views
    each = once + _BACKWARD * forward * settings.epochs
    steps, flops = 0, 0.0
    for fold in folds:
        share = 1.0 if is_full(fold) else 1 - 1 / recipe.n_folds
        steps += math.ceil(share * samples / settings.batch) * settings.epochs
        flops += share * samples * each + (1 - share) * counts.studies * held_out
    features = 2.0 * samples * _LEVELS * _PLACES * sum(config.widths) * _HALF  # the views, and all of them joined
    head = NetworkCost(parameters, features, 0.0, forward, _BACKWARD * forward)
    return FusionCost(samples, steps, head, each, flops, 2 * forward)
