"""Freezing, groups, rates and the finder, as they are claimed."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from lumbar.config import BackboneConfig, BaselineConfig
from lumbar_train.baseline.augment import augment
from lumbar_train.baseline.finder import FALLBACK, find_rate, suggest
from lumbar_train.baseline.network import freeze, make_network, make_optimizer, parameter_groups
from lumbar_train.baseline.tune import Samples, Tuner, one_cycle, phases

COLUMN = "spinal_canal_stenosis_l4_l5"
TINY = BaselineConfig(BackboneConfig("resnet10t", channels=(8, 8, 16, 16), stem_width=8), COLUMN, size=32, hidden=16)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def test_resnet34_is_cut_where_fastai_cuts_it():
    network = make_network(BaselineConfig(BackboneConfig("resnet34"), COLUMN), 0)
    early, late, head = parameter_groups(network)
    names = {id(p): name for name, p in network.named_parameters()}
    said = [{names[id(p)].split(".")[1] for p in (*g.weights, *g.biases, *g.norms)} for g in (early, late)]
    assert said == [{"conv1", "bn1", "layer1", "layer2"}, {"layer3", "layer4"}]
    assert {names[id(p)].split(".")[0] for p in (*head.weights, *head.norms)} == {"head"}
    assert sum(len(g.weights) + len(g.biases) + len(g.norms) for g in (early, late, head)) == len(names)


def test_frozen_body_keeps_its_weights_but_trains_its_norms():
    network = make_network(TINY, 0)
    before = copy.deepcopy(dict(network.named_parameters()))
    groups = parameter_groups(network)
    freeze(groups, body=True)
    optimizer = make_optimizer(groups, [1e-2, 1e-2, 1e-1], 0.01)
    network.train()
    network(torch.rand(8, 1, 32, 32)).square().sum().backward()
    optimizer.step()
    changed = {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}
    norms = {id(p) for g in groups for p in g.norms}
    assert all(name.startswith("head") or id(dict(network.named_parameters())[name]) in norms for name in changed)
    assert "body.bn1.weight" in changed
    assert "head.2.weight" in changed
    freeze(groups, body=False)
    assert all(p.requires_grad for p in network.parameters())


def test_rates_and_decay_of_the_groups():
    groups = parameter_groups(make_network(TINY, 0))
    head, everything = phases(4e-3, epochs=4, freeze_epochs=1, lr_mult=100)
    assert (head.rates, head.pct_start, head.div, head.is_frozen) == ((4e-4, 4e-4, 4e-3), 0.99, 25.0, True)
    assert everything.rates == pytest.approx((2e-5, 2e-4, 2e-3))
    assert (everything.pct_start, everything.div, everything.is_frozen) == (0.3, 5.0, False)
    optimizer = make_optimizer(groups, list(everything.rates), 0.01)
    by_name = {(g["name"], g["weight_decay"]): g["lr"] for g in optimizer.param_groups}
    assert by_name == pytest.approx(
        {("early", 0.01): 2e-5, ("early", 0.0): 2e-5, ("late", 0.01): 2e-4, ("late", 0.0): 2e-4,
         ("head", 0.01): 2e-3, ("head", 0.0): 2e-3}
    )  # fmt: skip
    assert all((g["betas"][1], g["eps"]) == (0.99, 1e-5) for g in optimizer.param_groups)
    assert all(p.ndim > 1 for g in optimizer.param_groups if g["weight_decay"] for p in g["params"])


def test_one_cycle_rises_and_falls_and_momentum_goes_against_it():
    groups = parameter_groups(make_network(TINY, 0))
    cycle = phases(2e-3, 4, 0, 100)[0]
    optimizer = make_optimizer(groups, list(cycle.rates), 0.01)
    scheduler = one_cycle(optimizer, cycle, 25)
    rates, momenta = [], []
    for _ in range(100):
        rates.append([g["lr"] for g in optimizer.param_groups])
        momenta.append(optimizer.param_groups[0]["betas"][0])
        optimizer.step()
        scheduler.step()
    rates = np.array(rates)
    assert rates[0] == pytest.approx(rates.max(axis=0) / 5, rel=1e-3)
    assert abs(int(rates[:, -1].argmax()) - 30) <= 1
    assert rates.max(axis=0)[[0, -1]] == pytest.approx([1e-5, 1e-3], rel=1e-3)
    assert rates[-1, -1] < 2e-6
    assert (momenta[0], min(momenta)) == pytest.approx((0.95, 0.85), rel=1e-3)
    assert momenta[-1] > 0.949
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-5 / 1e5)


def toy():
    torch.manual_seed(0)
    inputs = torch.randn(256, 8)
    targets = (inputs @ torch.randn(8) > 0).long()
    network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))

    def loss(step):
        rows = slice(32 * step % 256, 32 * step % 256 + 32)
        return nn.functional.cross_entropy(network(inputs[rows]), targets[rows])

    return network, loss


def test_the_finder_finds_a_rate_that_learns_and_puts_the_network_back():
    network, loss = toy()
    before = copy.deepcopy(network.state_dict())
    curve = find_rate(network, torch.optim.AdamW(network.parameters(), lr=1.0), loss, 100)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert 1e-3 <= curve.suggestion <= 2e-2
    ends = {}
    for rate in (curve.suggestion, 1e-6):
        network.load_state_dict(before)
        optimizer = torch.optim.AdamW(network.parameters(), lr=rate)
        for step in range(100):
            optimizer.zero_grad()
            loss(step).backward()
            optimizer.step()
        ends[rate] = float(loss(0).detach())
    assert ends[curve.suggestion] < 0.3 < ends[1e-6]


def test_a_curve_that_says_nothing_gives_the_default():
    rates = np.geomspace(1e-6, 1, 50)
    assert suggest(rates, np.full(50, 0.7)).suggestion == FALLBACK
    assert suggest(rates[:3], np.ones(3)).suggestion == FALLBACK
    rising = suggest(rates, np.linspace(1, 3, 50))
    assert (rising.suggestion, rising.reason) == (FALLBACK, "the loss never fell clearly: the default rate")


def samples(n=40):
    rng = np.random.default_rng(1)
    classes = rng.integers(0, 3, n)
    images = (rng.random((n, 32, 32)) * 60 + 80 * classes[:, None, None]).astype(np.uint8)
    return Samples(images, classes.astype(np.int64), np.arange(n))


def tune(tmp_path, stop_after=None):
    network = make_network(TINY, 3)
    tuner = Tuner(
        network, samples(), batch_size=8, weight_decay=0.01, seed=5, device=torch.device("cpu"),
        checkpoint=tmp_path / "checkpoint.pt",
    )  # fmt: skip
    if stop_after is not None:
        epoch = tuner._epoch

        def dying(*arguments):
            if tuner.epoch == stop_after:
                raise KeyboardInterrupt
            epoch(*arguments)

        tuner._epoch = dying
    return network, tuner


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_a_fit_that_is_killed_goes_on_to_the_same_weights(tmp_path, monkeypatch, stop_after):
    monkeypatch.setattr("lumbar_train.baseline.tune._CHECKPOINT_S", -1.0)
    cycles = phases(2e-3, epochs=3, freeze_epochs=1, lr_mult=10)
    network, tuner = tune(tmp_path)
    tuner.run(cycles)
    assert not (tmp_path / "checkpoint.pt").exists()
    _, killed = tune(tmp_path, stop_after)
    with pytest.raises(KeyboardInterrupt):
        killed.run(cycles, resume=True)
    assert (tmp_path / "checkpoint.pt").exists()
    again, resumed = tune(tmp_path)
    resumed.run(cycles, resume=True)
    for name, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert [row["loss"] for row in resumed.log] == [row["loss"] for row in tuner.log]


def test_augmentation_keeps_shape_and_range_follows_its_generator_and_never_mirrors():
    ramp = torch.linspace(0.1, 0.9, 48).expand(16, 1, 48, 48)  # bright at the right: belly and back stay apart
    out = augment(ramp, torch.Generator().manual_seed(1))
    assert out.shape == ramp.shape
    assert float(out.min()) >= 0
    assert float(out.max()) <= 1
    assert torch.equal(out, augment(ramp, torch.Generator().manual_seed(1)))
    assert not torch.equal(out, augment(ramp, torch.Generator().manual_seed(2)))
    assert (out[..., 36:].mean((1, 2, 3)) > out[..., :12].mean((1, 2, 3))).all()
    assert (out - ramp).abs().mean() < 0.15
