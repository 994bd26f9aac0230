"""JPEG-LS, lossless and near-lossless (PS3.5 8.2.3; ITU-T T.87): parameters, scans, and the kernels' work arrays.

Refused are mapping tables (palettes inside the codestream), subsampled components, point transforms and the colour
transforms of one vendor's APP8 segment. No DICOM encoder is known to write them.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from lumbar.dicom._scratch import fresh, scratch
from lumbar.dicom.codecs.colour import to_rgb
from lumbar.dicom.codecs.jpeg_ls_kernels import decode_scan
from lumbar.dicom.codecs.jpeg_ls_samples import N_CONTEXTS, Coding, Work
from lumbar.dicom.codecs.jpeg_markers import SOF_JPEG_LS, MarkerReader, check_room, check_size, open_frame, read_only
from lumbar.dicom.codecs.jpeg_restarts import INVALID, REASONS
from lumbar.dicom.codecs.jpeg_segments import Frame, Preset, Scan, refuse
from lumbar.dicom.header import Header

TRANSFER_SYNTAXES = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")

_REASONS = {**REASONS, INVALID: "a code that no encoder writes"}


def decode_frame(data: np.ndarray, header: Header) -> np.ndarray:
    """Decode one frame (``lumbar.dicom.pixels.Codec``).

    Signed samples are extended from the codestream's precision, since JPEG-LS itself knows no sign.
    """
    shape, dtype, path = header.frame_shape, header.pixel_dtype, header.path
    rows, columns = shape[:2]
    samples = shape[2] if len(shape) == 3 else 1
    reader, frame, first = open_frame(data, path, (SOF_JPEG_LS,), "fff7 (JPEG-LS)")
    _check(frame, reader, dtype)
    check_size(path, frame, rows=rows, columns=columns, samples=samples)
    check_room(path, frame.offset, data.size, n_samples=rows * columns * samples, least=rows // 8)
    out = fresh((rows, columns, samples), np.uint16, "pixels")
    missing = set(range(samples))
    scan: Scan | None = first
    while scan is not None:
        indices = [component.index for component in scan.components]
        if not missing.issuperset(indices) or indices != list(range(indices[0], indices[0] + len(indices))):
            raise refuse(path, scan.offset, f"a scan of components {indices}", f"some of {sorted(missing)}, in order")
        missing.difference_update(indices)
        stop = _decode_scan(read_only(data), out, frame, reader, scan)
        if not missing:
            break
        scan = reader.next_scan(stop)
    if missing:
        raise refuse(path, reader.position, f"no scan of components {sorted(missing)}", "one")
    return _finish(out.reshape(shape), frame.precision, header, reader)


def _check(frame: Frame, reader: MarkerReader, dtype: np.dtype) -> None:
    """Refuse samples that do not fit the header's type, and extensions that are not decoded."""
    path = reader.path
    if frame.precision > 8 * dtype.itemsize:
        raise refuse(path, frame.offset, f"{frame.precision} bits a sample", f"at most {8 * dtype.itemsize}")
    factors = {(component.horizontal, component.vertical) for component in frame.components}
    if len(factors) > 1:
        raise refuse(path, frame.offset, f"sampling factors {sorted(factors)}", "the same for all components")
    for marker, content in reader.applications:
        if marker == 0xE8 and content[:4] == b"mrfx" and content[4:5] not in (b"", b"\0"):
            raise refuse(path, frame.offset, f"colour transform {content[4]} in APP8", "none")


def _decode_scan(data: np.ndarray, out: np.ndarray, frame: Frame, reader: MarkerReader, scan: Scan) -> int:
    """Decode one scan into its samples of ``out``; return the offset where its data end."""
    path, n = reader.path, len(scan.components)
    rows, columns, _ = out.shape
    if scan.end not in (0, 1, 2) or (n > 1) != (scan.end > 0):
        raise refuse(path, scan.offset, f"interleave mode {scan.end} of {n} components", "0 of one, 1 or 2 of more")
    if scan.low or scan.high:
        raise refuse(path, scan.offset, f"point transform {scan.high << 4 | scan.low}", "0")
    if any(component.dc_table or component.ac_table for component in scan.components):
        raise refuse(path, scan.offset, "a mapping table", "samples that stand for themselves")
    coding, thresholds = _coding(frame.precision, scan.start, reader.preset, path, scan.offset)
    work = Work(
        words=scratch(8 * (data.size // 8 + 8)).view(np.uint64),
        quantised=_quantised(coding.maxval, coding.near, thresholds),
        lines=np.empty((2, n, columns + 2), np.int32),
        gradients=np.empty((n, columns), np.int32),
        contexts=np.empty(N_CONTEXTS * 8, np.int32),
        run_index=np.empty(n, np.int64),
        progress=np.zeros(2, np.int64),
    )
    first = scan.components[0].index
    code = decode_scan(data, scan.data_offset, out, first, scan.end == 2, reader.restart_interval, coding, work)
    line, stop = work.progress.tolist()
    if code < 0:
        raise refuse(path, stop, f"{_REASONS[code]} at line {line}", f"{rows} lines of {columns} samples")
    return int(stop)


def _coding(precision: int, near: int, preset: Preset, path: str, offset: int) -> tuple[Coding, tuple[int, int, int]]:
    """Compute the parameters of a scan and its three thresholds (T.87 C.2.4.1.1, A.2.1), with defaults for 0.

    Raises:
        DicomError: values outside the ranges of table C.1.
    """
    maxval = preset.maxval or (1 << precision) - 1
    if maxval >= 1 << precision:
        raise refuse(path, offset, f"MAXVAL {maxval}", f"at most {(1 << precision) - 1}")
    if near > min(255, maxval // 2):
        raise refuse(path, offset, f"NEAR {near}", f"at most {min(255, maxval // 2)}")
    default = default_thresholds(maxval, near)
    t1, t2, t3 = preset.t1 or default[0], preset.t2 or default[1], preset.t3 or default[2]
    if not near + 1 <= t1 <= t2 <= t3 <= maxval:
        raise refuse(path, offset, f"thresholds {t1}, {t2}, {t3}", f"{near + 1} to {maxval}, none below the one before")
    reset = preset.reset or 64
    if not 3 <= reset <= max(255, maxval):
        raise refuse(path, offset, f"RESET {reset}", f"3 to {max(255, maxval)}")
    span = (maxval + 2 * near) // (2 * near + 1) + 1
    bits = max(2, maxval.bit_length())
    limit = 2 * (bits + max(8, bits))
    return Coding(maxval, near, span, (span - 1).bit_length(), limit, reset), (t1, t2, t3)


def default_thresholds(maxval: int, near: int) -> tuple[int, int, int]:
    """Return T1, T2, T3 where an encoder chose none (T.87 C.2.4.1.1.1)."""
    if maxval >= 128:
        factor = (min(maxval, 4095) + 128) // 256
        wanted = (factor + 2 + 3 * near, 4 * factor + 3 + 5 * near, 17 * factor + 4 + 7 * near)
    else:
        factor = 256 // (maxval + 1)
        wanted = (max(2, 3 // factor + 3 * near), max(3, 7 // factor + 5 * near), max(4, 21 // factor + 7 * near))
    t1 = wanted[0] if near + 1 <= wanted[0] <= maxval else near + 1
    t2 = wanted[1] if t1 <= wanted[1] <= maxval else t1
    t3 = wanted[2] if t2 <= wanted[2] <= maxval else t2
    return t1, t2, t3


@lru_cache(maxsize=16)
def _quantised(maxval: int, near: int, thresholds: tuple[int, int, int]) -> np.ndarray:
    """Return the region -4..4 of each gradient -maxval..maxval (T.87 A.3.3), (2 maxval + 1,) int8."""
    half = np.zeros(maxval + 1, np.int8)
    for threshold in (near + 1, *thresholds):
        half[threshold:] += 1
    return np.concatenate([-half[:0:-1], half])


def _finish(pixels: np.ndarray, precision: int, header: Header, reader: MarkerReader) -> np.ndarray:
    """Convert samples to the header's type: JPEG-LS has no sign, so the highest bit of the precision is taken as it."""
    dtype = header.pixel_dtype
    if dtype.kind == "i":
        unused = 16 - precision
        pixels = pixels.view(np.int16)
        if unused:
            pixels <<= unused
            pixels >>= unused
    pixels = pixels.astype(dtype, copy=False)
    return to_rgb(pixels, header, reader) if pixels.ndim == 3 else pixels


def warm_up() -> None:
    """Compile the kernels on a line of one sample (or load them from numba's cache)."""
    data = np.zeros(8, np.uint8)
    data.flags.writeable = False
    coding, thresholds = _coding(8, 0, Preset(), "", 0)
    work = Work(
        words=np.empty(9, np.uint64),
        quantised=_quantised(coding.maxval, coding.near, thresholds),
        lines=np.empty((2, 1, 3), np.int32),
        gradients=np.empty((1, 1), np.int32),
        contexts=np.empty(N_CONTEXTS * 8, np.int32),
        run_index=np.empty(1, np.int64),
        progress=np.zeros(2, np.int64),
    )
    decode_scan(data, 0, np.empty((1, 1, 1), np.uint16), 0, False, 0, coding, work)
