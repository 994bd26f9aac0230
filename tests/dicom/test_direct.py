"""Slices that go straight into a volume: the same values as by way of ``read_slice``, or left to it."""

import contextlib
import itertools
import struct

import numpy as np
import pytest

import jpeg_lossless_encoder
import rle_encoder
from dicom_writer import (
    BIG,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    JPEG_LOSSLESS,
    JPEG_LOSSLESS_SV1,
    RLE,
    encapsulated_file,
    native_file,
    noisy_slice,
)
from lumbar.dicom import direct, read_series, read_slice, warm_up
from lumbar.dicom._scratch import fresh, recycled, reused, scratch
from lumbar.dicom.direct import find_fast_path
from lumbar.dicom.header import read_file
from lumbar.errors import DicomError

SHAPE = (9, 14)
NOISE = np.random.default_rng(0).integers(0, 65536, SHAPE).astype(np.uint16)


def encoded(pixels, syntax, **image):
    """A file of 16-bit pixels, whatever their bits above those stored hold."""
    if syntax == RLE:
        return encapsulated_file([rle_encoder.encode(pixels)], pixels.shape, syntax, **image)
    if syntax in (JPEG_LOSSLESS, JPEG_LOSSLESS_SV1):
        predictor = 1 if syntax == JPEG_LOSSLESS_SV1 else 6
        data = jpeg_lossless_encoder.encode(pixels.view(np.uint16), predictor=predictor)
        return encapsulated_file([data], pixels.shape, syntax, **image)
    return native_file(pixels, syntax, **image)


def write(folder, data):
    folder.mkdir(exist_ok=True)
    path = folder / "1.dcm"
    path.write_bytes(data)
    return path


def rescaled(pixels, slope, intercept):
    return pixels.astype(np.float32) * np.float32(slope) + np.float32(intercept)


def is_filled(path, slope=1.0, intercept=0.0):
    """Whether the file goes straight into a volume; what it becomes there is what it is by way of ``read_slice``."""
    fast_path = find_fast_path(read_file(path))
    out = np.full(SHAPE, np.nan, np.float32)
    if fast_path is None or not fast_path.fill(out, slope, intercept):
        return False
    assert np.array_equal(out, rescaled(read_slice(path).pixels, slope, intercept))
    return True


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, RLE, JPEG_LOSSLESS, JPEG_LOSSLESS_SV1])
@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("stored", [1, 7, 8, 11, 12, 15, 16])
def test_values_are_those_of_the_slice(tmp_path, syntax, signed, stored):
    path = write(tmp_path, encoded(NOISE, syntax, stored=stored, signed=signed))
    for slope, intercept in [(1.0, 0.0), (2.5, -1024.0), (-0.123456789, 7.1)]:
        assert is_filled(path, slope, intercept)


@pytest.mark.parametrize("syntax", [EXPLICIT, RLE, JPEG_LOSSLESS])
def test_series_and_slice_agree(tmp_path, syntax):
    rescale = ((0x00281052, "DS", b"-3.3"), (0x00281053, "DS", b"1.7 "))
    path = write(tmp_path / "77", encoded(NOISE, syntax, stored=12, signed=1, extra=rescale))
    (stack,) = read_series(path.parent).stacks
    assert np.array_equal(stack.volume[0], rescaled(read_slice(path).pixels, 1.7, -3.3))


@pytest.mark.parametrize(
    "data",
    [
        native_file(NOISE, BIG),
        native_file(NOISE, DEFLATED),
        native_file(NOISE.astype(np.uint8)),
        native_file(NOISE.astype(np.uint32)),
        native_file(np.stack([NOISE, NOISE]), frames=2),
        native_file(NOISE[..., None].repeat(3, axis=2)),
        native_file(NOISE, photometric="PALETTE COLOR"),
        encapsulated_file([rle_encoder.encode(NOISE.astype(np.uint8))], SHAPE, RLE, allocated=8),
    ],
)
def test_a_file_without_a_fast_path_is_left_to_the_general_reader(tmp_path, data):
    assert not is_filled(write(tmp_path, data))


def fragments(data, *places):
    return [data[a:b] for a, b in itertools.pairwise([0, *places, len(data)])]


@pytest.mark.parametrize("syntax", [RLE, JPEG_LOSSLESS])
@pytest.mark.parametrize("table", [b"", bytes(4), struct.pack("<I", 999), b"xx"])
def test_fragments_and_tables(tmp_path, syntax, table):
    frame = jpeg_lossless_encoder.encode(NOISE) if syntax == JPEG_LOSSLESS else rle_encoder.encode(NOISE)
    path = write(tmp_path, encapsulated_file([frame], SHAPE, syntax, table=table))
    assert is_filled(path)
    assert not is_filled(write(tmp_path, encapsulated_file(fragments(frame, 70), SHAPE, syntax, table=table)))
    assert not is_filled(write(tmp_path, encapsulated_file([frame], SHAPE, syntax, table=table, closed=False)))
    for data in (encapsulated_file(fragments(frame, 70), SHAPE, syntax, table=table), path.read_bytes()):
        write(tmp_path / "1", data)
        assert np.array_equal(read_series(tmp_path / "1").stacks[0].volume[0], NOISE)


@pytest.mark.parametrize("syntax", [EXPLICIT, RLE, JPEG_LOSSLESS])
def test_every_truncation_is_left_alone_or_refused(tmp_path, syntax):
    data = encoded(NOISE, syntax)
    for size in range(data.index(b"\xe0\x7f\x10\x00") + 12, len(data)):
        path = write(tmp_path, data[:size])
        fast_path = find_fast_path(read_file(path))
        if fast_path is None:
            continue
        with contextlib.suppress(DicomError):
            assert not fast_path.fill(np.zeros(SHAPE, np.float32), 1.0, 0.0)


@pytest.mark.parametrize("syntax", [EXPLICIT, RLE, JPEG_LOSSLESS])
def test_a_file_that_changes_under_the_reader_does_no_harm(tmp_path, syntax):
    path = write(tmp_path, encoded(NOISE, syntax))
    fast_path = find_fast_path(read_file(path))
    for data in (b"", path.read_bytes()[:-31], path.read_bytes()[:400] + bytes(900)):
        path.write_bytes(data)
        with contextlib.suppress(DicomError):
            fast_path.fill(np.zeros(SHAPE, np.float32), 1.0, 0.0)
    path.unlink()
    with pytest.raises(DicomError, match="No such file"):
        fast_path.fill(np.zeros(SHAPE, np.float32), 1.0, 0.0)


def test_segments_of_rle_in_odd_places_are_left_alone(tmp_path):
    frame = bytearray(rle_encoder.encode(NOISE))
    good = struct.unpack("<3I", frame[:12])
    for words in [
        (1, *good[1:]),
        (3, *good[1:]),
        (2, 63, good[2]),
        (2, good[2], good[1]),
        (2, 64, 1 << 31),
        (2, 64, 64),
    ]:
        frame[:12] = struct.pack("<3I", *words)
        assert not is_filled(write(tmp_path, encapsulated_file([bytes(frame)], SHAPE, RLE)))


def test_what_is_warmed_up_is_compiled():
    warm_up((EXPLICIT, RLE, JPEG_LOSSLESS))
    for kernel in (direct.rescale, direct.rescale_rle):
        assert getattr(kernel, "signatures", [()])  # a plain function where the compiler is off


def test_reused_memory_is_the_threads_own_and_only_inside(tmp_path):
    path = write(tmp_path, encoded(noisy_slice(SHAPE), RLE))
    outside = read_slice(path).pixels
    with reused():
        first, file = fresh((4, 5), np.uint16, "pixels"), scratch(10, "file")
        assert np.shares_memory(first, fresh((3, 3), np.uint16, "pixels"))
        assert not np.shares_memory(first, file)
        assert not np.shares_memory(outside, read_slice(path).pixels)
        with reused():
            assert not np.shares_memory(first, fresh((4, 5), np.uint16, "pixels"))
        assert np.shares_memory(first, fresh((4, 5), np.uint16, "pixels"))
    assert not np.shares_memory(fresh((4, 5), np.uint16, "pixels"), first)
    assert np.array_equal(outside, noisy_slice(SHAPE))


def test_frames_of_one_file_do_not_overwrite_each_other_in_reused_memory(tmp_path):
    images = [noisy_slice(SHAPE, seed=seed) for seed in range(3)]
    parts = [rle_encoder.encode(image) for image in images]
    path = write(tmp_path, encapsulated_file(parts, SHAPE, RLE, frames=3))
    with reused():
        assert np.array_equal(read_slice(path).pixels, np.stack(images))


def test_a_volumes_memory_is_used_again_once_nobody_refers_to_it():
    shape = (3, 600, 601)
    volume = recycled(shape, np.float32)
    assert volume.shape == shape
    assert volume.dtype == np.float32
    assert volume.flags.writeable
    assert volume.flags.c_contiguous
    volume[...] = 7
    view = volume[1:, ::2]
    address = volume.ctypes.data
    del volume
    others = [recycled(shape, np.float32) for _ in range(3)]
    for other in others:
        other[...] = 1
    assert np.all(view == 7)
    assert address not in [other.ctypes.data for other in others]
    del view
    again = recycled(shape, np.float32)
    assert again.ctypes.data == address
    assert not any(np.shares_memory(again, other) for other in others)


def test_a_volume_stays_as_it_is_when_the_next_series_is_read(tmp_path):
    shape = (800, 700)
    for number in (1, 2):
        write(tmp_path / str(number), native_file(noisy_slice(shape, seed=number)))
    volumes = [read_series(tmp_path / str(number)).stacks[0].volume for number in (1, 2)]
    for number, volume in enumerate(volumes, start=1):
        assert np.array_equal(volume[0], noisy_slice(shape, seed=number))
