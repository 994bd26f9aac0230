"""What a JPEG 2000 codestream may claim: tiles, precincts, code-blocks, layers and packets."""

import re
import struct
from io import BytesIO

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from codec_frames import j2k, noisy_image, with_siz
from dicom_files import refusal, save
from dicom_writer import encapsulated_file
from lumbar.dicom import read_slice

JPEG2000 = "1.2.840.10008.1.2.4.90"


def refusal_of(folder, data):
    """The one line that reading a file ends in."""
    return refusal(read_slice, save(folder, data))


def with_cod(stream, *, layers=None, precincts=None, block=None, style=None):
    """A JPEG 2000 stream with other numbers in its coding style."""
    at = stream.index(b"\xff\x52")
    length = int.from_bytes(stream[at + 2 : at + 4], "big")
    cod = bytearray(stream[at + 4 : at + 2 + length])
    if layers is not None:
        cod[2:4] = layers.to_bytes(2, "big")
    if block is not None:
        cod[6:8] = block
    if style is not None:
        cod[8] = style
    if precincts is not None:
        cod[0] |= 1
        cod[10:] = bytes([precincts] * (cod[5] + 1))
    return stream[: at + 2] + struct.pack(">H", len(cod) + 2) + bytes(cod) + stream[at + 2 + length :]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: with_siz(data, tile_x=1, tile_y=1), "tiles of 1 x 1"),
        (lambda data: with_cod(data, layers=65535), "65535 quality layers, expected 1 to 256"),
        (lambda data: with_cod(data, layers=0), "0 quality layers"),
        (lambda data: with_cod(data, precincts=0x00), "precincts at|packets in|bytes of memory"),
        (lambda data: with_cod(data, precincts=0x0F, layers=256), "precincts at|packets in"),
        (lambda data: with_cod(data, block=b"\0\0", style=4), "bytes of memory"),
        (lambda data: with_cod(data, block=b"\x0f\x0f"), "code-blocks of 2"),
        (lambda data: data[: data.index(b"\xff\x52")] + data[data.index(b"\xff\x5c") :], "no coding style"),
        (lambda data: data[:-2] + b"\xff\x90\0\x0a\0\0\0\0\0\x0e\1\0\xff\x93" * 20000, "tile-parts"),
    ],
)
def test_jpeg_2000_that_claims_more_records_than_its_bytes_hold_is_refused(tmp_path, change, reason):
    shape = (2048, 2048)
    data = change(j2k(np.zeros(shape, np.uint16)))
    assert re.search(reason, refusal_of(tmp_path, encapsulated_file([data], shape, JPEG2000)))


def test_the_frames_of_a_file_share_the_tiles_that_their_bytes_do_not_hold(tmp_path):
    shape = (256, 256)
    data = with_siz(j2k(np.zeros(shape, np.uint16)), tile_x=4, tile_y=4)
    frames = [data] * 100
    text = refusal_of(tmp_path, encapsulated_file(frames, shape, JPEG2000, frames=100))
    assert f"4096 tiles in {len(data) + len(data) % 2} bytes" in text


def test_a_coding_style_hidden_in_a_tile_part_counts(tmp_path):
    data = j2k(np.zeros((2048, 2048), np.uint16))
    cod = data[data.index(b"\xff\x52") :][: 2 + int.from_bytes(data[data.index(b"\xff\x52") + 2 :][:2], "big")]
    at = data.index(b"\xff\x93")
    hidden = cod[:6] + b"\xff\xff" + cod[8:]
    start = data.index(b"\xff\x90")
    length = int.from_bytes(data[start + 6 : start + 10], "big") + len(hidden)
    data = data[: start + 6] + length.to_bytes(4, "big") + data[start + 10 : at] + hidden + data[at:]
    assert "65535 quality layers" in refusal_of(tmp_path, encapsulated_file([data], (2048, 2048), JPEG2000))


@pytest.mark.parametrize(
    "options",
    [
        {"tile_size": (32, 32)},
        {"num_resolutions": 7, "progression": "CPRL"},
        {"codeblock_size": (4, 4)},
        {"precinct_size": (64, 64), "progression": "PCRL"},
        {"quality_layers": [*list(range(40, 0, -1)), 0]},
    ],
)
def test_usual_tiles_blocks_precincts_and_layers_of_jpeg_2000_are_read(tmp_path, options):
    image, out = noisy_image((300, 260), 16), BytesIO()
    Image.fromarray(image).save(out, "JPEG2000", irreversible=False, no_jp2=True, **options)
    data = out.getvalue()
    image = imagecodecs.jpeg2k_decode(data)
    assert np.array_equal(read_slice(save(tmp_path, encapsulated_file([data], image.shape, JPEG2000))).pixels, image)
