"""``--init RUN``: what each stage takes from another run or a bundle, found and said before anything is fitted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from lumbar.config import to_dict
from lumbar.errors import CohortError
from lumbar.models import build, name_of
from lumbar_train.data.folds import split
from lumbar_train.files import read_object
from lumbar_train.outputs.kept import FILE
from lumbar_train.pipeline.options import TrainOptions
from lumbar_train.stages.context import RunContext
from lumbar_train.stages.fits import fits_of
from lumbar_train.stages.initial import Agreement, Initial, agreement
from lumbar_train.stages.registry import chosen_stages
from lumbar_train.stages.stage import Stage


def initial_weights(run: RunContext, options: TrainOptions) -> Initial | None:
    """The run that fits start from; what agrees is said, a line a stage.

    Raises:
        CohortError: no stage agrees; or the run was begun with other weights, or without.
        LeakError: fits of folds would start from weights that have seen the studies which they hold out.
    """
    initial = None if options.init is None else Initial.of(options.init, run.cohort.is_synthetic)
    _check_noted(run, options, initial)
    if initial is None:
        return None
    lines = []
    for stage in chosen_stages(run.recipe, options.stages):
        if stage.fitted is None or next(_fits_to_begin(run, stage), None) is None:
            continue
        agreed = _agreement(run, initial, stage)
        if agreed is not None and agreed.same:
            where = initial.run if initial.bundle else initial.run / stage.name
            lines.append(f"--init: {stage.name} starts from {where}: {agreed.text()}")
        else:
            why = "no such stage there" if agreed is None else agreed.text()
            lines.append(f"--init: {stage.name} starts as the recipe says: {why}")
    if lines and not any(" starts from " in line for line in lines):
        what = "a bundle" if initial.bundle else "a run"
        raise CohortError(
            f"--init {initial.run}: found {what} of recipe {initial.recipe} of which no stage agrees in a tensor, "
            f"expected networks like those of {run.recipe.name}"
        )
    for line in lines:
        print(line, flush=True)
    return initial


def init_note(run: RunContext, options: TrainOptions) -> dict[str, Any] | None:
    """What ``recipe.json`` says of the run that fits start from."""
    if run.initial is not None:
        return {"run": str(options.init), "digest": run.initial.digest}
    noted = read_object(run.out / FILE).get("init") if run.resume else None
    return noted if isinstance(noted, dict) else None


def _agreement(run: RunContext, initial: Initial, stage: Stage) -> Agreement | None:
    """How a stage's network agrees with the files that its fits start from; None where there is none."""
    config = stage.recipe_of(run.recipe).network
    with torch.device("meta"):
        network = build(name_of(config), to_dict(config))
    agreed = None
    for fold in _fits_to_begin(run, stage):
        held_out = [int(k) for k in np.sort(split(run.folds, fold)[1])]
        path = initial.weights([stage.name, stage.recipe_name or stage.name], fold, held_out)
        agreed = agreement(path, network) if path is not None else None
    return agreed


def _fits_to_begin(run: RunContext, stage: Stage) -> Iterator[int]:
    for fold in stage.folds(run.use_folds):
        suffixes = [fit.suffix for fit in fits_of(run.recipe, stage, fold)]
        if suffixes and not (run.resume and run.folder.has_begun(stage.name, fold, suffixes[0])):
            yield fold


def _check_noted(run: RunContext, options: TrainOptions, initial: Initial | None) -> None:
    """Refuse to go on with a run from other weights than it was begun from; without new fits they are not needed."""
    path = run.out / FILE
    if not run.resume or not path.is_file():
        return
    noted = read_object(path).get("init") or {}
    stages = chosen_stages(run.recipe, options.stages)
    if initial is None and noted and any(True for stage in stages for _ in _fits_to_begin(run, stage)):
        raise CohortError(f"{path}: the run was begun with --init {noted.get('run')}, found none now; give it again")
    has_begun = any(run.folder.fits_of(stage.name) for stage in stages if stage.fitted)
    if initial is not None and has_begun and noted.get("digest") != initial.digest:
        before = f"--init {noted['run']}" if noted else "no --init"
        raise CohortError(
            f"{path}: the run was begun with {before}, found --init {initial.run} with other weights now; "
            "go on with the same, or use another --out"
        )
