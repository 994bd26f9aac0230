"""``--localisers RUN``: the localisers of another run, taken over whole, so that only what follows them is fitted."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lumbar.config import from_dict
from lumbar.errors import CohortError, ManifestError
from lumbar.io.text import counted
from lumbar_train.data.augment import AugmentConfig
from lumbar_train.data.folds import fold_name, is_full, parse_folds, read_own_folds, with_seeds
from lumbar_train.files import read_object
from lumbar_train.outputs.kept import FILE, read_recipe
from lumbar_train.outputs.take_over import take_over
from lumbar_train.pipeline.options import TrainOptions
from lumbar_train.recipes import Fit, Recipe, StageRecipe
from lumbar_train.stages.finished import note_path
from lumbar_train.stages.localisers import LOCALISE, LOCALISERS

NOTE = "localisers"  # in recipe.json
TAKEN = (*LOCALISERS, LOCALISE)
_NAMES = ("folds.csv", *TAKEN)


def with_localisers(options: TrainOptions, recipe: Recipe) -> Recipe:
    """The recipe with the localisers that a run has taken over, or takes over in this call; else as it is.

    Raises:
        CohortError: localisers of another kind than the recipe's, or ``--set`` for what stays as it is; or a call that
            would fit them again.
    """
    source = options.localisers or _run_that_took(options)
    if source is None:
        return recipe
    _check_not_fitted_again(options)
    noted = read_recipe(source)["stages"]
    stages = dict(recipe.stages)
    for name in LOCALISERS:
        stages[name] = _as_noted(source / FILE, name, noted.get(name) or {}, recipe.stages[name])
        word = next((word for word in options.changes() if word.removeprefix("full-epochs ").startswith(name)), None)
        if word is not None and _uncut(stages[name]) != _uncut(recipe.stages[name]):
            raise CohortError(
                f"{word}: found a value for {name} beside --localisers, which stay as {source} has fitted them; leave "
                "it out, or train localisers of your own in another --out"
            )
    return replace(recipe, stages=stages)


def take_localisers(options: TrainOptions, recipe: Recipe, fingerprint: str) -> None:
    """Copy folds, localisers and what they say of held-out studies from the run of ``--localisers``.

    Args:
        options: of the call; nothing is done without the option.
        recipe: as the options change it.
        fingerprint: of the cohort.

    Raises:
        CohortError: the run is of another cohort, or its localisers are not whole.
        TrainingError: it cannot be copied.
    """
    source = options.localisers
    if source is None:
        return
    if read_recipe(source).get("cohort", fingerprint) != fingerprint:
        raise CohortError(f"--localisers {source}: found a run of another cohort, expected one of {options.data}")
    table = read_own_folds(source / "folds.csv")
    folds = parse_folds(None, table)
    asked = with_seeds(parse_folds(options.folds, table), options.full_seeds or recipe.full_seeds)
    for name in TAKEN:
        needed = {k for k in (*folds, *asked) if not is_full(k) or name != LOCALISE}
        lacking = [fold_name(k) for k in sorted(needed) if not note_path(source, name, k).is_file()]
        if lacking:
            raise CohortError(
                f"--localisers {source}: found {name} not finished on {', '.join(lacking)}, expected localisers that "
                "are whole; go on with that run first"
            )
    if count := take_over(source, options.out, "--localisers", _NAMES):
        print(f"{options.out}: localisers and folds taken over from {source} ({counted(count, 'file')})", flush=True)


def localisers_note(options: TrainOptions) -> dict[str, Any] | None:
    """What ``recipe.json`` says of localisers that were taken over: the run, and the seed of their fits."""
    if options.localisers is not None:
        theirs = read_recipe(options.localisers)
        former = theirs.get(NOTE) or {}
        return {"run": str(options.localisers), "seed": former.get("seed", theirs.get("seed", 0))}
    noted = read_object(options.out / FILE).get(NOTE)
    return noted if isinstance(noted, dict) else None


def seeds_of(noted: Mapping[str, Any] | None) -> dict[str, int]:
    """The seed of the stages that were taken over, by name; ``noted`` is ``localisers_note``."""
    return dict.fromkeys(TAKEN, int(noted["seed"])) if noted else {}


def _run_that_took(options: TrainOptions) -> Path | None:
    """The folder, of this run or of the one that it goes on with elsewhere, that notes localisers of another run."""
    if not (options.resume or options.overwrite):
        return None
    folders = (options.out, options.taken_from or options.out)
    return next((folder for folder in folders if read_object(folder / FILE).get(NOTE)), None)


def _check_not_fitted_again(options: TrainOptions) -> None:
    if not options.overwrite:
        return
    again = [name for name in TAKEN if options.stages is None or name in options.stages]
    if again:
        raise CohortError(
            f"--overwrite: found {', '.join(again)} to fit again, which {options.out} has from another run, expected "
            "--stages without them; localisers of its own need another --out"
        )


def _as_noted(path: Path, name: str, noted: dict[str, Any], now: StageRecipe) -> StageRecipe:
    """A localiser's part of a recipe as it was noted."""
    try:
        network = from_dict(type(now.network), noted["network"])
        augment = noted.get("augment") and AugmentConfig(**_known(AugmentConfig, noted["augment"]))
        fit = Fit(**_known(Fit, noted["fit"]))
    except (ManifestError, KeyError, TypeError):
        raise CohortError(
            f"{path}: found {name} as another kind of network than the recipe's, expected the same; give the recipe "
            "that the localisers were trained with"
        ) from None
    return StageRecipe(network, fit, augment, now.mixing)


def _uncut(stage: StageRecipe) -> StageRecipe:
    """Without how a batch is cut, which follows the device."""
    return replace(stage, fit=replace(stage.fit, accumulate=1, checkpointing=False))


def _known(kind: Any, values: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(kind)}
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items() if name in names}
