"""Colour of decoded frames: in which colour space the samples are, and YBR_FULL to RGB as pydicom converts it."""

from __future__ import annotations

import numpy as np

from lumbar.dicom.codecs.jpeg_markers import MarkerReader
from lumbar.dicom.header import Header
from lumbar.errors import DicomError

_SAMPLES_AT_ONCE = 1 << 20  # samples that are converted together: each takes 16 bytes meanwhile
_RGB_IDENTIFIERS = ([82, 71, 66], [114, 103, 98])
# PS3.3 C.7.6.3.1.2, rows Y, B, R; columns R, G, B
_YBR_TO_RGB = np.array(
    [[1.0, 1.0, 1.0], [0.0, -0.114 * 1.772 / 0.587, 1.772], [1.402, -0.299 * 1.402 / 0.587, 0.0]], np.float32
)


def is_ybr(header: Header, reader: MarkerReader | None) -> bool:
    """Tell whether colour samples are YBR_FULL or YBR_FULL_422.

    As in pydicom, component identifiers "RGB" overrule the data set, and so does a JFIF segment where the data set says
    RGB. ``reader`` is ``None`` for a codestream that has neither.
    """
    photometric = header.photometric_interpretation or "RGB"
    if reader is None:
        return photometric in ("YBR_FULL", "YBR_FULL_422")
    frame = reader.frame
    if frame is not None and [component.identifier for component in frame.components] in _RGB_IDENTIFIERS:
        return False
    if "YBR" not in photometric and any(content.startswith(b"JFIF") for _, content in reader.applications):
        return True
    return photometric in ("YBR_FULL", "YBR_FULL_422")


def to_rgb(pixels: np.ndarray, header: Header, reader: MarkerReader | None) -> np.ndarray:
    """Return ``pixels`` (..., rows, columns, 3) as RGB where they are YBR_FULL, else unchanged.

    Raises:
        DicomError: YBR_FULL that is not uint8, to which the standard's conversion does not apply.
    """
    if not is_ybr(header, reader):
        return pixels
    if pixels.dtype != np.uint8:
        photometric = header.photometric_interpretation
        raise DicomError(f"{header.path}: found {photometric} samples of type {pixels.dtype}, expected uint8")
    rgb = np.empty(pixels.shape, np.uint8)
    lines, converted = pixels.reshape(-1, *pixels.shape[-2:]), rgb.reshape(-1, *pixels.shape[-2:])
    step = max(1, _SAMPLES_AT_ONCE // (3 * pixels.shape[-2]))
    for start in range(0, len(lines), step):
        values = lines[start : start + step].astype(np.float32)
        values -= np.array([0, 128, 128], np.float32)
        values = np.matmul(values, _YBR_TO_RGB)
        converted[start : start + step] = np.clip(np.floor(values + np.float32(0.5)), 0, 255)
    return rgb
