"""The guards against leaks: no study is predicted, scored or passed on by weights that have seen it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import pandas as pd

from lumbar.bundle.manifest import file_sha256
from lumbar.errors import CohortError
from lumbar_train.data.folds import FULL, is_full
from lumbar_train.errors import LeakError
from lumbar_train.files import write_text

T = TypeVar("T")


@dataclass(frozen=True)
class Part(Generic[T]):
    """The outputs of one fit for studies that it has not seen.

    Attributes:
        fold: the fold that was held out.
        seen: every study whose images or labels the fit was given.
        outputs: by study.
    """

    fold: int
    seen: frozenset[int]
    outputs: Mapping[int, T]


def gather(parts: Iterable[Part[T]], folds: pd.DataFrame, *, is_complete: bool = False) -> dict[int, T]:
    """One output a study, in ascending order of studies.

    Args:
        parts: of the held-out folds.
        folds: ``study_id, fold`` of the run.
        is_complete: whether every study of ``folds`` must have an output.

    Raises:
        LeakError: a fit on all data, a study that a fit has seen, a study of another fold, a study predicted twice.
        CohortError: a study without an output, where all are expected.
    """
    fold_of = {int(s): int(f) for s, f in zip(folds["study_id"], folds["fold"], strict=True)}
    gathered: dict[int, T] = {}
    for part in parts:
        if is_full(part.fold):
            raise LeakError("a fit on all data has seen every study: its outputs are not out of fold")
        for study, output in part.outputs.items():
            if study in part.seen:
                raise LeakError(f"study {study} is predicted by fold {part.fold}'s weights, which were fitted on it")
            if fold_of.get(study) != part.fold:
                own_fold = fold_of.get(study, "no fold")
                raise LeakError(
                    f"study {study} is predicted as held out by fold {part.fold}, but belongs to {own_fold}"
                )
            if study in gathered:
                raise LeakError(f"study {study} is predicted twice, expected by one fold's weights")
            gathered[study] = output
    absent = sorted(set(fold_of) - set(gathered))
    if is_complete and absent:
        raise CohortError(f"study {absent[0]} has no out-of-fold output ({len(absent)} studies without)")
    return dict(sorted(gathered.items()))


def check_oof_frame(frame: pd.DataFrame, folds: pd.DataFrame, path: Path | str) -> None:
    """Refuse a stored table with rows that do not come from the fold that holds the study out.

    Raises:
        LeakError: a study in two folds, in another fold than ``folds`` says, or from a fit on all data.
        CohortError: no ``study_id`` or ``fold`` column.
    """
    missing = [name for name in ("study_id", "fold") if name not in frame.columns]
    if missing:
        raise CohortError(
            f"{path}: found no column {', '.join(missing)}, expected study_id and fold beside the outputs"
        )
    if (frame["fold"] <= FULL).any():
        raise LeakError(f"{path}: holds outputs of a fit on all data, expected out-of-fold outputs alone")
    pairs = frame[["study_id", "fold"]].drop_duplicates()
    twice = pairs.loc[pairs["study_id"].duplicated(), "study_id"]
    if len(twice):
        raise LeakError(f"{path}: study {twice.iloc[0]} has outputs of two folds, expected of one")
    fold_of = folds.set_index("study_id")["fold"]
    expected = pairs["study_id"].map(fold_of)
    wrong = np.flatnonzero(expected.to_numpy() != pairs["fold"].to_numpy())
    if wrong.size:
        row = pairs.iloc[int(wrong[0])]
        held_out = expected.iloc[int(wrong[0])]
        where = "no fold" if pd.isna(held_out) else f"fold {int(held_out)}"
        raise LeakError(
            f"{path}: study {row['study_id']} was predicted by fold {row['fold']}, but is held out in {where}"
        )


def write_seen(weights: Path, fold: int, study_ids: Iterable[int]) -> None:
    """Note beside a weight file which studies it was fitted on, bound to the file's hash."""
    content = {"fold": fold, "sha256": file_sha256(weights), "studies": sorted(map(int, study_ids))}
    write_text(_seen_path(weights), json.dumps(content) + "\n")


def read_seen(weights: Path) -> tuple[int, frozenset[int]]:
    """Fold and studies of a weight file.

    Raises:
        LeakError: nothing is noted, or of another file: then nothing is known, and nothing may be scored.
    """
    path = _seen_path(weights)
    try:
        content = json.loads(path.read_text("utf-8"))
        fold, digest, studies = int(content["fold"]), content["sha256"], frozenset(map(int, content["studies"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LeakError(
            f"{path}: cannot be read ({error}), expected the studies that {weights.name} has seen"
        ) from error
    sha256 = file_sha256(weights)
    if digest != sha256:
        raise LeakError(f"{path}: speaks of weights {digest[:12]}, found {sha256[:12]}: what they have seen is unknown")
    return fold, studies


def check_unseen(weights: Path, study_ids: Iterable[int]) -> None:
    """Refuse to predict studies with weights that have seen one of them.

    Raises:
        LeakError: naming the first such study.
    """
    fold, seen = read_seen(weights)
    both = sorted(seen & set(map(int, study_ids)))
    if both:
        name = "the fit on all data" if is_full(fold) else f"fold {fold}'s fit"
        raise LeakError(f"{weights}: {name} has seen study {both[0]} ({len(both)} of those asked for), expected none")


def _seen_path(weights: Path) -> Path:
    return weights.with_name(weights.name.removesuffix(".safetensors") + ".seen.json")
