import threading
import time
import tracemalloc

import imagecodecs
import numpy as np
import pytest

from dicom_writer import EXPLICIT, RLE, element, encapsulated_file, native_file, noisy_slice, text
from lumbar.dicom import Stack, read_series, read_slice
from lumbar.dicom.assembly import images as images_module
from lumbar.dicom.inspect import describe
from lumbar.dicom.stack import plane_normal
from lumbar.errors import DicomError
from rle_encoder import encode
from series_writer import AXIAL, CORONAL, SAGITTAL, ds, order, tilted, write


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "1234"


@pytest.mark.parametrize("numbers", [[1, 2, 3, 4], [4, 3, 2, 1], [7, 5049, 2, 30]])
def test_slices_are_ordered_by_place_whatever_their_numbers(folder, numbers):
    for index, number in enumerate(numbers):
        write(folder, number, position=(4.5 * index - 9, 20, 30), orientation=SAGITTAL)
    series = read_series(folder)
    (stack,) = series.stacks
    assert order(stack) == numbers
    assert series.series_id == stack.series_id == "1234"
    assert series.problems == []
    assert np.allclose(stack.positions_mm, [-9, -4.5, 0, 4.5])
    assert stack.orientation == "sagittal"
    assert stack.spacing_mm == (0.5, 0.7)
    assert np.allclose(stack.row_mm, [0, 0, -0.5])
    assert np.allclose(stack.column_mm, [0, 0.7, 0])
    assert stack.volume.dtype == np.float32
    assert stack.volume.shape == (4, 12, 10)


def test_a_gap_stays_true(folder):
    for number, z in enumerate([0, 4, 8, 32, 36], start=1):
        write(folder, number, position=(1, 2, z), orientation=AXIAL)
    (stack,) = read_series(folder).stacks
    assert np.allclose(stack.positions_mm, [0, 4, 8, 32, 36])
    assert np.allclose(stack.to_patient(2.5, 0, 0), [1, 2, 20])
    assert np.allclose(stack.to_voxel([1, 2, 20])[0], 2.5)
    assert np.allclose(stack.to_voxel([[1, 2, 40], [1, 2, -2]])[0], [5, -0.5])


def test_angled_blocks_become_stacks_and_noise_does_not(folder):
    number = 0
    for degrees in (0, -4, -9.5):
        for index in range(4):
            number += 1
            normal = plane_normal(*np.reshape(tilted(degrees), (2, 3)))
            position = 100 * degrees * np.array([0, 0, 1]) + 4 * index * normal
            noise = np.random.default_rng(number).normal(0, 0.02)
            write(folder, number, position=position, orientation=tilted(degrees + noise))
    stacks = read_series(folder).stacks
    assert [len(stack.instance_numbers) for stack in stacks] == [4, 4, 4]
    assert all(stack.orientation == "axial" for stack in stacks)
    angles = [np.degrees(np.arcsin(-stack.normal[1])) for stack in stacks]
    assert np.allclose(sorted(angles), [-9.5, -4, 0], atol=0.1)


def test_the_order_of_blocks_is_the_largest_first(folder):
    write(folder, 1, position=(0, 0, 0), orientation=CORONAL)
    for number in (2, 3):
        write(folder, number, position=(0, 0, number), orientation=AXIAL)
    assert [stack.orientation for stack in read_series(folder).stacks] == ["axial", "coronal"]


def test_mixed_sizes_and_spacings_become_stacks(folder):
    for number in range(1, 4):
        write(folder, number, position=(0, 0, number), orientation=AXIAL)
        write(folder, number + 10, position=(0, 0, number), orientation=AXIAL, shape=(8, 16))
        write(folder, number + 20, position=(0, 0, number), orientation=AXIAL, spacing=(0.6, 0.6))
    stacks = read_series(folder).stacks
    assert sorted(stack.instance_numbers for stack in stacks) == [[1, 2, 3], [11, 12, 13], [21, 22, 23]]
    assert sorted(stack.volume.shape for stack in stacks) == [(3, 8, 16), (3, 12, 10), (3, 12, 10)]


def test_slices_at_one_place_are_kept_once(folder):
    for number, z in [(1, 0), (2, 4), (3, 4.001), (4, 8), (5, 0)]:
        write(folder, number, position=(0, 0, z), orientation=AXIAL)
    series = read_series(folder)
    assert order(series.stacks[0]) == [1, 2, 4]
    assert series.problems == [
        "2 slices left out, at the same place as others: 3.dcm (as 2.dcm), 5.dcm (as 1.dcm)",
    ]


def test_rescaling_and_inversion(folder):
    rescale = ((0x00281052, "DS", b"-10 "), (0x00281053, "DS", b"2.5 "))
    for number in (1, 2):
        write(folder, number, position=(0, 0, number), orientation=AXIAL, extra=rescale, photometric="MONOCHROME1")
    (stack,) = read_series(folder).stacks
    assert stack.is_inverted
    assert np.array_equal(stack.volume[:, 3, 3], [-7.5, -5])


def test_a_slope_without_sense_is_named_and_not_applied(folder):
    write(folder, 3, position=(0, 0, 1), orientation=AXIAL, extra=((0x00281053, "DS", b"1e300 "),))
    series = read_series(folder)
    assert series.stacks[0].volume[0, 0, 0] == 3
    assert "not rescaled" in series.problems[0]


@pytest.mark.parametrize(
    ("orientation", "normal"),
    [("sagittal", (1, 0, 0)), ("axial", (0, 0, 1)), ("coronal", (0, 1, 0))],
)
def test_without_geometry_slices_follow_their_numbers(folder, orientation, normal):
    for number in (10, 9, 2):
        write(folder, number, spacing=None, extra=((0x00180088, "DS", b"3.5 "),))
    series = read_series(folder, fallback_orientation=orientation)
    (stack,) = series.stacks
    assert order(stack) == [2, 9, 10]
    assert stack.orientation == orientation
    assert np.allclose(stack.normal, normal)
    assert np.allclose(np.diff(stack.positions_mm), 3.5)
    assert stack.spacing_mm == (1.0, 1.0)
    assert len(series.problems) == 3
    check_round_trip(stack)


def test_orientation_alone_is_believed_without_positions(folder):
    for number in (1, 2):
        write(folder, number, orientation=tilted(20))
    (stack,) = read_series(folder).stacks
    assert np.allclose(stack.normal, plane_normal(*np.reshape(tilted(20), (2, 3))))


def test_slices_without_a_position_among_others_are_left_out(folder):
    for number in (1, 2):
        write(folder, number, position=(0, 0, number), orientation=AXIAL)
    write(folder, 7, orientation=AXIAL)
    series = read_series(folder)
    assert order(series.stacks[0]) == [1, 2]
    assert series.problems == ["slices [7] without ImagePositionPatient left out, the other 2 have it"]


def test_an_orientation_that_is_none_counts_as_absent(folder):
    for number in (1, 2):
        write(folder, number, position=(0, 0, number), orientation=(1, 0, 0, 1, 0, 0))
    series = read_series(folder, fallback_orientation="axial")
    assert series.stacks[0].orientation == "axial"
    assert "2 of 2 slices without ImageOrientationPatient, taken as axial" in series.problems


def test_unreadable_slices_are_named_and_left_out(folder):
    for number in (1, 2, 3):
        write(folder, number, position=(0, 0, number), orientation=AXIAL)
    (folder / "2.dcm").write_text("This is no image, whatever its name says.")
    (folder / "4.dcm").write_bytes((folder / "3.dcm").read_bytes()[:-50])
    (folder / "5.dcm").write_bytes(native_file(np.zeros((4, 4, 3), np.uint8)))
    (folder / "notes.txt").write_text("not looked at")
    series = read_series(folder)
    assert order(series.stacks[0]) == [1, 3]
    assert len(series.problems) == 3
    assert all("found" in problem and "expected" in problem for problem in series.problems)


def test_a_slice_stands_in_for_a_damaged_one_at_its_place(folder):
    for number, z in [(1, 0), (2, 4), (3, 4), (4, 8), (5, 8)]:
        write(folder, number, position=(0, 0, z), orientation=AXIAL)
    for number in (2, 5):
        path = folder / f"{number}.dcm"
        path.write_bytes(path.read_bytes()[:-50])
    series = read_series(folder)
    assert order(series.stacks[0]) == [1, 3, 4]
    assert [problem.split(": ")[0] for problem in series.problems] == [f"{folder}/2.dcm", f"{folder}/5.dcm"]


@pytest.mark.parametrize("claimed", [(3000, 3000), (65535, 65535)])
def test_headers_that_claim_more_than_their_files_hold_cost_nothing(folder, claimed):
    write(folder, 1, position=(0, 0, 1), orientation=AXIAL)
    good = (folder / "1.dcm").read_bytes()
    sizes = b"".join(element(0x00280010 + axis, "US", size.to_bytes(2, "little")) for axis, size in enumerate(claimed))
    start = good.index(b"\x28\x00\x10\x00")
    for number in range(2, 40):
        (folder / f"{number}.dcm").write_bytes(good[:start] + sizes + good[start + len(sizes) :])
    tracemalloc.start()
    series = read_series(folder)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert order(series.stacks[0]) == [1]
    assert len(series.problems) == 38
    assert peak < 20_000_000


def test_pixels_that_compress_very_well_are_read_all_the_same(folder):
    folder.mkdir()
    for number in (1, 2, 3):
        pixels = np.full((300, 200), 5, np.uint16)
        data = imagecodecs.jpegls_encode(pixels)
        tags = [(0x00200032, "DS", ds(0, 0, number)), (0x00200037, "DS", ds(*AXIAL))]
        content = encapsulated_file([data], pixels.shape, "1.2.840.10008.1.2.4.80", extra=tags)
        assert len(content) * 64 < 4 * pixels.size
        (folder / f"{number}.dcm").write_bytes(content)
    (stack,) = read_series(folder).stacks
    assert np.all(stack.volume == 5)
    assert stack.instance_numbers == [1, 2, 3]


def test_a_header_longer_than_the_part_read_first(folder):
    for number in (1, 2):
        extra = ((0x00091001, "OB", bytes(40_000)),)
        write(folder, number, position=(0, 0, number), orientation=AXIAL, extra=extra)
    assert order(read_series(folder).stacks[0]) == [1, 2]


def test_slow_files_are_opened_by_several_threads(folder, monkeypatch):
    for number in range(1, 9):
        write(folder, number, position=(0, 0, number), orientation=AXIAL)
    threads, read = set(), images_module.read_file

    def slow(path, limit=None):
        time.sleep(0.02)
        threads.add(threading.get_ident())
        return read(path, limit)

    monkeypatch.setattr(images_module, "read_file", slow)
    assert order(read_series(folder, workers=3).stacks[0]) == list(range(1, 9))
    assert len(threads) == 3


def test_names_that_are_no_numbers_take_the_number_of_the_tag(folder):
    write(folder, 5, position=(0, 0, 1), orientation=AXIAL)
    (folder / "5.dcm").rename(folder / "IM5.DCM")
    assert read_series(folder).stacks[0].instance_numbers == [5]


def test_series_without_slices_are_refused(tmp_path):
    with pytest.raises(DicomError, match=r"absent: found No such file .* expected"):
        read_series(tmp_path / "absent")
    with pytest.raises(DicomError, match=r"found no \*\.dcm file, expected"):
        read_series(tmp_path)
    (tmp_path / "1.dcm").write_bytes(b"")
    with pytest.raises(DicomError, match="found no readable slice in 1 files"):
        read_series(tmp_path)


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_threads_change_nothing(folder, workers):
    folder.mkdir()
    frames = [noisy_slice((24, 20), seed=seed) for seed in range(6)]
    for number, pixels in enumerate(frames):
        tags = [(0x00200032, "DS", ds(0, 0, number)), (0x00200037, "DS", ds(*AXIAL))]
        data = encapsulated_file([encode(pixels)], pixels.shape, RLE, stored=12, extra=tags)
        (folder / f"{number}.dcm").write_bytes(data)
    (stack,) = read_series(folder, workers=workers).stacks
    assert np.array_equal(stack.volume, frames)


def check_round_trip(stack):
    rng = np.random.default_rng(0)
    n_slices, rows, columns = stack.volume.shape
    voxels = rng.uniform(-3, [n_slices + 3, rows + 3, columns + 3], (40, 3))
    points = stack.to_patient(*voxels.T)
    assert points.shape == (40, 3)
    assert np.allclose(np.stack(stack.to_voxel(points), axis=-1), voxels, atol=1e-9)
    grid = stack.to_patient(np.zeros((2, 1)), np.zeros(3), 1.5)
    assert grid.shape == (2, 3, 3)


@pytest.mark.parametrize("n_slices", [1, 2, 9])
def test_voxels_and_patient_coordinates_are_each_others_inverse(n_slices):
    """Oblique, with uneven steps, and with origins that also move within the plane."""
    row, column = np.reshape(tilted(17, roll=8), (2, 3))
    normal = plane_normal(row, column)
    rng = np.random.default_rng(n_slices)
    places = np.cumsum(rng.uniform(1, 9, n_slices))
    origins = places[:, None] * normal + rng.normal(0, 5, (n_slices, 1)) * row + [10, -40, 3]
    stack = Stack("1", np.zeros((n_slices, 6, 5)), origins, 0.4 * column, 0.9 * row, list(range(n_slices)))
    check_round_trip(stack)
    assert np.allclose(stack.to_patient(0, 2, 3), origins[0] + 0.8 * column + 2.7 * row)
    assert stack.spacing_mm == pytest.approx((0.4, 0.9))


@pytest.mark.parametrize("flip", [1, -1])
def test_the_normal_points_to_the_larger_coordinate(flip):
    stack = Stack("1", np.zeros((1, 2, 2)), np.zeros((1, 3)), np.array([0, 0.1, -flip]), np.array([0, flip, 0.1]), [1])
    assert stack.normal[0] > 0.9


def test_a_file_a_series_and_a_study_are_described(tmp_path):
    study = tmp_path / "77"
    names = [(0x00100010, "PN", text("Doe^Jane")), (0x00100020, "LO", text("ID4711")), (0x00100030, "DA", b"19700101")]
    for number in (1, 2):
        write(study / "1", number, position=(0, 0, -number), orientation=AXIAL, extra=names)
        write(study / "2", number, extra=names)
    (study / "3").mkdir()
    one = describe(study / "1" / "1.dcm")
    assert "Explicit VR Little Endian" in one
    assert "12 x 10, 16 of 16 bits, unsigned, MONOCHROME2" in one
    series = describe(study / "1")
    assert "axial, 2 x 12 x 10, 0.500 x 0.700 mm" in series
    assert "instance numbers reversed" in series
    whole = describe(study)
    assert "study 77: 3 folders" in whole
    assert "without ImagePositionPatient" in whole
    assert "found no *.dcm file" in whole
    for output in (one, series, whole):
        assert not any(secret in output for secret in ("Doe", "Jane", "4711", "1970"))
        assert "None" not in output


def test_what_is_nothing_is_not_described(tmp_path):
    with pytest.raises(DicomError, match="found neither"):
        describe(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(DicomError, match="found no readable series"):
        describe(tmp_path)
    with pytest.raises(DicomError, match="absent: no such file or folder"):
        describe(tmp_path / "absent")


@pytest.mark.parametrize(
    "data",
    [native_file(np.zeros((40, 40), np.uint16), EXPLICIT)[:-2], encapsulated_file([b"12345678"], (9, 9), RLE)],
)
def test_a_damaged_file_is_described_as_far_as_it_goes(tmp_path, data):
    path = tmp_path / "1.dcm"
    path.write_bytes(data)
    assert "problem" in describe(path)
    with pytest.raises(DicomError, match=r"1\.dcm: found .* expected"):
        read_slice(path)
