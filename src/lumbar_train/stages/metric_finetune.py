"""The second round of a classifier's training: whole studies, and the competition's metric itself as the loss."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lumbar.labels import GROUPS, SEVERITY_WEIGHTS
from lumbar_train.data.batched import finished
from lumbar_train.stages.classify import LevelCrops, collate_crops
from lumbar_train.stages.locate import Sample
from lumbar_train.stages.losses import Batch, Figures, any_severe, metric_loss
from lumbar_train.stages.samples import StudySamples

N_LEVELS = 5


class StudyCrops(StudySamples):
    """All five levels of a study as one sample, because the any-severe term needs the largest of five probabilities."""

    def __init__(self, levels: LevelCrops) -> None:
        self.levels = levels
        self.study_of_sample = self.study_ids = sorted(levels.studies)
        self.collate = collate_crops

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """The batch of a study: crops (5, …), mask (5, …), level (5,), labels (5 levels, 5 conditions)."""
        study_id = self.study_ids[index]
        return collate_crops([self.levels.level_sample(study_id, level, rng) for level in range(N_LEVELS)])


class MetricLoss:
    """``metric_loss`` of a network over study samples, normalised by the weights of the whole training set.

    A batch's own weight sums would make rare severe studies count less in batches that hold more of them, and would
    differ with how batches are cut over processes.
    """

    def __init__(self, labels: Mapping[int, NDArray[np.int8]], targets: tuple[int, ...]) -> None:
        weights = np.array([*SEVERITY_WEIGHTS, 0.0])  # -1, missing, picks the last
        each = np.stack([weights[row.reshape(5, 5)] for row in labels.values()])  # (N, conditions, levels)
        sums = [each[:, [c for c in group if c in targets]].sum() for group in GROUPS.values()]
        canal = torch.from_numpy(np.stack([row.reshape(5, 5)[0] for row in labels.values()]).astype(np.int64))
        heaviest = float(any_severe(canal)[1].sum()) if 0 in targets else 0.0
        self.per_study = torch.tensor([*sums, heaviest], dtype=torch.float32) / len(each)

    def __call__(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Figures]:
        """Loss, and its weight: the number of studies."""
        batch = finished(batch)
        names = ("crops", "mask", "level", *(("position_mm",) if "position_mm" in batch else ()))
        n = len(batch["level"])
        out = network(*(batch[name].flatten(0, 1) for name in names)).float()
        logits = out.view(n, N_LEVELS, 5, 3).transpose(1, 2)  # (N, conditions, levels, 3)
        return metric_loss(logits, batch["labels"].transpose(1, 2), self.per_study.to(out.device)), {"weight": n}
