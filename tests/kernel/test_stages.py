import dataclasses

import cv2
import numpy as np
import pytest
import torch

from kernel_untrained import CONFIGS
from lumbar.bundle.manifest import WeightEntry
from lumbar.bundle.probes import check_probe, record_probe
from lumbar.bundle.weights import load_network, save_network
from lumbar.chains.main import predict_study
from lumbar.config import AxialClassifierConfig, BackboneConfig, SagittalClassifierConfig, to_dict
from lumbar.errors import ManifestError
from lumbar.labels import AXIAL_T2, LEVELS, SAGITTAL_T1, SAGITTAL_T2
from lumbar.models import build, name_of
from lumbar.models.inference import Networks
from lumbar.stages.aggregate import aggregate
from lumbar.stages.classify import classify
from lumbar.stages.crop import Jitter, axial_window, level_crops
from lumbar.stages.decode import Peak, decode_levels, find_peaks, heat_to_source, refine, source_to_heat
from lumbar.stages.heat import SAGITTAL_POINTS, STRIDE, SagittalHeat, sagittal_grid
from lumbar.stages.localise import axial_levels, axial_reach_mm
from lumbar.stages.place import fuse_levels
from lumbar.stages.points import Localisation
from lumbar.study import read_descriptions, read_study
from stage_studies import LEVELS_MM, images_and_mask, localisation_of, mirrored, study_of

SMALL = BackboneConfig("resnet10t", channels=(8, 16, 24, 32), stem_width=16, norm="group")
SIZES = {"hidden": 12, "level_embedding": 4, "position_embedding": 4, "share_sides": True}
SAGITTAL = SagittalClassifierConfig(SMALL, size=40, window=3, **SIZES)
AXIAL = AxialClassifierConfig(SMALL, size=40, window=3, conditions=(0, 1, 2, 3, 4), **SIZES)


def built(config, seed=0):
    torch.manual_seed(seed)
    return build(name_of(config), to_dict(config)).eval()


def peaks_at(points, height=0.8, stack=0):
    return [[Peak(np.array(xyz), height, stack, 4)] for xyz in points]


def test_levels_come_out_in_order_with_a_distractor_above_and_one_level_mislabelled():
    points = list(LEVELS_MM.values())
    labelled = peaks_at(points)
    labelled[0].append(Peak(np.array([0, 0, 105.0]), 0.85, 0, 4))  # the disc above, called L1/2
    labelled[3].append(Peak(np.array(points[2]), 0.9, 0, 4))  # L3/4 called L4/5, more strongly than the true one
    nodes = decode_levels(labelled, [p for level in labelled for p in level[:1]], 1)
    for node, xyz in zip(nodes, points, strict=True):
        assert node is not None
        np.testing.assert_allclose(node[0], xyz)


def test_a_level_without_any_peak_is_left_out_and_an_unlabelled_disc_fills_its_place():
    points = list(LEVELS_MM.values())
    labelled = peaks_at(points)
    labelled[4] = []
    assert decode_levels(labelled, [], 1)[4] is None
    disc = Peak(np.array(points[4]), 0.8, 0, 4)
    node = decode_levels(labelled, [disc], 1)[4]
    assert node is not None
    np.testing.assert_allclose(node[0], points[4])
    assert node[1] < 0.6  # less sure than a labelled one


def test_nothing_found_is_nothing_invented():
    assert decode_levels([[] for _ in range(5)], [], 1) == [None] * 5


def test_heat_and_source_pixels_are_inverse():
    study = study_of()
    network = built(CONFIGS["sagittal_xy"])
    grid = sagittal_grid(study.series[SAGITTAL_T2][0], network)
    xy = np.array([17.25, 40.5])
    np.testing.assert_allclose(source_to_heat(grid, STRIDE, heat_to_source(grid, STRIDE, (17.25, 40.5))), xy)


def test_a_peak_is_found_between_pixels_and_between_slices():
    study = study_of()
    stack = study.series[SAGITTAL_T2][0]
    grid = sagittal_grid(stack, built(CONFIGS["sagittal_xy"]))
    s, y, x = np.mgrid[:9, :32, :32]
    heat = np.exp(-0.5 * (((s - 4.3) / 0.8) ** 2 + ((y - 12.4) / 1.5) ** 2 + ((x - 20.7) / 1.5) ** 2)).astype(
        np.float32
    )
    assert refine(heat[4], 12, 21) == pytest.approx((20.7, 12.4), abs=0.1)
    peak = find_peaks(heat, stack, grid, STRIDE, 0)[0]
    slice_, row, column = stack.to_voxel(peak.xyz_mm)
    assert slice_ == pytest.approx(4.3, abs=0.15)
    np.testing.assert_allclose(source_to_heat(grid, STRIDE, np.array([column, row])), [20.7, 12.4], atol=0.1)


def test_peaks_are_the_highest_within_three_pixels_and_one_slice_also_at_edges_and_where_several_are_as_high():
    study = study_of()
    stack = study.series[SAGITTAL_T2][0]
    grid = sagittal_grid(stack, built(CONFIGS["sagittal_xy"]))
    heat = np.round(np.random.default_rng(5).uniform(0, 1, (9, 32, 32)) ** 40, 2).astype(np.float32)
    heat[2] = 0  # a slice without any heat
    heat[5, 10:12, 10:14] = 1.0  # eight pixels that are as high
    spread = np.stack([cv2.dilate(one, np.ones((7, 7), np.uint8)) for one in heat])
    highest = np.maximum(spread, np.maximum(np.roll(spread, 1, 0), np.roll(spread, -1, 0)))
    highest[0], highest[-1] = np.maximum(spread[0], spread[1]), np.maximum(spread[-1], spread[-2])
    expected = np.argwhere((heat >= np.float32(0.03)) & (heat >= highest))
    peaks = find_peaks(heat, stack, grid, STRIDE, 3, most=1000)
    assert len(peaks) == len(expected) > 20
    assert sorted(peak.slice_index for peak in peaks) == [int(s) for s in expected[:, 0]]
    assert [peak.height for peak in peaks] == sorted((float(heat[tuple(where)]) for where in expected), reverse=True)
    assert {peak.stack for peak in peaks} == {3}


def test_fused_levels_lie_where_the_heat_is():
    study = study_of()
    maps = []
    network = built(CONFIGS["sagittal_xy"])
    for number, description in enumerate((SAGITTAL_T2, SAGITTAL_T1)):
        stack = study.series[description][0]
        grid = sagittal_grid(stack, network)
        size = grid.size // STRIDE
        heat = np.zeros((len(stack.volume), SAGITTAL_POINTS, size, size), np.float32)
        s, y, x = np.mgrid[: len(stack.volume), :size, :size]
        for level, xyz in enumerate(LEVELS_MM.values()):
            slice_, row, column = stack.to_voxel(np.array(xyz))
            cx, cy = source_to_heat(grid, STRIDE, np.array([column, row]))
            heat[:, level] = np.exp(-0.5 * ((s - slice_) ** 2 + ((y - cy) / 0.8) ** 2 + ((x - cx) / 0.8) ** 2))
        maps.append(SagittalHeat(description, number, stack, grid, heat))
    localisation = Localisation()
    confidence = fuse_levels(maps, localisation)
    assert set(confidence) == set(LEVELS)
    for level, xyz in LEVELS_MM.items():
        assert np.linalg.norm(np.array(localisation.levels_mm[level]) - xyz) < 1.5


def test_sagittal_windows_walk_from_the_midline_outwards():
    study = study_of()
    localisation = localisation_of(study)
    for stack in (study.series[SAGITTAL_T1][0], study.series[SAGITTAL_T2][0]):
        stack.volume[:] = np.arange(9)[:, None, None] * 100.0
    crops, mask = images_and_mask(level_crops(study, localisation, 2, SAGITTAL))
    middle = crops[:, :, 20, 20]
    assert mask.all()
    assert middle[0, 0] < middle[0, 1] < middle[0, 2]  # canal: right to left
    assert middle[1, 0] < middle[1, 1] < middle[1, 2]  # left foramen: slices run towards the left
    assert middle[2, 0] > middle[2, 1] > middle[2, 2]  # right foramen: away from the midline is the other way
    assert middle[1].min() > middle[2].max()


def test_what_is_not_there_is_masked():
    study = study_of()
    study.series[SAGITTAL_T1] = []
    localisation = localisation_of(study_of())
    localisation.sagittal_points = [p for p in localisation.sagittal_points if p.description == SAGITTAL_T2]
    localisation.axial_levels = [a for a in localisation.axial_levels if a.level != "l5_s1"]
    _, mask = images_and_mask(level_crops(study, localisation, 1, SAGITTAL))
    assert mask[0].all()
    assert not mask[1:].any()
    crops, mask = images_and_mask(level_crops(study, localisation, 4, AXIAL))
    assert not mask.any()
    assert (crops == 0).all()


def test_the_axial_window_is_foot_to_head_around_the_nearest_slice():
    study = study_of()
    localisation = localisation_of(study)
    distances = [d for d, _, _ in axial_window(study, localisation, 2)]
    assert distances == sorted(distances)
    assert min(abs(d) for d in distances) < 1
    assert max(abs(d) for d in distances) < 0.7 * 34


def test_axial_levels_need_a_plane_within_reach():
    study = study_of()
    localisation = Localisation(levels_mm=dict(LEVELS_MM))
    network = built(CONFIGS["axial_xy"])
    axial_levels(study, localisation, [network])
    assert [a.level for a in localisation.axial_levels] == list(LEVELS)
    assert all(abs(a.distance_mm) < 3 for a in localisation.axial_levels)
    far = Localisation(levels_mm={k: (x, y, z + 200.0) for k, (x, y, z) in LEVELS_MM.items()})
    axial_levels(study, far, [network])
    assert far.axial_levels == []
    assert axial_reach_mm(study.series[AXIAL_T2][0]) == pytest.approx(0.75 * 11.0)
    assert axial_reach_mm(study.series[SAGITTAL_T2][0]) == pytest.approx(3.75)


def test_a_mirrored_study_gives_the_side_swapped_answer():
    study = study_of()
    networks = Networks(
        {
            "sagittal_classifier": [built(SAGITTAL, 1)],
            "axial_subarticular": [built(dataclasses.replace(AXIAL, conditions=(3, 4)), 2)],
            "axial_all": [built(AXIAL, 3)],
        }
    )
    plain, mask = classify(study, localisation_of(study), networks)
    other_study = mirrored(study)
    other, other_mask = classify(other_study, localisation_of(other_study, is_mirrored=True), networks)
    order = [0, 2, 1, 4, 3]
    assert mask.sum() == 50  # 15 + 10 + 25 targets
    np.testing.assert_array_equal(mask[:, order], other_mask)
    np.testing.assert_allclose(plain[:, order], other, atol=1e-4)


def test_columns_that_no_model_saw_get_exactly_their_prior():
    prior = np.full((25, 3), [0.7, 0.2, 0.1])
    network = built(CONFIGS["aggregator"])
    mask = np.zeros((3, 5, 5), bool)
    mask[0, 0, 0] = True
    logits = np.zeros((3, 5, 5, 3), np.float32)
    logits[0, 0, 0] = (0, 0, 3)
    probs = aggregate(logits, mask, prior, [network])
    np.testing.assert_allclose(probs[1:], prior[1:])
    assert probs[0, 2] > 0.5
    np.testing.assert_allclose(probs.sum(1), 1)


def test_a_study_without_series_keeps_the_prior_everywhere():
    study = study_of()
    study.series = {name: [] for name in study.series}
    prior = np.full((25, 3), [0.6, 0.3, 0.1])
    result = predict_study(study, Networks({k: [built(v)] for k, v in CONFIGS.items()}), prior)
    np.testing.assert_allclose(result.probs, prior)
    assert "no sagittal series" in result.problems[0]


def test_jitter_moves_the_crop_and_none_is_exactly_nothing():
    study = study_of()
    localisation = localisation_of(study)
    still, _ = images_and_mask(level_crops(study, localisation, 2, SAGITTAL))
    same, _ = images_and_mask(level_crops(study, localisation, 2, SAGITTAL, Jitter()))
    moved, _ = images_and_mask(level_crops(study, localisation, 2, SAGITTAL, Jitter(shift_mm=(6.0, 0.0))))
    np.testing.assert_array_equal(still, same)
    assert np.abs(still - moved).max() > 0.05


def entry_of(config, file):
    return WeightEntry(file, "", 0, "s", name_of(config), to_dict(config), -1, {}, {})


@pytest.mark.parametrize("stage", sorted(CONFIGS))
def test_a_probe_knows_its_network_and_refuses_a_changed_one(stage, tmp_path):
    config = CONFIGS[stage]
    path = tmp_path / "w.safetensors"
    save_network(built(config), path)
    network = load_network(path, entry_of(config, "w"))
    probe = record_probe(network)
    check_probe(network, probe, "w")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2)
    with pytest.raises(ManifestError, match=r"w: probe gave .*, expected .*: code or library versions differ"):
        check_probe(network, probe, "w")


def test_the_same_weights_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        save_network(built(CONFIGS["axial_xy"]), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_weights_of_another_shape_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    save_network(built(AXIAL), path)
    with pytest.raises(ManifestError, match="tensors do not fit model 'sagittal_classifier'"):
        load_network(path, entry_of(SAGITTAL, "w"))


def test_inverted_series_look_like_plain_ones():
    study = study_of()
    stack = study.series[AXIAL_T2][0]
    plain = study.normalised(stack, 3)
    other = study_of()
    inverted = other.series[AXIAL_T2][0]
    inverted.volume[:] = 900 - inverted.volume
    inverted.is_inverted = True
    np.testing.assert_allclose(other.normalised(inverted, 3), plain, atol=2e-3)


def test_a_series_of_unknown_description_is_a_problem_and_not_the_end(tmp_path):
    (tmp_path / "test_images" / "7" / "70").mkdir(parents=True)
    table = "study_id,series_id,series_description\n7,70,Coronal PD\n"
    (tmp_path / "test_series_descriptions.csv").write_text(table)
    study = read_study(tmp_path, "test", 7, read_descriptions(tmp_path, "test"))
    assert "series 70: found description 'Coronal PD', expected Sagittal T1" in study.problems[0]
    assert len(study.problems) == 4  # and the three series that are missing
