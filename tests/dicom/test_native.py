import zlib

import numpy as np
import pydicom
import pytest

from codec_frames import frame_bytes, make_header
from dicom_writer import (
    BIG,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    RLE,
    element,
    encapsulated_file,
    image_elements,
    meta,
    native_file,
    noisy_slice,
)
from lumbar.dicom import read_series, read_slice
from lumbar.dicom.codecs import native
from lumbar.errors import DicomError

SYNTAXES = [IMPLICIT, EXPLICIT, DEFLATED, BIG]


def both(folder, data):
    """Pixels by our own code, and by pydicom."""
    path = folder / "1.dcm"
    path.write_bytes(data)
    return read_slice(path).pixels, pydicom.dcmread(path, force=True).pixel_array


def assert_same(pair):
    ours, theirs = pair
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4"])
@pytest.mark.parametrize("shape", [(6, 5), (7, 3), (1, 1)])
def test_every_type_in_every_encoding(tmp_path, syntax, dtype, shape):
    limits = np.iinfo(dtype)
    pixels = np.random.default_rng(1).integers(limits.min, limits.max, shape, dtype, endpoint=True)
    assert_same(both(tmp_path, native_file(pixels, syntax)))


@pytest.mark.parametrize("stored", range(7, 17))
@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("syntax", [EXPLICIT, BIG])
def test_bits_above_those_stored_are_no_part_of_the_value(tmp_path, stored, signed, syntax):
    pixels = np.random.default_rng(stored).integers(0, 65536, (5, 8)).astype("i2" if signed else "u2")
    ours, theirs = both(tmp_path, native_file(pixels, syntax, stored=stored))
    assert_same((ours, theirs))
    low = -(1 << (stored - 1)) if signed else 0
    assert ours.min() >= low
    assert ours.max() < low + (1 << stored)


def test_an_overlay_in_the_high_bits_is_removed(tmp_path):
    clean = noisy_slice((16, 16))
    dirty = clean | (np.eye(16, dtype=np.uint16) << np.uint16(14))
    ours, theirs = both(tmp_path, native_file(dirty, stored=12))
    assert np.array_equal(ours, clean)
    assert_same((ours, theirs))


def test_a_high_bit_that_is_not_the_last_stored_one_changes_nothing(tmp_path):
    pixels = noisy_slice((6, 6))
    data = native_file(pixels, stored=12, extra=[(0x00280102, "US", b"\x0f\x00")])
    assert_same(both(tmp_path, data))


def test_inverted_pixels_stay_as_stored(tmp_path):
    assert_same(both(tmp_path, native_file(noisy_slice((6, 6)), photometric="MONOCHROME1", stored=12)))


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL", "PALETTE COLOR"])
def test_colour(tmp_path, planar, photometric):
    shape = (6, 4) if photometric == "PALETTE COLOR" else (6, 4, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    stored = pixels
    if planar and len(shape) == 3:
        stored = np.ascontiguousarray(pixels.transpose(2, 0, 1)).reshape(6, 4, 3)
    assert_same(both(tmp_path, native_file(stored, photometric=photometric, planar=planar)))


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_several_frames(tmp_path, syntax, dtype):
    pixels = np.random.default_rng(0).integers(0, 200, (3, 5, 3)).astype(dtype)
    assert_same(both(tmp_path, native_file(pixels, syntax, frames=3)))


def test_one_bit_pixels(tmp_path):
    packed = np.packbits(np.random.default_rng(0).integers(0, 2, 48).astype(np.uint8), bitorder="little")
    data = native_file(packed.reshape(1, 6)[:, :6], allocated=1)
    data = data.replace(b"\x28\x00\x10\x00US\x02\x00\x01\x00", b"\x28\x00\x10\x00US\x02\x00\x08\x00")
    assert_same(both(tmp_path, data))


def test_bytes_behind_the_pixels_are_ignored(tmp_path):
    pixels = noisy_slice((6, 6))
    data = native_file(pixels, stored=12, tail=element(0xFFFCFFFC, "OB", bytes(20)))
    path = tmp_path / "1.dcm"
    path.write_bytes(data)
    assert np.array_equal(read_slice(path).pixels, pixels)


def test_a_clean_slice_is_a_writable_view_of_the_bytes_read(tmp_path):
    path = tmp_path / "1.dcm"
    path.write_bytes(native_file(noisy_slice((6, 6)), stored=12))
    pixels = read_slice(path).pixels
    assert not pixels.flags.owndata
    assert pixels.flags.writeable


def test_decode_frame_takes_read_only_bytes():
    pixels = np.array([[1, 2], [0xF003, 4]], np.uint16)
    header = make_header((2, 2), stored=12, syntax=EXPLICIT)
    decoded = native.decode_frame(frame_bytes(pixels.tobytes()), header)
    assert np.array_equal(decoded, pixels)
    assert np.array_equal(native.clear_unused_bits(decoded, header), [[1, 2], [3, 4]])


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "u8"])
@pytest.mark.parametrize("is_signed", [False, True])
def test_gathered_bits_equal_those_of_numpy(dtype, is_signed):
    words = np.random.default_rng(0).integers(0, 2 ** (8 * np.dtype(dtype).itemsize - 1), 37).astype(dtype)
    doubled = words ^ (words << words.dtype.type(1))
    assert native.gather_bits(words, is_signed) == np.bitwise_or.reduce(doubled if is_signed else words)


def refusal(folder, data):
    path = folder / "1.dcm"
    path.write_bytes(data)
    with pytest.raises(DicomError, match=r"found .* expected ") as caught:
        read_slice(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def us(tag, value):
    return [(tag, "US", value.to_bytes(2, "little"))]


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        (us(0x00280010, 0), "Rows 0"),
        (us(0x00280011, 65535) + us(0x00280010, 65535), "72 bytes of pixel data, expected 8589672450"),
        (us(0x00280100, 12), "BitsAllocated 12"),
        (us(0x00280100, 0), "BitsAllocated 0"),
        (us(0x00280101, 17), "BitsStored 17"),
        (us(0x00280101, 0), "BitsStored 0"),
        (us(0x00280002, 2), "SamplesPerPixel 2"),
        ([(0x00280008, "IS", b"9999999999")], "72 bytes of pixel data"),
        ([(0x00280010, "US", b"")], "Rows None"),
    ],
)
def test_sizes_are_checked_before_anything_is_allocated(tmp_path, extra, reason):
    assert reason in refusal(tmp_path, native_file(noisy_slice((6, 6)), extra=extra))


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG, DEFLATED])
def test_every_truncation_is_refused(tmp_path, syntax):
    data = native_file(noisy_slice((4, 4)), syntax, stored=12)
    for size in range(len(data)):
        refusal(tmp_path, data[:size])


def test_uncompressed_pixels_of_undefined_length_are_refused(tmp_path):
    data = native_file(noisy_slice((4, 4)))
    place = data.rindex(b"OW\0\0") + 4
    assert "undefined length" in refusal(tmp_path, data[:place] + b"\xff" * 4 + data[place + 4 :])


def test_subsampled_colour_is_as_pydicom_gives_it(tmp_path):
    raw = np.random.default_rng(0).integers(0, 256, (4, 4, 2)).astype(np.uint8)
    data = native_file(raw.reshape(4, 8), allocated=8, photometric="YBR_FULL_422", extra=us(0x00280002, 3))
    data = data.replace(
        b"\x28\x00\x11\x00US\x02\x00\x08\x00", b"\x28\x00\x06\x00US\x02\x00\x00\x00\x28\x00\x11\x00US\x02\x00\x04\x00"
    )
    assert_same(both(tmp_path, data))


def float_file(pixels, syntax, frames=None, **image):
    """FloatPixelData or DoubleFloatPixelData by the type of ``pixels``."""
    size = 8 * pixels.dtype.itemsize
    tag, vr = (0x7FE00008, "OF") if size == 32 else (0x7FE00009, "OD")
    how = {"implicit": syntax == IMPLICIT, "big": syntax == BIG}
    extra = [(0x00200013, "IS", b"4 ")]
    body = image_elements(
        pixels.shape[1:] if frames else pixels.shape, allocated=size, frames=frames, extra=extra, **how
    )
    raw = pixels.astype(pixels.dtype.newbyteorder(">" if syntax == BIG else "<")).tobytes()
    data = body + element(tag, vr, raw, **how)
    if syntax == DEFLATED:
        deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        data = deflater.compress(data) + deflater.flush()
    return meta(syntax) + data


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("frames", [None, 3])
def test_float_pixels_are_as_pydicom_gives_them(tmp_path, syntax, dtype, frames):
    shape = (3, 5, 4) if frames else (5, 4)
    pixels = np.random.default_rng(2).normal(0, 1e3, shape).astype(dtype)
    ours, theirs = both(tmp_path, float_file(pixels, syntax, frames))
    assert_same((ours, theirs))
    assert np.array_equal(ours, pixels)


def test_float_pixels_make_a_series(tmp_path):
    pixels = np.linspace(-2, 7, 20, dtype=np.float32).reshape(5, 4)
    (tmp_path / "1.dcm").write_bytes(float_file(pixels, EXPLICIT))
    assert np.array_equal(read_series(tmp_path).stacks[0].volume[0], pixels)


def test_float_pixels_of_another_width_are_refused(tmp_path):
    data = float_file(np.ones((5, 4), np.float32), EXPLICIT)
    at = data.index(b"\x28\x00\x00\x01US\x02\x00")
    for bits in (16, 64):
        path = tmp_path / "1.dcm"
        path.write_bytes(data[: at + 8] + bytes([bits, 0]) + data[at + 10 :])
        for call in (read_slice, lambda path: read_series(path.parent)):
            with pytest.raises(DicomError, match=f"found BitsAllocated {bits}, expected 32"):
                call(path)


def test_compressed_float_pixels_are_refused(tmp_path):
    data = encapsulated_file([b"ab"], (5, 4), RLE, allocated=32).replace(b"\xe0\x7f\x10\x00OB", b"\xe0\x7f\x08\x00OF")
    assert "FloatPixelData" in refusal(tmp_path, data)


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("shape", [(6, 8), (7, 3), (1, 1), (5, 5)])
@pytest.mark.parametrize("frames", [None, 3])
def test_one_bit_pixels_in_every_encoding(tmp_path, syntax, shape, frames):
    bits = np.random.default_rng(3).integers(0, 2, (frames or 1, *shape)).astype(np.uint8)
    packed = np.packbits(bits.reshape(-1), bitorder="little")
    packed = np.pad(packed, (0, packed.size % 2))
    how = {"implicit": syntax == IMPLICIT, "big": syntax == BIG}
    body = image_elements(shape, allocated=1, frames=frames, **how) + element(0x7FE00010, "OB", packed.tobytes(), **how)
    if syntax == DEFLATED:
        deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        body = deflater.compress(body) + deflater.flush()
    ours, theirs = both(tmp_path, meta(syntax) + body)
    assert_same((ours, theirs))
    assert np.array_equal(ours, bits if frames else bits[0])
