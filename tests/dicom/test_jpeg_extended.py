import imagecodecs
import libjpeg
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from codec_frames import decode_or_refuse, frame_bytes, make_header, mutations, noisy_image, patchy_image
from lumbar.dicom.codecs import jpeg_extended
from lumbar.dicom.codecs.frames import split_frames
from lumbar.dicom.codecs.jpeg_extended_kernels import ZIGZAG, inverse_dct
from lumbar.dicom.header import read_file
from lumbar.errors import DicomError
from reference import jpeg_dct_twin

STEPS = np.arange(64) // 4 * 3 + 2


def decode(data, image, *, stored=12, **options):
    options.setdefault("allocated", 8 if stored == 8 else 16)
    return jpeg_extended.decode_frame(frame_bytes(data), make_header(image.shape, stored=stored, **options)).astype(int)


@pytest.mark.parametrize("bits", [8, 12])
@pytest.mark.parametrize("level", [30, 75, 90, 95, 100])
@pytest.mark.parametrize("make", [noisy_image, patchy_image])
def test_pixels_equal_those_of_libjpeg(bits, level, make):
    image = make((101, 77), bits, seed=level)
    data = imagecodecs.jpeg_encode(image, level=level, bitspersample=bits)
    assert np.array_equal(decode(data, image, stored=bits), imagecodecs.jpeg_decode(data))


@pytest.mark.parametrize("level", [30, 75, 95, 100])
@pytest.mark.parametrize("make", [noisy_image, patchy_image])
def test_on_request_twelve_bits_are_rounded_as_by_pylibjpeg(level, make):
    image = make((101, 77), 12, seed=level)
    data = bytes(imagecodecs.jpeg_encode(image, level=level, bitspersample=12))
    header = make_header(image.shape, stored=12)
    pixels = jpeg_extended.decode_frame(frame_bytes(data), header, is_as_pylibjpeg=True)
    assert np.array_equal(pixels, libjpeg.decode(data))
    assert np.abs(pixels.astype(int) - decode(data, image)).max() <= 2


def test_optimised_huffman_tables():
    image = noisy_image((64, 80), 12)
    data = imagecodecs.jpeg_encode(image, level=92, bitspersample=12, optimize=True)
    assert np.array_equal(decode(data, image), imagecodecs.jpeg_decode(data))


@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (9, 7), (16, 25), (31, 8)])
@pytest.mark.parametrize("bits", [8, 12])
@pytest.mark.parametrize("restart", [0, 1, 3])
def test_the_twin_agrees_within_one_on_any_size_and_restart_interval(shape, bits, restart):
    image = noisy_image(shape, bits, seed=restart)
    data = jpeg_dct_twin.encode(image, bits, quantisation=STEPS, restart=restart)
    pixels = decode(data, image, stored=bits)
    assert np.abs(pixels - jpeg_dct_twin.decode(data, shape, bits, restart=restart)).max() <= 1
    assert np.abs(pixels - imagecodecs.jpeg_decode(data)).max() <= 1


@pytest.mark.parametrize("options", [{"numbers": (3, 2, 1)}, {"wide_tables": True}, {"marker": 0xC0}, {"restart": 4}])
def test_other_tables_and_markers(options):
    image = np.random.default_rng(0).integers(0, 256, (24, 40)).astype(np.uint8)
    data = jpeg_dct_twin.encode(image, 8, **options)
    assert np.abs(decode(data, image, stored=8) - image).max() <= 1


def test_more_than_eight_restarts_and_fill_bytes_before_a_marker():
    image = noisy_image((40, 24), 12)
    data = jpeg_dct_twin.encode(image, 12, restart=1)
    filled = data.replace(b"\xff\xd3", b"\xff\xff\xff\xd3")
    assert np.abs(decode(data, image) - image).max() <= 1
    assert np.array_equal(decode(filled, image), decode(data, image))


def test_zigzag_and_transform_equal_the_definition():
    assert ZIGZAG.tolist() == [8 * row + column for row, column in jpeg_dct_twin.ZIGZAG]
    rng = np.random.default_rng(0)
    for precision in (8, 12):
        for _ in range(50):
            spectrum = np.rint(rng.normal(size=(8, 8)) * 2**precision / 4).astype(np.int64)
            expected = jpeg_dct_twin.BASIS.T @ spectrum @ jpeg_dct_twin.BASIS
            block = spectrum.reshape(-1).copy()
            inverse_dct(block, precision)
            assert np.abs(block.reshape(8, 8) - expected).max() < 1


def test_real_file_within_one_of_pydicom():
    path = get_testdata_file("JPGExtended.dcm")
    file = read_file(path)
    expected = pydicom.dcmread(path).pixel_array
    data = split_frames(file)[0]
    pixels = jpeg_extended.decode_frame(data, file.header)
    assert pixels.dtype == expected.dtype
    assert np.abs(pixels.astype(int) - expected).max() <= 1
    assert np.array_equal(pixels, imagecodecs.jpeg_decode(data.tobytes()))


def test_a_scan_that_claims_one_coefficient_is_read_as_libjpeg_reads_it():
    file = read_file(get_testdata_file("JPEG-lossy.dcm"))  # pydicom's plugins refuse it
    data = split_frames(file)[0]
    pixels = jpeg_extended.decode_frame(data, file.header)
    assert np.array_equal(pixels, imagecodecs.jpeg_decode(data.tobytes()))


def test_eight_bit_colour_goes_the_way_of_baseline():
    image = np.random.default_rng(1).integers(0, 256, (16, 24, 3)).astype(np.uint8)
    data = imagecodecs.jpeg_encode(image, level=95, colorspace="RGB", outcolorspace="YCBCR")
    pixels = decode(data, image, stored=8, photometric="YBR_FULL_422")
    assert np.abs(pixels - imagecodecs.jpeg_decode(data)).max() <= 1


def test_stored_bits_mask_and_sign_are_applied():
    image = noisy_image((16, 16), 12)
    data = imagecodecs.jpeg_encode(image, level=98, bitspersample=12)
    plain = decode(data, image)
    assert np.array_equal(decode(data, image, signed=1), plain - (plain >= 2048) * 4096)
    assert np.array_equal(decode(data, image, stored=10, allocated=16), plain % 1024)


@pytest.mark.parametrize("restart", [0, 2])
def test_every_truncation_is_refused_or_harmless(restart):
    image = noisy_image((17, 20), 12)
    data = jpeg_dct_twin.encode(image, 12, quantisation=STEPS, restart=restart)
    header = make_header(image.shape, stored=12)
    whole = decode(data, image)
    for length in range(len(data) - 2):
        pixels = decode_or_refuse(jpeg_extended.decode_frame, data[:length], header)
        assert pixels is None or (length >= len(data) - 3 and np.array_equal(pixels, whole))


@pytest.mark.parametrize("restart", [0, 3])
def test_mutated_frames_are_refused_or_decoded_to_the_right_shape(restart):
    image = noisy_image((17, 20), 12)
    data = jpeg_dct_twin.encode(image, 12, quantisation=STEPS, restart=restart)
    header = make_header(image.shape, stored=12)
    results = [decode_or_refuse(jpeg_extended.decode_frame, bad, header) for bad in mutations(data, 1500)]
    assert 0 < sum(pixels is None for pixels in results) < len(results)


def test_random_bits_after_a_good_header_end():
    data = jpeg_dct_twin.encode(noisy_image((64, 64), 12), 12, quantisation=np.full(64, 65535), wide_tables=True)
    head = data[: data.index(b"\xff\xda") + 10]
    rng = np.random.default_rng(0)
    for density in (0.02, 0.3, 0.5, 0.7, 0.98):
        for _ in range(60):
            bits = np.packbits(rng.random(8 * 4000) < density).tobytes().replace(b"\xff", b"\xff\0")
            decode_or_refuse(jpeg_extended.decode_frame, head + bits, make_header((64, 64), stored=12))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"\xff\xc1\x00\x0b\x0c", b"\xff\xc2\x00\x0b\x0c", r"found frame header ffc2, expected ffc0 or ffc1"),
        (b"\xff\xc1\x00\x0b\x0c", b"\xff\xc1\x00\x0b\x0a", r"found 10 bits a sample, expected 8 or 12 in 16"),
        (b"\x00\x10\x00\x14", b"\xff\xff\xff\xff", r"found 65535 x 65535 with 1 sample\(s\), expected 16 x 20"),
        (b"\x01\x01\x11\x00", b"\x01\x01\x51\x00", r"found sampling factors 5 x 1, expected 1 to 4"),
        (b"\x01\x01\x11\x00", b"\x01\x01\x11\x02", r"found Huffman tables \[0\] and \[0\], quantisation tables \[0\]"),
        (b"\xff\xda\x00\x08\x01\x01\x00", b"\xff\xda\x00\x08\x01\x01\x10", r"expected 1, 0 and 0 among them"),
        (b"\xff\xc4\x00\x23\x00\x00", b"\xff\xc4\x00\x23\x00\x03", r"found 19 Huffman codes, expected at most 16"),
        (b"\xff\xd1", b"\xff\xd5", r"found no restart marker in turn at line 8, expected 16 lines"),
        (b"\xff\xc4", b"\xff\xcc", r"found marker ffcc, expected a segment of sequential or lossless JPEG"),
    ],
)
def test_refusals_name_what_was_found(old, new, message):
    image = noisy_image((16, 20), 12)
    data = jpeg_dct_twin.encode(image, 12, restart=2)
    assert old in data
    with pytest.raises(DicomError, match=message):
        decode(data.replace(old, new, 1), image)


def test_sizes_that_the_data_cannot_hold_are_refused_before_allocation():
    data = jpeg_dct_twin.encode(noisy_image((16, 20), 12), 12).replace(b"\x00\x10\x00\x14", b"\xff" * 4)
    with pytest.raises(DicomError, match="bytes for 4294836225 samples, expected more bytes"):
        jpeg_extended.decode_frame(frame_bytes(data), make_header((65535, 65535), stored=12))


def test_twelve_bit_colour_is_refused():
    image = np.zeros((8, 8, 3), np.uint16)
    data = imagecodecs.jpeg_encode(image, level=90, bitspersample=12)
    with pytest.raises(DicomError, match="found 3 components of 12 bits, expected one"):
        decode(data, image)


def test_rows_may_be_left_to_the_end():
    image = noisy_image((16, 20), 12)
    data = jpeg_dct_twin.encode(image, 12)
    open_ended = data.replace(b"\x00\x10\x00\x14", b"\x00\x00\x00\x14")[:-2] + b"\xff\xdc\x00\x04\x00\x10\xff\xd9"
    assert np.array_equal(decode(open_ended, image), decode(data, image))


def test_warm_up_compiles_what_decoding_needs():
    jpeg_extended.warm_up()
    before = len(getattr(jpeg_extended.decode_scan, "signatures", [()]))  # a plain function where the compiler is off
    image = noisy_image((16, 20), 12)
    decode(jpeg_dct_twin.encode(image, 12), image)
    assert len(getattr(jpeg_extended.decode_scan, "signatures", [()])) == before == 1
