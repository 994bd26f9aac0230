"""The stages of a run in their order, each on its folds; a plan that cannot be carried out is refused first."""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import partial

from lumbar.io.progress import duration
from lumbar.io.text import counted
from lumbar_train.engine.fold_pool import run_side_by_side, workers
from lumbar_train.pipeline.first_estimate import expected_s
from lumbar_train.stages.context import RunContext
from lumbar_train.stages.fitting import run_on_fold
from lumbar_train.stages.needs import check_plan, plan_of
from lumbar_train.stages.registry import chosen_stages, stage_by_name, stages_of
from lumbar_train.stages.stage import Pair, Stage


def execute(run: RunContext, names: Iterable[str] | None = None, jobs: int = 1) -> None:
    """Run stages (None: all of the recipe's) in their order, whatever the order of the names.

    Args:
        run: what is trained on what.
        names: of stages.
        jobs: how many folds go side by side, each in a process of its own.

    Raises:
        CohortError: the recipe has no such stage, or a stage needs outputs that nobody makes.
        LumbarError: as the stages; what is finished stays, and ``resume`` goes on.
    """
    chosen = chosen_stages(run.recipe, names)
    run.distributed.on_main(lambda: _check(run, plan_of(chosen, run.use_folds)))
    jobs = 1 if run.distributed.is_many else jobs  # under torchrun all processes work on one fit
    units = [(stage, fold) for stage in chosen for fold in stage.folds(run.use_folds) if stage.fitted]
    if run.distributed.is_main:
        _announce(run, units, jobs)
    with workers(jobs) as pool:
        for stage in chosen:
            start = time.monotonic()
            later = [unit for unit in units if chosen.index(unit[0]) > chosen.index(stage)]
            run.loop["epochs_beyond"] = sum(_epochs(run, *unit) for unit in later) / jobs
            if stage.action is not None:
                run.distributed.on_main(partial(stage.action, run))
            else:
                run_side_by_side(run, work, stage.name, stage.folds(run.use_folds), pool, jobs)
            seconds = time.monotonic() - start
            run.distributed.on_main(partial(_note_seconds, run, stage, seconds))
            if run.distributed.is_main:
                print(f"{stage.name}: done in {duration(seconds)}", flush=True)


def _announce(run: RunContext, units: list[tuple[Stage, int]], jobs: int) -> None:
    """Say what will be fitted and about how long it takes; fits that an earlier call has finished are not counted."""
    todo = [unit for unit in units if _epochs(run, *unit)]
    epochs = sum(_epochs(run, *unit) for unit in todo)
    line = (
        f"{counted(len(todo), 'fit')} of {counted(len({stage.name for stage, _ in todo}), 'stage')}, "
        f"{counted(epochs, 'epoch')} in all, {counted(jobs, 'fit')} at a time"
    )
    if len(todo) < len(units):
        line += f" ({counted(len(units) - len(todo), 'fit')} finished before)"
    fits_s = expected_s(run, todo, jobs)
    if fits_s is not None:
        line += f"; by counted operations about {duration(fits_s)} for the fits alone on this machine"
    print(line + ("; the first epoch of each stage tells how long all take" if todo else ""), flush=True)


def work(run: RunContext, stage: str, fold: int) -> None:
    """One stage on one fold, in this process or in one of a pool."""
    run.distributed.on_main(lambda: _check(run, [(stage, fold)]))
    row = stage_by_name(stage)
    former = dict(run.loop)
    if row.fitted:  # the folds of this stage that come later are also still to be fitted
        folds = row.folds(run.use_folds)
        beyond = sum(_epochs(run, row, other) for other in folds[folds.index(fold) + 1 :])
        run.loop = former | {"epochs_beyond": former.get("epochs_beyond", 0.0) + beyond}
    try:
        run_on_fold(run, row, fold)
    finally:
        run.loop = former


def _epochs(run: RunContext, stage: Stage, fold: int) -> int:
    """The epochs of one fit, a classifier's round on the metric included; none where an earlier call finished it."""
    if run.resume and (run.folder.fit(stage.name, fold) / "fit.json").is_file():
        return 0
    fit = stage.recipe_of(run.recipe).for_fold(fold).fit
    return fit.epochs + fit.metric_epochs


def _check(run: RunContext, plan: list[Pair]) -> None:
    """Refuse before hours of work what needs the outputs of folds that nobody makes."""
    check_plan(run.folder, plan, stages_of(run.recipe), run.all_folds(), command=run.command)


def _note_seconds(run: RunContext, stage: Stage, seconds: float) -> None:
    run.folder.add_seconds(stage.name, seconds, run.distributed.device)
