"""Which stages are finished on which folds, so that a run that is gone on with repeats none of them.

When a stage is done on a fold, ``RUN/<stage>/<fold>.done.json`` notes by hashes what it left and what it was made from.
It counts as finished as long as both are still so: where an earlier stage was fitted anew, what comes after it is
predicted anew.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from lumbar.bundle.manifest import file_sha256
from lumbar.config import FUSION, to_dict
from lumbar_train.data.folds import fold_name, is_full
from lumbar_train.files import read_object, write_text
from lumbar_train.outputs.run_folder import RunFolder
from lumbar_train.stages.context import RunContext
from lumbar_train.stages.needs import needs
from lumbar_train.stages.registry import stages_of
from lumbar_train.stages.stage import Stage


def note_path(run: Path, stage: str, fold: int) -> Path:
    """Where it is noted that a stage is done on a fold."""
    return run / stage / f"{fold_name(fold)}.done.json"


def is_finished(run: RunContext, stage: Stage, fold: int) -> bool:
    """Whether nothing is left to do for a stage on a fold."""
    noted = read_object(note_path(run.out, stage.name, fold))
    return bool(noted.get("left")) and noted == _content(run, stage, fold)


def note_finished(run: RunContext, stage: Stage, fold: int) -> None:
    """Note what a stage has left on a fold."""
    write_text(note_path(run.out, stage.name, fold), json.dumps(_content(run, stage, fold), indent=1) + "\n")


def forget(run: RunContext, stage: Stage, fold: int) -> None:
    """Before a stage begins on a fold: what it left there another time does not count any more."""
    note_path(run.out, stage.name, fold).unlink(missing_ok=True)


def outdated(run: RunContext) -> list[str]:
    """The stages that left something on a fold which was made from outputs that have been replaced since.

    Of fits on all data those of this call count.
    """
    folds = [*run.all_folds(), *run.full_fits()]
    stages = stages_of(run.recipe)
    return [stage.name for stage in stages if any(is_outdated(run, stage, fold) for fold in stage.folds(folds))]


def is_outdated(run: RunContext, stage: Stage, fold: int) -> bool:
    """Whether what a stage left on a fold was made from outputs that have been replaced since."""
    made_from = read_object(note_path(run.out, stage.name, fold)).get("from") or {}
    for name, k in needs(stage, fold, run.all_folds(), stages_of(run.recipe)):
        before = made_from.get(f"{name}/{fold_name(k)}")
        if before is not None and before != read_object(note_path(run.out, name, k)).get("left"):
            return True
    return False


def _content(run: RunContext, stage: Stage, fold: int) -> dict[str, Any]:
    content = {"left": _left(run.folder, stage, fold), "from": _made_from(run, stage, fold)}
    return dict(json.loads(json.dumps(content)))  # as it is read back


def _left(folder: RunFolder, stage: Stage, fold: int) -> dict[str, str] | None:
    """Hashes of what a stage has left on a fold, by file; None where something is missing."""
    if stage.action is not None:
        files = [folder.table(stage.name, table) for table in stage.tables]
        weights = sorted((folder.path / stage.name).glob("*.safetensors"))
    else:
        tables = () if is_full(fold) or stage.leaves else stage.tables
        files = [folder.path / stage.name / "pieces" / f"{table}.{fold_name(fold)}.parquet" for table in tables]
        weights = [folder.weights(stage.name, fold)] if stage.fitted else []
    if stage.leaves is not None:
        files.append(stage.leaves(folder.path, fold))
    if not all(path.is_file() for path in (*files, *weights)):
        return None
    return {path.name: _hash(path, *_stamp(path)) for path in (*files, *weights)}


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


@lru_cache(maxsize=4096)
def _hash(path: Path, _time_ns: int, _n_bytes: int) -> str:
    """A file's hash, taken once as long as it stays what it is."""
    return file_sha256(path)


def _made_from(run: RunContext, stage: Stage, fold: int) -> dict[str, Any]:
    """The outputs of earlier stages, and what of the run's settings no fit of the training loop compares."""
    pairs = sorted(needs(stage, fold, run.all_folds(), stages_of(run.recipe)))
    made_from: dict[str, Any] = {
        f"{name}/{fold_name(k)}": read_object(note_path(run.out, name, k)).get("left") for name, k in pairs
    }
    made_from |= {"cohort": run.cohort.fingerprint, "seed": run.seed_of(stage.name)}
    if stage.action is not None:
        entry = run.recipe.stages.get(stage.name)
        made_from["folds"] = sorted([*run.all_folds(), *run.full_fits()])
        made_from["recipe"] = entry and {"network": to_dict(entry.network), "fit": to_dict(entry.fit)}
        made_from["denoise"] = run.recipe.denoise and to_dict(run.recipe.denoise)
    if stage.name == FUSION:
        made_from["recipe"] = run.recipe.fusion and to_dict(run.recipe.fusion)
    return made_from
