"""``python -m lumbar_train compare`` and ``ensemble``."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from lumbar.errors import CohortError
from lumbar.io.competition import check_competition
from lumbar.io.path_options import FOLDER, NEW_FOLDER, PLACE
from lumbar_train.ensemble.named_runs import named_folders, named_runs
from lumbar_train.pipeline.given import check_folder, check_out


def add_compare(commands: Any) -> None:
    """Add ``compare`` to the subparsers of ``python -m lumbar_train``."""
    compare: argparse.ArgumentParser = commands.add_parser(
        "compare",
        help="compare runs in pairs, out of fold or on studies that none was fitted on",
        description="Compare runs in pairs: the metric and each of its terms, with paired bootstrap intervals over "
        "studies, and whether a run is better, worse, or cannot be told apart. On the cohort that the runs were "
        "trained on, their out-of-fold answers are compared, on the same folds; on another one, what their weights "
        "predict.",
    )
    add = compare.add_argument
    add("--runs", nargs="+", default=[], metavar="[NAME=]RUN",
        help="two or more run folders; on an unseen cohort sealed bundles and submission.csv as well")  # fmt: skip
    add("--data", type=FOLDER, metavar="ROOT",
        help="folder in the competition's layout; without it the runs are compared out of fold")  # fmt: skip
    add("--split", choices=("train", "test"),
        help="test: labels in solution.csv; default: train, with --baseline and --chain test")  # fmt: skip
    add("--baseline", type=PLACE, metavar="B", help="short for --runs baseline=B chain=C, with --chain")
    add("--chain", type=PLACE, metavar="C", help="the run that is compared with --baseline")
    add(
        "--prior",
        type=FOLDER,
        metavar="DIR",
        help="bundle whose prior is shown on an unseen cohort; default: that of the first run",
    )
    add(
        "--out",
        type=NEW_FOLDER,
        metavar="FOLDER",
        help="where index.html and figures.json go; default: none is written",
    )
    compare.set_defaults(action=run_compare)


def run_compare(args: argparse.Namespace) -> None:
    """Compare, say what came out, and write the page where one is asked for."""
    runs = given_runs(args)
    split = args.split or ("test" if args.baseline else "train")
    if args.data is not None:
        check_competition(args.data, split)
    elif args.split or args.prior:
        raise CohortError(
            f"--{'split' if args.split else 'prior'}: found no --data, expected the cohort that it is for"
        )
    check_folder(args.prior, "--prior", "a bundle")
    if args.out is not None:
        check_out(args.out)

    from lumbar_train.baseline.compare import with_floor
    from lumbar_train.baseline.page import write_comparison
    from lumbar_train.ensemble.compare import compare

    comparison = compare(runs, args.data, split, args.prior)
    if args.data is not None:
        answers = with_floor(comparison.answers, args.data, split, comparison.study_ids)
        comparison = replace(comparison, answers=answers)
    figures = comparison.figures()
    print("\n".join(lines(figures)))
    if args.out is not None:
        print(f"report: {write_comparison(comparison, figures, args.out)}")


def given_runs(args: argparse.Namespace) -> dict[str, Path]:
    """The runs by name, of either form of the command.

    Raises:
        CohortError: both forms, half of one, or a path that is not there.
    """
    pair = {"baseline": args.baseline, "chain": args.chain}
    if not args.baseline and not args.chain:
        return named_runs(args.runs)
    if args.runs:
        raise CohortError("--runs: found --baseline or --chain beside it, expected one of the two forms")
    for name, path in pair.items():
        if path is None:
            raise CohortError(f"--{name}: found none, expected it beside the other one, or --runs")
        if not os.path.lexists(path):
            check_folder(path, f"--{name}", "a run, a bundle or a submission.csv")
    return named_runs([f"{name}={path}" for name, path in pair.items()])


def lines(figures: dict[str, Any]) -> list[str]:
    """What the terminal shows: the scores with their terms, the differences, the verdicts."""
    wide = max(map(len, [*figures["scores"], *figures["differences"]]))
    terms = list(next(iter(figures["scores"].values())))
    head = " ".join(f"{term.replace('_', ' '):>22}" for term in terms)
    shown = [figures["title"]]
    shown += [f"left out, as {name} has no answer: {count}" for name, count in figures["left_out"].items()]
    shown += figures["notes"]
    shown.append(f"  {'':<{wide}} {head}")
    for rows, sign in ((figures["scores"], ""), (figures["differences"], "+")):
        for name, values in rows.items():
            cells = (f"{v:{sign}.3f} ({low:{sign}.3f} {high:{sign}.3f})" for v, low, high in (values[t] for t in terms))
            shown.append(f"  {name:<{wide}} " + " ".join(f"{cell:>22}" for cell in cells))
    return shown + [entry["line"] for entry in figures["verdicts"]]


def add_ensemble(commands: Any) -> None:
    """Add ``ensemble`` to the subparsers of ``python -m lumbar_train``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "ensemble",
        help="make one run of several: members chosen on their out-of-fold logits, one aggregator",
        description="Join the out-of-fold logits of every classifier of every run, choose members by greedy forward "
        "selection on the competition's metric (scored on folds that the choice was not made on), fit one aggregator "
        "on them, and leave a run folder that build_dataset.py --run seals like any other.",
    )
    add = parser.add_argument
    add("--runs", nargs="+", required=True, metavar="[NAME=]RUN",
        help="two or more runs on the same folds; one, beside --external")  # fmt: skip
    add(
        "--external",
        nargs="+",
        action="extend",
        default=[],
        metavar="[NAME=]FOLDER",
        help="models from elsewhere: folders with oof.parquet, member.json, member.py and weights, whose code runs "
        "(docs/add-a-model.md)",
    )
    add("--data", type=FOLDER, required=True, metavar="ROOT", help="the cohort that the runs were trained on")
    add("--out", type=NEW_FOLDER, required=True, metavar="ENS", help="run folder to write; empty, or not there yet")
    add("--select", choices=("greedy", "all"), default="greedy", help="all: keep every member; default: %(default)s")
    add("--budget", metavar="9h@2xT4", help="choose among what fits this time limit on these machines (T4, A100)")
    add(
        "--localiser",
        metavar="RUN",
        help="whose localisers ship, of the runs; default: which finds levels best",
    )
    add(
        "--own-localisers",
        action="store_true",
        help="members look where their own runs' localisers point, which ship too; default: all share one set",
    )
    add("--seed", type=int, default=0, help="of the aggregator and of what is drawn; default: %(default)s")
    parser.set_defaults(action=run_ensemble)


def run_ensemble(args: argparse.Namespace) -> None:
    """Make the ensemble, say what was chosen, and write its page."""
    folders = named_folders(args.external)
    runs = named_runs(args.runs, least=1 if folders else 2)
    for name, path in runs.items():
        check_folder(path, f"--runs {name}", "a run folder")
    check_competition(args.data, "train", has_split=False)
    check_out(args.out)

    from lumbar_train.ensemble.budget import parse_target
    from lumbar_train.ensemble.build import build_ensemble, summary, unit_of
    from lumbar_train.ensemble.external import read_externals
    from lumbar_train.run import thread_count, torch_threads

    target = None if args.budget is None else parse_target(args.budget)
    externals = read_externals(folders, runs)
    with torch_threads(thread_count()):
        made = build_ensemble(
            runs, args.data, args.out, how=args.select, target=target, localiser=args.localiser,
            keeps_own=args.own_localisers, seed=args.seed, externals=externals,
        )  # fmt: skip
        said = summary(made, target)
        print("\n".join(said), flush=True)

        from lumbar_train.ensemble.page import write_page
        from lumbar_train.report import report_on

        page, evaluation = report_on(args.out, args.data)
        own = write_page(made, evaluation, said[-1], unit_of(target))
    print(f"report: {page} and {own}")
    print(f"weights to seal: {args.out / 'export'}")
