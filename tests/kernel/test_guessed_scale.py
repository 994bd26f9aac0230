"""Series without a pixel spacing get the one at which their levels are seen best; all others keep theirs."""

from dataclasses import replace

import numpy as np
import pytest

from lumbar.config import BackboneConfig, HeatmapConfig, SagittalRegressionConfig
from lumbar.labels import SAGITTAL_T1, SAGITTAL_T2
from lumbar.models.heatmap import HeatmapNet
from lumbar.models.regression import SagittalRegressionNet
from lumbar.stages import guessed_scale
from lumbar.stages.guessed_scale import FIELDS_MM, estimate_scales, scaled
from stage_studies import stack_of, study_of

TRUE_MM = 0.9
STACKS = [(SAGITTAL_T2, 0), (SAGITTAL_T1, 0)]
NETWORK = HeatmapNet(HeatmapConfig(points=11, size=64, widths=(8, 8)))


@pytest.fixture
def study(monkeypatch):
    """Its T2 has no spacing; the levels are seen the better, the nearer the spacing is to the true one."""
    monkeypatch.setattr(guessed_scale, "sagittal_heat", lambda study, name, number, nets: study.series[name][number])
    monkeypatch.setattr(
        guessed_scale,
        "fuse_levels",
        lambda stacks, _: {"l4_l5": 0.2, "l5_s1": np.exp(-abs(np.log(stacks[0].spacing_mm[0] / TRUE_MM)))},
    )
    study = study_of()
    study.series[SAGITTAL_T2] = [
        replace(stack_of("t2", "sagittal", 1, size=400, spacing=1.0), is_geometry_guessed=True, is_spacing_guessed=True)
    ]
    return study


def test_a_stack_without_a_spacing_gets_the_best_one_and_a_line_says_so(study):
    before = study.series[SAGITTAL_T2][0]
    lines = estimate_scales(study, STACKS, [NETWORK])
    best = min((field / 400 for field in FIELDS_MM), key=lambda step: abs(np.log(step / TRUE_MM)))
    after = study.series[SAGITTAL_T2][0]
    assert after.spacing_mm == pytest.approx((best, best))
    np.testing.assert_array_equal(after.volume, before.volume)
    np.testing.assert_array_equal(after.origins_mm, before.origins_mm)
    assert lines == [f"series t2: pixel spacing estimated from the image, {best:.2f} mm"]


def test_stacks_with_a_spacing_and_other_guesses_stay_as_they_are(study):
    stack = study.series[SAGITTAL_T2][0]
    study.series[SAGITTAL_T2] = [  # the position alone is guessed of both, and 1 mm may be a file's own spacing
        scaled(stack, 0.7),
        replace(stack, is_spacing_guessed=False),
    ]
    before = {name: list(stacks) for name, stacks in study.series.items()}
    assert estimate_scales(study, [*STACKS, (SAGITTAL_T2, 1)], [NETWORK]) == []
    assert all(a is b for name in before for a, b in zip(before[name], study.series[name], strict=True))


def test_networks_that_see_the_whole_image_need_no_scale(study):
    config = SagittalRegressionConfig(BackboneConfig("resnet10t", (8, 8, 16, 16), 8), size=64)
    assert estimate_scales(study, STACKS, [SagittalRegressionNet(config)]) == []
