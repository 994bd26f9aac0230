"""Uncompressed pixels (PS3.5 sections A.1 to A.3 and A.5; pixel encoding in section 8.1): a view of the file's bytes.

Bits above BitsStored do not belong to the value (they held overlays once, and may hold anything): they are cleared, or
filled with the sign. The array is written only if such bits are set; else it stays a view.
"""

from __future__ import annotations

import numpy as np

from lumbar.dicom.codecs._bits import gather_bits
from lumbar.dicom.header import EXPLICIT_BIG, File, Header
from lumbar.errors import DicomError

TRANSFER_SYNTAXES: tuple[str, ...] = (
    "1.2.840.10008.1.2",  # implicit little endian
    "1.2.840.10008.1.2.1",  # explicit little endian
    "1.2.840.10008.1.2.1.99",  # deflated explicit little endian
    EXPLICIT_BIG,
)


def decode_frame(data: np.ndarray, header: Header) -> np.ndarray:
    """Decode one frame (``lumbar.dicom.pixels.Codec``): the array returned shares the memory of ``data``.

    Its samples are big-endian for that transfer syntax.
    """
    return decode_frames(data, header, 1)[0]


def decode_frames(data: np.ndarray, header: Header, n_frames: int) -> np.ndarray:
    """Decode ``n_frames`` frames that follow each other without padding: ``(frames, rows, columns[, samples])``."""
    shape, dtype = header.frame_shape, header.pixel_dtype
    n_samples = n_frames
    for size in shape:
        n_samples *= size
    if header.bits_allocated == 1:
        _require(data, header, (n_samples + 7) // 8)
        return np.unpackbits(data, count=n_samples, bitorder="little").reshape(n_frames, *shape)
    _require(data, header, n_samples * dtype.itemsize)
    if header.transfer_syntax_uid == EXPLICIT_BIG:
        dtype = dtype.newbyteorder(">")
    pixels = np.frombuffer(data, dtype, n_samples)
    if len(shape) == 3 and header.planar_configuration == 1:
        return pixels.reshape(n_frames, shape[2], *shape[:2]).transpose(0, 2, 3, 1)
    return pixels.reshape(n_frames, *shape)


def _require(data: np.ndarray, header: Header, expected: int) -> None:
    if data.size < expected:
        raise DicomError(
            f"{header.path}: found {data.size} bytes of pixel data, expected {expected} for {header.rows} x "
            f"{header.columns} pixels of {header.bits_allocated} bits"
        )


def decode_file(file: File, n_frames: int) -> np.ndarray:
    """Decode all frames of an uncompressed file: ``(frames, rows, columns[, samples])``, which share its memory."""
    start, length = file.pixels_start, file.pixels_length
    if length < 0:
        raise DicomError(
            f"{file.header.path}: found pixel data of undefined length at offset {start}, expected uncompressed pixels"
        )
    data = file.source[start : start + length]
    if file.is_big and file.header.bits_allocated == 8 and file.pixels_vr == "OW":
        data = data[: length // 2 * 2].view(np.uint16).byteswap().view(np.uint8)  # bytes are swapped in pairs
    return decode_frames(data, file.header, n_frames)


def clear_unused_bits(pixels: np.ndarray, header: Header) -> np.ndarray:
    """Clear the bits above BitsStored, or set them to the sign; returns the same array where they were right."""
    dtype = pixels.dtype
    shift = 8 * dtype.itemsize - header.stored_bits
    if shift <= 0 or header.bits_allocated == 1 or dtype.kind == "f":
        return pixels
    flags = pixels.flags
    if dtype.isnative and flags.c_contiguous and flags.aligned:
        is_signed = dtype.kind == "i"
        words = pixels.reshape(-1).view(_UNSIGNED[dtype.itemsize])
        if not gather_bits(words, is_signed) >> header.stored_bits:
            return pixels
    pixels = pixels if flags.writeable else pixels.copy()
    np.left_shift(pixels, shift, out=pixels)
    np.right_shift(pixels, shift, out=pixels)
    return pixels


_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def warm_up() -> None:
    """Compile what the competition's 12-bit slices need."""
    gather_bits(np.zeros(1, np.uint16), False)
