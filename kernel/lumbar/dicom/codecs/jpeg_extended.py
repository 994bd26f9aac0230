"""JPEG extended sequential, Huffman (PS3.5 8.2.1; ITU-T T.81): 12-bit samples, which OpenCV refuses, and 8-bit ones.

Colour of 8 bits is decoded by OpenCV, colour of 12 bits is refused. Progressive and arithmetic-coded frames have other
transfer syntaxes, and are refused.
"""

from __future__ import annotations

import numpy as np

from lumbar.dicom.codecs import opencv
from lumbar.dicom.codecs.jpeg_extended_kernels import PADDING, Work, decode_scan
from lumbar.dicom.codecs.jpeg_markers import (
    SOF_BASELINE,
    SOF_EXTENDED,
    MarkerReader,
    check_room,
    check_size,
    open_frame,
    read_only,
)
from lumbar.dicom.codecs.jpeg_restarts import REASONS
from lumbar.dicom.codecs.jpeg_segments import Frame, HuffmanTable, Scan, refuse
from lumbar.dicom.codecs.native import clear_unused_bits
from lumbar.dicom.header import Header

TRANSFER_SYNTAXES = ("1.2.840.10008.1.2.4.51",)


def decode_frame(data: np.ndarray, header: Header, is_as_pylibjpeg: bool = False) -> np.ndarray:
    """Decode one frame (``lumbar.dicom.pixels.Codec``).

    The standard leaves the rounding of samples open: they are libjpeg's, or with ``is_as_pylibjpeg`` those of 12 bits
    are pylibjpeg's.
    """
    shape, dtype, path = header.frame_shape, header.pixel_dtype, header.path
    rows, columns = shape[:2]
    samples = shape[2] if len(shape) == 3 else 1
    reader, frame, scan = open_frame(data, path, (SOF_BASELINE, SOF_EXTENDED), "ffc0 or ffc1 (sequential DCT)")
    if frame.precision not in (8, 12) or frame.precision > 8 * dtype.itemsize:
        raise refuse(path, frame.offset, f"{frame.precision} bits a sample", f"8 or 12 in {8 * dtype.itemsize}")
    check_size(path, frame, rows=rows, columns=columns, samples=samples)
    if samples > 1:
        if frame.precision == 8:
            return opencv.decode_frame(data, header)
        raise refuse(path, frame.offset, f"{samples} components of 12 bits", "one")
    # A block takes at least two bits
    check_room(path, frame.offset, data.size, n_samples=rows * columns, least=rows * columns // 256)
    out = np.empty((rows, columns, 1), np.uint16)
    _decode_scan(read_only(data), out, frame, reader, scan, is_as_pylibjpeg and frame.precision == 12)
    return clear_unused_bits(out.reshape(shape).astype(dtype, copy=False), header)


def _decode_scan(
    data: np.ndarray, out: np.ndarray, frame: Frame, reader: MarkerReader, scan: Scan, is_as_pylibjpeg: bool
) -> None:
    """Decode the one scan of a gray frame into ``out``.

    The coefficients that the scan header names are ignored: a sequential frame has only one choice (B.2.3), and libjpeg
    also reads files that name others.
    """
    path = reader.path
    component = scan.components[0]
    number = frame.components[component.index].quantisation
    dc, ac = reader.dc_tables.get(component.dc_table), reader.ac_tables.get(component.ac_table)
    quantisation = reader.quantisation.get(number)
    if dc is None or ac is None or quantisation is None:
        tables = f"Huffman tables {sorted(reader.dc_tables)} and {sorted(reader.ac_tables)}"
        tables += f", quantisation tables {sorted(reader.quantisation)}"
        raise refuse(path, scan.offset, tables, f"{component.dc_table}, {component.ac_table} and {number} among them")
    work = Work(
        words=np.empty(data.size // 8 + 1 + PADDING, np.uint64),
        dc=_lookup(dc)[None],
        ac=_lookup(ac)[None],
        quantisation=quantisation.astype(np.int64)[None],
        predictors=np.zeros(1, np.int64),
        block=np.empty(64, np.int64),
        progress=np.zeros(2, np.int64),
    )
    options = reader.restart_interval, frame.precision, is_as_pylibjpeg
    code = decode_scan(data, scan.data_offset, out, 0, *options, work)
    if code < 0:
        line, stop = work.progress.tolist()
        raise refuse(path, stop, f"{REASONS[code]} at line {line}", f"{out.shape[0]} lines")


def _lookup(table: HuffmanTable) -> np.ndarray:
    """Return a look-up (65536,) uint16 of all codes: 256 length + symbol for 16 bits that begin with a code, or 0."""
    lengths = np.repeat(np.arange(1, 17), table.counts)
    codes = (256 * lengths + table.values).astype(np.uint16)
    entries = np.zeros(65536, np.uint16)
    filled = np.repeat(codes, 1 << (16 - lengths))
    entries[: filled.size] = filled  # it fits, because the marker reader checked that the lengths are a prefix code's
    return entries


def warm_up() -> None:
    """Compile the kernels on data that end at once, or load them from numba's cache."""
    data = np.zeros(1, np.uint8)
    data.flags.writeable = False
    work = Work(
        words=np.empty(1 + PADDING, np.uint64),
        dc=np.zeros((1, 65536), np.uint16),
        ac=np.zeros((1, 65536), np.uint16),
        quantisation=np.zeros((1, 64), np.int64),
        predictors=np.zeros(1, np.int64),
        block=np.empty(64, np.int64),
        progress=np.zeros(2, np.int64),
    )
    decode_scan(data, 0, np.empty((1, 1, 1), np.uint16), 0, 0, 12, False, work)
