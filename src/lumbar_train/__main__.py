"""``python -m lumbar_train``: cohort → weights, and their figures.

Help, wrong options and wrong paths are answered before torch and pandas are imported, which takes many seconds.
"""

from __future__ import annotations

import argparse
import inspect
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lumbar.errors import LumbarError
from lumbar.io.arguments import Parser, program
from lumbar.io.competition import check_competition
from lumbar.io.path_options import FILE, FOLDER, NEW_FOLDER, check_paths
from lumbar.io.signals import note_interrupt, reason_of, run_as_process, watch
from lumbar.io.text import one_line, printable
from lumbar_train.baseline.command import add_commands
from lumbar_train.engine.interrupts import listen
from lumbar_train.ensemble.command import add_compare, add_ensemble
from lumbar_train.files import DISK_FULL
from lumbar_train.outputs.run_lock import holds_run
from lumbar_train.outputs.status import status_lines
from lumbar_train.pipeline.given import check_folder, check_given, check_out
from lumbar_train.pipeline.names import AMP, SHIP, STAGES, USES, recipe_names
from lumbar_train.pipeline.outcome import TrainedRun
from lumbar_train.run import thread_count, torch_threads, train

_said: list[str] = []
if TYPE_CHECKING:
    from lumbar_train.evaluation.evaluate import Evaluation

TRAIN_OPTIONS = [name for name in inspect.signature(train).parameters if name != "on_refusal"]
TRAIN_DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(train).parameters.items()
    if name in TRAIN_OPTIONS and parameter.default is not inspect.Parameter.empty
}


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run it; returns the exit code."""
    parser = _parser()
    args = parser.parse_args(arguments)
    _said.clear()
    try:
        check_paths(parser, args)
        args.action(args)
    except (LumbarError, OSError) as error:
        say(error)
        return 1
    except KeyboardInterrupt as error:
        note_interrupt()
        _say_once(f"{reason_of(error)}: {how_to_go_on(args)}")
        return 1
    return 0


def command() -> int:
    """Run ``main`` as a process: signals end it in order, and within seconds whatever it is doing."""
    listen()
    watch(lambda reason: _say_once(f"{reason}: {how_to_go_on(_parser().parse_args())}"))
    return main()


def script() -> None:
    """The installed command ``lumbar-train``."""
    run_as_process(command)


def how_to_go_on(args: argparse.Namespace) -> str:
    """What an interrupted command leaves, and what to do next."""
    again = "run the same command again"
    if args.command not in ("train", "baseline"):
        return f"nothing was written; {again}"
    if not holds_run(args.out):
        return f"no fit has begun; {again}, and studies that are decoded stay decoded"
    with_resume = again if args.resume and not getattr(args, "overwrite", False) else f"{again} with --resume"
    if getattr(args, "overwrite", False):
        with_resume += " instead of --overwrite"
    return (
        f"{printable(args.out)} keeps the finished fits and the last checkpoint of the others; to go on {with_resume}"
    )


def _say_once(line: str) -> None:
    """Print the one line of an interrupt; under ``torchrun`` the main process alone does."""
    if not _said and os.environ.get("RANK", "0") == "0":
        print(
            f"\nlumbar_train: {line}" if sys.stderr.isatty() else f"lumbar_train: {line}", file=sys.stderr, flush=True
        )
    _said.append(line)


def say(error: Exception) -> None:
    """Print a refusal as one line."""
    line = one_line(error)
    if isinstance(error, OSError):  # a full disk or a folder that cannot be read, wherever it shows
        reason = "the disk is full" if error.errno in DISK_FULL else error.strerror or line
        line = f"{error.filename or 'a file'}: {reason}; what is whole stays good"
    print(f"lumbar_train: {printable(line)}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=program("lumbar_train", "lumbar-train"),
        description="From a labelled cohort to weights, and their figures.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _add_train(commands)
    _add_evaluate(commands)
    add_commands(commands)
    add_compare(commands)
    add_ensemble(commands)
    recipes = commands.add_parser("recipes", help="parameters of each network of each recipe, beside the solution's")
    recipes.add_argument("--recipe", choices=recipe_names(), help="this one only")
    recipes.set_defaults(action=show_recipes)
    return parser


class _Status(argparse.Action):
    """``--status RUN`` asks about a run, so that nothing else needs to be given."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        setattr(namespace, self.dest, values)
        for action in parser._actions:
            action.required = False


def _add_train(commands: Any) -> None:
    """The options of ``lumbar_train.train``: named as its keywords, with its defaults."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "train", help="fit every stage on a competition folder, or some stages"
    )
    parser.set_defaults(action=run_train, **{name: value for name, value in TRAIN_DEFAULTS.items() if value != ()})
    add = parser.add_argument
    add("--data", type=FOLDER, required=True, metavar="ROOT", help="folder in the competition's layout")
    add("--recipe", choices=recipe_names(), help="default: %(default)s")
    add("--out", type=NEW_FOLDER, required=True, metavar="RUN", help="run folder to write")
    add("--folds", help="of 0,1,…,full; default: all, which later stages need")
    add("--fold-file", type=FILE, help="table study_id, fold, such as train_folded_v1.csv")
    add(
        "--stages",
        help=f"comma-separated; default: all of the recipe's: {','.join(STAGES)}; with recipe.denoise or recipe.pseudo "
        "also the classifiers' earlier rounds: axial_all-first, axial_all-pseudo, …",
    )
    add(
        "--points",
        type=FILE,
        metavar="FILE",
        help="external points of sagittal levels: series_id, instance_number, level, x, y[, img_h, img_w]",
    )
    add(
        "--points-use",
        choices=USES,
        help="beside: where the competition has none, and on further slices; instead: before the competition's",
    )
    add(
        "--resume",
        nargs="?",
        const=True,
        type=FOLDER,
        metavar="FROM",
        help="go on with the run that --out holds; finished fits stay. With FROM: with the run of that folder, which "
        "may be read-only or of another machine, and is taken over into --out first",
    )
    add("--overwrite", action="store_true", help="fit again what this call asks for, in a folder that holds a run")
    add("--seed", type=int, help="default: %(default)s")
    add(
        "--cache",
        type=Path,
        metavar="DIR|none",
        help="decoded studies; none: slices are decoded when asked for; default: RUN/cache if it fits the disk",
    )
    add("--workers", type=int, help="processes that decode; default: one for each core")
    add("--jobs", type=int, help="folds side by side, over the GPUs at hand; default: %(default)s")
    add(
        "--loaders",
        type=int,
        help="processes that prepare samples for each fit; default: on GPUs the cores, shared out among jobs",
    )
    add("--device", help="cpu, cuda, cuda:1, …; default: a GPU where there is one")
    add(
        "--amp",
        choices=AMP,
        help="half precision of the fits; auto: by GPU, on CPUs what is faster; bf16: float32 on CPUs slower in it",
    )
    add("--full-seeds", type=int, help="fits on all data, each with its seed; default: the recipe's")
    add(
        "--full-epochs",
        action="append",
        default=[],
        metavar="STAGE=N",
        help="epochs of a stage's fits on all data, those that ship; folds keep the recipe's; may be repeated",
    )
    add(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="STAGE.FIELD=VALUE",
        help="another value for any field of a recipe: sagittal_classifier.backbone=convnext_tiny, *.epochs=3, "
        "recipe.n_folds=2, recipe.fusion=on; may be repeated",
    )
    add("--backbone", metavar="NAME", help="any timm backbone instead of the recipe's")
    add(
        "--pretrained",
        action=argparse.BooleanOptionalAction,
        help="start backbones from timm's weights, fetched from its hub; default: the recipe's choice",
    )
    add(
        "--backbone-weights",
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="start a backbone from a local timm checkpoint (.safetensors, .pth); may be repeated",
    )
    add(
        "--memory",
        metavar="16GB",
        help="cut batches to fit, for each fit; default: what the GPU has free, on CPUs they stay whole",
    )
    add("--time-limit", metavar="11.5h", help="end in order after 11.5h, 30m, 90s or seconds; --resume goes on")
    add(
        "--init",
        type=FOLDER,
        metavar="RUN",
        help="start from another run's weights, stage by stage where shapes agree; or from a sealed bundle that was "
        "trained on phantoms",
    )
    add(
        "--localisers",
        type=FOLDER,
        metavar="RUN",
        help="take over localisers and folds of another run on the same studies; only what follows them is fitted",
    )
    add("--ship", choices=SHIP, help="the fits that are exported: on all data, on folds, or all; default: the recipe's")
    add(
        "--status",
        type=FOLDER,
        action=_Status,
        metavar="RUN",
        help="print where a run stands, from its folder; and end",
    )
    add("--plan", action="store_true", help="print what each stage would take (memory, steps, hours, disk), and end")


def _add_evaluate(commands: Any) -> None:
    evaluate = commands.add_parser("evaluate", help="measure a run or a sealed bundle on a labelled cohort")
    evaluate.add_argument("--run", type=FOLDER, required=True, metavar="RUN", help="run folder or sealed bundle")
    evaluate.add_argument(
        "--data", type=FOLDER, required=True, metavar="ROOT", help="folder in the competition's layout"
    )
    evaluate.add_argument(
        "--points", choices=("predicted", "true"), default="predicted", help="true: both, side by side"
    )
    evaluate.add_argument("--split", choices=("train", "test"), default="train", help="test: labels in solution.csv")
    evaluate.add_argument("--out", type=NEW_FOLDER, metavar="FOLDER", help="where the page goes; default: inside RUN")
    evaluate.set_defaults(action=run_evaluate)


def show_recipes(args: argparse.Namespace) -> None:
    """Print the tables."""
    from lumbar_train.parameters import table
    from lumbar_train.recipes import recipe_by_name

    names = [args.recipe] if args.recipe else recipe_names()
    print("\n\n".join(table(recipe_by_name(name)) for name in names))


def run_train(args: argparse.Namespace) -> None:
    """Train as asked, and say what came out.

    Raises:
        SystemExit: under ``torchrun``, after a refusal that has been printed while the other processes were there.
    """
    if args.status is not None:
        show_status(args)
        return
    if args.plan:
        show_plan(args)
        return
    said: list[Exception] = []

    def say_at_once(error: Exception) -> None:
        say(error)
        said.append(error)

    try:
        trained = train(**{name: getattr(args, name) for name in TRAIN_OPTIONS}, on_refusal=say_at_once)
    except (LumbarError, OSError) as error:
        if error in said:
            raise SystemExit(1) from error
        raise
    if trained.next_command:
        say_left(args, trained)
    if trained.export is not None:
        print(f"weights to seal: {trained.export}")
    if trained.page is not None and trained.evaluation is not None:
        show(trained.page, trained.evaluation)


def say_left(args: argparse.Namespace, trained: TrainedRun) -> None:
    """The last line of a session that its time limit has ended; under ``torchrun`` the main process alone says it."""
    if os.environ.get("RANK", "0") != "0":
        return
    left = ", ".join(f"{stage} {count}" for stage, count in trained.left.items())
    limit = f"time limit of {args.time_limit} reached"
    print(f"{limit}; fits left: {left or 'none'}; go on with: {trained.next_command}", flush=True)


def show_status(args: argparse.Namespace) -> None:
    """Print where a run stands."""
    check_folder(args.status, "--status", "a run folder")
    print("\n".join(status_lines(args.status)))


def show_plan(args: argparse.Namespace) -> None:
    """Print the plan of a run; nothing is decoded or written."""
    from lumbar_train.pipeline.options import TrainOptions

    options = TrainOptions.of(**{name: getattr(args, name) for name in TRAIN_OPTIONS})
    check_given(options)

    from lumbar_train.pipeline.plan import plan_training

    with torch_threads(thread_count()):
        print("\n".join(plan_training(options).lines()))


def run_evaluate(args: argparse.Namespace) -> None:
    """Measure and write the page."""
    check_folder(args.run, "--run", "a run folder or a sealed bundle")
    check_competition(args.data, args.split)
    check_out(args.out or args.run)

    from lumbar_train.report import report_on

    with torch_threads(thread_count()):
        show(*report_on(args.run, args.data, points=args.points, split=args.split, out=args.out))


def show(page: Path, evaluation: Evaluation) -> None:
    """The few lines that a terminal wants; the page has the rest."""
    figures = evaluation.figures()
    print(evaluation.title)
    for name, terms in figures["scores"].items():
        value, low, high = terms["total"]
        print(f"  {name:<14} total {value:.4f}  (95 %: {low:.4f} to {high:.4f})")
    for title, places in (("sagittal points", figures["sagittal"]), ("axial levels", figures["axial"])):
        print(f"  {title}: " + ", ".join(f"{name} {value:.3g}" for name, value in places.items()))
    from lumbar_train.evaluation.page_parts import warnings

    for line in warnings(evaluation):
        print(f"  warning: {line}")
    print(f"report: {page}")


if __name__ == "__main__":
    script()
