"""What a recipe with a fusion is made of: the classifiers that it reads, its head, and the aggregator that joins it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lumbar.config import FUSION, FusionConfig
from lumbar.stages.classifiers import feature_width
from lumbar_train.recipes import Recipe, StageRecipe
from lumbar_train.stages.fusion import read_decision


def members_of(recipe: Recipe) -> tuple[str, ...]:
    """The classifiers that the fusion reads: all that the recipe's aggregator joins."""
    return tuple(recipe.stages["aggregator"].network.models)


def head_config(recipe: Recipe) -> FusionConfig:
    """The head of a recipe that has a fusion."""
    assert recipe.fusion is not None
    members = members_of(recipe)
    networks = [recipe.stages[name].network for name in members]
    return FusionConfig(
        members,
        tuple(feature_width(network) for network in networks),
        recipe.fusion.hidden,
        recipe.fusion.dropout,
        all(network.share_sides for network in networks),
    )


def is_kept(run: Path, recipe: Recipe) -> bool:
    """Whether a run has a fusion that helps out of fold."""
    return recipe.fusion is not None and bool(read_decision(run).get("kept"))


def aggregator_of(run: Path, recipe: Recipe) -> StageRecipe:
    """The aggregator's entry of a recipe, with the fusion among its models where a run keeps it."""
    entry = recipe.stages["aggregator"]
    if not is_kept(run, recipe):
        return entry
    return replace(entry, network=replace(entry.network, models=(*members_of(recipe), FUSION)))
