"""Run folders made of nothing but out-of-fold answers, logits and labels: what comparisons and ensembles read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from lumbar.labels import SEVERITY_COLUMNS, row_ids
from lumbar_train.data.folds import write_folds
from lumbar_train.data.tables import LABELS, Cohort, write_labels
from lumbar_train.outputs.store import logits_frame, write_frame

STUDIES = range(1, 41)


def labels_of(studies: Iterable[int]) -> np.ndarray:
    """Labels (N, 25) that belong to the studies' numbers, so that every run knows the same."""
    rows = [np.random.default_rng(study).choice(3, 25, p=(0.6, 0.25, 0.15)) for study in studies]
    return np.array(rows, np.int8)


def answers_of(studies: Iterable[int], knowledge: float) -> np.ndarray:
    """Probabilities (N, 25, 3) that give the true class a share of ``knowledge`` beside an even rest."""
    return (1 - knowledge) / 3 + knowledge * np.eye(3)[labels_of(studies)]


def write_run(
    run: Path,
    knowledge: float,
    *,
    studies: Iterable[int] = STUDIES,
    dropped: Iterable[int] = (),
    unanswered: Iterable[int] = (),
    fold_of: Mapping[int, int] | None = None,
) -> Path:
    """A run in two folds, odd and even studies; ``unanswered`` ones have a fold, but no answer."""
    shutil.rmtree(run, ignore_errors=True)
    kept = [study for study in studies if study not in dropped]
    folds = {study: study % 2 if fold_of is None else fold_of[study] for study in kept}
    write_folds(run / "folds.csv", pd.DataFrame({"study_id": kept, "fold": [folds[study] for study in kept]}))
    (run / "dropped.json").write_text(json.dumps({"studies": sorted(dropped), "counts": {}}))
    labels = labels_of(kept)
    write_labels(run / LABELS, Cohort(run, "train", np.array(kept), labels, pd.DataFrame(), pd.DataFrame()))
    answered = [study for study in kept if study not in unanswered]
    answer = pd.DataFrame(answers_of(answered, knowledge).reshape(-1, 3), columns=list(SEVERITY_COLUMNS))
    answer.insert(0, "row_id", [row for study in answered for row in row_ids(study)])
    write_frame(run / "aggregator/oof.parquet", answer)
    logits = {study: np.log(answers_of([study], knowledge)).reshape(5, 5, 3).astype(np.float32) for study in answered}
    masks = {study: np.ones((5, 5), bool) for study in answered}
    write_frame(run / "axial_all/oof.parquet", logits_frame(logits, masks, folds))
    return run
