"""A figure beside the training loss: the loss of a few studies of the held-out fold, after each epoch.

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
from lumbar_train.stages.metric_finetune import MetricLoss, StudyCrops
from lumbar_train.stages.stage import Fitted, Stage, StageDataset

_STUDIES = 8
_SAMPLES = 24
_WHOLE_STUDIES = 4  # of a round whose samples are whole studies

Measure = Callable[[nn.Module, int], dict[str, float]]


def held_out_loss(
    run: RunContext, stage: Stage, fold: int, fitted: Fitted, loss: LossFunction, config: LoopConfig
) -> Measure | None:
    """The function that measures a network on a few held-out studies, as the loop's ``validate`` takes it.

    Returns:
        None for a fit on all data, and where the held-out studies have no samples of this stage.
    """
    samples = _held_out_samples(run, stage, fold, fitted)
    return None if samples is None else _measure(run, samples, loss, config, _SAMPLES)


def held_out_metric(run: RunContext, stage: Stage, fold: int, fitted: Fitted, config: LoopConfig) -> Measure | None:
    """The same for a classifier's second round, whose samples are whole studies and whose loss is the metric."""
    samples = _held_out_samples(run, stage, fold, fitted)
    if not isinstance(samples, LevelCrops):
        return None
    studies = StudyCrops(samples)
    loss = MetricLoss({k: samples.labels[k] for k in studies.study_ids}, tuple(samples.targets))
    return _measure(run, studies, loss, config, _WHOLE_STUDIES)


def _held_out_samples(run: RunContext, stage: Stage, fold: int, fitted: Fitted) -> StageDataset | None:
    """Samples of a few studies of the held-out fold, neither changed nor mixed; None where there are none."""
    _, held_out = split(run.folds, fold)
    some = [int(study) for study in np.sort(held_out)]
    some = [some[k] for k in np.unique(np.linspace(0, len(some) - 1, min(_STUDIES, len(some))).astype(int))]
    plain = replace(stage.recipe_of(run.recipe), augment=None, mixing=None)
    try:
        samples = fitted.dataset(run, plain, some) if some else None
    except LumbarError:  # nothing is known of these studies yet
        return None
    return samples if samples is not None and len(samples) else None


def _measure(run: RunContext, samples: Dataset, loss: LossFunction, config: LoopConfig, most: int) -> Measure:
    chosen = np.unique(np.linspace(0, len(samples) - 1, min(most, len(samples))).astype(int))

    def measure(network: nn.Module, _epoch: int) -> dict[str, float]:
        before = rng_state()
        try:
            batch: Any = samples.collate([samples.sample(int(k), np.random.default_rng(0)) for k in chosen])
            device = run.distributed.device
            with torch.no_grad(), autocast(config, device):
                value, _ = loss(network, to_device(batch, device))
            return {"loss": float(value)}
        finally:
            restore_rng(before)

    return measure
