"""Which earlier out-of-fold outputs a step needs before it may run on a fold, and the command that makes missing ones.

A stage trains on what earlier networks say of studies that they have not seen. Such an output exists only for studies
whose fold was fitted, so a stage that trains on all studies needs every fold of the stage before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from lumbar.errors import CohortError
from lumbar.stages.classify import CLASSIFIERS
from lumbar_train.data.folds import FULL, is_full
from lumbar_train.outputs.store import folds_of
from lumbar_train.recipes import Recipe
from lumbar_train.stages import denoise
from lumbar_train.stages.denoise import FIRST
from lumbar_train.stages.fitting import fold_name
from lumbar_train.stages.pseudo import PSEUDO, fold_of_labels, predictions_path

LOCALISERS = ("sagittal_xy", "sagittal_z", "axial_xy")
LOCALISE = "localise"
LAST = "aggregator"
STEPS = (*LOCALISERS, LOCALISE, *CLASSIFIERS, LAST)
# The tables that a step leaves, one row or more a study that it holds out; other steps leave weights alone.
TABLES = {
    "sagittal_xy": ("oof",),
    LOCALISE: ("levels", "points", "axial"),
    **{f"{name}{suffix}": ("oof",) for name in CLASSIFIERS for suffix in ("", FIRST)},
}

Pair = tuple[str, int]  # a step on a fold


def steps_of(recipe: Recipe) -> tuple[str, ...]:
    """The steps of a recipe in order; denoising and softened labels each have a round of the classifiers before."""
    place = STEPS.index(CLASSIFIERS[0])
    before: tuple[str, ...] = ()
    if recipe.denoise is not None:
        before += (*(f"{name}{FIRST}" for name in CLASSIFIERS), denoise.STEP)
    if recipe.pseudo is not None:
        before += tuple(f"{name}{PSEUDO}" for name in CLASSIFIERS)
    return (*STEPS[:place], *before, *STEPS[place:])


def needs(step: str, fold: int, folds: Sequence[int], *, is_denoised: bool, is_softened: bool = False) -> set[Pair]:
    """The steps on folds that must be done before ``step`` may run on ``fold``; ``folds`` are all that hold out.

    The fold that is held out is not trained on; the classifiers need its localisation all the same, to predict it.
    """
    if step == "sagittal_z":
        return {("sagittal_xy", k) for k in folds if k != fold}
    if step == LOCALISE:
        return {(name, fold) for name in LOCALISERS}
    if step == denoise.STEP:
        return {(f"{name}{FIRST}", k) for name in CLASSIFIERS for k in folds}
    if step == LAST:
        return {(name, k) for name in CLASSIFIERS for k in folds}
    if step.removesuffix(FIRST).removesuffix(PSEUDO) in CLASSIFIERS:
        pairs = {(LOCALISE, k) for k in folds}
        if is_denoised and not step.endswith(FIRST):
            pairs.add((denoise.STEP, FULL))
        if is_softened and step in CLASSIFIERS:
            pairs |= {(f"{name}{PSEUDO}", fold_of_labels(fold)) for name in CLASSIFIERS}
        return pairs
    return set()


def is_done(run: Path, step: str, fold: int) -> bool:
    """Whether a run folder holds what a step on a fold leaves for others."""
    if step == denoise.STEP:
        return (run / denoise.FOLDER / "suspect_labels.parquet").is_file()
    if step.endswith(PSEUDO):
        return predictions_path(run, step.removesuffix(PSEUDO), fold).is_file()
    if step != LOCALISE and not (run / step / f"{fold_name(fold)}.safetensors").is_file():
        return False
    return is_full(fold) or all(fold in folds_of(run / step, table) for table in TABLES.get(step, ()))


def check_plan(
    run: Path,
    plan: Iterable[Pair],
    steps: Sequence[str],
    folds: Sequence[int],
    *,
    is_denoised: bool,
    is_softened: bool = False,
    command: str,
) -> None:
    """Refuse steps on folds that need outputs which are neither there nor made by an earlier one of them.

    Args:
        run: the run folder.
        plan: steps on folds in the order in which they will run.
        steps: all steps of the recipe, in order.
        folds: all folds that hold out studies.
        is_denoised: whether the recipe leaves suspect labels out of a second training of its classifiers.
        is_softened: whether it mixes labels with predictions.
        command: the beginning of the command line that makes what is missing.

    Raises:
        CohortError: one line that names the step, the missing folds and the command.
    """
    made: set[Pair] = set()
    missing: dict[Pair, set[Pair]] = {}
    for step, fold in plan:
        wanted = needs(step, fold, folds, is_denoised=is_denoised, is_softened=is_softened)
        if absent := {pair for pair in wanted - made if not is_done(run, *pair)}:
            missing[(step, fold)] = absent
        made.add((step, fold))
    if not missing:
        return
    (step, fold), absent = next(iter(missing.items()))
    first = min(absent, key=lambda pair: steps.index(pair[0]))[0]
    of = ", ".join(str(k) for name, k in sorted(absent) if name == first and not is_full(k))
    options = _options(run, set().union(*missing.values()), steps, folds, is_denoised, is_softened)
    raise CohortError(
        f"{step} ({fold_name(fold)}): found no output of {first}{f' of fold {of}' if of else ''}, "
        f"expected it before this step; make it with: {command} {options}"
    )


def _options(
    run: Path, missing: set[Pair], steps: Sequence[str], folds: Sequence[int], is_denoised: bool, is_softened: bool
) -> str:
    """``--stages … --folds …`` of a call that can stand alone in this run folder."""
    every: set[Pair] = set()
    left = set(missing)
    while left:
        pair = left.pop()
        if pair not in every and not is_done(run, *pair):
            every.add(pair)
            left |= needs(*pair, folds, is_denoised=is_denoised, is_softened=is_softened)
    names = [step for step in steps if any(step == name for name, _ in every)]
    of = sorted({fold for _, fold in every if not is_full(fold)}) or list(folds)
    return f"--stages {','.join(names)} --folds {','.join(map(str, of))}"
