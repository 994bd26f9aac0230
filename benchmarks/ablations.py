"""What each mechanism of a recipe brings: one classifier trained again without it, on the run's own out-of-fold points.

    python benchmarks/ablations.py --run RUN --data COHORT [--stage axial_all] [--only NAME,NAME] [--out DIR]
        [--cache DIR]

The run must be whole; how it was trained is taken from the command in its ``session.json``. Its out-of-fold
points, first round, suspect labels and predictions of training studies are shared, and only the stage's last round is
trained again, on each fold, with one thing changed. Each variant lies in a folder of its own below ``--out`` and is
trained once; a second call goes on. A row gives the out-of-fold total of the classifier's answers (softmax of its own
logits, without the aggregator) minus the run's own, paired over studies, with the 95 % interval of 2,000 bootstrap
draws. ``rate x 1.05`` changes nothing that matters and shows how far chance alone goes.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from inputs import are_given
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "kernel"), str(ROOT / "src")]

from lumbar.config import CLASSIFIERS  # noqa: E402
from lumbar_train.__main__ import main as train  # noqa: E402
from lumbar_train.data.augment import SOLUTION_AUGMENT, AugmentConfig  # noqa: E402
from lumbar_train.data.folds import read_own_folds  # noqa: E402
from lumbar_train.data.tables import Cohort, read_cohort  # noqa: E402
from lumbar_train.evaluation.scoring import N_BOOTSTRAP, TERMS, draw_counts, resampled  # noqa: E402
from lumbar_train.outputs.store import read_logits  # noqa: E402

GIVEN_ANEW = ("--data", "--out", "--time-limit")  # options of the run's command; a time limit would cut a variant short
NOT_SHARED = ("export", "report", "cache", "run.lock", "aggregator")


@dataclass(frozen=True)
class Variant:
    """A name for the table, and the ``--set`` words that make it."""

    name: str
    words: tuple[str, ...]


def variants(stage: str, own: dict[str, Any]) -> list[Variant]:
    """What can be left out of a classifier of ``strong``, or be the other way, by its entry in ``recipe.json``."""
    is_shared = own["network"]["share_sides"]
    is_mild = own["augment"]["turn_deg"] < SOLUTION_AUGMENT.turn_deg
    chosen = [
        Variant("rate x 1.05", (f"{stage}.lr={1.05 * own['fit']['lr']:g}",)),
        Variant("no CutMix and no mixup", (f"{stage}.cutmix=0", f"{stage}.mixup=0")),
        Variant("no epochs on the metric", (f"{stage}.metric_epochs=0",)),
        Variant("no denoising", ("recipe.denoise=off",)),
        Variant("no pseudo-labels", ("recipe.pseudo=off",)),
        Variant("no consistency filter", ("recipe.consistency=off",)),
        Variant("a window of slices in place of all", (f"{stage}.max_slices=0",)),
        Variant("the original's augmentation in place of mild", augmented(stage, SOLUTION_AUGMENT))
        if is_mild
        else Variant("mild augmentation in place of the original's", augmented(stage, AugmentConfig())),
        Variant("two networks for the sides in place of one", (f"{stage}.share_sides=false",))
        if is_shared
        else Variant("one network for both sides in place of two", (f"{stage}.share_sides=true",)),
    ]
    if stage == "sagittal_classifier":
        chosen.append(Variant("no recesses on sagittal series", (f"{stage}.conditions=0,1,2",)))
    return chosen


def augmented(stage: str, config: AugmentConfig) -> tuple[str, ...]:
    """The words that give a classifier an augmentation; where it runs, and how many slices it keeps, stay."""
    strengths = {name: value for name, value in asdict(config).items() if name not in ("on_device", "keep_slices")}
    return tuple(
        f"{stage}.{name}={','.join(map(str, value)) if isinstance(value, tuple) else str(value).lower()}"
        for name, value in strengths.items()
    )


def command_of(run: Path) -> list[str]:
    """The words of ``lumbar_train train`` that a run was trained with, less those that are given anew or hurry it."""
    try:
        words = shlex.split(str(json.loads((run / "session.json").read_text())["command"]))
        words = words[words.index("train") + 1 :]
    except (OSError, ValueError, KeyError, TypeError):
        sys.exit(f"{run / 'session.json'}: found no command of train, expected the one that the run was trained with")
    kept = []
    rest = iter(words)
    for word in rest:
        if word in GIVEN_ANEW:
            next(rest, None)
        elif word != "--resume":
            kept.append(word)
    return kept


def words_of(run: Path, data: Path, stage: str, variant: Variant, folder: Path, cache: Path | None) -> list[str]:
    """The command line that trains a variant: the run's own, with one thing changed, on one stage and all folds."""
    own = command_of(run)
    if cache is None and "--cache" not in own:
        cache = run / "cache" if (run / "cache").is_dir() else folder.parent / "cache"
    folds = sorted(set(read_own_folds(run / "folds.csv")["fold"]))
    words = ["train", *own, "--data", str(data), "--out", str(folder), "--stages", stage, "--overwrite"]
    words += ["--folds", ",".join(map(str, folds)), *([] if cache is None else ["--cache", str(cache)])]
    return words + [word for change in variant.words for word in ("--set", change)]


def retrained(run: Path, words: list[str], stage: str, folder: Path) -> None:
    """Train a variant in its folder, where that is not done yet."""
    if (folder / "ablated").is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in run.iterdir():
        if path.name not in (*NOT_SHARED, stage):
            copy = shutil.copytree if path.is_dir() else shutil.copy2
            copy(path, folder / path.name)
    if status := train(words):
        sys.exit(status)  # it has said why
    (folder / "ablated").touch()


def chosen(every: list[Variant], names: str) -> list[Variant]:
    """Variants by name; all where none is named."""
    wanted = [name.strip() for name in names.split(",")] if names else [variant.name for variant in every]
    known = [variant.name for variant in every]
    if unknown := [name for name in wanted if name not in known]:
        sys.exit(f"--only: found {', '.join(unknown)}, expected of {', '.join(known)}")
    return [variant for variant in every if variant.name in wanted]


def answers(folder: Path, stage: str, study_ids: list[int]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Probabilities (N, 25, 3) of a classifier's held-out logits, and which (N, 25) it gives."""
    logits, mask = read_logits(folder / stage / "oof.parquet", study_ids)
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    probs = (shifted / shifted.sum(axis=-1, keepdims=True)).reshape(len(study_ids), 25, 3)
    return probs, mask.reshape(len(study_ids), 25)


def row_of(name: str, cohort: Cohort, base: Path, other: Path, stage: str) -> str:
    """A line of the table: the variant's total, and its difference to the run's own with the interval.

    The total is the mean of the metric's terms that both answer; where these are not all, the line names them.
    """
    ids = [int(k) for k in cohort.study_ids]
    (before, has_before), (after, has_after) = answers(base, stage, ids), answers(other, stage, ids)
    is_answered = has_before & has_after
    labels = np.where(is_answered, cohort.labels, -1)
    uniform = np.full(3, 1 / 3)
    before, after = (np.where(is_answered[..., None], probs, uniform) for probs in (before, after))
    counts = np.concatenate([np.ones((1, len(labels)), np.int64), draw_counts(len(labels), N_BOOTSTRAP, 0)])
    earlier, later = (resampled(labels, probs, counts)[:, 1:] for probs in (before, after))
    is_told = ~np.isnan(later[0])
    totals = later[:, is_told].mean(axis=1)
    change = totals - earlier[:, is_told].mean(axis=1)
    low, high = np.nanpercentile(change[1:], (2.5, 97.5))
    verdict = "helps" if low > 0 else "harms" if high < 0 else "cannot be told"
    of = "" if is_told.all() else f" (of {', '.join(np.array(TERMS[1:])[is_told])})"
    return f"| {name}{of} | {totals[0]:.3f} | {change[0]:+.3f} ({low:+.3f} to {high:+.3f}) | {verdict} |"


def main(words: Sequence[str] | None = None) -> int:
    """Train the variants that are not there, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--stage", default="axial_all")
    parser.add_argument("--only", default="", help="names of variants, separated by commas")
    parser.add_argument("--out", type=Path, help="default: RUN-ablations")
    parser.add_argument("--cache", type=Path, help="decoded studies; default: the run's own, else one in --out")
    args = parser.parse_args(words)
    if not are_given(parser, "ablations", "nothing is trained again", run=args.run, data=args.data):
        return 0
    out = (args.out or args.run.with_name(args.run.name + "-ablations")) / args.stage
    every = chosen(variants(args.stage, stage_of(args.run, args.stage)), args.only)
    plans = {one: out / one.name.replace(" ", "-") for one in every}
    commands = {one: words_of(args.run, args.data, args.stage, one, plans[one], args.cache) for one in every}
    cohort = read_cohort(args.data)
    lines = [f"| {args.stage} with | total | minus the run's own | what was left out |", "|---|---|---|---|"]
    for variant, folder in plans.items():
        retrained(args.run, commands[variant], args.stage, folder)
        lines.append(row_of(variant.name, cohort, args.run, folder, args.stage))
        print(lines[-1], flush=True)
    print("\n".join(["", *lines]))
    return 0


def stage_of(run: Path, stage: str) -> dict[str, Any]:
    """A run's classifier as its recipe has it: network, fit, augmentation."""
    try:
        stages = json.loads((run / "recipe.json").read_text())["stages"]
    except (OSError, ValueError, KeyError, TypeError):
        sys.exit(f"{run / 'recipe.json'}: found no stages, expected a run of train")
    known = [name for name in CLASSIFIERS if name in stages]
    if stage not in known:
        sys.exit(f"--stage: found {stage}, expected one of {', '.join(known) or 'a run with classifiers'}")
    return dict(stages[stage])


if __name__ == "__main__":
    sys.exit(main())
