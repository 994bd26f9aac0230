"""The chain of one study: localise → crop → classify → aggregate."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lumbar.budget import Effort
from lumbar.config import STAGES
from lumbar.models.inference import Networks
from lumbar.stages.aggregate import aggregate, level_confidence
from lumbar.stages.classify import classify
from lumbar.stages.localise import localise
from lumbar.stages.points import AxialLevel, Localisation, SagittalPoint
from lumbar.study import Study

__all__ = ["STAGES", "AxialLevel", "Localisation", "SagittalPoint", "StudyResult", "predict_study"]


@dataclass
class StudyResult:
    """Probabilities (25, 3) in the order of ``labels.COLUMNS``, what led to them, and seconds by stage."""

    probs: NDArray[np.float64]
    localisation: Localisation
    problems: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def predict_study(
    study: Study, networks: Networks, prior: NDArray[np.float64], effort: Effort = Effort.FULL
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
    found = localise(study, networks, all_folds=effort.uses_all_folds, augment=effort.uses_augmentation)
    seconds["localise"] = time.perf_counter() - start

    start = time.perf_counter()
    logits, mask = classify(
        study,
        found,
        networks,
        flip=effort.uses_augmentation,
        all_folds=effort.uses_all_folds,
        skip=frozenset() if effort.uses_all_models else frozenset({"axial_subarticular"}),
    )
    seconds["classify"] = time.perf_counter() - start

    start = time.perf_counter()
    folds = networks.stage("aggregator")
    folds = folds if effort.uses_all_folds else folds[:1]
    probs = aggregate(logits, mask, prior, folds, level_confidence(found))
    seconds["aggregate"] = time.perf_counter() - start
    return StudyResult(probs=probs, localisation=found, problems=list(found.problems), seconds=seconds)
