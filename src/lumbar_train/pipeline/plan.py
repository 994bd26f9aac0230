"""``train --plan``: what a run would take, before anything is decoded; a row a stage, and the whole."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from lumbar.competitions.lumbar_spine import COMPETITION
from lumbar.config import FUSION, HeatmapConfig
from lumbar.stages.heat import VIEWS
from lumbar_train.data.folds import is_full, parse_folds, with_seeds
from lumbar_train.data.tables import read_cohort
from lumbar_train.engine.distributed import pick_device
from lumbar_train.pipeline.cost import NetworkCost, meta_network
from lumbar_train.pipeline.counts import CohortCounts, classifier_images, count_cohort
from lumbar_train.pipeline.fusion_cost import fusion_cost
from lumbar_train.pipeline.localisers import TAKEN
from lumbar_train.pipeline.machines import A100, T4, Machine, free_memory, measured_here, parse_memory
from lumbar_train.pipeline.options import TrainOptions
from lumbar_train.pipeline.prepare import chosen_recipe
from lumbar_train.pipeline.split import (
    Split,
    choose_split,
    cost_of,
    filled,
    fits_on_a_device,
    images_of_part,
    is_half_precision,
    losses_of,
)
from lumbar_train.pipeline.storage import cache_line, in_units
from lumbar_train.recipes import Recipe, StageRecipe
from lumbar_train.stages.fits import FitOf, fits_of
from lumbar_train.stages.registry import chosen_stages
from lumbar_train.stages.stage import Stage

_LEVELS = 5
_KAGGLE_GPUS = 2


@dataclass(frozen=True)
class Row:
    """One stage of a plan.

    Attributes:
        name: of the stage.
        samples: of an epoch of a fit on all studies; 0 for a stage that fits nothing.
        steps: optimiser steps of all its fits.
        cost: of its network; None for a stage that fits nothing.
        activation_bytes: at the recipe's batch, in the precision of the fit.
        split: that fits the memory.
        sample_flops: of one sample's training.
        flops: of all its fits.
        disk_bytes: of what it leaves.
        has_batch_statistics: its network computes statistics over the images of a part.
    """

    name: str
    samples: int
    steps: int
    cost: NetworkCost | None = None
    activation_bytes: float = 0.0
    split: Split | None = None
    sample_flops: float = 0.0
    flops: float = 0.0
    disk_bytes: float = 0.0
    has_batch_statistics: bool = False


@dataclass(frozen=True)
class TrainingPlan:
    """What a run would take.

    Attributes:
        rows: in the order of the stages.
        memory: bytes of the device that it is made for.
        device: where the memory is.
        cache: where decoded studies would go, in words.
        machines: whose hours are shown.
        study_flops: of the prediction of one study, by every fit that ships.
        n_ships: fits that ship of each stage: on all data, on folds, or both.
        recipe: its name.
    """

    rows: tuple[Row, ...]
    memory: float
    device: str
    cache: str
    machines: tuple[Machine, ...]
    study_flops: float
    n_ships: int
    recipe: str

    @property
    def flops(self) -> float:
        """Operations of all fits."""
        return sum(row.flops for row in self.rows)

    def prediction_hours(self, studies: int = COMPETITION.hidden_studies) -> float:
        """Hours that the bundle of all fits takes for so many studies on Kaggle's two T4; decoding not counted."""
        return T4.hours(self.study_flops * studies) / _KAGGLE_GPUS

    def lines(self) -> list[str]:
        """The table as it is printed."""
        hours = "".join(f"{'h ' + machine.name:>9}" for machine in self.machines)
        head = f"{'stage':<26}{'samples':>9}{'steps':>9}{'param M':>9}{'act GiB':>9}{'parts':>14}{'GFLOP':>9}{hours}"
        lines = [head, *(self._line(row) for row in self.rows)]
        total = "".join(f"{machine.hours(self.flops):>9.2f}" for machine in self.machines)
        steps = sum(row.steps for row in self.rows)
        lines.append(f"{'whole':<26}{'':>9}{steps:>9}{'':>9}{'':>9}{'':>14}{'':>9}{total}")
        run = sum(row.disk_bytes for row in self.rows)
        lines.append(f"memory      {in_units(self.memory)} on {self.device}; act: activations at the recipe's batch; ")
        lines[-1] += "parts: samples a part x parts a step, * activations computed anew"
        lines.append(f"disk        run {in_units(run)}, {self.cache}")
        lines += [
            f"hours       {m.name}: {m.rate / 1e12:.3g} TFLOP/s = {m.utilisation:.1%} of {m.peak / 1e12:.3g} "
            f"({m.source})"
            for m in self.machines
        ]
        lines.append("            of one device, fits alone: decoding, augmentation and out-of-fold passes come on top")
        lines.append(
            f"prediction  {self.recipe}, {self.n_ships} fits a stage that ship, {COMPETITION.hidden_studies} studies: "
            f"{self.prediction_hours():.2f} h on {_KAGGLE_GPUS} T4 ({self.study_flops / 1e12:.2f} TFLOP a study)"
        )
        return lines + self._warnings()

    def _line(self, row: Row) -> str:
        if row.cost is None or row.split is None:
            return f"{row.name:<26}{'-':>9}{'-':>9}  fits no network of its own, or one whose size is not known yet"
        parts = f"{row.split.micro_batch} x {row.split.accumulate}{'*' if row.split.is_checkpointed else ''}"
        parts = parts if row.split.fits else "does not fit"
        hours = "".join(f"{machine.hours(row.flops):>9.2f}" for machine in self.machines)
        return (
            f"{row.name:<26}{row.samples:>9}{row.steps:>9}{row.cost.parameters / 1e6:>9.2f}"
            f"{row.activation_bytes / 2**30:>9.2f}{parts:>14}{row.sample_flops / 1e9:>9.1f}{hours}"
        )

    def _warnings(self) -> list[str]:
        fusion = [row.activation_bytes for row in self.rows if row.name == FUSION]
        lines = [f"note        fusion: {in_units(bytes_)} of features in the machine's own memory" for bytes_ in fusion]
        cut = [row.name for row in self.rows if row.has_batch_statistics and row.split and row.split.accumulate > 1]
        if not cut:
            return lines
        return [
            *lines,
            f"note        {', '.join(cut)}: batch statistics (BatchNorm) come from the part, not from the whole batch; "
            "networks without them follow the same loss curve however a batch is cut",
        ]


def plan_training(options: TrainOptions, machines: Iterable[Machine] | None = None) -> TrainingPlan:
    """Plan a run from tables and counts alone; nothing is decoded or written.

    Args:
        options: of the run.
        machines: whose hours are shown; None for a T4, an A100 and this machine, which is measured.

    Raises:
        LumbarError: as ``train``, for tables and options.
    """
    recipe, _ = chosen_recipe(options)
    cohort = read_cohort(options.data, check_images=False)
    counts = count_cohort(cohort)
    device = pick_device(options.device)
    memory = parse_memory(options.memory) if options.memory else free_memory(device) / fits_on_a_device(options, device)
    is_gpu = device.type == "cuda" or bool(options.memory)
    is_half = is_half_precision(options.amp, is_gpu=is_gpu)
    use_folds = folds_of(options, recipe)
    losses = losses_of(recipe)
    costs = {name: cost_of(stage, losses[name], counts, is_half=is_half) for name, stage in recipe.stages.items()}
    rows = []
    for stage in chosen_stages(recipe, options.stages):
        name = stage.recipe_name or stage.name
        if stage.name in TAKEN and options.localisers is not None:
            continue
        if name == FUSION:
            rows.append(_fusion_row(recipe, {key: cost(False) for key, cost in costs.items()}, counts, use_folds))
            continue
        if name not in recipe.stages:
            rows.append(Row(stage.name, 0, 0))
            continue
        entry, cost = filled(recipe.stages[name], counts.samples(name, recipe.stages[name])), costs[name]
        split = choose_split(entry, cost, counts, memory, is_half=is_half, is_gpu=is_gpu)
        rows.append(_row(recipe, stage, entry, cost(False), split, counts, use_folds))
    n_ships = max(1, sum(ships(recipe, fold) for fold in use_folds))
    return TrainingPlan(
        tuple(rows),
        float(memory),
        f"{device}" if not options.memory else "a GPU of --memory",
        cache_line(options, cohort, counts),
        tuple(machines) if machines is not None else (T4, A100, machine_here(device, recipe)),
        n_ships * sum(prediction_flops(recipe, {name: cost(False) for name, cost in costs.items()}, counts).values()),
        n_ships,
        recipe.name,
    )


def machine_here(device: torch.device, recipe: Recipe) -> Machine:
    """This machine, measured on the backbone that most of a recipe's networks have."""
    backbones = [getattr(stage.network, "backbone", "") for stage in recipe.stages.values()]
    names = [each if isinstance(each, str) else each.name for each in backbones]
    return measured_here(device, max(names, key=names.count, default="") or "resnet10t")


def folds_of(options: TrainOptions, recipe: Recipe) -> list[int]:
    """The fits of a call on each stage: folds, then those on all data; the fold file's own number is not read."""
    table = pd.DataFrame({"fold": range(recipe.n_folds)})
    return with_seeds(parse_folds(options.folds, table), options.full_seeds or recipe.full_seeds)


def ships(recipe: Recipe, fold: int) -> bool:
    """Whether a fit is exported."""
    return recipe.export == "all" or is_full(fold) == (recipe.export == "full")


def _row(
    recipe: Recipe,
    stage: Stage,
    entry: StageRecipe,
    cost: NetworkCost,
    split: Split,
    counts: CohortCounts,
    use_folds: list[int],
) -> Row:
    samples, images = counts.samples(stage.recipe_name or stage.name, entry), counts.images(entry.network)
    per_sample = float(images.mean())
    folds = use_folds if stage.name == "aggregator" else stage.folds(use_folds)  # which fits all of them at once
    steps, drawn, n_fits = 0, 0.0, 0
    for fold in folds:
        more_fits, more_steps, more_drawn = drawn_samples(recipe, stage, entry, fold, samples, counts.studies)
        n_fits, steps, drawn = n_fits + more_fits, steps + more_steps, drawn + more_drawn
    whole = images_of_part(replace(entry, fit=replace(entry.fit, metric_epochs=0)), counts, 1)
    again = 4 / 3 if split.is_checkpointed else 1.0  # one more forward pass
    weights = 4 * cost.parameters
    n_ships = sum(ships(recipe, fold) for fold in folds) * stage.is_exported
    return Row(
        stage.name,
        samples,
        steps,
        cost,
        cost.activation_bytes(whole),
        split,
        cost.training_flops * per_sample,
        cost.training_flops * per_sample * drawn * again,
        # Kept once, and exported in half precision; of the fit in hand the checkpoint with its moments and two copies
        weights * (n_fits + n_ships / 2 + 6),
        any(isinstance(module, _BatchNorm) for module in meta_network(entry.network).modules()),
    )


def _fusion_row(recipe: Recipe, costs: dict[str, NetworkCost], counts: CohortCounts, use_folds: list[int]) -> Row:
    """The fusion, whose features lie in the machine's memory, and not in the device's."""
    assert recipe.fusion is not None
    whole = fusion_cost(recipe, costs, counts, use_folds)
    batch = max(1, min(recipe.fusion.batch, whole.samples))
    split = Split(batch, 1, False, whole.head.fixed_bytes, True)
    disk = 4 * whole.head.parameters * (len(use_folds) + sum(ships(recipe, fold) for fold in use_folds) / 2)
    return Row(
        FUSION, whole.samples, whole.steps, whole.head, whole.head.fixed_bytes, split, whole.sample_flops, whole.flops,
        disk,
    )  # fmt: skip


def drawn_samples(
    recipe: Recipe, stage: Stage, entry: StageRecipe, fold: int, samples: int, studies: int
) -> tuple[int, int, float]:
    """The fits of a stage on a fold, their optimiser steps, and the samples that they draw over all their epochs.

    Args:
        recipe: of the run.
        stage: that is fitted.
        entry: of the recipe.
        fold: that is held out, or a fit on all data.
        samples: of an epoch of a fit on all studies.
        studies: of the cohort, for a second round on the metric.
    """
    share = 1.0 if is_full(fold) else 1 - 1 / recipe.n_folds
    fit = entry.for_fold(fold).fit
    fits = fits_of(recipe, stage, fold) or [FitOf("", fit.epochs)]
    steps, drawn = 0, 0.0
    for one in fits:
        count, batch = share * one.share * (studies if one.is_metric else samples), fit.batch
        steps += math.ceil(count / (max(1, batch // 4) if one.is_metric else batch)) * one.epochs
        drawn += count * (_LEVELS if one.is_metric else 1) * one.epochs
    return len(fits), steps, drawn


def prediction_flops(recipe: Recipe, costs: dict[str, NetworkCost], counts: CohortCounts) -> dict[str, float]:
    """Operations of the prediction of one mean study by one fit of each stage, all slices, mirrored views included.

    Args:
        recipe: whose networks predict.
        costs: of each of its networks.
        counts: of the cohort whose studies are like those to predict.
    """
    studies = max(counts.studies, 1)
    sagittal, axial = counts.sagittal.sum() / studies, len(counts.axial) / studies
    flops: dict[str, float] = {}
    for name, stage in recipe.stages.items():
        config: Any = stage.network
        if name == "sagittal_xy":
            n = sagittal * _heat_views(config)
        elif name == "sagittal_z":
            n = sagittal
        elif name == "axial_xy":
            n = _LEVELS * axial
        elif name == "aggregator":
            n = 1.0
        elif name == "series_contrast":
            n = 0.0  # it runs only for series that neither a table nor headers describe
        else:
            n = classifier_images(config, counts)
        flops[name] = costs[name].forward_flops * n
    if recipe.fusion is not None:
        flops[FUSION] = fusion_cost(recipe, costs, counts, ()).study_flops
    return flops


def _heat_views(config: Any) -> int:
    """Views of a slice: a first look, and for heatmaps the test-time views in the pose that it shows."""
    return 1 + len(VIEWS) if isinstance(config, HeatmapConfig) else 1
