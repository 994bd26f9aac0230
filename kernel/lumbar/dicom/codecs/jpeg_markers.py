"""The marker segments of JPEG (ITU-T T.81, annex B) and JPEG-LS (ITU-T T.87, annex C), read with bounds checks.

A ``MarkerReader`` walks the segments up to each start of scan, and keeps the tables in force there. It never looks into
entropy-coded data; a codec hands back where its scan ended and asks for the next one::

    reader = MarkerReader(data, path)
    scan = reader.next_scan()                # None at the end of the image
    ... decode from scan.data_offset, ends at stop ...
    scan = reader.next_scan(stop)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lumbar.dicom.limits import MAX_FRAME_PIXELS, MAX_SEGMENTS
from lumbar.errors import DicomError

SOI, EOI, SOS, DQT, DNL, DRI, DHT, LSE = 0xD8, 0xD9, 0xDA, 0xDB, 0xDC, 0xDD, 0xC4, 0xF8
SOF_BASELINE, SOF_EXTENDED, SOF_LOSSLESS, SOF_JPEG_LS = 0xC0, 0xC1, 0xC3, 0xF7
RST0, RST7 = 0xD0, 0xD7
MAX_COMPONENTS = 4
_FEW_FILL_BYTES = 16

# SOF0-15 without DHT (C4), JPG (C8) and DAC (CC), which share the block; SOF55 is JPEG-LS.
FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {SOF_JPEG_LS}
_STANDALONE = frozenset(range(RST0, RST7 + 1)) | {0x01}


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


class MarkerReader:
    """Walks the marker segments of one image.

    Parameters
    ----------
    data
        (n,) uint8, one frame's bytes, from SOI.
    path
        Names the file in refusals.

    Attributes
    ----------
    frame
        The frame header, set by the first ``next_scan`` that returns a scan.
    dc_tables, ac_tables
        Huffman tables in force, by their number 0-3 (lossless JPEG uses ``dc_tables``).
    quantisation
        (64,) uint16 in zigzag order, by number 0-3.
    restart_interval
        MCUs (lines in JPEG-LS) between restart markers; 0 means none.
    preset
        JPEG-LS parameters of the last LSE segment.
    applications
        (marker, first 64 bytes) of each APPn segment.
    """

    def __init__(self, data: np.ndarray, path: str) -> None:
        self.path = path
        self.frame: Frame | None = None
        self.dc_tables: dict[int, HuffmanTable] = {}
        self.ac_tables: dict[int, HuffmanTable] = {}
        self.quantisation: dict[int, np.ndarray] = {}
        self.restart_interval = 0
        self.preset = Preset()
        self.applications: list[tuple[int, bytes]] = []
        self._bytes = np.ascontiguousarray(data, np.uint8).data.cast("B")
        self._position = 0
        self._n_read = 0  # segments and tables
        if len(self._bytes) < 4 or self._bytes[0] != 0xFF or self._bytes[1] != SOI:
            start = bytes(self._bytes[:2]).hex() or "no data"
            raise refuse(path, 0, start, "ffd8 (start of image)")
        self._position = 2

    @property
    def position(self) -> int:
        """Offset of the next byte to be read."""
        return self._position

    def next_scan(self, position: int | None = None) -> Scan | None:
        """Read segments up to the next start of scan; ``None`` at the end of the image or of the data.

        ``position``, where given, is an offset in the entropy-coded data of the scan before: what is left of that is
        passed over first.

        Raises
        ------
        DicomError
            For a segment that is cut off, out of the standard's ranges, or of a kind that no codec here decodes.
        """
        if position is not None:
            self._position = self._end_of_scan(position)
        while True:
            marker, offset = self._next_marker()
            if marker in (EOI, -1):
                if self.frame is None:
                    raise refuse(self.path, offset, "end of the image", "a frame header and a scan")
                return None
            self._count(offset)
            if marker in _STANDALONE:
                continue
            start, stop = self._segment(offset)
            self._position = stop
            if marker == SOS:
                return self._read_scan(offset, start, stop)
            self._read_segment(marker, offset, start, stop)

    def _count(self, offset: int) -> None:
        """Refuse more segments and tables than any encoder writes: reading one costs far more than its bytes."""
        self._n_read += 1
        if self._n_read > MAX_SEGMENTS:
            raise refuse(self.path, offset, f"more than {MAX_SEGMENTS} marker segments and tables", "fewer")

    def _end_of_scan(self, position: int) -> int:
        """Return the offset of the first marker at or after ``position`` that is no restart marker or stuffed byte.

        A byte below 0x80 after 0xFF belongs to entropy-coded data in JPEG-LS, a zero byte does in JPEG.
        """
        data = self._bytes
        lowest = 0x80 if self.frame is not None and self.frame.marker == SOF_JPEG_LS else 0x01
        tail = np.frombuffer(data, np.uint8)[max(0, position) :]
        nexts = tail[1:]
        is_marker = (tail[:-1] == 0xFF) & (nexts >= lowest) & (nexts != 0xFF) & ((nexts < RST0) | (nexts > RST7))
        return max(0, position) + int(is_marker.argmax()) if is_marker.any() else len(data)

    def _next_marker(self) -> tuple[int, int]:
        """Return (marker, its offset); -1 at the end of the data. Any number of 0xFF may come before one (B.1.1.2)."""
        data, i = self._bytes, self._position
        size = len(data)
        if i < size and data[i] != 0xFF:
            raise refuse(self.path, i, f"{data[i]:02x}", "ff (a marker)")
        while i < size and data[i] == 0xFF:
            i += 1
            if i - self._position == _FEW_FILL_BYTES:  # the rest at once: there may be millions
                others = np.frombuffer(data, np.uint8)[i:] != 0xFF
                i += int(others.argmax()) if others.any() else others.size
        if i >= size:
            return -1, size
        if data[i] == 0:
            raise refuse(self.path, i - 1, "ff00", "a marker")
        self._position = i + 1
        return data[i], i - 1

    def _segment(self, offset: int) -> tuple[int, int]:
        """Return start and stop of the parameters of the segment whose marker lies at ``offset``."""
        start = self._position
        if start + 2 > len(self._bytes):
            raise refuse(self.path, start, "the end of the data", "a segment's length")
        length = self._bytes[start] << 8 | self._bytes[start + 1]
        if length < 2 or start + length > len(self._bytes):
            raise refuse(self.path, start, f"segment length {length}", f"2 to {len(self._bytes) - start}")
        return start + 2, start + length

    def _read_segment(self, marker: int, offset: int, start: int, stop: int) -> None:
        if marker in FRAME_MARKERS:
            self.frame = self._read_frame(marker, offset, start, stop)
        elif marker == DHT:
            self._read_huffman(start, stop)
        elif marker == DQT:
            self._read_quantisation(start, stop)
        elif marker == DRI:
            self._read_restart(start, stop)
        elif marker == LSE:
            self._read_preset(offset, start, stop)
        elif marker == DNL:
            self._read_lines(start, stop)
        elif 0xE0 <= marker <= 0xEF:
            if len(self.applications) < 64:
                self.applications.append((marker, bytes(self._bytes[start : min(stop, start + 64)])))
        elif marker != 0xFE and marker < 0xE0:  # comments and the reserved segments F0-FD say nothing to us
            raise refuse(self.path, offset, f"marker ff{marker:02x}", "a segment of sequential or lossless JPEG")

    def _read_frame(self, marker: int, offset: int, start: int, stop: int) -> Frame:
        if self.frame is not None:
            raise refuse(self.path, offset, "a second frame header", "one")
        data = self._bytes
        if stop - start < 6:
            raise refuse(self.path, start, f"{stop - start} bytes of frame header", "6 or more")
        n = data[start + 5]
        if not 1 <= n <= MAX_COMPONENTS or stop - start != 6 + 3 * n:
            value = f"{n} components in {stop - start} bytes of frame header"
            raise refuse(self.path, start + 5, value, f"1 to {MAX_COMPONENTS} in 6 + 3 n")
        components: list[Component] = []
        for i in range(start + 6, stop, 3):
            part = Component(data[i], data[i + 1] >> 4, data[i + 1] & 15, data[i + 2])
            if not (1 <= part.horizontal <= 4 and 1 <= part.vertical <= 4):
                raise refuse(self.path, i + 1, f"sampling factors {part.horizontal} x {part.vertical}", "1 to 4")
            if part.identifier in [before.identifier for before in components]:
                raise refuse(self.path, i, f"component {part.identifier} twice", "different identifiers")
            components.append(part)
        precision, rows, columns = data[start], self._word(start + 1), self._word(start + 3)
        if not 2 <= precision <= 16:
            raise refuse(self.path, start, f"precision {precision}", "2 to 16 bits")
        return Frame(marker, offset, precision, rows, columns, tuple(components))

    def _read_scan(self, offset: int, start: int, stop: int) -> Scan:
        data, frame = self._bytes, self.frame
        if frame is None:
            raise refuse(self.path, offset, "a scan", "a frame header before it")
        n = data[start] if stop > start else 0
        if not 1 <= n <= len(frame.components) or stop - start != 4 + 2 * n:
            value = f"{n} components in {stop - start} bytes of scan header"
            raise refuse(self.path, start, value, f"1 to {len(frame.components)} in 4 + 2 n")
        identifiers = [component.identifier for component in frame.components]
        components: list[ScanComponent] = []
        for i in range(start + 1, start + 1 + 2 * n, 2):
            if data[i] not in identifiers or identifiers.index(data[i]) in [before.index for before in components]:
                raise refuse(self.path, i, f"scan component {data[i]}", f"one of {identifiers}, once")
            components.append(ScanComponent(identifiers.index(data[i]), data[i + 1] >> 4, data[i + 1] & 15))
        last = data[stop - 1]
        return Scan(offset, tuple(components), data[stop - 3], data[stop - 2], last >> 4, last & 15, stop)

    def _read_huffman(self, start: int, stop: int) -> None:
        while start < stop:
            self._count(start)
            if start + 17 > stop:
                raise refuse(self.path, start, f"{stop - start} bytes of Huffman table", "17 or more")
            kind, number = self._bytes[start] >> 4, self._bytes[start] & 15
            if kind > 1 or number > 3:
                raise refuse(self.path, start, f"Huffman table class {kind} number {number}", "0-1 and 0-3")
            counts = np.frombuffer(self._bytes[start + 1 : start + 17], np.uint8).copy()
            n = int(counts.sum(dtype=np.int64))
            if n > 256 or start + 17 + n > stop:
                raise refuse(self.path, start + 1, f"{n} Huffman codes", f"at most {min(256, stop - start - 17)}")
            space = 0  # codes of 16 bits that are taken; all ones is never a code (T.81 C.2), but some encoders use it
            for length, count in enumerate(counts.tolist(), start=1):
                space += count << (16 - length)
            if space > 1 << 16:
                raise refuse(self.path, start + 1, "Huffman code lengths that overflow", "those of a prefix code")
            values = np.frombuffer(self._bytes[start + 17 : start + 17 + n], np.uint8).copy()
            (self.ac_tables if kind else self.dc_tables)[number] = HuffmanTable(counts, values)
            start += 17 + n

    def _read_quantisation(self, start: int, stop: int) -> None:
        while start < stop:
            self._count(start)
            wide, number = self._bytes[start] >> 4, self._bytes[start] & 15
            size = 128 if wide else 64
            if wide > 1 or number > 3 or start + 1 + size > stop:
                value = f"quantisation table {number} of precision {wide} in {stop - start} bytes"
                raise refuse(self.path, start, value, "0-3, 0-1, and 65 or 129 bytes")
            raw = np.frombuffer(self._bytes[start + 1 : start + 1 + size], ">u2" if wide else np.uint8)
            self.quantisation[number] = raw.astype(np.uint16)
            start += 1 + size

    def _read_restart(self, start: int, stop: int) -> None:
        """Read DRI: two bytes (T.81 B.2.4.4), three or four in JPEG-LS (T.87 C.2.5)."""
        if not 2 <= stop - start <= 4:
            raise refuse(self.path, start, f"{stop - start} bytes of restart interval", "2, 3 or 4")
        self.restart_interval = int.from_bytes(self._bytes[start:stop], "big")

    def _read_preset(self, offset: int, start: int, stop: int) -> None:
        """Read LSE of type 1, coding parameters, and 4, a size beyond 65535 (refused: DICOM has none)."""
        kind = self._bytes[start] if stop > start else 0
        if kind == 1 and stop - start == 11:
            self.preset = Preset(*[self._word(start + 1 + 2 * i) for i in range(5)])
        elif kind not in (2, 3):  # mapping tables matter only to a scan that names one, which its codec refuses
            value = f"LSE segment of type {kind} and {stop - start} bytes"
            raise refuse(self.path, offset, value, "type 1 with 11 bytes, 2 or 3")

    def _read_lines(self, start: int, stop: int) -> None:
        """Read DNL (T.81 B.2.5), which repeats or sets the number of rows after the first scan."""
        if stop - start != 2 or self.frame is None:
            raise refuse(self.path, start, f"{stop - start} bytes of line count", "2, after the first scan")
        if self.frame.rows not in (0, self._word(start)):
            raise refuse(self.path, start, f"{self._word(start)} lines", self.frame.rows)

    def _word(self, offset: int) -> int:
        return self._bytes[offset] << 8 | self._bytes[offset + 1]


def check_size(path: str, frame: Frame, *, rows: int, columns: int, samples: int) -> None:
    """Refuse a frame header that disagrees with the data set, before anything of its size is allocated.

    ``frame.rows`` of 0 leaves the number of rows to a DNL segment, hence to the data set.
    """
    size = (frame.rows or rows, frame.columns, len(frame.components))
    if size != (rows, columns, samples):
        as_text = [f"{r} x {c} with {n} sample(s)" for r, c, n in (size, (rows, columns, samples))]
        raise refuse(path, frame.offset, as_text[0], f"{as_text[1]}, as the data set says")


def check_room(path: str, offset: int, size: int, *, n_samples: int, least: int) -> None:
    """Refuse sizes that ``size`` bytes of codestream cannot hold, before anything is allocated for them.

    ``least``: bytes that the smallest codestream of that size would have. ``lumbar.dicom.limits`` has what a whole file
    may ask for; here only the largest frame counts.
    """
    if size < least or n_samples > MAX_COMPONENTS * MAX_FRAME_PIXELS:
        raise refuse(path, offset, f"{size} bytes for {n_samples} samples", "more bytes, or a smaller image")


def open_frame(
    data: np.ndarray, path: str, markers: tuple[int, ...], expected: str
) -> tuple[MarkerReader, Frame, Scan]:
    """Read up to the first scan of an image; its frame header must be one of ``markers``, ``expected`` in words.

    Raises
    ------
    DicomError
        For another process, no scan, or a segment that is damaged.
    """
    reader = MarkerReader(data, path)
    scan = reader.next_scan()
    frame = reader.frame
    if frame is None or scan is None:
        raise refuse(path, reader.position, "no scan", "one")
    if frame.marker not in markers:
        raise refuse(path, frame.offset, f"frame header ff{frame.marker:02x}", expected)
    return reader, frame, scan


def read_only(data: np.ndarray) -> np.ndarray:
    """Return a contiguous, read-only view of ``data``: the one type of array that kernels are compiled for."""
    view = np.ascontiguousarray(data)[:]
    view.flags.writeable = False
    return view
