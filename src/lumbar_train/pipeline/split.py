"""Cuts a stage's batch into parts that fit the memory at hand, and keeps that cut for fits that go on."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from lumbar_train.data.tables import Cohort
from lumbar_train.engine.activation_checkpoints import has_checkpoints
from lumbar_train.engine.distributed import Distributed
from lumbar_train.engine.fold_pool import usable_devices
from lumbar_train.errors import TrainingError
from lumbar_train.outputs.kept import FILE
from lumbar_train.pipeline.begun import begun_entries
from lumbar_train.pipeline.cost import NetworkCost, aggregator_loss, meta_network, network_cost
from lumbar_train.pipeline.counts import CohortCounts, count_cohort, largest_batch
from lumbar_train.pipeline.machines import free_memory, parse_memory
from lumbar_train.pipeline.options import TrainOptions
from lumbar_train.recipes import Recipe, StageRecipe
from lumbar_train.stages.localisers import LOCALISERS
from lumbar_train.stages.registry import chosen_stages, stages_of

RESERVE = 2**30  # bytes of a GPU for its driver's context and the convolutions' workspaces
LIBRARIES = 4 * 2**20  # bytes of a CPU's compiled convolutions and small objects, measured (docs/measurements.md)
FRAGMENTED = 1.1  # what an allocator holds for each byte in use
_TOO_MUCH = 1.25  # an estimate is within a quarter: only what lies further above the memory is refused at once
_LEVELS = 5  # that a study of the metric's own round holds
CostOf = Callable[[bool], NetworkCost]  # of a network, with or without activation checkpointing


@dataclass(frozen=True)
class Split:
    """How a stage's batch is cut.

    Attributes:
        micro_batch: samples of a part.
        accumulate: parts of a step, on each process.
        is_checkpointed: activations are computed anew.
        need_bytes: what a part takes, with weights and optimiser.
        fits: whether that is within the memory.
    """

    micro_batch: int
    accumulate: int
    is_checkpointed: bool
    need_bytes: float
    fits: bool


def losses_of(recipe: Recipe) -> dict[str, Any]:
    """The loss of each entry of a recipe."""
    losses: dict[str, Any] = {"aggregator": aggregator_loss}
    for stage in stages_of(recipe):
        if stage.fitted is not None:
            name = stage.recipe_name or stage.name
            if name in recipe.stages:
                losses.setdefault(name, stage.fitted.loss(recipe.stages[name].network))
    return losses


def cost_of(stage: StageRecipe, loss: Any, counts: CohortCounts, *, is_half: bool) -> CostOf:
    """The cost of a stage's network, counted when it is first asked for."""
    known: dict[bool, NetworkCost] = {}
    slices = max(1, round(float(counts.images(stage.network).mean())))

    def cost(is_checkpointed: bool) -> NetworkCost:
        if is_checkpointed not in known:
            known[is_checkpointed] = network_cost(
                stage.network, loss, slices=slices, is_half=is_half, is_checkpointed=is_checkpointed
            )
        return known[is_checkpointed]

    return cost


def filled(stage: StageRecipe, samples: int) -> StageRecipe:
    """The stage with a batch no larger than the samples of an epoch; the aggregator's asks for all that there are."""
    return replace(stage, fit=replace(stage.fit, batch=max(1, min(stage.fit.batch, samples))))


def images_of_part(stage: StageRecipe, counts: CohortCounts, n_parts: int, world: int = 1) -> int:
    """The most images that one process runs at once, whichever round of the fit has more."""
    images = counts.images(stage.network)
    share = -(-stage.fit.batch // world)
    most = largest_batch(images, share, n_parts, np.random.default_rng(0))
    if stage.fit.metric_epochs:
        studies = -(-max(1, stage.fit.batch // 4) // world)
        most = max(most, _LEVELS * largest_batch(images, studies, min(n_parts, studies), np.random.default_rng(0)))
    return most


def need_bytes(stage: StageRecipe, cost: NetworkCost, images: int, *, is_half: bool, is_gpu: bool) -> float:
    """Memory that a training step takes: weights, gradients, optimiser, inputs and activations.

    Args:
        stage: of the recipe.
        cost: of its network.
        images: that run at once.
        is_half: activations in half precision.
        is_gpu: something is kept for the driver and for fragments.
    """
    state = cost.state_bytes(is_averaged=bool(stage.fit.ema), is_half=is_half)
    activations = cost.activation_bytes(images)
    return state + (activations * FRAGMENTED + RESERVE if is_gpu else activations + LIBRARIES)


def choose_split(
    stage: StageRecipe,
    cost: CostOf,
    counts: CohortCounts,
    memory: float,
    *,
    is_half: bool,
    is_gpu: bool,
    world: int = 1,
) -> Split:
    """The fewest parts that fit, without activation checkpointing if that is possible.

    Args:
        stage: of the recipe; its own ``accumulate`` and ``checkpointing`` are the least.
        cost: of its network.
        counts: of the cohort.
        memory: bytes of one device.
        is_half: activations in half precision.
        is_gpu: something is kept for the driver and for fragments.
        world: processes that share a batch.
    """
    share = -(-stage.fit.batch // world)

    def need(n_parts: int, is_checkpointed: bool) -> float:
        images = images_of_part(stage, counts, n_parts, world)
        return need_bytes(stage, cost(is_checkpointed), images, is_half=is_half, is_gpu=is_gpu)

    may_checkpoint = has_checkpoints(meta_network(stage.network))
    choices = [False, True] if may_checkpoint and not stage.fit.checkpointing else [may_checkpoint]
    split = Split(share, 1, False, 0.0, False)
    for is_checkpointed in choices:
        for n_parts in range(min(stage.fit.accumulate, share), share + 1):
            if n_parts > 1 and -(-share // n_parts) == -(-share // (n_parts - 1)) and n_parts > stage.fit.accumulate:
                continue  # no smaller parts than with one less
            bytes_ = need(n_parts, is_checkpointed)
            split = Split(-(-share // n_parts), n_parts, is_checkpointed, bytes_, bytes_ <= memory)
            if split.fits:
                return split
    return split


def with_split(options: TrainOptions, recipe: Recipe, whole: Cohort, distributed: Distributed) -> Recipe:
    """The recipe with its batches cut to the memory of the GPU (or to ``--memory``).

    An entry of which a fit has begun keeps the cut that the run notes, and so does one that the call does not ask for.

    Raises:
        TrainingError: not even one sample of a stage fits.
    """
    memory = parse_memory(options.memory) if options.memory else None
    is_cut = memory is not None or distributed.device.type == "cuda"
    names = distributed.on_main(lambda: _entries_to_cut(options, recipe, is_cut=is_cut))
    noted = distributed.on_main(lambda: _as_noted(options, recipe, recipe.stages.keys() - names))
    if not (names and is_cut):
        return noted
    n_fits = 1 if memory is not None or distributed.is_many else fits_on_a_device(options, distributed.device)
    free = min(distributed.gather(free_memory(distributed.device))) / n_fits if memory is None else memory
    shared = f" for each of {n_fits} fits on a GPU (--jobs)" if n_fits > 1 else ""
    return distributed.on_main(lambda: _cut(options, noted, names, count_cohort(whole), free, distributed, shared))


def fits_on_a_device(options: TrainOptions, device: torch.device) -> int:
    """How many of the fits of ``--jobs`` share a GPU, and with it what it has free; 1 on a CPU."""
    return -(-options.jobs // len(usable_devices(options.device))) if device.type == "cuda" else 1


def _entries_to_cut(options: TrainOptions, recipe: Recipe, *, is_cut: bool) -> set[str]:
    """The entries whose cut this call decides: those that it asks for, unless their fits go on; a fusion's is small."""
    chosen = [stage for stage in chosen_stages(recipe, options.stages) if stage.fitted or stage.on_fold]
    names = {stage.recipe_name or stage.name for stage in chosen} & recipe.stages.keys()
    if options.localisers is not None:
        names -= set(LOCALISERS)
    if options.resume:
        names = names - begun_entries(options.out, recipe) if is_cut else set()
    return names


def _cut(
    options: TrainOptions,
    recipe: Recipe,
    names: set[str],
    counts: CohortCounts,
    free: float,
    distributed: Distributed,
    shared: str,
) -> Recipe:
    is_gpu = distributed.device.type == "cuda"
    is_half = is_half_precision(options.amp, is_gpu=is_gpu)
    losses, stages = losses_of(recipe), dict(recipe.stages)
    for name in (name for name in recipe.stages if name in names):
        stage = stages[name]
        cost = cost_of(stage, losses[name], counts, is_half=is_half)
        whole = filled(stage, counts.samples(name, stage))
        split = choose_split(whole, cost, counts, free, is_half=is_half, is_gpu=is_gpu, world=distributed.world)
        if split.need_bytes > free * _TOO_MUCH:
            raise TrainingError(
                f"{name}: found {free / 2**30:.1f} GiB of memory{shared}, expected about "
                f"{split.need_bytes / 2**30:.1f} GiB for one sample; a smaller one is "
                f"--set {name}.size={stage.network.size // 2}"
            )
        fit = replace(stage.fit, accumulate=split.accumulate, checkpointing=split.is_checkpointed)
        if fit != stage.fit:
            again = ", activations computed anew" if split.is_checkpointed else ""
            print(f"{name}: batch of {fit.batch} in {split.accumulate} parts{again}, for {free / 2**30:.1f} GiB")
        stages[name] = replace(stage, fit=fit)
    return replace(recipe, stages=stages)


def _as_noted(options: TrainOptions, recipe: Recipe, names: Collection[str]) -> Recipe:
    """The recipe with the cut of some entries as the run notes it; what ``--set`` says anew goes before it."""
    try:
        content = json.loads((options.out / FILE).read_text("utf-8"))
        noted, words = content["stages"], content.get("set") or ()
    except (ValueError, KeyError, TypeError, OSError):  # check_kept says what is wrong with it
        return recipe
    words = [word for word in options.overrides if word not in words]  # to those of before the cut was added
    stages = dict(recipe.stages)
    for name in (name for name in recipe.stages if name in names):
        fit = (noted.get(name) or {}).get("fit") or {}
        kept = {
            field: fit[field]
            for field in ("accumulate", "checkpointing")
            if field in fit and not _is_set(words, name, field)
        }
        stages[name] = replace(stages[name], fit=replace(stages[name].fit, **kept))
    return replace(recipe, stages=stages)


def _is_set(words: Iterable[str], name: str, field: str) -> bool:
    """Whether one of the words of ``--set`` gives a field of the fit of an entry."""
    parts = [word.partition("=")[0].partition(".") for word in words]
    return any(stage in (name, "*") and path in (field, f"fit.{field}") for stage, _, path in parts)


def is_half_precision(amp: str, *, is_gpu: bool) -> bool:
    """Whether activations of a fit are in half precision (``loop_config.amp_dtype``)."""
    return amp == "bf16" or (is_gpu and amp != "off")
