"""Whether a call goes on with the run that a folder holds: same cohort, recipe and seed, before any work is done."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from lumbar.config import CLASSIFIERS, FUSION, to_dict
from lumbar.errors import CohortError
from lumbar_train.data.folds import FULL
from lumbar_train.files import read_object
from lumbar_train.outputs.kept import FILE, check_kept, check_same_network, read_recipe, set_word
from lumbar_train.outputs.session import FILE as SESSION
from lumbar_train.outputs.session import check_version
from lumbar_train.pipeline.begun import begun_folds
from lumbar_train.pipeline.options import TrainOptions
from lumbar_train.recipes import Fit, Recipe, StageRecipe
from lumbar_train.stages.registry import chosen_stages

_HINT = "give the same recipe, --set{} and tables to go on with it, or use another --out"
_CUT = ("accumulate", "checkpointing", "fold_epochs")  # follows the device, and ``for_fold``
_ROUNDS = ("denoise", "pseudo", "consistency")  # what decides the labels of classifiers


def check_same_run(folder: Path, options: TrainOptions, recipe: Recipe, fingerprint: str) -> None:
    """Refuse to go on with stages that were begun, or that an earlier call was asked for, otherwise.

    Args:
        folder: a run that is gone on with; one without a recipe holds none.
        options: of this call.
        recipe: as the options change it.
        fingerprint: of the cohort.

    Raises:
        CohortError: what differs, as it was and as it is now, in one line.
    """
    path = folder / FILE
    if not path.is_file():
        return
    check_version(folder)
    noted = read_recipe(folder)
    stages = {stage.name: stage for stage in chosen_stages(recipe, options.stages)}
    asked = read_object(folder / SESSION).get("asked", ())
    begun = {name: [FULL, 0] if name in asked else begun_folds(folder / name) for name in stages}
    if any(begun.values()):
        _compare(path, "the run", "the cohort's fingerprint", noted.get("cohort", fingerprint), fingerprint)
        _compare(path, "the run", "recipe", noted.get("name", recipe.name), recipe.name)
        _compare(path, "the run", "--seed", noted.get("seed", options.seed), options.seed)
        use = points_note(options)
        _compare(path, "the run", "--points-use", noted.get("points", use), use)
    check_kept(folder, recipe, ())
    for name, stage in stages.items():
        entry = stage.recipe_name or stage.name
        if begun[name] and entry == FUSION:
            own = noted.get(FUSION), recipe.fusion
            _compare_fields(path, "the run", f"recipe.{FUSION}", *own, is_noted=FUSION in noted)
        if not begun[name] or entry not in recipe.stages:
            continue
        before, now = noted["stages"].get(entry) or {}, recipe.stages[entry]
        for fold in begun[name]:
            _compare_fit(path, name, entry, before.get("fit") or {}, now, fold)
        check_same_network(path, entry, before.get("network") or {}, now.network)
        for part in ("augment", "mixing"):
            _compare_fields(
                path, name, f"{entry}.{part}", before.get(part), getattr(now, part), is_noted=part in before
            )
        for part in _ROUNDS if entry in CLASSIFIERS else ():
            own = noted.get(part), getattr(recipe, part)
            _compare_fields(path, name, f"recipe.{part}", *own, is_noted=part in noted)


def points_note(options: TrainOptions) -> str | None:
    """How external points are used; None without any."""
    return options.points_use if options.points else None


def _compare_fit(path: Path, stage: str, entry: str, noted: dict[str, Any], now: StageRecipe, fold: int) -> None:
    known = [field.name for field in dataclasses.fields(Fit)]
    was = Fit(**({"epochs": 0, "lr": 0.0, "batch": 0} | {key: noted[key] for key in noted if key in known}))
    before, after = StageRecipe(now.network, was).for_fold(fold).fit, now.for_fold(fold).fit
    for name in (name for name in known if noted and name not in _CUT):
        is_of_folds = name == "epochs" and fold != FULL and was.fold_epochs
        word = set_word(f"{entry}.{'fold_epochs' if is_of_folds else name}", getattr(before, name))
        _compare(path, stage, name, getattr(before, name), getattr(after, name), word)


def _compare_fields(path: Path, stage: str, target: str, noted: Any, now: Any, *, is_noted: bool) -> None:
    """Compare an optional part of a recipe; fields that are newer than the run had their defaults.

    Args:
        path: of the recipe that was noted.
        stage: that the part is of.
        target: the part as ``--set`` names it, such as ``axial_all.augment``.
        noted: what it was.
        now: what it is.
        is_noted: whether the run has noted it at all.
    """
    if not is_noted:
        return
    part = target.rpartition(".")[2]
    if noted is None or now is None:
        is_switch = target.startswith("recipe.")
        word = set_word(target, "off" if noted is None else "on") if is_switch else ""
        _compare(path, stage, part, "none" if noted is None else "some", "none" if now is None else "some", word)
        return
    defaults = {
        field.name: field.default
        for field in dataclasses.fields(now)
        if field.default is not dataclasses.MISSING  # what has none was noted
    }
    before, after = json.loads(json.dumps(defaults)) | noted, json.loads(json.dumps(to_dict(now)))
    for name in after:
        word = set_word(f"{target}.{name}", before.get(name))
        _compare(path, stage, f"{part}.{name}", before.get(name), after[name], word)


def _compare(path: Path, what: str, name: str, before: Any, now: Any, word: str = "") -> None:
    """Refuse what differs; ``word`` is the ``--set`` that keeps it as it was."""
    if before != now:
        hint = _HINT.format(f" (here {word})" if word else "")
        raise CohortError(f"{path}: {what} was trained with {name} {before!r}, found {now!r} now; {hint}")
