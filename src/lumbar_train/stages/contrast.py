"""Slices of all series and the contrast that each shows: what tells series apart whose headers do not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lumbar.config import SeriesContrastConfig
from lumbar.stages.series_contrast import CONTRAST_OF, STAGE, contrast_grid, contrast_images, middle_indices
from lumbar_train.data.augment import AugmentConfig
from lumbar_train.data.studies import Studies
from lumbar_train.recipes import Recipe, StageRecipe
from lumbar_train.stages.context import RunContext
from lumbar_train.stages.locate import Sample, collate, random_grid, seen, transform_of
from lumbar_train.stages.samples import StudySamples

_NEAR = 5  # places around the middle of a stack that a slice is drawn from


class SeriesContrasts(StudySamples):
    """One sample a stack: one of its slices, and 0 for T1 or 1 for T2/STIR by the table of series."""

    def __init__(
        self, cache: Studies, studies: Sequence[int], config: SeriesContrastConfig, augment: AugmentConfig | None
    ) -> None:
        self.cache, self.config, self.augment = cache, config, augment
        self.places = [
            (study_id, description, k)
            for study_id in studies
            for description, stacks in cache.study(study_id).series.items()
            for k in range(len(stacks))
        ]
        self.study_of_sample = [study_id for study_id, _, _ in self.places]
        self.photometric = transform_of(augment)
        self.collate = collate

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """Images (1, size, size) float32 in 0..1, contrast () int64."""
        study_id, description, k = self.places[index]
        study = self.cache.study(study_id)
        stack = study.series[description][k]
        contrast = {"contrast": torch.tensor(CONTRAST_OF[description])}
        if self.augment is None:
            (middle,) = middle_indices(len(stack.volume), 1)
            images = contrast_images(study, stack, contrast_grid(stack, self.config), [middle])
            return {"images": torch.from_numpy(images)} | contrast
        near = middle_indices(len(stack.volume), _NEAR)
        chosen = near[int(rng.integers(len(near)))]
        size = self.config.size
        grid, _ = random_grid(stack, size, self.config.field_mm / size, self.augment, rng, may_mirror=True)
        return seen(study, stack, [chosen], grid, self.augment, self.photometric, rng) | contrast


def contrast_data(run: RunContext, stage: StageRecipe, study_ids: list[int]) -> SeriesContrasts:
    """The samples of some studies, as the recipe has them."""
    return SeriesContrasts(run.cache, study_ids, stage.network, stage.augment)


def contrast_loss(network: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross entropy of T1 and T2/STIR, and the share of slices that are told rightly."""
    logits = network(batch["images"]).float()
    is_right = (logits.detach().argmax(dim=1) == batch["contrast"]).float().mean()
    return F.cross_entropy(logits, batch["contrast"]), {"weight": torch.tensor(float(len(logits))), "right": is_right}


def has_contrast(recipe: Recipe) -> bool:
    """Whether a recipe has this stage: all that ship have it, others may leave it out."""
    return STAGE in recipe.stages
