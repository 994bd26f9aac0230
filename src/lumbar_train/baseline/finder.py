"""Learning-rate range test (Smith, arXiv 1506.01186; fastai's ``lr_find``): the rate rises until the loss diverges."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

START, END = 1e-6, 1.0
FALLBACK = 2e-3  # fastai's default rate, taken if the curve shows nothing
_LIMITS = (1e-4, 2e-2)  # a suggestion outside comes from the noise of a short test
_SMOOTHING = 0.9  # weight of the past in the running mean of the loss
_DIVERGED = 4.0  # the test ends when the loss is so many times its minimum


@dataclass(frozen=True)
class Curve:
    """Result of a range test.

    Attributes:
        rates: (N,) learning rates.
        losses: (N,) smoothed losses.
        suggestion: learning rate to train with.
        reason: why it is that one.
    """

    rates: NDArray[np.float64]
    losses: NDArray[np.float64]
    suggestion: float
    reason: str


def find_rate(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[int], Tensor],
    n_steps: int,
) -> Curve:
    """Run the test, and restore the network's state afterwards.

    Args:
        network: to be tested.
        optimizer: over its parameters; each group keeps its ratio to the last group's rate.
        loss: ``loss(step)``, differentiable.
        n_steps: steps at most, evenly spaced in the logarithm of the rate.
    """
    state = copy.deepcopy(network.state_dict())
    ratios = [group["lr"] / optimizer.param_groups[-1]["lr"] for group in optimizer.param_groups]
    rates = np.geomspace(START, END, n_steps)
    smoothed: list[float] = []
    mean, best = 0.0, np.inf
    for step, rate in enumerate(rates):
        for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
            group["lr"] = float(rate) * ratio
        value = loss(step)
        optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * float(value.detach())
        unbiased = mean / (1 - _SMOOTHING ** (step + 1))
        if not np.isfinite(unbiased):
            break
        smoothed.append(unbiased)
        best = min(best, unbiased)
        if unbiased > _DIVERGED * best:
            break
    network.load_state_dict(state)
    return suggest(rates[: len(smoothed)], np.array(smoothed))


def suggest(rates: NDArray[np.float64], losses: NDArray[np.float64]) -> Curve:
    """Choose the rate at which the loss falls fastest, but at most a tenth of the rate at which it is lowest.

    The lower of the two is taken because each alone can be wrong: the steepest place by noise near the end, the minimum
    because it may be just before divergence.
    """
    if len(losses) < 5:
        return Curve(rates, losses, FALLBACK, "the test ended at once: the default rate")
    least = int(np.argmin(losses))
    first = len(losses) // 10
    if least <= first + 1 or losses[first] - losses[least] < 0.01 * abs(losses[first]):
        return Curve(rates, losses, FALLBACK, "the loss never fell clearly: the default rate")
    slopes = np.gradient(losses[first : least + 1], np.log10(rates[first : least + 1]))
    steepest = float(rates[first + int(np.argmin(slopes))])
    tenth = float(rates[least]) / 10
    rate = float(np.clip(min(steepest, tenth), *_LIMITS))
    reason = "steepest fall" if steepest <= tenth else "a tenth of the rate of least loss"
    return Curve(rates, losses, rate, reason if rate in (steepest, tenth) else f"{reason}, held within limits")
