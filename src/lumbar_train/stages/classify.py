"""What the classifiers see and learn: one level's crops, cut where out-of-fold localisation says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from lumbar.config import AxialClassifierConfig, SagittalClassifierConfig
from lumbar.labels import LEVELS, MIRRORED
from lumbar.stages.classify import series_pairs
from lumbar.stages.crop import Jitter, level_slices
from lumbar.stages.crop_layout import Crops, CropSlice, Look, crops_shape, filled, sagittal_windows
from lumbar.stages.points import Localisation
from lumbar.study import Study
from lumbar_train.data.augment import AugmentConfig, apply, photometric
from lumbar_train.data.batched import View, drawn_intensities, drawn_mix, joined, raw_images
from lumbar_train.data.mixing import MixConfig, MixPlan, aligned, blended, draw_plan, shares
from lumbar_train.data.studies import Studies
from lumbar_train.stages.locate import Sample
from lumbar_train.stages.samples import StudySamples

Labels = NDArray[np.int8]


@dataclass(frozen=True)
class Drawn:
    """A level as one sample shows it: displaced and mirrored by chance, before any pixel is read.

    ``labels`` (5,), -1 where not to be graded; ``soft`` (5, 3) probabilities that labels are softened with;
    ``is_flipped``: images are read right to left.
    """

    study: Study
    slices: list[CropSlice]
    labels: NDArray[np.int64]
    soft: NDArray[np.float32] | None
    is_flipped: bool = False


class LevelCrops(StudySamples):
    """(study, level) → crops, mask, level and the labels (5,) of its conditions, -1 where not to be graded.

    Args:
        cache: the studies, decoded or to be decoded.
        localisations: where each study's levels are.
        labels: (25,) by study.
        config: of the classifier.
        augment: None shows every sample as the kernel would.
        mixing: of samples of the same level.
        soft: out-of-fold probabilities (25, 3) by study, NaN where there is none, that labels are mixed with.
        left_out: series, by id, that no sample shows.
    """

    def __init__(
        self,
        cache: Studies,
        localisations: Mapping[int, Localisation],
        labels: Mapping[int, Labels],
        config: SagittalClassifierConfig | AxialClassifierConfig,
        augment: AugmentConfig | None,
        mixing: MixConfig | None = None,
        *,
        soft: Mapping[int, NDArray[np.float32]] | None = None,
        left_out: frozenset[str] = frozenset(),
    ) -> None:
        self.cache, self.labels, self.soft = cache, labels, soft
        self.localisations = {study_id: _without(place, left_out) for study_id, place in localisations.items()}
        self.config, self.augment, self.mixing = config, augment, mixing
        self.targets = config.conditions
        self.items = [
            (study_id, level)
            for study_id, place in self.localisations.items()
            for level in range(5)
            if self._is_there(place, level) and (labels[study_id].reshape(5, 5)[list(self.targets), level] >= 0).any()
        ]
        self.study_of_sample = [study_id for study_id, _ in self.items]
        self.of_level = [[study_id for study_id, level in self.items if level == k] for k in range(5)]
        self.on_device = augment is not None and augment.on_device
        self.photometric = photometric(augment) if augment and not augment.on_device else None
        self.collate = collate_crops

    def _is_there(self, localisation: Localisation, level: int) -> bool:
        if isinstance(self.config, SagittalClassifierConfig):
            return LEVELS[level] in localisation.levels_mm
        return localisation.axial(LEVELS[level]) is not None

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """mask, level (), labels (5,) int64 and crops, or what the device makes them of (``data.batched``).

        Whole series have ``position_mm``; mixed samples ``labels2`` (5,), ``share`` (5,); softened ones ``soft``
        (5, 3), mixed and softened ones ``soft2``.
        """
        study_id, level = self.items[index]
        return self.level_sample(study_id, level, rng, self.mixing)

    def level_sample(
        self, study_id: int, level: int, rng: np.random.Generator, mixing: MixConfig | None = None
    ) -> Sample:
        """One level of a study, whether or not its points were localisation."""
        drawn = self._draw(study_id, level, rng)
        shape = crops_shape(self.config, drawn.slices)
        sample: Sample = {"level": torch.tensor(level), "labels": torch.from_numpy(drawn.labels.copy())}
        if drawn.soft is not None:
            sample["soft"] = torch.from_numpy(drawn.soft)
        partner, plan = None, draw_plan(self.config.size, mixing, rng) if mixing is not None else None
        if plan is not None:
            others = self.of_level[level]
            partner = self._draw(others[int(rng.integers(len(others)))], level, rng)
            partner = replace(partner, slices=aligned(drawn.slices, partner.slices, in_mm=self.config.max_slices > 0))
        if mixing is not None:
            sample |= self._mixed_labels(drawn, partner, plan, shape)
        mask, position = _places(drawn.slices, shape)
        sample["mask"] = torch.from_numpy(mask)
        if self.config.max_slices:
            sample["position_mm"] = torch.from_numpy(position)
        if self.on_device:
            return sample | self._raw(drawn, partner, plan, shape, rng, is_mixing=mixing is not None)
        sample["crops"] = self._pixels(drawn, partner, plan, shape, rng)
        return sample

    def _draw(self, study_id: int, level: int, rng: np.random.Generator) -> Drawn:
        """Slices and labels, displaced and mirrored by chance."""
        study, localisation, config = self.cache.study(study_id), self.localisations[study_id], self.config
        jitter = self._jitter(rng)
        slices = level_slices(study, localisation, level, config, jitter, self._look(localisation, level, rng))
        if self.augment is not None and self.augment.keep_slices != (1.0, 1.0):
            slices = self._kept(slices, rng)
        shown = {one.window for one in slices}
        labels = np.full(5, -1, np.int64)
        for condition in self.targets:
            if shown & set(self._windows(condition)):
                labels[condition] = self.labels[study_id].reshape(5, 5)[condition, level]
        soft = None
        if self.soft is not None:
            soft = np.asarray(self.soft[study_id].reshape(5, 5, 3)[:, level], np.float32)
        drawn = Drawn(study, slices, labels, soft)
        return self._mirrored(drawn) if self.augment is not None and rng.random() < 0.5 else drawn

    def _windows(self, condition: int) -> tuple[int, ...]:
        """The windows that a condition is read from."""
        config = self.config
        return sagittal_windows(config, condition) if isinstance(config, SagittalClassifierConfig) else (0,)

    def _look(self, localisation: Localisation, level: int, rng: np.random.Generator) -> Look:
        """The series to show: any that shows the level, in training by chance; None for all together."""
        if not self.config.per_series:
            return None
        if isinstance(self.config, AxialClassifierConfig):
            looks: Sequence[Look] = localisation.axial_series(LEVELS[level])
        else:
            looks = series_pairs(localisation, LEVELS[level])
        if not looks:
            return None
        return looks[int(rng.integers(len(looks)))] if self.augment is not None else looks[0]

    def _jitter(self, rng: np.random.Generator) -> Jitter:
        config = self.augment
        if config is None:
            return Jitter()
        if config.move < 1.0 and rng.random() >= config.move:
            return Jitter()
        if config.uniform:
            across = float(rng.uniform(-config.shift, config.shift))
            shift = rng.uniform(-config.shift_mm, config.shift_mm, 2)
            return Jitter(
                shift_mm=(float(shift[0]), float(shift[1])),
                angle_deg=float(rng.uniform(-config.turn_deg, config.turn_deg)),
                scale=1.0 / float(rng.uniform(1 - config.zoom, 1 + config.zoom)),
                shift=(across, 0.0),
                slices=self._jitter_slices(config, rng),
            )
        shift = rng.normal(0, config.shift_mm / 2, 2)
        angle = float(rng.normal(0, config.turn_deg / 2))
        scale = float(np.exp(rng.normal(0, config.zoom / 2)))
        slices = self._jitter_slices(config, rng)
        across = float(rng.normal(0, config.shift / 2)) if config.shift else 0.0
        return Jitter((float(shift[0]), float(shift[1])), angle, scale, slices, (across, 0.0))

    @staticmethod
    def _jitter_slices(config: AugmentConfig, rng: np.random.Generator) -> int:
        return int(rng.choice((-1, 1))) if rng.random() < config.slices else 0

    def _kept(self, slices: list[CropSlice], rng: np.random.Generator) -> list[CropSlice]:
        """A random part of the slices, in order, at least one of each window."""
        assert self.augment is not None
        share = float(rng.uniform(*self.augment.keep_slices))
        out = []
        for window in sorted({one.window for one in slices}):
            mine = [one for one in slices if one.window == window]
            n = max(1, round(share * len(mine)))
            rows = np.sort(rng.permutation(len(mine))[:n])
            chosen = [mine[int(k)] for k in rows]
            out += [replace(one, step=k) for k, one in enumerate(chosen)] if self.config.max_slices else chosen
        return out

    def _mirrored(self, drawn: Drawn) -> Drawn:
        """The mirrored patient: left and right change places."""
        labels = drawn.labels[list(MIRRORED)]
        soft = None if drawn.soft is None else drawn.soft[list(MIRRORED)]
        if not isinstance(self.config, SagittalClassifierConfig):
            return replace(drawn, labels=labels, soft=soft, is_flipped=True)
        lengths = {one.window: 0 for one in drawn.slices}
        for one in drawn.slices:
            lengths[one.window] = max(lengths[one.window], one.step + 1)
        slices = []
        for one in drawn.slices:
            if self.config.max_slices:  # whole series, right to left
                step = lengths[one.window] - 1 - one.step
                slices.append(replace(one, step=step, position_mm=-one.position_mm))
            elif one.window == 0:  # the canal window runs right to left
                slices.append(replace(one, step=self.config.window - 1 - one.step))
            else:
                slices.append(replace(one, window=3 - one.window))
        slices.sort(key=lambda one: (one.window, one.step))
        return replace(drawn, slices=slices, labels=labels, soft=soft)

    def _mixed_labels(
        self, drawn: Drawn, partner: Drawn | None, plan: MixPlan | None, shape: tuple[int, ...]
    ) -> Sample:
        """The partner's labels, and by condition the share that is the sample's own."""
        second, share = drawn, np.ones(5, np.float32)
        if partner is not None and plan is not None:
            second = partner
            mask, both = _places(drawn.slices, shape)[0], _places(partner.slices, shape)[0]
            is_sagittal = isinstance(self.config, SagittalClassifierConfig)
            windows = {c: self._windows(c) for c in self.targets} if is_sagittal else None
            share = shares(plan, self.config.size, mask, both, windows)
        out = {"labels2": torch.from_numpy(second.labels.copy()), "share": torch.from_numpy(share)}
        if second.soft is not None:
            out["soft2"] = torch.from_numpy(second.soft.copy())
        return out

    def _pixels(
        self,
        drawn: Drawn,
        partner: Drawn | None,
        plan: MixPlan | None,
        shape: tuple[int, ...],
        rng: np.random.Generator,
    ) -> torch.Tensor:
        """The crops, made here."""
        crops = self._filled(drawn, shape)
        images = crops.images
        if partner is not None and plan is not None:
            other = self._filled(partner, shape)
            images = blended(images, other.images, other.mask, plan)
        return torch.from_numpy(images) if self.photometric is None else self._coloured(images, crops.mask, rng)

    def _filled(self, drawn: Drawn, shape: tuple[int, ...]) -> Crops:
        crops = filled(drawn.study, drawn.slices, shape, self.config.size)
        return replace(crops, images=crops.images[..., ::-1].copy()) if drawn.is_flipped else crops

    def _raw(
        self,
        drawn: Drawn,
        partner: Drawn | None,
        plan: MixPlan | None,
        shape: tuple[int, ...],
        rng: np.random.Generator,
        *,
        is_mixing: bool,
    ) -> Sample:
        """What the device makes the crops of."""
        is_sagittal = isinstance(self.config, SagittalClassifierConfig)
        raw = self._cut(drawn, shape) | drawn_intensities(self.augment, rng, 2 if is_sagittal else 1)
        if is_mixing:
            other = partner if partner is not None else replace(drawn, slices=[])
            raw |= self._cut(other, shape, "other_") | drawn_mix(plan)
        return raw

    def _cut(self, drawn: Drawn, shape: tuple[int, ...], name: str = "") -> Sample:
        """Cut-outs of a sample's slices; T2 has its own intensities, all of T1 shares one."""
        views = [
            View(drawn.study, one.stack, one.slice_index, one.grid, int(one.window > 0), drawn.is_flipped)
            for one in drawn.slices
        ]
        return raw_images(views, _places(drawn.slices, shape)[0], self.config.size, name)

    def _coloured(self, crops: NDArray[np.float32], mask: NDArray[np.bool_], rng: np.random.Generator) -> torch.Tensor:
        """One transform a series: the T2 window has its own, both T1 windows share one; padding stays 0."""
        assert self.photometric is not None
        if isinstance(self.config, SagittalClassifierConfig):
            parts = [apply(self.photometric, crops[:1], rng), apply(self.photometric, crops[1:], rng)]
            out = torch.cat(parts)
        else:
            out = apply(self.photometric, crops, rng)
        return out * torch.from_numpy(mask)[..., None, None]


def _without(localisation: Localisation, left_out: frozenset[str]) -> Localisation:
    """A localisation without the points of some series; the levels stay where they are."""
    if not left_out:
        return localisation
    return replace(
        localisation,
        sagittal_points=[point for point in localisation.sagittal_points if point.series_id not in left_out],
        axial_levels=[level for level in localisation.axial_levels if level.series_id not in left_out],
    )


def _places(slices: Sequence[CropSlice], shape: tuple[int, ...]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Mask and positions of the slices in a tensor of some shape, (windows, S) or (S,)."""
    mask, position = np.zeros(shape, bool), np.zeros(shape, np.float32)
    for one in slices:
        place = (one.window, one.step)[-len(shape) :]
        mask[place], position[place] = True, one.position_mm
    return mask, position


def collate_crops(samples: Sequence[Sample]) -> Sample:
    """Stack samples; sequences are padded to the longest, slices for the device are joined."""
    out: Sample = joined(samples)
    for name in (name for name in samples[0] if name not in out):
        parts = [sample[name] for sample in samples]
        axis = {"mask": -1, "position_mm": -1, "crops": -3}.get(name)
        if axis is not None:
            longest = max(part.shape[axis] for part in parts)
            parts = [_longer(part, axis, longest) for part in parts]
        out[name] = torch.stack(parts)
    return out


def _longer(part: torch.Tensor, axis: int, length: int) -> torch.Tensor:
    missing = length - part.shape[axis]
    return torch.nn.functional.pad(part, [0, 0] * (-1 - axis) + [0, missing]) if missing else part
