"""The fast path for slices of one frame of 16-bit gray, uncompressed, in RLE or JPEG Lossless: straight into a volume.

The file's bytes are read, and one compiled call does the rest. So threads that read a series spend nearly all their
time outside of Python: to come back they may have to wait for another thread, and to be woken takes longer than to
parse a header.
Files that the call does not support are left to ``read_slice``, which decodes them or says what is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lumbar.dicom._jit import kernel
from lumbar.dicom._rescale import DONE, UNSUPPORTED, rescale
from lumbar.dicom._scratch import scratch
from lumbar.dicom.codecs.frames import only_fragment
from lumbar.dicom.codecs.rle import PAD, unpack_words
from lumbar.dicom.header import EXPLICIT_LITTLE, IMPLICIT_LITTLE, File, Header
from lumbar.dicom.limits import MAX_FRAME_PIXELS
from lumbar.dicom.parsing.files import reread
from lumbar.errors import DicomError

NATIVE, RLE, JPEG = "native", "RLE", "JPEG Lossless"
_KINDS = {
    IMPLICIT_LITTLE: NATIVE,
    EXPLICIT_LITTLE: NATIVE,
    "1.2.840.10008.1.2.5": RLE,
    "1.2.840.10008.1.2.4.57": JPEG,
    "1.2.840.10008.1.2.4.70": JPEG,
}
_MAX_EXPANSION = 64  # bytes of pixels for each byte of the file, which RLE can reach and JPEG cannot


@dataclass(slots=True)
class FastPath:
    """A file whose pixels can be read on the fast path, and what that needs to know."""

    header: Header
    kind: str  # NATIVE, RLE or JPEG
    size: int  # bytes of the file
    start: int  # offset of the pixel data's value
    n_pixels: int
    mask: int  # the bits stored
    sign: int  # the highest of them where values are signed, else 0

    def fill(self, out: np.ndarray, slope: float, intercept: float) -> bool:
        """Read the file into ``out`` (rows, columns) float32, in rescaled units.

        Returns:
            Whether that was possible; if not, ``read_slice`` must read the file.

        Raises:
            DicomError: it cannot be read, is damaged, or needs more memory than there is.
        """
        try:
            source, start, n = reread(self.header.path, self.size), self.start, self.n_pixels
            flat = out.reshape(-1)
            if self.kind == NATIVE:
                part = source[start : start + 2 * n]
                return part.size == 2 * n and (
                    rescale(part.view(np.uint16), self.mask, self.sign, slope, intercept, flat) == DONE
                )
            fragment = only_fragment(source, start)
            if fragment is None:
                return False
            if self.kind == RLE:
                planes, words = scratch(2 * (n + PAD)).reshape(2, n + PAD), scratch(2 * n, "pixels").view(np.uint16)
                return rescale_rle(fragment, planes, words, self.mask, self.sign, slope, intercept, flat) == DONE
            from lumbar.dicom.codecs import jpeg_lossless  # late: slices in RLE do not need it
            from lumbar.dicom.codecs.codestream import identify

            content = identify(fragment, self.header)
            if content is not None and self.header.transfer_syntax_uid not in content.syntaxes:
                return False  # it is coded otherwise than announced: ``read_slice`` decodes it and says so
            return jpeg_lossless.fill(fragment, self.header, self.mask, self.sign, slope, intercept, flat)
        except MemoryError as error:
            path, shape = self.header.path, self.header.frame_shape
            raise DicomError(f"{path}: found no memory for {shape} pixels, expected less to need") from error


def find_fast_path(file: File) -> FastPath | None:
    """The fast path of a file, of which at least the header was parsed; ``None`` where there is none for it."""
    header, start, length = file.header, file.pixels_start, file.pixels_length
    kind = _KINDS.get(header.transfer_syntax_uid)
    stored = header.stored_bits
    if kind is None or (kind == NATIVE) != (length >= 0) or start < 0 or start & 1:
        return None
    if (
        header.pixel_data != "PixelData"
        or header.bits_allocated != 16
        or not 1 <= stored <= 16
        or (header.samples_per_pixel or 1) != 1
    ):
        return None
    if (header.number_of_frames or 1) != 1 or not (header.photometric_interpretation or "").startswith("MONOCHROME"):
        return None
    n_pixels = (header.rows or 0) * (header.columns or 0)
    size = max(file.size, file.source.size)
    if n_pixels > MAX_FRAME_PIXELS:
        return None
    if not 0 < 2 * n_pixels <= (min(length, size - start) if kind == NATIVE else _MAX_EXPANSION * size):
        return None
    sign = 1 << (stored - 1) if header.pixel_representation == 1 else 0
    return FastPath(header, kind, size, start, n_pixels, (1 << stored) - 1, sign)


@kernel
def rescale_rle(
    source: np.ndarray,
    planes: np.ndarray,
    words: np.ndarray,
    mask: int,
    sign: int,
    slope: float,
    intercept: float,
    out: np.ndarray,
) -> int:
    """Decode a frame in RLE into ``words`` (working memory), and from there into ``out`` as ``rescale`` does."""
    if unpack_words(source, planes, words) < 0:
        return UNSUPPORTED
    return rescale(words, mask, sign, slope, intercept, out)


def warm_up(syntaxes: tuple[str, ...]) -> None:
    """Compile what series of ``syntaxes`` need beside the codecs (or load it from numba's cache)."""
    words, out = np.zeros(1, np.uint16), np.zeros(1, np.float32)
    kinds = {_KINDS.get(syntax) for syntax in syntaxes}
    rescale(words, 1, 0, 1.0, 0.0, out)
    if RLE in kinds:
        source = np.zeros(8, np.uint8)
        source.flags.writeable = False
        rescale_rle(source, np.zeros((2, 1 + PAD), np.uint8), words, 1, 0, 1.0, 0.0, out)
    if JPEG in kinds:
        from lumbar.dicom.codecs import jpeg_lossless

        jpeg_lossless.warm_up_direct()
