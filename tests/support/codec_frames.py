"""What tests of single codecs share: headers without files, images, truncation and mutation of a codestream."""

from dataclasses import fields

import imagecodecs
import numpy as np

from lumbar.dicom.header import Header
from lumbar.errors import DicomError


def make_header(shape, *, allocated=16, stored=None, signed=0, photometric=None, syntax="", path="frame.dcm"):
    """A header that says only what a codec needs; ``shape`` is (rows, columns) or (rows, columns, samples)."""
    samples = shape[2] if len(shape) == 3 else 1
    values = {
        "path": path,
        "problems": (),
        "pixel_data": "PixelData",
        "transfer_syntax_uid": syntax,
        "rows": shape[0],
        "columns": shape[1],
        "bits_allocated": allocated,
        "bits_stored": stored or allocated,
        "high_bit": (stored or allocated) - 1,
        "pixel_representation": signed,
        "samples_per_pixel": samples,
        "planar_configuration": 0 if samples > 1 else None,
        "photometric_interpretation": photometric or ("RGB" if samples > 1 else "MONOCHROME2"),
    }
    return Header(**{field.name: values.get(field.name) for field in fields(Header)})


def frame_bytes(data):
    """(n,) uint8, read-only, as codecs receive a frame."""
    return np.frombuffer(bytes(data), np.uint8)


def noisy_image(shape, bits, seed=0):
    """An MR-like slice: smooth tissue over a dark border, Rician noise, values 0 to 2 ** bits - 1."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    is_inside = np.hypot(y - shape[0] / 2, x - shape[1] / 2) < shape[0] / 2
    tissue = (np.sin(y / 5) + np.cos(x / 7) + 2) / 4 * 0.7 * is_inside
    if len(shape) == 3:
        tissue = tissue[..., None] * np.linspace(0.5, 1, shape[2])
    scale = 2**bits - 1
    noise = scale / 60
    image = np.hypot(tissue * scale + rng.normal(size=shape) * noise, rng.normal(size=shape) * noise)
    return np.clip(image, 0, scale).astype(np.uint8 if bits <= 8 else np.uint16)


def patchy_image(shape, bits, seed=0):
    """Flat patches with single outliers: run lengths of every kind and the samples that end them."""
    rng = np.random.default_rng(seed)
    image = np.zeros(shape, np.uint8 if bits <= 8 else np.uint16)
    for _ in range(6):
        y, x = rng.integers(0, shape[0]), rng.integers(0, shape[1])
        image[y : y + rng.integers(1, shape[0]), x : x + rng.integers(1, shape[1])] = rng.integers(0, 2**bits)
    image[rng.integers(0, shape[0], 4), rng.integers(0, shape[1], 4)] = 2**bits - 1
    return image


def decode_or_refuse(decode_frame, data, header):
    """The pixels, checked for shape and type, or ``None`` where the frame was refused; anything else fails the test."""
    try:
        pixels = decode_frame(frame_bytes(data), header)
    except DicomError as refusal:
        text = str(refusal)
    else:
        text = ""
    if text:
        assert text.startswith(header.path)
        assert "found" in text
        assert "expected" in text
        return None
    assert pixels.shape == header.frame_shape
    assert pixels.dtype == header.pixel_dtype
    return pixels


def mutations(data, count, seed=0):
    """``count`` damaged copies of ``data``: flipped bits, changed bytes, cuts, copies and insertions."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        copy = bytearray(data)
        for _ in range(int(rng.integers(1, 5))):
            at, kind = int(rng.integers(len(copy))), int(rng.integers(5))
            if kind == 0:
                copy[at] ^= 1 << int(rng.integers(8))
            elif kind == 1:
                copy[at] = int(rng.choice([0, 1, 0x7F, 0x80, 0xD0, 0xFE, 0xFF]))
            elif kind == 2:
                del copy[at : at + int(rng.integers(1, 8))]
            elif kind == 3:
                copy[at:at] = copy[at : at + int(rng.integers(1, 40))]
            else:
                copy[at : at + 2] = int(rng.integers(65536)).to_bytes(2, "big")
            if len(copy) < 2:
                break
        yield bytes(copy)


def j2k(image, **options):
    bits = 8 * image.itemsize
    return imagecodecs.jpeg2k_encode(image, level=0, codecformat="j2k", bitspersample=bits, reversible=True, **options)


def with_siz(stream, **values):
    """A JPEG 2000 stream with other numbers in SIZ: x1, y1, x0, y0, tile_x, tile_y, tile_x0, tile_y0."""
    out = bytearray(stream)
    for name, value in values.items():
        at = 8 + 4 * ("x1", "y1", "x0", "y0", "tile_x", "tile_y", "tile_x0", "tile_y0").index(name)
        out[at : at + 4] = value.to_bytes(4, "big")
    return bytes(out)
