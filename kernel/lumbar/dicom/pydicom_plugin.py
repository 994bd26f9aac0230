"""Lets plain ``Dataset.pixel_array`` of pydicom 3 decode through the kernels of this package.

::

    from lumbar.dicom import pydicom_plugin

    pydicom_plugin.register()
    pixels = pydicom.dcmread("slice.dcm").pixel_array

It uses pydicom's own plugin interface, so ``pydicom.pixels.pixel_array``, ``iter_pixels`` and ``Dataset.decompress``
take it as well. A plugin gives the samples as they are in the codestream; the sign, unused bits and the conversion of
YBR_FULL to RGB are left to pydicom. What a kernel cannot decode raises an exception, and pydicom then tries its next
plugin. docs/pydicom-plugin.md lists what is decoded.
"""

from __future__ import annotations

import importlib.util
from dataclasses import MISSING, fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from lumbar.dicom._scratch import reused
from lumbar.dicom.header import Header
from lumbar.dicom.limits import check_image
from lumbar.dicom.pixels import RLE, codec
from lumbar.dicom.syntaxes import syntax_name
from lumbar.errors import DicomError

if TYPE_CHECKING:
    from pydicom.pixels.decoders.base import Decoder, DecodeRunner

LABEL = "lumbar"  # of ``decoding_plugin="lumbar"``
_JPEG_BASELINE, _JPEG_EXTENDED = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"
_JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")

# Transfer syntax → what its codec imports (part of pydicom's interface for plugins)
DECODER_DEPENDENCIES: dict[str, tuple[str, ...]] = {
    RLE: ("numba",),
    _JPEG_BASELINE: ("numba", "cv2"),
    _JPEG_EXTENDED: ("numba", "cv2"),
    "1.2.840.10008.1.2.4.57": ("numba",),
    "1.2.840.10008.1.2.4.70": ("numba",),
    **dict.fromkeys(_JPEG_LS, ("numba",)),
}
_WORKING_BYTES = 4  # of memory that these codecs need for each sample (see ``codecs.codestream``)
_UNCONVERTED = "YBR_RCT"  # a photometric interpretation that every codec returns as it is in the codestream


def register() -> None:
    """Put the kernels first among pydicom's plugins for each transfer syntax of ``DECODER_DEPENDENCIES``.

    The other plugins stay, in their order, for what the kernels decline. A second call changes nothing.

    Raises:
        DicomError: pydicom is older than 3.0, or another plugin has the label ``lumbar``. Nothing was changed then.
    """
    decoders = _decoders()
    for decoder in decoders:
        if _has_label(decoder) and not _is_ours(decoder):
            raise DicomError(f"pydicom: found another plugin {LABEL!r} for {decoder.UID.name}, expected none")
    for decoder in decoders:
        if _has_label(decoder):
            decoder.remove_plugin(LABEL)  # it may be the function of this module before a reload
        decoder.add_plugin(LABEL, (__name__, "decode_frame"))
        # pydicom tries plugins in the order in which they were added, and has no call to add one in front
        plugins = decoder._available
        if LABEL in plugins:
            decoder._available = {LABEL: plugins[LABEL], **plugins}


def unregister() -> None:
    """Take the kernels out of pydicom again; its other plugins are as they were. Without ``register`` it does nothing.

    Raises:
        DicomError: pydicom is older than 3.0.
    """
    for decoder in _decoders():
        if _has_label(decoder) and _is_ours(decoder):
            decoder.remove_plugin(LABEL)


def _decoders() -> list[Decoder]:
    """The decoders of pydicom for the transfer syntaxes."""
    try:
        from pydicom.pixels.decoders.base import get_decoder  # late: ``lumbar.dicom`` itself does not need pydicom 3
    except ImportError as error:
        import pydicom

        raise DicomError(f"pydicom: found version {pydicom.__version__}, expected 3.0 or later") from error
    return [get_decoder(syntax) for syntax in DECODER_DEPENDENCIES]


def _has_label(decoder: Decoder) -> bool:
    return LABEL in decoder._available or LABEL in decoder._unavailable


def _is_ours(decoder: Decoder) -> bool:
    """Whether the plugin with our label is this module's."""
    function: Any = decoder._available.get(LABEL)
    if function is None:
        return decoder._unavailable[LABEL] == DECODER_DEPENDENCIES[decoder.UID]
    return bool(getattr(function, "__module__", "") == __name__)


def is_available(uid: str) -> bool:
    """Whether what the codec of a transfer syntax needs is installed (part of pydicom's interface for plugins)."""
    needed = DECODER_DEPENDENCIES.get(uid)
    return needed is not None and all(importlib.util.find_spec(name) is not None for name in needed)


def decode_frame(src: bytes, runner: DecodeRunner) -> bytearray:
    """Decode one frame (part of pydicom's interface for plugins).

    Args:
        src: the frame's codestream.
        runner: says what the data set says. Its options are changed where the result differs from them: as with
            pydicom's other plugins, colour is by plane from RLE and by pixel from all others, and samples of JPEG-LS
            take one byte up to 8 bits of precision, else two.

    Returns:
        The samples, little-endian.

    Raises:
        DicomError: what the kernels do not decode, or damaged data.
    """
    syntax, samples, allocated = str(runner.transfer_syntax), runner.samples_per_pixel, runner.bits_allocated
    name = f"frame in {syntax_name(syntax)}"
    if syntax not in DECODER_DEPENDENCIES:
        raise DicomError(f"{name}: found no decoder, expected a transfer syntax of {', '.join(DECODER_DEPENDENCIES)}")
    if allocated == 1:
        raise DicomError(f"{name}: found compressed pixels of 1 bit, expected 8, 16 or 32")
    is_rle, is_jpeg_ls = syntax == RLE, syntax in _JPEG_LS
    if is_rle:
        _check_segment_order(name, runner)
    if is_jpeg_ls:
        allocated = 8 if runner.get_option("jls_precision", runner.bits_stored) <= 8 else 16
    header = _header(name, syntax, runner.rows, runner.columns, samples, allocated)
    check_image(name, header.frame_shape, header.pixel_dtype.itemsize, 1, len(src), _WORKING_BYTES)
    with reused():  # the frame is copied, so that its memory can serve the next one
        pixels = _decode(np.frombuffer(src, np.uint8), header)
        if is_rle and samples > 1:
            pixels = np.moveaxis(pixels, -1, 0)
        frame = bytearray(np.ascontiguousarray(pixels).data)
    if samples > 1:
        runner.set_option("planar_configuration", 1 if is_rle else 0)
    if is_jpeg_ls:
        runner.set_option("bits_allocated", allocated)
    return frame


def _decode(data: np.ndarray, header: Header) -> np.ndarray:
    """Decode the frame ``data`` (n,) uint8, 12-bit JPEG with the rounding of pydicom's plugin for it."""
    syntax = header.transfer_syntax_uid
    if syntax == _JPEG_EXTENDED:
        from lumbar.dicom.codecs import jpeg_extended  # late: it imports OpenCV

        return jpeg_extended.decode_frame(data, header, is_as_pylibjpeg=True)
    if syntax == _JPEG_BASELINE and data[:2].tobytes() != b"\xff\xd8":  # this codec would take JPEG 2000, too
        raise DicomError(
            f"{header.path}: found {data[:2].tobytes().hex() or 'no data'}, expected ffd8 (start of image)"
        )
    module = codec(syntax)
    assert module is not None
    return module.decode_frame(data, header)


def _check_segment_order(name: str, runner: DecodeRunner) -> None:
    """Decline RLE whose caller says that the least significant byte comes first, against the standard."""
    for option in ("rle_segment_order", "byteorder"):
        order = runner.get_option(option, ">")
        if order != ">":
            raise DicomError(f"{name}: found {option} {order!r}, expected '>'")


@lru_cache(maxsize=64)
def _header(name: str, syntax: str, rows: int, columns: int, samples: int, allocated: int) -> Header:
    """Make the header for which a codec returns samples as they are in the codestream: unsigned, of all bits."""
    absent: dict[str, Any] = {
        field.name: None for field in fields(Header) if field.default is MISSING and field.default_factory is MISSING
    }
    return Header(
        **{
            **absent,
            "path": name,
            "transfer_syntax_uid": syntax,
            "rows": rows,
            "columns": columns,
            "samples_per_pixel": samples,
            "bits_allocated": allocated,
            "bits_stored": allocated,
            "pixel_representation": 0,
            "planar_configuration": 0,
            "photometric_interpretation": _UNCONVERTED,
        }
    )
