"""Carries a prepared run out: to its end, or to the time limit of this session; ``session.json`` keeps the account."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from lumbar.errors import LumbarError
from lumbar_train.data.folds import FULL, fold_name, with_seeds
from lumbar_train.engine.interrupts import TimeLimitReached, clock_now
from lumbar_train.errors import TrainingError
from lumbar_train.export import export, fits_that_ship
from lumbar_train.outputs.session import Session
from lumbar_train.pipeline.execute import execute, left_of
from lumbar_train.pipeline.options import TrainOptions
from lumbar_train.pipeline.outcome import TrainedRun
from lumbar_train.report import report_on
from lumbar_train.stages.context import RunContext
from lumbar_train.stages.finished import forget, outdated
from lumbar_train.stages.fits import fits_of
from lumbar_train.stages.registry import chosen_stages, stages_of


def ends_at(options: TrainOptions, began: float) -> float | None:
    """When the time limit is reached, on the clock of ``interrupts``; None without one.

    Args:
        options: of the call.
        began: when the call began (``time.monotonic``).
    """
    return None if options.limit_s is None else clock_now() + options.limit_s - (time.monotonic() - began)


def no_checkpoint(options: TrainOptions) -> TrainingError:
    """The refusal of a time limit in which nothing could be left that the next session could go on from."""
    return TrainingError(
        f"--time-limit: found {options.time_limit}, in which no fit came to a checkpoint, expected more time; "
        "nothing is lost, and studies that are decoded stay decoded"
    )


def carry_out(run: RunContext, options: TrainOptions, began: float) -> TrainedRun:
    """Run the stages that are asked for; export and report what is complete.

    Args:
        run: what is trained on what.
        options: of the call.
        began: when the call began (``time.monotonic``).

    Raises:
        TrainingError: the time limit came before anything could be left; or as the stages.
    """
    session = run.distributed.on_main(lambda: _begin(run, options, began))
    is_main = run.distributed.is_main
    try:
        execute(run, options.stages, options.jobs, session)
        trained = finish(run) if is_main else TrainedRun(run.out)
    except TimeLimitReached as end:
        return _ended_by_time(run, options, session, end)
    except (LumbarError, OSError):
        if is_main:
            session.write("failed")
        raise
    except KeyboardInterrupt:
        if is_main:
            session.write("interrupted")
        raise
    if is_main:
        session.write("whole")
    return trained


def _ended_by_time(run: RunContext, options: TrainOptions, session: Session, end: TimeLimitReached) -> TrainedRun:
    has_left = run.distributed.broadcast(end.has_saved or session.n_finished > 0)
    chosen = chosen_stages(run.recipe, options.stages)
    session.left = run.distributed.on_main(lambda: left_of(run, chosen))
    if run.distributed.is_main:
        session.write("time limit")
    if not has_left:
        raise no_checkpoint(options)
    return TrainedRun(run.out, left=session.left, next_command=options.next_command())


def _begin(run: RunContext, options: TrainOptions, began: float) -> Session:
    chosen = chosen_stages(run.recipe, options.stages)
    for stage in chosen if not run.resume else ():
        for fold in stage.folds(run.use_folds):
            forget(run, stage, fold)
    asked = {stage.name: [fold_name(fold) for fold in stage.folds(run.use_folds)] for stage in chosen}
    return Session.begin(run.out, session_plan(run), left_of(run, chosen), began, asked, options.whole_command())


def session_plan(run: RunContext) -> list[Mapping[str, Any]]:
    """Every stage of the recipe with the fits on each of its folds, whatever this call asks for."""
    every = with_seeds([*run.all_folds(), FULL], max(1, run.recipe.full_seeds, len(run.full_fits())))
    plan: list[Mapping[str, Any]] = []
    for stage in stages_of(run.recipe):
        folds = {
            fold_name(fold): [
                {"folder": fit.folder(stage.name, fold), "epochs": fit.epochs}
                for fit in fits_of(run.recipe, stage, fold)
            ]
            for fold in stage.folds(every)
        }
        plan.append({"stage": stage.name, "folds": folds})
    return plan


def finish(run: RunContext) -> TrainedRun:
    """Export and report, where the aggregator has been fitted, on what the stages before it have left last."""
    if (stages := outdated(run)) and run.folder.table("aggregator").is_file():
        print(
            f"nothing is exported or reported: what {', '.join(stages)} began from was made anew since; go on with: "
            f"{run.command}",
            flush=True,
        )
        return TrainedRun(run.out)
    exported = page = evaluation = None
    ships = fits_that_ship(run)
    if ships and all(run.folder.has_weights("aggregator", fold) for fold in ships):
        exported = export(run)
    if run.folder.table("aggregator").is_file():
        page, evaluation = report_on(run.out, run.cohort.root)
    return TrainedRun(run.out, exported, page, evaluation)
