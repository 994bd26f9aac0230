from io import BytesIO

import imagecodecs
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from codec_frames import decode_or_refuse, frame_bytes, make_header, noisy_image
from lumbar.dicom.codecs import opencv
from lumbar.dicom.codecs.frames import split_frames
from lumbar.dicom.header import read_file
from lumbar.errors import DicomError

BASELINE, JPEG2000_LOSSLESS, JPEG2000 = opencv.TRANSFER_SYNTAXES


def decode(data, shape, syntax=JPEG2000_LOSSLESS, **options):
    return opencv.decode_frame(frame_bytes(data), make_header(shape, syntax=syntax, **options))


def encode_j2k(image, bits, **options):
    return imagecodecs.jpeg2k_encode(image, level=0, codecformat="j2k", bitspersample=bits, reversible=True, **options)


def full_range(shape, bits, is_signed, seed=0):
    low = -(2 ** (bits - 1)) if is_signed else 0
    values = np.random.default_rng(seed).integers(low, low + 2**bits, shape)
    values.flat[:2] = low, low + 2**bits - 1
    return values.astype(f"{'i' if is_signed else 'u'}{1 if bits <= 8 else 2}")


@pytest.mark.parametrize("bits", [8, 9, 10, 12, 13, 15, 16])
@pytest.mark.parametrize("is_signed", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (33, 50)])
def test_lossless_jpeg2000_of_full_range_noise(bits, is_signed, shape):
    image = full_range((33, 50), bits, is_signed)[: shape[0], : shape[1]]
    data = encode_j2k(np.ascontiguousarray(image), bits)
    pixels = decode(data, shape, allocated=8 * image.itemsize, stored=bits, signed=int(is_signed))
    assert pixels.dtype == image.dtype
    assert np.array_equal(pixels, image)


@pytest.mark.parametrize("is_signed", [False, True])
def test_eight_bits_in_sixteen_allocated(is_signed):
    image = full_range((20, 30), 8, is_signed)
    pixels = decode(encode_j2k(image, 8), image.shape, stored=8, signed=int(is_signed))
    assert pixels.dtype == ("i2" if is_signed else "u2")
    assert np.array_equal(pixels, image)


@pytest.mark.parametrize("bits", [12, 16])
def test_the_data_set_is_believed_where_the_signs_differ(bits):
    unsigned = full_range((20, 30), bits, False)
    signed = unsigned.astype(int) - (unsigned >= 2 ** (bits - 1)) * 2**bits
    assert np.array_equal(decode(encode_j2k(unsigned, bits), unsigned.shape, stored=bits, signed=1), signed)
    data = encode_j2k(signed.astype(np.int16), bits)
    assert np.array_equal(decode(data, unsigned.shape, stored=bits), unsigned)


def test_lossy_jpeg2000_as_openjpeg_decodes_it():
    image = noisy_image((120, 90), 12)
    data = imagecodecs.jpeg2k_encode(image, level=55, codecformat="j2k", bitspersample=12, reversible=False)
    pixels = decode(data, image.shape, JPEG2000, stored=12)
    assert np.array_equal(pixels, imagecodecs.jpeg2k_decode(data))
    assert not np.array_equal(pixels, image)


@pytest.mark.parametrize("mct", [True, False])
def test_colour_comes_as_rgb_with_and_without_a_component_transform(mct):
    image = np.random.default_rng(1).integers(0, 256, (21, 34, 3)).astype(np.uint8)
    data = encode_j2k(image, 8, mct=mct)
    for photometric in ("RGB", "YBR_RCT"):
        assert np.array_equal(decode(data, image.shape, allocated=8, photometric=photometric), image)
    expected = pydicom.pixels.convert_color_space(image, "YBR_FULL", "RGB")
    assert np.array_equal(decode(data, image.shape, allocated=8, photometric="YBR_FULL"), expected)


def test_tiles_and_a_jp2_file_around_the_codestream():
    image = noisy_image((100, 130), 8)
    file = BytesIO()
    Image.fromarray(image).save(file, "JPEG2000", tile_size=(64, 64), no_jp2=True)
    tiled = file.getvalue()
    assert int.from_bytes(tiled[24:28], "big") == 64
    boxed = imagecodecs.jpeg2k_encode(image, level=0, codecformat="jp2", reversible=True)
    assert b"jp2c" in boxed
    for data in (tiled, boxed, tiled + b"\0"):
        assert np.array_equal(decode(data, image.shape, allocated=8), image)


def test_nothing_is_printed_about_colour_spaces(capfd):
    image = full_range((16, 16), 12, True)
    decode(encode_j2k(image, 12), image.shape, stored=12, signed=1)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "name",
    [
        "693_J2KI.dcm",
        "GDCMJ2K_TextGBR.dcm",
        "J2K_pixelrep_mismatch.dcm",
        "JPEG2000.dcm",
        "MR_small_jp2klossless.dcm",
        "SC_rgb_gdcm_KY.dcm",
        "examples_jpeg2k.dcm",
        "SC_jpeg_no_color_transform.dcm",
        "SC_jpeg_no_color_transform_2.dcm",
        "SC_rgb_dcmtk_+eb+cr.dcm",
        "SC_rgb_dcmtk_+eb+cy+n1.dcm",
        "SC_rgb_dcmtk_+eb+cy+n2.dcm",
        "SC_rgb_dcmtk_+eb+cy+np.dcm",
        "SC_rgb_dcmtk_+eb+cy+s2.dcm",
        "SC_rgb_dcmtk_+eb+cy+s4.dcm",
        "SC_rgb_jpeg.dcm",
        "SC_rgb_jpeg_app14_dcmd.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
        "SC_rgb_jpeg_lossy_gdcm.dcm",
        "SC_rgb_small_odd_jpeg.dcm",
        "examples_ybr_color.dcm",
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # of colour spaces that codestream and data set disagree on
def test_real_files_as_pydicom_reads_them(name):
    path = get_testdata_file(name)
    file = read_file(path)
    expected = pydicom.dcmread(path).pixel_array
    expected = expected if expected.ndim == 4 else expected[None]
    for data, frame in zip(split_frames(file)[:3], expected[:3], strict=True):
        pixels = opencv.decode_frame(data, file.header)
        assert pixels.dtype == frame.dtype
        assert np.abs(pixels.astype(int) - frame).max() <= (1 if frame.ndim == 2 else 2)


@pytest.mark.parametrize("level", [50, 90, 100])
def test_grayscale_baseline_within_one_of_libjpeg(level):
    image = noisy_image((101, 77), 8)
    data = imagecodecs.jpeg_encode(image, level=level)
    pixels = decode(data, image.shape, BASELINE, allocated=8)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - imagecodecs.jpeg_decode(data)).max() <= 1


def test_rgb_baseline_is_not_taken_for_ycbcr():
    image = np.random.default_rng(2).integers(0, 256, (24, 24, 3)).astype(np.uint8)
    data = imagecodecs.jpeg_encode(image, level=100, colorspace="RGB", outcolorspace="RGB")
    bare = data.replace(b"\x03R\x11", b"\x03\x01\x11").replace(b"\0G\x11\0B\x11", b"\0\x02\x11\0\x03\x11")
    assert np.abs(decode(data, image.shape, BASELINE, allocated=8).astype(int) - image).max() <= 6
    assert bare != data or b"R\x11" not in data


@pytest.mark.parametrize(("signed", "expected"), [(0, np.uint16), (1, np.int16)])
def test_baseline_in_sixteen_allocated_bits(signed, expected):
    image = noisy_image((16, 24), 8)
    data = imagecodecs.jpeg_encode(image, level=100)
    pixels = decode(data, image.shape, BASELINE, stored=8, signed=signed)
    plain = imagecodecs.jpeg_decode(data).astype(int)
    assert pixels.dtype == expected
    assert np.abs(pixels - (plain - 256 * (plain > 127) if signed else plain)).max() <= 1


@pytest.mark.parametrize("make", [lambda image: encode_j2k(image, 8), lambda image: imagecodecs.jpeg_encode(image)])
def test_every_truncation_is_refused_or_of_the_right_shape(make):
    image = noisy_image((12, 10), 8)
    data = make(image)
    header = make_header(image.shape, allocated=8, syntax=BASELINE if data[1] == 0xD8 else JPEG2000)
    whole = opencv.decode_frame(frame_bytes(data), header)
    results = [decode_or_refuse(opencv.decode_frame, data[:length], header) for length in range(len(data))]
    assert results[0] is None
    assert results[10] is None
    assert np.array_equal(results[-1], whole) or results[-1] is None


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, b"\xff\x4f\xff\x52", "byte 0: found ff4fff52, expected ff4fff51"),
        (4, b"\x00\x2a", "found SIZ segment of 42 bytes with 1 components, expected 38 \\+ 3 for each"),
        (8, b"\xff\xff\xff\xff", r"found 12 x 4294967295 with 1 sample\(s\), expected 12 x 10 with 1 sample\(s\)"),
        (16, b"\x00\x00\x00\x01", r"found 12 x 9 with 1 sample\(s\), expected 12 x 10"),
        (24, b"\x00\x00\x00\x00", "found tiles of 12 x 0 from 0, 0, expected 1 to 16384 that cover the image"),
        (32, b"\x00\x00\x00\x09", "found tiles of 12 x 10 from 0, 9, expected 1 to 16384 that cover the image"),
        (42, b"\x25", "found components of 38 bits, 1 x 1 subsampled, 0 unlike, expected at most 16 bits"),
        (43, b"\x02", "found components of 8 bits, 1 x 2 subsampled"),
        (42, b"\x0b", "found 12 bits a sample, expected at most 8"),
    ],
)
def test_a_lying_size_segment_is_refused(at, value, message):
    data = encode_j2k(noisy_image((12, 10), 8), 8)
    with pytest.raises(DicomError, match=message):
        decode(data[:at] + value + data[at + len(value) :], (12, 10), allocated=8)


def test_unlike_components_are_refused():
    data = encode_j2k(np.zeros((12, 10, 3), np.uint8), 8)
    with pytest.raises(DicomError, match=r"found components of . bits, 1 x 1 subsampled, 1 unlike"):
        decode(data[:42] + b"\x06" + data[43:], (12, 10, 3), allocated=8)


def test_a_jp2_file_without_codestream_is_refused():
    boxed = imagecodecs.jpeg2k_encode(noisy_image((12, 10), 8), level=0, codecformat="jp2")
    with pytest.raises(DicomError, match="found box of 0 bytes, expected a codestream"):
        decode(boxed[: boxed.index(b"jp2c") - 4], (12, 10), allocated=8)


def test_baseline_refuses_other_sizes_processes_and_precisions():
    image = noisy_image((16, 24), 8)
    data = imagecodecs.jpeg_encode(image)
    with pytest.raises(DicomError, match=r"found 16 x 24 with 1 sample\(s\), expected 17 x 24"):
        decode(data, (17, 24), BASELINE, allocated=8)
    lossless = imagecodecs.ljpeg_encode(image)
    with pytest.raises(DicomError, match="found frame header ffc3 of 8 bits, expected ffc0, ffc1 or ffc2 of 8 bits"):
        decode(lossless, image.shape, BASELINE, allocated=8)


def test_sizes_that_the_data_cannot_hold_are_refused_before_opencv_sees_them():
    data = imagecodecs.jpeg_encode(noisy_image((16, 24), 8)).replace(b"\x00\x10\x00\x18", b"\xff" * 4)
    with pytest.raises(DicomError, match="bytes for 4294836225 samples, expected more bytes"):
        decode(data, (65535, 65535), BASELINE, allocated=8)
    siz = (65535).to_bytes(4, "big") * 2
    data = encode_j2k(noisy_image((12, 10), 8), 8)
    with pytest.raises(DicomError, match="bytes for 4294836225 samples, expected more bytes"):
        decode(data[:8] + siz + data[16:24] + siz + data[32:], (65535, 65535), allocated=8)


def test_warm_up_says_nothing(capfd):
    opencv.warm_up()
    assert capfd.readouterr() == ("", "")
