"""Fits the aggregator on out-of-fold logits, directly on the competition's metric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lumbar.config import AggregatorConfig, to_dict
from lumbar.models import build, name_of
from lumbar.models.aggregator import Aggregator
from lumbar_train.recipes import Fit
from lumbar_train.stages.losses import competition_loss

POOL_RATE = 10.0  # learning rate of the pool's weights and scales, as a multiple of the MLPs'
MODEL_DROP = 0.1  # chance that a model's logits are hidden in training, so that it learns to do without a series


@dataclass(frozen=True)
class PoolStart:
    """The pool that an aggregator begins with, where its members were chosen on evidence.

    Attributes:
        shares: (M,) the weight of each classifier, the same in all groups.
        scales: (3,) by group, what the pooled log probabilities are multiplied with.
    """

    shares: tuple[float, ...]
    scales: tuple[float, ...]

    def apply(self, network: Aggregator) -> None:
        """Put the pool into a network."""
        with torch.no_grad():
            network.pool.copy_(torch.tensor(self.shares).clamp(min=1e-6).log().expand_as(network.pool))
            network.scale.copy_(torch.tensor(self.scales))


def fit_aggregator(
    logits: NDArray[np.float32],
    mask: NDArray[np.bool_],
    labels: NDArray[np.int8],
    prior: NDArray[np.float64],
    config: AggregatorConfig,
    fit: Fit,
    seed: int,
    confidence: NDArray[np.float32] | None = None,
    after_epoch: Callable[[Aggregator], None] | None = None,
    start: PoolStart | None = None,
) -> tuple[Aggregator, list[float]]:
    """Fit an aggregator with AdamW and a cosine schedule.

    With a batch as large as the cohort every step sees the metric itself; in smaller batches its normalisation by
    weights is that of the batch.

    Args:
        logits: (N, M, 5 conditions, 5 levels, 3) of M classifiers.
        mask: (N, M, 5, 5) which of them rest on images.
        labels: (N, 25), -1 missing.
        prior: (25, 3).
        config: of the network.
        fit: how it is fitted.
        seed: of initial weights and order.
        confidence: (N, 5, 4) of localisation, for configurations that ask for it.
        after_epoch: is given the network after each epoch; it may put it into evaluation mode.
        start: the pool that it begins with; None: equal weights.

    Returns:
        The network, and the mean loss of each epoch.
    """
    torch.manual_seed(seed)
    network = _begun(config, start).train()
    sure = torch.zeros(len(logits), 5, 4) if confidence is None else torch.from_numpy(confidence)
    x, m = torch.from_numpy(logits), torch.from_numpy(mask)
    y = torch.from_numpy(labels.reshape(-1, 5, 5).astype(np.int64))
    log_prior = torch.from_numpy(np.log(np.clip(prior, 1e-6, 1)).astype(np.float32)).view(5, 5, 3)
    optimiser = _adamw(network, fit)
    steps = max(1, -(-len(x) // fit.batch))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, fit.epochs * steps)
    losses = []
    for _ in range(fit.epochs):
        order = torch.randperm(len(x))
        total = 0.0
        for first in range(0, len(x), fit.batch):
            rows = order[first : first + fit.batch]
            shown = m[rows] & (torch.rand(len(rows), m.shape[1], 1, 1) >= MODEL_DROP)
            loss = competition_loss(network(x[rows], shown, log_prior, sure[rows]), y[rows])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(network.parameters(), fit.clip)
            optimiser.step()
            schedule.step()
            total += float(loss.detach()) * len(rows)
        losses.append(total / len(x))
        if after_epoch is not None:
            after_epoch(network)
            network.train()
    return network.eval(), losses


def loss_on(
    network: Aggregator,
    logits: NDArray[np.float32],
    mask: NDArray[np.bool_],
    labels: NDArray[np.int8],
    prior: NDArray[np.float64],
    confidence: NDArray[np.float32],
) -> float:
    """The loss of a network on studies, as they are predicted: no model is hidden. Arrays as in ``fit_aggregator``."""
    log_prior = torch.from_numpy(np.log(np.clip(prior, 1e-6, 1)).astype(np.float32)).view(5, 5, 3)
    with torch.no_grad():
        out = network.eval()(torch.from_numpy(logits), torch.from_numpy(mask), log_prior, torch.from_numpy(confidence))
        return float(competition_loss(out, torch.from_numpy(labels.reshape(-1, 5, 5).astype(np.int64))))


def _adamw(network: Aggregator, fit: Fit) -> torch.optim.AdamW:
    """Return the optimiser: the pool's dozen numbers, which the data can afford to move far, have a higher rate."""
    few = {id(p): p for p in (network.scale, network.pool)}
    rest = [p for p in network.parameters() if id(p) not in few]
    return torch.optim.AdamW(
        [
            {"params": list(few.values()), "lr": POOL_RATE * fit.lr, "weight_decay": 0.0},
            {"params": rest, "lr": fit.lr, "weight_decay": fit.weight_decay},
        ]
    )


def pool_of(config: AggregatorConfig, start: PoolStart | None = None) -> Aggregator:
    """The aggregator of a configuration that corrects nothing: the mean of the classifiers that saw a target."""
    network = _begun(config, start).eval()
    for parameter in network.groups.parameters():
        torch.nn.init.zeros_(parameter)
    return network


def _begun(config: AggregatorConfig, start: PoolStart | None) -> Aggregator:
    network = build(name_of(config), to_dict(config))
    assert isinstance(network, Aggregator)
    if start is not None:
        start.apply(network)
    return network
