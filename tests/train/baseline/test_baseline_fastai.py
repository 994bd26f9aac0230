"""Schedule, optimiser, augmentation and head beside fastai itself; benchmarks/baseline_fastai.py compares whole fits.

In double precision, so that what differs is a difference and not rounding.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from lumbar.config import BackboneConfig, BaselineConfig
from lumbar.models.baseline import BaselineNet
from lumbar_train.baseline import tune
from lumbar_train.baseline.augment import change, draw
from lumbar_train.baseline.network import make_network, make_optimizer, parameter_groups
from lumbar_train.baseline.tune import DIV_FINAL, Samples, Tuner, one_cycle, phases

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # fastai's own, against newer versions of torch
    schedule = pytest.importorskip(
        "fastai.callback.schedule", reason="fastai is not installed: pip install '.[fastai-check]' in a venv of its own"
    )

COLUMN = "spinal_canal_stenosis_l4_l5"
TINY = BackboneConfig("resnet10t", channels=(8, 8, 16, 16), stem_width=8)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("n_steps", [7, 50])
def test_rates_and_momentum_are_fastais_step_by_step(number, n_steps):
    cycle = phases(2e-3, 4, 1, 100)[number]
    optimizer = make_optimizer(parameter_groups(BaselineNet(BaselineConfig(TINY, COLUMN))), list(cycle.rates), 0.01)
    scheduler = one_cycle(optimizer, cycle, n_steps)
    peak = cycle.rates[-1]
    rate = schedule.combined_cos(cycle.pct_start, peak / cycle.div, peak, peak / DIV_FINAL)
    momentum = schedule.combined_cos(cycle.pct_start, 0.95, 0.85, 0.95)
    total = cycle.epochs * n_steps
    for step in range(total):
        group = optimizer.param_groups[-1]
        assert group["lr"] == pytest.approx(float(rate(step / total)), abs=1e-5 * peak)
        assert group["betas"][0] == pytest.approx(float(momentum(step / total)), abs=1e-5)
        optimizer.step()
        scheduler.step()


def samples(n=40):
    rng = np.random.default_rng(1)
    classes = rng.integers(0, 3, n)
    images = (rng.random((n, 32, 32)) * 60 + 80 * classes[:, None, None]).astype(np.uint8)
    return Samples(images, classes.astype(np.int64), np.arange(n))


def make_tuner():
    """A fit without dropout and in double precision, both of which are set outside of ``Tuner``."""
    config = BaselineConfig(TINY, COLUMN, size=32, hidden=16, dropout=0.0)
    network = make_network(config, 3).double()
    return Tuner(network, samples(), batch_size=8, weight_decay=0.01, seed=5, device=torch.device("cpu"))


def fastai_losses(tuner, n_epochs, **arguments):
    """Train ``tuner``'s network with fastai's ``fine_tune``, on the batches that ``tuner`` would take."""
    from fastai.callback.core import Callback
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    from fastcore.foundation import L

    losses = []

    class SameBatches(Callback):
        run_valid = False

        def before_batch(self):
            epoch, step = divmod(len(losses), len(tuner.steps))
            images, classes = tuner.steps.batch(tuner.seed, epoch, step)
            self.learn.xb, self.learn.yb = (images,), (classes,)

        def after_batch(self):
            losses.append(float(self.learn.loss))

    filler = [(torch.zeros(1, 32, 32, dtype=torch.double), torch.tensor(0))] * len(tuner.steps.samples.rows)
    loaders = DataLoaders.from_dsets(filler, filler[:8], bs=8, num_workers=0, device=torch.device("cpu"))
    learner = Learner(
        loaders,
        tuner.network,
        loss_func=CrossEntropyLossFlat(),
        splitter=lambda _: [L([*g.weights, *g.biases, *g.norms]) for g in tuner.groups],
        cbs=[SameBatches()],
    )
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(n_epochs, freeze_epochs=1, **arguments)
    return losses


@pytest.mark.filterwarnings("ignore")
def test_losses_and_weights_are_fastais_step_by_step_over_both_cycles(monkeypatch):
    monkeypatch.setattr(tune, "augment", lambda images, _: images.double())
    ours, theirs = make_tuner(), make_tuner()
    losses, loss = [], ours.loss
    monkeypatch.setattr(ours, "loss", lambda *place: losses.append(loss(*place)) or losses[-1])
    ours.run(phases(4e-3, 3, 1, 100))
    expected = fastai_losses(theirs, 3, base_lr=4e-3, lr_mult=100)
    assert len(losses) == len(expected) == 20
    # our loss is taken in single precision, as under autocast; its gradient carries that rounding
    assert np.allclose([float(value.detach()) for value in losses], expected, rtol=1e-4)
    start = make_tuner().network.state_dict()
    for name, value in ours.network.state_dict().items():
        moved = (theirs.network.state_dict()[name] - start[name]).abs().max()
        difference = (value - theirs.network.state_dict()[name]).abs().max()
        assert difference <= 1e-3 * moved, name


@pytest.mark.filterwarnings("ignore")
def test_given_the_same_draws_the_pixels_are_fastais():
    from fastai.vision.augment import Brightness, Contrast, Rotate, Warp, Zoom, setup_aug_tfms
    from fastai.vision.core import TensorImage

    n = 32
    changes = draw(n, torch.Generator().manual_seed(1))
    images = torch.rand(n, 1, 48, 48, dtype=torch.double, generator=torch.Generator().manual_seed(2))
    steps = setup_aug_tfms([
        Warp(p=1.0, draw_x=list(changes.tilt_x), draw_y=list(changes.tilt_y)),
        Rotate(p=1.0, draw=list(changes.turn_deg)),
        Zoom(p=1.0, draw=list(changes.zoom), draw_x=list(changes.centre_x), draw_y=list(changes.centre_y)),
        Brightness(p=1.0, draw=list(changes.light)),
        Contrast(p=1.0, draw=list(changes.contrast)),
    ])  # fmt: skip
    expected = TensorImage(images.float())
    for step in steps:
        expected = step(expected, split_idx=0)
    assert (change(images, changes) - expected.as_subclass(torch.Tensor)).abs().max() < 1e-3
    assert (images - expected.as_subclass(torch.Tensor)).abs().mean() > 0.05


def test_the_head_is_fastais():
    from fastai.vision.learner import create_head

    network = BaselineNet(BaselineConfig(TINY, COLUMN, hidden=512))
    body_out = network.n_features
    theirs = create_head(body_out, 3)
    pooling = ("AdaptiveConcatPool2d", "fastai.layers.Flatten", "Flatten")
    layers = [layer for layer in theirs if type(layer).__name__ not in pooling]
    assert [type(layer) for layer in layers] == [type(layer) for layer in network.head]
    for layer, other in zip(network.head, layers, strict=True):
        assert layer.extra_repr() == other.extra_repr()
        if isinstance(layer, torch.nn.BatchNorm1d):
            assert torch.equal(layer.weight, other.weight)
            assert torch.equal(layer.bias, other.bias)
    features = torch.rand(2, body_out, 3, 3)
    pooled = theirs[:2](features)
    assert np.allclose(pooled, torch.cat([features.amax((2, 3)), features.mean((2, 3))], 1))
