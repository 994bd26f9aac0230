"""One DICOM file per slice: what each header option writes, and that bad places end in one line."""

import sys

import numpy as np
import pydicom
import pytest

from lumbar.errors import CohortError
from lumbar_phantom import dicom_files
from lumbar_phantom.dicom_files import SliceFile, optional_encoder, write_slice_file
from lumbar_phantom.study import grain_tile, header_options, study_number


def content(pixels=None, **options):
    pixels = np.arange(20 * 12, dtype=np.uint16).reshape(20, 12) * 17 % 4096 if pixels is None else pixels
    return SliceFile(
        pixels=pixels, origin=np.array([-1 / 3, 1e-7, 123.456789012]), row_direction=np.array([0.0, 1.0, 0.0]),
        column_direction=np.array([0.0, 0.0, -1.0]), pixel_spacing=(0.5, 0.75), slice_thickness=4.0,
        spacing_between_slices=4.4, instance_number=9, study_uid="11.1", series_uid="22.1.1", description="Sagittal T1",
        options=options,
    )  # fmt: skip


def written(tmp_path, **options):
    write_slice_file(tmp_path / "9.dcm", content(**options))
    return pydicom.dcmread(tmp_path / "9.dcm")


def test_geometry_and_identity_are_written_as_given(tmp_path):
    data = written(tmp_path)
    assert data.ImagePositionPatient == pytest.approx([-1 / 3, 0, 123.456789], abs=1e-6)
    assert data.ImageOrientationPatient == [0, 1, 0, 0, 0, -1]
    assert data.PixelSpacing == [0.5, 0.75]
    assert (data.SliceThickness, data.SpacingBetweenSlices) == (4.0, 4.4)
    assert pytest.approx(1 / 3, abs=1e-6) == data.SliceLocation  # along the normal, which points to the right here
    assert (data.StudyInstanceUID, data.SeriesInstanceUID, data.SOPInstanceUID) == ("11.1", "22.1.1", "22.1.1.9")
    assert (data.InstanceNumber, data.SeriesDescription, data.PatientPosition) == (9, "Sagittal T1", "HFS")
    np.testing.assert_array_equal(data.pixel_array, content().pixels)


def test_decimal_strings_are_at_most_sixteen_characters(tmp_path):
    raw = written(tmp_path)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceLocation"):
        value = raw[keyword].value
        texts = [str(v) for v in value] if raw[keyword].VM > 1 else [str(value)]
        assert all(len(text) <= 16 for text in texts), keyword


@pytest.mark.parametrize(
    ("options", "present", "absent"),
    [
        ({}, ["WindowCenter", "SliceThickness"], ["RescaleIntercept"]),
        ({"rescale": -1024}, ["RescaleIntercept", "RescaleSlope"], []),
        ({"window": "none"}, [], ["WindowCenter", "WindowWidth"]),
        (
            {"missing_optional_tags": True},
            ["PixelSpacing"],
            ["SliceThickness", "SpacingBetweenSlices", "SliceLocation"],
        ),
    ],
)
def test_options_add_and_leave_out_tags(tmp_path, options, present, absent):
    data = written(tmp_path, **options)
    assert all(keyword in data for keyword in present)
    assert not any(keyword in data for keyword in absent)


def test_windows_cover_the_bright_pixels(tmp_path):
    single = written(tmp_path)
    high = np.percentile(content().pixels[::4, ::4], 99)
    assert float(single.WindowCenter) + float(single.WindowWidth) / 2 == pytest.approx(high, rel=0.02)
    assert written(tmp_path, window="multi")["WindowWidth"].VM == 2


def test_monochrome1_is_named_in_the_header(tmp_path):
    assert written(tmp_path, monochrome1=True).PhotometricInterpretation == "MONOCHROME1"


@pytest.mark.parametrize("syntax", ["rle", "explicit", "implicit", "deflated", "big"])
def test_every_syntax_without_a_helper_gives_the_same_pixels(tmp_path, syntax):
    data = written(tmp_path, syntax=syntax)
    assert data.file_meta.TransferSyntaxUID == dicom_files.SYNTAXES[syntax]
    np.testing.assert_array_equal(data.pixel_array, content().pixels)


def test_a_file_that_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path):
    (tmp_path / "folder").write_text("in the way")
    with pytest.raises(CohortError, match="folder"):
        write_slice_file(tmp_path / "folder" / "1.dcm", content())
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("syntax", list(dicom_files.OPTIONAL))
def test_an_encoder_that_is_not_installed_is_named(monkeypatch, syntax):
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(CohortError, match=f"--syntax {syntax}: needs the package imagecodecs"):
        optional_encoder(syntax)


def test_pitfalls_become_header_options():
    def options(*pitfalls):
        return header_options(np.random.default_rng(1), frozenset(pitfalls))

    assert options() == {}
    assert options("missing_optional_tags", "monochrome1") == {"missing_optional_tags": True, "monochrome1": True}
    assert options("missing_window", "multi_window") == {"window": "none"}
    assert options("multi_window") == {"window": "multi"}
    assert options("rescale")["rescale"] in (0, -1024, 10)
    assert options("other_syntax")["syntax"] in ("explicit", "implicit", "deflated")


def test_study_ids_are_positive_and_depend_on_the_seed():
    ids = {study_number(seed, index) for seed in range(20) for index in range(50)}
    assert len(ids) > 990
    assert min(ids) >= 100_000


def test_the_texture_tile_has_mean_0_and_deviation_1_and_no_seam():
    tile = grain_tile(np.random.default_rng(0))
    assert tile.shape == (64, 64, 64)
    assert abs(tile.mean()) < 0.01
    assert tile.std() == pytest.approx(1, abs=1e-3)
    seam, inside = np.abs(tile[0] - tile[-1]).mean(), np.abs(tile[1] - tile[0]).mean()
    assert seam == pytest.approx(inside, rel=0.1)
