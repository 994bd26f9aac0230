"""How long the fits of a run will take here, said before the first one begins: counted operations over measured speed.

It takes a second or two for ``demo``, so it is made for runs that last much longer than that.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from lumbar_train.pipeline.cost import training_flops
from lumbar_train.pipeline.counts import count_cohort
from lumbar_train.pipeline.plan import drawn_samples, machine_here
from lumbar_train.pipeline.split import losses_of
from lumbar_train.stages.context import RunContext
from lumbar_train.stages.stage import Stage

_FEW = 2000  # samples drawn over all epochs: so few are over about as soon as they are counted


def operations_of(run: RunContext, fits: Iterable[tuple[Stage, int]]) -> dict[tuple[str, int], float]:
    """Floating-point operations that fits take in all their epochs, by stage and fold.

    Args:
        run: what is trained on what; random numbers stay as they are.
        fits: stages and folds still to be fitted.

    Returns:
        Nothing for a short run, which tells its pace sooner than operations are counted.
    """
    counts, recipe = count_cohort(run.cohort), run.recipe
    drawn: dict[tuple[str, int], float] = {}
    name_of: dict[str, str] = {}
    for stage, fold in fits:
        name_of[stage.name] = name = stage.recipe_name or stage.name
        samples = counts.samples(name, recipe.stages[name])
        drawn[stage.name, fold] = drawn_samples(recipe, stage, recipe.stages[name], fold, samples, counts.studies)[2]
    if sum(drawn.values()) < _FEW:
        return {}
    losses, one = losses_of(recipe), {}
    with torch.random.fork_rng(devices=[]):
        for name in sorted(set(name_of.values())):
            entry = recipe.stages[name]
            images = float(counts.images(entry.network).mean())
            one[name] = training_flops(entry.network, losses[name], slices=max(1, round(images))) * images
    return {(stage, fold): one[name_of[stage]] * n_samples for (stage, fold), n_samples in drawn.items()}


def expected_s(run: RunContext, operations: float, jobs: int) -> float:
    """Seconds that so many operations take here, in float32 on CPUs, with ``jobs`` fits at a time.

    Preparing samples and predicting held-out studies come on top.
    """
    rate = machine_here(run.distributed.device, run.recipe).rate
    return operations / rate / max(run.distributed.world, min(jobs, len(run.devices) or 1))
