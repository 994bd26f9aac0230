"""Acquisition: where slices lie, which series there are, and how they are numbered."""

import numpy as np
import pytest

from lumbar.labels import AXIAL_T2, SAGITTAL_T1, SAGITTAL_T2
from lumbar_phantom import anatomy as an
from lumbar_phantom.patients import make_case
from lumbar_phantom.protocol import axial_series, plan_study, sagittal_stack
from lumbar_phantom.streams import stream

CASES = [make_case(21, i) for i in range(12)]


def sagittal(index, *, non_square=False, short=False):
    return sagittal_stack(stream(1, index, "s"), CASES[index].patient, non_square=non_square, short=short)


def axial(index, *pitfalls):
    return axial_series(stream(1, index, "a"), CASES[index].patient, frozenset(pitfalls))


def plans(index, *pitfalls):
    return plan_study(stream(1, index, "p"), CASES[index].patient, frozenset(pitfalls))


def of(series, description):
    return [plan for plan in series if plan.description == description]


def distance(stack, point):
    """From a point to the nearest slice, mm."""
    return np.abs((stack.origins - point) @ stack.normal).min()


def check_axes(stack):
    axes = np.array([stack.row_mm, stack.column_mm, stack.normal])
    lengths = np.linalg.norm(axes, axis=1)
    np.testing.assert_allclose((axes / lengths[:, None]) @ (axes / lengths[:, None]).T, np.eye(3), atol=1e-9)
    assert lengths[0] == pytest.approx(lengths[1])  # pixels are square
    steps = np.diff(stack.origins, axis=0)
    np.testing.assert_allclose(steps, np.tile(stack.normal * stack.spacing, (len(steps), 1)), atol=1e-9)
    assert 0.7 * stack.spacing < stack.thickness <= stack.spacing


@pytest.mark.parametrize("index", range(len(CASES)))
def test_a_sagittal_stack_reaches_both_foramina_and_all_levels(index):
    stack, case = sagittal(index), CASES[index]
    check_axes(stack)
    assert stack.normal[0] > 0.9  # from the patient's right to the left
    for point in case.points[:3].reshape(-1, 3):
        assert distance(stack, point) < stack.spacing + 3
        offset = point - stack.origins[0]
        row = offset @ stack.row_mm / (stack.row_mm @ stack.row_mm)
        column = offset @ stack.column_mm / (stack.column_mm @ stack.column_mm)
        assert 0 <= row < stack.shape[0]
        assert 0 <= column < stack.shape[1]


def test_short_series_have_few_slices_far_apart():
    for index in range(len(CASES)):
        stack = sagittal(index, short=True)
        assert 8 <= len(stack.origins) <= 10
        assert stack.spacing >= 4.5
        assert len(sagittal(index).origins) >= 11


def test_non_square_images_differ_in_one_dimension():
    shapes = [sagittal(index, non_square=True).shape for index in range(len(CASES))]
    assert all(rows != columns for rows, columns in shapes)
    assert {rows > columns for rows, columns in shapes} == {True, False}
    assert all(sagittal(index).shape[0] == sagittal(index).shape[1] for index in range(len(CASES)))


@pytest.mark.parametrize("index", range(6))
def test_blocks_lie_in_the_planes_of_their_discs_from_l5_s1_upwards(index):
    (stacks,), geometry = axial(index, "mixed_blocks"), CASES[index].patient.stations_geometry
    assert len(stacks) == 5
    for stack, disc in zip(stacks, reversed(an.LEVEL_DISCS), strict=True):
        check_axes(stack)
        ends = geometry[2 * disc + 1 : 2 * disc + 3]
        up = ends[:, 9:].mean(axis=0)
        assert stack.normal @ up / np.linalg.norm(up) > np.cos(np.deg2rad(12))
        assert distance(stack, ends[:, :3].mean(axis=0)) < stack.spacing


@pytest.mark.parametrize("index", range(6))
def test_one_stack_of_parallel_slices_covers_all_levels(index):
    ((stack,),) = axial(index)
    check_axes(stack)
    assert all(distance(stack, point) < stack.spacing for point in CASES[index].points[0])
    assert stack.column_mm[0] > 0  # columns go to the patient's left
    assert stack.row_mm[1] > 0  # rows go to the back


def test_a_partial_series_leaves_out_levels_at_one_end():
    n_blocks = []
    for index in range(len(CASES)):
        (stacks,) = axial(index, "mixed_blocks", "partial_axial")
        points = CASES[index].points[0]
        is_covered = [any(distance(stack, point) < 8 for stack in stacks) for point in points]
        assert is_covered[0] != is_covered[-1] or sum(is_covered) == len(stacks)
        n_blocks.append(len(stacks))
    assert set(n_blocks) <= {2, 3, 4}


def test_several_axial_series_share_the_blocks_or_repeat_a_part():
    for index in range(6):
        first, second = axial(index, "mixed_blocks", "several_axial")
        assert len(first) + len(second) == 5
        (whole,), (repeated,) = axial(index, "several_axial")
        assert 5 <= len(repeated.origins) < len(whole.origins)
        assert repeated.shape == whole.shape
        shift = (repeated.origins[0] - whole.origins[0]) @ whole.normal
        assert 0 <= shift <= 2


def test_a_study_has_each_description_once_unless_a_pitfall_says_so():
    for pitfalls, numbers in (
        ((), (1, 1, 1)), (("missing_t1",), (0, 1, 1)), (("missing_t2",), (1, 0, 1)), (("two_t1",), (2, 1, 1)),
        (("several_axial",), (1, 1, 2)), (("two_t1", "missing_t1"), (0, 1, 1)),
    ):  # fmt: skip
        series = plans(0, *pitfalls)
        assert tuple(len(of(series, d)) for d in (SAGITTAL_T1, SAGITTAL_T2, AXIAL_T2)) == numbers, pitfalls


def test_contrasts_belong_to_their_descriptions():
    kinds = {plan.kind for index in range(12) for plan in of(plans(index), SAGITTAL_T2)}
    assert kinds == {"t2", "stir"}
    assert {plan.kind for index in range(12) for plan in of(plans(index), SAGITTAL_T1)} == {"t1"}
    assert {plan.kind for index in range(12) for plan in of(plans(index), AXIAL_T2)} == {"t2"}


@pytest.mark.parametrize("index", range(4))
def test_instance_numbers_are_consecutive_over_the_stacks_of_a_series(index):
    for plan in plans(index, "mixed_blocks"):
        numbers = np.concatenate(plan.instances)
        assert sorted(numbers) == list(range(1, len(numbers) + 1))
        assert all(len(n) == len(s.origins) for n, s in zip(plan.instances, plan.stacks, strict=True))
        assert all(set(np.diff(n)) in ({1}, {-1}) for n in plan.instances)


def test_gaps_and_large_numbers_keep_instance_numbers_unique():
    for plan in plans(2, "instance_gaps", "mixed_blocks"):
        numbers = np.concatenate(plan.instances)
        assert len(set(numbers)) == len(numbers)
        assert np.abs(np.diff(np.sort(numbers))).max() > 1
    assert all(np.concatenate(plan.instances).min() >= 900 for plan in plans(2, "large_instances"))


def test_reversed_order_turns_all_series_but_the_sagittal_t2():
    for index in range(4):
        ordinary, reversed_order = plans(index), plans(index, "reversed_order")
        for before, after in zip(ordinary, reversed_order, strict=True):
            is_turned = before.instances[0][0] != after.instances[0][0]
            assert is_turned == (before.description != SAGITTAL_T2)
