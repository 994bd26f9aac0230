"""The main and tile-part headers of JPEG 2000 (ISO/IEC 15444-1 annex A), checked before OpenCV gets the bytes.

OpenJPEG allocates a record for every tile, precinct and code-block, and visits every packet, even if the codestream has
no bytes for it. A hundred bytes can claim billions of them, so they are counted here first.
"""

from __future__ import annotations

from dataclasses import dataclass

from lumbar.dicom import limits
from lumbar.dicom.codecs.codestream import JP2_SIGNATURE
from lumbar.dicom.codecs.jpeg_segments import refuse

SIZ_BYTES = 36  # of the parameters of SIZ before the components
_COD, _COC, _SOT, _SOD = 0x52, 0x53, 0x90, 0x93
_BANDS = 3  # of a resolution above the lowest
_SEGMENTED = 0x05  # code-block styles under which the passes of a block may be separate segments


@dataclass(frozen=True, slots=True)
class Size:
    """What SIZ says: bits of a sample, whether samples are signed, and the tiles (width, height) in samples."""

    precision: int
    is_signed: bool
    n_components: int
    tile: tuple[int, int]
    n_tiles: int


@dataclass(frozen=True, slots=True)
class _Style:
    """What COD or COC says: decomposition levels; exponents of the sizes of code-blocks (x, y) and of precincts."""

    levels: int
    block: tuple[int, int]
    is_segmented: bool
    precincts: tuple[tuple[int, int], ...]


def find_codestream(data: bytes, path: str) -> int:
    """Return the offset where the codestream starts, also inside the boxes of a JP2 file (ISO/IEC 15444-1 I.4)."""
    start = 0
    if data[:8] == JP2_SIGNATURE[:8]:
        start = 12
        for _ in range(limits.MAX_SEGMENTS):
            if data[start + 4 : start + 8] == b"jp2c":
                break
            length = int.from_bytes(data[start : start + 4], "big")
            if length < 8 or start + length > len(data):
                raise refuse(path, start, f"box of {length} bytes", "a codestream (jp2c) in the rest of the data")
            start += length
        start += 16 if data[start : start + 4] == b"\x00\x00\x00\x01" else 8
    if data[start : start + 4] != b"\xff\x4f\xff\x51":
        raise refuse(path, start, data[start : start + 4].hex() or "no data", "ff4fff51 (SOC and SIZ of JPEG 2000)")
    return start


def check_siz(data: bytes, start: int, path: str, *, rows: int, columns: int, samples: int) -> Size:
    """Check the image and tile size segment (A.5.1) of the codestream at ``start``.

    Raises:
        DicomError: a size other than the header's, a tile grid that does not cover the image or has more tiles than
            ``limits`` allows or the data can hold, or components that are subsampled, not alike, or of more than 16
            bits.
    """
    at = start + 4
    length = int.from_bytes(data[at : at + 2], "big")
    n = int.from_bytes(data[at + SIZ_BYTES : at + SIZ_BYTES + 2], "big")
    if length != SIZ_BYTES + 2 + 3 * n or at + length > len(data):
        raise refuse(path, at, f"SIZ segment of {length} bytes with {n} components", "38 + 3 for each, all there")
    x1, y1, x0, y0, tile_x, tile_y, tile_x0, tile_y0 = (
        int.from_bytes(data[i : i + 4], "big") for i in range(at + 4, at + SIZ_BYTES, 4)
    )
    if (y1 - y0, x1 - x0, n) != (rows, columns, samples):
        value = f"{y1 - y0} x {x1 - x0} with {n} sample(s)"
        raise refuse(path, at + 4, value, f"{rows} x {columns} with {samples} sample(s), as the data set says")
    is_on_grid = tile_x and tile_y and tile_x0 <= x0 < tile_x0 + tile_x and tile_y0 <= y0 < tile_y0 + tile_y
    n_tiles = -(-(x1 - tile_x0) // tile_x) * -(-(y1 - tile_y0) // tile_y) if is_on_grid else 0
    if not 1 <= n_tiles <= limits.MAX_TILES:
        value = f"tiles of {tile_y} x {tile_x} from {tile_y0}, {tile_x0}"
        raise refuse(path, at + 20, value, f"1 to {limits.MAX_TILES} that cover the image")
    parts = {data[i : i + 3] for i in range(at + SIZ_BYTES + 2, at + length, 3)}
    depth, step_x, step_y = parts.pop()
    if parts or (step_x, step_y) != (1, 1) or (depth & 0x7F) > 15:
        value = f"components of {(depth & 0x7F) + 1} bits, {step_y} x {step_x} subsampled, {len(parts)} unlike"
        raise refuse(path, at + SIZ_BYTES + 2, value, "at most 16 bits, 1 x 1, all alike")
    tile = min(tile_x, columns), min(tile_y, rows)
    return Size((depth & 0x7F) + 1, bool(depth & 0x80), n, tile, n_tiles)


def check_styles(data: bytes, start: int, path: str, size: Size, *, n_frames: int, n_pixels_bytes: int) -> None:
    """Count the tiles, precincts, code-blocks and packets of a codestream, and refuse too many of them.

    Args:
        data: the frame's bytes.
        start: where the codestream starts in them.
        path: the file, for the message.
        size: what SIZ says.
        n_frames: frames of the file, which share what a file of any size may ask for.
        n_pixels_bytes: memory that the samples of one frame take in decoding.

    Raises:
        DicomError: more layers, tile-parts or packets than ``limits`` allows, a style out of the standard's ranges, or
            records of tiles, precincts and code-blocks that take more memory than such a file may ask for.
    """
    most = limits.MAX_TILES // n_frames + len(data) // limits.MIN_TILE_BYTES
    if size.n_tiles > most:
        raise refuse(path, start, f"{size.n_tiles} tiles in {len(data)} bytes", f"at most {most}")
    n_layers, styles = _read_styles(data, start, path, size.n_components)
    if not 1 <= n_layers <= limits.MAX_LAYERS:
        raise refuse(path, start, f"{n_layers} quality layers", f"1 to {limits.MAX_LAYERS}")
    needed, n_precincts = n_pixels_bytes + size.n_tiles * limits.TILE_BYTES, 0
    n_parts = size.n_tiles * size.n_components
    n_positions = n_parts * _count_positions(styles, *size.tile)
    if n_positions > limits.MAX_POSITIONS // n_frames + len(data):
        raise refuse(path, start, f"precincts at {n_positions} places", f"at most {limits.MAX_POSITIONS} in all")
    for style in styles:
        precincts, blocks = _count(style, *size.tile)
        block_bytes = limits.CODE_BLOCK_BYTES_SEGMENTED if style.is_segmented else limits.CODE_BLOCK_BYTES
        # One tile is decoded at a time
        records = size.n_components * (precincts * limits.PRECINCT_BYTES + blocks * block_bytes)
        needed, n_precincts = max(needed, n_pixels_bytes + records), max(n_precincts, precincts)
    n_packets = n_precincts * n_parts * n_layers
    if n_packets > limits.PACKET_FLOOR // n_frames + len(data):
        raise refuse(path, start, f"{n_packets} packets in {len(data)} bytes", "at least a byte for each")
    limits.check_memory(path, needed, len(data), f"JPEG 2000 of {size.n_tiles} tile(s) and {n_precincts} precincts")


def _read_styles(data: bytes, start: int, path: str, n_components: int) -> tuple[int, list[_Style]]:
    """Return the largest number of layers, and all coding styles (A.6.1, A.6.2) of main and tile-part headers."""
    n_layers, styles, seen = 0, [], set()
    position, part_end, n_parts, n_segments = start + 2, -1, 0, 0
    while position + 4 <= len(data):
        marker = data[position + 1]
        n_segments += 1
        if data[position] != 0xFF or n_segments > limits.MAX_SEGMENTS + 2 * limits.MAX_TILE_PARTS:
            break
        if marker == _SOD:  # data follow; the header of this tile-part said where the next one begins
            if part_end <= position:
                break
            position = part_end
            continue
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        segment = data[position + 4 : position + 2 + length]
        if marker == _SOT:
            n_parts += 1
            if n_parts > limits.MAX_TILE_PARTS:
                raise refuse(path, position, f"more than {limits.MAX_TILE_PARTS} tile-parts", "fewer")
            part_end = position + int.from_bytes(segment[2:6], "big")
        elif marker in (_COD, _COC) and (marker, segment) not in seen:
            seen.add((marker, segment))
            if marker == _COD:
                n_layers = max(n_layers, int.from_bytes(segment[2:4], "big"))
                styles.append(_read_style(segment[:1] + segment[5:], path, position))
            else:
                styles.append(_read_style(segment[1 if n_components < 257 else 2 :], path, position))
        position += 2 + length
    if not styles:
        raise refuse(path, position, "no coding style (COD)", "one in the main header")
    return n_layers, styles


def _read_style(raw: bytes, path: str, offset: int) -> _Style:
    """Read Scod or Scoc, and then the parameters that both segments have (table A.20)."""
    if len(raw) < 6:
        raise refuse(path, offset, f"{len(raw)} bytes of coding style", "6 or more")
    levels, block = raw[1], ((raw[2] & 15) + 2, (raw[3] & 15) + 2)
    has_precincts = raw[0] & 1
    if levels > 32 or max(block) > 10 or sum(block) > 12 or (has_precincts and len(raw) < 7 + levels):
        value = f"{levels} levels, code-blocks of 2 ** {block}, {len(raw) - 6} precinct sizes"
        raise refuse(path, offset, value, "at most 32, 2 ** 10 and 2 ** 12 in all, and a size for each resolution")
    sizes = raw[6 : 7 + levels] if has_precincts else b"\xff" * (levels + 1)
    return _Style(levels, block, bool(raw[4] & _SEGMENTED), tuple((size & 15, size >> 4) for size in sizes))


def _count_positions(styles: list[_Style], width: int, height: int) -> int:
    """Upper bound of the positions in a tile at which precincts of any resolution may begin (B.12.1)."""
    steps = [
        (x + style.levels - resolution, y + style.levels - resolution)
        for style in styles
        for resolution, (x, y) in enumerate(style.precincts)
    ]
    across, down = (
        (size >> min(step)) + 2 for size, step in zip((width, height), zip(*steps, strict=True), strict=True)
    )
    return across * down * (1 + max(style.levels for style in styles))


def _count(style: _Style, width: int, height: int) -> tuple[int, int]:
    """Upper bounds of precincts and code-blocks in one component of a tile (B.5 to B.7)."""
    n_precincts = n_blocks = 0
    for resolution, (x, y) in enumerate(style.precincts):
        shift = style.levels - resolution
        columns, rows = (width >> shift) + 2, (height >> shift) + 2  # a tile may begin anywhere in the grid
        across, down = (columns >> x) + 2, (rows >> y) + 2
        bands = 1 if resolution == 0 else _BANDS
        lower = 0 if resolution == 0 else 1  # a band has half the resolution's size, and so have its precincts
        block_x, block_y = min(style.block[0], max(0, x - lower)), min(style.block[1], max(0, y - lower))
        n_precincts += across * down
        n_blocks += bands * (((columns >> lower) >> block_x) + 2) * (((rows >> lower) >> block_y) + 2)
        n_blocks += bands * (across * down if (x, y) != (15, 15) else 0)  # precincts cut blocks at their borders
    return n_precincts, n_blocks
