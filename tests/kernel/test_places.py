"""From heat to points: series support each other, and numbering that is not certain gives a warning."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lumbar.chains.main import predict_study
from lumbar.config import HeatmapConfig
from lumbar.labels import LEVELS, SAGITTAL_T1, SAGITTAL_T2
from lumbar.models.heatmap import HeatmapNet
from lumbar.stages.decode import Peak, decode_levels, source_to_heat
from lumbar.stages.heat import (
    DISC,
    MEAN_SPINE_MM,
    N_CANAL,
    NEUTRAL_POSE,
    SAGITTAL_POINTS,
    STRIDE,
    VIEWS,
    SagittalHeat,
    pose_of,
    sagittal_grid,
    sagittal_heat,
)
from lumbar.stages.localise import axial_picks
from lumbar.stages.place import (
    consensus,
    expected_foramen,
    fuse_levels,
    fuse_place,
    inside_or_own,
    place_points,
    sacrum_warnings,
    series_warnings,
)
from lumbar.stages.points import Localisation
from lumbar.workers.budget import Effort
from stage_studies import LEVELS_MM, stack_of, study_of

NETWORK = HeatmapNet(HeatmapConfig(points=SAGITTAL_POINTS, size=128, mm_per_px=2.0))
FORAMEN_MM = np.array([15.0, -6.0, 5.0])  # of the left side, from the canal point


def heat_of(study, description, number, shift_mm=(0.0, 0.0, 0.0), foramen_mm=FORAMEN_MM):
    """Perfect heatmaps of a stack, all levels moved by a vector."""
    stack = study.series[description][0]
    grid = sagittal_grid(stack, NETWORK)
    size = grid.size // STRIDE
    heat = np.zeros((len(stack.volume), SAGITTAL_POINTS, size, size), np.float32)
    s, y, x = np.mgrid[: len(stack.volume), :size, :size]

    def add(channel, xyz):
        slice_, row, column = stack.to_voxel(np.asarray(xyz) + shift_mm)
        cx, cy = source_to_heat(grid, STRIDE, np.array([column, row]))
        spot = np.exp(-0.5 * ((s - slice_) ** 2 + ((y - cy) / 0.8) ** 2 + ((x - cx) / 0.8) ** 2))
        np.maximum(heat[:, channel], spot, out=heat[:, channel])

    for level, xyz in enumerate(LEVELS_MM.values()):
        add(level, xyz)
        add(DISC, xyz)
        for sign in (1, -1):
            add(N_CANAL + level, np.array(xyz) + foramen_mm * (sign, 1, 1))
    return SagittalHeat(description, number, stack, grid, heat)


def placed(maps):
    localisation = Localisation()
    confidence = fuse_levels(maps, localisation)
    place_points(maps, [np.ones((len(stack_heat.stack.volume), 3)) for stack_heat in maps], localisation, confidence)
    return localisation


class Brightness(HeatmapNet):
    """Sees its points where the image is bright, and counts how often it is asked."""

    asked = 0

    def forward(self, images):
        self.asked += len(images)
        middle = images[:, images.shape[1] // 2 : images.shape[1] // 2 + 1]
        heat = torch.nn.functional.avg_pool2d(middle, 2).clamp(1e-4, 1 - 1e-4)
        return torch.logit(heat).expand(-1, self.config.points + self.config.segments, -1, -1)


@pytest.mark.parametrize(
    ("row", "column", "pose"),
    [(40, 60, NEUTRAL_POSE), (25, 45, NEUTRAL_POSE), (70, 30, NEUTRAL_POSE), (40, 60, (14.0, 1.2))],
)
def test_all_views_of_a_slice_see_a_place_where_it_is(row, column, pose):
    study = study_of()
    stack = study.series[SAGITTAL_T2][0]
    y, x = np.mgrid[: stack.volume.shape[1], : stack.volume.shape[2]]
    spot = np.exp(-0.5 * ((y - row) ** 2 + (x - column) ** 2) / 3.0**2)
    study.series[SAGITTAL_T2] = [
        replace(stack, volume=np.broadcast_to(spot * 1000, stack.volume.shape).astype(np.float32))
    ]
    network = Brightness(HeatmapConfig(points=SAGITTAL_POINTS, size=128, mm_per_px=2.0))
    one = sagittal_heat(study, SAGITTAL_T2, 0, [network])
    assert network.asked == len(stack.volume)
    every = sagittal_heat(study, SAGITTAL_T2, 0, [network], augment=True, pose=pose)
    assert network.asked == (1 + len(VIEWS)) * len(stack.volume)
    for stack_heat in (one, every):
        place = source_to_heat(stack_heat.grid, STRIDE, np.array([column, row]))
        heat = stack_heat.heat[1, DISC] * (stack_heat.heat[1, DISC] > 0.3)
        yy, xx = np.mgrid[: heat.shape[0], : heat.shape[1]]
        centroid = np.array([(heat * xx).sum(), (heat * yy).sum()]) / heat.sum()
        assert np.linalg.norm(centroid - place) * STRIDE * 2.0 < 0.6  # mm
    assert every.heat.max() == pytest.approx(one.heat.max(), abs=0.1)


def lying(angle_deg, times):
    """The mean back's levels, turned towards the feet and so many times as large, as patient points."""
    angle = np.deg2rad(angle_deg)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    back, down = (np.array(MEAN_SPINE_MM) @ turn.T * times).T
    return {level: (0.0, float(back[k]) + 3.0, -float(down[k]) - 5.0) for k, level in enumerate(LEVELS)}


@pytest.mark.parametrize(("angle", "times"), [(0.0, 1.0), (17.0, 0.8), (-20.0, 1.3)])
def test_the_pose_is_how_a_patient_lies_beside_the_mean_back(angle, times):
    stack = study_of().series[SAGITTAL_T2][0]
    levels = lying(angle, times)
    assert pose_of(stack, NETWORK, levels) == pytest.approx((angle, times), abs=1e-6)
    del levels["l2_l3"]
    assert pose_of(stack, NETWORK, levels) == pytest.approx((angle, times), abs=1e-6)
    del levels["l5_s1"]
    assert pose_of(stack, NETWORK, levels) == NEUTRAL_POSE  # too few to tell


@pytest.mark.parametrize(("angle", "times"), [(50.0, 1.0), (0.0, 0.5), (0.0, 1.7)])
def test_a_pose_that_no_patient_has_is_not_followed(angle, times):
    stack = study_of().series[SAGITTAL_T2][0]
    assert pose_of(stack, NETWORK, lying(angle, times)) == NEUTRAL_POSE


def test_the_axial_slice_of_l5_s1_is_the_discs_and_not_the_canal_points():
    block = stack_of("block", "axial", 3, n=5)
    fine = replace(block, origins_mm=block.origins_mm * np.array([1.0, 1.0, 1.5 / 11]))  # 1.5 mm apart, from -3 mm
    localisation = Localisation(levels_mm={"l4_l5": (0.0, 0.0, 34.0), "l5_s1": (0.0, 0.0, 0.0)})
    (picks,) = axial_picks([fine], localisation)
    assert [(level, index) for level, index, _ in picks] == [("l5_s1", 3)]


def test_views_go_first_when_time_is_short_and_folds_later(monkeypatch):
    class Enough(Exception):
        pass

    asked = {}

    def localise(_study, _networks, **options):
        asked[effort] = options
        raise Enough

    monkeypatch.setattr("lumbar.chains.main.localise", localise)
    for effort in Effort:
        with pytest.raises(Enough):
            predict_study(study_of(), None, np.full((25, 3), 1 / 3), effort)
    assert [asked[effort]["augment"] for effort in Effort] == [True, False, False, False]
    assert [asked[effort]["all_folds"] for effort in Effort] == [True, True, False, False]


def test_what_a_view_does_not_reach_is_left_to_the_others():
    study = study_of()
    stack = study.series[SAGITTAL_T2][0]
    volume = np.full_like(stack.volume, 500.0)
    volume[:, :, :3] = 0.0
    study.series[SAGITTAL_T2] = [replace(stack, volume=volume)]
    network = Brightness(HeatmapConfig(points=SAGITTAL_POINTS, size=64, mm_per_px=1.0))  # a grid inside the image
    one = sagittal_heat(study, SAGITTAL_T2, 0, [network])
    every = sagittal_heat(study, SAGITTAL_T2, 0, [network], augment=True)
    assert one.heat.min() > 0.9
    np.testing.assert_allclose(every.heat, one.heat, atol=1e-3)  # corners are not dimmed


def test_series_move_towards_what_all_say_unless_they_lie_apart():
    study = study_of()
    near = placed([heat_of(study, SAGITTAL_T2, 0), heat_of(study, SAGITTAL_T1, 1, shift_mm=(0.0, 4.0, 0.0))])
    apart = {
        point.level: abs(point.xyz_mm[1] - other.xyz_mm[1])
        for point in near.sagittal_points
        for other in near.sagittal_points
        if point.side is other.side is None and point.level == other.level and point.series_id != other.series_id
    }
    assert len(apart) == 5
    assert max(apart.values()) < 2.2  # of 4 mm
    np.testing.assert_allclose(fuse_place(np.zeros(3), np.array([0.0, 9.0, 0.0])), 0.0)


def test_a_blended_place_that_a_series_does_not_show_is_not_taken():
    stack = study_of().series[SAGITTAL_T2][0]
    own = stack.to_patient(0, 40, 30)
    outwards = own + 1.4 * (stack.to_patient(0, 40, 30) - stack.to_patient(1, 40, 30))
    np.testing.assert_allclose(inside_or_own(stack, outwards, own), own)
    beside = stack.to_patient(0, 40, -3)
    np.testing.assert_allclose(inside_or_own(stack, beside, own), own)
    near = stack.to_patient(0, 42, 31)
    np.testing.assert_allclose(inside_or_own(stack, near, own), near)


def test_every_series_gets_its_canal_and_foraminal_points():
    study = study_of()
    localisation = placed([heat_of(study, SAGITTAL_T2, 0), heat_of(study, SAGITTAL_T1, 1)])
    assert len(localisation.sagittal_points) == 2 * 15
    for point in localisation.sagittal_points:
        sign = {"left": 1, "right": -1, None: 0}[point.side]
        wanted = np.array(LEVELS_MM[point.level]) + (FORAMEN_MM * (sign, 1, 1) if sign else 0)
        assert np.linalg.norm(np.array(point.xyz_mm) - wanted) < 1.5
        assert point.confidence > 0.25


def test_series_that_agree_outvote_a_taller_stray():
    at = np.array([15.0, 0.0, 0.0])
    peaks = [Peak(at, 0.5, 0, 0), Peak(at + 1.0, 0.5, 1, 0), Peak(at + np.array([0.0, 12.0, 0.0]), 0.8, 2, 0), None]
    assert np.linalg.norm(consensus(peaks) - at) < 3.0
    assert consensus([None, Peak(at, 0.01, 0, 0)]) is None  # heat that is no evidence


def test_a_stray_foramen_of_one_series_is_pulled_to_the_others():
    study = study_of()
    maps = [heat_of(study, SAGITTAL_T2, 0), heat_of(study, SAGITTAL_T1, 1)]
    stray = heat_of(study, SAGITTAL_T1, 2, foramen_mm=FORAMEN_MM + np.array([0.0, 0.0, 9.0]))
    stray.heat[:, N_CANAL : N_CANAL + 5] *= 0.9
    localisation = placed([*maps, stray])
    alone = placed([stray])

    def errors(places):
        left = [point for point in places.sagittal_points if point.side == "left"]
        return [np.linalg.norm(np.array(p.xyz_mm) - LEVELS_MM[p.level] - FORAMEN_MM) for p in left]

    assert min(errors(alone)) > 8.0
    assert np.median(errors(localisation)) < 1.5  # its own heat is still seen, but the classifiers take the best series
    assert max(p.confidence for p in localisation.sagittal_points if p.series_id == "t2") > 0.25


def test_the_expected_foramen_follows_the_course_of_the_spine():
    upright = Localisation(levels_mm={level: (0.0, 0.0, 66.0 - 33.0 * k) for k, level in enumerate(LEVELS)})
    np.testing.assert_allclose(expected_foramen(upright, 2, "left"), [15.5, -5.0, 4.5])
    np.testing.assert_allclose(expected_foramen(upright, 2, "right"), [-15.5, -5.0, 4.5])
    angle = np.deg2rad(30)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    tilted = Localisation(levels_mm={level: tuple(turn @ xyz) for level, xyz in upright.levels_mm.items()})
    np.testing.assert_allclose(expected_foramen(tilted, 2, "left"), turn @ [15.5, -5.0, 4.5], atol=1e-9)
    lone = Localisation(levels_mm={"l3_l4": (0.0, 0.0, 0.0)})
    np.testing.assert_allclose(expected_foramen(lone, 2, "left"), [15.5, -5.0, 4.5])
    outwards = [expected_foramen(upright, level, "left")[0] for level in range(5)]
    assert outwards == sorted(outwards)  # pedicles stand wider towards the sacrum


def test_a_series_one_level_off_is_named():
    study = study_of()
    maps = [heat_of(study, SAGITTAL_T2, 0), heat_of(study, SAGITTAL_T1, 1)]
    localisation = Localisation()
    fuse_levels(maps, localisation)
    assert series_warnings(maps, localisation.levels_mm) == []
    off = [maps[0], heat_of(study, SAGITTAL_T1, 1, shift_mm=(0.0, 0.0, 33.0))]
    off[1].heat *= 0.6
    localisation = Localisation()
    fuse_levels(off, localisation)
    (line,) = series_warnings(off, localisation.levels_mm)
    assert line.startswith("series t1: read alone, it has L1/L2, L2/L3")
    assert "_" not in line
    elsewhere = replace(off[1].stack, origins_mm=off[1].stack.origins_mm + np.array([0.0, 0.0, 300.0]))
    station = [off[0], replace(off[1], stack=elsewhere)]  # of another part of the spine: it has no level to tell
    assert series_warnings(station, localisation.levels_mm) == []


@pytest.mark.parametrize("is_transposed", [False, True])
def test_images_that_end_at_the_last_disc_are_doubted(is_transposed):
    study = study_of()
    stack = study.series[SAGITTAL_T2][0]
    _, row, _ = stack.to_voxel(np.array(LEVELS_MM["l5_s1"]))
    short = replace(stack, volume=stack.volume[:, : int(row) + 5])  # 5 × 2.2 mm
    if is_transposed:
        short = replace(short, volume=short.volume.transpose(0, 2, 1), row_mm=short.column_mm, column_mm=short.row_mm)
    study.series[SAGITTAL_T2] = [short]
    stack_heat = heat_of(study, SAGITTAL_T2, 0)
    localisation = Localisation()
    fuse_levels([stack_heat], localisation)
    (line,) = sacrum_warnings([stack_heat], localisation.levels_mm)
    assert "too little sacrum to count from" in line


def test_a_step_twice_as_long_as_its_neighbours_is_not_taken():
    """A small spine (25 mm a level), its L1/2 channel brighter one disc too high."""
    places = [np.array([0.0, 0.0, 25.0 * k]) for k in range(5, -1, -1)]  # T12/L1 to L5/S1
    labelled = [[Peak(xyz, 0.8, 0, 0)] for xyz in places[1:]]
    labelled[0] = [Peak(places[0], 0.8, 0, 0), Peak(places[1], 0.25, 0, 0)]
    nodes = decode_levels(labelled, [Peak(xyz, 0.8, 0, 0) for xyz in places], 1)
    for node, xyz in zip(nodes, places[1:], strict=True):
        assert node is not None
        np.testing.assert_allclose(node[0], xyz)


def test_a_level_beside_the_last_slice_of_a_series_takes_it_unless_a_stack_shows_the_level():
    block = stack_of("block", "axial", 3, n=5)
    short = replace(block, origins_mm=block.origins_mm * np.array([1.0, 1.0, 4 / 11]))  # 4 mm apart, from -8 to 8 mm
    localisation = Localisation(
        levels_mm={"l3_l4": (0.0, 0.0, 14.0), "l4_l5": (0.0, 0.0, -16.0), "l5_s1": (0.0, 0.0, 0.0)}
    )
    (picks,) = axial_picks([short], localisation)
    assert {level: index for level, index, _ in picks} == {"l5_s1": 2, "l3_l4": 4}  # 8 mm beside the stack is too far
    other = replace(short, origins_mm=short.origins_mm + np.array([0.0, 0.0, 22.0]))  # of the same series: shows L3/4
    first, second = axial_picks([short, other], localisation)
    assert [level for level, _, _ in first] == ["l5_s1"]
    assert [(level, index) for level, index, _ in second] == [("l3_l4", 0)]
