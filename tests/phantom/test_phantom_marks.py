"""A reader's clicks: the slice and pixel of each point, and the habits that pitfalls give a reader."""

import numpy as np
import pytest

from lumbar import labels
from lumbar_phantom import space
from lumbar_phantom.anatomy import LEVEL_DISCS, SAC_A, SAC_B
from lumbar_phantom.marks import REACH_MM, mark, nearest_slice, project
from lumbar_phantom.patients import CANAL_HABITS, canal_point, make_case
from lumbar_phantom.protocol import SeriesPlan, StackPlan, plan_study
from lumbar_phantom.streams import stream
from lumbar_phantom.tables import StudyTables
from lumbar_phantom.volume import locate

CASE = make_case(31, 2)
SPINAL, LEFT_FORAMEN, RIGHT_FORAMEN, LEFT_RECESS, RIGHT_RECESS = labels.CONDITIONS


def stack_at(x0, n=5, spacing=4.0, shape=(100, 80)):
    """Sagittal slices at x0, x0 + spacing, ...; pixels of 1 mm, y and z from -40 and 50."""
    origins = np.array([[x0 + spacing * k, -40.0, 50.0] for k in range(n)])
    return StackPlan(
        origins, np.array([0.0, 0, -1]), np.array([0.0, 1, 0]), np.array([1.0, 0, 0]), shape, spacing, spacing
    )


def series_of(*stacks, first=1):
    instances, start = [], first
    for stack in stacks:
        instances.append(start + np.arange(len(stack.origins)))
        start += len(stack.origins)
    return SeriesPlan("Sagittal T1", "t1", list(stacks), instances)


def marked(*pitfalls, case=CASE, seed=0):
    """Tables of a study, by (condition, level), and its plans."""
    pitfalls = frozenset(pitfalls)
    plans = plan_study(stream(31, seed, "plan"), case.patient, pitfalls)
    tables = StudyTables(7, case.labels, case.narrowing, case.grades)
    mark(stream(31, seed, "marks"), case, plans, [100 + k for k in range(len(plans))], pitfalls, tables)
    names = dict(zip(labels.CONDITION_TITLES, labels.CONDITIONS, strict=True))
    levels = {labels.level_title(level): level for level in labels.LEVELS}
    clicks = {(names[row[3]], levels[row[4]]): row for row in tables.coordinates}
    truth = {(row[3], row[4]): row for row in tables.truth}
    return clicks, truth, plans


def test_a_point_is_dropped_onto_a_slice_along_its_normal():
    stack = stack_at(-8.0)
    assert project(stack, 0, np.array([-8.0, -30.0, 45.0])) == pytest.approx((10.0, 5.0))
    assert project(stack, 4, np.array([-8.0, -30.0, 45.0])) == pytest.approx((10.0, 5.0))


def test_the_nearest_slice_is_taken_and_named_by_its_instance_number():
    placement = nearest_slice([series_of(stack_at(-8.0), first=11)], [0], np.array([1.5, 0, 0]), 0.0)
    assert (placement.slice_index, placement.instance_number) == (2, 13)
    assert placement.distance_mm == pytest.approx(1.5)
    assert (placement.x, placement.y) == pytest.approx((40.0, 50.0))


def test_a_reader_can_be_off_by_a_slice():
    point = np.array([1.5, 0, 0])
    plans = [series_of(stack_at(-8.0))]
    assert nearest_slice(plans, [0], point, 1.0).slice_index == 2
    assert nearest_slice(plans, [0], point, -2.5).slice_index == 3


def test_a_later_series_must_be_nearer_by_more_than_a_millimetre():
    point = np.array([1.5, 0, 0])
    near, nearer = series_of(stack_at(-8.0)), series_of(stack_at(1.0))
    assert nearest_slice([near, nearer], [0, 1], point, 0.0).series == 0
    assert nearest_slice([near, series_of(stack_at(1.4))], [0, 1], point, 0.0).series == 1
    assert nearest_slice([near, nearer], [1], point, 0.0).series == 1


@pytest.mark.parametrize("point", [(0, -41, 0), (0, 41, 0), (0, 0, 51), (0, 0, -51)])
def test_a_point_outside_of_every_image_gets_no_slice(point):
    assert nearest_slice([series_of(stack_at(-8.0))], [0], np.array(point, float), 0.0) is None
    assert nearest_slice([series_of(stack_at(-8.0))], [], np.zeros(3), 0.0) is None


def test_every_point_is_marked_near_its_truth_in_the_series_of_its_condition():
    clicks, truth, plans = marked()
    assert len(truth) == len(clicks) == 25
    for (condition, level), row in truth.items():
        series = plans[row[1] - 100].description
        assert series == (labels.SAGITTAL_T2 if condition == SPINAL else labels.SAGITTAL_T1 if "foram" in condition
                          else labels.AXIAL_T2)  # fmt: skip
        click = clicks[condition, level]
        mm_per_px = np.linalg.norm(plans[row[1] - 100].stacks[0].row_mm)
        assert np.hypot(click[5] - row[6], click[6] - row[7]) * mm_per_px < (8 if condition == SPINAL else 3.5)
        assert row[5] == (None if condition == SPINAL else condition.split("_")[0])
        k, c = labels.LEVELS.index(level), labels.CONDITIONS.index(condition)
        assert row[8:] == (*CASE.points[c, k], CASE.narrowing[c, k])


def test_readers_mark_the_first_of_two_series_of_one_kind():
    _, truth, plans = marked("two_t1")
    assert [plan.description for plan in plans[:2]] == [labels.SAGITTAL_T1] * 2
    assert {row[1] for (condition, _), row in truth.items() if "foraminal" in condition} == {100}


@pytest.mark.parametrize(("pitfall", "missing"), [("missing_t1", 10), ("missing_t2", 5)])
def test_without_its_series_a_condition_has_no_points(pitfall, missing):
    clicks, truth, _ = marked(pitfall)
    assert len(clicks) == len(truth) == 25 - missing


def test_levels_far_from_every_axial_slice_are_not_marked():
    for seed in range(4):
        _, truth, plans = marked("partial_axial", "mixed_blocks", seed=seed)
        stacks = [stack for plan in plans if plan.description == labels.AXIAL_T2 for stack in plan.stacks]
        for c in (3, 4):
            for k, level in enumerate(labels.LEVELS):
                nearest = min(np.abs((s.origins - CASE.points[c, k]) @ s.normal).min() for s in stacks)
                if nearest > REACH_MM:
                    assert (labels.CONDITIONS[c], level) not in truth
        assert len(truth) < 25


def test_swapped_sides_change_the_names_at_l4_l5_on_axial_slices_only():
    clicks, truth, _ = marked()
    swapped, same_truth, _ = marked("swapped_sides")
    assert truth == same_truth
    for (condition, level), row in clicks.items():
        other = {LEFT_RECESS: RIGHT_RECESS, RIGHT_RECESS: LEFT_RECESS}.get(condition, condition)
        expected = swapped[other if level == "l4_l5" else condition, level]
        assert row[5:] == expected[5:]


def test_one_sided_points_take_the_slice_of_one_foramen_for_both():
    marked_sides = set()
    for seed in range(6):
        clicks, truth, _ = marked("one_sided_points", seed=seed)
        for level in labels.LEVELS:
            left, right = clicks[LEFT_FORAMEN, level][2], clicks[RIGHT_FORAMEN, level][2]
            assert left == right
            true_slices = truth[LEFT_FORAMEN, level][2], truth[RIGHT_FORAMEN, level][2]
            assert left in true_slices
            marked_sides.add(true_slices.index(left))
    assert marked_sides == {0, 1}
    clicks, _, _ = marked()
    assert all(clicks[LEFT_FORAMEN, level][2] != clicks[RIGHT_FORAMEN, level][2] for level in labels.LEVELS)


def test_incomplete_points_leave_out_canals_but_not_their_truth():
    numbers = []
    for seed in range(6):
        clicks, truth, _ = marked("incomplete_points", seed=seed)
        assert len(truth) == 25
        assert sum(condition != SPINAL for condition, _ in clicks) == 20
        numbers.append(len(clicks) - 20)
    assert min(numbers) < 5
    assert 0.3 < np.mean(numbers) / 5 < 0.9


def test_a_missing_label_has_truth_but_no_click():
    case = make_case(31, 3)
    case.labels = case.grades.copy()
    case.labels[3, 0] = -1
    clicks, truth, _ = marked(case=case)
    assert (LEFT_RECESS, "l1_l2") in truth
    assert (LEFT_RECESS, "l1_l2") not in clicks
    assert len(clicks) == 24


def test_where_the_sac_has_ended_the_middle_of_the_bony_canal_is_marked():
    case = make_case(31, 4)
    case.patient.stations[:, [SAC_A, SAC_B]] = 0.0
    for j in LEVEL_DISCS:
        point = canal_point(case.patient, j, 0.0)
        seg, fraction, _, u, v = locate(case.patient.stations_geometry, *point, 2 * j)
        arrays = (case.patient.stations, case.patient.vertebrae, case.patient.discs)
        ahead, behind = (side(*arrays, seg, fraction, u) for side in (space.front, space.roof))
        assert v == pytest.approx(0.5 * (ahead + behind), abs=1.0)


def test_a_readers_habit_moves_the_canal_point_down_or_up_but_keeps_it_in_the_canal():
    for j in LEVEL_DISCS:
        square, straight = (canal_point(CASE.patient, j, habit) for habit in (0.0, 1.0))
        between = canal_point(CASE.patient, j, np.mean(CANAL_HABITS))
        assert np.linalg.norm(square - straight) < 8
        low, high = sorted((square[2], straight[2]))
        assert low - 1e-9 <= between[2] <= high + 1e-9
    last = [canal_point(CASE.patient, LEVEL_DISCS[-1], habit) for habit in (0.0, 1.0)]
    middle = [canal_point(CASE.patient, LEVEL_DISCS[1], habit) for habit in (0.0, 1.0)]
    assert np.linalg.norm(last[0] - last[1]) > np.linalg.norm(middle[0] - middle[1])
