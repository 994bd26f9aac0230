"""The table of stages: what is derived from it, and that it agrees with the kernel and the recipes."""

from __future__ import annotations

import pytest

from lumbar.config import FUSION, OPTIONAL_STAGES
from lumbar.config import STAGES as SHIPPED
from lumbar.errors import CohortError
from lumbar_train.data.folds import FULL
from lumbar_train.recipes import RECIPES, recipe_by_name
from lumbar_train.stages.registry import STAGES, chosen_stages, stage_by_name, stages_of
from lumbar_train.stages.stage import Need, Stage


def names(stages) -> list[str]:
    return [stage.name for stage in stages]


def test_what_ships_is_what_the_kernel_expects_in_its_order():
    exported = [stage.name for stage in STAGES if stage.is_exported]
    assert exported.pop(exported.index("aggregator") - 1) == FUSION  # of a recipe that has one, where it helps
    assert tuple(exported) == (*SHIPPED, *OPTIONAL_STAGES)


@pytest.mark.parametrize("recipe", ["demo", "model2", "strong"])
def test_a_recipe_has_an_entry_for_each_network_and_no_other(recipe):
    recipe = RECIPES[recipe]()
    stages = stages_of(recipe)
    fitted = {stage.recipe_name or stage.name for stage in stages if stage.fitted or stage.name == "aggregator"}
    assert fitted == set(recipe.stages)
    for stage in stages:
        if stage.fitted:
            assert callable(stage.fitted.loss(stage.recipe_of(recipe).network))


def test_every_stage_runs_in_one_way_and_needs_only_earlier_ones():
    assert len(set(names(STAGES))) == len(STAGES)
    for k, stage in enumerate(STAGES):
        assert {need.stage for need in stage.needs} <= set(names(STAGES[:k])), stage.name
        assert (stage.action is not None) == (stage.runs_on == "all folds at once"), stage.name
        trains_or_predicts = stage.fitted is not None or stage.predicted is not None
        assert [trains_or_predicts, stage.action is not None, stage.on_fold is not None].count(True) == 1, stage.name
        assert (stage.on_fold is not None) == (stage.leaves is not None), stage.name
        leaves_a_table = stage.predicted is not None or stage.action is not None or stage.name == FUSION
        assert bool(stage.tables) == leaves_a_table, stage.name
        if stage.fitted is None and stage.predicted is not None:
            assert stage.predicted.load is not None, stage.name


def test_a_stage_that_is_needed_leaves_a_table_or_weights():
    for stage in STAGES:
        for need in stage.needs:
            other = stage_by_name(need.stage)
            assert other.tables or ((other.fitted or other.leaves) and need.folds.startswith("the same fold")), need


def test_denoising_and_softened_labels_add_rounds_of_the_classifiers():
    plain, denoised = stages_of(recipe_by_name("model2")), stages_of(recipe_by_name("strong"))
    added = [name for name in names(denoised) if name not in names(plain)]
    classifiers = ["sagittal_classifier", "axial_subarticular", "axial_all"]
    first, softened = [f"{name}-first" for name in classifiers], [f"{name}-pseudo" for name in classifiers]
    assert sorted(added) == sorted([*first, *softened, "denoise"])
    assert names(denoised).index("denoise") < names(denoised).index("sagittal_classifier")
    for one, last in zip(softened, classifiers, strict=True):
        assert names(denoised).index(one) < names(denoised).index(last)


@pytest.mark.parametrize(
    ("folds", "pairs"),
    [
        ("the same fold", {("s", 1)}),
        ("the other folds", {("s", 0), ("s", 2)}),
        ("all folds", {("s", 0), ("s", 1), ("s", 2)}),
        ("all folds at once", {("s", FULL)}),
    ],
)
def test_needs_become_stages_on_folds(folds, pairs):
    assert Need("s", folds).pairs(1, (0, 1, 2)) == pairs


def test_held_out_studies_are_predicted_by_own_weights_or_by_those_of_the_same_fold():
    assert stage_by_name("axial_all").predictors() == ["axial_all"]
    assert stage_by_name("localise").predictors() == ["sagittal_xy", "sagittal_z", "axial_xy"]


def test_a_stage_runs_on_the_folds_that_it_is_for():
    assert Stage("s", "").folds([0, FULL, -2, 1]) == [-2, FULL, 0, 1]
    assert Stage("s", "", runs_on="held-out folds").folds([1, FULL, 0]) == [0, 1]
    assert Stage("s", "", runs_on="all folds at once").folds([0]) == [FULL]


def test_stages_are_chosen_by_name_and_run_in_the_tables_order():
    recipe = recipe_by_name("demo")
    assert names(chosen_stages(recipe, ["axial_xy", "sagittal_xy"])) == ["sagittal_xy", "axial_xy"]
    assert chosen_stages(recipe, None) == list(stages_of(recipe))
    with pytest.raises(CohortError, match=r"found axial, denoise, expected of .*sagittal_xy"):
        chosen_stages(recipe, ["denoise", "axial"])
    with pytest.raises(CohortError, match=r"stage: found 'axial', expected one of .*sagittal_xy"):
        stage_by_name("axial")
