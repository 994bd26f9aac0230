"""What the classifiers see and learn: one level's crops, cut where out-of-fold localisation says."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from lumbar.config import AxialClassifierConfig, SagittalClassifierConfig
from lumbar.labels import LEVELS
from lumbar.stages.classify import MIRRORED
from lumbar.stages.crop import Jitter, axial_crops, sagittal_crops
from lumbar.stages.points import Localisation
from lumbar_train.data.augment import AugmentConfig, apply, photometric
from lumbar_train.data.cache import Cache
from lumbar_train.data.mixing import MixConfig, mix
from lumbar_train.stages.locate import Sample, collate
from lumbar_train.stages.samples import StudySamples

Labels = NDArray[np.int8]


class LevelCrops(StudySamples):
    """(study, level) → crops, mask, level and the labels (5,) of its conditions, -1 where not to be graded."""

    def __init__(
        self,
        cache: Cache,
        localisations: Mapping[int, Localisation],
        labels: Mapping[int, Labels],
        config: SagittalClassifierConfig | AxialClassifierConfig,
        augment: AugmentConfig | None,
        mixing: MixConfig | None = None,
    ) -> None:
        self.cache, self.localisations, self.labels = cache, localisations, labels
        self.config, self.augment, self.mixing = config, augment, mixing
        self.targets = (0, 1, 2) if isinstance(config, SagittalClassifierConfig) else config.conditions
        self.items = [
            (study_id, level)
            for study_id, place in localisations.items()
            for level in range(5)
            if self._is_there(place, level) and (labels[study_id].reshape(5, 5)[list(self.targets), level] >= 0).any()
        ]
        self.study_of_sample = [study_id for study_id, _ in self.items]
        self.of_level = [[study_id for study_id, level in self.items if level == k] for k in range(5)]
        self.photometric = photometric(augment) if augment else None
        self.collate = collate

    def _is_there(self, localisation: Localisation, level: int) -> bool:
        if isinstance(self.config, SagittalClassifierConfig):
            return LEVELS[level] in localisation.levels_mm
        return localisation.axial(LEVELS[level]) is not None

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """crops, mask, level (), labels (5,) int64; where samples are mixed also labels2 (5,), share (5,)."""
        study_id, level = self.items[index]
        return self.level_sample(study_id, level, rng, self.mixing)

    def level_sample(
        self, study_id: int, level: int, rng: np.random.Generator, mixing: MixConfig | None = None
    ) -> Sample:
        """One level of a study, whether or not its points were found."""
        crops, mask, labels = self._draw(study_id, level, rng)
        mixed: Sample = {}
        if mixing is not None:
            others = self.of_level[level]
            partner = self._draw(others[int(rng.integers(len(others)))], level, rng)
            crops, share = mix(crops, mask, partner[0], partner[1], mixing, rng)
            mixed = {"labels2": torch.from_numpy(partner[2].copy()), "share": torch.from_numpy(share)}
        pixels = torch.from_numpy(crops) if self.photometric is None else self._coloured(crops, mask, rng)
        return {
            "crops": pixels,
            "mask": torch.from_numpy(mask.copy()),
            "level": torch.tensor(level),
            "labels": torch.from_numpy(labels.copy()),
            **mixed,
        }

    def _draw(
        self, study_id: int, level: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.int64]]:
        """Crops, mask and labels, displaced and mirrored by chance."""
        study, localisation = self.cache.study(study_id), self.localisations[study_id]
        jitter = self._jitter(rng)
        if isinstance(self.config, SagittalClassifierConfig):
            crops, mask = sagittal_crops(study, localisation, level, self.config, jitter)
            covered = np.asarray(mask.any(axis=1))
            graded = {condition: bool(covered[condition]) for condition in self.targets}
        else:
            crops, mask = axial_crops(
                study, localisation, level, self.config, jitter, self._look(localisation, level, rng)
            )
            graded = {condition: bool(mask.any()) for condition in self.targets}
        labels = np.full(5, -1, np.int64)
        for condition, is_covered in graded.items():
            if is_covered:
                labels[condition] = self.labels[study_id].reshape(5, 5)[condition, level]
        if self.augment is not None and rng.random() < 0.5:
            crops, mask, labels = self._mirrored(crops, mask, labels)
        return crops, mask, labels

    def _look(self, localisation: Localisation, level: int, rng: np.random.Generator) -> str | None:
        """The axial series to show: any that shows the level, in training by chance; None for all together."""
        assert isinstance(self.config, AxialClassifierConfig)
        series = localisation.axial_series(LEVELS[level]) if self.config.per_series else []
        if not series:
            return None
        return series[int(rng.integers(len(series)))] if self.augment is not None else series[0]

    def _jitter(self, rng: np.random.Generator) -> Jitter:
        config = self.augment
        if config is None:
            return Jitter()
        shift = rng.normal(0, config.shift_mm / 2, 2)
        return Jitter(
            shift_mm=(float(shift[0]), float(shift[1])),
            angle_deg=float(rng.normal(0, config.turn_deg / 2)),
            scale=float(np.exp(rng.normal(0, config.zoom / 2))),
            slices=int(rng.choice((-1, 1))) if rng.random() < config.slices else 0,
        )

    def _mirrored(
        self, crops: NDArray[np.float32], mask: NDArray[np.bool_], labels: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.int64]]:
        if isinstance(self.config, SagittalClassifierConfig):
            crops, mask = crops[[0, 2, 1]], mask[[0, 2, 1]]
            crops[0], mask[0] = crops[0][::-1].copy(), mask[0][::-1].copy()
        else:
            crops = crops[..., ::-1].copy()
        return crops, mask, labels[list(MIRRORED)]

    def _coloured(self, crops: NDArray[np.float32], mask: NDArray[np.bool_], rng: np.random.Generator) -> torch.Tensor:
        """One transform a series: the T2 window has its own, both T1 windows share one; padding stays 0."""
        assert self.photometric is not None
        if isinstance(self.config, SagittalClassifierConfig):
            parts = [apply(self.photometric, crops[:1], rng), apply(self.photometric, crops[1:], rng)]
            out = torch.cat(parts)
        else:
            out = apply(self.photometric, crops, rng)
        return out * torch.from_numpy(mask)[..., None, None]
