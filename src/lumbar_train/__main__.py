"""``python -m lumbar_train``: cohort → weights, and their figures."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

from lumbar.errors import LumbarError
from lumbar_train.cache import build_cache
from lumbar_train.evaluate import Evaluation
from lumbar_train.export import export, write_recipe
from lumbar_train.folds import FULL, make_folds, parse_folds, read_folds, write_folds
from lumbar_train.recipes import RECIPES, recipe_by_name
from lumbar_train.report import report_on
from lumbar_train.tables import read_cohort
from lumbar_train.train import STEPS, Run


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run it; returns the exit code."""
    args = _parser().parse_args(arguments)
    try:
        args.action(args)
    except LumbarError as error:
        print(f"lumbar_train: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lumbar_train", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="fit every stage on a competition folder, or some stages")
    train.add_argument("--data", type=Path, required=True, metavar="ROOT", help="folder in the competition's layout")
    train.add_argument("--recipe", choices=sorted(RECIPES), default="demo", help="default: %(default)s")
    train.add_argument("--out", type=Path, required=True, metavar="RUN", help="run folder to write")
    train.add_argument("--folds", default=None, help="of 0,1,…,full; default: the recipe's")
    train.add_argument("--fold-file", type=Path, help="table study_id, fold, such as train_folded_v1.csv")
    train.add_argument("--stages", default=",".join(STEPS), help="comma-separated; default: %(default)s")
    train.add_argument(
        "--points", type=Path, metavar="FILE", help="external points: series_id, instance_number, level, x, y"
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
    return parser


def run_train(args: argparse.Namespace) -> None:
    """Fit the stages asked for, then export if all are there."""
    recipe = recipe_by_name(args.recipe)
    cohort = read_cohort(args.data, points_file=args.points)
    for reason, count in cohort.dropped.items():
        print(f"left out: {count} × {reason}")
    args.out.mkdir(parents=True, exist_ok=True)
    fold_file = args.out / "folds.csv"
    if args.fold_file is not None:
        folds = read_folds(args.fold_file, cohort)
    elif fold_file.is_file():
        folds = read_folds(fold_file, cohort)
    else:
        folds = make_folds(cohort, recipe.n_folds, args.seed)
    write_folds(fold_file, folds)
    cache = build_cache(args.cache or args.out / "cache", args.data, cohort.split, cohort.series, workers=args.workers)
    torch.set_num_threads(os.cpu_count() or 1)
    run = Run(
        cohort=cohort,
        folds=folds,
        recipe=recipe,
        out=args.out,
        cache=cache,
        use_folds=parse_folds(args.folds or recipe.folds, folds),
        seed=args.seed,
        resume=args.resume,
    )
    write_recipe(run)
    run.execute([name.strip() for name in args.stages.split(",")], args.jobs)
    if FULL in run.use_folds and (args.out / "aggregator" / "full.safetensors").is_file():
        print(f"weights to seal: {export(run)}")
    if (args.out / "aggregator" / "oof.parquet").is_file():
        show(*report_on(args.out, args.data))


def run_evaluate(args: argparse.Namespace) -> None:
    """Measure and write the page."""
    torch.set_num_threads(os.cpu_count() or 1)
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
