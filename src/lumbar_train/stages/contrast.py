"""Slices of sagittal series and the contrast that each shows: what tells series apart whose headers do not.

Axial series are not learned from: a table of series has axial T2 alone, and a network that saw those would call every
axial image T2, whatever it shows. Slices are turned by any angle instead, so that contrasts are told by how bright
tissues are beside each other and not by how the body lies; axial series are then told as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lumbar.config import SeriesContrastConfig
from lumbar.errors import CohortError
from lumbar.io.text import one_line
from lumbar.io.text_table import TableError, read_text_table
from lumbar.labels import SAGITTAL_T1, SAGITTAL_T2
from lumbar.stages.series_contrast import CONTRASTS, STAGE, contrast_grid, contrast_images, middle_indices
from lumbar_train.data.augment import AugmentConfig
from lumbar_train.data.studies import Studies
from lumbar_train.recipes import Recipe, StageRecipe
from lumbar_train.stages.context import RunContext
from lumbar_train.stages.locate import Sample, collate, random_grid, seen, transform_of
from lumbar_train.stages.samples import StudySamples

TRUTH = "truth_contrasts.csv"  # of a synthetic cohort
_COLUMNS = ("series_id", "contrast", "randomised")
# Synthetic series whose tissues are as bright as chance has it. The far ones teach what being unsure is for.
_ODD, _NO_SEQUENCE = 0.6, 0.75
_UNSURE = (0.5, 0.25, 0.25)
_NEAR = 5  # places around the middle of a stack that a slice is drawn from
# What the table of series says of T1, T2 and STIR: it calls T2 and STIR by one name
_BY_TABLE = {SAGITTAL_T1: (1.0, 0.0, 0.0), SAGITTAL_T2: (0.0, 0.5, 0.5)}

Contrast = tuple[float, ...]


class SeriesContrasts(StudySamples):
    """One sample a sagittal stack: one of its slices, and how far it is T1, T2 and STIR.

    Args:
        cache: the studies.
        studies: ids of those that are learned from.
        config: of the network.
        augment: None for the middle slices as they are.
        truth: contrasts by series id, where more is known than the table of series tells; None leaves a series out.
    """

    def __init__(
        self,
        cache: Studies,
        studies: Sequence[int],
        config: SeriesContrastConfig,
        augment: AugmentConfig | None,
        truth: Mapping[str, Contrast | None] | None = None,
    ) -> None:
        self.cache, self.config, self.augment = cache, config, augment
        truth = truth or {}
        self.places: list[tuple[int, str, int, Contrast]] = []
        for study_id in studies:
            for description, by_table in _BY_TABLE.items():
                for k, stack in enumerate(cache.study(study_id).series.get(description, [])):
                    contrast = truth.get(stack.series_id, by_table)
                    if contrast is not None:
                        self.places.append((study_id, description, k, contrast))
        self.study_of_sample = [study_id for study_id, _, _, _ in self.places]
        self.photometric = transform_of(augment)
        self.collate = collate

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """Images (1, size, size) float32 in 0..1, contrast (3,) float32 with the sum 1."""
        study_id, description, k, shares = self.places[index]
        study = self.cache.study(study_id)
        stack = study.series[description][k]
        contrast = {"contrast": torch.tensor(shares)}
        if self.augment is None:
            (middle,) = middle_indices(len(stack.volume), 1)
            images = contrast_images(study, stack, contrast_grid(stack, self.config), [middle])
            return {"images": torch.from_numpy(images)} | contrast
        near = middle_indices(len(stack.volume), _NEAR)
        chosen = near[int(rng.integers(len(near)))]
        size = self.config.size
        grid, _ = random_grid(stack, size, self.config.field_mm / size, self.augment, rng, may_mirror=True)
        return seen(study, stack, [chosen], grid, self.augment, self.photometric, rng) | contrast


def true_contrasts(root: Path) -> dict[str, Contrast | None]:
    """Contrasts by series id of a synthetic cohort; None for series whose contrast no sequence has; else empty.

    Raises:
        CohortError: the table cannot be read, or names another contrast.
    """
    path = Path(root) / TRUTH
    if not path.is_file():
        return {}
    try:
        table = read_text_table(path, _COLUMNS).frame()[list(_COLUMNS)]
        rows = table.itertuples(index=False, name=None)
        return {series_id: _contrast(name, float(randomised)) for series_id, name, randomised in rows}
    except (TableError, KeyError, ValueError, OSError) as error:
        expected = f"{', '.join(_COLUMNS)} with a contrast of {', '.join(CONTRASTS)}"
        raise CohortError(f"{path}: found {one_line(error)}, expected columns {expected}") from None


def _contrast(name: str, randomised: float) -> Contrast | None:
    place = CONTRASTS.index(name)
    if randomised > _ODD:
        return _UNSURE if randomised > _NO_SEQUENCE else None
    return tuple(float(k == place) for k in range(len(CONTRASTS)))


def contrast_data(run: RunContext, stage: StageRecipe, study_ids: list[int]) -> SeriesContrasts:
    """The samples of some studies, as the recipe has them."""
    return SeriesContrasts(run.cache, study_ids, stage.network, stage.augment, true_contrasts(run.cohort.root))


def contrast_loss(network: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross entropy of T1, T2 and STIR, and the share of slices where T1 is told from the others rightly."""
    logits, target = network(batch["images"]).float(), batch["contrast"]
    is_t1 = logits.detach().softmax(dim=1)[:, 0] > 0.5
    is_right = (is_t1 == (target[:, 0] > 0.5)).float().mean()
    loss = -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()
    return loss, {"weight": torch.tensor(float(len(logits))), "right": is_right}


def has_contrast(recipe: Recipe) -> bool:
    """Whether a recipe has this stage: all that ship have it, others may leave it out."""
    return STAGE in recipe.stages
