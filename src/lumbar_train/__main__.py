"""``python -m lumbar_train``: cohort → weights, and their figures."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lumbar.errors import LumbarError
from lumbar.io.text import one_line, printable
from lumbar_train.baseline.command import add_commands
from lumbar_train.data.cache import Cache, build_cache
from lumbar_train.data.duplicates import check_copies
from lumbar_train.data.external_points import POINTS_FILE, USES, describe, summary
from lumbar_train.data.folds import FULL, make_folds, parse_folds, read_folds, with_seeds, write_folds
from lumbar_train.data.tables import Cohort, read_cohort
from lumbar_train.data.usable import drop_unreadable, write_dropped
from lumbar_train.engine.distributed import Distributed, join_distributed
from lumbar_train.engine.fold_pool import usable_devices
from lumbar_train.evaluation.evaluate import Evaluation
from lumbar_train.export import export
from lumbar_train.files import DISK_FULL, write_text
from lumbar_train.outputs.kept import check_kept, write_recipe
from lumbar_train.overrides import with_overrides
from lumbar_train.parameters import table
from lumbar_train.recipes import RECIPES, Recipe, recipe_by_name, with_full_epochs
from lumbar_train.report import report_on
from lumbar_train.run import Run
from lumbar_train.stages.fitting import fold_name
from lumbar_train.stages.needs import STEPS
from lumbar_train.stages.pretrained import Start, parse_files, with_backbone


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run it; returns the exit code."""
    args = _parser().parse_args(arguments)
    try:
        args.action(args)
    except (LumbarError, OSError) as error:
        say(error)
        return 1
    return 0


def say(error: Exception) -> None:
    """A refusal as one line."""
    line = one_line(error)
    if isinstance(error, OSError):  # a full disk or a folder that cannot be read, wherever it shows
        reason = "the disk is full" if error.errno in DISK_FULL else error.strerror or line
        line = f"{error.filename or 'a file'}: {reason}; what is whole stays good"
    print(f"lumbar_train: {printable(line)}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lumbar_train", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="fit every stage on a competition folder, or some stages")
    train.add_argument("--data", type=Path, required=True, metavar="ROOT", help="folder in the competition's layout")
    train.add_argument("--recipe", choices=sorted(RECIPES), default="demo", help="default: %(default)s")
    train.add_argument("--out", type=Path, required=True, metavar="RUN", help="run folder to write")
    train.add_argument("--folds", default=None, help="of 0,1,…,full; default: all, which later stages need")
    train.add_argument("--fold-file", type=Path, help="table study_id, fold, such as train_folded_v1.csv")
    train.add_argument("--stages", help=f"comma-separated; default: all of {','.join(STEPS)}")
    train.add_argument(
        "--points",
        type=Path,
        metavar="FILE",
        help="external points of sagittal levels: series_id, instance_number, level, x, y[, img_h, img_w]",
    )
    train.add_argument(
        "--points-use",
        choices=USES,
        default=USES[0],
        help="beside: where the competition has none, and on further slices; instead: before the competition's",
    )
    train.add_argument("--resume", action="store_true", help="go on where a killed run stopped")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--cache", type=Path, help="decoded studies; default: RUN/cache")
    train.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes that decode; default: %(default)s"
    )
    train.add_argument(
        "--jobs", type=int, default=1, help="folds side by side, over the GPUs at hand; default: %(default)s"
    )
    train.add_argument("--loaders", type=int, default=0, help="processes that prepare samples for each fit (GPUs)")
    train.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, …; default: a GPU where there is one")
    train.add_argument(
        "--amp",
        choices=("auto", "off", "bf16", "fp16"),
        default="auto",
        help="half precision of the fits; auto: by GPU, off on CPUs; bf16 is also for CPUs that compute in it",
    )
    train.add_argument("--full-seeds", type=int, help="fits on all data, each with its seed; default: the recipe's")
    train.add_argument(
        "--full-epochs",
        action="append",
        default=[],
        metavar="STAGE=N",
        help="epochs of a stage's fits on all data, those that ship; folds keep the recipe's; may be repeated",
    )
    train.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="STAGE.FIELD=VALUE",
        help="another value for any field of a recipe: sagittal_classifier.backbone=convnext_tiny, *.epochs=3, "
        "recipe.n_folds=2; may be repeated",
    )
    train.add_argument("--backbone", metavar="NAME", help="any timm backbone instead of the recipe's")
    train.add_argument(
        "--pretrained",
        action=argparse.BooleanOptionalAction,
        help="start backbones from timm's weights, fetched from its hub; default: the recipe's choice",
    )
    train.add_argument(
        "--backbone-weights",
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="start a backbone from a local timm checkpoint (.safetensors, .pth); may be repeated",
    )
    train.set_defaults(action=run_train)

    evaluate = commands.add_parser("evaluate", help="measure a run or a sealed bundle on a labelled cohort")
    evaluate.add_argument("--run", type=Path, required=True, metavar="RUN", help="run folder or sealed bundle")
    evaluate.add_argument("--data", type=Path, required=True, metavar="ROOT", help="folder in the competition's layout")
    evaluate.add_argument(
        "--points", choices=("predicted", "true"), default="predicted", help="true: both, side by side"
    )
    evaluate.add_argument("--split", choices=("train", "test"), default="train", help="test: labels in solution.csv")
    evaluate.add_argument("--out", type=Path, metavar="FOLDER", help="where the page goes; default: inside RUN")
    evaluate.set_defaults(action=run_evaluate)
    add_commands(commands)

    recipes = commands.add_parser("recipes", help="parameters of each network of each recipe, beside the solution's")
    recipes.add_argument("--recipe", choices=sorted(RECIPES), help="this one only")
    recipes.set_defaults(action=show_recipes)
    return parser


def show_recipes(args: argparse.Namespace) -> None:
    """Print the tables."""
    names = [args.recipe] if args.recipe else sorted(RECIPES)
    print("\n\n".join(table(recipe_by_name(name)) for name in names))


def run_train(args: argparse.Namespace) -> None:
    """Fit the stages asked for, then export if all are there; under ``torchrun`` with all processes on each fit."""
    recipe = recipe_by_name(args.recipe)
    if args.backbone is not None:
        recipe = with_backbone(recipe, args.backbone)
    recipe = with_full_epochs(recipe, args.full_epochs)
    recipe = with_overrides(recipe, args.set)
    is_pretrained = recipe.pretrained if args.pretrained is None else args.pretrained
    start = Start(is_pretrained, parse_files(args.backbone_weights, recipe))
    with join_distributed(args.device, say) as distributed:
        torch.set_num_threads(n_threads())
        if distributed.is_many and args.jobs > 1 and distributed.is_main:
            print(
                f"--jobs {args.jobs} is off: under torchrun all {distributed.world} processes work on one fit at a time"
            )
        distributed.on_main(lambda: start.check(recipe))
        run = prepare(args, recipe, distributed, start)
        run.execute(args.stages and [name.strip() for name in args.stages.split(",")], args.jobs)
        if distributed.is_main:
            finish(run, args)


def n_threads() -> int:
    """Threads of this process: as the user says, else the cores shared out among the machine's processes."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun sets OMP_NUM_THREADS itself, to 1
    asked = os.environ.get("OMP_NUM_THREADS", "") if local == 1 else ""
    return int(asked) if asked.isdigit() else max(1, (os.cpu_count() or 1) // local)


def prepare(args: argparse.Namespace, recipe: Recipe, distributed: Distributed, start: Start) -> Run:
    """Read the cohort, decode it, drop what cannot be used, and lay out the folds."""
    whole = distributed.on_main(lambda: read_cohort(args.data, points_file=args.points))
    folder = args.cache or args.out / "cache"
    mine = whole.series["study_id"].isin(whole.study_ids[distributed.rank :: distributed.world])
    per_rank = max(1, args.workers // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    n_workers = per_rank if args.workers else 0
    series = whole.series[mine]
    distributed.on_all(
        lambda: build_cache(folder, args.data, whole.split, series, workers=n_workers, progress=distributed.is_main)
    )
    cache = Cache(folder)
    cohort, folds = distributed.on_main(lambda: choose(args, whole, cache, recipe.n_folds))
    run = Run(
        cohort=cohort,
        folds=folds,
        recipe=recipe,
        out=args.out,
        cache=cache,
        use_folds=with_seeds(parse_folds(args.folds, folds), args.full_seeds or recipe.full_seeds),
        seed=args.seed,
        resume=args.resume,
        distributed=distributed,
        devices=usable_devices(args.device),
        loop={"amp": args.amp, **({"workers": args.loaders} if args.loaders else {})},
        start=start,
        words=words_of(args),
        points_use=args.points_use if args.points else USES[0],
        command=command_of(args),
    )
    distributed.on_main(lambda: _begin(run, args))
    if args.points:
        distributed.on_main(lambda: note_points(run))
    return run


def _begin(run: Run, args: argparse.Namespace) -> None:
    """See that what the folder keeps is of this recipe, and note the recipe."""
    stages = args.stages.split(",") if args.stages else list(run.recipe.stages)
    wanted = [] if args.resume else [name.strip() for name in stages]
    mine = {f"{fold_name(fold)}.safetensors" for fold in run.use_folds}
    anew = [name for name in wanted if {path.name for path in (run.out / name).glob("*.safetensors")} <= mine]
    check_kept(run.out, run.recipe, anew)
    write_recipe(run.out, run.recipe, run.seed, run.words)


def note_points(run: Run) -> None:
    """Leave for the report how many points come from where; say it in two lines."""
    counts = summary(run.cache.study, run.cohort.points, run.points_use)
    write_text(run.out / POINTS_FILE, json.dumps(counts, indent=1) + "\n")
    for line in describe(counts):
        print(line)


def words_of(args: argparse.Namespace) -> tuple[str, ...]:
    """What changed the recipe, as ``--set`` and its short forms were given."""
    short = [f"backbone={args.backbone}"] if args.backbone is not None else []
    return (*short, *(f"full-epochs {word}" for word in args.full_epochs), *args.set)


def command_of(args: argparse.Namespace) -> str:
    """How this run was called, without stages and folds."""
    words = ["python", "-m", "lumbar_train", "train", "--data", str(args.data), "--recipe", args.recipe]
    words += ["--out", str(args.out)]
    for option, values in (("--set", args.set), ("--full-epochs", args.full_epochs)):
        for value in values:
            words += [option, value]
    for option, value in (("--backbone", args.backbone), ("--points", args.points)):
        words += [option, str(value)] if value is not None else []
    return shlex.join(words)


def choose(args: argparse.Namespace, whole: Cohort, cache: Cache, n_folds: int) -> tuple[Cohort, pd.DataFrame]:
    """What of the cohort is trained on, and its folds: of a file, of the run as it was begun, or new ones."""
    cohort = drop_unreadable(whole, cache)
    for reason, count in cohort.dropped.items():
        print(f"left out: {count} × {reason}")
    own = args.out / "folds.csv"
    file = args.fold_file or (own if own.is_file() else None)
    left_out = np.setdiff1d(whole.study_ids, cohort.study_ids)
    folds = make_folds(cohort, n_folds, args.seed) if file is None else read_folds(file, cohort, left_out)
    check_copies(cache, folds)
    write_folds(own, folds)
    write_dropped(args.out, whole, cohort)
    return cohort, folds


def finish(run: Run, args: argparse.Namespace) -> None:
    """Export and report, where the last step has been done."""
    if FULL in run.use_folds and (args.out / "aggregator" / "full.safetensors").is_file():
        print(f"weights to seal: {export(run)}")
    if (args.out / "aggregator" / "oof.parquet").is_file():
        show(*report_on(args.out, args.data))


def run_evaluate(args: argparse.Namespace) -> None:
    """Measure and write the page."""
    torch.set_num_threads(n_threads())
    show(*report_on(args.run, args.data, points=args.points, split=args.split, out=args.out))


def show(page: Path, evaluation: Evaluation) -> None:
    """The few lines that a terminal wants; the page has the rest."""
    figures = evaluation.figures()
    print(evaluation.title)
    for step, terms in figures["scores"].items():
        value, low, high = terms["total"]
        print(f"  {step:<14} total {value:.4f}  (95 %: {low:.4f} to {high:.4f})")
    for title, places in (("sagittal points", figures["sagittal"]), ("axial levels", figures["axial"])):
        print(f"  {title}: " + ", ".join(f"{name} {value:.3g}" for name, value in places.items()))
    print(f"report: {page}")


if __name__ == "__main__":
    sys.exit(main())
