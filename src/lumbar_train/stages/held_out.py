"""A figure beside the training loss: the loss of some samples of the held-out fold, after each epoch.

It is shown and logged alone. It chooses nothing, and leaves the random numbers of the fit as they were.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from lumbar.errors import LumbarError
from lumbar_train.data.folds import split
from lumbar_train.engine.checkpoint import restore_rng, rng_state
from lumbar_train.engine.loop_config import LoopConfig, autocast
from lumbar_train.engine.optimisation import LossFunction
from lumbar_train.engine.sampling import Dataset, to_device
from lumbar_train.stages.classify import LevelCrops
from lumbar_train.stages.context import RunContext
from lumbar_train.stages.losses import TINY
from lumbar_train.stages.metric_finetune import MetricLoss, StudyCrops
from lumbar_train.stages.stage import Fitted, Stage, StageDataset

_SHARE = 0.1  # samples measured for each one trained on: a thirtieth of the epoch's time, without backward passes
_SAMPLES = (24, 400)  # at least and at most; too few tell nothing of a rare grade
_WHOLE_STUDIES = (8, 80)  # of a round whose samples are whole studies

Measure = Callable[[nn.Module, int], dict[str, float]]


def held_out_loss(
    run: RunContext, stage: Stage, fold: int, fitted: Fitted, loss: LossFunction, config: LoopConfig, n_trained: int
) -> Measure | None:
    """The function that measures a network on held-out samples, as the loop's ``validate`` takes it.

    Args:
        run: what is trained on what.
        stage: that is fitted.
        fold: that is held out.
        fitted: how the stage makes samples.
        loss: of the fit.
        config: of the fit, which says how many samples the device takes at once.
        n_trained: samples that the fit learns from.

    Returns:
        None for a fit on all data, and where the held-out studies have no samples of this stage.
    """
    samples = _held_out_samples(run, stage, fold, fitted)
    return None if samples is None else _measure(run, samples, loss, config, _count(n_trained, _SAMPLES))


def held_out_metric(
    run: RunContext, stage: Stage, fold: int, fitted: Fitted, config: LoopConfig, n_trained: int
) -> Measure | None:
    """The same for a classifier's second round, whose samples are whole studies and whose loss is the metric."""
    samples = _held_out_samples(run, stage, fold, fitted)
    if not isinstance(samples, LevelCrops):
        return None
    studies = StudyCrops(samples)
    loss = MetricLoss({k: samples.labels[k] for k in studies.study_ids}, tuple(samples.targets))
    return _measure(run, studies, loss, config, _count(n_trained, _WHOLE_STUDIES))


def _count(n_trained: int, limits: tuple[int, int]) -> int:
    return min(max(round(_SHARE * n_trained), limits[0]), limits[1])


def _held_out_samples(run: RunContext, stage: Stage, fold: int, fitted: Fitted) -> StageDataset | None:
    """The samples of the held-out fold, neither changed nor mixed; None where there are none."""
    _, held_out = split(run.folds, fold)
    plain = replace(stage.recipe_of(run.recipe), augment=None, mixing=None)
    try:
        samples = fitted.dataset(run, plain, [int(study) for study in np.sort(held_out)]) if len(held_out) else None
    except LumbarError:  # nothing is known of these studies yet
        return None
    return samples if samples is not None and len(samples) else None


def _measure(run: RunContext, samples: Dataset, loss: LossFunction, config: LoopConfig, most: int) -> Measure:
    """The mean loss of at most so many samples, the same ones each time, in parts no larger than the fit's own."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(samples))[:most])
    size = -(-config.batch_size // (config.accumulate * run.distributed.world))

    def measure(network: nn.Module, _epoch: int) -> dict[str, float]:
        before = rng_state()
        device = run.distributed.device
        total = total_weight = 0.0
        try:
            for start in range(0, len(chosen), size):
                part = [samples.sample(int(k), np.random.default_rng(0)) for k in chosen[start : start + size]]
                batch: Any = samples.collate(part)
                with torch.no_grad(), autocast(config, device):
                    value, figures = loss(network, to_device(batch, device))
                weight = float(figures.get("weight", len(part)))
                total, total_weight = total + float(value) * weight, total_weight + weight
            return {"loss": total / max(total_weight, TINY)}
        finally:
            restore_rng(before)

    return measure
