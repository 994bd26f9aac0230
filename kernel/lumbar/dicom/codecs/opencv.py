"""JPEG baseline and JPEG 2000 through OpenCV, which Kaggle's image has; sizes are checked before OpenCV gets the bytes.

Two things are corrected. OpenCV refuses signed components of JPEG 2000: the sign bit of Ssiz is cleared in a copy,
which shifts all samples up by half of the range, and they are shifted back after decoding. And libjpeg takes colour for
YCbCr unless a marker says otherwise: an Adobe segment is added that says what the data set says.
"""

from __future__ import annotations

import cv2
import numpy as np

from lumbar.dicom.codecs.codestream import JP2_SIGNATURE, is_jpeg2000
from lumbar.dicom.codecs.colour import is_ybr, to_rgb
from lumbar.dicom.codecs.jpeg2000_markers import SIZ_BYTES, check_siz, check_styles, find_codestream
from lumbar.dicom.codecs.jpeg_markers import MarkerReader, check_room, check_size
from lumbar.dicom.codecs.jpeg_segments import refuse
from lumbar.dicom.codecs.native import clear_unused_bits
from lumbar.dicom.header import Header
from lumbar.dicom.limits import MAX_SCANNED_PIXELS, MAX_SCANS, SCAN_FLOOR
from lumbar.errors import DicomError

JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
TRANSFER_SYNTAXES = (JPEG_BASELINE, "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")

_DCT_FRAMES = (0xC0, 0xC1, 0xC2)
_ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"  # without its last byte, the transform
_JP2_TYPE = b"\x00\x00\x00\x14ftypjp2 \x00\x00\x00\x00jp2 "
_START_OF_SCAN = b"\xff\xda"
_DECODED_BYTES = 6  # of memory that OpenJPEG and OpenCV take for each sample


def decode_frame(data: np.ndarray, header: Header) -> np.ndarray:
    """Decode one frame of JPEG (8 bits, any DCT process) or JPEG 2000 (``lumbar.dicom.pixels.Codec``).

    JPEG 2000 may have up to 16 bits and one or three components. The header's transfer syntax counts only where the
    first bytes do not tell which of the two it is.
    """
    start = data[:12].tobytes()
    is_announced = header.transfer_syntax_uid in TRANSFER_SYNTAXES[1:] and start[:2] != b"\xff\xd8"
    if is_announced or is_jpeg2000(start):
        return _decode_jpeg2000(bytes(data), header)
    return _decode_jpeg(data, header)


def _decode_jpeg(data: np.ndarray, header: Header) -> np.ndarray:
    shape, dtype, path = header.frame_shape, header.pixel_dtype, header.path
    reader = MarkerReader(data, path)
    scan = reader.next_scan()
    frame = reader.frame
    if frame is None or scan is None:
        raise refuse(path, reader.position, "no scan", "one")
    if frame.marker not in _DCT_FRAMES or frame.precision != 8:
        value = f"frame header ff{frame.marker:02x} of {frame.precision} bits"
        raise refuse(path, frame.offset, value, "ffc0, ffc1 or ffc2 of 8 bits")
    samples = shape[2] if len(shape) == 3 else 1
    check_size(path, frame, rows=shape[0], columns=shape[1], samples=samples)
    check_room(path, frame.offset, data.size, n_samples=shape[0] * shape[1] * samples, least=shape[0] * shape[1] // 512)
    _check_scans(data, path, frame.offset, shape[0] * shape[1] * max(1, header.number_of_frames or 1))
    if samples == 3:
        is_transformed = is_ybr(header, reader)
        head, tail = data[: scan.offset].tobytes(), data[scan.offset :].tobytes()
        if not is_transformed:
            head = head.replace(b"JFIF\0", b"none\0")  # libjpeg would believe it, and not the Adobe segment
        data = np.frombuffer(head + _ADOBE + bytes([is_transformed]) + tail, np.uint8)
    pixels = _decode(data, path, shape)
    if pixels.dtype != np.uint8:
        raise DicomError(f"{path}: found {pixels.dtype} samples from OpenCV, expected uint8")
    return clear_unused_bits(pixels.astype(dtype, copy=False), header)


def _check_scans(data: np.ndarray, path: str, offset: int, n_pixels: int) -> None:
    """Refuse an image with more scans than any encoder writes, because libjpeg passes over the whole image for each.

    Entropy-coded data cannot contain the marker, so there are at most as many scans as the marker is found.
    """
    most = min(MAX_SCANS, max(SCAN_FLOOR, MAX_SCANNED_PIXELS // n_pixels))
    n_scans = data.tobytes().count(_START_OF_SCAN)
    if n_scans > most:
        raise refuse(path, offset, f"{n_scans} scans", f"at most {most} of {n_pixels} pixels")


def _decode_jpeg2000(data: bytes, header: Header) -> np.ndarray:
    shape, dtype, path = header.frame_shape, header.pixel_dtype, header.path
    rows, columns = shape[:2]
    samples = shape[2] if len(shape) == 3 else 1
    start = find_codestream(data, path)
    n_frames = max(1, header.number_of_frames or 1)
    size = check_siz(data, start, path, rows=rows, columns=columns, samples=samples)
    precision, is_signed = size.precision, size.is_signed
    if precision > 8 * dtype.itemsize:
        raise refuse(path, start, f"{precision} bits a sample", f"at most {8 * dtype.itemsize}")
    n_samples = rows * columns * samples
    check_room(path, start, len(data), n_samples=n_samples, least=0)
    check_styles(data, start, path, size, n_frames=n_frames, n_pixels_bytes=n_samples * _DECODED_BYTES)
    stream = bytearray(data[start:])
    for i in range(samples):
        stream[4 + SIZ_BYTES + 2 + 3 * i] = precision - 1
    pixels = _decode(np.frombuffer(_wrap(stream, rows, columns, samples, precision), np.uint8), path, shape)
    expected = np.uint8 if precision <= 8 else np.uint16
    if pixels.dtype != expected:
        raise DicomError(f"{path}: found {pixels.dtype} samples from OpenCV, expected {expected.__name__}")
    pixels = pixels.astype(f"u{dtype.itemsize}", copy=False)
    is_wanted_signed = dtype.kind == "i"
    if is_signed:
        pixels -= pixels.dtype.type(1 << (precision - 1))  # wraps around, to two's complement in all bits of the type
    pixels = pixels.view(dtype)
    unused = 8 * dtype.itemsize - precision
    if is_signed != is_wanted_signed and samples == 1 and unused:  # the data set is believed, not the codestream
        pixels <<= unused
        pixels >>= unused
    return to_rgb(pixels, header, None) if samples == 3 else pixels


def _wrap(stream: bytearray, rows: int, columns: int, samples: int, precision: int) -> bytes:
    """Put a codestream into a JP2 file that names its colour space, without which OpenCV prints a warning."""
    size = rows.to_bytes(4, "big") + columns.to_bytes(4, "big") + samples.to_bytes(2, "big")
    image = b"\x00\x00\x00\x16ihdr" + size + bytes([precision - 1, 7, 0, 0])
    colour = b"\x00\x00\x00\x0fcolr\x01\x00\x00\x00\x00\x00" + (b"\x11" if samples == 1 else b"\x10")
    head = b"\x00\x00\x00\x2djp2h" + image + colour
    length = (len(stream) + 8).to_bytes(4, "big")
    return b"".join((JP2_SIGNATURE, _JP2_TYPE, head, length, b"jp2c", stream))


def _decode(data: np.ndarray, path: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return what OpenCV decodes as an array of ``shape`` that owns its data, colour as RGB."""
    try:
        pixels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        reason = getattr(error, "err", None) or " ".join(str(error).split())  # errors thrown by C++ have no ``err``
        raise refuse(path, 0, f"data that OpenCV refuses ({reason})", "an image") from error
    if pixels is None:
        raise refuse(path, 0, "data that OpenCV cannot decode", "an image")
    if pixels.shape != shape:
        raise refuse(path, 0, f"{pixels.shape} from OpenCV", shape)
    return np.ascontiguousarray(pixels[..., ::-1]) if pixels.ndim == 3 else pixels


def warm_up() -> None:
    """Let OpenCV load what it needs for its first image."""
    cv2.imdecode(np.zeros(1, np.uint8), cv2.IMREAD_UNCHANGED)
