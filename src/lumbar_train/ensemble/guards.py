"""What "out of fold" must mean before runs are put side by side: the same folds, and no network that saw a study."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from lumbar.errors import CohortError
from lumbar.io.text import counted, printable
from lumbar_train.data.folds import is_full
from lumbar_train.data.tables import Cohort
from lumbar_train.errors import LeakError
from lumbar_train.files import read_object
from lumbar_train.outputs.kept import FILE as RECIPE
from lumbar_train.outputs.oof import check_oof_frame
from lumbar_train.outputs.store import read_frame

_KEY = ["study_id", "condition", "level"]


def check_seen(run: Path, fold_of: Mapping[int, int]) -> None:
    """Refuse a run of which a network that predicts a fold was fitted on a study of this fold.

    A run notes beside every network which studies it has seen (``*.seen.json``).

    Raises:
        LeakError: the note, the study, and the fold that should have held it out.
    """
    held_out: dict[int, set[int]] = {}
    for study, fold in fold_of.items():
        held_out.setdefault(fold, set()).add(study)
    for path in sorted(run.glob("*/*.seen.json")):
        try:
            content = json.loads(path.read_text("utf-8"))
            fold, seen = int(content["fold"]), set(map(int, content["studies"]))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            raise LeakError(
                f"{printable(path)}: cannot be read, expected the studies that a network has seen"
            ) from None
        if both := sorted(seen & held_out.get(fold, set())) if not is_full(fold) else []:
            raise LeakError(
                f"{printable(path)}: found study {both[0]} among those that the network was fitted on "
                f"({len(both)} such), expected none of fold {fold}, which it predicts"
            )


def check_up_to_date(run: Path) -> None:
    """Refuse a run whose stages were fitted anew after it was exported: its logits are not those of what ships.

    Raises:
        CohortError: the stage, its fold, and what to do.
    """
    made_from = read_object(run / "aggregator" / "full.done.json").get("from") or {}
    for name, left in made_from.items():
        stage, _, fold = name.partition("/")
        if fold and left is not None and left != read_object(run / stage / f"{fold}.done.json").get("left"):
            raise CohortError(
                f"{printable(run)}: found {stage} ({fold}) made anew after the aggregator, expected a run that is "
                "whole; go on with it (train --resume)"
            )


def check_logits(path: Path, folds: pd.DataFrame, frame: pd.DataFrame | None = None) -> None:
    """Refuse a classifier's table of out-of-fold logits that leaks, or is not what its fits left.

    Each row must come from the fold that held its study out, stand there once, and be the row that the fold's own pass
    has left in ``pieces``, where that is kept.

    Args:
        path: the table.
        folds: of its run.
        frame: its content, where it was read already.

    Raises:
        LeakError: a row of another fold, or one that differs from what the fold that held the study out predicted.
        CohortError: the table is not there, or has a row twice.
    """
    frame = read_frame(path) if frame is None else frame
    check_oof_frame(frame, folds, path)
    if missing := [name for name in _KEY if name not in frame.columns]:
        raise CohortError(f"{printable(path)}: found no column {', '.join(missing)}, expected {', '.join(_KEY)}")
    twice = frame.loc[frame[_KEY].duplicated()]
    if len(twice):
        row = twice.iloc[0]
        raise CohortError(
            f"{printable(path)}: found study {row['study_id']}, {row['condition']} {row['level']} twice, expected once"
        )
    pieces = sorted((path.parent / "pieces").glob(f"{path.stem}.fold*.parquet"))
    if not pieces:
        return
    whole = pd.concat([pd.read_parquet(piece) for piece in pieces], ignore_index=True)
    _check_same_rows(path, frame, whole)


def _check_same_rows(path: Path, frame: pd.DataFrame, whole: pd.DataFrame) -> None:
    values = [name for name in frame.columns if name.startswith("logit_")]
    both = frame.merge(whole, on=_KEY, how="outer", suffixes=("", "_piece"), indicator=True)
    differs = (both["_merge"] != "both").to_numpy(copy=True)
    for name in values:
        differs |= ~np.isclose(both[name], both[f"{name}_piece"], rtol=0, atol=1e-6, equal_nan=True)
    if differs.any():
        study = int(both.loc[differs, "study_id"].iloc[0])
        n_studies = both.loc[differs, "study_id"].nunique()
        raise LeakError(
            f"{printable(path)}: found logits of study {study} that its fold's own pass did not leave in pieces/ "
            f"({counted(n_studies, 'study')}), expected the same"
        )


def check_same_folds(names: Iterable[str], fold_of: Mapping[str, Mapping[int, int]], paths: Mapping[str, Path]) -> None:
    """Refuse runs that do not hold out each study in the same fold.

    Args:
        names: of the runs, the one that the others are compared with first.
        fold_of: of each run, the fold of each of its studies.
        paths: of the runs.

    Raises:
        LeakError: the study, its two folds, and how many others differ.
        CohortError: two runs have no study in common.
    """
    first, *others = names
    for name in others:
        common = sorted(fold_of[first].keys() & fold_of[name].keys())
        if not common:
            raise CohortError(
                f"{name}: found no study in common with {first}, expected runs of one cohort; an unseen cohort is "
                "given with --data"
            )
        differing = [study for study in common if fold_of[first][study] != fold_of[name][study]]
        if differing:
            study = differing[0]
            table = "folds.csv" if (paths[name] / "folds.csv").is_file() else "oof.parquet"
            raise LeakError(
                f"{printable(paths[name] / table)}: found study {study} in fold {fold_of[name][study]} "
                f"({len(differing)} of {len(common)} such), expected fold {fold_of[first][study]} as in {first}: train "
                f"with --fold-file {printable(paths[first] / 'folds.csv')}"
            )


def check_same_cohort(paths: Mapping[str, Path], cohort: Cohort | None = None) -> None:
    """Refuse runs that were trained on different cohorts, also where their studies have the same numbers.

    A run that was given external points has a fingerprint of its own, since it covers the points; a run of an older
    version, or of another program, has noted none. Neither can be compared so.

    Args:
        paths: of the runs, by name.
        cohort: that all must be of, where it is given.

    Raises:
        CohortError: the run, its cohort's fingerprint, and the one that it should have.
    """
    expected = cohort.fingerprint if cohort is not None else ""
    owner = str(cohort.root) if cohort is not None else ""
    for name, path in paths.items():
        noted = read_object(path / RECIPE)
        fingerprint = noted.get("cohort")
        if not isinstance(fingerprint, str) or noted.get("points"):
            continue
        if not expected:
            expected, owner = fingerprint, name
        if fingerprint != expected:
            raise CohortError(
                f"{printable(path / RECIPE)}: found a run of cohort {printable(fingerprint[:12])}, expected "
                f"{printable(expected[:12])}, the cohort of {printable(owner)}"
            )
