"""The schedule and the head beside fastai itself; benchmarks/baseline_fastai.py compares whole fits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lumbar.config import BackboneConfig, BaselineConfig
from lumbar.models.baseline import BaselineNet
from lumbar_train.baseline.network import make_optimizer, parameter_groups
from lumbar_train.baseline.tune import DIV_FINAL, one_cycle, phases

schedule = pytest.importorskip(
    "fastai.callback.schedule", reason="fastai is not installed: pip install '.[fastai-check]' in a venv of its own"
)

TINY = BackboneConfig("resnet10t", channels=(8, 8, 16, 16), stem_width=8)


@pytest.mark.parametrize("number", [0, 1])
def test_rates_and_momentum_are_fastais_step_by_step(number):
    cycle, n_steps = phases(2e-3, 4, 1, 100)[number], 50
    optimizer = make_optimizer(parameter_groups(BaselineNet(BaselineConfig(TINY, "spinal_canal_stenosis_l4_l5"))),
                               list(cycle.rates), 0.01)  # fmt: skip
    scheduler = one_cycle(optimizer, cycle, n_steps)
    peak = cycle.rates[-1]
    rate = schedule.combined_cos(cycle.pct_start, peak / cycle.div, peak, peak / DIV_FINAL)
    momentum = schedule.combined_cos(cycle.pct_start, 0.95, 0.85, 0.95)
    total = cycle.epochs * n_steps
    for step in range(total):
        group = optimizer.param_groups[-1]
        assert group["lr"] == pytest.approx(float(rate(step / total)), abs=0.03 * peak)
        assert group["betas"][0] == pytest.approx(float(momentum(step / total)), abs=4e-3)
        optimizer.step()
        scheduler.step()


def test_the_head_is_fastais():
    from fastai.vision.learner import create_head

    network = BaselineNet(BaselineConfig(TINY, "spinal_canal_stenosis_l4_l5", hidden=512))
    body_out = network.n_features
    theirs = create_head(body_out, 3)
    pooling = ("AdaptiveConcatPool2d", "fastai.layers.Flatten", "Flatten")
    kinds = [type(layer).__name__ for layer in theirs if type(layer).__name__ not in pooling]
    assert kinds == [type(layer).__name__ for layer in network.head]
    ours = sum(p.numel() for p in network.head.parameters())
    assert ours == sum(p.numel() for p in theirs.parameters())
    features = torch.rand(2, body_out, 3, 3)
    pooled = theirs[:2](features)
    assert np.allclose(pooled, torch.cat([features.amax((2, 3)), features.mean((2, 3))], 1))
