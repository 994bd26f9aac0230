import struct

import numpy as np
import pydicom
import pytest
from pydicom.encaps import generate_frames
from pydicom.pixels.encoders import RLELosslessEncoder

import rle_encoder
from codec_frames import decode_or_refuse, frame_bytes, make_header, mutations
from dicom_writer import RLE, encapsulated_file, noisy_slice
from lumbar.dicom import read_slice
from lumbar.dicom.codecs import rle
from lumbar.errors import DicomError
from reference import rle_twin


def decode(frame, pixels, **options):
    options.setdefault("allocated", 8 * pixels.dtype.itemsize)
    options.setdefault("signed", int(pixels.dtype.kind == "i"))
    return rle.decode_frame(frame_bytes(frame), make_header(pixels.shape, syntax=RLE, **options))


def random_pixels(shape, dtype, seed=0):
    limits = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(limits.min, limits.max, shape, dtype, endpoint=True)


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4"])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (64, 33), (6, 5, 3)])
def test_every_type_and_both_sample_counts(dtype, shape):
    pixels = random_pixels(shape, dtype)
    decoded = decode(rle_encoder.encode(pixels), pixels)
    assert decoded.dtype == pixels.dtype
    assert np.array_equal(decoded, pixels)
    assert decoded.flags.writeable


@pytest.mark.parametrize("seed", range(12))
def test_runs_of_every_length_at_every_place(seed):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 65536, 900)
    pixels = np.repeat(values, rng.integers(1, rng.choice([3, 20, 300]), 900))[: 30 * 30].reshape(30, 30).astype("u2")
    frame = rle_encoder.encode(pixels, noise=rng, padding=bytes(rng.integers(0, 3)))
    assert np.array_equal(decode(frame, pixels), pixels)
    assert np.array_equal(rle_twin.decode(frame, pixels.shape, "u2"), pixels)


@pytest.mark.parametrize("size", [32, 320])
def test_noisy_slices_encoded_by_pydicom(size):
    pixels = noisy_slice((size, size))
    dataset = pydicom.Dataset()
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel, dataset.BitsAllocated = size, size, 1, 16
    dataset.BitsStored, dataset.PixelRepresentation, dataset.PhotometricInterpretation = 16, 0, "MONOCHROME2"
    dataset.NumberOfFrames = 1
    frame = RLELosslessEncoder.encode(
        pixels,
        **{
            "rows": size,
            "columns": size,
            "samples_per_pixel": 1,
            "bits_allocated": 16,
            "bits_stored": 16,
            "pixel_representation": 0,
            "photometric_interpretation": "MONOCHROME2",
            "number_of_frames": 1,
            "encoding_plugin": "pydicom",
        },
    )
    assert np.array_equal(decode(frame, pixels, stored=16), pixels)


def test_a_whole_file_equals_pydicom(tmp_path):
    pixels = noisy_slice((48, 40)) | np.uint16(0x5000)
    path = tmp_path / "1.dcm"
    path.write_bytes(encapsulated_file([rle_encoder.encode(pixels)], pixels.shape, RLE, stored=12))
    decoded = read_slice(path).pixels
    assert np.array_equal(decoded, pixels & 0xFFF)
    assert np.array_equal(decoded, pydicom.dcmread(path).pixel_array)


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL"])
def test_colour_equals_pydicom(tmp_path, photometric):
    pixels = random_pixels((9, 8, 3), "u1")
    path = tmp_path / "1.dcm"
    data = encapsulated_file([rle_encoder.encode(pixels)], pixels.shape, RLE, allocated=8, photometric=photometric)
    path.write_bytes(data)
    dataset = pydicom.dcmread(path)
    assert next(generate_frames(dataset.PixelData, number_of_frames=1))
    assert np.array_equal(read_slice(path).pixels, dataset.pixel_array)


def test_the_kernel_equals_its_twin_on_damaged_frames():
    """Whatever the bytes: the same pixels, or no pixels from both."""
    pixels = noisy_slice((16, 16))
    n_read = 0
    for frame in mutations(rle_encoder.encode(pixels), 3000):
        outcome = decode_or_refuse(rle.decode_frame, frame, make_header(pixels.shape, syntax=RLE))
        expected = rle_twin.decode(frame, pixels.shape, "u2")
        if outcome is None:
            assert expected is None
        else:
            assert np.array_equal(outcome, expected)
            n_read += 1
    assert n_read > 300


def test_every_truncation_is_read_as_by_the_twin():
    pixels = noisy_slice((9, 11))
    frame = rle_encoder.encode(pixels)
    for size in range(len(frame)):
        outcome = decode_or_refuse(rle.decode_frame, frame[:size], make_header(pixels.shape, syntax=RLE))
        assert (outcome is None) == (rle_twin.decode(frame[:size], pixels.shape, "u2") is None)


def test_segments_that_hold_more_than_their_plane_are_cut():
    frame = rle_encoder.join([bytes([129, 7] * 4), bytes([127, *range(128)])])
    header = make_header((5, 5), syntax=RLE)
    assert np.array_equal(rle.decode_frame(frame_bytes(frame), header).ravel(), 7 * 256 + np.arange(25))


def test_scratch_of_a_larger_slice_leaves_no_trace():
    large, small = noisy_slice((64, 64)), noisy_slice((8, 8), seed=3)
    decode(rle_encoder.encode(large), large)
    assert np.array_equal(decode(rle_encoder.encode(small), small), small)


GOOD = rle_encoder.encode(noisy_slice((8, 8)))


@pytest.mark.parametrize(
    ("frame", "options", "reason"),
    [
        (b"", {}, "an RLE frame of 0 bytes"),
        (GOOD[:63], {}, "an RLE frame of 63 bytes"),
        (GOOD, {"allocated": 8}, "2 RLE segments, expected 1"),
        (GOOD, {"allocated": 64}, "2 RLE segments, expected 8"),
        (GOOD, {"shape": (8, 9)}, "RLE segment 0"),
        (GOOD, {"shape": (65535, 65535)}, "bytes of RLE, expected at least"),
        (GOOD, {"shape": (8, 8, 3), "allocated": 64}, "BitsAllocated 64 and 3 samples"),
        (struct.pack("<16I", 2, 64, 1 << 31, *[0] * 13) + GOOD[64:], {}, "RLE segment 1"),
        (struct.pack("<16I", 2, 0, 64, *[0] * 13) + GOOD[64:], {}, "RLE segment 0"),
        (struct.pack("<16I", 2, 64, 64, *[0] * 13) + GOOD[64:], {}, "RLE segment 0"),
        (GOOD[:-3], {}, "RLE segment 1"),
    ],
)
def test_refusals_name_what_was_found(frame, options, reason):
    shape = options.pop("shape", (8, 8))
    with pytest.raises(DicomError, match=reason):
        rle.decode_frame(frame_bytes(frame), make_header(shape, syntax=RLE, **options))


def test_frames_at_odd_addresses():
    raw = np.frombuffer(b"x" + GOOD, np.uint8)[1:]
    assert np.array_equal(rle.decode_frame(raw, make_header((8, 8), syntax=RLE)), noisy_slice((8, 8)))


def test_warm_up_runs():
    rle.warm_up()
