"""Looks at the folders and files that a command names, before anything heavy is imported."""

from __future__ import annotations

import os
from pathlib import Path

from lumbar.errors import CohortError
from lumbar.io.competition import check_competition
from lumbar.io.path_options import did_you_mean_path
from lumbar_train.outputs.session import check_version
from lumbar_train.outputs.take_over import check_source, check_whole
from lumbar_train.pipeline.names import check_recipe, check_stages
from lumbar_train.pipeline.options import TrainOptions


def check_given(options: TrainOptions) -> None:
    """Refuse a training whose names, folders or files are not there.

    Raises:
        CohortError: in one line, what is missing.
    """
    check_recipe(options.recipe)
    check_stages(options.stages)
    check_competition(options.data, "train", has_split=False)
    check_file(options.fold_file, "--fold-file", "a table study_id, fold")
    check_file(options.points, "--points", "a table of external points")
    for word in options.backbone_weights:
        check_file(Path(word.rpartition("=")[2]), "--backbone-weights", "a timm checkpoint")
    if options.cache is not None and options.cache.is_file():
        raise CohortError(f"--cache {options.cache}: found a file, expected a folder, or none")
    check_out(options.out)
    if options.taken_from is not None:
        check_source(options.taken_from, options.out)
    elif options.localisers is not None:
        check_source(options.localisers, options.out, "--localisers")
    elif options.resume:
        check_whole(options.out)
        check_version(options.out)
    if options.init is not None:
        check_folder(options.init, "--init", "the folder of a run")
        check_version(options.init)


def check_file(path: Path | None, option: str, what: str) -> None:
    """Refuse the path of a file that is not there; None is no path."""
    if path is None or path.is_file():
        return
    reason = "found a folder" if path.is_dir() else "no such file"
    raise CohortError(f"{option} {path}: {reason}, expected {what}{did_you_mean_path(path, 'file')}")


def check_folder(path: Path | None, option: str, what: str) -> None:
    """Refuse the path of a folder that is not there; None is no path."""
    if path is None or path.is_dir():
        return
    reason = "found a file" if path.exists() else "no such folder"
    raise CohortError(f"{option} {path}: {reason}, expected {what}{did_you_mean_path(path, 'folder')}")


def check_out(path: Path) -> None:
    """Refuse a place where no folder can be made or written.

    Raises:
        CohortError: what stands in the way.
    """
    above = next(folder for folder in (path, *path.absolute().parents) if os.path.lexists(folder))
    if not above.is_dir():
        raise CohortError(f"--out {path}: {above} is a file, expected a folder to write into")
    if not os.access(above, os.W_OK | os.X_OK):
        raise CohortError(f"--out {path}: {above} cannot be written (permission denied), expected a writable folder")
