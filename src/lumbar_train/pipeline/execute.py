"""The stages of a run in their order, each on its folds; a plan that cannot be carried out is refused first."""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import partial

from lumbar.io.progress import duration
from lumbar.io.text import counted
from lumbar_train.data.folds import fold_name
from lumbar_train.engine.fold_pool import run_side_by_side, workers
from lumbar_train.engine.interrupts import end_if_time_is_up
from lumbar_train.engine.process_pool import Pool
from lumbar_train.outputs.session import Session
from lumbar_train.pipeline.first_estimate import expected_s, operations_of
from lumbar_train.stages.ahead import Ahead
from lumbar_train.stages.context import RunContext
from lumbar_train.stages.finished import forget, is_finished, is_outdated, note_finished
from lumbar_train.stages.fits import fits_of
from lumbar_train.stages.fitting import run_on_fold
from lumbar_train.stages.needs import check_plan, plan_of
from lumbar_train.stages.registry import chosen_stages, stage_by_name, stages_of
from lumbar_train.stages.stage import Pair, Stage


def execute(run: RunContext, names: Iterable[str] | None = None, jobs: int = 1, session: Session | None = None) -> None:
    """Run stages (None: all of the recipe's) in their order, whatever the order of the names.

    Args:
        run: what is trained on what.
        names: of stages.
        jobs: how many folds go side by side, each in a process of its own.
        session: is told of what is finished.

    Raises:
        CohortError: the recipe has no such stage, or a stage needs outputs that nobody makes.
        LumbarError: as the stages; what is finished stays, and ``resume`` goes on.
        TimeLimitReached: as the stages.
    """
    chosen = chosen_stages(run.recipe, names)
    run.distributed.on_main(lambda: _check(run, plan_of(chosen, run.use_folds)))
    jobs = 1 if run.distributed.is_many else jobs  # under torchrun all processes work on one fit
    todo = run.distributed.on_main(lambda: unfinished(run, chosen))
    fits = [(stage, fold) for stage in chosen for fold in todo[stage.name]]
    fitted = [(stage, fold) for stage, fold in fits if fits_of(run.recipe, stage, fold)]
    operations = run.distributed.on_main(lambda: operations_of(run, fitted))
    if run.distributed.is_main:
        _say_what_comes(run, chosen, todo, jobs, sum(operations.values()))
    epochs = {(stage.name, fold): float(_epochs(run, stage, fold)) for stage, fold in fits}
    costs = operations or epochs
    with workers(jobs) as pool:
        for k, stage in enumerate(chosen):
            later = sum(costs.get((other.name, fold), 0.0) for other in chosen[k + 1 :] for fold in todo[other.name])
            run.ahead = Ahead(costs, later, jobs)
            _run_stage(run, stage, pool, jobs, session)


def unfinished(run: RunContext, chosen: Iterable[Stage]) -> dict[str, list[int]]:
    """The folds that each stage has still to run on: all of them, unless the run is gone on with."""
    return {
        stage.name: [fold for fold in stage.folds(run.use_folds) if not (run.resume and is_finished(run, stage, fold))]
        for stage in chosen
    }


def left_of(run: RunContext, chosen: Iterable[Stage]) -> dict[str, int]:
    """On how many folds each stage is not finished, where it is not on all."""
    counts = {
        stage.name: sum(not is_finished(run, stage, fold) for fold in stage.folds(run.use_folds)) for stage in chosen
    }
    return {name: count for name, count in counts.items() if count}


def _say_what_comes(
    run: RunContext, chosen: list[Stage], todo: dict[str, list[int]], jobs: int, operations: float
) -> None:
    fits = {stage.name: [fit for k in todo[stage.name] for fit in fits_of(run.recipe, stage, k)] for stage in chosen}
    epochs = sum(fit.epochs for some in fits.values() for fit in some)
    n_fits = sum(not fit.is_metric for some in fits.values() for fit in some)
    line = (
        f"{counted(n_fits, 'fit')} of {counted(sum(map(bool, fits.values())), 'stage')}, "
        f"{counted(epochs, 'epoch')} in all, {counted(jobs, 'fit')} at a time"
    )
    if operations:
        fits_s = expected_s(run, operations, jobs)
        line += f"; by counted operations about {duration(fits_s)} for the fits alone on this machine"
    print(line + ("; every epoch's line tells how long is left by the pace so far" if n_fits else ""), flush=True)


def _run_stage(run: RunContext, stage: Stage, pool: Pool | None, jobs: int, session: Session | None) -> None:
    """Run a stage on the folds on which it is not finished; what an earlier one made anew counts by now."""
    start = time.monotonic()
    folds = run.distributed.on_main(lambda: unfinished(run, [stage]))[stage.name]
    if not folds:
        return
    if run.distributed.is_main and (line := _say_what_stays(run, stage, folds)):
        print(line, flush=True)

    def note(fold: int) -> None:
        note_finished(run, stage, fold)
        if session is not None:
            session.finished(stage.name)

    def done(fold: int) -> None:
        run.distributed.on_main(lambda: note(fold))

    if stage.action is not None:
        run.distributed.on_main(end_if_time_is_up)
        run.distributed.on_main(lambda: forget(run, stage, folds[0]))
        run.distributed.on_main(partial(stage.action, run))
        done(folds[0])
    else:
        run_side_by_side(run, work, stage.name, folds, pool, jobs, done)
    seconds = time.monotonic() - start
    run.distributed.on_main(partial(_note_seconds, run, stage, seconds))
    if run.distributed.is_main:
        print(f"{stage.name}: done in {duration(seconds)}", flush=True)


def _say_what_stays(run: RunContext, stage: Stage, folds: list[int]) -> str:
    """One line about complete fits that stay although what they learnt from was made anew; empty without any."""
    stays = [fold for fold in folds if run.resume and is_outdated(run, stage, fold) and _is_fitted(run, stage, fold)]
    if not stays:
        return ""
    return (
        f"{stage.name}: on {', '.join(map(fold_name, stays))} weights stay, though what they learnt from was made anew "
        f"since, and predict anew; --stages {stage.name} --overwrite fits them again"
    )


def _is_fitted(run: RunContext, stage: Stage, fold: int) -> bool:
    fits = fits_of(run.recipe, stage, fold)
    return bool(fits) and all((run.folder.fit(stage.name, fold, fit.suffix) / "fit.json").is_file() for fit in fits)


def work(run: RunContext, stage: str, fold: int) -> None:
    """One stage on one fold, in this process or in one of a pool."""
    row = stage_by_name(stage, run.recipe)
    run.distributed.on_main(end_if_time_is_up)
    run.distributed.on_main(lambda: _check(run, [(stage, fold)]))
    run.distributed.on_main(lambda: forget(run, row, fold))
    former = dict(run.loop)
    if epochs := _epochs(run, row, fold):
        beyond = run.ahead.epochs_beyond(stage, fold, row.folds(run.use_folds), epochs)
        run.loop = former | {"epochs_beyond": beyond}
    try:
        run_on_fold(run, row, fold)
    finally:
        run.loop = former


def _epochs(run: RunContext, stage: Stage, fold: int) -> int:
    """The epochs of a stage on a fold: a classifier's round on the metric, and fits on parts, included."""
    return sum(fit.epochs for fit in fits_of(run.recipe, stage, fold))


def _check(run: RunContext, plan: list[Pair]) -> None:
    """Refuse before hours of work what needs the outputs of folds that nobody makes."""
    check_plan(run.folder, plan, stages_of(run.recipe), run.all_folds(), command=run.command)


def _note_seconds(run: RunContext, stage: Stage, seconds: float) -> None:
    run.folder.add_seconds(stage.name, seconds, run.distributed.device, goes_on=run.resume)
