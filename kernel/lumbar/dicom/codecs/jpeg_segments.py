"""The contents of JPEG and JPEG-LS marker segments (ITU-T T.81 section B.2, ITU-T T.87 section C.2), read with checks.

Each ``parse_…`` function takes the codestream's bytes, and where the parameters of one segment start and stop in them.
What is out of the standard's ranges is refused with the file's path and the byte's offset.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lumbar.errors import DicomError

MAX_COMPONENTS = 4


def refuse(path: str, offset: int, value: object, expected: object) -> DicomError:
    """Return the refusal of a codestream: byte ``offset`` counts from the frame's SOI."""
    return DicomError(f"{path}: JPEG codestream, byte {offset}: found {value}, expected {expected}")


@dataclass(frozen=True, slots=True)
class Component:
    """One component of a frame header (T.81 B.2.2): sampling factors 1-4, quantisation table 0-3."""

    identifier: int
    horizontal: int
    vertical: int
    quantisation: int


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame header (T.81 B.2.2). ``marker`` is the second byte, 0xC0 (SOF0) and on; ``rows`` may be 0 (see DNL)."""

    marker: int
    offset: int
    precision: int
    rows: int
    columns: int
    components: tuple[Component, ...]


@dataclass(frozen=True, slots=True)
class ScanComponent:
    """One component of a scan header; ``index`` counts in the frame's components.

    In JPEG-LS the byte that holds ``dc_table`` and ``ac_table`` is the mapping table's number (0: none).
    """

    index: int
    dc_table: int
    ac_table: int


@dataclass(frozen=True, slots=True)
class Scan:
    """A scan header (T.81 B.2.3) and the offset of the entropy-coded byte after it.

    ``start`` is Ss, the predictor (lossless) or NEAR (JPEG-LS); ``end`` is Se or ILV (JPEG-LS); ``high`` and ``low``
    are Ah and Al (``low`` is the point transform).
    """

    offset: int
    components: tuple[ScanComponent, ...]
    start: int
    end: int
    high: int
    low: int
    data_offset: int


@dataclass(frozen=True, slots=True)
class HuffmanTable:
    """A Huffman table (T.81 B.2.4.2) whose code lengths are known to fit a prefix code.

    ``counts``: (16,) uint8, codes of length 1-16; ``values``: (n,) uint8 in the order of the codes.
    """

    counts: np.ndarray
    values: np.ndarray


@dataclass(frozen=True, slots=True)
class Preset:
    """JPEG-LS coding parameters (T.87 C.2.4.1.1); 0 stands for the default value."""

    maxval: int = 0
    t1: int = 0
    t2: int = 0
    t3: int = 0
    reset: int = 0


def parse_frame(data: memoryview, path: str, marker: int, offset: int, start: int, stop: int) -> Frame:
    """Read a frame header (T.81 B.2.2), whose ``marker`` lies at ``offset``."""
    if stop - start < 6:
        raise refuse(path, start, f"{stop - start} bytes of frame header", "6 or more")
    n = data[start + 5]
    if not 1 <= n <= MAX_COMPONENTS or stop - start != 6 + 3 * n:
        value = f"{n} components in {stop - start} bytes of frame header"
        raise refuse(path, start + 5, value, f"1 to {MAX_COMPONENTS} in 6 + 3 n")
    components: list[Component] = []
    for i in range(start + 6, stop, 3):
        part = Component(data[i], data[i + 1] >> 4, data[i + 1] & 15, data[i + 2])
        if not (1 <= part.horizontal <= 4 and 1 <= part.vertical <= 4):
            raise refuse(path, i + 1, f"sampling factors {part.horizontal} x {part.vertical}", "1 to 4")
        if part.identifier in [before.identifier for before in components]:
            raise refuse(path, i, f"component {part.identifier} twice", "different identifiers")
        components.append(part)
    precision = data[start]
    if not 2 <= precision <= 16:
        raise refuse(path, start, f"precision {precision}", "2 to 16 bits")
    return Frame(marker, offset, precision, read_word(data, start + 1), read_word(data, start + 3), tuple(components))


def parse_scan(data: memoryview, path: str, frame: Frame, offset: int, start: int, stop: int) -> Scan:
    """Read a scan header (T.81 B.2.3), whose marker lies at ``offset``."""
    n = data[start] if stop > start else 0
    if not 1 <= n <= len(frame.components) or stop - start != 4 + 2 * n:
        value = f"{n} components in {stop - start} bytes of scan header"
        raise refuse(path, start, value, f"1 to {len(frame.components)} in 4 + 2 n")
    identifiers = [component.identifier for component in frame.components]
    components: list[ScanComponent] = []
    for i in range(start + 1, start + 1 + 2 * n, 2):
        if data[i] not in identifiers or identifiers.index(data[i]) in [before.index for before in components]:
            raise refuse(path, i, f"scan component {data[i]}", f"one of {identifiers}, once")
        components.append(ScanComponent(identifiers.index(data[i]), data[i + 1] >> 4, data[i + 1] & 15))
    last = data[stop - 1]
    return Scan(offset, tuple(components), data[stop - 3], data[stop - 2], last >> 4, last & 15, stop)


def parse_huffman_tables(
    data: memoryview, path: str, start: int, stop: int
) -> Iterator[tuple[int, int, int, HuffmanTable]]:
    """Read the tables of a DHT segment (T.81 B.2.4.2) one by one: offset, class (0 DC, 1 AC), number and table."""
    while start < stop:
        if start + 17 > stop:
            raise refuse(path, start, f"{stop - start} bytes of Huffman table", "17 or more")
        kind, number = data[start] >> 4, data[start] & 15
        if kind > 1 or number > 3:
            raise refuse(path, start, f"Huffman table class {kind} number {number}", "0-1 and 0-3")
        counts = np.frombuffer(data[start + 1 : start + 17], np.uint8).copy()
        n = int(counts.sum(dtype=np.int64))
        if n > 256 or start + 17 + n > stop:
            raise refuse(path, start + 1, f"{n} Huffman codes", f"at most {min(256, stop - start - 17)}")
        space = 0  # codes of 16 bits that are taken; all ones is never a code (T.81 C.2), but some encoders use it
        for length, count in enumerate(counts.tolist(), start=1):
            space += count << (16 - length)
        if space > 1 << 16:
            raise refuse(path, start + 1, "Huffman code lengths that overflow", "those of a prefix code")
        values = np.frombuffer(data[start + 17 : start + 17 + n], np.uint8).copy()
        yield start, kind, number, HuffmanTable(counts, values)
        start += 17 + n


def parse_quantisation_tables(
    data: memoryview, path: str, start: int, stop: int
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Read the tables of a DQT segment (T.81 B.2.4.1) one by one: offset, number and (64,) uint16 in zigzag order."""
    while start < stop:
        precision, number = data[start] >> 4, data[start] & 15
        size = 128 if precision else 64
        if precision > 1 or number > 3 or start + 1 + size > stop:
            value = f"quantisation table {number} of precision {precision} in {stop - start} bytes"
            raise refuse(path, start, value, "0-3, 0-1, and 65 or 129 bytes")
        raw = np.frombuffer(data[start + 1 : start + 1 + size], ">u2" if precision else np.uint8)
        yield start, number, raw.astype(np.uint16)
        start += 1 + size


def parse_restart_interval(data: memoryview, path: str, start: int, stop: int) -> int:
    """Read DRI: two bytes (T.81 B.2.4.4), three or four in JPEG-LS (T.87 C.2.5)."""
    if not 2 <= stop - start <= 4:
        raise refuse(path, start, f"{stop - start} bytes of restart interval", "2, 3 or 4")
    return int.from_bytes(data[start:stop], "big")


def parse_preset(data: memoryview, path: str, offset: int, start: int, stop: int) -> Preset | None:
    """Read LSE, whose marker lies at ``offset``: coding parameters (type 1), or ``None`` for mapping tables.

    A mapping table matters only to a scan that names one, which its codec refuses. Type 4, a size beyond 65535, is
    refused here: DICOM has no such images.
    """
    kind = data[start] if stop > start else 0
    if kind == 1 and stop - start == 11:
        return Preset(*[read_word(data, start + 1 + 2 * i) for i in range(5)])
    if kind not in (2, 3):
        value = f"LSE segment of type {kind} and {stop - start} bytes"
        raise refuse(path, offset, value, "type 1 with 11 bytes, 2 or 3")
    return None


def check_line_count(data: memoryview, path: str, frame: Frame | None, start: int, stop: int) -> None:
    """Check DNL (T.81 B.2.5), which repeats or sets the number of rows after the first scan."""
    if stop - start != 2 or frame is None:
        raise refuse(path, start, f"{stop - start} bytes of line count", "2, after the first scan")
    if frame.rows not in (0, read_word(data, start)):
        raise refuse(path, start, f"{read_word(data, start)} lines", frame.rows)


def read_word(data: memoryview, offset: int) -> int:
    """Two bytes as a big-endian number."""
    return data[offset] << 8 | data[offset + 1]
