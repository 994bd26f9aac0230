"""Classifiers that take whole series: every slice, its position in mm, several series as several looks, 15 answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lumbar.bundle.probes import probe_inputs
from lumbar.config import AxialClassifierConfig, BackboneConfig, SagittalClassifierConfig, from_dict, to_dict
from lumbar.errors import ManifestError
from lumbar.labels import AXIAL_T2, LEVELS, SAGITTAL_T1, SAGITTAL_T2
from lumbar.models import build, name_of
from lumbar.models.sequence import PositionMm
from lumbar.stages.classify import all_levels, run_levels, series_to_classify, study_logits, target_mask
from lumbar.stages.crop import axial_window, level_crops
from lumbar.stages.crop_layout import SeriesPair, thinned
from lumbar.study import Study
from stage_studies import LEVELS_MM, localisation_of, mirrored, stack_of, study_of

SMALL = BackboneConfig("resnet10t", channels=(8, 8, 8, 16), stem_width=16, norm="group")
SIZES = {"size": 40, "window": 3, "hidden": 8, "level_embedding": 4, "position_embedding": 6, "max_slices": 20}
ALL = (0, 1, 2, 3, 4)
SAGITTAL = SagittalClassifierConfig(SMALL, own_sequences=True, per_series=True, conditions=ALL, **SIZES)
AXIAL = AxialClassifierConfig(SMALL, conditions=ALL, per_series=True, **SIZES)
SWAPPED = [0, 2, 1, 4, 3]


def network_of(config, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build(name_of(config), to_dict(config)).eval()


def one_level(network, crops, level: int = 2) -> torch.Tensor:
    with torch.no_grad():
        arrays = (torch.from_numpy(array)[None] for array in (crops.images, crops.mask))
        return network(*arrays, torch.tensor([level]), torch.from_numpy(crops.position_mm)[None])


# Slices


def test_every_sagittal_slice_enters_right_to_left_with_its_distance_from_the_canal_point():
    study = study_of()
    crops = level_crops(study, localisation_of(study), 2, SAGITTAL)
    assert crops.images.shape == (2, 9, 40, 40)
    assert crops.mask.all()
    expected = 5.0 * (np.arange(9) - 4) - LEVELS_MM["l3_l4"][0]  # slices 5 mm apart; left of the patient is positive
    np.testing.assert_allclose(crops.position_mm, [expected, expected], atol=1e-4)


def test_every_axial_slice_near_the_level_enters_foot_to_head_with_its_distance_from_it():
    study = study_of()
    found = localisation_of(study)
    crops = level_crops(study, found, 2, AXIAL)
    assert crops.position_mm.tolist() == pytest.approx([d for d, _, _ in axial_window(study, found, 2)])
    assert crops.mask.all()
    assert np.abs(crops.position_mm).max() <= 0.7 * 33.1
    assert np.diff(crops.position_mm) == pytest.approx(11.0)


def test_positions_do_not_depend_on_the_series_numbering_or_spacing():
    """Half of the slices left out: those that stay keep their positions."""
    study = study_of()
    stack = study.series[SAGITTAL_T1][0]
    study.series[SAGITTAL_T1] = [
        replace(
            stack,
            volume=stack.volume[::2],
            origins_mm=stack.origins_mm[::2],
            instance_numbers=stack.instance_numbers[::2],
        )
    ]
    found = localisation_of(study)
    crops = level_crops(study, found, 2, SAGITTAL)
    assert crops.mask.sum(axis=1).tolist() == [9, 5]
    whole = level_crops(study_of(), localisation_of(study_of()), 2, SAGITTAL)
    np.testing.assert_allclose(crops.position_mm[1, :5], whole.position_mm[1, ::2], atol=1e-4)


@pytest.mark.parametrize("config", [SAGITTAL, AXIAL])
def test_longer_series_are_thinned_evenly(config):
    study = study_of()
    few = level_crops(study, localisation_of(study), 2, replace(config, max_slices=3))
    whole = level_crops(study, localisation_of(study), 2, config)
    assert few.mask.shape[-1] == 3
    assert few.position_mm[..., [0, -1]].tolist() == whole.position_mm[..., [0, -1]].tolist()
    assert thinned(5, 7) == [0, 1, 2, 3, 4]
    assert thinned(10, 4) == [0, 3, 6, 9]


@pytest.mark.parametrize("config", [SAGITTAL, AXIAL])
def test_padding_changes_no_answer(config):
    study = study_of()
    network = network_of(config)
    crops = level_crops(study, localisation_of(study), 2, config)
    longer = [(0, 0)] * (crops.mask.ndim - 1) + [(0, 4)]
    padded = replace(
        crops,
        images=np.pad(crops.images, [*longer, (0, 0), (0, 0)]),
        mask=np.pad(crops.mask, longer),
        position_mm=np.pad(crops.position_mm, longer, constant_values=33.0),
    )
    torch.testing.assert_close(one_level(network, crops), one_level(network, padded))


@pytest.mark.parametrize("config", [SAGITTAL, AXIAL])
def test_the_answer_depends_on_where_the_slices_lie(config):
    study = study_of()
    network = network_of(config)
    crops = level_crops(study, localisation_of(study), 2, config)
    moved = replace(crops, position_mm=crops.position_mm + 6.0)
    assert (one_level(network, crops) - one_level(network, moved)).abs().max() > 1e-5


def test_a_position_is_bounded_and_tells_neighbouring_slices_apart():
    encode = PositionMm(7)
    out = encode(torch.tensor([-200.0, -80.0, 0.0, 1.0, 4.0, 80.0]))
    assert out.shape == (6, 7)
    assert torch.equal(out[0], out[1])
    assert (out[2] - out[3]).abs().max() > 0.1
    assert (out[1] - out[5]).abs().max() > 0.1
    assert not list(encode.parameters())


def test_whole_series_go_through_the_backbone_in_parts_with_the_same_answer(monkeypatch):
    study = study_of()
    network = network_of(SAGITTAL)
    crops = level_crops(study, localisation_of(study), 2, SAGITTAL)
    together = one_level(network, crops)
    monkeypatch.setattr("lumbar.models.classifier._AT_ONCE", 4)
    torch.testing.assert_close(one_level(network, crops), together)


# Sides


@pytest.mark.parametrize("config", [SAGITTAL, AXIAL])
def test_flip_augmentation_answers_the_mirrored_patient_with_sides_changed(config):
    network = network_of(config)
    study = study_of()
    other = mirrored(study)
    answers = [
        run_levels(network, all_levels(item, localisation_of(item, is_mirrored=flag), network), flip=True)
        for item, flag in ((study, False), (other, True))
    ]
    torch.testing.assert_close(answers[0][:, SWAPPED], answers[1], atol=1e-4, rtol=1e-4)
    assert (answers[0][:, 1] - answers[0][:, 2]).abs().max() > 1e-4


def test_shared_weights_see_each_side_from_the_midline_outwards():
    """T1 of the mirrored patient gives exactly the side-swapped foraminal answer where T2 says nothing."""
    network = network_of(replace(SAGITTAL, share_sides=True, own_sequences=False))
    study = study_of()
    study.series[SAGITTAL_T2][0].volume[:] = 0
    tensors = []
    for item, flag in ((study, False), (mirrored(study), True)):
        found = localisation_of(item, is_mirrored=flag)
        found.sagittal_points = [p for p in found.sagittal_points if p.description == SAGITTAL_T1]
        tensors.append(all_levels(item, found, network))
    one, other = (run_levels(network, item, flip=False) for item in tensors)
    torch.testing.assert_close(one[:, SWAPPED], other, atol=1e-4, rtol=1e-4)


# Series


def with_two(description: str) -> Study:
    study = study_of()
    name = {SAGITTAL_T1: "t1b", SAGITTAL_T2: "t2b"}[description]
    study.series[description].append(stack_of(name, "sagittal", 21))
    return study


def found_on(study: Study):
    """Points on every sagittal series."""
    found = localisation_of(study)
    for description in (SAGITTAL_T1, SAGITTAL_T2):
        for number, stack in enumerate(study.series[description][1:], 1):
            found.sagittal_points += [
                replace(p, series_id=stack.series_id, stack=number, confidence=0.8)
                for p in found.sagittal_points
                if p.description == description and p.stack == 0
            ]
    return found


@pytest.mark.parametrize("description", [SAGITTAL_T1, SAGITTAL_T2])
@pytest.mark.parametrize("max_slices", [0, 20])
def test_two_series_of_a_kind_are_two_looks_and_their_logits_are_averaged(description, max_slices):
    study = with_two(description)
    network = network_of(replace(SAGITTAL, max_slices=max_slices))
    both = study_logits(study, found_on(study), [network], flip=False)[0]
    each = []
    for number in range(2):
        alone = Study(7, study.series | {description: [study.series[description][number]]})
        found = localisation_of(alone)
        name = alone.series[description][0].series_id
        found.sagittal_points = [
            replace(p, series_id=name) if p.description == description else p for p in found.sagittal_points
        ]
        each.append(study_logits(alone, found, [network], flip=False)[0])
    torch.testing.assert_close(both, (each[0] + each[1]) / 2, atol=1e-5, rtol=1e-4)
    assert (each[0] - each[1]).abs().max() > 1e-4


def test_looks_pair_every_t2_with_every_t1():
    study = with_two(SAGITTAL_T1)
    assert series_to_classify(found_on(study), network_of(SAGITTAL)) == [
        SeriesPair("t2", "t1"),
        SeriesPair("t2", "t1b"),
    ]
    assert series_to_classify(found_on(study), network_of(replace(SAGITTAL, per_series=False))) == [None]
    found = found_on(study)
    found.sagittal_points = [p for p in found.sagittal_points if p.description == SAGITTAL_T1]
    assert series_to_classify(found, network_of(SAGITTAL)) == [SeriesPair(None, "t1"), SeriesPair(None, "t1b")]


def test_without_per_series_the_surest_series_is_the_only_one():
    study = with_two(SAGITTAL_T1)
    network = network_of(replace(SAGITTAL, per_series=False))
    alone = Study(7, study.series | {SAGITTAL_T1: study.series[SAGITTAL_T1][:1]})
    torch.testing.assert_close(
        study_logits(study, found_on(study), [network], flip=False)[0],
        study_logits(alone, localisation_of(alone), [network], flip=False)[0],
    )


def test_a_study_without_t1_or_t2_is_graded_by_what_is_there():
    network = network_of(SAGITTAL)
    for gone, left in ((SAGITTAL_T1, [True, False, False, True, True]), (SAGITTAL_T2, [False, True, True, True, True])):
        study = study_of()
        found = localisation_of(study)
        found.sagittal_points = [p for p in found.sagittal_points if p.description != gone]
        study.series[gone] = []
        out, shown = study_logits(study, found, [network], flip=True)
        assert shown.tolist() == [left] * 5
        assert torch.isfinite(out).all()


# Fifteen answers


@pytest.mark.parametrize("max_slices", [0, 20])
@pytest.mark.parametrize("share_sides", [False, True])
def test_a_sagittal_network_answers_all_five_conditions_from_both_series(max_slices, share_sides):
    network = network_of(replace(SAGITTAL, max_slices=max_slices, share_sides=share_sides))
    study = study_of()
    out, shown = study_logits(study, localisation_of(study), [network], flip=False)
    assert shown.all()
    assert (out.abs().amax(dim=(0, 2)) > 1e-4).all()
    for description in (SAGITTAL_T1, SAGITTAL_T2):
        other = study_of()
        other.series[description][0] = replace(
            other.series[description][0], volume=other.series[description][0].volume[:, ::-1].copy()
        )
        changed, _ = study_logits(other, localisation_of(other), [network], flip=False)
        assert ((changed - out)[:, 3:].abs().amax(dim=(1, 2)) > 1e-5).all()


def test_three_conditions_stay_the_default_and_have_the_tensors_of_before():
    values = to_dict(SagittalClassifierConfig(SMALL, size=40, window=3, hidden=8))
    older = {k: v for k, v in values.items() if k not in ("max_slices", "conditions", "per_series")}
    assert from_dict(SagittalClassifierConfig, older) == from_dict(SagittalClassifierConfig, values)
    network = build("sagittal_classifier", older).eval()
    assert not [name for name in network.state_dict() if "recess" in name]
    assert "encoder.position.weight" in network.state_dict()
    study = study_of()
    out, shown = study_logits(study, localisation_of(study), [network], flip=True)
    assert not out[:, 3:].any()
    assert not shown[:, 3:].any()
    assert target_mask(network, torch.ones(5, 3, 3, dtype=torch.bool))[:, :3].all()


@pytest.mark.parametrize("bad", [(0, 1), (0, 1, 2, 3), (2, 1, 0)])
def test_other_sets_of_conditions_are_refused(bad):
    values = to_dict(SAGITTAL) | {"conditions": list(bad)}
    with pytest.raises(ManifestError, match="conditions"):
        from_dict(SagittalClassifierConfig, values)


@pytest.mark.parametrize("config", [SAGITTAL, AXIAL, replace(SAGITTAL, share_sides=True)])
def test_a_network_of_whole_series_gives_its_own_example_inputs(config):
    network = network_of(config)
    inputs = probe_inputs(network, 0)
    assert len(inputs) == 4
    with torch.no_grad():
        assert network(*inputs).shape == (1, 5, 3)
    with pytest.raises(ValueError, match="position_mm"), torch.no_grad():
        network(*inputs[:3])


def test_levels_of_different_lengths_are_padded_to_the_longest():
    study = study_of()
    found = localisation_of(study)
    found.levels_mm["l5_s1"] = (1.0, 8.0, -88.0)  # near the end of the stack: fewer slices
    network = network_of(AXIAL)
    tensors = all_levels(study, found, network)
    counts = tensors.mask.sum(dim=1)
    assert counts.min() < counts.max() == tensors.mask.shape[1]
    out = run_levels(network, tensors, flip=False)
    for level in range(len(LEVELS)):
        crops = level_crops(study, found, level, AXIAL)
        torch.testing.assert_close(one_level(network, crops, level)[0], out[level])
    assert len(study.series[AXIAL_T2]) == 1
