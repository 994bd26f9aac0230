"""What ``--cache none`` costs: time to prepare a sample through a cache and straight from the DICOM files, by stage.

    python benchmarks/no_cache.py [--data COHORT] [--studies 3] [--recipes model2] [--stages S,S] [--steps 2]

Each stage's own data and augmentation, as in ``benchmarks/train.py``. Both ways prepare the same samples in turns (so
that other work on the machine affects both alike), on one thread, timed by the processor's clock, with all files in the
page cache; they are compared bit by bit. ``none`` keeps no decoded slice from one sample to the next, as with a whole
cohort hardly any comes again before it has to go; ``kept`` keeps all. ``here`` is the training of one sample by the
network on this CPU, in the recipe's size (``--steps 0`` leaves it out), ``T4`` the same by the counted operations and
``lumbar_train.pipeline.machines``. Ratios are of whole samples, prepared and trained one after the other; loader
processes, which prepare beside the training, hide the difference.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "kernel"), str(ROOT / "src")]

from lumbar.config import to_dict  # noqa: E402
from lumbar.models import build, name_of  # noqa: E402
from lumbar_train.data.dicom_folder import DicomFolder, index_studies  # noqa: E402
from lumbar_train.engine.sampling import sample_rng  # noqa: E402
from lumbar_train.pipeline.counts import count_cohort  # noqa: E402
from lumbar_train.pipeline.machines import T4  # noqa: E402
from lumbar_train.pipeline.split import cost_of  # noqa: E402
from lumbar_train.recipes import StageRecipe, recipe_by_name  # noqa: E402
from train import STAGES, Bench, full_size, phantoms  # noqa: E402

HEADER = f"{'':<22} {'cache':>7} {'none':>7} {'kept':>7} {'here':>8} {'ratio':>7} {'T4':>7} {'ratio':>7}"


def prepared(data: Any, key: tuple[int, int]) -> tuple[Any, float]:
    """A sample and the milliseconds that it took."""
    start = time.process_time()
    sample = data.sample(key[1], sample_rng(0, *key))
    return sample, 1000 * (time.process_time() - start)


def compared(cached: Any, direct: Any, n_samples: int) -> list[tuple[float, float]]:
    """Milliseconds of the same samples, prepared from either.

    Raises:
        SystemExit: a sample differs.
    """
    times = []
    for k in range(n_samples + 2):
        key = (k // len(cached), k % len(cached))
        pair = [prepared(data, key) for data in ((cached, direct) if k % 2 else (direct, cached))]
        one, other = pair if k % 2 else pair[::-1]
        if not all(torch.equal(value, other[0][name]) for name, value in one[0].items()):
            raise SystemExit(f"sample {key}: found other bits without a cache, expected the same")
        times.append((one[1], other[1]))
    return times[2:]


def trained(name: str, stage: StageRecipe, data: Any, loss: Any, n_steps: int) -> float:
    """Milliseconds of the processor that training one sample takes here, forward and backward."""
    torch.manual_seed(0)
    network = build(name_of(stage.network), to_dict(stage.network)).train()
    batch = data.collate([prepared(data, (0, index))[0] for index in range(2)])
    times = []
    for _ in range(n_steps + 1):
        start = time.process_time()
        loss(network, batch)[0].backward()
        times.append(500 * (time.process_time() - start))
    return float(np.median(times[1:]))


def row_of(bench: Bench, sources: Sequence[Any], name: str, stage: StageRecipe, counts: Any, args: Any) -> str:
    """A stage's line."""
    data = []
    for bench.cache in sources:
        made, loss = bench.stage(name, stage)
        data.append(made)
    cached, direct, kept = data
    with_cache, none = np.median(compared(cached, direct, args.samples), axis=0)
    for k in range(len(kept)):  # all slices come into memory
        prepared(kept, (0, k))
    _, again = np.median(compared(cached, kept, args.samples), axis=0)
    here = trained(name, stage, cached, loss, args.steps) if args.steps else 0.0
    cost = cost_of(stage, loss, counts, is_half=False)(False)
    t4 = 1000 * cost.training_flops * float(counts.images(stage.network).mean()) / T4.rate
    ratios = [f"{(none + step) / (with_cache + step):>7.3f}" if step else f"{'-':>7}" for step in (here, t4)]
    times = f"{with_cache:>7.2f} {none:>7.2f} {again:>7.2f}"
    return f"{name:<22} {times} {here:>8.0f} {ratios[0]} {t4:>7.0f} {ratios[1]}"


def main() -> None:
    """Measure every stage of the recipes and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a cohort; default: phantoms")
    parser.add_argument("--studies", type=int, default=3, help="phantoms to make; default: %(default)s")
    parser.add_argument("--recipes", default="model2", help="with commas between; default: %(default)s")
    parser.add_argument("--stages", default=",".join(STAGES), help="with commas between; default: all")
    parser.add_argument("--samples", type=int, default=60, help="timed samples a stage; default: %(default)s")
    parser.add_argument("--steps", type=int, default=2, help="timed training steps a stage; default: %(default)s")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        root = args.data or phantoms(Path(scratch) / "cohort", args.studies)
        bench, index = Bench(root, Path(scratch) / "cache"), Path(scratch) / "index"
        index_studies(index, root, "train", bench.cohort.series, progress=False)
        sizes = [sum(p.stat().st_size for p in (Path(scratch) / name).rglob("*.*")) for name in ("cache", "index")]
        counts = count_cohort(bench.cohort)
        sources = bench.cache, *(DicomFolder(index, root, "train", most) for most in (0, 1 << 40))
        each = [size / counts.slices for size in sizes]
        print(f"{counts.slices} slices: {each[0]:.0f} bytes a slice in the cache, {each[1]:.0f} in the index")
        for name in args.recipes.split(","):
            recipe = full_size(recipe_by_name(name), len(bench.cohort))
            print(f"\n{name}, ms a sample\n{HEADER}")
            for stage in args.stages.split(","):
                print(row_of(bench, sources, stage, recipe.stages[stage], counts, args), flush=True)


if __name__ == "__main__":
    main()
