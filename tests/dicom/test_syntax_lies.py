"""Transfer syntaxes that are not those of the pixels: the codestream's markers decide, and a problem line says so."""

import struct

import cv2
import imagecodecs
import numpy as np
import pydicom
import pytest

import rle_encoder
from codec_frames import noisy_image
from dicom_writer import (
    EXPLICIT,
    IMPLICIT,
    JPEG_LOSSLESS,
    JPEG_LOSSLESS_SV1,
    RLE,
    element,
    encapsulated_file,
    image_elements,
    item,
    meta,
    native_file,
    noisy_slice,
)
from lumbar.dicom import read_series, read_slice
from lumbar.dicom.codecs.codestream import identify
from lumbar.dicom.pixels import CODECS, GE_PRIVATE
from lumbar.errors import DicomError
from reference import jpeg_ls_twin

BASELINE, EXTENDED, JPEG_LS, NEAR, J2K_LOSSLESS, J2K, HTJ2K = (
    f"1.2.840.10008.1.2.4.{end}" for end in (50, 51, 80, 81, 90, 91, 201)
)
SHAPE = (20, 28)
GREY, SMALL, COLOUR = noisy_slice(SHAPE), noisy_image(SHAPE, 8), noisy_image((*SHAPE, 3), 8)


def j2k(image, bits, **options):
    return imagecodecs.jpeg2k_encode(image, bitspersample=bits, **{"codecformat": "j2k", "reversible": True, **options})


# Name: bytes of a frame, transfer syntaxes that announce it, image options
CONTENTS = {
    "baseline": (imagecodecs.jpeg_encode(SMALL, level=90), {BASELINE, EXTENDED}, {"allocated": 8}),
    "progressive": (
        cv2.imencode(".jpg", SMALL, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes(),
        set(),
        {"allocated": 8},
    ),
    "extended": (imagecodecs.jpeg_encode(GREY, level=90, bitspersample=12), {EXTENDED}, {"stored": 12}),
    "predictor 1": (
        imagecodecs.jpeg_encode(GREY, lossless=True, predictor=1, bitspersample=12),
        {JPEG_LOSSLESS, JPEG_LOSSLESS_SV1},
        {"stored": 12},
    ),
    "predictor 6": (
        imagecodecs.jpeg_encode(GREY, lossless=True, predictor=6, bitspersample=12),
        {JPEG_LOSSLESS},
        {"stored": 12},
    ),
    "jpeg-ls": (jpeg_ls_twin.encode(GREY, 12)[0], {JPEG_LS, NEAR}, {"stored": 12}),
    "near": (jpeg_ls_twin.encode(GREY, 12, near=2)[0], {NEAR}, {"stored": 12}),
    "jpeg 2000": (j2k(GREY, 12, level=0), {J2K_LOSSLESS, J2K}, {"stored": 12}),
    "jp2 file": (j2k(GREY, 12, level=0, codecformat="jp2"), {J2K_LOSSLESS, J2K}, {"stored": 12}),
    "lossy jpeg 2000": (j2k(GREY, 12, level=50, reversible=False), {J2K}, {"stored": 12}),
    "rle": (rle_encoder.encode(GREY), {RLE}, {"stored": 12}),
    "colour": (
        imagecodecs.jpeg_encode(COLOUR, level=90, colorspace="RGB", outcolorspace="YCBCR"),
        {BASELINE, EXTENDED},
        {"allocated": 8, "photometric": "YBR_FULL_422"},
    ),
}


def saved(folder, data, name="1.dcm"):
    path = folder / name
    path.write_bytes(data)
    return path


def file_of(name, syntax, **options):
    frame, _, image = CONTENTS[name]
    return encapsulated_file([frame], COLOUR.shape if name == "colour" else SHAPE, syntax, **image, **options)


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("claimed", [*CODECS, HTJ2K])
def test_pixels_are_decoded_as_their_markers_say(tmp_path, name, claimed):
    announced = CONTENTS[name][1]
    right = read_slice(saved(tmp_path, file_of(name, min(announced, default=BASELINE))))
    result = read_slice(saved(tmp_path, file_of(name, claimed)))
    tolerance = 1 if EXTENDED in announced and claimed == EXTENDED else 0  # two decoders of one process
    assert result.pixels.dtype == right.pixels.dtype
    assert np.max(np.abs(result.pixels.astype(int) - right.pixels)) <= tolerance
    if claimed in announced:
        assert result.problems == ()
    else:
        assert len(result.problems) == 1
        assert "found" in result.problems[0]
        assert f"({claimed})" in result.problems[0]


@pytest.mark.parametrize(
    ("name", "claimed"),
    [
        ("baseline", JPEG_LOSSLESS),
        ("baseline", JPEG_LOSSLESS_SV1),
        ("colour", JPEG_LOSSLESS_SV1),
        ("extended", JPEG_LOSSLESS),
        ("predictor 1", BASELINE),
        ("predictor 1", EXTENDED),
        ("predictor 6", JPEG_LOSSLESS_SV1),
        ("predictor 6", JPEG_LS),
        ("jpeg-ls", BASELINE),
        ("jpeg-ls", JPEG_LOSSLESS),
        ("near", JPEG_LS),
        ("lossy jpeg 2000", J2K_LOSSLESS),
        ("progressive", EXTENDED),
    ],
)
def test_lies_are_read_as_pydicom_reads_them(tmp_path, name, claimed):
    path = saved(tmp_path, file_of(name, claimed))
    expected = pydicom.dcmread(path).pixel_array.astype(int)
    # Lossy codecs leave a step of rounding open
    assert np.max(np.abs(read_slice(path).pixels.astype(int) - expected)) <= (0 if "predictor" in name else 1)


@pytest.mark.parametrize("name", [name for name in CONTENTS if name != "rle"])
@pytest.mark.parametrize("claimed", [EXPLICIT, "1.2.3.4"])
def test_fragments_under_a_native_or_an_unknown_syntax_are_decoded(tmp_path, name, claimed):
    right = read_slice(saved(tmp_path, file_of(name, min(CONTENTS[name][1], default=BASELINE)))).pixels
    result = read_slice(saved(tmp_path, file_of(name, claimed)))
    assert np.array_equal(result.pixels, right)
    assert len(result.problems) == 1


def test_fragments_of_defined_length_under_a_native_syntax_are_decoded_where_the_length_is_no_images(tmp_path):
    shape = (200, 300)
    image = np.zeros(shape, np.uint16)
    image[50:90] = 900
    value = item(b"") + item(imagecodecs.jpeg_encode(image, lossless=True, bitspersample=12))
    body = meta(EXPLICIT) + image_elements(shape, stored=12)
    result = read_slice(saved(tmp_path, body + element(0x7FE00010, "OW", value)))
    assert np.array_equal(result.pixels, image)
    assert result.problems


@pytest.mark.parametrize("claimed", [RLE, JPEG_LOSSLESS, J2K, HTJ2K, "1.2.3.4"])
@pytest.mark.parametrize("frames", [None, 3])
def test_uncompressed_pixels_under_a_compressed_syntax_are_read_where_the_length_leaves_no_doubt(
    tmp_path, claimed, frames
):
    image = np.stack([noisy_slice(SHAPE, seed=seed) for seed in range(3)]) if frames else GREY
    data = native_file(image, EXPLICIT, stored=12, frames=frames)
    result = read_slice(saved(tmp_path, data.replace(meta(EXPLICIT), meta(claimed))))
    assert np.array_equal(result.pixels, image)
    assert len(result.problems) == 1
    assert "uncompressed" in result.problems[0]


@pytest.mark.parametrize("change", [-2, 2])
def test_uncompressed_pixels_of_another_length_under_a_compressed_syntax_are_refused(tmp_path, change):
    raw = GREY.tobytes()[:change] if change < 0 else GREY.tobytes() + bytes(change)
    data = meta(RLE) + image_elements(SHAPE, stored=12) + element(0x7FE00010, "OW", raw)
    with pytest.raises(DicomError, match="found pixel data of defined length"):
        read_slice(saved(tmp_path, data))


@pytest.mark.parametrize("frames", [1, 2])
def test_uncompressed_frames_in_fragments_are_read(tmp_path, frames):
    images = [noisy_slice(SHAPE, seed=seed) for seed in range(frames)]
    data = encapsulated_file([image.tobytes() for image in images], SHAPE, EXPLICIT, frames=frames, stored=12)
    result = read_slice(saved(tmp_path, data))
    assert np.array_equal(result.pixels, images[0] if frames == 1 else np.stack(images))
    assert result.problems


@pytest.mark.parametrize("is_big", [True, False])
def test_ge_private_pixels_are_big_endian_unless_their_bits_say_otherwise(tmp_path, is_big):
    image = GREY.byteswap() if is_big else GREY
    data = native_file(image, IMPLICIT, stored=12).replace(meta(IMPLICIT), meta(GE_PRIVATE))
    assert np.array_equal(read_slice(saved(tmp_path, data)).pixels, GREY)


@pytest.mark.parametrize(
    ("name", "claimed"),
    [
        ("baseline", JPEG_LOSSLESS),
        ("extended", JPEG_LOSSLESS_SV1),
        ("predictor 6", JPEG_LOSSLESS_SV1),
        ("rle", J2K),
        ("predictor 1", RLE),
        ("jpeg 2000", RLE),
        ("jpeg-ls", EXPLICIT),
    ],
)
def test_a_series_of_such_files_has_the_pixels_of_its_slices(tmp_path, name, claimed):
    path = saved(tmp_path, file_of(name, claimed))
    assert np.array_equal(read_series(tmp_path).stacks[0].volume[0], read_slice(path).pixels)


def test_every_truncation_of_a_codestream_is_identified_or_not_but_never_fails(tmp_path):
    header = read_slice(saved(tmp_path, file_of("rle", RLE))).header
    for frame, _, _ in CONTENTS.values():
        data = np.frombuffer(frame, np.uint8)
        kinds = {identify(data[:size], header) for size in range(min(data.size, 700))}
        assert len(kinds) <= 2


def test_frames_of_another_process_than_the_first_are_refused(tmp_path):
    frames = [CONTENTS["predictor 1"][0], CONTENTS["jpeg-ls"][0]]
    with pytest.raises(DicomError, match="frame header fff7"):
        read_slice(saved(tmp_path, encapsulated_file(frames, SHAPE, JPEG_LOSSLESS, frames=2, stored=12)))


def test_a_compressed_frame_split_inside_its_first_marker_is_identified(tmp_path):
    frame = CONTENTS["jpeg 2000"][0]
    data = encapsulated_file([frame[:2], frame[2:]], SHAPE, JPEG_LOSSLESS, stored=12, table=struct.pack("<I", 0))
    assert np.array_equal(read_slice(saved(tmp_path, data)).pixels, GREY)
