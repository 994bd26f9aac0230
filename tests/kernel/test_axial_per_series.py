"""Two axial series over the same levels: two looks at a level, never one window of both."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lumbar.config import AxialClassifierConfig, BackboneConfig, to_dict
from lumbar.labels import AXIAL_T2, LEVELS
from lumbar.models import build, name_of
from lumbar.stages.classify import all_levels, series_to_classify, study_logits
from lumbar.stages.crop import axial_window, level_crops
from lumbar.stages.points import AxialLevel, Localisation
from lumbar.study import Study
from lumbar_train.data.augment import AugmentConfig
from lumbar_train.stages.classify import LevelCrops
from stage_studies import LEVELS_MM, images_and_mask, localisation_of, stack_of, study_of

SMALL = BackboneConfig("resnet10t", channels=(8, 8, 8, 16), stem_width=16, norm="group")
CONFIG = AxialClassifierConfig(
    SMALL, conditions=(0, 1, 2, 3, 4), size=40, window=5, hidden=8, level_embedding=4, position_embedding=4,
    per_series=True,
)  # fmt: skip
SHIFT_MM = np.array([0.0, 0.0, 5.5])  # half the spacing of the first series: its slices lie between the first's


def with_second_series() -> Study:
    study = study_of()
    second = stack_of("ax2", "axial", 11, n=17)
    study.series[AXIAL_T2].append(replace(second, origins_mm=second.origins_mm + SHIFT_MM))
    return study


def localised(study: Study, *, levels: tuple[str, ...] = LEVELS) -> Localisation:
    """Points on every axial series; the last series shows ``levels`` alone."""
    localisation = localisation_of(study)
    localisation.axial_levels = []
    for number, stack in enumerate(study.series[AXIAL_T2]):
        shown = LEVELS if number == 0 else levels
        for level in shown:
            s, row, column = (float(v) for v in stack.to_voxel(np.array(LEVELS_MM[level])))
            index = round(s)
            localisation.axial_levels.append(
                AxialLevel(
                    stack.series_id, level, stack.instance_numbers[index], 11.0 * (s - index),
                    (column + 4.0, row), (column - 4.0, row), stack=number, slice_index=index,
                )
            )  # fmt: skip
    return localisation


def alone(number: int) -> Study:
    study = with_second_series()
    study.series[AXIAL_T2] = [study.series[AXIAL_T2][number]]
    return study


def network_of(config: AxialClassifierConfig) -> torch.nn.Module:
    torch.manual_seed(0)
    return build(name_of(config), to_dict(config)).eval()


def test_a_window_holds_slices_of_one_series_at_its_own_spacing():
    study = with_second_series()
    for number, series_id in enumerate(("ax", "ax2")):
        window = axial_window(study, localised(study), 2, series_id)
        assert {stack for _, stack, _ in window} == {number}
        assert np.diff([distance for distance, _, _ in window]) == pytest.approx(11.0)
    both = axial_window(study, localised(study), 2)
    assert np.diff([distance for distance, _, _ in both]) == pytest.approx(5.5)  # what older bundles were made for


@pytest.mark.parametrize("flip", [False, True])
def test_the_logits_of_two_series_are_the_mean_of_those_of_each(flip):
    network = network_of(CONFIG)
    study = with_second_series()
    out, shown = study_logits(study, localised(study), [network], flip=flip)
    each = [study_logits(one_study, localised(one_study), [network], flip=flip) for one_study in (alone(0), alone(1))]
    assert shown.all()
    torch.testing.assert_close(out, (each[0][0] + each[1][0]) / 2)
    assert (each[0][0] - each[1][0]).abs().max() > 1e-4


def test_a_series_counts_for_the_levels_that_it_shows():
    network = network_of(CONFIG)
    study = with_second_series()
    localisation = localised(study, levels=("l4_l5", "l5_s1"))
    out, _ = study_logits(study, localisation, [network], flip=False)
    first, _ = study_logits(alone(0), localised(alone(0)), [network], flip=False)
    torch.testing.assert_close(out[:3], first[:3])
    assert (out[3:] - first[3:]).abs().amax(dim=(1, 2)).min() > 1e-5


def test_several_stacks_of_one_series_are_one_look():
    """Angled blocks, one a disc, are one series."""
    study = with_second_series()
    study.series[AXIAL_T2] = [replace(stack, series_id="ax") for stack in study.series[AXIAL_T2]]
    assert series_to_classify(localised(study), network_of(CONFIG)) == ["ax"]


def test_older_configurations_and_one_series_answer_as_they_did():
    old = replace(CONFIG, per_series=False)
    values = to_dict(old)
    del values["per_series"]
    torch.manual_seed(0)
    older = build("axial_classifier", values).eval()
    study = with_second_series()
    assert series_to_classify(localised(study), older) == [None]
    crops, mask = images_and_mask(all_levels(study, localised(study), older))
    out, _ = study_logits(study, localised(study), [older], flip=False)
    with torch.no_grad():
        torch.testing.assert_close(out, older(crops, mask, torch.arange(5)))
    one = alone(0)
    torch.testing.assert_close(
        study_logits(one, localised(one), [network_of(CONFIG)], flip=True)[0],
        study_logits(one, localised(one), [older], flip=True)[0],
    )


def test_training_draws_one_series_a_sample_and_both_in_turn():
    study = with_second_series()
    cache = type("Cache", (), {"study": lambda self, study_id: study})()
    labels = {7: np.zeros(25, np.int8)}
    still = AugmentConfig(0.0, 0.0, 0.0, slices=0.0, contrast=0.0, shading=0.0, noise=0.0, blur=0.0, hole=0.0)
    data = LevelCrops(cache, {7: localised(study)}, labels, CONFIG, still)
    localisation = localised(study)
    each = {name: level_crops(study, localisation, 2, CONFIG, look=name).images for name in ("ax", "ax2")}
    drawn = []
    for seed in range(20):
        sample = data.sample(2, np.random.default_rng(seed))
        crops = sample["crops"].numpy()
        assert sample["mask"].sum() >= 3
        drawn += [
            k
            for k, own in each.items()
            if np.allclose(crops, own, atol=1e-3) or np.allclose(crops[..., ::-1], own, atol=1e-3)
        ]
    assert len(drawn) == 20
    assert 4 <= drawn.count("ax") <= 16
    plain = LevelCrops(cache, {7: localisation}, labels, CONFIG, None).sample(2, np.random.default_rng(3))
    assert np.array_equal(plain["crops"].numpy(), each["ax"])
