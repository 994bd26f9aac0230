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
FALLBACK = 2e-3  # fastai's own default, where the curve says nothing
_LIMITS = (1e-4, 2e-2)  # a suggestion beyond these is the noise of a short test
_SMOOTH = 0.9
_DIVERGED = 4.0


@dataclass(frozen=True)
class Curve:
    """A range test: rates (N,), smoothed losses (N,), the suggestion, and why it is that one."""

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
    """Run the test and put the network back as it was.

    Args:
        network: its state is restored.
        optimizer: over its parameters; each group keeps its ratio to the last group's rate.
        loss: ``loss(step)``, differentiable.
        n_steps: at most so many steps, evenly spaced in the logarithm of the rate.
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
        mean = _SMOOTH * mean + (1 - _SMOOTH) * float(value.detach())
        found = mean / (1 - _SMOOTH ** (step + 1))
        if not np.isfinite(found):
            break
        smoothed.append(found)
        best = min(best, found)
        if found > _DIVERGED * best:
            break
    network.load_state_dict(state)
    return suggest(rates[: len(smoothed)], np.array(smoothed))


def suggest(rates: NDArray[np.float64], losses: NDArray[np.float64]) -> Curve:
    """A rate from a curve: where the loss falls fastest, but no more than a tenth of where it is least.

    The steepest place alone is misled by noise near the end, a tenth of the minimum alone by a minimum that lies just
    before divergence; the lower of both is safe.
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
    found = float(np.clip(min(steepest, tenth), *_LIMITS))
    reason = "steepest fall" if steepest <= tenth else "a tenth of the rate of least loss"
    return Curve(rates, losses, found, reason if found in (steepest, tenth) else f"{reason}, held within limits")
