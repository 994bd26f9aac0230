"""``python -m lumbar_train baseline``."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from lumbar.io.competition import check_competition
from lumbar.io.path_options import FOLDER, NEW_FOLDER
from lumbar.labels import SAGITTAL_T1
from lumbar_train.baseline.settings import Settings, check_settings, choose_columns, refuse_fits
from lumbar_train.outputs.run_lock import RunLock
from lumbar_train.pipeline.given import check_file, check_folder, check_out
from lumbar_train.pipeline.names import AMP


def add_commands(commands: Any) -> None:
    """Add the command to the subparsers of ``python -m lumbar_train``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "baseline", help="FastAI-style baseline: one network per label column, on whole slices",
        description="Fit one network per label column on 8-bit slices. Rare classes are upsampled inside the training "
        "folds only, a learning-rate finder chooses the rate, the head is trained first, then all layers.",
    )  # fmt: skip
    add, default = parser.add_argument, Settings()
    add("--data", type=FOLDER, required=True, metavar="ROOT", help="folder in the competition's layout")
    add("--out", type=NEW_FOLDER, required=True, metavar="RUN", help="run folder to write")
    add("--columns", help="comma-separated columns or conditions; default: all 25")
    add("--folds", help="how many, or a table study_id, fold such as a chain's folds.csv; default: --chain-run's, or 3")
    add("--no-full", action="store_true", help="leave out the fits on all data, which are what ships")
    add("--split", choices=("train", "test"), default="train", help="test: predict with RUN, do not train")
    add(
        "--chain-run",
        type=FOLDER,
        metavar="RUN",
        help="run of the chain to compare with, out of fold on the same folds",
    )
    add("--epochs", type=int, default=default.epochs, help="of all layers; default: %(default)s")
    add("--freeze-epochs", type=int, default=default.freeze_epochs, help="of the head alone; default: %(default)s")
    add("--arch", default=default.arch, help="small (0.4 M parameters) or any timm name; default: %(default)s")
    add("--pretrained", action="store_true", help="start from timm's weights (needs the internet)")
    add("--size", type=int, default=default.size, help="height and width of an image in pixels; default: %(default)s")
    add("--slices", type=int, default=default.slices, help="central slices of each series; default: all")
    add("--description", default=default.description, help=f"which series; default: {SAGITTAL_T1}")
    add("--lr", type=float, default=0.0, dest="base_lr", help="peak rate; default: the finder's, for each fit")
    add(
        "--lr-mult",
        type=float,
        help="how many times slower the first layers learn; default: 100 with --pretrained, else 1",
    )
    add("--batch-size", type=int, default=default.batch_size, help="images per step; default: %(default)s")
    add("--finder-steps", type=int, default=default.finder_steps, help="of the range test; default: %(default)s")
    add(
        "--stop-accuracy",
        type=float,
        default=0.0,
        metavar="A",
        help="continue until studies kept apart are classified so well",
    )
    add(
        "--max-epochs",
        type=int,
        default=default.max_epochs,
        help="most epochs with --stop-accuracy; default: %(default)s",
    )
    add("--batch", type=int, default=100, help="studies per batch of the conversion; default: %(default)s")
    add("--start-batch", type=int, default=0, help="trust earlier batches of the conversion without a check")
    add("--jobs", type=int, default=1, help="fits at the same time; default: %(default)s")
    add("--amp", choices=AMP, default=default.amp,
        help="half precision; auto: by GPU, on CPUs what is faster; bf16: float32 on CPUs slower in it")  # fmt: skip
    add("--resume", action="store_true", help="continue an interrupted run")
    add("--seed", type=int, default=0)
    parser.set_defaults(action=run_baseline)


def run_baseline(args: argparse.Namespace) -> None:
    """Train, or predict the test split."""
    check_competition(args.data, args.split)
    check_out(args.out)
    if args.split == "test":
        check_folder(args.out, "--out", "a run of the baseline")
        from lumbar_train.baseline.predict import predict_split

        path, score = predict_split(args.out, args.data, args.split, batch=args.batch, start_batch=args.start_batch)
        print(f"submission: {path}" + (f"; {score}" if score else ""))
        return
    settings = Settings(**{f.name: getattr(args, f.name) for f in fields(Settings) if hasattr(args, f.name)})
    check_settings(settings)
    columns = choose_columns(args.columns)
    check_folder(args.chain_run, "--chain-run", "a run of the chain")
    if args.folds is not None and not args.folds.isdigit():
        check_file(Path(args.folds), "--folds", "a number of folds, or a table study_id, fold")
    refuse_fits(args.out, args.resume)
    with RunLock(args.out, checks_run=False):
        _train_baseline(args, settings, columns)


def _train_baseline(args: argparse.Namespace, settings: Settings, columns: list[str]) -> None:
    import torch

    from lumbar_train.baseline.page import report_run
    from lumbar_train.baseline.run import BaselineRun, choose_folds, execute, export_run
    from lumbar_train.data.tables import read_cohort
    from lumbar_train.engine.distributed import pick_device
    from lumbar_train.engine.precision import chosen_amp

    amp, line = chosen_amp(args.amp, pick_device("auto"), args.out / "recipe.json", args.resume)
    if line:
        print(line)
    settings = replace(settings, amp=amp)
    cohort = read_cohort(args.data)
    folds_option = args.folds or (str(args.chain_run / "folds.csv") if args.chain_run else None)
    cohort, folds = choose_folds(folds_option, args.out, cohort, settings.seed)
    for reason, count in cohort.dropped.items():
        print(f"left out: {count} × {reason}")
    torch.set_num_threads(max(1, torch.get_num_threads() // max(1, args.jobs)))
    run = BaselineRun(
        cohort=cohort, out=args.out, settings=settings, columns=columns, folds=folds, with_full=not args.no_full,
        jobs=args.jobs, resume=args.resume, amp_asked=args.amp,
    )  # fmt: skip
    answers, figures, results, images = execute(run, batch=args.batch, start_batch=args.start_batch)
    for line in figures["not_better_than_constant"]:
        print(f"not better than its constant: {line}")
    if run.with_full:
        print(f"weights to seal: {export_run(run, figures, results)}")
    print(f"out of fold: {figures['oof']}")
    print(f"report: {report_run(run, answers, figures, images, args.chain_run)}")
