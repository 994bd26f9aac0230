"""The held-out loss beside the training loss: shown, logged, and without any effect on what is trained."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import train_tiny
from lumbar_train.data.tables import read_cohort
from lumbar_train.engine.distributed import Distributed
from lumbar_train.engine.loop_config import LoopConfig
from lumbar_train.overrides import with_overrides
from lumbar_train.pipeline import first_estimate
from lumbar_train.pipeline.machines import T4
from lumbar_train.pipeline.options import TrainOptions
from lumbar_train.pipeline.plan import plan_training
from lumbar_train.stages import fitting, held_out
from lumbar_train.stages.registry import stage_by_name

SOME = ("--stages", "sagittal_xy,axial_xy", "--folds", "0,full", "--set", "*.epochs=2")


def test_every_epoch_has_a_held_out_loss_and_the_weights_are_those_without_it(
    tiny_cohort, tmp_path, monkeypatch, capsys
):
    assert train_tiny.train(tiny_cohort, tmp_path / "with", *SOME) == 0
    said = capsys.readouterr().out
    log = pd.read_csv(tmp_path / "with/sagittal_xy/fold0/log.csv")
    assert log["val_loss"].notna().tolist() == [True, True]
    assert "val_loss" not in pd.read_csv(tmp_path / "with/sagittal_xy/full/log.csv")
    assert said.count("axial_xy fold0, epoch ") == 2
    assert ", held out 0." in said
    assert "4 fits of 2 stages, 8 epochs in all, 1 fit at a time; every epoch's line tells" in said
    monkeypatch.setattr(fitting, "held_out_loss", lambda *_: None)
    assert train_tiny.train(tiny_cohort, tmp_path / "without", *SOME) == 0
    for name in ("sagittal_xy/fold0", "axial_xy/fold0", "axial_xy/full"):
        one, other = (load_file(tmp_path / run / f"{name}.safetensors") for run in ("with", "without"))
        assert all(torch.equal(one[key], other[key]) for key in one), name


class Numbers:
    """As many samples as asked for: sample k is k, and weighs 1 or, every third, 4."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def sample(self, index, rng):
        return float(index)

    def collate(self, samples):
        return {"value": torch.tensor(samples)}


def test_the_held_out_loss_is_the_mean_of_a_tenth_as_many_samples_in_parts_as_large_as_the_fits_own():
    sizes, seen = [], []

    def loss(network, batch):
        value = batch["value"]
        weight = torch.where(value % 3 == 0, 4.0, 1.0)
        sizes.append(len(value))
        seen.extend(value.tolist())
        return (value * weight).sum() / weight.sum(), {"weight": weight.sum()}

    run = SimpleNamespace(distributed=Distributed())
    config = LoopConfig(batch_size=16, accumulate=2)
    measure = held_out._measure(run, Numbers(1000), loss, config, held_out._count(500, held_out._SAMPLES))
    first = measure(torch.nn.Identity(), 0)["loss"]
    values = np.array(seen)
    weights = np.where(values % 3 == 0, 4, 1)
    assert len(values) == len(set(seen)) == 50
    assert max(sizes) == 8
    assert first == pytest.approx((values * weights).sum() / weights.sum())
    assert measure(torch.nn.Identity(), 1)["loss"] == first
    assert [held_out._count(n, held_out._SAMPLES) for n in (10, 10_000)] == [24, 400]


def test_short_runs_do_not_count_operations_and_long_ones_say_what_they_will_take_at_least(tiny_cohort, monkeypatch):
    """The cohort's own counts, ten thousand epochs; the machine is not timed."""
    recipe = with_overrides(train_tiny.tiny(), ["*.epochs=10000"])
    run = SimpleNamespace(
        cohort=read_cohort(tiny_cohort, progress=False), recipe=recipe, distributed=Distributed(), devices=()
    )
    monkeypatch.setattr(first_estimate, "machine_here", lambda *_: replace(T4, name="here"))
    stage = stage_by_name("axial_xy")
    before = torch.random.get_rng_state()
    one = first_estimate.operations_of(run, [(stage, 0)])
    both = first_estimate.operations_of(run, [(stage, 0), (stage, 1)])
    assert torch.equal(before, torch.random.get_rng_state())
    assert set(both) == {("axial_xy", 0), ("axial_xy", 1)}
    assert 0 < sum(one.values()) < sum(both.values())
    expected_s = first_estimate.expected_s(run, sum(both.values()), 1)
    (row,) = plan_training(
        TrainOptions(
            data=tiny_cohort,
            out=tiny_cohort,
            recipe="tiny",
            folds="0,1",
            stages=("axial_xy",),
            overrides=("*.epochs=10000",),
        ),
        machines=(T4,),
    ).rows
    assert expected_s == pytest.approx(row.flops / T4.rate, rel=0.02), "as --plan counts them"
    run.recipe = train_tiny.tiny()
    assert first_estimate.operations_of(run, [(stage, 0)]) == {}
