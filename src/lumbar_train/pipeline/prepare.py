"""From a competition folder to a run that can begin: tables read, studies decoded, folds laid out, recipe noted."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lumbar.errors import CohortError
from lumbar.io.numba_cache import compiling_decoders
from lumbar.io.text import counted
from lumbar_train.data import dicom_folder
from lumbar_train.data.cache import NOTES, build_cache
from lumbar_train.data.dicom_folder import DicomFolder, index_studies
from lumbar_train.data.duplicates import check_copies
from lumbar_train.data.external_points import POINTS_FILE, USES, describe, summary
from lumbar_train.data.folds import (
    fold_name,
    make_folds,
    parse_folds,
    read_folds,
    read_own_folds,
    with_seeds,
    write_folds,
)
from lumbar_train.data.slice_memory import memory_for_slices
from lumbar_train.data.studies import Studies
from lumbar_train.data.tables import LABELS, Cohort, read_cohort, write_labels
from lumbar_train.data.usable import drop_unreadable, write_dropped
from lumbar_train.engine.distributed import Distributed
from lumbar_train.engine.fold_pool import usable_devices
from lumbar_train.engine.interrupts import end_if_time_is_up
from lumbar_train.engine.precision import chosen_amp
from lumbar_train.files import write_text
from lumbar_train.outputs.kept import FILE as RECIPE_FILE
from lumbar_train.outputs.kept import check_kept, write_recipe
from lumbar_train.outputs.run_folder import RunFolder
from lumbar_train.outputs.take_over import take_over
from lumbar_train.overrides import with_overrides
from lumbar_train.pipeline.backbone_start import NOTE as START
from lumbar_train.pipeline.backbone_start import start_note
from lumbar_train.pipeline.initial import init_note, initial_weights
from lumbar_train.pipeline.localisers import NOTE, localisers_note, seeds_of, take_localisers, with_localisers
from lumbar_train.pipeline.options import TrainOptions
from lumbar_train.pipeline.same_run import check_same_run, points_note
from lumbar_train.pipeline.split import with_split
from lumbar_train.pipeline.storage import choose_storage
from lumbar_train.recipes import Recipe, recipe_by_name, with_full_epochs
from lumbar_train.stages.context import RunContext
from lumbar_train.stages.pretrained import Start, parse_files, with_backbone


def chosen_recipe(options: TrainOptions) -> tuple[Recipe, Start]:
    """The recipe as the options change it, and what its backbones start from.

    Raises:
        LumbarError: an unknown recipe, stage, field or backbone, or a value that cannot be.
    """
    recipe = recipe_by_name(options.recipe)
    if options.backbone is not None:
        recipe = with_backbone(recipe, options.backbone)
    recipe = with_overrides(recipe, options.overrides)
    recipe = with_full_epochs(recipe, list(options.full_epochs))  # later: it changes one kind of fits alone
    recipe = with_localisers(options, recipe)
    if options.ship is not None:
        recipe = replace(recipe, export=options.ship)
    is_pretrained = recipe.pretrained if options.pretrained is None else options.pretrained
    return recipe, Start(is_pretrained, parse_files(list(options.backbone_weights), recipe))


def prepare(options: TrainOptions, recipe: Recipe, start: Start, distributed: Distributed) -> RunContext:
    """Read the cohort, decode it, drop what cannot be used, lay out the folds, and note all this in the run folder.

    Every process of a group calls it: they share the decoding, and the main process writes.

    Raises:
        CohortError: the folder, a table or an option is not what it should be.
        LeakError: a study, or a copy of it, lies in two folds.
    """
    whole = distributed.on_main(lambda: read_cohort(options.data, points_file=options.points))
    distributed.on_main(lambda: go_on_with(options, recipe, whole))
    recipe = with_split(options, recipe, whole, distributed)
    distributed.on_main(lambda: check_asked_folds(options, recipe))
    distributed.on_main(lambda: take_localisers(options, recipe, whole.fingerprint))
    noted = distributed.on_main(lambda: localisers_note(options))
    studies = decode(options, whole, distributed)
    cohort, folds = distributed.on_main(lambda: choose_cohort(options, whole, studies, recipe.n_folds))
    amp, line = distributed.on_main(
        lambda: chosen_amp(options.amp, distributed.device, options.out / RECIPE_FILE, bool(options.resume))
    )
    if line and distributed.is_main:
        print(line)
    run = RunContext(
        cohort=cohort,
        folds=folds,
        recipe=recipe,
        folder=RunFolder(options.out),
        cache=studies,
        use_folds=with_seeds(parse_folds(options.folds, folds), options.full_seeds or recipe.full_seeds),
        seed=options.seed,
        resume=bool(options.resume or options.localisers),
        distributed=distributed,
        devices=usable_devices(options.device),
        loop={"amp": amp, "workers": options.n_loaders(distributed.device.type)},
        start=start,
        changes=options.changes(),
        other_seeds=seeds_of(noted),
        points_use=options.points_use if options.points else USES[0],
        command=options.command(),
    )
    distributed.on_main(lambda: end_if_time_is_up())
    run.initial = distributed.on_main(lambda: initial_weights(run, options))
    more = {"cohort": run.cohort.fingerprint, "points": points_note(options), "init": init_note(run, options)}
    more |= {NOTE: noted} if noted else {}
    more[START] = distributed.on_main(lambda: start_note(run, options))
    distributed.on_main(lambda: begin(run, options.stages, options.amp, more))
    if options.overwrite and distributed.is_main:
        print(replaced(run, options.stages))
    if options.points:
        distributed.on_main(lambda: note_points(run))
    return run


def check_asked_folds(options: TrainOptions, recipe: Recipe) -> None:
    """Refuse folds that there are not, and another number than a run or a table has, before hours of decoding.

    Raises:
        CohortError, LeakError: as ``parse_folds`` and ``read_own_folds``; or ``--set`` asks for another number.
    """
    file = fold_table(options)
    folds = pd.DataFrame({"fold": range(recipe.n_folds)}) if file is None else read_own_folds(file)
    parse_folds(options.folds, folds)
    count = folds["fold"].nunique()
    if count != recipe.n_folds and any(word.startswith("recipe.n_folds=") for word in options.overrides):
        raise CohortError(
            f"--set recipe.n_folds={recipe.n_folds}: found {count} folds in {file}, expected the same number; leave it "
            "out, or use another --out"
        )


def fold_table(options: TrainOptions) -> Path | None:
    """The table that says which fold holds a study out: as given, the run's own, its localisers'; None: a new one."""
    own = RunFolder(options.out).folds
    return options.fold_file or (own if own.is_file() else options.localisers and RunFolder(options.localisers).folds)


def go_on_with(options: TrainOptions, recipe: Recipe, whole: Cohort) -> None:
    """See that the run which is gone on with is this one, then take it over where it lies in another folder.

    Raises:
        CohortError: it is of another cohort, recipe, seed or version.
        TrainingError: it cannot be copied.
    """
    source = options.taken_from
    if not options.resume:
        return
    for folder in {options.out, source or options.out}:
        check_same_run(folder, options, recipe, whole.fingerprint)
    if source is not None and (count := take_over(source, options.out)):
        print(f"{options.out}: {counted(count, 'file')} taken over from {source}", flush=True)


def decode(options: TrainOptions, whole: Cohort, distributed: Distributed) -> Studies:
    """Decode every study once, into a cache or for an index alone; the processes of a group share the work."""
    storage = distributed.on_main(lambda: choose_storage(options, whole))
    if storage.why and distributed.is_main:
        print(f"no cache: {storage.why}", flush=True)
    if distributed.is_main and (line := compiling_decoders()):
        print(line, flush=True)
    mine = whole.series["study_id"].isin(whole.study_ids[distributed.rank :: distributed.world])
    of_this_machine = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    workers = max(1, options.n_workers // of_this_machine) if options.n_workers else 0
    source = options.data, whole.split, whole.series[mine]
    shown = distributed.is_main
    folder, index = storage.cache, options.out / dicom_folder.FOLDER
    if folder is None:
        distributed.on_all(lambda: index_studies(index, *source, workers=workers, progress=shown))
        memory = memory_for_slices(options.n_processes(distributed.device.type))
        return DicomFolder(index, options.data, whole.split, memory)
    notes = options.out / NOTES
    caches = distributed.on_all(lambda: build_cache(folder, *source, workers=workers, progress=shown, notes=notes))
    return caches[0]


def choose_cohort(options: TrainOptions, whole: Cohort, studies: Studies, n_folds: int) -> tuple[Cohort, pd.DataFrame]:
    """What of the cohort is trained on, and its folds: of a file, of the run as it was begun, or new ones."""
    cohort = drop_unreadable(whole, studies)
    for reason, count in cohort.dropped.items():
        print(f"left out: {count} × {reason}")
    own, file = RunFolder(options.out).folds, fold_table(options)
    left_out = np.setdiff1d(whole.study_ids, cohort.study_ids)
    folds = make_folds(cohort, n_folds, options.seed) if file is None else read_folds(file, cohort, left_out)
    check_copies(studies, folds)
    write_folds(own, folds)
    write_labels(options.out / LABELS, cohort)
    write_dropped(options.out, whole, cohort)
    return cohort, folds


def begin(run: RunContext, stages: Iterable[str] | None, amp: str, more: Mapping[str, Any] | None = None) -> None:
    """See that what the run folder keeps is of this recipe, then note the recipe there.

    Args:
        run: what is trained on what.
        stages: what the call asks for; None for all of the recipe's.
        amp: the precision that was asked for; the one that is used is the run's.
        more: what else is noted beside the recipe (``write_recipe``).

    Raises:
        CohortError: kept fits are of networks that this recipe has no more.
    """
    check_kept(run.out, run.recipe, fitted_anew(run, stages))
    write_recipe(run.out, run.recipe, run.seed, run.changes, {"asked": amp, "used": run.loop["amp"]}, more)


def fitted_anew(run: RunContext, stages: Iterable[str] | None) -> list[str]:
    """The stages of which this call fits every kept network anew, so that it does not matter what they were.

    Args:
        run: a run that resumes fits none anew.
        stages: what the call asks for; None for all of the recipe's.
    """
    if run.resume:
        return []
    mine = {fold_name(fold) for fold in run.use_folds}
    return [name for name in (stages or run.recipe.stages) if run.folder.fits_of(name) <= mine]


def replaced(run: RunContext, stages: Iterable[str] | None) -> str:
    """One line about the fits in the run folder that this call fits again."""
    mine = {fold_name(fold) for fold in run.use_folds}
    names = [name for name in (stages or run.recipe.stages) if run.folder.fits_of(name) & mine]
    count = sum(len(run.folder.fits_of(name) & mine) for name in names)
    return f"--overwrite: {counted(count, 'finished fit')} of {', '.join(names) or 'no stage'} will be replaced"


def note_points(run: RunContext) -> None:
    """Leave for the report how many points come from where; say it in a few lines."""
    counts = summary(run.cache.study, run.cohort.points, run.points_use)
    write_text(run.out / POINTS_FILE, json.dumps(counts, indent=1) + "\n")
    for line in describe(counts):
        print(line)
