"""What the recipe ``strong`` adds: mixing, the metric as a loss, denoising, levels as a sequence, mirrored patients."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from lumbar.config import (
    AggregatorConfig,
    AxialClassifierConfig,
    LevelSequenceConfig,
    SagittalClassifierConfig,
    to_dict,
)
from lumbar.dicom import Stack
from lumbar.labels import AXIAL_T2, COLUMNS, SAGITTAL_T1, SAGITTAL_T2
from lumbar.models import build, name_of
from lumbar.stages.aggregate import aggregate, level_confidence
from lumbar.stages.classify import all_levels, run_levels
from lumbar.study import Study
from lumbar_train.data.augment import AugmentConfig
from lumbar_train.data.mixing import MixConfig, mix
from lumbar_train.data.usable import read_dropped
from lumbar_train.recipes import Fit
from lumbar_train.stages.aggregate import fit_aggregator
from lumbar_train.stages.classify import LevelCrops
from lumbar_train.stages.denoise import DenoiseConfig, suspect_labels, without_suspect_labels, write_suspect_labels
from lumbar_train.stages.locate import collate
from lumbar_train.stages.losses import competition_loss, graded_loss, metric_loss
from lumbar_train.stages.metric_finetune import MetricLoss, StudyCrops
from stage_studies import images_and_mask, localisation_of, mirrored, study_of
from train_tiny import SMALL

RNG = np.random.default_rng
SIZES = {"size": 40, "window": 3, "hidden": 8, "level_embedding": 4, "position_embedding": 4}
SAGITTAL = SagittalClassifierConfig(SMALL, **SIZES)
AXIAL = AxialClassifierConfig(SMALL, conditions=(0, 1, 2, 3, 4), **SIZES)
SWAPPED = [0, 2, 1, 4, 3]


class OneStudy:
    def __init__(self):
        self.item = study_of()

    def study(self, study_id):
        return self.item


def network_of(config, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build(name_of(config), to_dict(config)).eval()


# Mixing


@pytest.mark.parametrize("config", [MixConfig(cutmix=1.0), MixConfig(mixup=1.0)])
def test_shares_are_what_is_left_of_the_pixels(config):
    own, other = np.ones((3, 8, 8), np.float32), np.zeros((3, 8, 8), np.float32)
    mask, other_mask = np.array([True, True, False]), np.array([True, False, True])
    for seed in range(10):
        out, share = mix(own, mask, other, other_mask, config, RNG(seed))
        assert np.array_equal(out[1:], own[1:])  # only the first slice is in both
        assert share[0] == pytest.approx(out[mask].mean())
        assert share[1] == share[3] == pytest.approx(out[mask][..., 4:].mean())  # the patient's left: image's right
        assert share[2] == share[4] == pytest.approx(out[mask][..., :4].mean())


def test_sagittal_conditions_share_by_their_own_windows():
    own, other = np.ones((3, 2, 8, 8), np.float32), np.zeros((3, 2, 8, 8), np.float32)
    mask = np.ones((3, 2), bool)
    other_mask = np.array([[True, True], [True, False], [False, False]])
    out, share = mix(own, mask, other, other_mask, MixConfig(cutmix=1.0), RNG(1))
    assert share[2] == share[3] == share[4] == 1
    assert 1 - share[1] == pytest.approx((1 - share[0]) / 2)
    for condition in range(3):
        assert share[condition] == pytest.approx(out[condition].mean())


def test_no_draw_no_mixing():
    own = RNG(0).random((3, 8, 8), dtype=np.float32)
    out, share = mix(own, np.ones(3, bool), own * 0, np.ones(3, bool), MixConfig(cutmix=0.0), RNG(0))
    assert out is own
    assert (share == 1).all()


def test_mixed_samples_carry_both_labels_and_depend_on_their_own_draws_alone():
    cache, found = OneStudy(), localisation_of(study_of())
    labels = {7: np.zeros(25, np.int8), 8: np.full(25, 2, np.int8)}
    data = LevelCrops(cache, {7: found, 8: found}, labels, AXIAL, AugmentConfig(), MixConfig(cutmix=1.0))
    one, again = data.sample(3, RNG(4)), data.sample(3, RNG(4))
    assert all(torch.equal(one[name], again[name]) for name in one)
    partners = {int(data.sample(0, RNG(seed))["labels2"][0]) for seed in range(12)}
    assert partners == {0, 2}
    batch = collate([data.sample(k, RNG(k)) for k in range(4)])
    assert {"labels2", "share"} <= set(batch)
    loss, figures = graded_loss(network_of(AXIAL), batch)
    assert torch.isfinite(loss)
    assert float(figures["weight"]) > 0


def test_a_mixed_loss_lies_between_those_of_its_labels():
    out = torch.randn(6, 5, 3)
    labels, labels2 = torch.randint(-1, 3, (6, 5)), torch.randint(-1, 3, (6, 5))
    crops = {"crops": out, "mask": out, "level": out}

    def loss(share: float) -> tuple[float, float]:
        batch = crops | {"labels": labels, "labels2": labels2, "share": torch.full((6, 5), share)}
        value, figures = graded_loss(lambda *a: out, batch)
        return float(value), float(figures["weight"])

    plain, figures = graded_loss(lambda *a: out, crops | {"labels": labels})
    swapped, _ = graded_loss(lambda *a: out, crops | {"labels": labels2})
    assert loss(1.0) == pytest.approx((float(plain), float(figures["weight"])))
    assert loss(0.0)[0] == pytest.approx(float(swapped))
    sums = [value * weight for value, weight in (loss(1.0), loss(0.0))]
    assert np.prod(loss(0.3)) == pytest.approx(0.3 * sums[0] + 0.7 * sums[1], rel=1e-5)


# The metric as a loss


def some_labels(n: int, seed: int = 0) -> np.ndarray:
    labels = RNG(seed).choice(3, (n, 25), p=(0.6, 0.2, 0.2)).astype(np.int8)
    labels[RNG(seed + 1).random((n, 25)) < 0.1] = -1
    return labels


def test_over_a_whole_cohort_the_loss_is_the_metric_and_parts_add_up():
    labels = some_labels(12)
    labels[:, :5] = np.abs(labels[:, :5])  # canal labels are all there: of others the metric takes what is missing
    loss = MetricLoss(dict(enumerate(labels)), (0, 1, 2, 3, 4))
    logits = torch.randn(12, 5, 5, 3)
    y = torch.from_numpy(labels.reshape(-1, 5, 5).astype(np.int64))
    whole = metric_loss(logits, y, loss.per_study)
    assert float(whole) == pytest.approx(float(competition_loss(logits, y)), rel=1e-5)
    parts = [float(metric_loss(logits[k], y[k], loss.per_study)) * len(y[k]) for k in (slice(0, 5), slice(5, 12))]
    assert sum(parts) / 12 == pytest.approx(float(whole), rel=1e-5)


def any_severe_term(canal: list[int], p_severe: list[float]) -> tuple[float, torch.Tensor]:
    """The any-severe loss of one study times its weight, and its gradient by the levels' severe logits (5,)."""
    labels = torch.full((1, 5, 5), -1)
    labels[0, 0] = torch.tensor(canal)
    p = torch.tensor(p_severe)
    logits = torch.zeros(1, 5, 5, 3)
    logits[0, 0] = torch.log(torch.stack([(1 - p) / 2, (1 - p) / 2, p], dim=-1))
    logits.requires_grad_()
    loss = metric_loss(logits, labels, torch.tensor([0.0, 0.0, 0.0, 1.0]))
    (gradient,) = torch.autograd.grad(loss, logits)
    return float(loss.detach()), gradient[0, 0, :, 2]


def test_an_unknown_canal_label_is_unknown_to_the_any_severe_term_too():
    seen = [0.1, 0.2, 0.9, 0.1, 0.1]
    assert any_severe_term([0, 0, 0, 0, 0], seen)[0] == pytest.approx(-np.log(0.1), rel=1e-4)
    loss, gradient = any_severe_term([0, 0, -1, 0, 1], seen)  # the unknown one may be severe
    assert loss == 0.0
    assert not gradient.any()
    assert any_severe_term([-1] * 5, seen)[0] == 0.0


def test_one_severe_canal_settles_it_whatever_is_unknown():
    loss, gradient = any_severe_term([0, 2, -1, 0, 0], [0.1, 0.2, 0.9, 0.1, 0.1])
    assert loss == pytest.approx(-4 * np.log(0.2), rel=1e-4)  # by the level that is known, at a severe one's weight
    assert gradient.nonzero().flatten().tolist() == [1]


def test_studies_that_may_be_severe_do_not_weigh_in_what_the_term_is_divided_by():
    labels = np.full((4, 25), -1, np.int8)
    labels[:, :5] = [[0, 0, 0, 0, 0], [0, 0, 0, 0, -1], [2, 0, 0, 0, -1], [0, 1, 0, 0, 0]]
    assert MetricLoss(dict(enumerate(labels)), (0,)).per_study[3] == pytest.approx((1 + 0 + 4 + 2) / 4)


def test_conditions_that_a_classifier_does_not_grade_do_not_count():
    labels = some_labels(6)
    loss = MetricLoss(dict(enumerate(labels)), (3, 4))
    assert (loss.per_study > 0).tolist() == [False, False, True, False]
    masked = torch.from_numpy(labels.reshape(-1, 5, 5).astype(np.int64))
    masked[:, :3] = -1
    logits = torch.randn(6, 5, 5, 3)
    changed = logits.clone()
    changed[:, :3] = 9.0
    assert torch.equal(metric_loss(logits, masked, loss.per_study), metric_loss(changed, masked, loss.per_study))


def test_whole_studies_are_samples_of_five_levels():
    found = localisation_of(study_of())
    found.axial_levels = [a for a in found.axial_levels if a.level != "l1_l2"]  # its series does not reach it
    labels = {7: some_labels(1)[0]}
    levels = LevelCrops(OneStudy(), {7: found}, labels, AXIAL, AugmentConfig())
    studies = StudyCrops(levels)
    assert len(studies) == 1
    assert studies.studies == {7}
    sample = studies.sample(0, RNG(0))
    assert sample["crops"].shape == (5, 3, 40, 40)
    assert not sample["mask"][0].any()
    assert (sample["labels"][0] == -1).all()
    network = network_of(AXIAL).train()
    loss, figures = MetricLoss(labels, (0, 1, 2, 3, 4))(network, collate([sample, sample]))
    loss.backward()
    assert figures["weight"] == 2
    assert sum(float(p.grad.abs().sum()) for p in network.parameters() if p.grad is not None) > 0


# Denoising


def test_the_least_probable_labels_are_suspect_up_to_a_share_of_each_severity():
    labels = np.zeros((10, 25), np.int8)
    labels[:, 5:10] = 2
    labels[:, 10] = -1
    probs = np.full((10, 25, 3), 1 / 3)
    probs[0, 0] = (0.01, 0.5, 0.49)
    probs[1, 0] = (0.02, 0.5, 0.48)
    probs[2, 6] = (0.6, 0.39, 0.01)
    probs[3, 10] = (0.0, 0.0, 1.0)
    probs[4, 1] = np.nan
    found = suspect_labels(labels, probs, DenoiseConfig(below=0.03, most=0.1))
    assert sorted(map(tuple, np.argwhere(found).tolist())) == [(0, 0), (1, 0), (2, 6)]
    fewer = suspect_labels(
        labels, probs, DenoiseConfig(below=0.03, most=0.006)
    )  # 1 of 190 normal labels, none of 50 severe
    assert np.argwhere(fewer).tolist() == [[0, 0]]


def test_suspect_labels_are_left_for_the_report_and_for_training_alone(tmp_path):
    labels = some_labels(4)
    labels[2, 7] = 2
    probs = np.full((4, 25, 3), 1 / 3)
    probs[2, 7] = (0.9, 0.09, 0.01)
    ids = np.array([11, 12, 13, 14])
    assert write_suspect_labels(tmp_path, ids, labels, probs, DenoiseConfig(below=0.05, most=1.0)) == 1
    frame = pd.read_parquet(tmp_path / "denoise/suspect_labels.parquet")
    assert frame.to_dict("records") == [
        {"study_id": 13, "column": COLUMNS[7], "severity": "Severe", "probability": pytest.approx(0.01)}
    ]
    counts = read_dropped(tmp_path)["counts"]
    assert list(counts.values()) == [1]
    assert next(iter(counts)).startswith("labels: Severe, out-of-fold probability below 0.05")
    before = {int(k): row for k, row in zip(ids, labels, strict=True)}
    after = without_suspect_labels(tmp_path, before)
    assert after[13][7] == -1
    assert before[13][7] == 2
    assert sum(int((after[k] != before[k]).sum()) for k in before) == 1


# Levels as a sequence, confidence


@pytest.mark.parametrize("kind", [AggregatorConfig, LevelSequenceConfig])
def test_a_fitted_aggregator_treats_both_sides_alike_and_reads_confidence(kind):
    n, labels = 30, some_labels(30)
    logits = RNG(1).normal(0, 1, (n, 3, 5, 5, 3)).astype(np.float32)
    mask = RNG(2).random((n, 3, 5, 5)) > 0.1
    sure = RNG(3).random((n, 5, 4)).astype(np.float32)
    prior = np.full((25, 3), 1 / 3)
    config = kind(hidden=8, confidence=True)
    network, losses = fit_aggregator(logits, mask, labels, prior, config, Fit(30, 1e-2, 100), 0, sure)
    assert losses[-1] < losses[0]
    plain = aggregate(logits[0], mask[0], prior, [network], sure[0]).reshape(5, 5, 3)
    other = aggregate(logits[0][:, SWAPPED], mask[0][:, SWAPPED], prior, [network], sure[0][:, [0, 2, 1, 3]])
    np.testing.assert_allclose(plain[SWAPPED][1:], other.reshape(5, 5, 3)[1:], atol=1e-6)
    changed = aggregate(logits[0], mask[0], prior, [network], np.zeros((5, 4), np.float32)).reshape(5, 5, 3)
    assert np.abs(changed - plain).max() > 1e-4


def test_a_level_answers_by_its_neighbours_only_in_a_sequence():
    for kind, is_sequence in ((AggregatorConfig, False), (LevelSequenceConfig, True)):
        network = network_of(kind(models=("a",), hidden=8))
        for p in network.groups.parameters():
            torch.nn.init.normal_(p, std=0.3)
        logits, mask = torch.randn(1, 1, 5, 5, 3), torch.ones(1, 1, 5, 5, dtype=torch.bool)
        changed = logits.clone()
        changed[..., 0, :] += 1.0 * torch.randn(1, 1, 5, 3)
        prior = torch.log_softmax(torch.zeros(5, 5, 3), -1)
        with torch.no_grad():
            moved = (network(logits, mask, prior) - network(changed, mask, prior)).abs().amax(dim=(0, 1, 3))
        assert bool(moved[4] > 1e-6) is is_sequence
        assert moved[0] > 1e-3


def test_a_sequence_starts_as_the_pool_of_the_models():
    logits, mask = torch.randn(2, 3, 5, 5, 3), torch.rand(2, 3, 5, 5) > 0.3
    prior = torch.log_softmax(torch.randn(5, 5, 3), -1)
    with torch.no_grad():
        one, other = (network_of(k(hidden=8))(logits, mask, prior) for k in (AggregatorConfig, LevelSequenceConfig))
    torch.testing.assert_close(one, other)


def test_confidence_is_the_best_of_each_kind_and_zero_where_absent():
    found = localisation_of(study_of())
    found.axial_levels = [a for a in found.axial_levels if a.level != "l3_l4"]
    found.sagittal_points = [p for p in found.sagittal_points if (p.level, p.side) != ("l1_l2", "right")]
    sure = level_confidence(found)
    assert sure.shape == (5, 4)
    assert sure[0].tolist() == pytest.approx([0.9, 0.9, 0.0, 1.0])
    assert sure[2, 3] == 0.0


# Mirrored patients, one slice a series


def one_slice(study: Study) -> Study:
    """The middle slice of each series alone."""
    series = {}
    for description, stacks in study.series.items():
        middle = len(stacks[0].volume) // 2
        series[description] = [
            Stack(
                series_id=stack.series_id,
                volume=stack.volume[middle : middle + 1],
                origins_mm=stack.origins_mm[middle : middle + 1],
                row_mm=stack.row_mm,
                column_mm=stack.column_mm,
                instance_numbers=[1],
            )
            for stack in stacks
        ]
    return Study(study_id=study.study_id, series=series)


@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize("config", [SAGITTAL, AXIAL])
def test_one_slice_series_of_a_mirrored_patient_give_the_side_swapped_answer(config, is_shared):
    """With both sides through the same weights no second look is needed; else flip augmentation gives it."""
    network = network_of(type(config)(**(vars(config) | {"share_sides": is_shared})))
    study = one_slice(study_of())
    other = mirrored(study)
    assert {len(s[0].volume) for s in other.series.values()} == {1}
    answers = []
    for item, is_mirrored in ((study, False), (other, True)):
        tensors = all_levels(item, localisation_of(item, is_mirrored=is_mirrored), network)
        assert tensors.mask.any()
        answers.append(run_levels(network, tensors, flip=not is_shared))
    torch.testing.assert_close(answers[0][:, SWAPPED], answers[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("config", [SAGITTAL, AXIAL])
def test_one_slice_series_can_be_trained_on_and_mirrored(config):
    cache = OneStudy()
    cache.item = one_slice(cache.item)
    data = LevelCrops(cache, {7: localisation_of(cache.item)}, {7: some_labels(1)[0]}, config, AugmentConfig())
    for seed in range(8):  # both senses, and windows moved off the only slice
        sample = data.sample(seed % len(data), RNG(seed))
        assert torch.isfinite(sample["crops"]).all()
        assert (sample["crops"][~sample["mask"]] == 0).all()


def test_the_sides_of_one_slice_change_places_exactly():
    study = one_slice(study_of())
    network = network_of(SAGITTAL)
    crops, mask = images_and_mask(all_levels(study, localisation_of(study), network))
    other = mirrored(study)
    again, again_mask = images_and_mask(all_levels(other, localisation_of(other, is_mirrored=True), network))
    assert torch.equal(crops[:, 1], again[:, 2])
    assert torch.equal(crops[:, 2], again[:, 1])
    assert torch.equal(mask[:, 1], again_mask[:, 2])
    assert {SAGITTAL_T1, SAGITTAL_T2, AXIAL_T2} == set(study.series)
