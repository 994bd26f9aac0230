"""Augmentation on the device of a fit: the same images as the loader's, batch by batch, from the sample's own draws."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from lumbar.config import (
    AxialClassifierConfig,
    AxialRegressionConfig,
    HeatmapConfig,
    SagittalClassifierConfig,
    SagittalRegressionConfig,
    SliceRoleConfig,
    to_dict,
)
from lumbar.labels import SAGITTAL_T1, SAGITTAL_T2
from lumbar.models import build, name_of
from lumbar.stages.heat import SAGITTAL_POINTS
from lumbar_train.data.augment import SOLUTION_AUGMENT, AugmentConfig, covered
from lumbar_train.data.batched import _blurred, coloured, drawn_intensities, finished
from lumbar_train.data.mixing import MixConfig
from lumbar_train.data.targets import AxialTarget, StudyTargets
from lumbar_train.stages import losses
from lumbar_train.stages.classify import LevelCrops
from lumbar_train.stages.locate import AxialXY, SagittalRegression, SagittalXY, SliceRoles
from lumbar_train.stages.metric_finetune import MetricLoss, StudyCrops
from stage_studies import LEVELS_MM, localisation_of, study_of
from train_tiny import SMALL

RNG = np.random.default_rng
SIZES = {"size": 40, "window": 3, "hidden": 8, "level_embedding": 4, "position_embedding": 4}
ALL = (0, 1, 2, 3, 4)
SAGITTAL = SagittalClassifierConfig(SMALL, **SIZES)
WHOLE = SagittalClassifierConfig(SMALL, conditions=ALL, per_series=True, max_slices=20, own_sequences=True, **SIZES)
AXIAL = AxialClassifierConfig(SMALL, conditions=ALL, **SIZES)
WHOLE_AXIAL = AxialClassifierConfig(SMALL, conditions=ALL, per_series=True, max_slices=20, **SIZES)
CONFIGS = [SAGITTAL, WHOLE, AXIAL, WHOLE_AXIAL]
# geometry alone, so that both paths must give the same pixels
MOVES = AugmentConfig(
    shift_mm=4.0, turn_deg=20.0, zoom=0.2, contrast=0.0, shading=0.0, noise=0.0, blur=0.0, hole=0.0, slices=0.3
)
TOLERANCE = 2e-3  # cut-outs are in half precision


class Studies:
    """Two studies of one patient's shape and other pixels."""

    def __init__(self):
        self.by_id = {7: study_of(), 8: study_of(50)}
        self.reads = []

    def study(self, study_id):
        self.reads.append(study_id)
        return self.by_id[study_id]


def crops_of(config, augment, mixing=None, n: int = 2) -> LevelCrops:
    cache = Studies()
    labels = {k: np.full(25, k - 7, np.int8) for k in (7, 8)[:n]}
    places = {k: localisation_of(cache.by_id[k]) for k in labels}
    return LevelCrops(cache, places, labels, config, augment, mixing)


def both_ways(make, augment, n: int = 6):
    """The same samples made by the loader and by the device, as one batch each."""
    plain, device = make(augment), make(replace(augment, on_device=True))
    batches = [data.collate([data.sample(k % len(data), RNG(k)) for k in range(n)]) for data in (plain, device)]
    assert "raw_patches" in batches[1]
    assert not {"crops", "images"} & set(batches[1])
    return batches[0], finished(batches[1])


@pytest.mark.parametrize("config", CONFIGS)
def test_the_device_cuts_the_same_crops_as_the_loader(config):
    plain, device = both_ways(lambda augment: crops_of(config, augment), MOVES)
    assert plain.keys() == device.keys()
    torch.testing.assert_close(device["crops"], plain["crops"], atol=TOLERANCE, rtol=0)
    for name in plain.keys() - {"crops"}:
        torch.testing.assert_close(device[name], plain[name])
    assert plain["crops"].std() > 0.1


@pytest.mark.parametrize("mixing", [MixConfig(cutmix=1.0), MixConfig(mixup=1.0), MixConfig(cutmix=0.5)])
@pytest.mark.parametrize("config", CONFIGS)
def test_the_device_mixes_as_the_loader_does(config, mixing):
    plain, device = both_ways(lambda augment: crops_of(config, augment, mixing), MOVES, n=10)
    torch.testing.assert_close(device["crops"], plain["crops"], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(device["share"], plain["share"])
    assert plain["share"].min() < 0.9


def targets_of(study) -> StudyTargets:
    canal = np.array([LEVELS_MM[level] for level in LEVELS_MM])
    foramen = np.stack([canal + np.array([16.0, -6.0, 0.0]), canal - np.array([16.0, 6.0, 0.0])])
    axial = [AxialTarget(0, 6 + k, k, np.array([[52.0, 40.0], [40.0, 40.0]])) for k in range(5)]
    return StudyTargets(canal, foramen, axial)


def localisers(name: str):
    cache = Studies()
    targets = {k: targets_of(cache.by_id[k]) for k in (7, 8)}
    heatmap = HeatmapConfig(points=SAGITTAL_POINTS, size=64, mm_per_px=3.0, context=3, segments=0)
    if name == "sagittal heatmap":
        return lambda augment: SagittalXY(cache, targets, heatmap, augment, repeats=4), losses.heatmap_loss, heatmap
    if name == "sagittal regression":
        config = SagittalRegressionConfig(SMALL, size=64, context=3)
        loss = losses.sagittal_regression_loss
        return lambda augment: SagittalRegression(cache, targets, config, augment, repeats=4), loss, config
    if name == "roles":
        cache.by_id[8].series[SAGITTAL_T1][0] = _shorter(cache.by_id[8].series[SAGITTAL_T1][0])
        config = SliceRoleConfig(SMALL, size=40, hidden=8)
        levels = {k: LEVELS_MM for k in (7, 8)}
        return lambda augment: SliceRoles(cache, targets, levels, config, augment), losses.slice_role_loss, config
    if name == "axial heatmap":
        config = HeatmapConfig(points=2, size=64, mm_per_px=4.0, context=1, segments=0)
        return lambda augment: AxialXY(cache, targets, config, augment), losses.heatmap_loss, config
    config = AxialRegressionConfig(SMALL, size=64)
    return lambda augment: AxialXY(cache, targets, config, augment), losses.axial_regression_loss, config


def _shorter(stack):
    return replace(
        stack,
        volume=stack.volume[2:],
        origins_mm=stack.origins_mm[2:],
        instance_numbers=stack.instance_numbers[2:],
    )


LOCALISERS = ["sagittal heatmap", "sagittal regression", "roles", "axial heatmap", "axial regression"]


@pytest.mark.parametrize("name", LOCALISERS)
def test_the_device_samples_the_same_localiser_images_as_the_loader(name):
    make, loss, config = localisers(name)
    plain, device = both_ways(make, replace(MOVES, stretch=0.1), n=5)
    torch.testing.assert_close(device["images"], plain["images"], atol=TOLERANCE, rtol=0)
    torch.manual_seed(0)
    network = build(name_of(config), to_dict(config)).eval()
    with torch.no_grad():
        values = [float(loss(network, batch)[0]) for batch in (plain, device)]
    assert values[0] == pytest.approx(values[1], rel=0.02)


@pytest.mark.parametrize("holes", [(1, 1), (1, 3)])
@pytest.mark.parametrize("name", [*LOCALISERS, "crops"])
def test_loader_processes_can_be_sent_all_that_makes_samples(name, holes):
    """Processes that are not forked get a pickled copy: on a GPU each fit's beside others, and all of Python 3.14's."""
    every = AugmentConfig(invert=1.0, blur=1.0, hole=1.0, holes=holes)
    data = crops_of(WHOLE, every, MixConfig(0.3, 0.3)) if name == "crops" else localisers(name)[0](every)
    there = pickle.loads(pickle.dumps(data))
    here = data.collate([data.sample(0, RNG(0))])
    for key, value in there.collate([there.sample(0, RNG(0))]).items():
        torch.testing.assert_close(value, here[key], rtol=0, atol=0)


def test_losses_make_the_images_themselves():
    data = crops_of(WHOLE, replace(SOLUTION_AUGMENT, on_device=True), MixConfig(cutmix=0.5))
    network = build(name_of(WHOLE), to_dict(WHOLE))
    loss, figures = losses.graded_loss(network, data.collate([data.sample(k, RNG(k)) for k in range(4)]))
    loss.backward()
    assert torch.isfinite(loss)
    assert float(figures["weight"]) > 0


def test_whole_studies_of_the_metric_step_are_made_on_the_device_too():
    for config in CONFIGS:
        results = []
        for on_device in (False, True):
            studies = StudyCrops(crops_of(config, replace(MOVES, on_device=on_device)))
            batch = studies.collate([studies.sample(k, RNG(k)) for k in range(2)])
            torch.manual_seed(0)
            network = build(name_of(config), to_dict(config)).eval()
            with torch.no_grad():
                results.append(float(MetricLoss(studies.levels.labels, tuple(config.conditions))(network, batch)[0]))
        assert results[0] == pytest.approx(results[1], rel=0.01)


def test_a_sample_looks_the_same_in_any_batch():
    data = crops_of(WHOLE, SOLUTION_AUGMENT, MixConfig(cutmix=0.3, mixup=0.3))
    assert data.on_device
    samples = {k: data.sample(k, RNG(k)) for k in range(6)}
    whole = finished(data.collate([samples[k] for k in range(6)]))["crops"]
    for k in (0, 3, 5):
        alone = finished(data.collate([samples[k]]))["crops"]
        torch.testing.assert_close(alone[0], whole[k][:, : alone.shape[2]], atol=1e-5, rtol=0)


def test_intensities_are_drawn_from_the_sample_and_leave_the_global_generator_alone():
    data = crops_of(SAGITTAL, replace(SOLUTION_AUGMENT, invert=0.3, blur=0.5), n=1)
    state = torch.random.get_rng_state()
    one, again, other = (finished(data.collate([data.sample(2, RNG(seed))]))["crops"] for seed in (3, 3, 4))
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert 0 <= float(one.min()) <= float(one.max()) <= 1


def test_each_intensity_does_what_it_says():
    images = torch.rand(2, 24, 24, generator=torch.Generator().manual_seed(0))
    plain = {name.removeprefix("raw_"): value for name, value in drawn_intensities(None, RNG(0)).items()}
    plain = {name: torch.cat([value, value]) for name, value in plain.items()} | {"group": torch.tensor([0, 1])}
    rows = torch.tensor([0, 1])
    torch.testing.assert_close(coloured(images, plain, rows), images)
    darker = plain["heights"].clone()
    darker[1, 0, 1:-1] *= 0.5
    out = coloured(images, plain | {"heights": darker}, rows)
    torch.testing.assert_close(out[0], images[0])
    assert (out[1] <= images[1] + 1e-6).all()
    inverted = plain["plain"].clone()
    inverted[0, 0, 0] = 1
    torch.testing.assert_close(coloured(images, plain | {"plain": inverted}, rows)[0], 1 - images[0])
    noisy = plain["plain"].clone()
    noisy[1, 0, 2] = 0.05
    difference = (coloured(images, plain | {"plain": noisy}, rows) - images).abs()
    assert difference[0].max() < 1e-6
    assert 0.02 < difference[1].mean() < 0.06
    boxes = plain["boxes"].clone()
    boxes[0, 0, 0] = torch.tensor([0.0, 0.0, 0.5, 0.25])
    holed = coloured(images, plain | {"boxes": boxes}, rows)
    assert not holed[0, :6, :12].any()
    torch.testing.assert_close(holed[0, 6:], images[0, 6:])
    field = plain["field"] + 0.1
    torch.testing.assert_close(coloured(images, plain | {"field": field}, rows), (images * np.exp(0.1)).clamp(0, 1))


def test_the_blur_is_torchvisions():
    from torchvision.transforms.v2.functional import gaussian_blur

    images = torch.rand(2, 16, 16)
    out = _blurred(images, torch.tensor([0.8, 0.0]).view(2, 1, 1))
    torch.testing.assert_close(out[0], gaussian_blur(images[:1], [3, 3], [0.8, 0.8])[0])
    torch.testing.assert_close(out[1], images[1])


def test_a_batch_without_any_slice_is_zeros():
    data = crops_of(WHOLE, SOLUTION_AUGMENT, MixConfig(cutmix=0.5), n=1)
    data.localisations[7].sagittal_points.clear()
    batch = finished(data.collate([data.level_sample(7, level, RNG(level), data.mixing) for level in range(3)]))
    assert batch["crops"].shape == (3, 2, 1, 40, 40)
    assert not batch["crops"].any()
    assert (batch["labels"] == -1).all()


# How strong


def test_the_solutions_strengths_are_what_its_configurations_say():
    draws = [crops_of(SAGITTAL, SOLUTION_AUGMENT, n=1)._jitter(RNG(seed)) for seed in range(600)]
    angles = np.array([jitter.angle_deg for jitter in draws])
    scales = np.array([1 / jitter.scale for jitter in draws])
    shifts = np.array([jitter.shift for jitter in draws])
    still = np.array([jitter.angle_deg == 0 and jitter.scale == 1 for jitter in draws])
    assert 0.24 < still.mean() < 0.36  # ShiftScaleRotate with probability 0.7
    assert 27 < angles.max() <= 30
    assert -30 <= angles.min() < -27
    assert 0.8 <= scales.min() < 0.83
    assert 1.17 < scales.max() <= 1.2
    assert 0.18 < np.abs(shifts[:, 0]).max() <= 0.2
    assert not shifts[:, 1].any()
    moved = angles[~still]
    assert np.abs(np.histogram(moved, 6, (-30, 30))[0] / len(moved) - 1 / 6).max() < 0.06  # evenly, not about 0


def test_a_shift_of_a_share_moves_a_crop_by_that_share_of_its_side():
    from lumbar.stages.crop import Jitter, level_slices

    study = study_of()
    found = localisation_of(study)
    for config in (SAGITTAL, AXIAL):
        still = level_slices(study, found, 2, config)[0].grid
        for scale in (1.0, 1.2):
            moved = level_slices(study, found, 2, config, Jitter(scale=scale, shift=(0.25, 0.0)))[0].grid
            centre = np.full(2, (config.size - 1) / 2)
            step = still.to_grid(moved.to_source(centre)) - centre  # across the patient, not along the tilted crop
            assert np.linalg.norm(step) == pytest.approx(10.0)
            assert step[0] > 9.9


@pytest.mark.parametrize("on_device", [False, True])
def test_many_small_holes(on_device):
    config = replace(SOLUTION_AUGMENT, contrast=0.0, shading=0.0, noise=0.0, blur=0.0, on_device=on_device, move=0.0)
    data = crops_of(AXIAL, config, n=1)
    without = crops_of(AXIAL, replace(config, hole=0.0), n=1)
    shares = []
    for seed in range(40):
        crops, plain = (finished(d.collate([d.sample(2, RNG(seed))]))["crops"][0] for d in (data, without))
        shares.append(float(((crops == 0) & (plain > 0.02))[1].float().mean()))
    empty = np.mean(np.array(shares) < 0.003)
    assert 0.05 < empty < 0.4  # holes with probability 0.8
    assert 0.01 < max(shares) < 0.2  # 10 to 30 of at most 0.08 of the side


def test_boxes_cover_what_they_say():
    boxes = torch.tensor([[[0.0, 0.5, 0.5, 1.0], [0.0, 0.0, 0.0, 0.0]], [[0.0, 0.0, 1.0, 1.0], [0.2, 0.2, 0.3, 0.3]]])
    out = covered(boxes, 8)
    assert out.sum(dim=(1, 2)).tolist() == [16, 64]
    assert out[0, 4:, :4].all()


@pytest.mark.parametrize("config", [WHOLE_AXIAL, AXIAL])
def test_a_random_part_of_the_axial_slices_is_kept_in_order(config):
    augment = replace(MOVES, keep_slices=(0.4, 0.8), slices=0.0)
    data, whole = crops_of(config, augment, n=1), crops_of(config, None, n=1)
    every = whole.sample(2, RNG(0))
    counts = set()
    for seed in range(30):
        sample = data.sample(2, RNG(seed))
        counts.add(int(sample["mask"].sum()))
        if config.max_slices:
            kept = sample["position_mm"][sample["mask"]]
            assert (kept.diff() > 0).all()
            assert set(kept.tolist()) <= set(every["position_mm"].tolist())
    n = int(every["mask"].sum())
    assert 1 <= min(counts) < max(counts) < n


# Partners


def test_a_partner_is_read_only_where_something_is_mixed():
    mixing = MixConfig(cutmix=0.3)
    data = crops_of(AXIAL, MOVES, mixing)
    n_reads, n_mixed = 0, 0
    for seed in range(60):
        data.cache.reads.clear()
        sample = data.sample(0, RNG(seed))
        n_reads += len(data.cache.reads)
        n_mixed += bool((sample["share"] < 1).any())
    assert n_reads <= 60 + n_mixed + 3  # a box may be too small to count
    assert 8 <= n_mixed <= 32


def test_slices_of_whole_series_are_mixed_where_both_lie_in_the_same_place():
    data = crops_of(WHOLE, MOVES, MixConfig(mixup=1.0))
    stack = data.cache.by_id[8].series[SAGITTAL_T2][0]
    data.cache.by_id[8].series[SAGITTAL_T2][0] = replace(
        stack,
        volume=stack.volume[5:],
        origins_mm=stack.origins_mm[5:],
        instance_numbers=stack.instance_numbers[5:],
    )
    shares = {round(float(data.sample(0, RNG(seed))["share"][1]), 3): seed for seed in range(20)}
    assert len(shares) > 5
    partner_is_shorter = [data.sample(0, RNG(seed)) for seed in range(20)]
    canal = np.array([float(1 - s["share"][0]) for s in partner_is_shorter if s["labels2"][0] == 1])
    foramen = np.array([float(1 - s["share"][1]) for s in partner_is_shorter if s["labels2"][0] == 1])
    assert (canal < foramen).all()  # four of nine T2 slices have a partner, all T1 slices do
