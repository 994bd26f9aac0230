"""``train --plan``: what a run would take, from tables and counts alone."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import train_tiny
from lumbar.competitions.lumbar_spine import COMPETITION
from lumbar.config import (
    AggregatorConfig,
    AxialClassifierConfig,
    AxialRegressionConfig,
    BackboneConfig,
    LevelSequenceConfig,
    SagittalClassifierConfig,
    SliceRoleConfig,
)
from lumbar_train.data.tables import read_cohort
from lumbar_train.engine.distributed import Distributed
from lumbar_train.errors import TrainingError
from lumbar_train.pipeline import machines, plan
from lumbar_train.pipeline.cost import aggregator_loss, network_cost
from lumbar_train.pipeline.counts import count_cohort, largest_batch
from lumbar_train.pipeline.machines import A100, T4, parse_memory
from lumbar_train.pipeline.options import TrainOptions
from lumbar_train.pipeline.plan import plan_training
from lumbar_train.pipeline.prepare import chosen_recipe
from lumbar_train.pipeline.split import choose_split, cost_of, with_split
from lumbar_train.recipes import RECIPES, Fit, StageRecipe
from lumbar_train.stages.losses import axial_regression_loss, graded_loss, slice_role_loss
from lumbar_train.stages.pseudo import PseudoConfig

SMALL = BackboneConfig("resnet10t", channels=(8, 8, 8, 16), stem_width=16)


FUSION = ("recipe.fusion.views=3", "recipe.fusion.epochs=5", "recipe.fusion.batch=8")


@pytest.fixture(scope="module")
def tiny_plan(tiny_cohort, tmp_path_factory):
    out = tmp_path_factory.mktemp("plan") / "run"
    options = TrainOptions(data=tiny_cohort, out=out, recipe="tiny", device="cpu", overrides=FUSION)
    made = plan_training(options, machines=(T4, A100))
    assert not out.exists()
    return made


def test_a_plan_has_a_row_for_each_stage_with_its_samples_and_steps(tiny_plan):
    rows = {row.name: row for row in tiny_plan.rows}
    assert list(rows) == [
        "sagittal_xy", "sagittal_z", "axial_xy", "localise", "sagittal_classifier", "axial_subarticular", "axial_all",
        "fusion", "aggregator",
    ]  # fmt: skip
    assert rows["sagittal_xy"].samples == 8 * 6
    assert rows["sagittal_z"].samples == 8 * 2
    assert rows["axial_xy"].samples == 8 * 5
    assert rows["axial_all"].samples == 8 * 5
    # batch 4, 8 epochs: 12 steps on all data, 6 on either half
    assert rows["sagittal_xy"].steps == 8 * (12 + 6 + 6)
    assert rows["localise"].cost is None
    assert tiny_plan.flops == sum(row.flops for row in tiny_plan.rows) > 0


def test_a_fusion_is_counted_with_its_passes_and_its_memory(tiny_plan):
    rows = {row.name: row for row in tiny_plan.rows}
    row = rows["fusion"]
    assert row.samples == 8 * 3
    assert row.steps == 5 * (3 + 2 + 2)  # 24 shown studies in eights, and half as many on either fold
    assert row.activation_bytes == 2 * 24 * 5 * 3 * (3 * 16) * 2  # numbers of 2 bytes, joined once
    images = 5 * (9 + 3 + 3)  # of one shown study
    assert row.sample_flops > images * rows["axial_subarticular"].cost.forward_flops
    assert row.flops > row.sample_flops * (24 + 12 + 12)  # the passes over studies held out besides
    assert any("of features in the machine's own memory" in line for line in tiny_plan.lines())


def test_fits_that_soften_labels_and_rounds_on_the_metric_are_counted(tiny_cohort, tmp_path, monkeypatch):
    tiny = train_tiny.tiny()
    stage = replace(tiny.stages["axial_all"], fit=replace(tiny.stages["axial_all"].fit, metric_epochs=3))
    some = {"axial_all": stage, "aggregator": tiny.stages["aggregator"]}
    monkeypatch.setitem(RECIPES, "tiny", lambda: replace(tiny, stages=some, pseudo=PseudoConfig(parts=2)))
    options = TrainOptions(data=tiny_cohort, out=tmp_path / "run", recipe="tiny", device="cpu")
    rows = {row.name: row for row in plan_training(options, machines=(T4,)).rows}
    # 40 samples, batches of 4, 2 epochs: halves of all data, and of both folds' halves of it
    soft = rows["axial_all-pseudo"]
    assert soft.steps == 2 * 2 * (5 + 3 + 3)
    assert soft.flops == pytest.approx(soft.sample_flops * 2 * (2 * 20 + 4 * 10))
    # then 3 epochs of studies with five samples each, one a step
    last = rows["axial_all"]
    assert last.steps == 2 * (10 + 5 + 5) + 3 * (8 + 4 + 4)
    assert last.flops == pytest.approx(last.sample_flops * (2 * 80 + 3 * 16 * 5))


def test_the_prediction_takes_as_long_as_the_fits_that_ship(tiny_cohort, tmp_path, tiny_plan):
    options = TrainOptions(data=tiny_cohort, out=tmp_path, recipe="tiny", device="cpu", full_seeds=3, ship="all")
    recipe, _ = chosen_recipe(options)
    assert sum(plan.ships(recipe, fold) for fold in plan.folds_of(options, recipe)) == 5
    assert [plan.ships(replace(recipe, export=which), 0) for which in ("full", "folds", "all")] == [False, True, True]
    assert tiny_plan.n_ships == 1


def test_the_lines_hold_every_stage_the_whole_and_the_prediction(tiny_plan):
    text = "\n".join(tiny_plan.lines())
    for row in tiny_plan.rows:
        assert row.name in text
    for word in ("whole", "h T4", "h A100", "disk", "cache", "prediction", f"{COMPETITION.hidden_studies} studies"):
        assert word in text


def test_the_command_prints_the_plan_and_decodes_nothing(tiny_cohort, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plan, "measured_here", lambda device, backbone: replace(T4, name="here"))
    monkeypatch.setattr("lumbar_train.pipeline.prepare.build_cache", lambda *a, **k: pytest.fail("decoded"))
    assert train_tiny.train(tiny_cohort, tmp_path / "run", "--plan", "--memory", "16GB", "--stages", "axial_xy") == 0
    assert "h here" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_operations_are_those_of_the_layers():
    """A backward pass computes two gradients, each as dear as the forward pass, also of grouped convolutions."""
    config = AxialRegressionConfig(BackboneConfig("mobilenetv2_050"), size=64)
    cost = network_cost(config, axial_regression_loss, slices=1)
    assert cost.training_flops == pytest.approx(3 * cost.forward_flops, rel=0.05)


def costs_with(*variants: dict[str, bool]):
    config = SliceRoleConfig(BackboneConfig("resnet26"), size=64, hidden=8)
    return [network_cost(config, slice_role_loss, slices=5, **more) for more in variants]


def test_memory_of_an_image_halves_in_half_precision():
    usual, half = costs_with({}, {"is_half": True})
    assert usual.image_bytes > 64 * 64 * 4  # more than the image itself
    assert half.image_bytes == pytest.approx(usual.image_bytes / 2, rel=0.1)


@pytest.mark.parametrize("kind", [SagittalClassifierConfig, AxialClassifierConfig])
def test_a_network_over_whole_series_is_counted_in_half_precision_too(kind):
    config = kind(SMALL, size=32, max_slices=8, hidden=8, level_embedding=4, position_embedding=4)
    usual, half = (network_cost(config, graded_loss, slices=4, is_half=is_half) for is_half in (False, True))
    assert half.training_flops == usual.training_flops > 0
    assert half.image_bytes < usual.image_bytes


@pytest.mark.parametrize("recipe", ["demo", "model2", "strong"])
@pytest.mark.parametrize("words", [{"amp": "off"}, {"amp": "bf16"}, {"amp": "fp16", "memory": "16GB"}])
def test_every_recipe_is_planned_in_every_precision(tiny_cohort, tmp_path, recipe, words):
    small = ("*.size=32",) if recipe == "demo" else ("*.size=32", "*.max_slices=4")
    more = {"backbone": "resnet10t", "device": "cpu", "stages": ("aggregator",), "overrides": small}
    options = TrainOptions(data=tiny_cohort, out=tmp_path, recipe=recipe, **more, **words)
    made = plan_training(options, machines=(T4,))
    assert [row.name for row in made.rows] == ["aggregator"]
    assert made.study_flops > 0


@pytest.mark.parametrize("kind", [AggregatorConfig, LevelSequenceConfig])
def test_the_aggregator_is_counted_in_float32_as_it_is_fitted(kind):
    usual, half = (
        network_cost(kind(hidden=4), aggregator_loss, slices=1, is_half=is_half) for is_half in (False, True)
    )
    assert half == usual


def test_checkpointing_costs_another_pass_forward():
    usual, again = costs_with({}, {"is_checkpointed": True})
    assert 1.2 * usual.training_flops < again.training_flops < 1.5 * usual.training_flops


def test_checkpointing_is_counted_as_less_memory():
    usual, again = costs_with({}, {"is_checkpointed": True})
    assert again.image_bytes < 0.7 * usual.image_bytes


def stage_of(batch: int, **more) -> StageRecipe:
    return StageRecipe(AxialRegressionConfig(BackboneConfig("resnet26"), size=64), Fit(1, 1e-3, batch, **more))


def test_a_batch_is_cut_as_memory_asks_and_checkpointed_when_nothing_else_fits(tiny_cohort):
    counts = count_cohort(read_cohort(tiny_cohort, check_images=False))
    stage = stage_of(8)
    cost = cost_of(stage, axial_regression_loss, counts, is_half=False)

    def split(memory: float):
        return choose_split(stage, cost, counts, memory, is_half=False, is_gpu=False)

    whole = split(1e12)
    assert (whole.micro_batch, whole.accumulate, whole.is_checkpointed, whole.fits) == (8, 1, False, True)
    cut = split(whole.need_bytes - 1)
    assert (cut.accumulate, cut.is_checkpointed, cut.fits) == (2, False, True)
    single = split(whole.need_bytes - 6.9 * cost(False).image_bytes)
    assert (single.micro_batch, single.accumulate, single.is_checkpointed) == (1, 8, False)
    assert split(single.need_bytes - 0.1 * cost(False).image_bytes).is_checkpointed
    assert not split(1e6).fits


def test_memory_is_that_of_a_batch_that_the_cohort_can_fill(tiny_plan):
    """The aggregator's batch asks for all studies, however many there are."""
    row = next(row for row in tiny_plan.rows if row.name == "aggregator")
    assert row.split is not None
    assert row.split.micro_batch == 8
    assert row.activation_bytes == pytest.approx(row.cost.activation_bytes(8))


def test_the_largest_part_of_series_of_different_length_is_found():
    images = np.array([10] * 30 + [40] * 3)
    assert largest_batch(np.array([7]), 6, 2, np.random.default_rng(0)) == 21
    assert 70 <= largest_batch(images, 6, 1, np.random.default_rng(0)) <= 150


@pytest.mark.parametrize(
    ("text", "n_bytes"), [("16GB", 16 * 10**9), ("14.5 GiB", int(14.5 * 2**30)), ("500M", 5 * 10**8), ("2048", 2048)]
)
def test_amounts_of_memory_are_read(text, n_bytes):
    assert parse_memory(text) == n_bytes


@pytest.mark.parametrize("text", ["", "much", "-3GB", "0", "12 parsecs"])
def test_another_text_for_memory_is_refused(text):
    with pytest.raises(TrainingError, match=r"--memory: found .*, expected an amount of memory"):
        parse_memory(text)


def cut_recipe(options: TrainOptions, device: str = "cpu"):
    recipe = replace(
        train_tiny.tiny(), stages={"axial_xy": stage_of(8), "aggregator": train_tiny.tiny().stages["aggregator"]}
    )
    cohort = read_cohort(options.data, check_images=False)
    return with_split(options, recipe, cohort, Distributed(device=torch.device(device))).stages["axial_xy"].fit


def test_training_takes_the_split_on_a_gpu_keeps_it_on_resume_and_leaves_cpus_alone(
    tiny_cohort, tmp_path, monkeypatch, capsys
):
    options = TrainOptions(data=tiny_cohort, out=tmp_path, recipe="tiny", stages=("axial_xy",))
    assert cut_recipe(options).accumulate == 1
    counts = count_cohort(read_cohort(tiny_cohort, check_images=False))
    cost = cost_of(stage_of(8), axial_regression_loss, counts, is_half=True)
    need = choose_split(stage_of(8), cost, counts, 1e15, is_half=True, is_gpu=True).need_bytes
    monkeypatch.setattr("lumbar_train.pipeline.split.free_memory", lambda device: need - 1)
    assert cut_recipe(options, "cuda").accumulate == 2
    assert "axial_xy: batch of 8 in 2 parts" in capsys.readouterr().out
    with pytest.raises(TrainingError, match=r"axial_xy: found 0.0 GiB of memory, expected about .* GiB for one sample"):
        cut_recipe(replace(options, memory="1MB"))
    (tmp_path / "recipe.json").write_text(
        json.dumps({"stages": {"axial_xy": {"fit": {"accumulate": 4, "checkpointing": True}}}})
    )
    kept = cut_recipe(replace(options, resume=True))
    assert (kept.accumulate, kept.checkpointing) == (4, True)
    kept = cut_recipe(replace(options, resume=True, overrides=("axial_xy.accumulate=1",)))
    assert (kept.accumulate, kept.checkpointing) == (1, True)


def test_a_run_notes_its_split(tiny_data, tmp_path):
    assert train_tiny.train(tiny_data, tmp_path / "run", "--stages", "axial_xy", "--set", "axial_xy.accumulate=2",
                            "--folds", "0") == 0  # fmt: skip
    fit = json.loads((tmp_path / "run/recipe.json").read_text())["stages"]["axial_xy"]["fit"]
    assert (fit["accumulate"], fit["checkpointing"]) == (2, False)


def test_this_machine_is_timed_and_other_work_on_it_changes_little(monkeypatch):
    hours = iter(range(0, 10**6, 3600))
    monkeypatch.setattr(machines.time, "perf_counter", lambda: float(next(hours)))  # others have the cores meanwhile
    n_threads = torch.get_num_threads()
    assert 1e8 < machines.measured_here(torch.device("cpu")).rate < 1e15
    assert torch.get_num_threads() == n_threads
