"""What the frozen classifiers of a fold say of the studies that a fusion head learns from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lumbar.labels import MIRRORED
from lumbar.models.inference import graded
from lumbar.stages.classify import LevelTensors, mirrored_levels, target_mask
from lumbar_train.data.batched import finished
from lumbar_train.engine.interrupts import end_if_time_is_up
from lumbar_train.engine.sampling import predict
from lumbar_train.stages.classifiers import crops_data
from lumbar_train.stages.classify import Drawn, LevelCrops, collate_crops
from lumbar_train.stages.context import RunContext
from lumbar_train.stages.fitting import fit_seed
from lumbar_train.stages.locate import Sample
from lumbar_train.stages.samples import StudySamples

N_LEVELS = 5
_AT_ONCE = 2  # studies that a classifier sees together


@dataclass(frozen=True)
class Shown:
    """What M classifiers of one fold say of N shown studies; a study may be shown several times.

    Attributes:
        study_ids: (N,).
        logits: (N, M, 5 levels, 5 conditions, 3).
        mask: (N, M, 5 levels, 5 conditions) which of them rest on images.
        features: of each classifier (N, 5 levels, 3, F), in half precision.
        labels: (N, 5 conditions, 5 levels), -1 where not to be graded.
    """

    study_ids: tuple[int, ...]
    logits: Tensor
    mask: Tensor
    features: tuple[Tensor, ...]
    labels: Tensor

    def __len__(self) -> int:
        """Number of shown studies."""
        return len(self.study_ids)


class Unmirrored(LevelCrops):
    """Level crops displaced and coloured by chance as in training, while left and right stay where they are.

    All classifiers must see a study mirrored, or none, so that is not left to the chance of each.
    """

    def _mirrored(self, drawn: Drawn) -> Drawn:
        return drawn


class ShownStudies(StudySamples):
    """All five levels of a study as one sample, and whether the study is seen mirrored."""

    def __init__(self, levels: LevelCrops, study_ids: Sequence[int], is_mirrored: Sequence[bool]) -> None:
        self.levels = levels
        self.study_of_sample = list(study_ids)
        self.is_mirrored = is_mirrored
        self.collate = collate_crops

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """The crops of a study's levels (5, …), and ``is_mirrored`` ()."""
        study_id = self.study_of_sample[index]
        levels = collate_crops([self.levels.level_sample(study_id, level, rng) for level in range(N_LEVELS)])
        return levels | {"is_mirrored": torch.tensor(self.is_mirrored[index])}


def mirrored_in(view: int, n_studies: int) -> list[bool]:
    """Which of the studies a view shows mirrored: every other one, the others in the next view."""
    return [(place + view) % 2 == 1 for place in range(n_studies)]


def training_features(run: RunContext, members: Mapping[str, nn.Module], study_ids: list[int], fold: int) -> Shown:
    """What a fold's classifiers say of the studies that it learns from, each shown several times."""
    assert run.recipe.fusion is not None
    flags = [mirrored_in(view, len(study_ids)) for view in range(run.recipe.fusion.views)]
    outputs: list[dict[str, NDArray[Any]]] = []
    own = np.zeros((len(study_ids), 5, N_LEVELS), np.int64)
    for name, network in members.items():
        crops = crops_data(run, replace(run.recipe.stages[name], mixing=None), study_ids, suffix="", kind=Unmirrored)
        own = np.stack([crops.labels[k].reshape(5, N_LEVELS) for k in study_ids]).astype(np.int64)
        views = list(_views(run, network, crops, study_ids, flags, fit_seed(run.seed, fold)))
        outputs.append({key: np.concatenate([view[key] for view in views]) for key in views[0]})
    labels = [np.where(np.array(some)[:, None, None], own[:, list(MIRRORED)], own) for some in flags]
    return Shown(
        tuple(study_ids * len(flags)),
        torch.from_numpy(np.stack([out["logits"] for out in outputs], axis=1)),
        torch.from_numpy(np.stack([out["mask"] for out in outputs], axis=1)),
        tuple(torch.from_numpy(out["features"]) for out in outputs),
        torch.from_numpy(np.concatenate(labels)),
    )


def _views(
    run: RunContext,
    network: nn.Module,
    crops: LevelCrops,
    study_ids: list[int],
    flags: Sequence[Sequence[bool]],
    seed: int,
) -> Iterator[dict[str, NDArray[Any]]]:
    for view, is_mirrored in enumerate(flags):
        end_if_time_is_up()
        out = predict(
            partial(graded_batch, network),
            ShownStudies(crops, study_ids, is_mirrored),
            batch_size=_AT_ONCE,
            distributed=run.distributed,
            seed=seed + 7877 * (view + 1),
            workers=int(run.loop.get("workers", 0)),
        )
        yield out | {"features": out["features"].astype(np.float16)}


def graded_batch(network: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a classifier says of the n studies of a batch.

    Returns:
        logits (n, 5 levels, 5 conditions, 3), mask (n, 5, 5) and features (n, 5, 3, F).
    """
    batch = finished(dict(batch))
    n = len(batch["level"])
    crops, mask, level = (batch[name].flatten(0, 1) for name in ("crops", "mask", "level"))
    position = (
        batch["position_mm"].flatten(0, 1) if "position_mm" in batch else torch.zeros_like(mask, dtype=torch.float)
    )
    tensors = LevelTensors(crops, mask, position)
    other = mirrored_levels(network, tensors)
    is_mirrored = batch["is_mirrored"].repeat_interleave(N_LEVELS)
    crops, mask, position = (
        torch.where(is_mirrored.view(-1, *[1] * (own.dim() - 1)), flipped, own)
        for own, flipped in ((crops, other.images), (mask, other.mask), (position, other.position_mm))
    )
    places = (position,) if "position_mm" in batch else ()
    logits, features = graded(network, crops, mask, level, *places)
    shown = target_mask(network, mask).cpu()
    each = {"logits": logits, "mask": shown, "features": features * shown.any(dim=1)[:, None, None]}
    return {name: value.view(n, N_LEVELS, *value.shape[1:]) for name, value in each.items()}
