import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from codec_frames import decode_or_refuse, frame_bytes, make_header, mutations, noisy_image, patchy_image
from lumbar.dicom.codecs import jpeg_ls
from lumbar.dicom.codecs.frames import split_frames
from lumbar.dicom.header import read_file
from lumbar.errors import DicomError
from reference import jpeg_ls_twin

IMAGES = {"noisy": noisy_image, "patchy": patchy_image}


def decode(data, image, **options):
    options.setdefault("allocated", 8 * image.dtype.itemsize)
    return jpeg_ls.decode_frame(frame_bytes(data), make_header(image.shape, **options))


@pytest.mark.parametrize("precision", range(2, 17))
@pytest.mark.parametrize("near", [0, 1, 3])
@pytest.mark.parametrize("kind", IMAGES)
def test_every_precision_equals_the_twin(precision, near, kind):
    image = IMAGES[kind]((24, 31), precision, seed=precision)
    near = min(near, (2**precision - 1) // 2)
    data, seen = jpeg_ls_twin.encode(image, precision, near=near)
    assert np.array_equal(decode(data, image), seen)
    assert np.array_equal(jpeg_ls_twin.decode(data, image.shape, precision, near=near), seen)
    assert np.abs(seen.astype(int) - image).max() <= near


@pytest.mark.parametrize("interleave", [0, 1, 2])
@pytest.mark.parametrize("restart", [0, 1, 5])
@pytest.mark.parametrize("near", [0, 2])
@pytest.mark.parametrize("kind", IMAGES)
def test_three_components_in_every_interleave_mode(interleave, restart, near, kind):
    image = IMAGES[kind]((17, 13, 3), 8, seed=interleave)
    data, seen = jpeg_ls_twin.encode(image, 8, interleave=interleave, restart=restart, near=near)
    assert np.array_equal(decode(data, image), seen)


@pytest.mark.parametrize("restart", [1, 2, 7, 23, 24, 100])
def test_restart_intervals(restart):
    image = noisy_image((24, 19), 12)
    data, _ = jpeg_ls_twin.encode(image, 12, restart=restart)
    assert np.array_equal(decode(data, image), image)


@pytest.mark.parametrize(
    "options",
    [
        {"thresholds": (5, 9, 40)},
        {"thresholds": (1, 1, 1)},
        {"reset": 3},
        {"reset": 255},
        {"maxval": 3000},
        {"maxval": 2999, "near": 3},
        {"maxval": 2047, "thresholds": (4, 4, 200), "reset": 17, "near": 2},
    ],
)
@pytest.mark.parametrize("kind", IMAGES)
def test_coding_parameters_of_an_lse_segment(options, kind):
    image = np.minimum(IMAGES[kind]((24, 31), 12), options.get("maxval", 4095))
    data, seen = jpeg_ls_twin.encode(image, 12, **options)
    assert np.array_equal(decode(data, image), seen)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_charls_files_of_noise_and_of_a_whole_slice(bits):
    dtype = np.uint8 if bits == 8 else np.uint16
    for image in (
        np.random.default_rng(0).integers(0, 2**bits, (64, 50)).astype(dtype),
        noisy_image((200, 260), bits),
        patchy_image((256, 256), bits),
    ):
        assert np.array_equal(decode(imagecodecs.jpegls_encode(image), image), image)


@pytest.mark.parametrize("level", [1, 2, 7])
def test_charls_near_lossless_files(level):
    image = noisy_image((90, 70), 12)
    data = imagecodecs.jpegls_encode(image, level=level)
    assert np.array_equal(decode(data, image), imagecodecs.jpegls_decode(data))


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2)])
def test_smallest_images(shape):
    image = np.random.default_rng(1).integers(0, 4096, shape).astype(np.uint16)
    data, _ = jpeg_ls_twin.encode(image, 12)
    assert np.array_equal(decode(data, image), image)


@pytest.mark.parametrize(("precision", "allocated"), [(12, 16), (16, 16), (8, 16), (7, 8), (8, 8)])
def test_signed_samples_are_extended_from_the_precision(precision, allocated):
    raw = np.random.default_rng(2).integers(0, 2**precision, (12, 10)).astype(np.uint16)
    data, _ = jpeg_ls_twin.encode(raw, precision)
    signed = raw.astype(int) - (raw >= 2 ** (precision - 1)) * 2**precision
    pixels = decode(data, raw, allocated=allocated, stored=precision, signed=1)
    assert pixels.dtype == f"i{allocated // 8}"
    assert np.array_equal(pixels, signed)


@pytest.mark.parametrize(
    "name",
    [
        "JPEGLSNearLossless_08.dcm",
        "JPEGLSNearLossless_16.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "SC_rgb_jls_lossy_line.dcm",
        "SC_rgb_jls_lossy_sample.dcm",
    ],
)
def test_real_files_as_pydicom_reads_them(name):
    path = get_testdata_file(name)
    file = read_file(path)
    expected = pydicom.dcmread(path).pixel_array
    pixels = jpeg_ls.decode_frame(split_frames(file)[0], file.header)
    assert pixels.dtype == expected.dtype
    assert np.array_equal(pixels, expected)


def test_ybr_full_becomes_rgb_by_the_conversion_of_pydicom():
    image = np.random.default_rng(3).integers(0, 256, (9, 8, 3)).astype(np.uint8)
    data, _ = jpeg_ls_twin.encode(image, 8, interleave=2)
    expected = pydicom.pixels.convert_color_space(image, "YBR_FULL", "RGB")
    assert np.array_equal(decode(data, image, photometric="YBR_FULL"), expected)
    wide = image.astype(np.uint16)
    with pytest.raises(DicomError, match="found YBR_FULL samples of type uint16, expected uint8"):
        decode(data, wide, photometric="YBR_FULL")


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("options", [{}, {"restart": 4}, {"near": 2}])
def test_every_truncation_is_refused_or_harmless(kind, options):
    image = IMAGES[kind]((13, 11), 12)
    data, seen = jpeg_ls_twin.encode(image, 12, **options)
    header = make_header(image.shape)
    for length in range(len(data) - 2):
        pixels = decode_or_refuse(jpeg_ls.decode_frame, data[:length], header)
        assert pixels is None or (length >= len(data) - 4 and np.array_equal(pixels, seen))
    assert np.array_equal(decode(data[:-2], image), seen)  # no end of image


@pytest.mark.parametrize("interleave", [0, 1, 2])
def test_mutated_frames_are_refused_or_decoded_to_the_right_shape(interleave):
    image = noisy_image((15, 12, 3), 8)
    data, _ = jpeg_ls_twin.encode(image, 8, interleave=interleave, restart=5, thresholds=(3, 7, 20))
    header = make_header(image.shape, allocated=8)
    results = [decode_or_refuse(jpeg_ls.decode_frame, bad, header) for bad in mutations(data, 1500)]
    assert 0 < sum(pixels is None for pixels in results) < len(results)


def test_random_bits_after_a_good_header_end():
    image = noisy_image((40, 40), 16)
    head = jpeg_ls_twin.encode(image[:1], 16, reset=65535)[0][:-2]
    head = head[: head.index(b"\xff\xda") + 10].replace(b"\x00\x01\x00\x28", b"\x00\x28\x00\x28", 1)
    header = make_header(image.shape)
    rng = np.random.default_rng(0)
    for density in (0.02, 0.2, 0.5, 0.8, 0.98):
        for _ in range(100):
            bits = np.packbits(rng.random(8 * 6000) < density).tobytes()
            decode_or_refuse(jpeg_ls.decode_frame, head + bits.replace(b"\xff", b"\xff\x55"), header)


def change(data, marker, at, value):
    """Replace bytes of the segment with ``marker``, counted from after its length."""
    start = data.index(bytes([0xFF, marker])) + 4 + at
    return data[:start] + value + data[start + len(value) :]


@pytest.mark.parametrize(
    ("marker", "at", "value", "message"),
    [
        (0xF7, 0, b"\x01", "found precision 1, expected 2 to 16"),
        (0xF7, 1, b"\xff\xff\xff\xff", "found 65535 x 65535 with 1 sample"),
        (0xF7, 6, b"\x09", "found scan component 1, expected one of"),
        (0xDA, 3, b"\xff", "found NEAR 255, expected at most 127"),
        (0xDA, 4, b"\x01", "found interleave mode 1 of 1 components"),
        (0xDA, 5, b"\x02", "found point transform 2, expected 0"),
        (0xDA, 2, b"\x01", "found a mapping table, expected samples that stand for themselves"),
        (0xF8, 1, b"\x01\x00", "found MAXVAL 256, expected at most 255"),
        (0xF8, 3, b"\x00\x20", "found thresholds 32, 7, 21, expected 1 to 255"),
        (0xF8, 9, b"\x00\x02", "found RESET 2, expected 3 to 255"),
        (0xF8, 0, b"\x04", "found LSE segment of type 4"),
        (0xF7, -4, b"\xff\xc3", "found frame header ffc3, expected fff7"),
    ],
)
def test_refusals_name_what_was_found(marker, at, value, message):
    image = noisy_image((6, 5), 8)
    data, _ = jpeg_ls_twin.encode(image, 8, thresholds=(3, 7, 21), reset=63)
    assert np.array_equal(decode(data, image), image)
    with pytest.raises(DicomError, match=message):
        decode(change(data, marker, at, value), image)


def test_sizes_that_the_data_cannot_hold_are_refused_before_allocation():
    data, _ = jpeg_ls_twin.encode(noisy_image((6, 5), 8), 8)
    data = change(data, 0xF7, 1, b"\xff\xff\xff\xff")
    with pytest.raises(DicomError, match="bytes for 4294836225 samples, expected more bytes"):
        jpeg_ls.decode_frame(frame_bytes(data), make_header((65535, 65535), allocated=8))


def test_more_bits_than_allocated_are_refused():
    image = noisy_image((6, 5), 12)
    data, _ = jpeg_ls_twin.encode(image, 12)
    with pytest.raises(DicomError, match="found 12 bits a sample, expected at most 8"):
        decode(data, image, allocated=8)


def test_a_restart_marker_out_of_turn_is_refused():
    image = noisy_image((6, 5), 8)
    data, _ = jpeg_ls_twin.encode(image, 8, restart=2)
    with pytest.raises(DicomError, match="found no restart marker in turn at line 2, expected 6 lines"):
        decode(data.replace(b"\xff\xd0", b"\xff\xd3"), image)


def test_warm_up_compiles_what_decoding_needs():
    jpeg_ls.warm_up()
    before = len(getattr(jpeg_ls.decode_scan, "signatures", [()]))  # a plain function where the compiler is off
    image = noisy_image((6, 5), 12)
    decode(jpeg_ls_twin.encode(image, 12)[0], image)
    assert len(getattr(jpeg_ls.decode_scan, "signatures", [()])) == before == 1
