"""What a small file may ask for: every cap is reached, by a file of a few KB, and ends in one line."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pytest

import rle_encoder
from codec_frames import j2k, noisy_image, with_siz
from dicom_files import refusal, save
from dicom_writer import JPEG_LOSSLESS, RLE, element, encapsulated_file, image_elements, item, meta, noisy_slice
from lumbar.dicom import direct, limits, pixels, read_series, read_slice
from lumbar.dicom.codecs import fallback
from lumbar.errors import DicomError
from reference import jpeg_ls_twin

BASELINE, EXTENDED, JPEG_LS, JPEG2000, HTJ2K = (f"1.2.840.10008.1.2.4.{end}" for end in (50, 51, 80, 90, 201))
SHAPE = (20, 28)


def refusal_of(folder, data):
    """The one line that reading a file ends in."""
    return refusal(read_slice, save(folder, data))


def blank_rle(n_pixels, n_segments):
    """A black frame, the most that RLE can pack: two bytes for 128."""
    segment = b"\x81\0" * (n_pixels // 128) + (bytes([257 - n_pixels % 128, 0]) if n_pixels % 128 > 1 else b"")
    offsets = [64 + i * len(segment) for i in range(n_segments)]
    return struct.pack("<16I", n_segments, *offsets, *[0] * (15 - n_segments)) + segment * n_segments


def with_size(jpeg, rows, columns, marker):
    """A JPEG or JPEG-LS stream whose frame header says another size."""
    at = jpeg.index(bytes([0xFF, marker])) + 5
    return jpeg[:at] + struct.pack(">HH", rows, columns) + jpeg[at + 4 :]


def with_segments(jpeg, segments):
    """A JPEG stream with ``segments`` before its first scan."""
    at = jpeg.index(b"\xff\xda")
    return jpeg[:at] + segments + jpeg[at:]


@pytest.mark.parametrize(("syntax", "bits"), [(JPEG_LS, 16), (JPEG2000, 16), (BASELINE, 8), (RLE, 16)])
def test_a_blank_slice_of_four_thousand_squared_is_read_however_few_bytes_it_has(tmp_path, syntax, bits):
    blank = np.zeros((4096, 4096), f"u{bits // 8}")
    frame = {
        JPEG_LS: lambda: imagecodecs.jpegls_encode(blank),
        JPEG2000: lambda: j2k(blank),
        BASELINE: lambda: imagecodecs.jpeg_encode(blank, level=90),
        RLE: lambda: blank_rle(blank.size, 2),
    }[syntax]()
    result = read_slice(save(tmp_path, encapsulated_file([frame], blank.shape, syntax, allocated=bits)))
    assert result.pixels.shape == blank.shape
    assert not result.pixels.any()
    assert not result.problems


def test_jpeg_ls_of_a_billion_pixels_in_a_few_bytes_is_refused(tmp_path):
    frame = with_size(jpeg_ls_twin.encode(noisy_image(SHAPE, 8), 8)[0], 32767, 32767, 0xF7) + bytes(8192)
    text = refusal_of(tmp_path, encapsulated_file([frame], (32767, 32767), JPEG_LS, allocated=8))
    assert f"a frame of 32767 x 32767 pixels, expected at most {limits.MAX_FRAME_PIXELS}" in text


@pytest.mark.parametrize("syntax", [RLE, BASELINE, EXTENDED, JPEG_LOSSLESS, JPEG_LS, JPEG2000])
def test_the_size_in_a_codestream_must_be_the_headers(tmp_path, syntax):
    image = noisy_image(SHAPE, 8)
    frame = {
        RLE: lambda: rle_encoder.encode(image),
        BASELINE: lambda: with_size(imagecodecs.jpeg_encode(image), 60000, 28, 0xC0),
        EXTENDED: lambda: with_size(imagecodecs.jpeg_encode(image), 20, 60000, 0xC0),
        JPEG_LOSSLESS: lambda: with_size(imagecodecs.jpeg_encode(image, lossless=True), 60000, 60000, 0xC3),
        JPEG_LS: lambda: with_size(jpeg_ls_twin.encode(image, 8)[0], 60000, 60000, 0xF7),
        JPEG2000: lambda: with_siz(j2k(image), x1=60000, tile_x=60000),
    }[syntax]()
    shape = (200, 280) if syntax == RLE else SHAPE
    refusal_of(tmp_path, encapsulated_file([frame], shape, syntax, allocated=8))


def test_frames_that_need_more_memory_than_a_small_file_may_are_refused(tmp_path):
    blank = j2k(np.zeros((4096, 4096), np.uint16))
    n_most = limits.MEMORY_FLOOR // (2 * 4096 * 4096)
    text = refusal_of(tmp_path, encapsulated_file([blank] * n_most, (4096, 4096), JPEG2000, frames=n_most))
    assert f"{n_most} frame(s) of 4096 x 4096 samples" in text
    assert f"bytes of memory, expected at most {limits.MEMORY_FLOOR}" in text


def test_more_memory_is_granted_to_larger_files():
    image = ("", (4096, 4096), 2, 20)
    with pytest.raises(DicomError, match="bytes of memory"):
        limits.check_image(*image, 10_000_000, 6)
    limits.check_image(*image, 25_000_000, 6)


def test_more_frames_than_any_study_has_are_refused(tmp_path):
    n = limits.MAX_FRAMES + 1
    text = refusal_of(tmp_path, encapsulated_file([b"\0\0"] * 10, (1, 1), RLE, frames=n))
    assert f"{n} frames, expected at most {limits.MAX_FRAMES}" in text


def test_a_flood_of_empty_fragments_is_refused_before_they_are_listed(tmp_path):
    text = refusal_of(tmp_path, encapsulated_file([b""] * 50_000, SHAPE, RLE))
    most = limits.FRAGMENT_FLOOR + 1 + 400_000 // limits.MIN_FRAGMENT_BYTES
    assert abs(int(text.split("more than ")[1].split()[0]) - most) < 4


def test_as_many_fragments_as_any_encoder_writes_are_read(tmp_path):
    image = noisy_slice((120, 100))
    frame = rle_encoder.encode(image)
    for size in (512, len(frame) // 40 // 2 * 2):
        parts = [frame[start : start + size] for start in range(0, len(frame), size)]
        assert np.array_equal(read_slice(save(tmp_path, encapsulated_file(parts, image.shape, RLE))).pixels, image)


def test_thousands_of_frames_are_read(tmp_path):
    frames = [blank_rle(256, 1)] * 3000
    result = read_slice(save(tmp_path, encapsulated_file(frames, (16, 16), RLE, allocated=8, frames=3000)))
    assert result.pixels.shape == (3000, 16, 16)


def test_fragments_are_bounded_in_files_of_any_size():
    assert limits.max_fragments(1, 1 << 40) == limits.MAX_FRAGMENTS
    assert limits.max_fragments(10_000, 1_000_000) > 10_000


@pytest.mark.parametrize("syntax", [HTJ2K, "1.2.840.10008.1.2.4.110", "1.2.3.4"])
def test_a_syntax_without_a_decoder_is_refused_before_its_items_are_looked_at(tmp_path, monkeypatch, syntax):
    monkeypatch.setattr(pixels, "split_frames", None)
    monkeypatch.setattr(fallback, "split_frames", None)
    monkeypatch.setattr("pydicom.dcmread", None)
    monkeypatch.setattr("pydicom.pixels.decoders.base.Decoder.is_available", property(lambda _: False))
    text = refusal_of(tmp_path, encapsulated_file([b""] * 1000, SHAPE, syntax))
    assert syntax in text
    assert "plugin" in text


def test_what_a_plugin_decodes_has_its_fragments_counted_first(tmp_path, monkeypatch):
    monkeypatch.setattr("pydicom.dcmread", None)
    monkeypatch.setattr("pydicom.pixels.decoders.base.Decoder.is_available", property(lambda _: True))
    assert "fragments" in refusal_of(tmp_path, encapsulated_file([b""] * 1000, SHAPE, HTJ2K))


def progressive(image):
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()


def test_a_progressive_image_of_more_scans_than_any_encoder_writes_is_refused(tmp_path):
    image = noisy_image(SHAPE, 8)
    data = progressive(image)
    last = data[data.rindex(b"\xff\xda") : -2]
    assert read_slice(save(tmp_path, encapsulated_file([data], SHAPE, BASELINE, allocated=8))).pixels.shape == SHAPE
    bomb = data[:-2] + last * limits.MAX_SCANS + b"\xff\xd9"
    text = refusal_of(tmp_path, encapsulated_file([bomb], SHAPE, BASELINE, allocated=8))
    assert f"scans, expected at most {limits.MAX_SCANS}" in text


def test_scans_count_for_more_in_large_images(tmp_path, monkeypatch):
    data = progressive(noisy_image(SHAPE, 8))
    monkeypatch.setattr("lumbar.dicom.codecs.opencv.MAX_SCANNED_PIXELS", 3 * SHAPE[0] * SHAPE[1])
    monkeypatch.setattr("lumbar.dicom.codecs.opencv.SCAN_FLOOR", 2)
    assert "expected at most 3 of 560 pixels" in refusal_of(
        tmp_path, encapsulated_file([data], SHAPE, BASELINE, allocated=8)
    )


@pytest.mark.parametrize(
    "segment",
    [b"\xff\xd3", b"\xff\xdd\0\4\0\0", b"\xff\xfe\0\2", b"\xff\xc4\0\x13\0" + bytes(16), b"\xff\xe3\0\2"],
    ids=["restart", "interval", "comment", "table", "application"],
)
def test_a_flood_of_marker_segments_is_refused(tmp_path, segment):
    frame = with_segments(imagecodecs.jpeg_encode(noisy_slice(SHAPE), lossless=True, bitspersample=12), segment * 5000)
    text = refusal_of(tmp_path, encapsulated_file([frame], SHAPE, JPEG_LOSSLESS, stored=12))
    assert f"more than {limits.MAX_SEGMENTS} marker segments and tables" in text or "found pixel" in text


def test_many_tables_in_one_segment_count_one_by_one(tmp_path):
    tables = (b"\xff\xc4" + struct.pack(">H", 2 + 17 * 3000) + bytes(17 * 3000)) * 2
    frame = with_segments(imagecodecs.jpeg_encode(noisy_slice(SHAPE), lossless=True, bitspersample=12), tables)
    assert "marker segments and tables" in refusal_of(
        tmp_path, encapsulated_file([frame], SHAPE, JPEG_LOSSLESS, stored=12)
    )


def test_fill_bytes_before_a_marker_are_passed_over(tmp_path):
    image = noisy_slice(SHAPE)
    frame = with_segments(imagecodecs.jpeg_encode(image, lossless=True, bitspersample=12), b"\xff" * 100_000)
    result = read_slice(save(tmp_path, encapsulated_file([frame], SHAPE, JPEG_LOSSLESS, stored=12)))
    assert np.array_equal(result.pixels, image)


def test_a_second_scan_of_the_same_component_is_refused(tmp_path):
    image = noisy_image((*SHAPE, 3), 8)
    data = imagecodecs.jpeg_encode(image, lossless=True)
    at = data.index(b"\xff\xda")
    first = b"\xff\xda\0\x08\x01" + data[at + 5 : at + 7] + data[at + 11 : at + 14] + data[at + 14 : -2]
    text = refusal_of(tmp_path, encapsulated_file([data[:at] + first * 50], image.shape, JPEG_LOSSLESS, allocated=8))
    assert "a second scan of components [0], expected some of [1, 2]" in text


CHILD = """
import importlib, sys
import fuzz_mutate
from lumbar.dicom import read_slice
for name in ("rle", "opencv", "jpeg_lossless", "jpeg_ls"):
    importlib.import_module(f"lumbar.dicom.codecs.{name}").warm_up()
for path in sys.argv[1:]:
    shape, n_bytes = fuzz_mutate.peak_memory(lambda: read_slice(path).pixels.shape)
    print(path, n_bytes >> 20, *shape)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux")
def test_the_largest_images_that_small_files_may_hold_take_less_than_500_mb(tmp_path):
    side = int(limits.MAX_FRAME_PIXELS**0.5)
    blank = np.zeros((side, side), np.uint16)
    colour = np.zeros((512, 512, 3), np.uint8)
    cine = [imagecodecs.jpeg_encode(colour, level=90)] * 500
    files = {
        "rle": encapsulated_file([blank_rle(side * side, 4)], blank.shape, RLE, allocated=32),
        "frames": encapsulated_file([blank_rle(512 * 512, 2)] * 760, (512, 512), RLE, frames=760),
        "jpeg2000": encapsulated_file([j2k(blank)], blank.shape, JPEG2000),
        "jpeg-ls": encapsulated_file([imagecodecs.jpegls_encode(blank)], blank.shape, JPEG_LS),
        "progressive": encapsulated_file([progressive(blank.astype(np.uint8))], blank.shape, BASELINE, allocated=8),
        "cine": encapsulated_file(cine, colour.shape, BASELINE, allocated=8, frames=500, photometric="YBR_FULL_422"),
    }
    for name, data in files.items():
        assert len(data) < 10_000_000
        (tmp_path / name).write_bytes(data)
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    command = [sys.executable, "-c", CHILD, *(str(tmp_path / name) for name in files)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == len(files)
    for line in lines:
        assert int(line.split()[1]) < 477, line  # 500 million bytes


def raising(*_args, **_kwargs):
    raise MemoryError


@pytest.mark.parametrize("place", ["lumbar.dicom.pixels.read_file", "lumbar.dicom.pixels.split_frames"])
def test_where_memory_ends_read_slice_says_so_in_one_line(tmp_path, monkeypatch, place):
    monkeypatch.setattr(place, raising)
    monkeypatch.setattr("lumbar.dicom.pixels.only_fragment", lambda *_: None)
    assert "no memory" in refusal_of(tmp_path, encapsulated_file([rle_encoder.encode(noisy_slice(SHAPE))], SHAPE, RLE))


def test_where_memory_ends_a_series_names_the_slice(tmp_path, monkeypatch):
    frame = rle_encoder.encode(noisy_slice(SHAPE))
    for name in ("1.dcm", "2.dcm"):
        (tmp_path / name).write_bytes(encapsulated_file([frame], SHAPE, RLE))
    reread = direct.reread
    monkeypatch.setattr(
        direct, "reread", lambda path, size: raising() if path.endswith("2.dcm") else reread(path, size)
    )
    series = read_series(tmp_path)
    assert series.stacks[0].volume.shape == (1, *SHAPE)
    assert any("2.dcm" in line and "no memory" in line for line in series.problems)


def test_compressed_pixels_of_one_bit_are_refused(tmp_path):
    frame = imagecodecs.jpeg_encode(noisy_image(SHAPE, 8))
    assert "1 bit(s)" in refusal_of(tmp_path, encapsulated_file([frame], SHAPE, BASELINE, allocated=1))


def test_an_extended_offset_table_of_huge_offsets_is_left_aside(tmp_path):
    frames = [rle_encoder.encode(noisy_slice(SHAPE, seed=seed)) for seed in range(2)]
    offsets = struct.pack("<2Q", 0, (1 << 64) - 8)
    extra = [(0x7FE00001, "OV", offsets), (0x7FE00002, "OV", offsets)]
    parts = [frames[0][:64], frames[0][64:], frames[1]]
    text = refusal_of(tmp_path, encapsulated_file(parts, SHAPE, RLE, frames=2, extra=extra))
    assert "3 fragments without a usable offset table" in text
    assert read_slice(save(tmp_path, encapsulated_file(frames, SHAPE, RLE, frames=2, extra=extra))).pixels.shape[0] == 2


def test_an_item_cut_off_by_the_end_of_the_file_is_refused(tmp_path):
    body = meta(RLE) + image_elements(SHAPE)
    for tail in (b"", b"\xfe\xff\0\xe0", item(b"") + b"\xfe\xff\0\xe0\xff\xff\xff\xff"):
        refusal_of(tmp_path, body + element(0x7FE00010, "OB", tail, length=0xFFFFFFFF))


def test_volumes_of_many_frames_count_as_memory_of_their_file(tmp_path):
    image = np.zeros((512, 512), np.uint8)
    frames = [imagecodecs.jpegls_encode(image)] * 400  # decoded 105 MB, in a volume 420 MB more
    path = save(tmp_path, encapsulated_file(frames, image.shape, JPEG_LS, allocated=8, frames=400))
    assert read_slice(path).pixels.shape == (400, 512, 512)
    with pytest.raises(DicomError, match=r"400 frames of 512 x 512 pixels in \d+ bytes, which need 524288000 bytes"):
        read_series(tmp_path)


def test_a_series_of_blank_images_that_would_fill_the_memory_is_refused():
    limits.check_volumes("7", 192 * 1024 * 1024, 1000)
    limits.check_volumes("7", 1 << 30, 1 << 30)
    with pytest.raises(DicomError, match=r"series 7: found 1073741824 pixels in 1000 bytes of files"):
        limits.check_volumes("7", 1 << 30, 1000)
