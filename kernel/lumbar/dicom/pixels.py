"""The pixels of one file: which codec decodes which transfer syntax, and what is done before and after it."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass, replace
from typing import Protocol, cast

import numpy as np

from lumbar.dicom import direct
from lumbar.dicom.codecs import fallback, native, rle
from lumbar.dicom.codecs.frames import first_fragment, is_item, only_fragment, split_frames
from lumbar.dicom.header import File, Header, parse, read_file
from lumbar.dicom.limits import check_image
from lumbar.dicom.syntaxes import syntax_name
from lumbar.errors import DicomError

RLE = "1.2.840.10008.1.2.5"

# Transfer syntax → module in ``codecs`` with the names of ``Codec``; imported at first use.
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
GE_PRIVATE = "1.2.840.113619.5.2"
_WORKING_BYTES = 8  # of memory for each sample, where it is not known yet which codec will decode it
_SUBSAMPLED = ("YBR_FULL_422", "YBR_PARTIAL_422", "YBR_PARTIAL_420")


class Codec(Protocol):
    """What the module of a transfer syntax provides (docs/add-a-transfer-syntax.md)."""

    TRANSFER_SYNTAXES: tuple[str, ...]

    def decode_frame(self, data: np.ndarray, header: Header) -> np.ndarray:
        """Decode one frame.

        Args:
            data: (n,) uint8, the frame's bytes.
            header: gives the sizes, the type of the samples and the photometric interpretation.

        Returns:
            ``(rows, columns)``, or ``(rows, columns, samples)`` for colour, of ``header.pixel_dtype`` and with
            pydicom's values: bits above BitsStored are cleared or copy the sign, and YBR_FULL becomes RGB.

        Raises:
            DicomError: data that are damaged, disagree with the header, or use what the codec does not decode.
        """

    def warm_up(self) -> None:
        """Compile the kernels, or load them from numba's cache."""


@dataclass(frozen=True)
class Slice:
    """A file's header and its pixels: ``([frames,] rows, columns[, samples])``.

    ``problems`` holds a line for each statement of the file about its pixels that is wrong and was corrected.
    """

    header: Header
    pixels: np.ndarray
    problems: tuple[str, ...] = ()


def read_slice(path: str | os.PathLike[str]) -> Slice:
    """Read header and pixels of the DICOM file at ``path``; pixels have pydicom's values and dtype.

    Bits above BitsStored are cleared, or copy the sign. YBR_FULL becomes RGB, as in pydicom; palette images stay
    indices. Uncompressed pixels are a view of the file's bytes. Where the pixels are coded otherwise than the transfer
    syntax says, they are decoded by their own markers, and ``Slice.problems`` says so.

    Raises:
        DicomError: the file is not DICOM, has no pixels, sizes that do not fit its data, damaged data or an unknown
            transfer syntax, or asks for more memory than there is or than ``lumbar.dicom.limits`` allows. No other
            error is raised.
    """
    problems: list[str] = []
    try:
        file = read_file(path)
        return Slice(file.header, decode(file, problems), tuple(problems))
    except MemoryError as error:
        raise DicomError(f"{os.fspath(path)}: found no memory for the file, expected less to need") from error


def warm_up(syntaxes: tuple[str, ...] = (RLE,)) -> None:
    """Compile what files of these transfer syntaxes need (or load it from numba's cache), before the first is read."""
    parse("warm-up", np.frombuffer(bytearray(128) + b"DICM", np.uint8))
    native.warm_up()
    direct.warm_up(syntaxes)
    for syntax in syntaxes:
        module = codec(syntax)
        if module is not None:
            module.warm_up()


def codec(syntax: str) -> Codec | None:
    """The module that decodes a transfer syntax, or ``None`` where the kit has none for it."""
    name = CODECS.get(syntax)
    return _codec_module(name) if name else None


def _codec_module(name: str) -> Codec:
    return cast(Codec, importlib.import_module(f"lumbar.dicom.codecs.{name}"))


def decode(file: File, problems: list[str] | None = None) -> np.ndarray:
    """Decode the pixels of a parsed file, as ``read_slice`` returns them; adds lines for ``Slice.problems``.

    Raises:
        DicomError: as ``read_slice``.
    """
    if file.plain is not None:
        return file.plain
    header = file.header
    if file.pixels_start < 0:
        raise DicomError(f"{header.path}: found no pixel data in {file.source.size} bytes, expected (7FE0,0010)")
    try:
        lines = [] if problems is None else problems
        if _is_encapsulated(file, lines):
            return _decode_encapsulated(file, lines)
        return _decode_native(file)
    except MemoryError as error:
        raise DicomError(f"{header.path}: found no memory for {header.frame_shape} pixels, expected less") from error


def _decode_native(file: File) -> np.ndarray:
    header = file.header
    if header.photometric_interpretation in _SUBSAMPLED:
        return fallback.decode(file, f"uncompressed {header.photometric_interpretation}")
    n_frames = max(1, header.number_of_frames or 1)
    if header.transfer_syntax_uid == GE_PRIVATE:
        file = _in_little_endian(file)
    pixels = native.clear_unused_bits(native.decode_file(file, n_frames), header)
    if (header.samples_per_pixel or 1) != 1:
        from lumbar.dicom.codecs.colour import to_rgb  # late: slices of a spine have no colour

        pixels = to_rgb(pixels, header, None)
    return pixels[0] if n_frames == 1 else pixels


def _is_encapsulated(file: File, problems: list[str]) -> bool:
    """Whether the pixel data are fragments: as the transfer syntax says, unless their length and first bytes differ."""
    header, length = file.header, file.pixels_length
    syntax = header.transfer_syntax_uid
    if syntax in native.TRANSFER_SYNTAXES:
        if length < 0 and not is_item(file):
            raise DicomError(
                f"{header.path}: found pixel data of undefined length at offset {file.pixels_start}, expected "
                f"uncompressed pixels"
            )
        if length < 0:
            return True
        return is_item(file) and length < _native_size(header)
    if length < 0:
        return True
    if syntax == GE_PRIVATE:
        return False
    size = _native_size(header)
    if size <= length <= size + (size & 1):
        problems.append(f"found uncompressed pixels, expected {syntax_name(syntax)}; read as uncompressed")
        return False
    if not is_item(file):
        raise DicomError(
            f"{header.path}: found pixel data of defined length at offset {file.pixels_start}, expected fragments for "
            f"transfer syntax {syntax_name(syntax)}"
        )
    problems.append(f"found fragments in pixel data of {length} bytes, expected an undefined length; read all the same")
    return True


def _native_size(header: Header) -> int:
    """Bytes of all frames without compression."""
    n_samples = max(1, header.number_of_frames or 1)
    for size in header.frame_shape:
        n_samples *= size
    return (n_samples + 7) // 8 if header.bits_allocated == 1 else n_samples * header.pixel_dtype.itemsize


def _in_little_endian(file: File) -> File:
    """A file of GE's private syntax with the bytes of its 16-bit words swapped, as GDCM and DCMTK read them.

    Files that another program has rewritten keep the syntax's UID but have little-endian pixels. A file is taken for
    one of these if the bits above BitsStored are empty only in that byte order.
    """
    header, length = file.header, file.pixels_length // 2 * 2
    if header.bits_allocated != 16 or length <= 0:
        return file
    raw = file.source[file.pixels_start : file.pixels_start + length].tobytes()
    words = np.frombuffer(raw[: len(raw) // 2 * 2], "<u2")
    turned = words.byteswap()
    unused = 0xFFFF & ~((1 << header.stored_bits) - 1)
    if np.any(turned & unused) and not np.any(words & unused):
        return file
    return replace(file, source=turned.view(np.uint8), pixels_start=0, pixels_length=2 * turned.size)


def _decode_encapsulated(file: File, problems: list[str]) -> np.ndarray:
    header = file.header
    syntax = header.transfer_syntax_uid
    if header.pixel_data != "PixelData":
        raise DicomError(f"{header.path}: found {header.pixel_data} in {syntax_name(syntax)}, expected PixelData")
    if syntax == RLE and (gray_pixels := _decode_gray_rle(file)) is not None:
        return gray_pixels
    from lumbar.dicom.codecs.codestream import identify  # late: most slices do not need it

    module = codec(syntax)
    content = identify(first_fragment(file), header) if module is None else None
    if module is None and content is None and syntax not in native.TRANSFER_SYNTAXES:
        return fallback.decode(file, f"transfer syntax {syntax_name(syntax)}")
    if header.bits_allocated == 1:
        raise DicomError(f"{header.path}: found compressed pixels of 1 bit(s), expected 8, 16 or 32")
    n_frames = max(1, header.number_of_frames or 1)
    check = header.path, header.frame_shape, header.pixel_dtype.itemsize, n_frames, file.source.size
    check_image(*check, 0)
    parts = split_frames(file)
    content = identify(parts[0], header) or content
    check_image(*check, max(content.working_bytes if content else _WORKING_BYTES, header.pixel_dtype.itemsize))
    if content is not None and syntax not in content.syntaxes:
        problems.append(f"found {content.name} in the pixel data, expected {syntax_name(syntax)}; decoded as found")
        module = _codec_module(content.module)
    if module is None:
        return _join_native(file, parts, problems)
    return _decode_frames(parts, header, module)


def _decode_gray_rle(file: File) -> np.ndarray | None:
    """Pixels of one frame of 16-bit gray in RLE, as most MR slices are; ``None`` for any other file."""
    fast_path = direct.find_fast_path(file)
    fragment = None if fast_path is None else only_fragment(file.source, fast_path.start)
    if fast_path is None or fragment is None:
        return None
    return rle.decode_gray16(fragment, file.header, fast_path.n_pixels, fast_path.mask)


def _decode_frames(parts: list[np.ndarray], header: Header, module: Codec) -> np.ndarray:
    """Decode frames from the bytes of each: (frames, rows, columns[, samples]); one frame without the first axis."""
    frame: np.ndarray = module.decode_frame(parts[0], header)
    if len(parts) == 1:
        return frame
    frames = np.empty((len(parts), *frame.shape), frame.dtype)
    frames[0] = frame
    for index, data in enumerate(parts[1:], start=1):
        frames[index] = module.decode_frame(data, header)
    return frames


def _join_native(file: File, parts: list[np.ndarray], problems: list[str]) -> np.ndarray:
    """Read uncompressed frames that lie in fragments nevertheless, where each fragment has the size of a frame."""
    header = file.header
    size = _native_size(header) // len(parts)
    if any(not size <= part.size <= size + (size & 1) for part in parts):
        raise DicomError(
            f"{header.path}: found pixel data of undefined length at offset {file.pixels_start}, expected uncompressed "
            f"pixels for transfer syntax {syntax_name(header.transfer_syntax_uid)}"
        )
    problems.append(f"found uncompressed frames in items, expected {syntax_name(header.transfer_syntax_uid)}")
    source = np.concatenate([part[:size] for part in parts])
    return _decode_native(replace(file, source=source, pixels_start=0, pixels_length=source.size))
