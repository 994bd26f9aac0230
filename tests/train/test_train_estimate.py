"""The time that a run is said to take counts the fits that the line counts, those that soften labels included."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

import train_tiny
from lumbar_train.data.tables import read_cohort
from lumbar_train.engine.distributed import Distributed
from lumbar_train.pipeline import execute, first_estimate
from lumbar_train.pipeline.machines import T4
from lumbar_train.pipeline.options import TrainOptions
from lumbar_train.pipeline.plan import plan_training
from lumbar_train.recipes import RECIPES
from lumbar_train.stages.ahead import Ahead
from lumbar_train.stages.fits import METRIC, epochs_after
from lumbar_train.stages.pseudo import PseudoConfig, part_suffix
from lumbar_train.stages.registry import stage_by_name

NAMES = ("axial_all-pseudo", "axial_all")


@pytest.fixture
def run(tiny_cohort, monkeypatch):
    """A run of which nothing is done, whose stages do nothing; long enough for its operations to be counted."""
    tiny = train_tiny.tiny()
    stage = replace(tiny.stages["axial_all"], fit=replace(tiny.stages["axial_all"].fit, epochs=100, metric_epochs=10))
    some = {"axial_all": stage, "aggregator": tiny.stages["aggregator"]}
    recipe = replace(tiny, stages=some, pseudo=PseudoConfig(parts=2))
    monkeypatch.setitem(RECIPES, "tiny", lambda: recipe)
    for name in ("_check", "forget"):
        monkeypatch.setattr(execute, name, lambda *_: None)
    monkeypatch.setattr(first_estimate, "machine_here", lambda *_: T4)
    return SimpleNamespace(
        cohort=read_cohort(tiny_cohort, check_images=False), recipe=recipe, distributed=Distributed(), devices=(),
        use_folds=[-1, 0, 1], resume=False, loop={}, ahead=Ahead(),
    )  # fmt: skip


def test_the_first_line_has_the_operations_of_the_plan(run, tiny_cohort, tmp_path, monkeypatch, capsys):
    operations = []
    monkeypatch.setattr(execute, "_run_stage", lambda *_: None)
    monkeypatch.setattr(execute, "expected_s", lambda run, count, jobs: operations.append(count) or 60.0)
    execute.execute(run, NAMES)
    assert "9 fits of 2 stages" in capsys.readouterr().out  # two parts and one fit, on both folds and all data
    options = TrainOptions(data=tiny_cohort, out=tmp_path, recipe="tiny", stages=NAMES)
    assert operations == pytest.approx([plan_training(options, machines=(T4,)).flops], rel=0.02)


def test_every_fit_knows_what_comes_after_it(run, monkeypatch):
    beyond = {}
    monkeypatch.setattr(execute, "run_on_fold", lambda run, stage, fold: beyond.update({fold: run.loop.copy()}))
    costs = {("axial_all-pseudo", fold): 200.0 for fold in run.use_folds}
    run.ahead = Ahead(costs, later=100.0)
    for fold in run.use_folds:
        execute.work(run, "axial_all-pseudo", fold)
    # Each takes 200 epochs in both parts together
    assert [beyond[fold]["epochs_beyond"] for fold in run.use_folds] == [500.0, 300.0, 100.0]
    assert run.loop == {}


def test_a_fit_is_followed_by_the_other_parts_and_by_the_round_on_the_metric(run):
    softened, last = (stage_by_name(name, run.recipe) for name in NAMES)
    assert [epochs_after(run.recipe, softened, 0, part_suffix(k)) for k in range(2)] == [100, 0]
    assert [epochs_after(run.recipe, last, 0, suffix) for suffix in ("", METRIC)] == [10, 0]
