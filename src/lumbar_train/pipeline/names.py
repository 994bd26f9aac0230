"""Names that are checked before anything heavy is imported; the tables that they come from need torch and pandas."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from lumbar.errors import CohortError
from lumbar.io.arguments import did_you_mean

AMP = ("auto", "off", "bf16", "fp16")
USES = ("beside", "instead")  # as data.external_points.USES
SHIP = ("full", "folds", "all")  # as overrides.with_overrides
RECIPES = ("demo", "model2", "strong")  # as recipes.RECIPES
STAGES = (  # as stages.registry.STAGES, without further rounds such as axial_all-first
    "sagittal_xy", "sagittal_z", "axial_xy", "localise", "denoise", "sagittal_classifier", "axial_subarticular",
    "axial_all", "fusion", "aggregator", "series_contrast",
)  # fmt: skip


def recipe_names() -> list[str]:
    """The recipes there are; a program that adds its own has imported their table, which then counts."""
    return sorted(_loaded("lumbar_train.recipes", "RECIPES") or RECIPES)


def check_recipe(name: str) -> None:
    """Refuse an unknown recipe.

    Raises:
        CohortError: the name, and the one that was probably meant.
    """
    names = recipe_names()
    if name not in names:
        hint = did_you_mean(name, names)
        raise CohortError(f"recipe {name!r}: unknown, expected one of {', '.join(names)}{hint}")


def check_stages(names: Iterable[str] | None) -> None:
    """Refuse names that are no stages of any recipe.

    Raises:
        CohortError: the name, and the one that was probably meant.
    """
    known = [stage.name for stage in _loaded("lumbar_train.stages.registry", "STAGES") or ()] or list(STAGES)
    for name in names or ():
        if name not in known and name.partition("-")[0] not in known:
            expected = f"expected of {', '.join(known)}{did_you_mean(name, known)}"
            raise CohortError(f"--stages: found {name}, {expected}")


def _loaded(module: str, table: str) -> Iterable[Any]:
    return getattr(sys.modules.get(module), table, ())
