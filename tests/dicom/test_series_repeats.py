"""Several images at one place, or at none: which of them make the volume, and what is said about the rest."""

import shutil

import numpy as np
import pytest

from lumbar.dicom import read_series
from lumbar.dicom import series as series_module
from series_writer import (
    ACQUISITION,
    AXIAL,
    ECHO_NUMBER,
    SAGITTAL,
    TEMPORAL,
    component,
    echo,
    image_type,
    located,
    order,
    repetition,
    series_uid,
    tilted,
    whole_number,
    write,
)

M, P = "ORIGINAL\\PRIMARY\\M\\ND", "ORIGINAL\\PRIMARY\\P\\ND"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "1234"


@pytest.fixture
def decoded(monkeypatch):
    """Names of the files whose pixels are read."""
    names = []
    decode = series_module.decode

    def spy(job):
        names.extend(image.name for image, _ in job.targets)
        decode(job)

    monkeypatch.setattr(series_module, "decode", spy)
    return names


# Positions that say nothing


@pytest.mark.parametrize("position", [(0, 0, 0), (12, -100, 80)])
def test_slices_at_one_position_are_ordered_by_location(folder, position):
    for number in range(1, 16):
        write(folder, number, position=position, orientation=SAGITTAL, extra=[located(30 - 4.4 * number)])
    series = read_series(folder)
    (stack,) = series.stacks
    assert order(stack) == list(range(15, 0, -1))
    assert np.allclose(np.diff(stack.positions_mm), 4.4)
    assert stack.is_geometry_guessed
    assert series.problems == series.guesses == ["15 slices at one position, ordered by SliceLocation"]


@pytest.mark.parametrize("extra", [(), [located(5)]])
def test_slices_at_one_position_without_locations_are_ordered_by_number(folder, extra):
    for number in (9, 2, 5, 30):
        tags = [*extra, (0x00180088, "DS", b"4.5 ")]
        write(folder, number, position=(0, 0, 0), orientation=SAGITTAL, extra=tags)
    series = read_series(folder)
    (stack,) = series.stacks
    assert order(stack) == [2, 5, 9, 30]
    assert np.allclose(np.diff(stack.positions_mm), 4.5)
    assert series.problems == ["4 slices at one position, ordered by instance number"]


def test_one_slice_that_differs_does_not_make_positions_believed(folder):
    for number in range(1, 13):
        z = 30 if number == 4 else 0
        write(folder, number, position=(0, 0, z), orientation=AXIAL, extra=[located(4 * number)])
    (stack,) = read_series(folder, fallback_orientation="axial").stacks
    assert order(stack) == list(range(1, 13))


def test_locations_order_slices_of_which_most_carry_one_position(folder):
    for number in range(1, 16):
        z = 4.4 * number if number > 10 else 0
        write(folder, number, position=(0, 0, z), orientation=AXIAL, extra=[located(80 - 4.4 * number)])
    series = read_series(folder)
    (stack,) = series.stacks
    assert order(stack) == list(range(15, 0, -1))
    assert stack.is_geometry_guessed
    assert len(series.problems) == 1


def test_slices_of_one_position_and_one_number_are_told_by_their_files(folder):
    for number in range(1, 8):
        write(folder, number, position=(0, 0, 0), orientation=SAGITTAL, tag_number=1)
    assert order(read_series(folder).stacks[0]) == list(range(1, 8))


def test_two_echoes_at_one_position_are_not_mixed(folder):
    for number in range(1, 11):
        write(folder, number, position=(0, 0, 0), orientation=SAGITTAL, extra=[echo(20 if number % 2 else 90)])
    series = read_series(folder)
    assert order(series.stacks[0]) == [1, 3, 5, 7, 9]
    assert len(series.problems) == 2


def test_positions_that_are_missing_give_way_to_locations(folder):
    for number in range(1, 7):
        write(folder, number, orientation=SAGITTAL, extra=[located(-3 * number)])
    series = read_series(folder)
    assert order(series.stacks[0]) == [6, 5, 4, 3, 2, 1]
    assert np.allclose(np.diff(series.stacks[0].positions_mm), 3)
    assert series.guesses == ["6 slices without ImagePositionPatient, ordered by SliceLocation"]


def test_one_slice_over_time_is_no_stack(folder):
    for number in range(1, 31):
        write(folder, number, position=(0, 0, 0), orientation=SAGITTAL, extra=[whole_number(TEMPORAL, number)])
    series = read_series(folder)
    assert order(series.stacks[0]) == [1]
    assert not series.stacks[0].is_geometry_guessed


def test_very_many_slices_at_one_position_are_decided_by_their_headers(folder, decoded):
    for number in range(1, 601):
        write(folder, number, position=(0, 0, 0), orientation=SAGITTAL, shape=(4, 4))
    write(folder, 601, position=(4, 0, 0), orientation=SAGITTAL, shape=(4, 4))
    series = read_series(folder)
    assert order(series.stacks[0]) == [1, 601]
    assert len(series.problems) == 1
    assert len(decoded) <= 20


def test_very_many_slices_with_locations_are_a_stack_all_the_same(folder):
    for number in range(1, 601):
        write(folder, number, position=(0, 0, 0), orientation=SAGITTAL, shape=(4, 4), extra=[located(0.5 * number)])
    assert order(read_series(folder).stacks[0]) == list(range(1, 601))


@pytest.mark.parametrize("kind", ["orientation", "place"])
def test_stacks_are_bounded_and_what_is_beyond_is_named(folder, kind):
    for number in range(1, 201):
        turned = tilted(number - 100.0, roll=0.5 * number) if kind == "orientation" else AXIAL
        place = (0, 0, 0) if kind == "orientation" else (100.0 * number, 0, 0)
        write(folder, number, position=place, orientation=turned, shape=(4, 4))
    write(folder, 201, position=(100, 0, 4), orientation=AXIAL, shape=(4, 4))
    series = read_series(folder)
    assert len(series.stacks) <= 128
    assert any("slices left out, found" in line for line in series.problems)


@pytest.mark.parametrize("tag_number", [None, 7])
def test_doubles_that_compress_very_well_are_not_decoded_either(folder, decoded, monkeypatch, tag_number):
    monkeypatch.setattr(series_module, "_MAX_EXPANSION", 0)
    for number in range(1, 101):
        z = 4 * (number % 4)
        write(folder, number, position=(0, 0, z), orientation=AXIAL, shape=(4, 4), tag_number=tag_number)
    series = read_series(folder)
    assert len(series.stacks[0].instance_numbers) == 4
    assert len(decoded) <= 24


def test_damage_of_very_many_doubles_ends_the_search_for_a_whole_one(folder, decoded):
    for number in range(1, 41):
        write(folder, number, position=(0, 0, 8 * number), orientation=AXIAL)
    for number in range(101, 201):
        write(folder, number, position=(0, 0, 0), orientation=AXIAL)
        path = folder / f"{number}.dcm"
        path.write_bytes(path.read_bytes()[:-20])
    series = read_series(folder)
    assert order(series.stacks[0]) == list(range(1, 41))
    n_tried = len({name for name in decoded if len(name) > 6})
    assert n_tried < 30
    assert any(line.startswith(f"{100 - n_tried} slices left out") for line in series.problems)


# Echoes, parts, times


def pair(folder, one, other, n=8, names=(0, 20)):
    """Two kinds of each slice, told apart by their tags ``one`` and ``other``; numbers interleaved."""
    for index in range(n):
        for offset, tags in zip(names, (one, other), strict=True):
            write(folder, 1 + index + offset, position=(4 * index, 0, 0), orientation=SAGITTAL, extra=tags)


@pytest.mark.parametrize(
    ("one", "other", "kept"),
    [
        ([echo(15)], [echo(90)], "first"),
        ([echo(90)], [echo(15)], "second"),
        ([whole_number(ECHO_NUMBER, 2)], [whole_number(ECHO_NUMBER, 1)], "second"),
        ([image_type(P)], [image_type(M)], "second"),
        ([image_type(M), echo(90)], [image_type(P), echo(15)], "first"),
        ([image_type("DERIVED\\PRIMARY\\M")], [image_type("ORIGINAL\\PRIMARY\\M")], "second"),
        ([whole_number(ACQUISITION, 2)], [whole_number(ACQUISITION, 1)], "second"),
        ([whole_number(TEMPORAL, 1)], [whole_number(TEMPORAL, 2)], "first"),
        ([echo(15)], [], "first"),
        ([image_type("ORIGINAL\\PRIMARY\\IMAGINARY")], [image_type("ORIGINAL\\PRIMARY\\REAL")], "second"),
        ([image_type("ORIGINAL\\PRIMARY\\R\\ND")], [image_type("ORIGINAL\\PRIMARY\\I\\ND")], "first"),
        ([image_type("DERIVED\\PRIMARY\\FAT")], [image_type("DERIVED\\PRIMARY\\WATER")], "second"),
        ([image_type("DERIVED\\PRIMARY\\OUT_PHASE")], [image_type("DERIVED\\PRIMARY\\IN_PHASE")], "second"),
        (
            [image_type("DERIVED\\PRIMARY\\DIFFUSION\\ADC")],
            [image_type("DERIVED\\PRIMARY\\DIFFUSION\\TRACEW")],
            "second",
        ),
        ([component("PHASE")], [component("MAGNITUDE")], "second"),
        ([repetition(4000)], [repetition(600)], "second"),
        ([series_uid("1.2.4")], [series_uid("1.2.3")], "second"),
    ],
)
def test_of_two_kinds_at_the_same_places_one_makes_the_volume(folder, one, other, kept):
    pair(folder, one, other)
    series = read_series(folder)
    (stack,) = series.stacks
    assert order(stack) == list(range(1, 9) if kept == "first" else range(21, 29))
    (line,) = series.problems
    assert line.startswith("8 slices left out, at the same places as others: 8 of ")
    assert not stack.is_geometry_guessed


def test_t2_takes_the_longest_echo_where_asked(folder):
    pair(folder, [echo(15)], [echo(90)])
    assert order(read_series(folder, prefers_long_echo=True).stacks[0]) == list(range(21, 29))


def test_the_kind_that_covers_most_places_is_chosen(folder):
    pair(folder, [echo(15)], [echo(90)])
    (folder / "3.dcm").unlink()
    assert order(read_series(folder).stacks[0]) == list(range(21, 29))


def test_magnitude_of_the_first_echo_is_chosen_of_four_kinds(folder):
    number = 0
    for time in (60, 20):
        for kind in (P, M):
            for index in range(5):
                number += 1
                tags = [image_type(kind), echo(time)]
                write(folder, number, position=(4 * index, 0, 0), orientation=SAGITTAL, extra=tags)
    series = read_series(folder)
    assert order(series.stacks[0]) == [16, 17, 18, 19, 20]
    (line,) = series.problems
    assert "10 of ImageType ORIGINAL\\PRIMARY\\P\\ND" in line
    assert "5 of EchoTime 60" in line


def test_acquisitions_that_share_the_places_between_them_stay_together(folder):
    for number in range(1, 13):
        tags = [whole_number(ACQUISITION, 1 + number % 2), echo(10 + number % 2)]
        write(folder, number, position=(0, 0, 4 * number), orientation=AXIAL, extra=tags)
    write(folder, 20, position=(0, 0, 8), orientation=AXIAL, extra=[whole_number(ACQUISITION, 1), echo(10)])
    series = read_series(folder)
    assert order(series.stacks[0]) == list(range(1, 13))
    assert series.problems == ["1 slice left out, at the same place as others: 20.dcm (as 2.dcm)"]


def test_attributes_that_differ_at_different_places_split_nothing(folder):
    for number in range(1, 9):
        tags = [echo(10 * number), image_type(M if number % 2 else P), whole_number(ACQUISITION, number)]
        write(folder, number, position=(0, 0, 4 * number), orientation=AXIAL, extra=tags)
    series = read_series(folder)
    assert order(series.stacks[0]) == list(range(1, 9))
    assert series.problems == []


def test_ninety_doubles_are_one_line(folder):
    for number in range(1, 181):
        write(folder, number, position=(0, 0, 3 * (number % 90)), orientation=AXIAL, shape=(4, 4))
    (line,) = read_series(folder).problems
    assert line.startswith("90 slices left out")
    assert len(line) < 300


def test_control_characters_of_an_image_type_stay_out_of_the_line(folder):
    pair(folder, [image_type("ORIGINAL\\PRIMARY\\\x1b[31mDoe")], [image_type(M)])
    (line,) = read_series(folder).problems
    assert "\x1b" not in line


# Copies


def test_copies_are_named_by_their_files(folder):
    for number in range(1, 6):
        write(folder, number, position=(4.0 * number, 0, 0), orientation=SAGITTAL)
    shutil.copy(folder / "3.dcm", folder / "3(1).dcm")
    shutil.copy(folder / "4.dcm", folder / "4 - Copy.dcm")
    shutil.copy(folder / "5.dcm", folder / "100.dcm")
    series = read_series(folder)
    assert order(series.stacks[0]) == [1, 2, 3, 4, 5]
    (line,) = series.problems
    for name in ("3(1).dcm (of 3.dcm)", "4 - Copy.dcm (of 4.dcm)", "100.dcm (of 5.dcm)"):
        assert name in line


def test_copies_of_one_slice_are_no_stack(folder):
    write(folder, 1, position=(0, 0, 0), orientation=SAGITTAL)
    for name in ("1(1).dcm", "1(2).dcm", "1(3).dcm"):
        shutil.copy(folder / "1.dcm", folder / name)
    series = read_series(folder)
    assert series.stacks[0].volume.shape[0] == 1
