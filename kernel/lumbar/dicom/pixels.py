"""One file to pixels: which module decodes which transfer syntax, and what is done around it."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from lumbar.dicom import direct, fallback, native
from lumbar.dicom.frames import only_fragment, split_frames
from lumbar.dicom.header import File, Header, parse, read_file
from lumbar.dicom.syntaxes import syntax_name
from lumbar.errors import DicomError

RLE = "1.2.840.10008.1.2.5"

# Transfer syntax -> module with TRANSFER_SYNTAXES, decode_frame and warm_up; imported at first use.
CODECS = {
    RLE: "rle",
    "1.2.840.10008.1.2.4.50": "opencv",
    "1.2.840.10008.1.2.4.51": "jpeg_extended",
    "1.2.840.10008.1.2.4.57": "jpeg_lossless",
    "1.2.840.10008.1.2.4.70": "jpeg_lossless",
    "1.2.840.10008.1.2.4.80": "jpeg_ls",
    "1.2.840.10008.1.2.4.81": "jpeg_ls",
    "1.2.840.10008.1.2.4.90": "opencv",
    "1.2.840.10008.1.2.4.91": "opencv",
}
_SUBSAMPLED = ("YBR_FULL_422", "YBR_PARTIAL_422", "YBR_PARTIAL_420")


@dataclass(frozen=True)
class Slice:
    """A file's header and pixels: ``(rows, columns)``, with frames before and samples after where there are several."""

    header: Header
    pixels: np.ndarray


def read_slice(path: str | os.PathLike[str]) -> Slice:
    """Header and pixels of the DICOM file at ``path``; pixels have pydicom's values and dtype.

    Bits above BitsStored are cleared (or copy the sign). Colour is returned as RGB where it was YBR_FULL, as pydicom
    does; palette images as their indices. Uncompressed pixels are a view of the file's bytes.

    Raises:
        DicomError: not DICOM, no pixels, sizes that do not fit the data, damaged data, or an unknown syntax.
    """
    file = read_file(path)
    return Slice(file.header, decode(file))


def warm_up(syntaxes: tuple[str, ...] = (RLE,)) -> None:
    """Compile, or load from numba's cache, what files of ``syntaxes`` need; best while weights load."""
    parse("warm-up", np.frombuffer(bytearray(128) + b"DICM", np.uint8))
    native.warm_up()
    direct.warm_up(syntaxes)
    for syntax in syntaxes:
        module = codec(syntax)
        if module is not None:
            module.warm_up()


def codec(syntax: str) -> Any:
    """The module that decodes ``syntax``, or ``None`` where our own code does not."""
    name = CODECS.get(syntax)
    return importlib.import_module(f"lumbar.dicom.{name}") if name else None


def decode(file: File) -> np.ndarray:
    """Pixels of a parsed file, as ``read_slice`` returns them.

    Raises:
        DicomError: as ``read_slice``.
    """
    if file.plain is not None:
        return file.plain
    header = file.header
    if file.pixels_start < 0:
        raise DicomError(f"{header.path}: found no pixel data in {file.source.size} bytes, expected (7FE0,0010)")
    try:
        if header.transfer_syntax_uid in native.TRANSFER_SYNTAXES:
            return _decode_native(file)
        return _decode_encapsulated(file)
    except MemoryError as error:
        raise DicomError(f"{header.path}: found no memory for {header.frame_shape} pixels, expected less") from error


def _decode_native(file: File) -> np.ndarray:
    header = file.header
    if header.photometric_interpretation in _SUBSAMPLED:
        return fallback.decode(file, f"uncompressed {header.photometric_interpretation}")
    n_frames = max(1, header.number_of_frames or 1)
    pixels = native.clear_unused_bits(native.decode_file(file, n_frames), header)
    if (header.samples_per_pixel or 1) != 1:
        from lumbar.dicom.colour import to_rgb  # here, since no slice of a spine needs it

        pixels = to_rgb(pixels, header, None)
    return pixels[0] if n_frames == 1 else pixels


def _decode_encapsulated(file: File) -> np.ndarray:
    header = file.header
    syntax = header.transfer_syntax_uid
    if header.pixel_data != "PixelData":
        raise DicomError(f"{header.path}: found {header.pixel_data} in {syntax_name(syntax)}, expected PixelData")
    module = codec(syntax)
    if module is None:
        return fallback.decode(file, f"transfer syntax {syntax_name(syntax)}")
    if file.pixels_length >= 0:
        raise DicomError(
            f"{header.path}: found pixel data of defined length at offset {file.pixels_start}, expected fragments for "
            f"transfer syntax {syntax_name(syntax)}"
        )
    if syntax == RLE and (usual := direct.find_usual(file)) is not None:
        fragment = only_fragment(file.source, usual.start)
        if fragment is not None:
            pixels: np.ndarray | None = module.decode_usual(fragment, header, usual.n_pixels, usual.mask)
            if pixels is not None:
                return pixels
    parts = split_frames(file)
    frame: np.ndarray = module.decode_frame(parts[0], header)
    if len(parts) == 1:
        return frame
    frames = np.empty((len(parts), *frame.shape), frame.dtype)
    frames[0] = frame
    for index, data in enumerate(parts[1:], start=1):
        frames[index] = module.decode_frame(data, header)
    return frames
