"""Encapsulated pixel data to frames (PS3.5 section A.4): fragments, offset tables, several fragments a frame.

::

    item FFFE,E000 | length 4 | basic offset table: 32-bit offsets of each frame's first fragment, or empty
    item FFFE,E000 | length 4 | fragment            ... as often as there are fragments
    delimiter FFFE,E0DD | 0

Offsets count from the first byte of the item after the table. Tables are only believed where every offset is the start
of a fragment; where there are as many fragments as frames, no table is needed at all.
"""

from __future__ import annotations

import itertools
import struct

import numpy as np

from lumbar.dicom.header import File
from lumbar.errors import DicomError

_TAG_AND_LENGTH = struct.Struct("<II").unpack_from
_ITEM, _DELIMITER = 0xE000FFFE, 0xE0DDFFFE  # element before group, as bytes in that order read as one number
_JPEG_END = b"\xff\xd9"


def split_frames(file: File) -> list[np.ndarray]:
    """The encoded bytes of each frame, (n,) uint8 read-only; views where a frame is one fragment.

    Raises:
        DicomError: items that pass the end of the file, or fragments that cannot be told apart into frames.
    """
    table, fragments = _fragments(file)
    n_frames = max(1, file.header.number_of_frames or 1)
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
    """The one fragment of pixel data at ``start``, (n,) uint8 read-only; ``None`` where there is no such single one."""
    size = source.size
    position = start
    items = []
    for expected in (_ITEM, _ITEM, _DELIMITER):
        if position + 8 > size:
            return None
        tag, length = _TAG_AND_LENGTH(source.data, position)
        if tag != expected or length > size - position - 8:
            return None
        items.append((position + 8, length))
        position += 8 + length
    begin, length = items[1]
    fragment = source[begin : begin + length]
    fragment.flags.writeable = False
    return fragment


def _fragments(file: File) -> tuple[bytes, list[tuple[int, int]]]:
    """Basic offset table, and (offset, length) of each fragment in the file."""
    source, path = file.source, file.header.path
    position = file.pixels_start
    size = source.size
    items: list[tuple[int, int]] = []
    while position + 8 <= size:
        tag, length = _TAG_AND_LENGTH(source.data, position)
        if tag == _DELIMITER:
            break
        if tag != _ITEM:
            found = source[position : position + 4].tobytes().hex()
            raise DicomError(f"{path}: found {found} at offset {position}, expected an item (feff00e0)")
        if length > size - position - 8:
            raise DicomError(
                f"{path}: found a fragment of {length} bytes at offset {position}, expected at most "
                f"{size - position - 8} (the file's end)"
            )
        items.append((position + 8, length))
        position += 8 + length
    if len(items) < 2:
        raise DicomError(f"{path}: found {len(items)} items at offset {file.pixels_start}, expected a table and frames")
    start, length = items[0]
    return source[start : start + length // 4 * 4].tobytes(), items[1:]


def _group(file: File, table: bytes, fragments: list[tuple[int, int]], n_frames: int) -> list[list[int]]:
    """Indices of each frame's fragments: by the extended table, the basic table, or the end marks of JPEG."""
    origin = fragments[0][0] - 8
    index_of = {start - 8 - origin: index for index, (start, _) in enumerate(fragments)}
    extended = file.offset_table[0].tolist() if file.offset_table is not None else []
    for offsets in (extended, np.frombuffer(table, dtype="<u4").tolist()):
        firsts = [index_of.get(offset, -1) for offset in offsets]
        is_whole = len(firsts) == n_frames and firsts[0] == 0
        if is_whole and all(a < b for a, b in itertools.pairwise(firsts)):
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
