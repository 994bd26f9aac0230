"""Which earlier out-of-fold outputs a stage needs before it may run on a fold, and the command that makes missing ones.

A stage trains on what earlier networks say of studies that they have not seen. Such an output exists only for studies
whose fold was fitted, so a stage that trains on all studies needs every fold of the stage before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lumbar.errors import CohortError
from lumbar_train.data.folds import fold_name, is_full
from lumbar_train.outputs.run_folder import RunFolder
from lumbar_train.stages.stage import Pair, Stage


def plan_of(stages: Iterable[Stage], use_folds: Sequence[int]) -> list[Pair]:
    """Each stage on each of its folds, in the order in which they run."""
    return [(stage.name, fold) for stage in stages for fold in stage.folds(use_folds)]


def needs(stage: Stage, fold: int, folds: Sequence[int], stages: Sequence[Stage]) -> set[Pair]:
    """The stages on folds that must be done before ``stage`` may run on ``fold``.

    Args:
        stage: what is to run.
        fold: on which fold.
        folds: all folds that hold out studies.
        stages: all stages of the recipe; needs of others are left out.
    """
    known = {other.name for other in stages}
    return set().union(*(need.pairs(fold, folds) for need in stage.needs if need.stage in known))


def is_done(folder: RunFolder, stage: Stage, fold: int) -> bool:
    """Whether a run folder holds what a stage on a fold leaves for others."""
    if stage.runs_on == "all folds at once":
        return all(folder.table(stage.name, table).is_file() for table in stage.tables)
    if stage.leaves is not None:
        return stage.leaves(folder.path, fold).is_file()
    if stage.fitted and not folder.has_weights(stage.name, fold):
        return False
    return is_full(fold) or folder.has_rows_of(stage.name, stage.tables, fold)


def check_plan(
    folder: RunFolder,
    plan: Iterable[Pair],
    stages: Sequence[Stage],
    folds: Sequence[int],
    *,
    command: str,
) -> None:
    """Refuse a plan that needs outputs which are neither there nor made by an earlier part of it.

    Args:
        folder: the run folder.
        plan: stages on folds in the order in which they will run.
        stages: all stages of the recipe, in order.
        folds: all folds that hold out studies.
        command: the beginning of the command line that makes what is missing.

    Raises:
        CohortError: one line that names the stage, the missing folds and the command.
    """
    by_name = {stage.name: stage for stage in stages}
    made: set[Pair] = set()
    missing: dict[Pair, set[Pair]] = {}
    for name, fold in plan:
        wanted = needs(by_name[name], fold, folds, stages)
        if absent := {pair for pair in wanted - made if not is_done(folder, by_name[pair[0]], pair[1])}:
            missing[(name, fold)] = absent
        made.add((name, fold))
    if not missing:
        return
    (name, fold), absent = next(iter(missing.items()))
    order = list(by_name)
    first = min(absent, key=lambda pair: order.index(pair[0]))[0]
    of = ", ".join(str(k) for other, k in sorted(absent) if other == first and not is_full(k))
    options = _options(folder, set().union(*missing.values()), by_name, folds)
    raise CohortError(
        f"{name} ({fold_name(fold)}): found no output of {first}{f' of fold {of}' if of else ''}, "
        f"expected it before this stage; make it with: {command} {options}"
    )


def _options(folder: RunFolder, missing: set[Pair], by_name: dict[str, Stage], folds: Sequence[int]) -> str:
    """``--stages … --folds …`` of a call that can stand alone in this run folder."""
    every: set[Pair] = set()
    left = set(missing)
    while left:
        name, fold = pair = left.pop()
        if pair not in every and not is_done(folder, by_name[name], fold):
            every.add(pair)
            left |= needs(by_name[name], fold, folds, list(by_name.values()))
    names = [name for name in by_name if any(name == other for other, _ in every)]
    of = sorted({fold for _, fold in every if not is_full(fold)}) or list(folds)
    return f"--stages {','.join(names)} --folds {','.join(map(str, of))}"
