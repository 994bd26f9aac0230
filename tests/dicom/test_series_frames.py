"""Multi-frame files in a series: every frame is a slice with its own geometry, and the record names it."""

import numpy as np
import pytest

from dicom_writer import DEFLATED, EXPLICIT, native_file
from frames_writer import write_frames
from lumbar.dicom import read_series
from lumbar.dicom.header import Header
from lumbar.errors import DicomError
from series_writer import SAGITTAL, write


def numbered(n, shape=(10, 8)):
    """Frames whose every pixel is their frame number."""
    return np.arange(1, n + 1, dtype=np.uint16)[:, None, None] * np.ones(shape, np.uint16)


@pytest.mark.parametrize("is_rle", [False, True])
def test_every_frame_is_a_slice_in_its_place(tmp_path, is_rle):
    places = [8.0, 0.0, 4.0, 16.0, 12.0]
    write_frames(tmp_path / "9" / "3.dcm", numbered(5), [(x, -50, 60) for x in places], is_rle=is_rle)
    series = read_series(tmp_path / "9")
    (stack,) = series.stacks
    assert stack.frame_numbers == [2, 3, 1, 5, 4]
    assert [stack.frame(index) for index in range(5)] == [2, 3, 1, 5, 4]
    assert np.array_equal(stack.volume[:, 0, 0], [2, 3, 1, 5, 4])
    assert stack.instance_numbers == [3] * 5
    assert np.allclose(stack.origins_mm[:, 0], [0, 4, 8, 12, 16])
    assert stack.orientation == "sagittal"
    assert stack.spacing_mm == pytest.approx((0.5, 0.7))
    assert not stack.is_geometry_guessed
    assert series.problems == []


def test_frames_have_their_own_rescaling(tmp_path):
    write_frames(tmp_path / "9" / "1.dcm", numbered(3), [(x, 0, 0) for x in (0, 4, 8)], slopes=[1, 0.5, 10])
    (stack,) = read_series(tmp_path / "9").stacks
    assert np.array_equal(stack.volume[:, 0, 0], [1, 1, 30])


def test_echoes_within_one_file_are_not_mixed(tmp_path):
    positions = [(4 * (k // 2), 0, 0) for k in range(10)]
    write_frames(tmp_path / "9" / "1.dcm", numbered(10), positions, echoes=[20, 90] * 5)
    series = read_series(tmp_path / "9")
    assert series.stacks[0].frame_numbers == [1, 3, 5, 7, 9]
    (line,) = series.problems
    assert "5 of EchoTime 90" in line
    assert read_series(tmp_path / "9", prefers_long_echo=True).stacks[0].frame_numbers == [2, 4, 6, 8, 10]


def test_magnitude_and_phase_within_one_file_are_not_mixed(tmp_path):
    positions = [(4 * (index // 2), 0, 0) for index in range(8)]
    frames = np.stack([np.full((6, 5), index, np.uint16) for index in range(8)])
    write_frames(tmp_path / "1.dcm", frames, positions, components=["PHASE", "MAGNITUDE"] * 4)
    series = read_series(tmp_path)
    (stack,) = series.stacks
    assert stack.volume[:, 0, 0].tolist() == [1, 3, 5, 7]
    (line,) = series.problems
    assert line.endswith("4 of ComplexImageComponent PHASE (kept: ComplexImageComponent MAGNITUDE)")


def test_frames_and_files_of_one_slice_make_one_stack(tmp_path):
    write_frames(tmp_path / "9" / "1.dcm", numbered(2), [(0, 0, 0), (4, 0, 0)])
    write(tmp_path / "9", 7, position=(8, 0, 0), orientation=SAGITTAL, shape=(10, 8))
    (stack,) = read_series(tmp_path / "9").stacks
    assert stack.instance_numbers == [1, 1, 7]
    assert [stack.frame(index) for index in range(3)] == [1, 2, None]


def test_frames_without_geometry_follow_their_order(tmp_path):
    (tmp_path / "9").mkdir()
    (tmp_path / "9" / "1.dcm").write_bytes(native_file(numbered(6), EXPLICIT, frames=6))
    series = read_series(tmp_path / "9", fallback_orientation="axial")
    (stack,) = series.stacks
    assert stack.frame_numbers == [1, 2, 3, 4, 5, 6]
    assert np.array_equal(stack.volume[:, 0, 0], stack.frame_numbers)
    assert stack.orientation == "axial"
    assert stack.is_geometry_guessed
    assert len(series.guesses) == 3


def test_a_damaged_file_of_many_frames_is_named_once(tmp_path):
    write_frames(tmp_path / "9" / "1.dcm", numbered(5), [(x, 0, 0) for x in range(0, 20, 4)], is_rle=True)
    path = tmp_path / "9" / "1.dcm"
    path.write_bytes(path.read_bytes()[:-60])
    write(tmp_path / "9", 2, position=(40, 0, 0), orientation=SAGITTAL)
    series = read_series(tmp_path / "9")
    assert [stack.instance_numbers for stack in series.stacks] == [[2]]
    assert len(series.problems) == 1


@pytest.mark.parametrize("claimed", [6, 2_000_000_000])
def test_more_frames_than_a_file_can_hold_are_refused_before_any_is_made(tmp_path, monkeypatch, claimed):
    monkeypatch.setattr(Header, "of_frame", lambda *_: pytest.fail("a frame's header was made"))
    (tmp_path / "9").mkdir()
    (tmp_path / "9" / "1.dcm").write_bytes(native_file(numbered(2, (100, 100)), EXPLICIT, frames=claimed))
    with pytest.raises(DicomError, match=f"found NumberOfFrames {claimed} in .* bytes, expected at most 2"):
        read_series(tmp_path / "9")


def test_frames_of_a_deflated_file_are_slices(tmp_path):
    (tmp_path / "9").mkdir()
    frames = np.zeros((6, 50, 40), np.uint16) + np.arange(6, dtype=np.uint16)[:, None, None]
    (tmp_path / "9" / "1.dcm").write_bytes(native_file(frames, DEFLATED, frames=6))
    (stack,) = read_series(tmp_path / "9").stacks
    assert np.array_equal(stack.volume, frames)


def test_frames_without_a_position_among_others_are_named(tmp_path):
    write_frames(tmp_path / "1.dcm", numbered(5), [(x, 0, 0) for x in range(0, 12, 4)])
    series = read_series(tmp_path)
    assert len(series.stacks[0].volume) == 3
    (line,) = series.problems
    assert line.startswith("slices [1.dcm frame 4, 1.dcm frame 5] without ImagePositionPatient left out")
