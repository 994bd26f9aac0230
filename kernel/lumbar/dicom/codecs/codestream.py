"""Recognising the coding of pixels by their own markers, whatever the transfer syntax says.

Files whose transfer syntax was changed, or copied from another file, are common. The first bytes of a codestream tell
how it is coded with certainty, so they decide, as in GDCM and in pydicom's plugins.
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass

import numpy as np

from lumbar.dicom.codecs.jpeg_markers import (
    FRAME_MARKERS,
    SOF_BASELINE,
    SOF_EXTENDED,
    SOF_JPEG_LS,
    SOF_LOSSLESS,
    SOI,
    SOS,
)
from lumbar.dicom.header import Header
from lumbar.dicom.limits import MAX_SEGMENTS

RLE = "1.2.840.10008.1.2.5"
_BASELINE, _EXTENDED, _LOSSLESS, _LOSSLESS_SV1, _JPEG_LS, _JPEG_LS_NEAR, _J2K_LOSSLESS, _J2K = (
    f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70, 80, 81, 90, 91)
)
_SOF_PROGRESSIVE = 0xC2
_J2K_START = b"\xff\x4f\xff\x51"
JP2_SIGNATURE = b"\x00\x00\x00\x0cjP  \r\n\x87\n"
_COD, _CAP, _SOT = 0x52, 0x50, 0x90


@dataclass(frozen=True, slots=True)
class Content:
    """A coding process: its name, the module that decodes it, and the transfer syntaxes that stand for it.

    ``working_bytes`` is the memory that the module needs for each sample of a frame in addition to the decoded one
    (measured, rounded up).
    """

    name: str
    module: str
    syntaxes: tuple[str, ...]
    working_bytes: int


_RLE = Content("RLE Lossless", "rle", (RLE,), 4)
_DCT = {
    (SOF_BASELINE, 8): Content("JPEG Baseline", "opencv", (_BASELINE, _EXTENDED), 3),
    (SOF_EXTENDED, 8): Content("JPEG Extended of 8 bits", "opencv", (_EXTENDED,), 3),
    (_SOF_PROGRESSIVE, 8): Content("progressive JPEG", "opencv", (), 3),
    (SOF_BASELINE, 12): Content("JPEG Extended", "jpeg_extended", (_EXTENDED,), 4),
    (SOF_EXTENDED, 12): Content("JPEG Extended", "jpeg_extended", (_EXTENDED,), 4),
}
_PREDICTOR_1 = Content("JPEG Lossless, predictor 1,", "jpeg_lossless", (_LOSSLESS, _LOSSLESS_SV1), 4)
_OTHER_PREDICTOR = Content("JPEG Lossless of another predictor than 1", "jpeg_lossless", (_LOSSLESS,), 4)
_LS = Content("JPEG-LS Lossless", "jpeg_ls", (_JPEG_LS, _JPEG_LS_NEAR), 4)
_LS_NEAR = Content("JPEG-LS Near-lossless", "jpeg_ls", (_JPEG_LS_NEAR,), 4)
_REVERSIBLE = Content("reversible JPEG 2000", "opencv", (_J2K_LOSSLESS, _J2K), 6)
_IRREVERSIBLE = Content("irreversible JPEG 2000", "opencv", (_J2K,), 6)


def identify(data: np.ndarray, header: Header) -> Content | None:
    """Tell how the frame ``data`` (n,) uint8 is coded; ``None`` where its first bytes do not show it.

    Raises:
        DicomError: ``header`` does not have the sizes or bits that RLE is recognised by.
    """
    start = data[:12].tobytes()
    if start[:2] == bytes([0xFF, SOI]):
        return _identify_jpeg(data)
    if is_jpeg2000(start):
        return _identify_jpeg2000(data[:65536].tobytes())
    # RLE has no marker of its own, so it is only considered where the transfer syntax is a compressed one
    is_compressed = header.transfer_syntax_uid.startswith((RLE, "1.2.840.10008.1.2.4."))
    return _RLE if is_compressed and _is_rle(data, header) else None


def is_jpeg2000(start: bytes) -> bool:
    """Whether a frame with these first 12 bytes is a codestream of JPEG 2000, or a JP2 file around one."""
    return start[:4] == _J2K_START or start[:8] == JP2_SIGNATURE[:8]


def _identify_jpeg(data: np.ndarray) -> Content | None:
    """Walk the marker segments up to the first scan header."""
    raw, size, position = data.data, data.size, 2
    marker = precision = 0
    for _ in range(MAX_SEGMENTS):
        if position + 5 > size or raw[position] != 0xFF:
            return None
        second = raw[position + 1]
        if second == 0xFF:  # a fill byte
            position += 1
            continue
        length = raw[position + 2] << 8 | raw[position + 3]
        if second in FRAME_MARKERS and not marker:
            marker, precision = second, raw[position + 4]
        if second == SOS:
            parameter = position + 5 + 2 * raw[position + 4]  # predictor, or NEAR
            if not marker or parameter >= size:
                return None
            if marker == SOF_LOSSLESS:
                return _PREDICTOR_1 if raw[parameter] == 1 else _OTHER_PREDICTOR
            if marker == SOF_JPEG_LS:
                return _LS_NEAR if raw[parameter] else _LS
            return _DCT.get((marker, precision))
        position += 2 + length
    return None


def _identify_jpeg2000(raw: bytes) -> Content | None:
    """Walk the main header up to its coding style; ``None`` for high-throughput block coding (HTJ2K)."""
    position = raw.find(_J2K_START) + 2
    if position < 2:
        return None
    for _ in range(64):
        if position + 16 > len(raw) or raw[position] != 0xFF or raw[position + 1] in (_CAP, _SOT):
            return None
        if raw[position + 1] == _COD:
            return _REVERSIBLE if raw[position + 13] == 1 else _IRREVERSIBLE
        position += 2 + (raw[position + 2] << 8 | raw[position + 3])
    return None


def _is_rle(data: np.ndarray, header: Header) -> bool:
    """Whether the frame begins with RLE's table of segments (PS3.5 section G.5), correct in every word."""
    if data.size < 64:
        return False
    shape = header.frame_shape
    expected = (shape[2] if len(shape) == 3 else 1) * header.pixel_dtype.itemsize
    n_segments, *offsets = struct.unpack("<16I", data[:64].tobytes())
    if n_segments != expected or n_segments > 15 or offsets[0] != 64 or any(offsets[n_segments:]):
        return False
    ends = [*offsets[:n_segments], data.size]
    return all(a < b for a, b in itertools.pairwise(ends))
