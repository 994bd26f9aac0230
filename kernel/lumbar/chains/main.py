"""The main chain of one study: localise → crop → classify → aggregate."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lumbar.bundle.manifest import Manifest
from lumbar.bundle.probes import check_probes
from lumbar.bundle.weights import load_networks
from lumbar.chains import overlay
from lumbar.chains.contract import Picture, StudyResult
from lumbar.labels import AXIAL_T2
from lumbar.models.inference import Networks
from lumbar.stages.aggregate import aggregate, level_confidence, mixed_readings
from lumbar.stages.classify import Logits, Mask, classify
from lumbar.stages.localise import localise
from lumbar.stages.own_places import OwnPlaces, own_places
from lumbar.stages.points import AxialLevel, Localisation
from lumbar.study import Study, read_study
from lumbar.workers.effort import Effort, Level


def read(root: Path, split: str, study_id: int | str, descriptions: pd.DataFrame, workers: int | None) -> Study:
    """Every described series of a study (``lumbar.study.read_study``)."""
    return read_study(root, split, study_id, descriptions, workers)


def load(manifest: Manifest, device: str) -> Networks:
    """The networks of a bundle on a device, each proven by its probe.

    Raises:
        ManifestError: code, library versions, configs or weights do not belong together.
    """
    networks = load_networks(manifest.folder, manifest, device)
    check_probes(networks, manifest)
    return networks


def predict(study: Study, networks: Networks, prior: NDArray[np.float64], effort: Level) -> StudyResult:
    """``predict_study``."""
    return predict_study(study, networks, prior, effort)


def draw(study: Study, result: StudyResult) -> list[Picture]:
    """The localised levels on the study's slices."""
    return overlay.views(study, result.localisation)


def draw_files(study: Study, result: StudyResult) -> list[Picture]:
    """The same as PNG files with the points drawn in: one sagittal slice of each kind, one axial slice a level."""
    return overlay.draw(study, result.localisation)


def predict_study(
    study: Study, networks: Networks, prior: NDArray[np.float64], effort: Level = Effort.FULL
) -> StudyResult:
    """Run the chain on one study.

    Args:
        study: its stacks; missing series leave their columns at the prior.
        networks: of one bundle.
        prior: (25, 3), for columns that no model saw.
        effort: what to leave out when time is short.
    """
    seconds: dict[str, float] = {}
    start = time.perf_counter()
    localisation = localise(study, networks, all_folds=effort.uses_all_folds, augment=effort.uses_augmentation)
    skip = effort.skips(networks.spared)
    own = own_places(study, networks, all_folds=effort.uses_all_folds, augment=effort.uses_augmentation, skip=skip)
    seconds["localise"] = time.perf_counter() - start

    seconds["classify"] = seconds["aggregate"] = 0.0
    problems = list(localisation.problems)

    def answer_of(reading: Localisation) -> NDArray[np.float64]:
        # Another reading of the numbering is one of the bundle's own localisers: all members follow it
        at = own if reading is localisation else []
        return _answer(study, reading, at, networks, prior, effort, seconds, problems)

    probs = mixed_readings(answer_of(localisation), localisation, prior, answer_of)
    return StudyResult(
        probs=probs,
        localisation=localisation,
        problems=problems,
        seconds=seconds,
        axial_mm=[axial_points_mm(study, level) for level in localisation.axial_levels],
    )


def _answer(
    study: Study,
    localisation: Localisation,
    own: OwnPlaces,
    networks: Networks,
    prior: NDArray[np.float64],
    effort: Level,
    seconds: dict[str, float],
    problems: list[str],
) -> NDArray[np.float64]:
    """The probabilities (25, 3) at the points of a localisation; what they took is added to ``seconds``.

    Members in ``own`` look at points of their own. ``problems`` gets a line for each external member that fails.
    """
    start = time.perf_counter()
    logits, mask = _logits(study, localisation, own, networks, effort, problems)
    seconds["classify"] += time.perf_counter() - start

    start = time.perf_counter()
    folds = networks.stage("aggregator")
    folds = folds if effort.uses_all_folds else folds[:1]
    probs = aggregate(logits, mask, prior, folds, level_confidence(localisation), networks.grade_calibration)
    seconds["aggregate"] += time.perf_counter() - start
    return probs


def _logits(
    study: Study,
    localisation: Localisation,
    own: OwnPlaces,
    networks: Networks,
    effort: Level,
    problems: list[str],
) -> tuple[Logits, Mask]:
    """Run the classifiers, each at its points: logits (M, 5 conditions, 5 levels, 3) and mask (M, 5, 5)."""
    skip = effort.skips(networks.spared) | {name for members, _ in own for name in members}
    flip, all_folds = effort.uses_augmentation, effort.uses_all_folds
    logits, mask = classify(study, localisation, networks, flip=flip, all_folds=all_folds, skip=skip, problems=problems)
    for members, place in own:
        rows = [networks.classifiers.index(name) for name in members]
        logits[rows], mask[rows] = classify(study, place, networks, names=members, flip=flip, all_folds=all_folds)
    return logits, mask


def axial_points_mm(study: Study, level: AxialLevel) -> dict[str, list[float]]:
    """The left and right point of an axial slice in patient space."""
    stack = study.series[AXIAL_T2][level.stack]
    points = {"left_mm": level.left_px, "right_mm": level.right_px}
    return {
        name: [round(float(v), 3) for v in stack.to_patient(level.slice_index, y, x)] for name, (x, y) in points.items()
    }
