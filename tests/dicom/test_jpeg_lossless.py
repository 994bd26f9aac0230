import imagecodecs
import numpy as np
import pydicom
import pytest

import jpeg_lossless_encoder as encoder
from codec_frames import decode_or_refuse, frame_bytes, make_header, mutations, patchy_image
from dicom_writer import JPEG_LOSSLESS, JPEG_LOSSLESS_SV1, encapsulated_file, noisy_slice
from lumbar.dicom import read_slice
from lumbar.dicom.codecs import jpeg_lossless
from lumbar.dicom.codecs.jpeg_lossless_kernels import PAD, unstuff
from lumbar.errors import DicomError
from reference import jpeg_lossless_twin

PIXELS = noisy_slice((13, 17))


def decode(data, shape, **options):
    options.setdefault("allocated", 16)
    return jpeg_lossless.decode_frame(frame_bytes(data), make_header(shape, syntax=JPEG_LOSSLESS, **options))


@pytest.mark.parametrize("predictor", range(1, 8))
@pytest.mark.parametrize("restart_rows", [0, 1, 3])
@pytest.mark.parametrize("lengths", [encoder.SHORT_CODES, encoder.LONG_CODES])
def test_predictors_restarts_and_long_codes(predictor, restart_rows, lengths):
    data = encoder.encode(PIXELS, predictor=predictor, restart_rows=restart_rows, lengths=lengths)
    assert np.array_equal(decode(data, PIXELS.shape), PIXELS)
    assert np.array_equal(jpeg_lossless_twin.decode(data)[..., 0], PIXELS)


@pytest.mark.parametrize("bits", range(2, 17))
@pytest.mark.parametrize("predictor", [1, 4, 7])
def test_every_precision_on_random_values(bits, predictor):
    """Random values reach every category, and with 16 bits the one that stands for 32768."""
    pixels = np.random.default_rng(bits).integers(0, 1 << bits, (11, 9)).astype(np.uint16)
    pixels[3, 3:5] = [0, 32768 & ((1 << bits) - 1)]
    data = encoder.encode(pixels, bits=bits, predictor=predictor)
    assert np.array_equal(decode(data, pixels.shape, stored=16), pixels)
    assert np.array_equal(jpeg_lossless_twin.decode(data)[..., 0], pixels)


@pytest.mark.parametrize("shift", [1, 3, 11])
def test_the_point_transform_clears_low_bits(shift):
    data = encoder.encode(PIXELS, shift=shift, predictor=5)
    assert np.array_equal(decode(data, PIXELS.shape), PIXELS >> shift << shift)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2), (3, 4), (5, 5), (64, 31)])
@pytest.mark.parametrize("predictor", [1, 6])
def test_small_and_odd_sizes(shape, predictor):
    pixels = noisy_slice(shape)
    assert np.array_equal(decode(encoder.encode(pixels, predictor=predictor), shape), pixels)


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("predictor", [1, 2, 7])
def test_three_components_in_one_scan_or_three(interleaved, predictor):
    pixels = np.random.default_rng(0).integers(0, 256, (7, 6, 3)).astype(np.uint8)
    data = encoder.encode(pixels, bits=8, predictor=predictor, interleaved=interleaved, restart_rows=2)
    assert np.array_equal(decode(data, pixels.shape, allocated=8), pixels)
    assert np.array_equal(jpeg_lossless_twin.decode(data), pixels)


def test_ybr_becomes_rgb_as_in_pydicom(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (7, 6, 3)).astype(np.uint8)
    path = tmp_path / "1.dcm"
    options = {"allocated": 8, "photometric": "YBR_FULL"}
    path.write_bytes(encapsulated_file([encoder.encode(pixels, bits=8)], pixels.shape, JPEG_LOSSLESS, **options))
    assert np.array_equal(read_slice(path).pixels, pydicom.dcmread(path).pixel_array)


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("predictor", range(1, 8))
def test_streams_of_libjpeg(bits, predictor):
    pixels = noisy_slice((61, 47), bits).astype(np.uint8 if bits == 8 else np.uint16)
    data = imagecodecs.jpeg_encode(pixels, lossless=True, bitspersample=bits, predictor=predictor)
    assert np.array_equal(decode(data, pixels.shape, allocated=8 * pixels.dtype.itemsize), pixels)


def test_flat_patches_and_outliers():
    pixels = patchy_image((40, 30), 16)
    data = imagecodecs.jpeg_encode(pixels, lossless=True, bitspersample=16)
    assert np.array_equal(decode(data, pixels.shape), pixels)


@pytest.mark.parametrize("syntax", [JPEG_LOSSLESS, JPEG_LOSSLESS_SV1])
@pytest.mark.parametrize("signed", [0, 1])
def test_whole_files_equal_pydicom(tmp_path, syntax, signed):
    path = tmp_path / "1.dcm"
    data = encoder.encode(PIXELS | np.uint16(0x4000), bits=16)
    path.write_bytes(encapsulated_file([data], PIXELS.shape, syntax, stored=12, signed=signed))
    ours, theirs = read_slice(path).pixels, pydicom.dcmread(path).pixel_array
    assert ours.dtype == theirs.dtype
    assert np.array_equal(ours, theirs)


def test_eight_bits_in_sixteen_allocated():
    pixels = noisy_slice((9, 8), 8)
    assert np.array_equal(decode(encoder.encode(pixels, bits=8), pixels.shape, stored=8), pixels)


def test_more_than_eight_restarts_and_fill_bytes_before_a_marker():
    data = encoder.encode(noisy_slice((20, 5)), restart_rows=2).replace(b"\xff\xd3", b"\xff\xff\xff\xd3")
    assert np.array_equal(decode(data, (20, 5)), noisy_slice((20, 5)))


def test_a_missing_end_of_image_is_no_harm():
    assert np.array_equal(decode(encoder.encode(PIXELS)[:-2], PIXELS.shape), PIXELS)


def test_unstuffing_equals_replacing():
    rng = np.random.default_rng(0)
    for size in [*range(40), 1000]:
        raw = bytes(rng.choice([0xFF, 1, 2, 0x80, 0xFE], size, p=[0.1, 0.3, 0.2, 0.2, 0.2]))
        stuffed = raw.replace(b"\xff", b"\xff\0") + b"\xff\xd9"
        stream, starts = np.full(len(stuffed) + PAD, 7, np.uint8), np.zeros(2, np.int64)
        assert unstuff(np.frombuffer(b"ab" + stuffed, np.uint8), 2, stream, starts) == len(stuffed)
        assert stream[: starts[1]].tobytes() == raw
        assert not stream[starts[1] : starts[1] + PAD].any()


@pytest.mark.parametrize("predictor", [1, 5])
@pytest.mark.parametrize("lengths", [encoder.SHORT_CODES, encoder.LONG_CODES])
def test_every_truncation_is_refused_or_complete(predictor, lengths):
    data = encoder.encode(noisy_slice((6, 7)), predictor=predictor, restart_rows=2, lengths=lengths)
    n_read = 0
    for size in range(len(data)):
        outcome = decode_or_refuse(jpeg_lossless.decode_frame, data[:size], make_header((6, 7)))
        if outcome is not None:
            assert size >= len(data) - 3
            assert np.array_equal(outcome, noisy_slice((6, 7)))
            n_read += 1
    assert n_read <= 3


@pytest.mark.parametrize("options", [{}, {"predictor": 7}, {"restart_rows": 2}, {"lengths": encoder.LONG_CODES}])
def test_damaged_streams_are_decoded_or_refused(options):
    data = encoder.encode(PIXELS, **options)
    outcomes = [
        decode_or_refuse(jpeg_lossless.decode_frame, bad, make_header(PIXELS.shape)) for bad in mutations(data, 700)
    ]
    assert any(pixels is None for pixels in outcomes)
    assert any(pixels is not None for pixels in outcomes)


GOOD = encoder.encode(PIXELS)
WITH_RESTARTS = encoder.encode(PIXELS, restart_rows=2)
SCAN = bytes([1, 1, 0, 1, 0, 0])


@pytest.mark.parametrize(
    ("data", "options", "reason"),
    [
        (b"\xff\xd8\xff\xd9", {}, "expected a frame header and a scan"),
        (GOOD.replace(b"\xff\xc3", b"\xff\xc1"), {}, "frame header ffc1, expected ffc3"),
        (GOOD, {"shape": (13, 16)}, "13 x 17 with 1 sample.*expected 13 x 16"),
        (GOOD, {"allocated": 8}, "12 bits a sample, expected at most 8"),
        (GOOD.replace(SCAN, bytes([1, 1, 0, 0, 0, 0])), {}, "predictor 0"),
        (GOOD.replace(SCAN, bytes([1, 1, 0, 8, 0, 0])), {}, "predictor 8"),
        (GOOD.replace(SCAN, bytes([1, 1, 0, 1, 0, 12])), {}, "point transform 12"),
        (GOOD.replace(SCAN, bytes([1, 1, 0x10, 1, 0, 0])), {}, "no Huffman table 1"),
        (GOOD.replace(bytes([1, 0x11, 0]), bytes([1, 0x21, 0])), {}, "subsampled"),
        (WITH_RESTARTS.replace(b"\xff\xdd\0\4\0\x22", b"\xff\xdd\0\4\0\x23"), {}, "restart interval 35"),
        (WITH_RESTARTS.replace(b"\xff\xd1", b"\xff\xd2"), {}, "restart marker"),
        (WITH_RESTARTS.replace(b"\xff\xd1", b""), {}, "restart marker"),
        (GOOD.replace(b"\xff\xd9", b"\xff\xd0\xff\xd9"), {}, "restart marker"),
        (GOOD[:-40], {}, "the end of the data"),
        (encoder.encode(PIXELS, lengths=encoder.SHORT_CODES | {16: 12}).replace(b"\x0c\x10", b"\x0c\x11"), {}, "16"),
    ],
)
def test_refusals_name_what_was_found(data, options, reason):
    shape = options.pop("shape", PIXELS.shape)
    with pytest.raises(DicomError, match=rf"frame.dcm.*found.*{reason}"):
        decode(data, shape, **options)


def test_sizes_beyond_what_the_bytes_can_hold_are_refused():
    head = encoder.encode(np.zeros((1, 1), np.uint16))
    data = head.replace(b"\0\1\0\1\1\1\x11", b"\xff\xff\xff\xff\1\1\x11")
    assert data != head
    with pytest.raises(DicomError, match="bytes, expected"):
        decode(data, (65535, 65535))


def test_an_absent_component_is_refused():
    pixels = np.zeros((4, 4, 3), np.uint8)
    data = encoder.encode(pixels, bits=8, interleaved=False)
    last = data.rindex(b"\xff\xda")
    with pytest.raises(DicomError, match="no scan of component 2"):
        decode(data[:last] + b"\xff\xd9", pixels.shape, allocated=8)


def test_bits_that_are_no_code_are_refused():
    data = encoder.encode(PIXELS)
    start = data.index(b"\xff\xda") + 10
    with pytest.raises(DicomError, match="a code that no table holds"):
        decode(data[:start] + b"\xff\0" * 300 + b"\xff\xd9", PIXELS.shape)


def test_warm_up_runs():
    jpeg_lossless.warm_up()
