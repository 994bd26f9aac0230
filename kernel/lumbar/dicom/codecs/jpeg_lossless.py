"""JPEG Lossless, Huffman (PS3.5 section 8.2.1; ITU-T T.81 annex H): all predictors, point transform, restarts.

Two to sixteen bits, one or three components, in one scan or one scan each. Arithmetic coding and hierarchical frames
are other processes, which DICOM has no transfer syntaxes for; they are refused.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from lumbar.dicom._scratch import fresh, scratch
from lumbar.dicom.codecs.colour import to_rgb
from lumbar.dicom.codecs.jpeg_lossless_kernels import (
    PAD,
    Coding,
    Work,
    decode_rescaled,
    decode_stream,
)
from lumbar.dicom.codecs.jpeg_lossless_tables import TABLE_SIZE, Tables, fill_table
from lumbar.dicom.codecs.jpeg_markers import SOF_LOSSLESS, MarkerReader, check_size, open_frame
from lumbar.dicom.codecs.jpeg_restarts import NO_RESTART, REASONS
from lumbar.dicom.codecs.jpeg_segments import Frame, Scan, refuse
from lumbar.dicom.codecs.native import clear_unused_bits
from lumbar.dicom.header import Header

TRANSFER_SYNTAXES: tuple[str, ...] = ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")

_REASONS = {**REASONS, NO_RESTART: "a restart marker out of turn, too many or too few"}


def decode_frame(data: np.ndarray, header: Header) -> np.ndarray:
    """Decode one frame (``lumbar.dicom.pixels.Codec``)."""
    shape, dtype, path = header.frame_shape, header.pixel_dtype, header.path
    rows, columns = shape[:2]
    samples = shape[2] if len(shape) == 3 else 1
    reader, frame, first = open_frame(data, path, (SOF_LOSSLESS,), "ffc3 (lossless, Huffman)")
    _check(frame, header, data.size)
    planes = fresh((samples, rows, columns), np.uint16, "pixels")
    missing = set(range(samples))
    scan: Scan | None = first
    while scan is not None and missing:
        indices = [component.index for component in scan.components]
        if not missing.issuperset(indices):
            raise refuse(path, scan.offset, f"a second scan of components {indices}", f"some of {sorted(missing)}")
        stop = _decode_scan(data, planes, frame, reader, scan)
        missing.difference_update(indices)
        scan = reader.next_scan(stop) if missing else None
    if missing:
        raise refuse(path, reader.position, f"no scan of component {min(missing)}", f"scans of all {samples}")
    pixels = planes[0] if samples == 1 else np.ascontiguousarray(planes.transpose(1, 2, 0))
    pixels = clear_unused_bits(pixels.view(dtype) if dtype.itemsize == 2 else pixels.astype(dtype), header)
    return pixels if samples == 1 else to_rgb(pixels, header, reader)


def fill(
    data: np.ndarray, header: Header, mask: int, sign: int, slope: float, intercept: float, out: np.ndarray
) -> bool:
    """Decode a gray frame straight into ``out`` (n,) float32, in rescaled units.

    Args:
        data: (n,) uint8, the frame's bytes.
        header: gives the sizes.
        mask: the bits stored.
        sign: the highest of them where values are signed, else 0.
        slope: of the rescaled units.
        intercept: of the rescaled units.
        out: receives the pixels.

    Returns:
        Whether the frame is a gray one; if not, nothing was done.

    Raises:
        DicomError: as ``decode_frame``.
    """
    rows, columns = header.frame_shape[:2]
    reader, frame, scan = open_frame(data, header.path, (SOF_LOSSLESS,), "ffc3 (lossless, Huffman)")
    _check(frame, header, data.size)
    if len(frame.components) != 1:
        return False
    tables, coding, work = _prepare(data, rows, columns, frame, reader, scan)
    planes = fresh((1, rows, columns), np.uint16, "pixels")
    stop = decode_rescaled(data, scan.data_offset, planes, tables, coding, work, mask, sign, slope, intercept, out)
    return stop >= 0


def _check(frame: Frame, header: Header, n_bytes: int) -> None:
    """Refuse a frame that disagrees with the header, cannot be in ``n_bytes`` bytes, or is subsampled."""
    shape, dtype, path = header.frame_shape, header.pixel_dtype, header.path
    rows, columns = shape[:2]
    samples = shape[2] if len(shape) == 3 else 1
    check_size(path, frame, rows=rows, columns=columns, samples=samples)
    if frame.precision > 8 * dtype.itemsize:
        raise refuse(path, frame.offset, f"{frame.precision} bits a sample", f"at most {8 * dtype.itemsize}")
    if any(component.horizontal != 1 or component.vertical != 1 for component in frame.components):
        raise refuse(path, frame.offset, "subsampled components", "sampling factors of 1")
    # A sample takes at least one bit
    if rows * columns * samples > 8 * n_bytes:
        raise refuse(
            path, frame.offset, f"{n_bytes} bytes", f"{rows * columns * samples // 8} or more for {rows} x {columns}"
        )


def _decode_scan(data: np.ndarray, planes: np.ndarray, frame: Frame, reader: MarkerReader, scan: Scan) -> int:
    """Decode one scan into its components' planes; return the offset in ``data`` at which it ended."""
    rows, columns = planes.shape[1:]
    indices = [component.index for component in scan.components]
    is_whole = indices == list(range(len(planes)))
    part = planes if is_whole else np.empty((len(indices), rows, columns), dtype=np.uint16)
    tables, coding, work = _prepare(data, rows, columns, frame, reader, scan)
    stop = decode_stream(data, scan.data_offset, part, tables, coding, work)
    if stop < 0:
        n_intervals = len(work.starts) - 1
        raise refuse(
            reader.path, scan.data_offset, _REASONS[stop], f"{rows} x {columns} samples in {n_intervals} intervals"
        )
    if not is_whole:
        planes[indices] = part
    return int(stop)


def _prepare(
    data: np.ndarray, rows: int, columns: int, frame: Frame, reader: MarkerReader, scan: Scan
) -> tuple[Tables, Coding, Work]:
    """Check a scan header, and set up what the compiled decoders take for it."""
    path = reader.path
    shift = scan.low
    if not 1 <= scan.start <= 7 or scan.end != 0 or scan.high != 0 or shift >= frame.precision:
        parameters = f"predictor {scan.start}, Se {scan.end}, Ah {scan.high}, point transform {shift}"
        raise refuse(path, scan.offset, parameters, f"predictor 1 to 7, 0, 0, point transform below {frame.precision}")
    rows_per_interval, rest = divmod(reader.restart_interval, columns)
    if rest:
        raise refuse(path, scan.offset, f"restart interval {reader.restart_interval}", f"whole rows of {columns}")
    rows_per_interval = rows_per_interval or rows
    lookups: list[Tables] = []
    for component in scan.components:
        table = reader.dc_tables.get(component.dc_table)
        if table is None:
            raise refuse(path, scan.offset, f"no Huffman table {component.dc_table}", "one before the scan")
        lookup = _lookup(table.counts.tobytes(), table.values.tobytes())
        if lookup is None:
            raise refuse(path, scan.offset, f"Huffman table {component.dc_table} with categories above 16", "0 to 16")
        lookups.append(lookup)
    work = Work(
        stream=scratch(data.size + PAD),
        starts=np.empty(-(-rows // rows_per_interval) + 1, dtype=np.int64),
        line=np.empty(columns * len(lookups), dtype=np.uint16),
    )
    initial = 1 << (frame.precision - shift - 1)
    return _stack(lookups), Coding(scan.start, initial, shift, rows_per_interval), work


def _stack(lookups: list[Tables]) -> Tables:
    """The look-ups of a scan's components, one after the other along the first axis."""
    if len(lookups) == 1:
        return lookups[0]
    return Tables(*[np.concatenate(arrays) for arrays in zip(*lookups, strict=True)])


@lru_cache(maxsize=64)
def _lookup(counts: bytes, values: bytes) -> Tables | None:
    """The look-up of one Huffman table, for one component; ``None`` where a category is above 16."""
    lengths, differences = np.zeros(TABLE_SIZE, np.uint8), np.zeros(TABLE_SIZE, np.uint16)
    bounds = np.zeros((17, 2), np.int64)
    categories = np.zeros(256, np.uint8)
    categories[: len(values)] = np.frombuffer(values, np.uint8)
    code = fill_table(np.frombuffer(counts, np.uint8), np.frombuffer(values, np.uint8), lengths, differences, bounds)
    return None if code < 0 else Tables(lengths[None], differences[None], bounds[None], categories[None])


def warm_up() -> None:
    """Compile the kernels (or load them from numba's cache) on a frame of one pixel, whose bits end too early."""
    source, work = _one_pixel()
    decode_stream(source, 0, np.zeros((1, 1, 1), np.uint16), _one_code(), Coding(1, 0, 0, 1), work)


def warm_up_direct() -> None:
    """Compile what ``fill`` needs (or load it from numba's cache)."""
    source, work = _one_pixel()
    planes, out = np.zeros((1, 1, 1), np.uint16), np.zeros(1, np.float32)
    decode_rescaled(source, 0, planes, _one_code(), Coding(1, 0, 0, 1), work, 1, 0, 1.0, 0.0, out)


def _one_pixel() -> tuple[np.ndarray, Work]:
    """A source of eight zero bytes, and room to decode one pixel from it."""
    source = np.zeros(8, np.uint8)
    source.flags.writeable = False
    return source, Work(np.zeros(PAD + 8, np.uint8), np.zeros(2, np.int64), np.zeros(1, np.uint16))


def _one_code() -> Tables:
    """The look-up of a table with one code of one bit, for a difference of 0."""
    lookup = _lookup(bytes([1, *([0] * 15)]), bytes(1))
    assert lookup is not None
    return lookup
