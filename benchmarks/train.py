"""Samples a second of each training stage: what one loader process prepares, what the device trains, and their ratio.

    python benchmarks/train.py [--data COHORT] [--studies 3] [--recipes demo] [--steps 6] [--only-loader]

Each stage's own data, network, loss and augmentation, as ``lumbar_train train`` puts them together; places come from
the truth, so that no stage waits for the one before. ``loader`` is what one process prepares, ``finish`` what the
device makes images of (recipes that augment on the device), ``device`` the whole step on batches in memory, that part
included, and ``ratio`` device to loader: so many loader processes keep up with it. ``whole`` is the step with samples
prepared as ``--loaders`` says. Without ``--data`` phantoms are made (about 5 s a study). On a CPU one thread runs and
processor time counts, so that other work on the machine changes little; on a GPU it is the clock, and ``model2`` and
``strong`` run at full size as well. ``--only-loader`` leaves the networks out: full sizes on any machine.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "kernel"), str(ROOT / "src")]

from lumbar.config import CLASSIFIERS, HeatmapConfig, SagittalRegressionConfig, to_dict  # noqa: E402
from lumbar.models import build, name_of  # noqa: E402
from lumbar_train.data.batched import finished  # noqa: E402
from lumbar_train.data.cache import Cache, build_cache  # noqa: E402
from lumbar_train.data.masks import MaskReader  # noqa: E402
from lumbar_train.data.tables import Cohort, read_cohort  # noqa: E402
from lumbar_train.data.targets import study_targets  # noqa: E402
from lumbar_train.data.true_points import true_localisation  # noqa: E402
from lumbar_train.engine.distributed import Distributed, pick_device  # noqa: E402
from lumbar_train.engine.loop_config import autocast, place  # noqa: E402
from lumbar_train.engine.sampling import Plan, make_loader, to_device  # noqa: E402
from lumbar_train.evaluation.point_errors import truth_points  # noqa: E402
from lumbar_train.recipes import Recipe, StageRecipe, recipe_by_name  # noqa: E402
from lumbar_train.stages import losses  # noqa: E402
from lumbar_train.stages.classify import LevelCrops  # noqa: E402
from lumbar_train.stages.fitting import loop_config  # noqa: E402
from lumbar_train.stages.locate import AxialXY, SagittalRegression, SagittalXY, SliceRoles  # noqa: E402

WARM_UP = 2
STAGES = ("sagittal_xy", "sagittal_z", "axial_xy", *CLASSIFIERS)


class Bench:
    """A cohort with its true points, and each stage's data and loss on it.

    Args:
        root: the cohort.
        folder: for the decoded cache.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self.cohort: Cohort = read_cohort(root, progress=False)
        build_cache(folder, root, "train", self.cohort.series, workers=0, progress=False)
        self.cache = Cache(folder)
        points, truth = dict(list(self.cohort.points.groupby("study_id"))), truth_points(self.cohort)
        self.targets, self.localisations = {}, {}
        for study_id in map(int, self.cohort.study_ids):
            study = self.cache.study(study_id)
            self.targets[study_id] = study_targets(study, points.get(study_id, self.cohort.points.iloc[:0]))
            self.localisations[study_id] = true_localisation(study, truth[truth["study_id"] == study_id])
        self.labels = dict(zip(map(int, self.cohort.study_ids), self.cohort.labels, strict=True))

    def stage(self, name: str, stage: StageRecipe) -> tuple[Any, Callable[..., Any]]:
        """Data and loss of one stage."""
        config, augment = stage.network, stage.augment
        if name == "sagittal_xy":
            if isinstance(config, SagittalRegressionConfig):
                data = SagittalRegression(self.cache, self.targets, config, augment, repeats=stage.fit.repeats)
                return data, losses.sagittal_regression_loss
            masks = MaskReader(self.cohort.root)
            there = masks if masks.is_there else None
            data = SagittalXY(self.cache, self.targets, config, augment, repeats=stage.fit.repeats, masks=there)
            return data, losses.heatmap_loss
        if name == "sagittal_z":
            levels = {k: v.levels_mm for k, v in self.localisations.items()}
            return SliceRoles(self.cache, self.targets, levels, config, augment), losses.slice_role_loss
        if name == "axial_xy":
            loss = losses.heatmap_loss if isinstance(config, HeatmapConfig) else losses.axial_regression_loss
            return AxialXY(self.cache, self.targets, config, augment), loss
        data = LevelCrops(self.cache, self.localisations, self.labels, config, augment, stage.mixing)
        return data, losses.graded_loss


HEADER = f"{'':<20} {'batch':>5} {'loader':>9} {'finish':>9} {'device':>9} {'ratio':>6} {'whole':>9} {'peak GiB':>9}"


def measure(
    bench: Bench, name: str, stage: StageRecipe, n_steps: int, loaders: int, device: torch.device, amp: str
) -> str:
    """One row of the table."""
    data, loss = bench.stage(name, stage)
    distributed = Distributed(device=device)
    config = loop_config(stage, 0, {"amp": amp})
    torch.manual_seed(0)
    network = place(build(name_of(stage.network), to_dict(stage.network)), config, distributed).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5)

    def step(batch: Any) -> None:
        with autocast(config, device):
            value, _ = loss(network, to_device(batch, device))
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    source = batches(data, config.batch_size, loaders, device)
    kept = [next(source) for _ in range(WARM_UP)]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for batch in kept:
        step(batch)
    # In turns, so that other work on the machine affects both alike
    whole, alone = [], []
    for k in range(n_steps):
        whole.append(_seconds(lambda: step(next(source)), device))
        alone.append(_seconds(lambda k=k: step(kept[k % WARM_UP]), device))
    n = min(config.batch_size, len(data))
    prepared, made = prepare_rates(data, config.batch_size, n_steps, device)
    rates = prepared, made, n / float(np.median(alone)), n / float(np.median(whole))
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else _resident_gib()
    return row_of(name, n, *rates, peak)


def row_of(
    name: str, n: int, prepared: float, made: float | None, device: float | None, whole: float | None, peak: float
) -> str:
    """A line under ``HEADER``; what was not measured is a dash."""
    shown = [f"{value:>9.1f}" if value else f"{'–':>9}" for value in (prepared, made, device, whole)]
    ratio = f"{device / prepared:>6.1f}" if device else f"{'–':>6}"
    return f"{name:<20} {n:>5} {shown[0]} {shown[1]} {shown[2]} {ratio} {shown[3]} {peak:>9.2f}"


def batches(data: Any, batch_size: int, loaders: int, device: torch.device) -> Iterator[Any]:
    """Whole batches of a data set without end."""
    plan = Plan(len(data), batch_size, 1, 0, Distributed(device=device))
    loader = make_loader(data, plan, workers=loaders, device=device)
    epoch = 0
    while True:
        for part, batch in zip(plan.start(epoch), loader, strict=True):
            if len(part.indices) == min(batch_size, len(data)):
                yield batch
        epoch += 1


def prepare_rates(data: Any, batch_size: int, n_steps: int, device: torch.device) -> tuple[float, float | None]:
    """Samples/s that one process prepares, and that the device makes images of (None where the loader makes them)."""
    source = batches(data, batch_size, 0, device)
    first = next(source)
    n = min(batch_size, len(data))
    seconds = [_seconds(lambda: next(source), device) for _ in range(n_steps)]
    if "raw_patches" not in first:
        return n / float(np.median(seconds)), None
    there = to_device(first, device)
    finished(there)
    made = [_seconds(lambda: finished(there), device) for _ in range(n_steps)]
    return n / float(np.median(seconds)), n / float(np.median(made))


def measure_loader(bench: Bench, name: str, stage: StageRecipe, n_steps: int, device: torch.device) -> str:
    """One row without the network."""
    data, _ = bench.stage(name, stage)
    prepared, made = prepare_rates(data, stage.fit.batch, n_steps, device)
    return row_of(name, min(stage.fit.batch, len(data)), prepared, made, None, None, _resident_gib())


def _seconds(action: Callable[[], None], device: torch.device) -> float:
    """Time of an action: of the clock on a GPU, of the processor on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    start = clock()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def _resident_gib() -> float:
    """Peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def full_size(recipe: Recipe, n_studies: int) -> Recipe:
    """The recipe with so many repeats that few studies fill whole batches."""
    stage = recipe.stages["sagittal_xy"]
    repeats = max(stage.fit.repeats, -(-2 * stage.fit.batch // n_studies))
    return replace(
        recipe, stages=recipe.stages | {"sagittal_xy": replace(stage, fit=replace(stage.fit, repeats=repeats))}
    )


def phantoms(root: Path, n_studies: int) -> Path:
    """A cohort to measure on."""
    command = [sys.executable, "-m", "lumbar_phantom", "--out", str(root), "--studies", str(n_studies)]
    subprocess.run([*command, "--seed", "77", "--workers", "1"], check=True, capture_output=True)
    return root


def main() -> None:
    """Measure every stage of the recipes and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a cohort; default: phantoms")
    parser.add_argument("--studies", type=int, default=3, help="phantoms to make; default: %(default)s")
    parser.add_argument("--recipes", help="default: demo, and on a GPU model2 and strong as well")
    parser.add_argument("--steps", type=int, default=6, help="timed steps a stage; default: %(default)s")
    parser.add_argument("--amp", default="auto", help="auto, off, bf16 or fp16; default: %(default)s")
    parser.add_argument("--loaders", type=int, default=0, help="processes that prepare samples; default: %(default)s")
    parser.add_argument("--only-loader", action="store_true", help="what loader processes prepare, without networks")
    args = parser.parse_args()
    device = pick_device("auto")
    if device.type == "cpu":
        torch.set_num_threads(1)
        args.loaders = 0  # their time would not be counted
    names = args.recipes or ("demo,model2,strong" if device.type == "cuda" or args.only_loader else "demo")
    with tempfile.TemporaryDirectory() as scratch:
        root = args.data or phantoms(Path(scratch) / "cohort", args.studies)
        bench = Bench(root, Path(scratch) / "cache")
        device_name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU, one thread"
        print(f"{device_name}; {len(bench.cohort)} studies; {args.loaders} loader processes")
        for name in names.split(","):
            recipe = full_size(recipe_by_name(name), len(bench.cohort))
            print(f"\n{name}, samples/s\n{HEADER}")
            for stage in STAGES:
                if args.only_loader:
                    row = measure_loader(bench, stage, recipe.stages[stage], args.steps, device)
                else:
                    row = measure(bench, stage, recipe.stages[stage], args.steps, args.loaders, device, args.amp)
                print(row, flush=True)


if __name__ == "__main__":
    main()
