"""The usual slices straight into a volume: one frame of 16-bit gray, uncompressed, RLE or JPEG Lossless.

The bytes are read and one compiled call does the rest. Threads that read a series spend nearly all their time outside
Python then: whoever comes back to it may have to wait for another, and the waking costs more than parsing does. What
the call does not expect it leaves alone; ``read_slice`` decodes it or says what is wrong with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lumbar.dicom._bits import I64
from lumbar.dicom._jit import inner_kernel, kernel
from lumbar.dicom._rescale import DONE, ODD, rescale
from lumbar.dicom._scratch import scratch
from lumbar.dicom.frames import only_fragment
from lumbar.dicom.header import EXPLICIT_LITTLE, IMPLICIT_LITTLE, File, Header, read_bytes
from lumbar.dicom.rle import PAD, join_pairs, unpack

NATIVE, RLE, JPEG = "native", "RLE", "JPEG Lossless"
_KINDS = {
    IMPLICIT_LITTLE: NATIVE,
    EXPLICIT_LITTLE: NATIVE,
    "1.2.840.10008.1.2.5": RLE,
    "1.2.840.10008.1.2.4.57": JPEG,
    "1.2.840.10008.1.2.4.70": JPEG,
}
_ITEM, _DELIMITER = 0xE000, 0xE0DD
_MAX_EXPANSION = 64  # bytes of pixels for each of the file: what RLE can do, and JPEG cannot


@dataclass(frozen=True, slots=True)
class Usual:
    """A file whose pixels can be read that way, and what is known of them."""

    header: Header
    kind: str  # NATIVE, RLE or JPEG
    size: int  # bytes of the file
    start: int  # offset of the pixel data's value
    n_pixels: int
    mask: int  # of the bits stored
    sign: int  # the highest of them, where they are signed; else 0

    def fill(self, out: np.ndarray, slope: float, intercept: float) -> bool:
        """Read the file into ``out`` (rows, columns) float32, in rescaled units; ``False``: it is none of the usual.

        Raises:
            DicomError: it cannot be read, or is damaged.
        """
        source, start, n = read_bytes(self.header.path, self.size), self.start, self.n_pixels
        flat = out.reshape(-1)
        if self.kind == NATIVE:
            part = source[start : start + 2 * n]
            return part.size == 2 * n and (
                rescale(part.view(np.uint16), self.mask, self.sign, slope, intercept, flat) == DONE
            )
        if self.kind == RLE:
            planes = scratch(2 * (n + PAD)).reshape(2, n + PAD)
            words = scratch(2 * n, "pixels").view(np.uint16)
            return unpack_rle(source, start, planes, words, self.mask, self.sign, slope, intercept, flat) == DONE
        from lumbar.dicom import jpeg_lossless  # here, since others need not wait for it

        fragment = only_fragment(source, start)
        return fragment is not None and jpeg_lossless.fill(
            fragment, self.header, self.mask, self.sign, slope, intercept, flat
        )


def find_usual(file: File) -> Usual | None:
    """What ``fill`` needs of a file whose beginning at least was parsed, where it is one of the usual."""
    header, start, length = file.header, file.pixels_start, file.pixels_length
    kind = _KINDS.get(header.transfer_syntax_uid)
    stored = header.stored_bits
    if kind is None or (kind == NATIVE) != (length >= 0) or start < 0 or start & 1:
        return None
    if header.bits_allocated != 16 or not 1 <= stored <= 16 or (header.samples_per_pixel or 1) != 1:
        return None
    if (header.number_of_frames or 1) != 1 or not (header.photometric_interpretation or "").startswith("MONOCHROME"):
        return None
    n_pixels = (header.rows or 0) * (header.columns or 0)
    if not 0 < 2 * n_pixels <= (min(length, file.size - start) if kind == NATIVE else _MAX_EXPANSION * file.size):
        return None
    sign = 1 << (stored - 1) if header.pixel_representation == 1 else 0
    return Usual(header, kind, file.size, start, n_pixels, (1 << stored) - 1, sign)


@kernel
def unpack_rle(
    source: np.ndarray,
    start: int,
    planes: np.ndarray,
    words: np.ndarray,
    mask: int,
    sign: int,
    slope: float,
    intercept: float,
    out: np.ndarray,
) -> int:
    """Decode the one fragment of encapsulated pixel data at ``start`` of ``source`` (n,) uint8 into ``out`` (n,).

    ``planes`` (2, n + PAD) uint8 and ``words`` (n,) uint16 are scratch, the rest is as for ``rescale``. Returns DONE,
    or ODD for anything but an offset table, a fragment of two segments that fill their planes, and the delimiter.
    """
    table = _item(source, start, _ITEM)
    if table < 0:
        return ODD
    start += 8 + table
    length = _item(source, start, _ITEM)
    if length < 64:
        return ODD
    start += 8
    stop = start + length
    if _item(source, stop, _DELIMITER) < 0 or _number(source, start) != 2:
        return ODD
    first, second = start + _number(source, start + 4), start + _number(source, start + 8)
    if first < start + 64 or second <= first or stop <= second:
        return ODD
    n_pixels = np.uint64(out.size)
    if unpack(source, np.uint64(first), np.uint64(second), planes[0], n_pixels) != out.size:
        return ODD
    if unpack(source, np.uint64(second), np.uint64(stop), planes[1], n_pixels) != out.size:
        return ODD
    join_pairs(planes, words)
    return rescale(words, mask, sign, slope, intercept, out)


@inner_kernel
def _item(source: np.ndarray, at: I64, element: int) -> I64:
    """Length of the item at ``at``, group FFFE and ``element``; -1 where none is, or one that passes the end."""
    if at + 8 > source.size or _number(source, at) != (element << 16 | 0xFFFE):
        return np.int64(-1)
    length = _number(source, at + 4)
    return length if length <= source.size - at - 8 else np.int64(-1)


@inner_kernel
def _number(source: np.ndarray, at: I64) -> I64:
    """Four bytes as a little-endian number."""
    low, high = int(source[at]) | int(source[at + 1]) << 8, int(source[at + 2]) | int(source[at + 3]) << 8
    return np.int64(high << 16 | low)


def warm_up(syntaxes: tuple[str, ...]) -> None:
    """Compile what series of ``syntaxes`` need, besides what their slices do."""
    words, out = np.zeros(1, np.uint16), np.zeros(1, np.float32)
    kinds = {_KINDS.get(syntax) for syntax in syntaxes}
    rescale(words, 1, 0, 1.0, 0.0, out)
    if RLE in kinds:
        unpack_rle(np.zeros(8, np.uint8), 0, np.zeros((2, 1 + PAD), np.uint8), words, 1, 0, 1.0, 0.0, out)
    if JPEG in kinds:
        from lumbar.dicom import jpeg_lossless

        jpeg_lossless.warm_up_direct()
