"""What each mechanism of a recipe brings: one classifier trained again without it, on the run's own out-of-fold points.

    python benchmarks/ablations.py --run RUN --data COHORT [--stage axial_all] [--only NAME,NAME] [--out DIR]

The run (``recipe strong`` with whatever ``--set`` it was trained with) must be whole: its out-of-fold points,
first round, suspect labels and predictions of training studies are shared, and only the stage's last round is trained
again, on each fold, with one thing changed. Each variant lies in a folder of its own below ``--out`` and is trained
once; a second call goes on. A row gives the out-of-fold total of the classifier's answers (softmax of its own logits,
without the aggregator) minus the run's own, paired over studies, with the 95 % interval of 2,000 bootstrap draws.
``rate x 1.05`` changes nothing that matters and shows how far chance alone goes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "kernel"), str(ROOT / "src")]

from lumbar_train import train  # noqa: E402
from lumbar_train.data.tables import Cohort, read_cohort  # noqa: E402
from lumbar_train.evaluation.scoring import difference, scores  # noqa: E402
from lumbar_train.outputs.store import read_logits  # noqa: E402

NOT_SHARED = ("export", "report", "cache", "run.lock", "aggregator")


@dataclass(frozen=True)
class Variant:
    """A name for the table, and the ``--set`` words that make it."""

    name: str
    words: tuple[str, ...]


def variants(stage: str, fit: dict[str, Any]) -> list[Variant]:
    """What can be left out of a classifier of ``strong``."""
    chosen = [
        Variant("rate x 1.05", (f"{stage}.lr={1.05 * fit['lr']:g}",)),
        Variant("no CutMix, no mixup", (f"{stage}.cutmix=0", f"{stage}.mixup=0")),
        Variant("no epochs on the metric", (f"{stage}.metric_epochs=0",)),
        Variant("no denoising", ("recipe.denoise=off",)),
        Variant("no pseudo-labels", ("recipe.pseudo=off",)),
        Variant("no consistency filter", ("recipe.consistency=off",)),
        Variant("a window of slices, not all", (f"{stage}.max_slices=0",)),
    ]
    if stage == "sagittal_classifier":
        chosen.append(Variant("no recesses on sagittal series", (f"{stage}.conditions=0,1,2",)))
    return chosen


def retrained(run: Path, data: Path, stage: str, variant: Variant, out: Path, noted: dict[str, Any]) -> Path:
    """The folder of a variant, trained if it is not yet."""
    folder = out / variant.name.replace(" ", "-").replace(",", "")
    if (folder / "ablated").is_file():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in run.iterdir():
        if path.name not in (*NOT_SHARED, stage):
            copy = shutil.copytree if path.is_dir() else shutil.copy2
            copy(path, folder / path.name)
    folds = ",".join(str(k) for k in range(int(noted["n_folds"])))
    train(
        data,
        folder,
        recipe=noted["name"],
        stages=[stage],
        folds=folds,
        overrides=[*noted["set"], *variant.words],
        overwrite=True,
        seed=int(noted["seed"]),
        cache=run.parent / "cache",
        jobs=2,
        pretrained=False,
    )
    (folder / "ablated").touch()
    return folder


def answers(folder: Path, stage: str, study_ids: list[int]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Probabilities (N, 25, 3) of a classifier's held-out logits, and which (N, 25) it gives."""
    logits, mask = read_logits(folder / stage / "oof.parquet", study_ids)
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    probs = (shifted / shifted.sum(axis=-1, keepdims=True)).reshape(len(study_ids), 25, 3)
    return probs, mask.reshape(len(study_ids), 25)


def row_of(name: str, cohort: Cohort, base: Path, other: Path, stage: str) -> str:
    """A line of the table: the variant's total, and its difference to the run's own with the interval."""
    ids = [int(k) for k in cohort.study_ids]
    (before, has_before), (after, has_after) = answers(base, stage, ids), answers(other, stage, ids)
    is_answered = has_before & has_after
    labels = np.where(is_answered, cohort.labels, -1)
    uniform = np.full(3, 1 / 3)
    before, after = (np.where(is_answered[..., None], probs, uniform) for probs in (before, after))
    total, change = scores(labels, after)["total"], difference(labels, before, after)["total"]
    verdict = "helps" if change.low > 0 else "harms" if change.high < 0 else "cannot be told"
    return f"| {name} | {total.value:.3f} | {change.value:+.3f} ({change.low:+.3f} to {change.high:+.3f}) | {verdict} |"


def main() -> int:
    """Train the variants that are not there, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--stage", default="axial_all")
    parser.add_argument("--only", default="", help="names of variants, separated by commas")
    parser.add_argument("--out", type=Path, help="default: RUN-ablations")
    args = parser.parse_args()
    if not args.run or not args.data:
        print("ablations: no --run and --data given, so nothing is trained again")
        return 0
    out = args.out or args.run.with_name(args.run.name + "-ablations")
    noted = json.loads((args.run / "recipe.json").read_text())
    cohort = read_cohort(args.data)
    lines = [f"| {args.stage} without | total | minus the run's own | what was left out |", "|---|---|---|---|"]
    for variant in variants(args.stage, noted["stages"][args.stage]["fit"]):
        if not args.only or variant.name in args.only.split(","):
            folder = retrained(args.run, args.data, args.stage, variant, out / args.stage, noted)
            lines.append(row_of(variant.name, cohort, args.run, folder, args.stage))
            print(lines[-1], flush=True)
    print("\n".join(["", *lines]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
