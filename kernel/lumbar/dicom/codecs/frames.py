"""Encapsulated pixel data to frames (PS3.5 section A.4), of one or several fragments each, by the offset tables.

::

    item FFFE,E000 | length 4 | basic offset table: 32-bit offsets of each frame's first fragment, or empty
    item FFFE,E000 | length 4 | fragment            ... as often as there are fragments
    delimiter FFFE,E0DD | 0

Offsets count from the first byte of the item after the table. A table is believed only if every offset in it is the
start of a fragment. Where there are as many fragments as frames, no table is needed.
"""

from __future__ import annotations

import itertools
import struct

import numpy as np

from lumbar.dicom.header import File
from lumbar.dicom.limits import max_fragments
from lumbar.errors import DicomError

_TAG_AND_LENGTH = struct.Struct("<II").unpack_from
_ITEM, _DELIMITER = 0xE000FFFE, 0xE0DDFFFE  # element before group, as bytes in that order read as one number
_JPEG_END = b"\xff\xd9"


def split_frames(file: File) -> list[np.ndarray]:
    """Split the pixel data into the encoded bytes of each frame, (n,) uint8 read-only.

    Raises:
        DicomError: items that pass the end of the file, more items than any encoder writes for so many frames and
            bytes, or fragments that cannot be assigned to frames.
    """
    n_frames = max(1, file.header.number_of_frames or 1)
    table, fragments = _fragments(file, n_frames)
    if n_frames == 1:
        groups = [list(range(len(fragments)))]
    elif len(fragments) == n_frames:
        groups = [[index] for index in range(n_frames)]
    else:
        groups = _group(file, table, fragments, n_frames)
    source = file.source
    frames = []
    for group in groups:
        parts = [source[fragments[index][0] : fragments[index][0] + fragments[index][1]] for index in group]
        frame = parts[0] if len(parts) == 1 else np.concatenate(parts)
        frame.flags.writeable = False
        frames.append(frame)
    return frames


def only_fragment(source: np.ndarray, start: int) -> np.ndarray | None:
    """The fragment of pixel data at ``start``, (n,) uint8 read-only; ``None`` where there is not exactly one."""
    size, data = source.size, source.data
    position = start
    items = []
    for expected in (_ITEM, _ITEM, _DELIMITER):
        if position + 8 > size:
            return None
        tag, length = _TAG_AND_LENGTH(data, position)
        if tag != expected or length > size - position - 8:
            return None
        items.append((position + 8, length))
        position += 8 + length
    begin, length = items[1]
    fragment = source[begin : begin + length]
    fragment.flags.writeable = False
    return fragment


def is_item(file: File) -> bool:
    """Whether the pixel data begin with an item, as encapsulated pixel data do."""
    start = file.pixels_start
    return start + 8 <= file.source.size and _TAG_AND_LENGTH(file.source.data, start)[0] == _ITEM


def first_fragment(file: File) -> np.ndarray:
    """The first fragment that is not empty, (n,) uint8; an empty array where none of the first items is one."""
    source, position = file.source, file.pixels_start
    for index in range(4):
        if position + 8 > source.size:
            break
        tag, length = _TAG_AND_LENGTH(source.data, position)
        if tag != _ITEM or length > source.size - position - 8:
            break
        position += 8
        if index and length:
            return source[position : position + length]
        position += length
    return source[:0]


def _fragments(file: File, n_frames: int) -> tuple[bytes, list[tuple[int, int]]]:
    """The basic offset table, and (offset, length) of each fragment in the file."""
    source, path = file.source, file.header.path
    position = file.pixels_start
    size = source.size if file.pixels_length < 0 else min(source.size, position + file.pixels_length)
    most = max_fragments(n_frames, size)
    items: list[tuple[int, int]] = []
    while position + 8 <= size:
        tag, length = _TAG_AND_LENGTH(source.data, position)
        if tag == _DELIMITER:
            break
        if tag != _ITEM:
            tag_bytes = source[position : position + 4].tobytes().hex()
            raise DicomError(f"{path}: found {tag_bytes} at offset {position}, expected an item (feff00e0)")
        if length > size - position - 8:
            raise DicomError(
                f"{path}: found a fragment of {length} bytes at offset {position}, expected at most "
                f"{size - position - 8} (the file's end)"
            )
        if len(items) > most:
            raise DicomError(
                f"{path}: found more than {most} fragments up to offset {position}, expected at most so many for "
                f"{n_frames} frame(s) in {size} bytes"
            )
        items.append((position + 8, length))
        position += 8 + length
    if len(items) < 2:
        raise DicomError(f"{path}: found {len(items)} items at offset {file.pixels_start}, expected a table and frames")
    start, length = items[0]
    return source[start : start + length // 4 * 4].tobytes(), items[1:]


def _group(file: File, table: bytes, fragments: list[tuple[int, int]], n_frames: int) -> list[list[int]]:
    """Indices of each frame's fragments, by the extended offset table, the basic one, or the end marks of JPEG."""
    origin = fragments[0][0] - 8
    index_of = {start - 8 - origin: index for index, (start, _) in enumerate(fragments)}
    extended = file.offset_table[0] if file.offset_table is not None else np.empty(0, "<u8")
    for offsets in (extended, np.frombuffer(table, dtype="<u4")):
        if offsets.size != n_frames:
            continue
        # Offsets are looked up and never used in sums, so any that is not that of a fragment does no harm
        firsts = [index_of.get(offset, -1) for offset in offsets.tolist()]
        if firsts[0] == 0 and all(a < b for a, b in itertools.pairwise(firsts)):
            ends = [*firsts[1:], len(fragments)]
            return [list(range(a, b)) for a, b in zip(firsts, ends, strict=True)]
    groups: list[list[int]] = [[]]
    for index, (start, length) in enumerate(fragments):
        groups[-1].append(index)
        # Fragments are padded to even length, so the mark may be followed by a byte or two
        if _JPEG_END in file.source[max(start, start + length - 4) : start + length].tobytes():
            groups.append([])
    groups = [group for group in groups if group]
    if len(groups) != n_frames:
        raise DicomError(
            f"{file.header.path}: found {len(fragments)} fragments without a usable offset table at offset "
            f"{file.pixels_start}, expected {n_frames} frames"
        )
    return groups
