"""Trains demo, and model2 and strong cut down by ``--set`` alone, on the same cohort, and measures them on another.

    python -m lumbar_phantom --out data --studies 200 --seed 1601 --workers 2
    python -m lumbar_phantom --out unseen --studies 150 --seed 1602 --split test --workers 2
    python benchmarks/small_recipes.py --data data --unseen unseen --out runs/small [--recipes demo,model2,strong]

Every mechanism of a recipe stays on. Networks, images, numbers of slices and of fits are small enough for two CPU
cores; sides share a network, augmentation is about as strong as the demo's, and `strong` mixes a third as many
samples, because 100 studies a fold and networks that begin from random weights do not learn under the original's. A
call goes on with the one before. Each recipe's line tells the minutes, and how the totals on the unseen studies compare
with the demo's.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from inputs import are_given

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "kernel"), str(ROOT / "src")]

from lumbar.config import CLASSIFIERS  # noqa: E402
from lumbar_train.__main__ import main as lumbar_train  # noqa: E402

SMALL = {"backbone": "resnet10t", "backbone.channels": "24,48,96,160", "backbone.stem_width": 16,
         "backbone.norm": "group"}  # fmt: skip
CLASSIFIER = SMALL | {
    "size": 64, "max_slices": 5, "hidden": 64, "level_embedding": 8, "position_embedding": 8, "share_sides": "true",
    "dropout": 0.2, "weight_decay": 0.02, "lr": 1e-3, "ema": 0.99,
    "turn_deg": 10, "zoom": 0.12, "shift": 0, "shift_mm": 3, "uniform": "false", "contrast": 0.5, "shading": 0.3,
    "noise": 0.03, "hole": 0.2, "holes": "1,3",
}  # fmt: skip
ALL = {
    **{name: CLASSIFIER for name in CLASSIFIERS},
    "sagittal_classifier": CLASSIFIER | {"size": 48, "max_slices": 7, "crop_scale": 0.65},
    "sagittal_z": SMALL | {"size": 80, "hidden": 48, "lr": 1e-3, "batch": 4, "epochs": 14, "ema": 0.99},
    "aggregator": {"epochs": 100, "batch": 4096, "lr": 2e-3},
    "series_contrast": {"epochs": 4},
    "recipe": {"n_folds": 2, "full_seeds": 1},
    "*": {"on_device": "false"},
}
EPOCHS = {
    "model2": {"sagittal_classifier": 30, "axial_subarticular": 24, "axial_all": 36},
    "strong": {"sagittal_classifier": 24, "axial_subarticular": 24, "axial_all": 30},
}
LOCALISERS = {
    "model2": {
        "sagittal_xy": SMALL | {"size": 160, "lr": 2e-3, "epochs": 40, "repeats": 10, "batch": 32, "ema": 0.99},
        "axial_xy": SMALL | {"size": 128, "lr": 1e-3, "epochs": 12, "ema": 0.99},
    },
    "strong": {
        "sagittal_xy": {"backbone": "none", "size": 224, "mm_per_px": 1.5, "context": 3, "lr": 2e-3, "repeats": 6,
                        "batch": 16, "epochs": 10, "ema": 0.99},
        "axial_xy": {"backbone": "none", "size": 160, "mm_per_px": 1.2, "widths": "16,24,32,48,64", "lr": 2e-3,
                     "epochs": 5, "ema": 0.99},
    },
}  # fmt: skip
OWN = {"model2": {}, "strong": {"metric_epochs": 1, "cutmix": 0.1, "mixup": 0.1}}  # of classifiers
RECIPES = ("demo", *EPOCHS)


def words_of(recipe: str) -> list[str]:
    """The ``--set`` words that make a recipe small; none for the demo, but for its last, smallest stage."""
    if recipe == "demo":
        return ["series_contrast.epochs=4"]
    stages = ALL | LOCALISERS[recipe]
    for name, epochs in EPOCHS[recipe].items():
        stages[name] = stages[name] | {"epochs": epochs} | OWN[recipe]
    return [f"{stage}.{field}={value}" for stage, fields in stages.items() for field, value in fields.items()]


def train(recipe: str, data: Path, out: Path, jobs: int) -> float:
    """Train a recipe, or go on with it; the minutes of all sessions together."""
    run = out / recipe
    words = ["train", "--data", str(data), "--recipe", recipe, "--out", str(run), "--cache", str(out / "cache")]
    words += ["--jobs", str(jobs), "--amp", "off", "--no-pretrained", *(["--resume"] if run.exists() else [])]
    if status := lumbar_train(words + [part for word in words_of(recipe) for part in ("--set", word)]):
        sys.exit(status)  # it has said why
    return float(json.loads((run / "session.json").read_text())["elapsed_s"]) / 60


def total_on(unseen: Path, run: Path) -> tuple[float, float]:
    """The metric's total on unseen studies, and the prior's."""
    words = ["evaluate", "--run", str(run / "export"), "--data", str(unseen), "--split", "test", "--points", "true"]
    if status := lumbar_train([*words, "--out", str(run / "unseen")]):
        sys.exit(status)
    figures = json.loads((run / "unseen" / "figures.json").read_text())["scores"]
    return figures["+ MLP"]["total"][0], figures["prior"]["total"][0]


def main(words: Sequence[str] | None = None) -> int:
    """Train, measure and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--unseen", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/small"))
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args(words)
    if not are_given(parser, "small_recipes", "nothing is trained", data=args.data, unseen=args.unseen):
        return 0
    chosen = args.recipes.split(",")
    if unknown := set(chosen) - set(RECIPES):
        parser.error(f"--recipes: found {', '.join(sorted(unknown))}, expected of {', '.join(RECIPES)}")
    print("| recipe | minutes | total, unseen | of the prior | of the demo |\n|---|---|---|---|---|")
    totals = {}
    for recipe in chosen:
        minutes = train(recipe, args.data, args.out, args.jobs)
        totals[recipe], prior = total_on(args.unseen, args.out / recipe)
        to_demo = f"{totals[recipe] / totals['demo']:.3f}" if "demo" in totals else ""
        print(f"| {recipe} | {minutes:.0f} | {totals[recipe]:.3f} | {totals[recipe] / prior:.3f} | {to_demo} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
