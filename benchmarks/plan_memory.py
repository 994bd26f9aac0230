"""What ``train --plan`` says of memory, beside the measured peak of a training step, for every stage of the recipes.

    python benchmarks/plan_memory.py [--data COHORT] [--recipes demo,model2,strong] [--stages S,S] [--limit 8GiB]

Each stage runs in a process of its own on one thread of a CPU, in float32: the stage's own samples, network and loss at
the recipe's full input size, and one whole optimiser step as ``lumbar_train train`` makes it (AdamW's moments and the
averaged weights are there before it, as in every step but the first), with as many samples of the recipe's batch as the
plan lays into ``--limit`` (of a series that is too much by itself, its first slices). The measured value is the growth
of the peak of the resident memory (``VmHWM`` of Linux, reset just before the network is built; pages of library files
left out), the planned one what the plan counts for the same number of images. Memory that is freed goes back to the
system at once; ``--heap`` leaves that to glibc, which keeps some, mostly of tensors below 32 MiB. Seconds are of the
processor. Without ``--data`` three phantoms are made.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # an optimiser's first step imports it, else in the middle of what is measured
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "kernel"), str(ROOT / "src")]

from lumbar.config import to_dict  # noqa: E402
from lumbar.models import build, name_of  # noqa: E402
from lumbar_train.engine.distributed import Distributed  # noqa: E402
from lumbar_train.engine.optimisation import Optimisation  # noqa: E402
from lumbar_train.engine.sampling import Part, sample_rng  # noqa: E402
from lumbar_train.pipeline.cost import NetworkCost  # noqa: E402
from lumbar_train.pipeline.counts import count_cohort  # noqa: E402
from lumbar_train.pipeline.machines import parse_memory  # noqa: E402
from lumbar_train.pipeline.split import cost_of, losses_of, need_bytes  # noqa: E402
from lumbar_train.recipes import Recipe, StageRecipe, recipe_by_name  # noqa: E402
from lumbar_train.stages.aggregate import fit_aggregator  # noqa: E402
from lumbar_train.stages.contrast import SeriesContrasts  # noqa: E402
from lumbar_train.stages.fitting import loop_config  # noqa: E402
from train import Bench, full_size, phantoms  # noqa: E402

HEADER = """\
| stage | samples | images | planned, MiB | measured, MiB | planned to measured | s a step |
|---|---|---|---|---|---|---|"""
_M_MMAP_THRESHOLD, _PAGES = -3, 1 << 16  # malloc.h
STUDIES = 1975  # of the competition: the largest batch that the aggregator can have


def image_count(batch: dict[str, torch.Tensor]) -> int:
    """Images that a network computes of a batch: padded places are left out."""
    if "mask" in batch:
        return int(batch["mask"].sum())
    images = batch["images"] if "images" in batch else batch["raw_mask"]
    return len(images)


def samples_of(bench: Bench, name: str, stage: StageRecipe) -> Any:
    """A stage's data set."""
    if name == "series_contrast":
        return SeriesContrasts(bench.cache, list(bench.targets), stage.network, stage.augment)
    return bench.stage(name, stage)[0]


def in_own_process(work: Callable[..., Any], *args: Any) -> Any:
    """What a function answers in a process of its own, to which everything is there that this one has loaded."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(work, args)


def resident(name: str) -> int:
    """``VmHWM``, ``RssAnon`` or ``RssFile`` of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


class Peak:
    """The growth of this process's peak memory from now on, pages of the libraries' files left out."""

    def __init__(self, *, has_heap: bool) -> None:
        gc.collect()
        if not has_heap:
            ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _PAGES)  # each tensor in a mapping of its own
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        self.anonymous, self.start = resident("RssAnon"), time.process_time()

    def stop(self) -> tuple[int, float]:
        """Bytes, and seconds of the processor."""
        return resident("VmHWM") - resident("RssFile") - self.anonymous, time.process_time() - self.start


def one_step(network: nn.Module, config: Any, batch: dict[str, torch.Tensor], loss: Any) -> None:
    """An optimiser step as ``lumbar_train train`` makes it, with AdamW's moments and averaged weights there before."""
    optimisation = Optimisation(network, config, Distributed(), 10)
    optimisation.network.train()
    for parameter in optimisation.parameters:  # a step without gradients makes the moments
        parameter.grad = torch.zeros_like(parameter)
    optimisation.step()
    part = Part(0, 0, tuple(range(config.batch_size)), counts=True, is_last=True)
    sums = optimisation.backward(part, batch, loss)
    optimisation.clip_gradients(float(sums["weight"]))
    optimisation.step()


def warm_up(config: Any) -> None:
    """What the first step of any network loads."""
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.SiLU())
    batch = {"images": torch.rand(config.batch_size, 1, 16, 16)}
    one_step(network, config, batch, lambda network, batch: (network(batch["images"]).square().mean(), {}))


def measured(
    stage: StageRecipe, batch: dict[str, torch.Tensor], loss: Any, n_samples: int, *, has_heap: bool
) -> tuple[int, float]:
    """Bytes at the peak of an optimiser step, and its seconds of the processor."""
    config = replace(loop_config(stage, 0, {"amp": "off"}), batch_size=n_samples, accumulate=1)
    warm_up(config)
    peak = Peak(has_heap=has_heap)
    batch = {name: value.clone() for name, value in batch.items()}
    one_step(build(name_of(stage.network), to_dict(stage.network)), config, batch, loss)
    return peak.stop()


def first_slices(sample: dict[str, torch.Tensor], most: int) -> dict[str, torch.Tensor]:
    """A sample of ``sagittal_z`` cut to its first slices."""
    cut = {"images", "counts", "raw_patches", "raw_matrices", "raw_group"}
    sample = {name: value[:most] if name in cut else value for name, value in sample.items()}
    return sample | {name: value[:, :most] for name, value in sample.items() if name == "raw_mask"}


def measured_aggregator(stage: StageRecipe, n_studies: int, *, has_heap: bool) -> tuple[int, float]:
    """The same for the aggregator, whose own loop fits it on logits."""

    def fit(n_studies: int) -> None:
        rng = np.random.default_rng(0)
        models = len(stage.network.models)
        logits = rng.standard_normal((n_studies, models, 5, 5, 3), np.float32)
        labels = rng.integers(0, 3, (n_studies, 25)).astype(np.int8)
        mask, prior = np.ones((n_studies, models, 5, 5), bool), np.full((25, 3), 1 / 3)
        sure = np.zeros((n_studies, 5, 4), np.float32)
        few = replace(stage.fit, epochs=2, batch=n_studies)
        fit_aggregator(logits, mask, labels, prior, stage.network, few, 0, sure)

    fit(2)
    peak = Peak(has_heap=has_heap)
    fit(n_studies)
    n_bytes, seconds = peak.stop()
    return n_bytes, seconds / 2


def measure(
    bench: Bench, recipe: Recipe, name: str, n_samples: int, most: int, has_heap: bool
) -> tuple[int, int, float]:
    """Images, bytes and seconds of one stage's step."""
    stage = recipe.stages[name]
    if name == "aggregator":
        return (n_samples, *measured_aggregator(stage, n_samples, has_heap=has_heap))
    data = samples_of(bench, name, stage)
    keys = [(k // len(data), k % len(data)) for k in range(n_samples)]
    samples = [data.sample(index, sample_rng(0, epoch, index)) for epoch, index in keys]
    if name == "sagittal_z":
        samples = [first_slices(sample, most) for sample in samples]
    batch = data.collate(samples)
    return (image_count(batch), *measured(stage, batch, losses_of(recipe)[name], n_samples, has_heap=has_heap))


def counted_cost(bench: Bench, recipe: Recipe, name: str) -> NetworkCost:
    """What the plan counts of a stage."""
    return cost_of(recipe.stages[name], losses_of(recipe)[name], count_cohort(bench.cohort), is_half=False)(False)


def row_of(bench: Bench, recipe: Recipe, name: str, n_samples: int | None, limit: int, has_heap: bool) -> str:
    """A stage's line of the table, as it stands in the docs."""
    stage, cost = recipe.stages[name], in_own_process(counted_cost, bench, recipe, name)

    def planned(images: int) -> float:
        return need_bytes(stage, cost, images, is_half=False, is_gpu=False)

    most = int(count_cohort(bench.cohort).images(stage.network).max())
    if n_samples is None:
        if planned(most) > limit and name == "sagittal_z":
            most = max((n for n in range(1, most) if planned(n) <= limit), default=1)
        choices = range(1, min(stage.fit.batch, STUDIES) + 1)
        n_samples = max((n for n in choices if planned(n * most) <= limit), default=1)
    images, peak, seconds = in_own_process(measure, bench, recipe, name, n_samples, most, has_heap)
    plan = planned(images)
    return (
        f"| `{recipe.name}` {name} | {n_samples} | {images} | {plan / 2**20:,.0f} | {peak / 2**20:,.0f} | "
        f"{plan / peak:.2f} | {seconds:.1f} |"
    )


def main() -> None:
    """Measure every stage of the recipes and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a cohort; default: phantoms")
    parser.add_argument("--studies", type=int, default=3, help="phantoms to make; default: %(default)s")
    parser.add_argument("--recipes", default="demo", help="with commas between; default: %(default)s")
    parser.add_argument("--stages", help="with commas between; default: all that fit a network")
    parser.add_argument("--samples", type=int, help="of a batch; default: as many as --limit holds")
    parser.add_argument("--limit", default="8GiB", help="of a process, by the plan; default: %(default)s")
    parser.add_argument("--heap", action="store_true", help="leave it to glibc when memory goes back to the system")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(args.data or phantoms(Path(scratch) / "cohort", args.studies), Path(scratch) / "cache")
        print(HEADER, flush=True)
        for recipe_name in args.recipes.split(","):
            recipe = full_size(recipe_by_name(recipe_name), len(bench.cohort))
            for name in args.stages.split(",") if args.stages else recipe.stages:
                print(row_of(bench, recipe, name, args.samples, parse_memory(args.limit), args.heap), flush=True)


if __name__ == "__main__":
    main()
