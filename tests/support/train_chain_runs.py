"""Runs of the main chain as a training leaves them, without the training."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from kernel_untrained import write_untrained_bundle
from lumbar.config import CLASSIFIERS
from lumbar.study import read_study
from lumbar_train.data.folds import make_folds, write_folds
from lumbar_train.data.tables import Cohort
from lumbar_train.data.true_points import true_localisation
from lumbar_train.evaluation.point_errors import truth_points
from lumbar_train.outputs.store import levels_frame, logits_frame, write_frame, write_localisations
from lumbar_train.recipes import Fit

FIT = Fit(epochs=3, lr=1e-3, batch=100, weight_decay=1.0)


def write_chain_run(run: Path, cohort: Cohort, configs: dict, seed: int) -> Path:
    """A run as a training leaves it, but for what makes it long: true places, logits of its own, untrained weights."""
    folds = make_folds(cohort, 2, 0)
    write_folds(run / "folds.csv", folds)
    fold_of = dict(zip(folds["study_id"], folds["fold"], strict=True))
    truth = truth_points(cohort)
    places = {
        study: true_localisation(
            read_study(cohort.root, "train", study, cohort.series, workers=1), truth[truth["study_id"] == study]
        )
        for study in map(int, cohort.study_ids)
    }
    for fold in (0, 1):
        own = {study: place for study, place in places.items() if fold_of[study] == fold}
        write_localisations(run / "localise", own, fold_of, fold)
    levels = {study: place.levels_mm for study, place in places.items()}
    write_frame(run / "sagittal_xy/oof.parquet", levels_frame(levels, fold_of))
    rng = np.random.default_rng(seed)
    for name in CLASSIFIERS:
        known = np.eye(3)[np.maximum(cohort.labels, 0)].reshape(-1, 5, 5, 3)
        values = 2 * (known + rng.normal(size=known.shape)).astype(np.float32)
        mask = np.isin(np.arange(5), configs[name].conditions)[:, None] & np.ones((5, 5), bool)
        ids = cohort.study_ids.tolist()
        frame = logits_frame(dict(zip(ids, values, strict=True)), dict.fromkeys(ids, mask), fold_of)
        write_frame(run / name / "oof.parquet", frame)
    write_untrained_bundle(run / "export", seed, configs)
    note = {"name": "demo", "cohort": cohort.fingerprint, "stages": {"aggregator": {"fit": asdict(FIT)}}}
    (run / "recipe.json").write_text(json.dumps(note))
    return run
