"""What the aggregator learns from is what the kernel will show it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from lumbar.chains.main import predict_study
from lumbar.config import AggregatorConfig
from lumbar.workers.budget import Effort
from lumbar_train.recipes import Recipe, StageRecipe, recipe_by_name
from lumbar_train.stages.localisers import localise_studies
from stage_studies import localisation_of, study_of


def views_in_training(recipe: Recipe, monkeypatch) -> bool:
    """Whether out-of-fold localisation takes every view."""
    asked = []

    def localise(study, networks, **options):
        asked.append(options.get("augment", True))
        return localisation_of(study)

    monkeypatch.setattr("lumbar_train.stages.localisers.localise", localise)
    run = SimpleNamespace(recipe=recipe, cache=SimpleNamespace(study=lambda study_id: study_of()))
    localise_studies(run, None, [7])
    (view,) = asked
    return view


def views_in_the_kernel(monkeypatch) -> bool:
    class Enough(Exception):
        pass

    asked = []

    def localise(study, networks, **options):
        asked.append(options["augment"])
        raise Enough

    monkeypatch.setattr("lumbar.chains.main.localise", localise)
    with pytest.raises(Enough):
        predict_study(study_of(), None, np.full((25, 3), 1 / 3), Effort.FULL)
    return asked[0]


def test_confidence_is_learnt_from_the_views_that_the_kernel_takes(monkeypatch):
    recipe = recipe_by_name("strong")
    assert recipe.stages["aggregator"].network.confidence
    assert views_in_training(recipe, monkeypatch) is views_in_the_kernel(monkeypatch) is True


def test_without_confidence_one_view_is_enough(monkeypatch):
    stage = StageRecipe(AggregatorConfig(), recipe_by_name("demo").stages["aggregator"].fit)
    assert views_in_training(Recipe("some", stages={"aggregator": stage}), monkeypatch) is False
