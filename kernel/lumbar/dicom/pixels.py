"""One file to pixels: which module decodes which transfer syntax, and what is done around it."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from lumbar.dicom import fallback, native
from lumbar.dicom.frames import split_frames
from lumbar.dicom.header import File, Header, read_file
from lumbar.errors import DicomError

# Transfer syntax -> module with TRANSFER_SYNTAXES, decode_frame and warm_up; imported at first use.
CODECS = {
    "1.2.840.10008.1.2.5": "rle",
    "1.2.840.10008.1.2.4.50": "opencv",
    "1.2.840.10008.1.2.4.51": "jpeg_extended",
    "1.2.840.10008.1.2.4.57": "jpeg_lossless",
    "1.2.840.10008.1.2.4.70": "jpeg_lossless",
    "1.2.840.10008.1.2.4.80": "jpeg_ls",
    "1.2.840.10008.1.2.4.81": "jpeg_ls",
    "1.2.840.10008.1.2.4.90": "opencv",
    "1.2.840.10008.1.2.4.91": "opencv",
}
# Those whose own decoder settles the sign and the colour, as pydicom does it from their codestream.
_SELF_CONTAINED = ("jpeg_ls", "opencv", "jpeg_extended")


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


def codec(syntax: str) -> Any:
    """The module that decodes ``syntax``, or ``None`` where our own code does not."""
    name = CODECS.get(syntax)
    return importlib.import_module(f"lumbar.dicom.{name}") if name else None


def decode(file: File) -> np.ndarray:
    """Pixels of a parsed file, as ``read_slice`` returns them.

    Raises:
        DicomError: as ``read_slice``.
    """
    header = file.header
    if file.pixels_start < 0:
        raise DicomError(f"{header.path}: found no pixel data in {file.source.size} bytes, expected (7FE0,0010)")
    syntax, photometric = header.transfer_syntax_uid, header.photometric_interpretation or "MONOCHROME2"
    is_colour = photometric.startswith("YBR")
    n_frames = max(1, header.number_of_frames or 1)
    try:
        if syntax in native.TRANSFER_SYNTAXES:
            if is_colour:
                return fallback.decode(file, f"uncompressed {photometric}")
            pixels = native.clear_unused_bits(native.decode_file(file, n_frames), header)
            return pixels[0] if n_frames == 1 else pixels
        module = codec(syntax)
        if module is None:
            return fallback.decode(file, f"transfer syntax {syntax}")
        is_self_contained = CODECS[syntax] in _SELF_CONTAINED
        if is_colour and not is_self_contained:
            return fallback.decode(file, f"{photometric} in transfer syntax {syntax}")
        if file.pixels_length >= 0:
            raise DicomError(
                f"{header.path}: found pixel data of defined length at offset {file.pixels_start}, expected fragments "
                f"for transfer syntax {syntax}"
            )
        frames = [module.decode_frame(data, header) for data in split_frames(file)]
        pixels = frames[0] if n_frames == 1 else np.stack(frames)
        return pixels if is_self_contained else native.clear_unused_bits(pixels, header)
    except MemoryError as error:
        raise DicomError(f"{header.path}: found no memory for {header.frame_shape} pixels, expected less") from error
