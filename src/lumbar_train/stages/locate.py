"""What the three localisers see and learn, one sample at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import v2

from lumbar.config import AxialRegressionConfig, HeatmapConfig, SagittalRegressionConfig, SliceRoleConfig
from lumbar.dicom import Stack
from lumbar.geometry import Grid, make_grid, project, shifted
from lumbar.labels import AXIAL_T2
from lumbar.stages.crop import Jitter, grid_images, role_grid
from lumbar.stages.decode import source_to_heat
from lumbar.stages.heat import SAGITTAL_POINTS, STRIDE, whole_image_mm
from lumbar.stages.points import Xyz
from lumbar.study import Study
from lumbar_train.data.augment import AugmentConfig, apply, photometric
from lumbar_train.data.batched import View, drawn_intensities, joined, raw_images
from lumbar_train.data.masks import MaskReader, for_segments
from lumbar_train.data.studies import Studies
from lumbar_train.data.targets import StudyTargets, sagittal_stacks, slice_counts
from lumbar_train.stages.samples import StudySamples

Sample = dict[str, Tensor]
Array = NDArray[np.float64]


def random_grid(
    stack: Stack, size: int, mm_per_px: float, config: AugmentConfig, rng: np.random.Generator, *, may_mirror: bool
) -> tuple[Grid, bool]:
    """An augmented grid and whether it is mirrored."""
    rows, columns = stack.volume.shape[1:]
    shift = rng.uniform(-config.shift_mm, config.shift_mm, 2)
    is_mirrored = bool(may_mirror and rng.random() < 0.5)
    grid = make_grid(
        stack,
        size=size,
        mm_per_px=mm_per_px * float(np.exp(rng.uniform(-config.zoom, config.zoom))),
        centre_px=shifted(stack, ((columns - 1) / 2, (rows - 1) / 2), (float(shift[0]), float(shift[1]))),
        angle_deg=float(rng.uniform(-config.turn_deg, config.turn_deg)),
        is_mirrored=is_mirrored,
    )
    if config.stretch:
        longer, shear = rng.uniform(-config.stretch, config.stretch, 2)
        grid = stretched(grid, float(longer), float(shear))
    return grid, is_mirrored


def stretched(grid: Grid, longer: float, shear: float) -> Grid:
    """A grid with x drawn out by exp(longer), y drawn in by as much, and sheared, about its own centre."""
    linear = grid.matrix[:, :2] @ np.array([[np.exp(longer), shear], [0.0, np.exp(-longer)]])
    middle = np.full(2, (grid.size - 1) / 2)
    return replace(grid, matrix=np.column_stack([linear, grid.to_source(middle) - linear @ middle]))


def gaussian(size: int, centre: Array, sigma: float, height: float = 1.0) -> NDArray[np.float32]:
    """A spot at ``centre`` (x, y) on a (size, size) map."""
    axis = np.arange(size)
    x = height * np.exp(-0.5 * ((axis - centre[0]) / sigma) ** 2)
    y = np.exp(-0.5 * ((axis - centre[1]) / sigma) ** 2)
    return np.asarray(y.astype(np.float32)[:, None] * x.astype(np.float32)[None])


def collate(samples: Sequence[Sample]) -> Sample:
    """Stack samples of equal shapes; slices for the device are joined."""
    raw = joined(samples)
    return raw | {key: torch.stack([sample[key] for sample in samples]) for key in samples[0] if key not in raw}


def seen(
    study: Study,
    stack: Stack,
    indices: Sequence[int],
    grid: Grid,
    augment: AugmentConfig | None,
    transform: v2.Compose | None,
    rng: np.random.Generator,
) -> Sample:
    """Slices on a grid as ``images`` (n, size, size) with drawn intensities, or what the device makes them of."""
    if augment is not None and augment.on_device:
        views = [View(study, stack, index, grid) for index in indices]
        return raw_images(views, np.ones(len(views), bool), grid.size) | drawn_intensities(augment, rng)
    images = grid_images(study, stack, grid, list(indices))
    return {"images": torch.from_numpy(images) if transform is None else apply(transform, images, rng)}


def transform_of(augment: AugmentConfig | None) -> v2.Compose | None:
    """The intensity part that the loader does; None where the device does it, or nobody."""
    return photometric(augment) if augment is not None and not augment.on_device else None


class SagittalXY(StudySamples):
    """Slices of sagittal series → heatmaps of canal and foraminal points, and tissue where truth has it.

    A point shows in a slice with a height that falls with its distance from the slice's plane, so the heat tells the
    slice as well. ``repeats`` samples a study and epoch.
    """

    def __init__(
        self,
        cache: Studies,
        targets: Mapping[int, StudyTargets],
        config: HeatmapConfig,
        augment: AugmentConfig | None,
        *,
        repeats: int = 8,
        masks: MaskReader | None = None,
    ) -> None:
        self.cache, self.targets, self.config, self.augment = cache, targets, config, augment
        self.study_ids = [study_id for study_id, target in targets.items() if target.is_usable]
        self.study_of_sample, self.masks = self.study_ids * repeats, masks
        self.photometric = transform_of(augment)
        self.collate = collate

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """Images (context, size, size), heat (points, h, w), known (points,), segments (h, w) with -1 = unknown."""
        study_id = self.study_ids[index % len(self.study_ids)]
        study, target = self.cache.study(study_id), self.targets[study_id]
        stacks = sagittal_stacks(study)
        description, number, stack = stacks[int(rng.integers(len(stacks)))]
        s = self._choose_slice(stack, target, rng)
        marks = target.marks.get((description, number, s))
        config = self.config
        if self.augment is None:
            grid = make_grid(stack, size=config.size, mm_per_px=config.mm_per_px)
        else:
            grid, _ = random_grid(stack, config.size, config.mm_per_px, self.augment, rng, may_mirror=False)
        half = config.context // 2
        indices = [int(np.clip(s + k, 0, len(stack.volume) - 1)) for k in range(-half, config.context - half)]
        if self.augment is not None and rng.random() < 0.5:
            indices.reverse()  # the mirrored patient
        heat, known = self._heat(stack, s, target, grid, marks)
        segments = np.full(heat.shape[1:], -1, np.int64)
        if self.masks is not None and config.segments:
            segments = for_segments(self.masks.sampled(study_id, stack, s, grid, STRIDE, segments), config.segments)
        return seen(study, stack, indices, grid, self.augment, self.photometric, rng) | {
            "heat": torch.from_numpy(heat),
            "known": torch.from_numpy(known),
            "segments": torch.from_numpy(segments),
        }

    def _choose_slice(self, stack: Stack, target: StudyTargets, rng: np.random.Generator) -> int:
        """Half the samples near the canal, a third near a foramen, the rest anywhere."""
        draw = rng.random()
        n = len(stack.volume)
        points = target.canal_mm if draw < 0.5 else target.foramen_mm[int(rng.integers(2))]
        good = points[np.isfinite(points).all(axis=1)]
        if draw > 0.85 or not len(good):
            return int(rng.integers(n))
        index = project(stack, good[int(rng.integers(len(good)))])[0] + rng.normal(0, 0.7)
        return int(np.clip(round(index), 0, n - 1))

    def _heat(
        self, stack: Stack, s: int, target: StudyTargets, grid: Grid, marks: Array | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        size = self.config.size // STRIDE
        points = np.concatenate([target.canal_mm, target.foramen_mm.reshape(-1, 3)])  # canal, left, right
        known = np.isfinite(points).all(axis=1).reshape(3, 5)
        known = np.concatenate([known[0], known[1] & known[2], [known[0].all()]]).astype(np.float32)
        points = np.nan_to_num(points)
        _, rows, columns = stack.to_voxel(points)
        places = np.column_stack([columns, rows])
        if marks is not None:  # marked on this very slice
            places[:5] = np.where(np.isfinite(marks), marks, places[:5])
        centres = source_to_heat(grid, STRIDE, places)
        sigma = self.config.sigma_mm / (grid.mm_per_px * STRIDE)
        through = (points @ stack.normal - float(stack.positions_mm[s])) / self.config.sigma_through_mm
        heights = np.exp(-0.5 * through**2)
        heat = np.zeros((SAGITTAL_POINTS, size, size), np.float32)
        for level in np.flatnonzero(known[:5]):
            heat[level] = gaussian(size, centres[level], sigma, heights[level])
        for level in np.flatnonzero(known[5:10]):
            for k in (5 + level, 10 + level):
                np.maximum(heat[5 + level], gaussian(size, centres[k], sigma, heights[k]), out=heat[5 + level])
        heat[10] = heat[:5].max(axis=0)
        return heat, known


class SagittalRegression(SagittalXY):
    """The same slices → coordinates in 0..1 of the whole image and presence, as the solution's localiser learns."""

    def __init__(
        self,
        cache: Studies,
        targets: Mapping[int, StudyTargets],
        config: SagittalRegressionConfig,
        augment: AugmentConfig | None,
        *,
        repeats: int = 8,
    ) -> None:
        heatmap = HeatmapConfig(points=SAGITTAL_POINTS, size=config.size, context=config.context)
        super().__init__(cache, targets, heatmap, augment, repeats=repeats)

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """Images (context, size, size), points (5, 2) in 0..1, known (5,), marked (5,) on this slice, presence ()."""
        study_id = self.study_ids[index % len(self.study_ids)]
        study, target = self.cache.study(study_id), self.targets[study_id]
        stacks = sagittal_stacks(study)
        description, number, stack = stacks[int(rng.integers(len(stacks)))]
        s = self._choose_slice(stack, target, rng)
        step = whole_image_mm(stack) / self.config.size
        if self.augment is None:
            grid = make_grid(stack, size=self.config.size, mm_per_px=step)
        else:
            grid, _ = random_grid(stack, self.config.size, step, self.augment, rng, may_mirror=False)
        half = self.config.context // 2
        indices = [int(np.clip(s + k, 0, len(stack.volume) - 1)) for k in range(-half, self.config.context - half)]
        points = np.zeros((5, 2), np.float32)
        known = np.zeros(5, np.float32)
        near = np.inf
        for level, point in enumerate(target.canal_mm):
            if np.isfinite(point).all():
                slice_of, x, y = project(stack, point)
                points[level] = (grid.to_grid(np.array([x, y])) + 0.5) / self.config.size
                known[level] = 1
                near = min(near, abs(slice_of - s))
        marks = target.marks.get((description, number, s), np.full((5, 2), np.nan))
        marked = np.isfinite(marks).all(axis=1)
        points[marked] = (grid.to_grid(marks[marked]) + 0.5) / self.config.size
        return seen(study, stack, indices, grid, self.augment, self.photometric, rng) | {
            "points": torch.from_numpy(points),
            "known": torch.from_numpy(known),
            "marked": torch.from_numpy(marked.astype(np.float32)),
            "presence": torch.tensor(float(near < 1.5)),
        }


class SliceRoles(StudySamples):
    """Whole sagittal series cut to the box around the levels → levels marked on each slice."""

    def __init__(
        self,
        cache: Studies,
        targets: Mapping[int, StudyTargets],
        levels_mm: Mapping[int, dict[str, Xyz]],
        config: SliceRoleConfig,
        augment: AugmentConfig | None,
    ) -> None:
        self.cache, self.targets, self.levels_mm = cache, targets, levels_mm
        self.config, self.augment = config, augment
        self.items = [
            (study_id, k)
            for study_id, target in targets.items()
            if target.is_usable and levels_mm.get(study_id)
            for k in range(len(sagittal_stacks(cache.study(study_id))))
        ]
        self.study_of_sample = [study_id for study_id, _ in self.items]
        self.photometric = transform_of(augment)

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """Images (S, size, size), counts (S, 3), known (3,)."""
        study_id, k = self.items[index]
        study = self.cache.study(study_id)
        _, _, stack = sagittal_stacks(study)[k]
        config, jitter = self.augment, Jitter()
        if config is not None:
            shift = rng.uniform(-config.shift_mm, config.shift_mm, 2)
            jitter = Jitter(
                shift_mm=(float(shift[0]), float(shift[1])),
                angle_deg=float(rng.uniform(-config.turn_deg, config.turn_deg)),
                scale=float(np.exp(rng.uniform(-config.zoom, config.zoom))),
            )
        grid = role_grid(stack, self.levels_mm[study_id], self.config, jitter)
        indices = list(range(len(stack.volume)))
        counts, known = slice_counts(stack, self.targets[study_id])
        if config is not None and rng.random() < 0.5:  # the mirrored patient: slices backwards, sides changed over
            indices.reverse()
            counts, known = counts[::-1][:, [1, 0, 2]].copy(), known[[1, 0, 2]]
        return seen(study, stack, indices, grid, config, self.photometric, rng) | {
            "counts": torch.from_numpy(counts.copy()),
            "known": torch.from_numpy(known.copy()),
        }

    def collate(self, samples: Sequence[Sample]) -> Sample:
        """Pad to the longest series; ``mask`` (B, S) tells what is real."""
        longest = max(len(sample["counts"]) for sample in samples)
        counts = torch.zeros(len(samples), longest, 3)
        mask = torch.zeros(len(samples), longest, dtype=torch.bool)
        for row, sample in enumerate(samples):
            n = len(sample["counts"])
            counts[row, :n], mask[row, :n] = sample["counts"], True
        known = torch.stack([sample["known"] for sample in samples])
        out = joined(samples) | {"counts": counts, "mask": mask, "known": known}
        if "images" in samples[0]:
            size = self.config.size
            out["images"] = torch.zeros(len(samples), longest, size, size)
            for row, sample in enumerate(samples):
                out["images"][row, : len(sample["images"])] = sample["images"]
        return out


class AxialXY(StudySamples):
    """Labelled axial slices → heatmaps (or coordinates) of the left and right subarticular points."""

    def __init__(
        self,
        cache: Studies,
        targets: Mapping[int, StudyTargets],
        config: HeatmapConfig | AxialRegressionConfig,
        augment: AugmentConfig | None,
    ) -> None:
        self.cache, self.config, self.augment = cache, config, augment
        self.items = [(study_id, axial) for study_id, target in targets.items() for axial in target.axial]
        self.study_of_sample = [study_id for study_id, _ in self.items]
        self.photometric = transform_of(augment)
        self.collate = collate

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """Images (1, size, size), points (2, 2) in 0..1, known (2,), and heat (2, h, w) for a heatmap network."""
        study_id, target = self.items[index]
        study = self.cache.study(study_id)
        stack = study.series[AXIAL_T2][target.stack]
        size = self.config.size
        step = self.config.mm_per_px if isinstance(self.config, HeatmapConfig) else whole_image_mm(stack) / size
        points_px = target.points_px
        if self.augment is None:
            grid = make_grid(stack, size=size, mm_per_px=step)
        else:
            grid, is_mirrored = random_grid(stack, size, step, self.augment, rng, may_mirror=True)
            points_px = points_px[::-1] if is_mirrored else points_px
        known = np.asarray(np.isfinite(points_px).all(axis=1))
        points = np.where(known[:, None], (grid.to_grid(np.nan_to_num(points_px)) + 0.5) / size, 0.0)
        sample = seen(study, stack, [target.slice_index], grid, self.augment, self.photometric, rng) | {
            "points": torch.from_numpy(points.astype(np.float32)),
            "known": torch.from_numpy(known.astype(np.float32)),
        }
        if isinstance(self.config, HeatmapConfig):
            sigma = self.config.sigma_mm / (grid.mm_per_px * STRIDE)
            spots = [gaussian(size // STRIDE, source_to_heat(grid, STRIDE, p), sigma) for p in np.nan_to_num(points_px)]
            sample["heat"] = torch.from_numpy(np.stack(spots))
            sample["segments"] = torch.full((size // STRIDE, size // STRIDE), -1, dtype=torch.int64)
        return sample
