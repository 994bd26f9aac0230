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


def expected_s(run: RunContext, fits: Iterable[tuple[Stage, int]], jobs: int) -> float | None:
    """Seconds that fits take by themselves, in float32 on CPUs: preparing samples and predicting come on top.

    Args:
        run: what is trained on what; random numbers stay as they are.
        fits: stages and folds still to be fitted.
        jobs: fits at a time.

    Returns:
        None for a short run, which tells sooner itself.
    """
    counts, recipe = count_cohort(run.cohort), run.recipe
    drawn: dict[str, float] = {}
    for stage, fold in fits:
        name = stage.recipe_name or stage.name
        samples = counts.samples(name, recipe.stages[name])
        more = drawn_samples(recipe, stage, recipe.stages[name], fold, samples, counts.studies)[2]
        drawn[name] = drawn.get(name, 0.0) + more
    if sum(drawn.values()) < _FEW:
        return None
    losses, flops = losses_of(recipe), 0.0
    with torch.random.fork_rng(devices=[]):
        for name, n_samples in drawn.items():
            entry = recipe.stages[name]
            images = float(counts.images(entry.network).mean())
            flops += training_flops(entry.network, losses[name], slices=max(1, round(images))) * images * n_samples
        rate = machine_here(run.distributed.device, recipe).rate
    n_devices = max(run.distributed.world, min(jobs, len(run.devices) or 1))
    return flops / rate / n_devices
