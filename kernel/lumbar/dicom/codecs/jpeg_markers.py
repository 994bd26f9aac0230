"""From marker to marker of a JPEG (ITU-T T.81, annex B) or JPEG-LS codestream (ITU-T T.87, annex C), with checks.

A ``MarkerReader`` walks the segments up to each start of scan, and keeps the tables in force there
(``jpeg_segments`` reads them). It never looks into entropy-coded data: a codec hands back where its scan ended and asks
for the next one::

    reader = MarkerReader(data, path)
    scan = reader.next_scan()                # None at the end of the image
    ... decode from scan.data_offset, ends at stop ...
    scan = reader.next_scan(stop)
"""

from __future__ import annotations

import numpy as np

from lumbar.dicom.codecs import jpeg_segments
from lumbar.dicom.codecs.jpeg_segments import MAX_COMPONENTS, Frame, HuffmanTable, Preset, Scan, refuse
from lumbar.dicom.limits import MAX_FRAME_PIXELS, MAX_SEGMENTS

SOI, EOI, SOS, DQT, DNL, DRI, DHT, LSE = 0xD8, 0xD9, 0xDA, 0xDB, 0xDC, 0xDD, 0xC4, 0xF8
SOF_BASELINE, SOF_EXTENDED, SOF_LOSSLESS, SOF_JPEG_LS = 0xC0, 0xC1, 0xC3, 0xF7
RST0, RST7 = 0xD0, 0xD7
_FEW_FILL_BYTES = 16

# SOF0-15 without DHT (C4), JPG (C8) and DAC (CC), which share the block; SOF55 is JPEG-LS.
FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {SOF_JPEG_LS}
_STANDALONE = frozenset(range(RST0, RST7 + 1)) | {0x01}


class MarkerReader:
    """Walks the marker segments of one image.

    Args:
        data: (n,) uint8, one frame's bytes, from SOI.
        path: names the file in refusals.

    Attributes:
        frame: the frame header, set by the first ``next_scan`` that returns a scan.
        dc_tables, ac_tables: Huffman tables in force, by their number 0-3 (lossless JPEG uses ``dc_tables``).
        quantisation: (64,) uint16 in zigzag order, by number 0-3.
        restart_interval: MCUs (lines in JPEG-LS) between restart markers; 0 means none.
        preset: JPEG-LS parameters of the last LSE segment.
        applications: (marker, first 64 bytes) of each APPn segment.
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

        Args:
            position: an offset in the entropy-coded data of the scan before, whose rest is passed over first; ``None``
                to go on where the last segment ended.

        Raises:
            DicomError: a segment that is cut off, out of the standard's ranges, or of a kind that no codec here
                decodes.
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
                if self.frame is None:
                    raise refuse(self.path, offset, "a scan", "a frame header before it")
                return jpeg_segments.parse_scan(self._bytes, self.path, self.frame, offset, start, stop)
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
        """Take in one segment, whose ``marker`` lies at ``offset`` and whose parameters from ``start`` to ``stop``."""
        data, path = self._bytes, self.path
        if marker in FRAME_MARKERS:
            if self.frame is not None:
                raise refuse(path, offset, "a second frame header", "one")
            self.frame = jpeg_segments.parse_frame(data, path, marker, offset, start, stop)
        elif marker == DHT:
            for at, kind, number, table in jpeg_segments.parse_huffman_tables(data, path, start, stop):
                self._count(at)
                (self.ac_tables if kind else self.dc_tables)[number] = table
        elif marker == DQT:
            for at, number, values in jpeg_segments.parse_quantisation_tables(data, path, start, stop):
                self._count(at)
                self.quantisation[number] = values
        elif marker == DRI:
            self.restart_interval = jpeg_segments.parse_restart_interval(data, path, start, stop)
        elif marker == LSE:
            self.preset = jpeg_segments.parse_preset(data, path, offset, start, stop) or self.preset
        elif marker == DNL:
            jpeg_segments.check_line_count(data, path, self.frame, start, stop)
        elif 0xE0 <= marker <= 0xEF:
            if len(self.applications) < 64:
                self.applications.append((marker, bytes(data[start : min(stop, start + 64)])))
        elif marker != 0xFE and marker < 0xE0:  # comments and the reserved segments F0-FD say nothing to us
            raise refuse(path, offset, f"marker ff{marker:02x}", "a segment of sequential or lossless JPEG")


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

    Raises:
        DicomError: another process, no scan, or a segment that is damaged.
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
