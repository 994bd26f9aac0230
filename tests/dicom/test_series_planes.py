"""Planes of a series: stations, angled blocks, and slices that lack their orientation, spacing or position."""

import numpy as np
import pytest

from lumbar.dicom import read_series
from lumbar.dicom.stack import plane_normal
from series_writer import (
    AXIAL,
    SAGITTAL,
    order,
    tilted,
    write,
)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "1234"


# Stations


@pytest.mark.parametrize("shift", [(0, 0, -250), (0, 0, 250), (0, 180, 0)])
@pytest.mark.parametrize("offset", [0, 2.2])
def test_two_stations_of_the_same_planes_are_two_stacks(folder, shift, offset):
    for index in range(6):
        x = -11 + 4.4 * index
        write(folder, index + 1, position=(x, -140, 140), orientation=SAGITTAL, spacing=(0.9, 0.9), shape=(300, 290))
        other = np.add((x + offset, -140, 140), shift)
        write(folder, index + 11, position=other, orientation=SAGITTAL, spacing=(0.9, 0.9), shape=(300, 290))
    series = read_series(folder)
    assert sorted(order(stack) for stack in series.stacks) == [list(range(1, 7)), list(range(11, 17))]
    assert [stack.is_geometry_guessed for stack in series.stacks] == [False, False]
    (line,) = series.problems
    assert "separate stacks" in line


@pytest.mark.parametrize("offset", [0, 1.1, 2.2])
@pytest.mark.parametrize("shift", [100, 150, -150])
def test_stations_that_overlap_by_more_than_half_are_two_stacks(folder, shift, offset):
    for index in range(6):
        for first, x, z in ((1, 0, 140), (11, offset, 140 + shift)):
            position = (4.4 * index + x, -140, z)
            write(folder, first + index, position=position, orientation=SAGITTAL, spacing=(10, 10), shape=(32, 32))
    series = read_series(folder)
    assert sorted(order(stack) for stack in series.stacks) == [list(range(1, 7)), list(range(11, 17))]
    (line,) = series.problems
    assert "separate stacks" in line


def test_three_stations_out_of_order_are_three_stacks(folder):
    numbers = np.random.default_rng(0).permutation(15) + 1
    for index, number in enumerate(numbers):
        z = 400.0 - 220 * (index // 5)
        write(folder, int(number), position=(4 * (index % 5), -140, z), orientation=SAGITTAL, spacing=(1, 1))
    stacks = read_series(folder).stacks
    assert sorted(order(stack) for stack in stacks) == sorted(numbers[k : k + 5].tolist() for k in (0, 5, 10))


def test_an_oblique_block_that_drifts_in_its_plane_stays_one_stack(folder):
    row, column = np.reshape(tilted(25), (2, 3))
    normal = plane_normal(row, column)
    for index in range(40):
        position = 3.5 * index * normal + 4.0 * index * column - 2.0 * index * row
        write(folder, index + 1, position=position, orientation=tilted(25), spacing=(2, 2), shape=(50, 50))
    series = read_series(folder)
    (stack,) = series.stacks
    assert order(stack) == list(range(1, 41))
    assert series.problems == []


def test_parallel_axial_blocks_that_follow_the_spine_stay_one_stack(folder):
    for block in range(5):
        for index in range(4):
            position = (-90, -90 + 12 * block, -35.0 * block + 4 * index)
            write(folder, 4 * block + index + 1, position=position, orientation=AXIAL, spacing=(3, 3), shape=(60, 60))
    (stack,) = read_series(folder).stacks
    assert len(stack.instance_numbers) == 20


# Gaps in the geometry


@pytest.mark.parametrize("missing", ["orientation", "spacing"])
def test_a_slice_without_orientation_or_spacing_takes_that_of_the_others(folder, missing):
    for number in range(1, 8):
        tags = {"orientation": SAGITTAL, "spacing": (0.5, 0.7)}
        if number == 4:
            tags[missing] = None
        write(folder, number, position=(4.0 * number, 0, 0), **tags)
    series = read_series(folder, fallback_orientation="axial")
    (stack,) = series.stacks
    assert order(stack) == list(range(1, 8))
    assert not stack.is_geometry_guessed
    (line,) = series.problems
    assert "taken from the others (4.dcm)" in line


def test_between_blocks_a_slice_takes_the_orientation_of_its_neighbours_only(folder):
    for block, degrees in enumerate((0, 20)):
        normal = plane_normal(*np.reshape(tilted(degrees), (2, 3)))
        for index in range(4):
            number = 4 * block + index + 1
            orientation = None if number in (3, 5) else tilted(degrees)
            write(folder, number, position=4 * index * normal, orientation=orientation)
    series = read_series(folder)
    assert sorted(sorted(stack.instance_numbers) for stack in series.stacks) == [[1, 2, 3, 4], [6, 7, 8]]
    assert any("left out, the others' differ (5.dcm)" in line for line in series.problems)


def test_guesses_mark_the_stacks(folder):
    for number in range(1, 4):
        write(folder, number, position=(0, 0, number), orientation=AXIAL, spacing=None)
    series = read_series(folder)
    assert series.stacks[0].is_geometry_guessed
    assert series.guesses == ["3 of 3 slices without PixelSpacing, taken as 1 mm"]


@pytest.mark.parametrize(
    ("missing", "is_spacing_guessed"), [("position", False), ("orientation", False), ("spacing", True)]
)
def test_a_spacing_of_one_millimetre_in_the_files_is_no_guess(folder, missing, is_spacing_guessed):
    for number in range(1, 4):
        tags = {"position": (0, 0, 4.0 * number), "orientation": AXIAL, "spacing": (1, 1)}
        write(folder, number, **(tags | {missing: None}))
    (stack,) = read_series(folder).stacks
    assert stack.is_geometry_guessed
    assert stack.spacing_mm == (1.0, 1.0)
    assert stack.is_spacing_guessed == is_spacing_guessed


@pytest.mark.parametrize("position", [(1e300, 0, 0), (0, -1e12, 0)])
def test_a_position_beyond_all_rooms_counts_as_missing(folder, position):
    for number in range(1, 4):
        write(folder, number, position=(0, 0, number), orientation=AXIAL)
    write(folder, 4, position=position, orientation=AXIAL)
    assert order(read_series(folder).stacks[0]) == [1, 2, 3]
