"""Training data and losses: the same pixels as the kernel, the same figure as the metric."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from lumbar.config import (
    AxialClassifierConfig,
    BackboneConfig,
    HeatmapConfig,
    SagittalClassifierConfig,
    SliceRoleConfig,
)
from lumbar.labels import AXIAL_T2, COLUMNS, SAGITTAL_T1, SAGITTAL_T2, SEVERITIES, SEVERITY_COLUMNS
from lumbar.metric import score
from lumbar.models import build, name_of
from lumbar.stages.classify import all_levels
from lumbar.stages.crop import grid_images, role_inputs, with_context
from lumbar.stages.heat import sagittal_grid
from lumbar.stages.localise import axial_grid
from lumbar_train.data.augment import LOCALISER_AUGMENT, AugmentConfig, apply, photometric
from lumbar_train.data.targets import slice_counts, study_targets
from lumbar_train.errors import TrainingError
from lumbar_train.pipeline import names
from lumbar_train.recipes import recipe_by_name
from lumbar_train.stages.classify import LevelCrops
from lumbar_train.stages.consistency import ConsistencyConfig
from lumbar_train.stages.fitting import fit_on_fold
from lumbar_train.stages.locate import AxialXY, SagittalXY, SliceRoles
from lumbar_train.stages.losses import competition_loss
from lumbar_train.stages.registry import stage_by_name
from lumbar_train.stages.stage import Fitted
from stage_studies import LEVELS_MM, images_and_mask, localisation_of, study_of

SMALL = BackboneConfig("resnet10t", channels=(8, 16, 24, 32), stem_width=16, norm="group")
RNG = np.random.default_rng


class OneStudy:
    """A cache of one study."""

    def __init__(self):
        self.item = study_of()

    def study(self, study_id):
        assert study_id == 7
        return self.item


def points_table(study):
    """Labels of every level on the slices that hold them."""
    found = localisation_of(study)
    rows = []
    for p in found.sagittal_points:
        if p.description == SAGITTAL_T2 and p.side is None:
            rows.append(("t2", p.instance_number, "spinal_canal_stenosis", p.level, None, p.x_px, p.y_px))
        if p.description == SAGITTAL_T1 and p.side:
            name = f"{p.side}_neural_foraminal_narrowing"
            rows.append(("t1", p.instance_number, name, p.level, p.side, p.x_px, p.y_px))
    for a in found.axial_levels:
        rows.append(("ax", a.instance_number, "left_subarticular_stenosis", a.level, "left", *a.left_px))
        rows.append(("ax", a.instance_number, "right_subarticular_stenosis", a.level, "right", *a.right_px))
    columns = ["series_id", "instance_number", "condition", "level", "side", "x_px", "y_px"]
    return pd.DataFrame(rows, columns=columns)


@pytest.fixture(scope="module")
def cache():
    return OneStudy()


@pytest.fixture(scope="module")
def targets(cache):
    return {7: study_targets(cache.item, points_table(cache.item))}


def test_labelled_pixels_are_lifted_to_the_patient(cache, targets):
    target = targets[7]
    assert target.is_usable
    for level, xyz in enumerate(LEVELS_MM.values()):
        # in plane exactly, through the plane to the slice that was marked
        np.testing.assert_allclose(target.canal_mm[level][1:], np.array(xyz)[1:], atol=1e-6)
        assert abs(target.canal_mm[level][0] - xyz[0]) <= 2.5
        assert target.foramen_mm[0, level, 0] > 10 > -10 > target.foramen_mm[1, level, 0]
    assert len(target.axial) == 5
    counts, known = slice_counts(cache.item.series[SAGITTAL_T1][0], target)
    assert known.all()
    assert counts.sum(axis=0).tolist() == [5, 5, 5]
    assert counts[:, 0].argmax() > counts[:, 2].argmax() > counts[:, 1].argmax()  # slices run right to left


def test_without_augmentation_the_sagittal_localiser_trains_on_the_kernels_pixels(cache, targets):
    config = HeatmapConfig(points=11, size=64, mm_per_px=4.0, widths=(8, 8, 8))
    data = SagittalXY(cache, targets, config, None)
    network = build("heatmap", {"points": 11, "size": 64, "mm_per_px": 4.0, "widths": [8, 8, 8]})
    shown = set()
    for seed in range(6):
        sample = data.sample(0, RNG(seed))
        for description in (SAGITTAL_T2, SAGITTAL_T1):
            stack = cache.item.series[description][0]
            kernel = with_context(grid_images(cache.item, stack, sagittal_grid(stack, network)), 3)
            shown |= {
                (description, s) for s in range(len(kernel)) if np.array_equal(sample["images"].numpy(), kernel[s])
            }
    assert len(shown) >= 3


def test_without_augmentation_roles_axial_points_and_crops_are_the_kernels(cache, targets):
    role = SliceRoleConfig(SMALL, size=32, hidden=8)
    levels = localisation_of(cache.item).levels_mm
    sample = SliceRoles(cache, targets, {7: levels}, role, None).sample(0, RNG(0))
    stack = cache.item.series[SAGITTAL_T2][0]
    np.testing.assert_array_equal(sample["images"].numpy(), role_inputs(cache.item, stack, levels, role))

    heat = HeatmapConfig(points=2, size=64, mm_per_px=3.0, context=1, widths=(8, 8, 8), segments=0)
    sample = AxialXY(cache, targets, heat, None).sample(0, RNG(0))
    axial = cache.item.series[AXIAL_T2][0]
    network = build(name_of(heat), {"points": 2, "size": 64, "mm_per_px": 3.0, "context": 1, "widths": [8, 8, 8]})
    index = targets[7].axial[0].slice_index
    np.testing.assert_array_equal(
        sample["images"].numpy(), grid_images(cache.item, axial, axial_grid(axial, network), [index])
    )

    found = localisation_of(cache.item)
    labels = {7: np.zeros(25, np.int8)}
    for config in (SagittalClassifierConfig(SMALL, size=40, window=3), AxialClassifierConfig(SMALL, size=40, window=3)):
        data = LevelCrops(cache, {7: found}, labels, config, None)
        net = build(name_of(config), {"backbone": {"name": "resnet10t"}, "size": 40, "window": 3})
        crops, mask = images_and_mask(all_levels(cache.item, found, net))
        for k, (_, level) in enumerate(data.items):
            sample = data.sample(k, RNG(0))
            assert torch.equal(sample["crops"], crops[level])
            assert torch.equal(sample["mask"], mask[level])


def test_heat_peaks_at_the_point_and_fades_through_the_plane(cache, targets):
    config = HeatmapConfig(points=11, size=128, mm_per_px=2.0)
    data = SagittalXY(cache, targets, config, None)
    stack = cache.item.series[SAGITTAL_T2][0]
    grid = sagittal_grid(stack, build("heatmap", {"points": 11, "size": 128, "mm_per_px": 2.0}))
    heights = [data._heat(stack, s, targets[7], grid)[0][2].max() for s in range(9)]
    assert int(np.argmax(heights)) == 4
    assert heights[4] > 0.7
    assert heights[0] < 0.01


@pytest.mark.parametrize("config", [AugmentConfig(), LOCALISER_AUGMENT])
def test_augmentation_draws_from_its_own_generator_only(config):
    images = RNG(0).random((3, 24, 24), dtype=np.float32)
    transform = photometric(config)
    torch.manual_seed(1)
    first = apply(transform, images, RNG(5))
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    again = apply(transform, images, RNG(5))
    assert torch.equal(first, again)
    assert torch.equal(state, torch.random.get_rng_state())
    assert not torch.equal(first, apply(transform, images, RNG(6)))
    assert 0 <= float(first.min()) <= float(first.max()) <= 1.0 + 1e-6


def test_a_mirrored_sample_swaps_labels_and_windows(cache):
    labels = {7: np.arange(25, dtype=np.int8) % 3}
    config = SagittalClassifierConfig(SMALL, size=40, window=3)
    places = {7: localisation_of(cache.item)}
    still = AugmentConfig(0.0, 0.0, 0.0, slices=0.0, contrast=0.0, shading=0.0, noise=0.0, blur=0.0, hole=0.0)
    plain = LevelCrops(cache, places, labels, config, None).sample(2, RNG(0))
    samples = [LevelCrops(cache, places, labels, config, still).sample(2, RNG(seed)) for seed in range(8)]
    mirrored = [s for s in samples if not torch.equal(s["labels"], plain["labels"])]
    assert 0 < len(mirrored) < len(samples)
    for sample in mirrored:
        crops = plain["crops"]
        torch.testing.assert_close(sample["crops"][1:], crops[[2, 1]], atol=1e-4, rtol=0)
        torch.testing.assert_close(sample["crops"][0], crops[0].flip(0), atol=1e-4, rtol=0)
        assert sample["labels"].tolist() == [plain["labels"].tolist()[k] for k in (0, 2, 1, 4, 3)]


def test_the_loss_is_the_metric():
    rng = RNG(3)
    n = 40
    labels = rng.choice(3, (n, 25), p=(0.7, 0.2, 0.1)).astype(np.int8)
    labels[rng.random((n, 25)) < 0.05] = -1
    logits = torch.from_numpy(rng.normal(0, 1, (n, 5, 5, 3)))
    names = np.array([*SEVERITIES, None], dtype=object)
    truth = pd.DataFrame(names[labels], columns=list(COLUMNS))
    truth.insert(0, "study_id", range(n))
    frame = pd.DataFrame(torch.softmax(logits, -1).reshape(-1, 3).numpy(), columns=list(SEVERITY_COLUMNS))
    frame.insert(0, "row_id", [f"{i}_{column}" for i in range(n) for column in COLUMNS])
    loss = competition_loss(logits, torch.from_numpy(labels.reshape(n, 5, 5).astype(np.int64)))
    assert float(loss) == pytest.approx(score(truth, frame).total, abs=1e-6)


@pytest.mark.parametrize("name", names.RECIPES)
def test_every_recipe_names_every_stage_and_survives_a_round_trip(name):
    from lumbar.config import OPTIONAL_STAGES, STAGES, from_dict, to_dict

    recipe = recipe_by_name(name)
    assert tuple(recipe.stages) == (*STAGES, *OPTIONAL_STAGES)
    for stage in recipe.stages.values():
        assert from_dict(type(stage.network), to_dict(stage.network)) == stage.network


@pytest.mark.parametrize(("name", "has_filter", "hint"), [
    ("axial_all", True, "--set recipe.consistency=off keeps them"),
    ("axial_all", False, None),
    ("axial_xy", True, None),
])  # fmt: skip
def test_a_fit_without_a_sample_is_named_and_so_is_the_filter_that_may_have_taken_all(tmp_path, name, has_filter, hint):
    recipe = replace(recipe_by_name("demo"), consistency=ConsistencyConfig() if has_filter else None)
    run = SimpleNamespace(recipe=recipe, folds=pd.DataFrame({"study_id": [1, 2, 3], "fold": [0, 1, 1]}), out=tmp_path)
    nothing = Fitted(lambda *_: [], lambda _: None)
    with pytest.raises(
        TrainingError, match=f"{name} fold0: found no sample in 2 studies, expected at least"
    ) as refused:
        fit_on_fold(run, stage_by_name(name), 0, nothing)
    assert ("consistency" in str(refused.value)) == (hint is not None)
    assert (hint or "") in str(refused.value)
